//! Multidirectional (numpy) broadcasting of shapes, and strided walks over broadcast operands without copying them.
//!
//! Spec: <https://github.com/onnx/onnx/blob/main/docs/Broadcasting.md>

use super::Shape;
use crate::error::{Result, bail};

/// The shape that two shapes broadcast to.
///
/// # Errors
/// Two dimensions differ and neither is 1.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Shape> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => bail!("shapes {a:?} and {b:?} do not broadcast"),
        })
        .collect()
}

/// The shape that all shapes broadcast to; rank 0 for none.
///
/// # Errors
/// Two dimensions differ and neither is 1.
pub fn broadcast_all<'a>(shapes: impl IntoIterator<Item = &'a [usize]>) -> Result<Shape> {
    shapes.into_iter().try_fold(Shape::new(), |acc, s| broadcast(&acc, s))
}

/// Row-major strides, in elements.
#[must_use]
pub fn strides(shape: &[usize]) -> Shape {
    let mut strides: Shape = shape.into();
    let mut n = 1;
    for (s, &d) in strides.iter_mut().zip(shape).rev() {
        *s = n;
        n *= d;
    }
    strides
}

/// Strides of an operand of `shape` seen in the `output` shape that it broadcasts to: 0 along repeated dimensions.
#[must_use]
pub fn broadcast_strides(shape: &[usize], output: &[usize]) -> Shape {
    let own = strides(shape);
    let lead = output.len() - shape.len();
    (0..output.len()).map(|i| if i < lead || shape[i - lead] == 1 { 0 } else { own[i - lead] }).collect()
}

/// Calls `row` for each innermost row of `output`, with the operands' start offsets: the loop inside is the caller's,
/// contiguous or with the innermost strides. Dimensions that all operands walk in step are merged first, so equal
/// shapes give one call.
///
/// `row(output_offset, operand_offsets, length, innermost_strides)`.
pub fn for_each_row<const N: usize>(
    output: &[usize],
    operands: [&[usize]; N],
    mut row: impl FnMut(usize, [usize; N], usize, [usize; N]),
) {
    if output.contains(&0) {
        return;
    }
    // (size, strides of the operands), merged from the innermost dimension outwards.
    let all: [Shape; N] = operands.map(|s| broadcast_strides(s, output));
    let mut dims: Vec<(usize, [usize; N])> = Vec::with_capacity(output.len());
    for (i, &size) in output.iter().enumerate() {
        if size == 1 {
            continue;
        }
        let stride: [usize; N] = std::array::from_fn(|k| all[k][i]);
        match dims.last_mut() {
            Some((n, last)) if (0..N).all(|k| last[k] == stride[k] * size) => {
                *n *= size;
                *last = stride;
            }
            _ => dims.push((size, stride)),
        }
    }
    let (len, inner) = dims.pop().unwrap_or((1, [0; N]));
    let mut index = vec![0usize; dims.len()];
    let mut offsets = [0usize; N];
    let mut out = 0;
    loop {
        row(out, offsets, len, inner);
        out += len;
        let mut d = dims.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            let (size, stride) = &dims[d];
            index[d] += 1;
            for k in 0..N {
                offsets[k] += stride[k];
            }
            if index[d] < *size {
                break;
            }
            for k in 0..N {
                offsets[k] -= stride[k] * size;
            }
            index[d] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!(broadcast(&[2, 1, 3], &[4, 1]).unwrap().as_slice(), &[2, 4, 3]);
        assert_eq!(broadcast(&[0], &[1]).unwrap().as_slice(), &[0]);
        assert!(broadcast(&[2], &[3]).is_err());
    }

    #[test]
    fn rows_cover_the_output_once_and_merge() {
        let mut rows = Vec::new();
        for_each_row(&[2, 3, 4], [&[2, 3, 4], &[4]], |o, off, n, st| rows.push((o, off, n, st)));
        assert_eq!(rows.len(), 6);
        assert_eq!(rows[1], (4, [4, 0], 4, [1, 1]));
        rows.clear();
        for_each_row(&[2, 3, 4], [&[2, 3, 4], &[2, 3, 4]], |o, off, n, st| rows.push((o, off, n, st)));
        assert_eq!(rows, vec![(0, [0, 0], 24, [1, 1])]);
        rows.clear();
        for_each_row(&[2, 3], [&[2, 1], &[]], |o, off, n, st| rows.push((o, off, n, st)));
        assert_eq!(rows, vec![(0, [0, 0], 3, [0, 0]), (3, [1, 0], 3, [0, 0])]);
    }
}
