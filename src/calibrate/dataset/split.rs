//! Which samples calibrate and which are held back for the quality report.

use std::sync::Arc;

use super::{Dataset, Sample};
use crate::error::{Result, anyhow, ensure};

/// Some samples of a data set.
#[derive(Clone)]
pub struct Subset {
    of: Arc<dyn Dataset>,
    indices: Vec<usize>,
}

impl Subset {
    /// The samples of these numbers.
    #[must_use]
    pub fn new(of: Arc<dyn Dataset>, indices: Vec<usize>) -> Self {
        Subset { of, indices }
    }

    /// The numbers of the samples in the whole data set.
    #[must_use]
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let &i = self.indices.get(i).ok_or_else(|| anyhow!("there is no sample {i} of {}", self.indices.len()))?;
        self.of.sample(i)
    }

    fn name(&self, i: usize) -> Option<String> {
        self.of.name(*self.indices.get(i)?)
    }
}

/// A data set in two parts.
#[derive(Clone)]
pub struct Split {
    /// Samples to calibrate with.
    pub calibration: Subset,
    /// Samples to measure with.
    pub held_out: Subset,
    /// Whether there is a single sample, which has to serve as both: the measured quality is then too good.
    pub is_shared: bool,
}

/// Takes at most `limit` samples, spread evenly over the data set, and holds a fraction of them back, also spread
/// evenly; at least one, and never all. The same data set and numbers always give the same split.
///
/// # Errors
/// There are no samples, or the fraction does not lie in `[0, 1)`.
pub fn split(data: &Arc<dyn Dataset>, holdout: f64, limit: Option<usize>) -> Result<Split> {
    ensure!(
        (0.0..1.0).contains(&holdout),
        "a fraction of {holdout} cannot be held out; expected 0 to 1 (not included)"
    );
    ensure!(!data.is_empty(), "there are no samples");
    let all = data.len();
    let n = limit.unwrap_or(all).clamp(1, all);
    // Sorted folders hold one class after the other, so the first n would be of one kind.
    let chosen: Vec<usize> = (0..n).map(|i| i * all / n).collect();
    let n_held = if holdout == 0.0 { 0 } else { ((n as f64 * holdout).round() as usize).clamp(1, n.max(2) - 1) };
    if n == 1 || n_held == 0 {
        let whole = Subset::new(Arc::clone(data), chosen);
        return Ok(Split { calibration: whole.clone(), held_out: whole, is_shared: true });
    }
    // The last of each of n_held equal stretches.
    let is_held = |i: usize| (i + 1) * n_held / n > i * n_held / n;
    let part = |held: bool| {
        let indices = chosen.iter().enumerate().filter(|(i, _)| is_held(*i) == held).map(|(_, &c)| c).collect();
        Subset::new(Arc::clone(data), indices)
    };
    Ok(Split { calibration: part(false), held_out: part(true), is_shared: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    struct Numbers(usize);

    impl Dataset for Numbers {
        fn len(&self) -> usize {
            self.0
        }
        fn sample(&self, i: usize) -> Result<Sample> {
            Ok(Sample { origin: i.to_string(), inputs: vec![("x".into(), Tensor::scalar(i as i64))] })
        }
    }

    #[test]
    fn holds_back_every_kth() {
        let split_of = |n: usize, holdout: f64, limit| {
            let data: Arc<dyn Dataset> = Arc::new(Numbers(n));
            let s = split(&data, holdout, limit).unwrap();
            (s.calibration.indices().to_vec(), s.held_out.indices().to_vec(), s.is_shared)
        };
        assert_eq!(split_of(10, 0.2, None), (vec![0, 1, 2, 3, 5, 6, 7, 8], vec![4, 9], false));
        assert_eq!(split_of(2, 0.2, None), (vec![0], vec![1], false));
        assert_eq!(split_of(1, 0.2, None), (vec![0], vec![0], true));
        assert_eq!(split_of(3, 0.99, None).0.len(), 1);
        assert_eq!(split_of(3, 0.0, None), (vec![0, 1, 2], vec![0, 1, 2], true));
        assert_eq!(split_of(100, 0.25, Some(4)), (vec![0, 25, 50], vec![75], false));
        let (c, h, _) = split_of(375, 0.2, Some(300));
        assert_eq!((c.len(), h.len()), (240, 60));
        let data: Arc<dyn Dataset> = Arc::new(Numbers(3));
        assert!(split(&data, 1.0, None).is_err() && split(&data, f64::NAN, None).is_err());
        assert!(split(&(Arc::new(Numbers(0)) as Arc<dyn Dataset>), 0.2, None).is_err());
    }
}
