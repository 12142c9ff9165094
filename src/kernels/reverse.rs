//! Gradients of convolutions and sums over windows.
//!
//! The gradient of the data of a convolution with stride 1 is a convolution with the filters turned round; with another
//! stride, and of sums, it is spread as a transposed convolution spreads. The gradient of the filters is a product of
//! the output's gradient with the windows, which are laid out as a matrix a block of places at a time.

use super::conv::{Filters, Geometry, conv, for_each_index};
use super::conv_transpose::{Scatter, scatter};
use super::for_each_chunk;
use super::gemm::{Init, PackedB, gemm};
use super::plain::valid;
use super::pool::Pool;

/// Elements of the matrix of windows that are laid out at once: what the second cache holds.
const BLOCK: usize = 1 << 16;
/// Parts of the sum over all places that are made apart.
const PARTS: usize = 8;

/// The gradient of a convolution's data, from the filters and the gradient of its output.
///
/// # Panics
/// A slice has not the length that `g` says.
#[must_use]
pub fn conv_data(threads: usize, g: &Geometry, w: &[f32], dy: &[f32]) -> Vec<f32> {
    let (in_size, out_size) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    let mut dx = vec![0.0f32; g.batch * g.channels * in_size];
    if dx.is_empty() || dy.is_empty() {
        return dx;
    }
    assert_eq!(dy.len(), g.batch * g.filters * out_size, "length of the gradient");
    if let Some(turned) = turned(g) {
        let filters = Filters::new(&turned_filters(g, w), &turned).in_any_order();
        conv(threads, &turned, dy, &filters, None, &mut dx);
        return dx;
    }
    let (per_in, per_out, taps) = (g.channels / g.groups, g.filters / g.groups, g.kernel.iter().product::<usize>());
    let s = Scatter {
        input: g.output.clone(),
        output: g.input.clone(),
        kernel: g.kernel.clone(),
        stride: g.stride.clone(),
        dilation: g.dilation.clone(),
        begin: g.begin.clone(),
    };
    let rows = per_in * taps;
    let mut columns = vec![0.0f32; rows * out_size];
    for n in 0..g.batch {
        for group in 0..g.groups {
            let w = &w[group * per_out * rows..(group + 1) * per_out * rows];
            let dy = &dy[(n * g.filters + group * per_out) * out_size..][..per_out * out_size];
            if per_out == 1 {
                for (columns, &w) in columns.chunks_exact_mut(out_size).zip(w) {
                    columns.iter_mut().zip(dy).for_each(|(c, g)| *c = w * g);
                }
            } else {
                let turned: Vec<f32> = (0..rows).flat_map(|r| (0..per_out).map(move |m| w[m * rows + r])).collect();
                let dy = PackedB::new(dy, per_out, out_size, out_size, 1);
                gemm(threads, rows, &turned, &dy, Init::Zero, &mut columns);
            }
            let at = (n * g.channels + group * per_in) * in_size;
            scatter(threads, &s, &columns, &mut dx[at..at + per_in * in_size]);
        }
    }
    dx
}

/// The convolution of the output's gradient that gives the data's; `None` where that is none.
fn turned(g: &Geometry) -> Option<Geometry> {
    let begin = (0..g.kernel.len()).map(|d| ((g.kernel[d] - 1) * g.dilation[d]).checked_sub(g.begin[d]));
    let begin: Vec<usize> = begin.collect::<Option<_>>()?;
    g.stride.iter().all(|&s| s == 1).then(|| Geometry {
        channels: g.filters,
        filters: g.channels,
        input: g.output.clone(),
        output: g.input.clone(),
        begin,
        ..g.clone()
    })
}

/// `[filters, channels / groups, taps]` as `[channels, filters / groups, taps in reverse]`.
fn turned_filters(g: &Geometry, w: &[f32]) -> Vec<f32> {
    let (per_in, per_out, taps) = (g.channels / g.groups, g.filters / g.groups, g.kernel.iter().product::<usize>());
    let mut out = Vec::with_capacity(w.len());
    for group in 0..g.groups {
        for c in 0..per_in {
            for m in 0..per_out {
                let at = ((group * per_out + m) * per_in + c) * taps;
                out.extend(w[at..at + taps].iter().rev());
            }
        }
    }
    out
}

/// The gradient of a convolution's filters, from its data and the gradient of its output.
///
/// # Panics
/// A slice has not the length that `g` says.
#[must_use]
pub fn conv_weights(threads: usize, g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let (in_size, out_size) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    let (per_in, per_out, taps) = (g.channels / g.groups, g.filters / g.groups, g.kernel.iter().product::<usize>());
    let columns = per_in * taps;
    let mut dw = vec![0.0f32; g.filters * columns];
    if dw.is_empty() || dy.is_empty() || x.is_empty() {
        return dw;
    }
    assert_eq!(dy.len(), g.batch * g.filters * out_size, "length of the gradient");
    assert_eq!(x.len(), g.batch * g.channels * in_size, "length of the data");
    for n in 0..g.batch {
        let images = (&x[n * g.channels * in_size..], &dy[n * g.filters * out_size..]);
        if per_out == 1 && per_in == 1 {
            for_each_chunk(threads, &mut dw, taps, &|c, dw| {
                let (x, dy) = (&images.0[c * in_size..][..in_size], &images.1[c * out_size..][..out_size]);
                let mut rows = vec![0.0f32; taps * out_size];
                windows(g, x, 0..out_size, &mut rows);
                dw.iter_mut().zip(rows.chunks_exact(out_size)).for_each(|(sum, row)| *sum += dot(row, dy));
            });
            continue;
        }
        for group in 0..g.groups {
            let x = &images.0[group * per_in * in_size..][..per_in * in_size];
            let dy = &images.1[group * per_out * out_size..][..per_out * out_size];
            let dw = &mut dw[group * per_out * columns..][..per_out * columns];
            dense(threads, g, x, dy, dw);
        }
    }
    dw
}

