//! The second half of a transposed convolution: spreading what each tap gives over the output.

use super::conv::for_each_index;
use super::plain::{Number, valid};
use super::{Slots, for_each};

/// Sizes of the spatial dimensions; input places are windows over the output.
#[derive(Debug, Clone)]
pub struct Scatter {
    /// Sizes of the input.
    pub input: Vec<usize>,
    /// Sizes of the output.
    pub output: Vec<usize>,
    /// Sizes of the kernel.
    pub kernel: Vec<usize>,
    /// Strides.
    pub stride: Vec<usize>,
    /// Dilations.
    pub dilation: Vec<usize>,
    /// What is cut off in front of the output.
    pub begin: Vec<usize>,
}

/// Adds `columns`, `[channels, taps, places]`, to `y`, `[channels, output…]`.
///
/// # Panics
/// A slice has not the length that the sizes say.
pub fn scatter<T: Number>(threads: usize, s: &Scatter, columns: &[T], y: &mut [T]) {
    let out_size: usize = s.output.iter().product();
    let (taps, places): (usize, usize) = (s.kernel.iter().product(), s.input.iter().product());
    if out_size == 0 {
        return;
    }
    let channels = y.len() / out_size;
    assert_eq!(columns.len(), channels * taps * places, "length of the columns");
    let out = Slots::new(y);
    for_each(threads, channels, |c| {
        channel(s, &columns[c * taps * places..(c + 1) * taps * places], places, out.chunk(c, out_size));
    });
}

fn channel<T: Number>(s: &Scatter, columns: &[T], places: usize, y: &mut [T]) {
    let last = s.input.len() - 1;
    let (width, from_width, stride) = (s.output[last], s.input[last], s.stride[last]);
    let mut tap = 0;
    for_each_index(&s.kernel, |k| {
        let from = &columns[tap * places..(tap + 1) * places];
        tap += 1;
        let (lo, hi, at) = valid(from_width, width, k[last] * s.dilation[last], stride, s.begin[last]);
        if lo >= hi {
            return;
        }
        let mut row = 0;
        for_each_index(&s.input[..last], |i| {
            let x = &from[row * from_width..][lo..hi];
            row += 1;
            let mut to = 0;
            for d in 0..last {
                let o = i[d] * s.stride[d] + k[d] * s.dilation[d];
                if o < s.begin[d] || o - s.begin[d] >= s.output[d] {
                    return;
                }
                to = to * s.output[d] + o - s.begin[d];
            }
            let y = &mut y[to * width..(to + 1) * width][at..];
            match stride {
                1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y += x),
                2 => y.chunks_mut(2).zip(x).for_each(|(y, &x)| y[0] += x),
                _ => y.iter_mut().step_by(stride).zip(x).for_each(|(y, &x)| *y += x),
            }
        });
    });
}
