//! Where a convolution's taps find their elements: the padded buffer, and the runs of it that a tile copies.

use super::conv::{Geometry, for_each_index};

/// Taps at most this far apart are copied together as one run.
const NEAR: u32 = 8;

/// Where the taps of a convolution lie in the padded buffer.
pub(super) struct Layout {
    /// Whether the input is read as it is.
    pub(super) direct: bool,
    /// For each `k`, its offset.
    pub(super) offsets: Vec<u32>,
    /// For each spatial dimension, the phases of the stride that some tap reads.
    pub(super) phases: Vec<Vec<usize>>,
    /// Elements of a row, of a plane … of one phase, innermost last.
    pub(super) pitch: Vec<usize>,
    /// Rows of each spatial dimension (all but the last).
    pub(super) extent: Vec<usize>,
    /// Elements of one phase of one channel.
    pub(super) phase_size: usize,
    /// Elements of one channel.
    pub(super) channel_size: usize,
    /// Elements of the padded buffer.
    pub(super) size: usize,
    /// Starts of planes (dimensions before the last two) in the buffer.
    pub(super) planes: Vec<usize>,
    /// Rows of output in a plane and their length.
    pub(super) grid: (usize, usize),
    /// Distance of the grid's rows.
    pub(super) grid_pitch: usize,
    /// What a tile's columns read of one channel, copied together.
    pub(super) runs: Runs,
}

/// Runs of one channel that hold what all taps read of some columns. Taps of one row of the kernel overlap, so that
/// the runs are a fraction of what an im2col matrix holds.
pub(super) struct Runs {
    /// Where runs start in the channel, their lengths, and where they lie in the copy.
    pub(super) parts: Vec<(usize, usize, usize)>,
    /// Where each tap starts in the copy.
    pub(super) taps: Vec<u32>,
    /// Elements of the copy.
    pub(super) size: usize,
}

impl Runs {
    /// Of taps at these places in the channel.
    fn new(taps: &[u32], columns: usize) -> Self {
        let mut sorted = taps.to_vec();
        sorted.sort_unstable();
        let mut parts: Vec<(usize, usize, usize)> = Vec::new();
        let mut last = None;
        for &at in &sorted {
            match parts.last_mut() {
                Some((from, len, _)) if last.is_some_and(|l| at - l <= NEAR) => *len = at as usize - *from + columns,
                _ => parts.push((at as usize, columns, 0)),
            }
            last = Some(at);
        }
        let mut size = 0;
        for (_, len, to) in &mut parts {
            *to = size;
            *len = len.next_multiple_of(COPIED);
            size += *len;
        }
        let place = |at: u32| {
            let (from, _, to) = parts[parts.partition_point(|p| p.0 <= at as usize) - 1];
            (at as usize - from + to) as u32
        };
        let taps = taps.iter().map(|&at| place(at)).collect();
        Runs { parts, taps, size }
    }
}

/// Elements that are copied at once.
pub(super) const COPIED: usize = 8;