/// One image and group: the product over all places, a block of them at a time. Some blocks make a part of the sum each,
/// as many whatever the number of threads is, so that the result does not depend on it.
fn dense(threads: usize, g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (in_size, out_size) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    let (per_in, per_out, taps) = (g.channels / g.groups, g.filters / g.groups, g.kernel.iter().product::<usize>());
    let columns = per_in * taps;
    let row = g.output.last().copied().unwrap_or(1).max(1);
    let block = (BLOCK / columns).next_multiple_of(row).max(row).min(out_size);
    let blocks = out_size.div_ceil(block);
    let parts = blocks.min(PARTS);
    let mut sums = vec![0.0f32; parts * dw.len()];
    for_each_chunk(threads, &mut sums, dw.len(), &|part, sum| {
        let mut matrix = vec![0.0f32; columns * block];
        let mut gradient = vec![0.0f32; per_out * block];
        for b in part * blocks / parts..(part + 1) * blocks / parts {
            let places = b * block..out_size.min((b + 1) * block);
            let len = places.len();
            for (x, rows) in x.chunks_exact(in_size).zip(matrix.chunks_exact_mut(taps * len)) {
                windows(g, x, places.clone(), rows);
            }
            for (to, from) in gradient.chunks_exact_mut(len).zip(dy.chunks_exact(out_size)) {
                to.copy_from_slice(&from[places.clone()]);
            }
            let packed = PackedB::new(&matrix[..columns * len], len, columns, 1, len);
            gemm(1, per_out, &gradient[..per_out * len], &packed, Init::Output, sum);
        }
    });
    for sum in sums.chunks_exact(dw.len()) {
        dw.iter_mut().zip(sum).for_each(|(w, s)| *w += s);
    }
}

/// For each tap the elements of one channel that it meets at these places of the output (whole rows), 0 outside the
/// input: `[taps, places]`.
fn windows(g: &Geometry, x: &[f32], places: std::ops::Range<usize>, rows: &mut [f32]) {
    let last = g.input.len() - 1;
    let (width, from_width) = (g.output[last], g.input[last]);
    let mut rows = rows.chunks_exact_mut(places.len());
    for_each_index(&g.kernel, |k| {
        let Some(row) = rows.next() else { return };
        row.fill(0.0);
        let (lo, hi, at) = valid(width, from_width, k[last] * g.dilation[last], g.stride[last], g.begin[last]);
        if lo < hi {
            for (line, to) in (places.start / width.max(1)..).zip(row.chunks_exact_mut(width.max(1))) {
                let Some(from) = line_of_input(g, k, line) else { continue };
                let x = &x[from * from_width + at..(from + 1) * from_width];
                let to = &mut to[lo..hi];
                if g.stride[last] == 1 {
                    to.copy_from_slice(&x[..hi - lo]);
                } else {
                    to.iter_mut().zip(x.iter().step_by(g.stride[last])).for_each(|(t, x)| *t = *x);
                }
            }
        }
    });
}

/// The line of the input that tap `k` meets at a line of the output; `None` outside the input.
fn line_of_input(g: &Geometry, k: &[usize], mut line: usize) -> Option<usize> {
    let (mut from, mut size) = (0, 1);
    for d in (0..g.input.len() - 1).rev() {
        let o = line % g.output[d];
        line /= g.output[d];
        let i = (o * g.stride[d] + k[d] * g.dilation[d]).checked_sub(g.begin[d]).filter(|&i| i < g.input[d])?;
        from += i * size;
        size *= g.input[d];
    }
    Some(from)
}

/// The sum of products, in 16 chains of additions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a16.zip(b16) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(l, (a, b))| *l += a * b);
    }
    lanes.iter().sum::<f32>() + rest
}

/// Adds the gradient of every window's sum to all elements of the window; channel after channel.
///
/// # Panics
/// A slice has not the length that the sizes say.
pub fn spread_sums(threads: usize, p: &Pool, dy: &[f32], dx: &mut [f32]) {
    let (in_size, out_size) = p.sizes();
    if in_size == 0 {
        return;
    }
    let last = p.input.len() - 1;
    for_each_chunk(threads, dx, in_size, &|c, dx| {
        let dy = &dy[c * out_size..(c + 1) * out_size];
        for_each_index(&p.kernel, |k| {
            let shift = k[last] * p.dilation[last];
            let (lo, hi, at) = valid(p.output[last], p.input[last], shift, p.stride[last], p.begin[last]);
            let mut start = 0;
            for_each_index(&p.output[..last], |o| {
                let row = &dy[start..start + p.output[last]];
                start += p.output[last];
                let mut to = 0;
                for d in 0..last {
                    let i = o[d] * p.stride[d] + k[d] * p.dilation[d];
                    if i < p.begin[d] || i - p.begin[d] >= p.input[d] {
                        return;
                    }
                    to = to * p.input[d] + i - p.begin[d];
                }
                if lo < hi {
                    let dx = &mut dx[to * p.input[last] + at..(to + 1) * p.input[last]];
                    dx.iter_mut().step_by(p.stride[last]).zip(&row[lo..hi]).for_each(|(x, g)| *x += g);
                }
            });
        });
    });
}
