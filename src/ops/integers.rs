//! What operators on quantized tensors share: values relative to their zero points, and requantization.

use crate::error::{Result, bail, ensure};
use crate::tensor::{DType, Tensor, affine, minifloat};

/// How zero points and scales lie along a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Along {
    /// One for each row of the last two dimensions, or one for all.
    Rows,
    /// One for each column, or one for all.
    Columns,
    /// One for each element of dimension 0, or one for all.
    First,
}

/// Which of `n` parameters belongs to element `i` of a tensor of this shape.
fn index(along: Along, shape: &[usize], n: usize, i: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let columns = shape.last().copied().unwrap_or(1).max(1);
    match along {
        Along::Rows => i / columns % n,
        Along::Columns => {
            let rows = if shape.len() >= 2 { shape[shape.len() - 2].max(1) } else { 1 };
            (i / (rows * columns) * columns + i % columns) % n
        }
        Along::First => i / (shape.iter().skip(1).product::<usize>().max(1)),
    }
}

/// Checks the number of parameters of a tensor of this shape.
///
/// # Errors
/// It is neither 1 nor what `along` asks for.
pub(super) fn check_count(name: &str, along: Along, shape: &[usize], n: usize) -> Result<()> {
    let (rows, columns) = match shape {
        [] => (1, 1),
        [n] => (1, *n),
        [.., m, n] => (*m, *n),
    };
    let batches = shape.iter().rev().skip(2).product::<usize>();
    let fits = match along {
        Along::Rows => n == rows || n == batches * rows,
        Along::Columns => n == columns || n == batches * columns,
        Along::First => Some(&n) == shape.first(),
    };
    ensure!(n == 1 || fits, "{name} has {n} elements, which does not fit a tensor of shape {shape:?}");
    Ok(())
}

/// The elements of an 8-bit tensor minus their zero points, exact.
///
/// # Errors
/// `t` is no tensor of 8-bit integers or floats; the zero point is of another type or does not fit.
pub(super) fn centered(name: &str, t: &Tensor, zero: Option<&Tensor>, along: Along) -> Result<Vec<f32>> {
    let values: Vec<f32> = match t.dtype() {
        DType::U8 => t.slice::<u8>()?.iter().map(|&x| x.into()).collect(),
        DType::I8 => t.slice::<i8>()?.iter().map(|&x| x.into()).collect(),
        d if d.is_float8() => t.slice::<u8>()?.iter().map(|&x| minifloat::decode(d, x)).collect(),
        d => bail!("{name} has element type {d}, expected int8 or uint8"),
    };
    let Some(zero) = zero else { return Ok(values) };
    ensure!(
        zero.dtype() == t.dtype(),
        "the zero point of {name} has element type {}, expected {}",
        zero.dtype(),
        t.dtype()
    );
    check_count(&format!("the zero point of {name}"), along, t.shape(), zero.len())?;
    let zero = zero.to_f32s()?;
    Ok(match *zero {
        [] => bail!("the zero point of {name} is empty"),
        [0.0] => values,
        [z] => values.into_iter().map(|x| x - z).collect(),
        _ => {
            let z = |i| zero[index(along, t.shape(), zero.len(), i)];
            values.into_iter().enumerate().map(|(i, x)| x - z(i)).collect()
        }
    })
}

/// Scales as 32-bit floats, checked against the tensor that they belong to.
///
/// # Errors
/// They are no floats, or do not fit.
pub(super) fn scales(name: &str, scale: &Tensor, along: Along, shape: &[usize]) -> Result<Vec<f32>> {
    ensure!(scale.dtype().is_float(), "the scale of {name} has element type {}, expected float", scale.dtype());
    ensure!(!scale.is_empty(), "the scale of {name} is empty");
    check_count(&format!("the scale of {name}"), along, shape, scale.len())?;
    Ok(scale.to_f32s()?.into_owned())
}

/// Multiplies element `i` of a tensor of this shape with its row's and its column's scale and `factor`.
pub(super) fn rescaled(sums: &[i32], shape: &[usize], rows: &[f32], columns: &[f32], factor: f32) -> Vec<f32> {
    let scale = |i: usize| {
        rows[index(Along::Rows, shape, rows.len(), i)]
            * columns[index(Along::Columns, shape, columns.len(), i)]
            * factor
    };
    if let ([_], [_]) = (rows, columns) {
        let s = scale(0);
        return sums.iter().map(|&x| x as f32 * s).collect();
    }
    sums.iter().enumerate().map(|(i, &x)| x as f32 * scale(i)).collect()
}

/// A tensor of 8-bit elements: `x` in units of the output's scale, shifted by the zero point.
///
/// # Errors
/// The zero point is not one element of an 8-bit type.
pub(super) fn requantized(name: &str, shape: &[usize], x: &[f32], zero: &Tensor) -> Result<Tensor> {
    ensure!(zero.len() == 1, "{name} has shape {:?}, expected one element", zero.shape());
    let dtype = zero.dtype();
    if dtype.is_float8() {
        let zero = minifloat::decode(dtype, zero.slice::<u8>()?[0]);
        let v = x.iter().map(|&x| minifloat::encode(dtype, x + zero, true)).collect::<Vec<u8>>();
        return Tensor::new(shape, v)?.retyped(dtype);
    }
    let z = zero.to_i64()? as i32;
    match dtype {
        DType::U8 => Tensor::new(shape, x.iter().map(|&x| affine::quantize_one(x, 1.0, z, 0, 255) as u8).collect()),
        DType::I8 => Tensor::new(shape, x.iter().map(|&x| affine::quantize_one(x, 1.0, z, -128, 127) as i8).collect()),
        d => bail!("{name} has element type {d}, expected int8 or uint8"),
    }
}

/// One scale.
///
/// # Errors
/// There is not exactly one.
pub(super) fn one_scale(name: &str, t: &Tensor) -> Result<f32> {
    ensure!(t.len() == 1 && t.dtype().is_float(), "{name} has shape {:?}, expected one float", t.shape());
    Ok(t.to_f32s()?[0])
}
