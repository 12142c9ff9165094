//! Which input and output channel each element of a weight belongs to.

use crate::ir::Attrs;
use crate::ops::WeightAxis;

/// How a weight's elements belong to input and output channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[M, C/group, k…]`
    Conv {
        /// The number of groups.
        group: usize,
    },
    /// `[K, N]`
    Kn,
    /// `[N, K]`
    Nk,
}

impl Layout {
    /// The layout of a weight of this rank; `None` for those that no algorithm handles (`ConvTranspose`, batched).
    #[must_use]
    pub fn of(attrs: &Attrs, axis: WeightAxis, rank: usize) -> Option<Self> {
        match axis {
            WeightAxis::Fixed(0) if rank >= 3 => {
                Some(Layout::Conv { group: usize::try_from(attrs.int("group").unwrap_or(1)).ok()? })
            }
            WeightAxis::Last if rank == 2 => Some(Layout::Kn),
            WeightAxis::TransB => Some(if attrs.int("transB").unwrap_or(0) == 0 { Layout::Kn } else { Layout::Nk }),
            _ => None,
        }
    }

    /// Calls `f(input channel, output channel, element)` for every element.
    pub fn for_each(self, shape: &[usize], w: &mut [f32], mut f: impl FnMut(usize, usize, &mut f32)) {
        match self {
            Layout::Conv { group } => {
                let (m, per_group) = (shape[0], shape[1]);
                let inner: usize = shape[2..].iter().product();
                let outputs_per_group = (m / group.max(1)).max(1);
                for (row, chunk) in w.chunks_mut(inner.max(1)).enumerate() {
                    let (o, i) = (row / per_group.max(1), row % per_group.max(1));
                    let input = o / outputs_per_group * per_group + i;
                    chunk.iter_mut().for_each(|x| f(input, o, x));
                }
            }
            Layout::Kn => {
                let n = shape[1];
                w.iter_mut().enumerate().for_each(|(i, x)| f(i / n, i % n, x));
            }
            Layout::Nk => {
                let k = shape[1];
                w.iter_mut().enumerate().for_each(|(i, x)| f(i % k, i / k, x));
            }
        }
    }

    /// The elements that output channel `o` sums, in the order in which integer kernels sum them: kernel positions
    /// outermost, input channels innermost.
    #[must_use]
    pub fn row(self, data: &[f32], shape: &[usize], o: usize) -> Vec<f32> {
        match self {
            Layout::Conv { .. } => {
                let inner: usize = shape[2..].iter().product();
                let base = o * shape[1] * inner;
                (0..inner).flat_map(|p| (0..shape[1]).map(move |c| data[base + c * inner + p])).collect()
            }
            Layout::Kn => data.iter().skip(o).step_by(shape[1].max(1)).copied().collect(),
            Layout::Nk => data[o * shape[1]..(o + 1) * shape[1]].to_vec(),
        }
    }

    /// The number of output channels.
    #[must_use]
    pub fn n_outputs(self, shape: &[usize]) -> usize {
        if self == Layout::Kn { shape[1] } else { shape[0] }
    }

    /// The number of input channels.
    #[must_use]
    pub fn n_inputs(self, shape: &[usize]) -> usize {
        match self {
            Layout::Conv { group } => shape[1] * group,
            Layout::Kn => shape[0],
            Layout::Nk => shape[1],
        }
    }

    /// The sum of the squared weights that multiply each input channel.
    #[must_use]
    pub fn input_norms(self, shape: &[usize], w: &[f32]) -> Vec<f64> {
        let square = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>();
        let mut norms = vec![0.0; self.n_inputs(shape)];
        match self {
            Layout::Conv { group } => {
                let (m, per_group) = (shape[0], shape[1].max(1));
                let inner: usize = shape[2..].iter().product();
                let outputs_per_group = (m / group.max(1)).max(1);
                for (row, chunk) in w.chunks(inner.max(1)).enumerate() {
                    let (o, i) = (row / per_group, row % per_group);
                    norms[o / outputs_per_group * per_group + i] += square(chunk);
                }
            }
            Layout::Kn => w.chunks(shape[1].max(1)).zip(&mut norms).for_each(|(row, n)| *n += square(row)),
            Layout::Nk => {
                for row in w.chunks(shape[1].max(1)) {
                    row.iter().zip(&mut norms).for_each(|(x, n)| *n += f64::from(x * x));
                }
            }
        }
        norms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_norms_sum_the_squares_of_each_input_channel() {
        let w: Vec<f32> = (0..24).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        for (layout, shape) in [
            (Layout::Conv { group: 1 }, vec![4, 3, 2]),
            (Layout::Conv { group: 2 }, vec![4, 2, 3]),
            (Layout::Conv { group: 4 }, vec![4, 1, 2, 3]),
            (Layout::Kn, vec![6, 4]),
            (Layout::Nk, vec![6, 4]),
        ] {
            let mut expected = vec![0.0; layout.n_inputs(&shape)];
            layout.for_each(&shape, &mut w.clone(), |i, _, x| expected[i] += f64::from(*x * *x));
            assert_eq!(layout.input_norms(&shape, &w), expected, "{layout:?}");
        }
    }
}
