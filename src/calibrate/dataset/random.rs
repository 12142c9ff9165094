//! `random`: made-up numbers, only when asked for by that name. They show that a model runs; ranges found with them are
//! not those of real data.

use std::path::Path;

use super::check::InputSpec;
use super::{Dataset, Request, Sample, Source};
use crate::diag::Sink;
use crate::error::{Location, Result, WithHelp, anyhow, bail, ensure};
use crate::ir::Dim;
use crate::tensor::{DType, cast, count};

pub(super) const SOURCE: Source = Source { accepts: "'random' (a smoke test)", open };

const N_SAMPLES: usize = 16;
/// More elements than this are a slip of the pen.
const MAX_ELEMENTS: usize = 1 << 28;

struct Random {
    inputs: Vec<(String, DType, Vec<usize>)>,
    seed: u64,
}

fn open(path: &Path, request: &Request, sink: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    if path.as_os_str() != "random" {
        return Ok(None);
    }
    for (name, _) in &request.shapes {
        ensure!(request.specs.iter().any(|s| s.name == *name), "a shape is given for \"{name}\", which is no input");
    }
    let inputs =
        request.specs.iter().filter(|s| s.is_required).map(|s| Ok((s.name.clone(), dtype(s)?, shape(s, request)?)));
    let random = Random { inputs: inputs.collect::<Result<_>>()?, seed: request.seed };
    sink.warn(
        "random-data",
        Location::default(),
        "random data: the quantized model runs, but its ranges are not those of real data",
    );
    Ok(Some(Box::new(random)))
}

fn dtype(spec: &InputSpec) -> Result<DType> {
    match spec.ty.dtype {
        Some(DType::Str | DType::C64 | DType::C128) => {
            bail!("input \"{}\" cannot be random: it is {}", spec.name, spec.ty)
        }
        Some(d) => Ok(d),
        None => bail!("input \"{}\" cannot be random: the model does not say its type", spec.name),
    }
}

/// The given shape, or the declared one with a first dimension of 1 where it is open.
fn shape(spec: &InputSpec, request: &Request) -> Result<Vec<usize>> {
    let shape = match request.shapes.iter().find(|(name, _)| *name == spec.name) {
        Some((_, shape)) => {
            super::check::check_shape(spec, shape, "the given shape")?;
            shape.clone()
        }
        None => {
            let size = |(i, d): (usize, &Dim)| d.known().or((i == 0).then_some(1));
            let known =
                spec.ty.shape.as_ref().and_then(|dims| dims.iter().enumerate().map(size).collect::<Option<Vec<_>>>());
            match known {
                Some(shape) => shape,
                None => {
                    return Err(anyhow!("input \"{}\" has an open shape: {}", spec.name, spec.ty))
                        .help(|| format!("say which to use: --input-shape {}:1,…", spec.name));
                }
            }
        }
    };
    ensure!(count(&shape)? <= MAX_ELEMENTS, "input \"{}\": shape {shape:?} is too large for random data", spec.name);
    Ok(shape)
}

impl Dataset for Random {
    fn len(&self) -> usize {
        N_SAMPLES
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        ensure!(i < N_SAMPLES, "there is no sample {i}");
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (k, (name, dtype, shape)) in self.inputs.iter().enumerate() {
            let mut numbers = SplitMix(self.seed ^ ((i as u64) << 32 | k as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            // Floats in [0, 1), as images are scaled; integers 0 and 1, which are valid as indices, masks and flags.
            let values: Vec<f64> = (0..count(shape)?)
                .map(|_| if dtype.is_float() { numbers.unit() } else { f64::from(numbers.unit() >= 0.5) })
                .collect();
            inputs.push((name.clone(), cast::from_f64s(*dtype, shape, values)?));
        }
        Ok(Sample { origin: format!("random sample {i}"), inputs })
    }
}

/// The splitmix64 generator: a counter and a mixing function, so that every sample can be made by itself.
struct SplitMix(u64);

impl SplitMix {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
