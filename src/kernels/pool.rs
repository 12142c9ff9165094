//! Pooling: a window's maximum or sum, one row of output at a time so that the compiler vectorises over columns.

use super::conv::{Geometry, for_each_index};
use super::depthwise::Fold;
use super::plain::valid;
use super::{Slots, depthwise, for_each};

/// Sizes of a pool; spatial dimensions only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Spatial sizes of the input.
    pub input: Vec<usize>,
    /// Spatial sizes of the output.
    pub output: Vec<usize>,
    /// Spatial sizes of the window.
    pub kernel: Vec<usize>,
    /// Strides.
    pub stride: Vec<usize>,
    /// Dilations.
    pub dilation: Vec<usize>,
    /// Padding in front of each dimension.
    pub begin: Vec<usize>,
    /// Padding behind each dimension.
    pub end: Vec<usize>,
}

impl Pool {
    /// Elements of one channel of the input and of the output.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.input.iter().product(), self.output.iter().product())
    }

    /// Calls `row(output_row, input_row, shift)` for each row of one channel's output and each row of the input that
    /// its window meets; `shift` is the place of a tap in the innermost dimension.
    fn rows(&self, mut row: impl FnMut(usize, usize)) {
        let last = self.input.len() - 1;
        let mut o_row = 0;
        for_each_index(&self.output[..last], |o| {
            for_each_index(&self.kernel[..last], |k| {
                let mut at = 0;
                for d in 0..last {
                    let i = o[d] * self.stride[d] + k[d] * self.dilation[d];
                    if i < self.begin[d] || i - self.begin[d] >= self.input[d] {
                        return;
                    }
                    at = at * self.input[d] + i - self.begin[d];
                }
                row(o_row, at);
            });
            o_row += 1;
        });
    }

    /// For each output of a dimension, how many taps of its window lie inside the input, or, with padding, inside the
    /// padded input.
    fn counts(&self, d: usize, with_padding: bool) -> Vec<usize> {
        let (from, to) = if with_padding {
            (0, self.begin[d] + self.input[d] + self.end[d])
        } else {
            (self.begin[d], self.begin[d] + self.input[d])
        };
        (0..self.output[d])
            .map(|o| {
                let at = |k| o * self.stride[d] + k * self.dilation[d];
                (0..self.kernel[d]).filter(|&k| at(k) >= from && at(k) < to).count()
            })
            .collect()
    }

    /// For each output, by how many elements its average is divided.
    #[must_use]
    pub fn divisors(&self, with_padding: bool) -> Vec<usize> {
        let counts: Vec<Vec<usize>> = (0..self.input.len()).map(|d| self.counts(d, with_padding)).collect();
        let mut all = Vec::with_capacity(self.output.iter().product());
        for_each_index(&self.output, |o| all.push(o.iter().enumerate().map(|(d, &i)| counts[d][i]).product()));
        all
    }
}

/// A number that pools combine.
pub trait Number: Copy + Send + Sync + PartialOrd + 'static {}

impl<T: Copy + Send + Sync + PartialOrd + 'static> Number for T {}

/// Combines every window's elements with `f`, starting from `first`; channel after channel.
///
/// # Panics
/// A slice has not the length that the sizes say.
pub fn fold<T: Number>(
    threads: usize,
    p: &Pool,
    x: &[T],
    y: &mut [T],
    first: T,
    f: impl Fn(T, T) -> T + Copy + Send + Sync,
) {
    let (in_size, out_size) = p.sizes();
    if out_size == 0 {
        return;
    }
    let channels = y.len() / out_size;
    assert_eq!(x.len(), channels * in_size, "length of the input");
    let out = Slots::new(y);
    for_each(threads, channels, |c| {
        channel(p, &x[c * in_size..(c + 1) * in_size], out.chunk(c, out_size), first, f);
    });
}

#[inline(always)]
fn channel<T: Number>(p: &Pool, x: &[T], y: &mut [T], first: T, f: impl Fn(T, T) -> T + Copy) {
    let last = p.input.len() - 1;
    let (width, from_width) = (p.output[last], p.input[last]);
    y.fill(first);
    p.rows(|o_row, i_row| {
        let y = &mut y[o_row * width..(o_row + 1) * width];
        let x = &x[i_row * from_width..(i_row + 1) * from_width];
        for k in 0..p.kernel[last] {
            let (lo, hi, from) = valid(width, from_width, k * p.dilation[last], p.stride[last], p.begin[last]);
            if lo >= hi {
                continue;
            }
            match p.stride[last] {
                1 => y[lo..hi].iter_mut().zip(&x[from..]).for_each(|(y, &x)| *y = f(*y, x)),
                2 => y[lo..hi].iter_mut().zip(x[from..].chunks(2)).for_each(|(y, x)| *y = f(*y, x[0])),
                s => y[lo..hi].iter_mut().zip(x[from..].iter().step_by(s)).for_each(|(y, &x)| *y = f(*y, x)),
            }
        }
    });
}

impl Pool {
    fn geometry(&self) -> Geometry {
        Geometry {
            batch: 1,
            channels: 1,
            filters: 1,
            groups: 1,
            input: self.input.clone(),
            output: self.output.clone(),
            kernel: self.kernel.clone(),
            stride: self.stride.clone(),
            dilation: self.dilation.clone(),
            begin: self.begin.clone(),
        }
    }
}