impl Layout {
    /// The layout for tiles that read `columns` columns at once.
    pub(super) fn new(g: &Geometry, columns: usize) -> Self {
        let rank = g.input.len();
        let per_group = g.channels / g.groups;
        let direct = g.kernel.iter().all(|&k| k == 1)
            && g.stride.iter().all(|&s| s == 1)
            && g.begin.iter().all(|&b| b == 0)
            && g.input == g.output;
        if direct {
            let size: usize = g.input.iter().product();
            return Layout {
                direct,
                offsets: (0..per_group).map(|c| (c * size) as u32).collect(),
                phases: Vec::new(),
                pitch: Vec::new(),
                extent: Vec::new(),
                phase_size: size,
                channel_size: size,
                size: per_group * size,
                planes: vec![0],
                grid: (1, size),
                grid_pitch: size,
                runs: Runs::new(&[0], columns),
            };
        }
        let phases: Vec<Vec<usize>> = (0..rank)
            .map(|d| {
                let mut v: Vec<usize> = (0..g.kernel[d]).map(|t| t * g.dilation[d] % g.stride[d]).collect();
                v.sort_unstable();
                v.dedup();
                v
            })
            .collect();
        let need = |d: usize| (g.output[d] - 1) * g.stride[d] + (g.kernel[d] - 1) * g.dilation[d] + 1;
        let mut extent: Vec<usize> = (0..rank).map(|d| need(d).div_ceil(g.stride[d])).collect();
        let last = rank - 1;
        let mut slack = columns + COPIED;
        if g.stride[last] == 1 {
            // The zeros at the end of a row and at the start of the next one are the same zeros.
            let end = need(last).saturating_sub(g.begin[last] + g.input[last]);
            let shared = end.min(g.begin[last]).min(extent[last] - g.output[last]);
            extent[last] -= shared;
            slack += shared;
        }
        let mut pitch = vec![1; rank];
        for d in (0..last).rev() {
            pitch[d] = pitch[d + 1] * extent[d + 1];
        }
        let phase_size = pitch[0] * extent[0];
        let channel_size = phase_size * phases.iter().map(Vec::len).product::<usize>();
        let mut offsets = Vec::with_capacity(g.k());
        for c in 0..per_group {
            for_each_index(&g.kernel, |tap| {
                let mut phase = 0;
                let mut at = 0;
                for d in 0..rank {
                    let shift = tap[d] * g.dilation[d];
                    let index = phases[d].iter().position(|&p| p == shift % g.stride[d]).unwrap_or(0);
                    phase = phase * phases[d].len() + index;
                    at += shift / g.stride[d] * pitch[d];
                }
                offsets.push((c * channel_size + phase * phase_size + at) as u32);
            });
        }
        let outer = rank.saturating_sub(2);
        let mut planes = Vec::new();
        for_each_index(&g.output[..outer], |i| planes.push((0..outer).map(|d| i[d] * pitch[d]).sum()));
        let runs = Runs::new(&offsets[..offsets.len() / per_group.max(1)], columns);
        Layout {
            direct,
            offsets,
            runs,
            phases,
            grid: (if rank >= 2 { g.output[rank - 2] } else { 1 }, g.output[last]),
            grid_pitch: extent[last],
            pitch,
            extent,
            phase_size,
            channel_size,
            size: per_group * channel_size + slack,
            planes,
        }
    }

    /// Columns of the grid of one plane.
    pub(super) fn grid_size(&self) -> usize {
        (self.grid.0 - 1) * self.grid_pitch + self.grid.1
    }

    /// Writes one channel of the padded buffer.
    pub(super) fn pad(&self, g: &Geometry, x: &[f32], padding: f32, to: &mut [f32]) {
        let rank = g.input.len();
        let last = rank - 1;
        let n_phases: Vec<usize> = self.phases.iter().map(Vec::len).collect();
        let mut phase_at = 0;
        for_each_index(&n_phases, |p| {
            let phase: Vec<usize> = (0..rank).map(|d| self.phases[d][p[d]]).collect();
            for_each_index(&self.extent[..last], |row| {
                let at = phase_at + (0..last).map(|d| row[d] * self.pitch[d]).sum::<usize>();
                let to = &mut to[at..at + self.extent[last]];
                let mut from = 0;
                for d in 0..last {
                    let i = row[d] * g.stride[d] + phase[d];
                    if i < g.begin[d] || i - g.begin[d] >= g.input[d] {
                        to.fill(padding);
                        return;
                    }
                    from = from * g.input[d] + i - g.begin[d];
                }
                let n = g.input[last];
                copy_row(&x[from * n..(from + 1) * n], g.begin[last], phase[last], g.stride[last], padding, to);
            });
            phase_at += self.phase_size;
        });
    }
}

/// `to[j] = row[j * stride + phase - begin]`, `padding` outside the row.
fn copy_row(row: &[f32], begin: usize, phase: usize, stride: usize, padding: f32, to: &mut [f32]) {
    let first = begin.saturating_sub(phase).div_ceil(stride).min(to.len());
    let (zeros, to) = to.split_at_mut(first);
    zeros.fill(padding);
    let start = (first * stride + phase).saturating_sub(begin);
    let n = row.len().saturating_sub(start).div_ceil(stride).min(to.len());
    let (to, zeros) = to.split_at_mut(n);
    zeros.fill(padding);
    match stride {
        _ if n == 0 => {}
        1 => to.copy_from_slice(&row[start..start + n]),
        2 => every_second(&row[start..], to),
        s => {
            for (to, x) in to.iter_mut().zip(row[start..].iter().step_by(s)) {
                *to = *x;
            }
        }
    }
}

multiversion! {
    /// `to[j] = from[2 * j]`.
    fn every_second(from: &[f32], to: &mut [f32]) {
        let (pairs, rest) = from.as_chunks::<2>();
        let n = pairs.len().min(to.len());
        for (to, pair) in to[..n].iter_mut().zip(&pairs[..n]) {
            *to = pair[0];
        }
        if let (Some(to), Some(&x)) = (to.get_mut(n), rest.first()) {
            *to = x;
        }
    }
}
