//! Strided copies: the one loop behind `Transpose`, `Slice`, `Expand`, `Tile`, `DepthToSpace` and the like.
//!
//! Dimensions that move together are merged first, so most copies come down to long contiguous runs. When the source
//! is contiguous along another dimension than the output, the two are copied in square tiles, so that both sides use
//! whole cache lines.

use super::{Buf, DType, Element, Tensor};
use crate::error::Result;

/// Side of a tile of a transposed copy, in elements: 32 floats are two cache lines.
const TILE: usize = 32;

/// A tensor of `dtype` with elements stored as `T`.
///
/// # Errors
/// `dtype` is not stored as `T`, or the number of elements is wrong.
pub fn typed<T: Element>(dtype: DType, shape: &[usize], v: Vec<T>) -> Result<Tensor> {
    Tensor::from_buf(dtype, shape, T::wrap(Buf::from(v)))
}

/// The elements of a strided region in row-major order: element `i` comes from
/// `src[offset + i[0] * steps[0] + i[1] * steps[1] + …]`.
///
/// # Panics
/// The region leaves `src`: a bug in the caller.
#[must_use]
pub fn gather<T: Clone + Default>(src: &[T], offset: usize, shape: &[usize], steps: &[isize]) -> Vec<T> {
    let n: usize = shape.iter().product();
    if n == 0 {
        return Vec::new();
    }
    let mut dims = merged(shape, steps);
    let (len, step) = dims.pop().unwrap_or((1, 1));
    let contiguous = dims.iter().position(|&(_, s)| s == 1);
    if let (Some(k), false) = (contiguous, step == 0 || step == 1) {
        return transposed(src, offset, n, &dims, k, (len, step));
    }
    let mut out = Vec::with_capacity(n);
    walk(&dims, offset, |o| match step {
        1 => out.extend_from_slice(&src[o..o + len]),
        0 => out.extend(std::iter::repeat_n(&src[o], len).cloned()),
        _ => out.extend((0..len as isize).map(|i| src[o.wrapping_add_signed(i * step)].clone())),
    });
    out
}

/// The sizes and steps without dimensions of size 1, and with neighbours merged that one step describes.
fn merged(shape: &[usize], steps: &[isize]) -> Vec<(usize, isize)> {
    let mut dims: Vec<(usize, isize)> = Vec::with_capacity(shape.len());
    for (&size, &step) in shape.iter().zip(steps) {
        if size == 1 {
            continue;
        }
        match dims.last_mut() {
            Some((n, s)) if *s == step * size as isize => {
                *n *= size;
                *s = step;
            }
            _ => dims.push((size, step)),
        }
    }
    dims
}

/// Calls `f` with the source offset of each index of `dims`, in row-major order.
fn walk(dims: &[(usize, isize)], offset: usize, mut f: impl FnMut(usize)) {
    let mut index = vec![0usize; dims.len()];
    let mut o = offset;
    loop {
        f(o);
        let mut d = dims.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            let (size, step) = dims[d];
            index[d] += 1;
            if index[d] < size {
                o = o.wrapping_add_signed(step);
                break;
            }
            o = o.wrapping_add_signed(-step * (size as isize - 1));
            index[d] = 0;
        }
    }
}

/// A copy whose innermost dimension is strided in the source while dimension `k` is contiguous there.
fn transposed<T: Clone + Default>(
    src: &[T],
    offset: usize,
    n: usize,
    dims: &[(usize, isize)],
    k: usize,
    (len, step): (usize, isize),
) -> Vec<T> {
    let mut out = vec![T::default(); n];
    // The step of dimension k in the output.
    let out_step: usize = len * dims[k + 1..].iter().map(|d| d.0).product::<usize>();
    let rows = dims[k].0;
    let mut outer = dims.to_vec();
    outer.remove(k);
    let mut starts = Vec::new();
    walk(&outer, offset, |o| starts.push(o));
    // The dimensions between k and the innermost one lie inside a row of k, the others outside.
    let inside: usize = dims[k + 1..].iter().map(|d| d.0).product();
    for (i, &from) in starts.iter().enumerate() {
        let to = (i / inside) * rows * out_step + (i % inside) * len;
        for r0 in (0..rows).step_by(TILE) {
            let r1 = (r0 + TILE).min(rows);
            for c0 in (0..len).step_by(TILE) {
                let c1 = (c0 + TILE).min(len);
                for r in r0..r1 {
                    let row = &mut out[to + r * out_step + c0..to + r * out_step + c1];
                    let mut o = from.wrapping_add_signed(c0 as isize * step) + r;
                    for x in row {
                        *x = src[o].clone();
                        o = o.wrapping_add_signed(step);
                    }
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::broadcast::strides;

    fn slow(src: &[i32], offset: usize, shape: &[usize], steps: &[isize]) -> Vec<i32> {
        let st = strides(shape);
        (0..shape.iter().product())
            .map(|i: usize| {
                let o: isize = (0..shape.len()).map(|d| ((i / st[d]) % shape[d]) as isize * steps[d]).sum();
                src[offset.wrapping_add_signed(o)]
            })
            .collect()
    }

    #[test]
    fn equals_the_element_wise_definition() {
        let src: Vec<i32> = (0..10000).collect();
        let cases: &[(usize, &[usize], &[isize])] = &[
            (0, &[2, 3, 4], &[12, 4, 1]),
            (0, &[40, 50], &[1, 40]),
            (0, &[3, 40, 2, 33], &[2640, 1, 1320, 40]),
            (0, &[40, 3, 2, 5], &[1, 400, 200, 40]),
            (99, &[10], &[-3]),
            (7, &[3, 4], &[0, 1]),
            (7, &[3, 4], &[1, 0]),
            (5, &[], &[]),
            (0, &[0, 3], &[3, 1]),
            (1000, &[4, 5, 6], &[-30, 2, 10]),
        ];
        for &(offset, shape, steps) in cases {
            assert_eq!(gather(&src, offset, shape, steps), slow(&src, offset, shape, steps), "{shape:?} {steps:?}");
        }
    }
}