/// The largest element of every window, channel after channel; NaNs are ignored.
///
/// # Panics
/// A slice has not the length that the sizes say.
pub fn max(threads: usize, p: &Pool, x: &[f32], y: &mut [f32]) {
    depthwise::pool(threads, &p.geometry(), Fold::Max, x, y);
}

/// The sum of every window, channel after channel.
///
/// # Panics
/// A slice has not the length that the sizes say.
pub fn sums(threads: usize, p: &Pool, x: &[f32], y: &mut [f32]) {
    depthwise::pool(threads, &p.geometry(), Fold::Sum, x, y);
}

/// For each window of one channel, its first largest element's place in the channel, row-major; `None` for a window
/// without elements.
#[must_use]
pub fn places_of_maxima<T: Number>(p: &Pool, x: &[T]) -> Vec<Option<usize>> {
    let last = p.input.len() - 1;
    let width = p.output[last];
    let mut places: Vec<Option<usize>> = vec![None; p.output.iter().product()];
    p.rows(|o_row, i_row| {
        for o in 0..width {
            let best = &mut places[o_row * width + o];
            for k in 0..p.kernel[last] {
                let i = o * p.stride[last] + k * p.dilation[last];
                if i < p.begin[last] || i - p.begin[last] >= p.input[last] {
                    continue;
                }
                let at = i_row * p.input[last] + i - p.begin[last];
                if best.is_none_or(|b| x[at] > x[b]) {
                    *best = Some(at);
                }
            }
        }
    });
    places
}

multiversion! {
    /// Divides every channel, of as many elements as there are divisors, element by element.
    pub fn divide(divisors: &[f32], y: &mut [f32]) {
        for y in y.chunks_exact_mut(divisors.len().max(1)) {
            y.iter_mut().zip(divisors).for_each(|(y, n)| *y /= n);
        }
    }
}

/// The sum, in 64 chains of additions whatever the processor.
#[must_use]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 64];
    let mut chunks = x.chunks_exact(64);
    for chunk in chunks.by_ref() {
        lanes.iter_mut().zip(chunk).for_each(|(l, x)| *l += x);
    }
    lanes.iter_mut().zip(chunks.remainder()).for_each(|(l, x)| *l += x);
    let mut n = 32;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// The largest element, negative infinity for none; NaNs are ignored.
#[must_use]
pub fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 64];
    let mut chunks = x.chunks_exact(64);
    for chunk in chunks.by_ref() {
        lanes.iter_mut().zip(chunk).for_each(|(l, &x)| *l = larger(*l, x));
    }
    lanes.iter_mut().zip(chunks.remainder()).for_each(|(l, &x)| *l = larger(*l, x));
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

multiversion! {
    /// `y = x * a + b`.
    pub fn scale_and_shift(x: &[f32], a: f32, b: f32, y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x * a + b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectorised_pools_agree_with_plain_folds() {
        // For each dimension: input, kernel, stride, dilation, begin, end.
        let cases: [&[[usize; 6]]; 9] = [
            &[[14, 5, 1, 1, 2, 2], [14, 5, 1, 1, 2, 2]],
            &[[23, 3, 2, 1, 1, 1], [70, 3, 2, 1, 1, 1]],
            &[[8, 2, 2, 1, 0, 0], [9, 2, 2, 1, 0, 1]],
            &[[9, 3, 1, 2, 2, 1], [40, 2, 1, 3, 1, 0]],
            &[[9, 4, 3, 1, 2, 1], [40, 6, 3, 1, 1, 0]],
            &[[40, 3, 2, 1, 1, 0]],
            &[[40, 9, 1, 1, 4, 4]],
            &[[5, 2, 1, 1, 1, 0], [6, 3, 2, 1, 1, 1], [7, 3, 1, 1, 0, 0]],
            &[[20, 13, 1, 1, 6, 6], [20, 13, 1, 1, 6, 6]],
        ];
        for dims in cases {
            let column = |j: usize| dims.iter().map(|d| d[j]).collect::<Vec<usize>>();
            let p = Pool {
                input: column(0),
                output: dims.iter().map(|d| (d[0] + d[4] + d[5] - (d[1] - 1) * d[3] - 1) / d[2] + 1).collect(),
                kernel: column(1),
                stride: column(2),
                dilation: column(3),
                begin: column(4),
                end: column(5),
            };
            let (i, o) = p.sizes();
            let x: Vec<f32> = (0..3 * i).map(|i| ((i * 7) % 23) as f32 - 19.0).collect();
            let mut expected = vec![0.0; 3 * o];
            let mut y = vec![5.0; 3 * o];
            fold(1, &p, &x, &mut expected, f32::NEG_INFINITY, |y, x| if x > y { x } else { y });
            max(1, &p, &x, &mut y);
            assert_eq!(y, expected, "max {dims:?}");
            fold(1, &p, &x, &mut expected, 0.0, |y, x| y + x);
            sums(2, &p, &x, &mut y);
            assert_eq!(y, expected, "sum {dims:?}");
        }
    }
}
