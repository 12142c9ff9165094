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

/// The innermost rows of a broadcast, one after the other. Dimensions that all operands walk in step are merged first,
/// so equal shapes give one row.
///
/// Not generic in what is done with a row: this is compiled once for each number of operands.
#[derive(Debug)]
pub struct Rows<const N: usize> {
    dims: Vec<(usize, [usize; N])>,
    index: Vec<usize>,
    offsets: [usize; N],
    output: usize,
    len: usize,
    inner: [usize; N],
    is_done: bool,
}

/// One row: offset in the output, offsets in the operands, length, strides of the operands along it.
pub type Row<const N: usize> = (usize, [usize; N], usize, [usize; N]);

impl<const N: usize> Rows<N> {
    /// The rows of operands of these shapes in the `output` shape that they broadcast to.
    #[must_use]
    pub fn new(output: &[usize], operands: [&[usize]; N]) -> Self {
        // (size, strides of the operands), merged from the innermost dimension outwards.
        let all: [Shape; N] = operands.map(|s| broadcast_strides(s, output));
        let mut dims: Vec<(usize, [usize; N])> = Vec::with_capacity(output.len());
        for (i, &size) in output.iter().enumerate() {
            if size == 1 {
                continue;
            }
            let mut stride = [0; N];
            for (s, all) in stride.iter_mut().zip(&all) {
                *s = all[i];
            }
            match dims.last_mut() {
                Some((n, last)) if last.iter().zip(&stride).all(|(l, s)| *l == s * size) => {
                    *n *= size;
                    *last = stride;
                }
                _ => dims.push((size, stride)),
            }
        }
        let (len, inner) = dims.pop().unwrap_or((1, [0; N]));
        let index = vec![0; dims.len()];
        Rows { dims, index, offsets: [0; N], output: 0, len, inner, is_done: output.contains(&0) }
    }
}

impl<const N: usize> Iterator for Rows<N> {
    type Item = Row<N>;

    fn next(&mut self) -> Option<Row<N>> {
        if self.is_done {
            return None;
        }
        let row = (self.output, self.offsets, self.len, self.inner);
        self.output += self.len;
        self.is_done = true;
        for (i, (size, stride)) in self.index.iter_mut().zip(&self.dims).rev() {
            *i += 1;
            for (o, s) in self.offsets.iter_mut().zip(stride) {
                *o += s;
            }
            if *i < *size {
                self.is_done = false;
                break;
            }
            for (o, s) in self.offsets.iter_mut().zip(stride) {
                *o -= s * size;
            }
            *i = 0;
        }
        Some(row)
    }
}

/// Calls `row` for each innermost row of `output`, with the operands' start offsets: the loop inside is the caller's,
/// contiguous or with the innermost strides.
///
/// `row(output_offset, operand_offsets, length, innermost_strides)`.
#[inline(always)]
pub fn for_each_row<const N: usize>(
    output: &[usize],
    operands: [&[usize]; N],
    mut row: impl FnMut(usize, [usize; N], usize, [usize; N]),
) {
    let mut rows = Rows::new(output, operands);
    while let Some((o, offsets, len, inner)) = rows.next() {
        row(o, offsets, len, inner);
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
