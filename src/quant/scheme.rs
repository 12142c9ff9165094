//! How tensors are quantized in one run: the target's defaults with the user's choices, refused where the target does
//! not run them.

use super::target::{BiasType, Target};
use crate::error::{Result, anyhow, bail, ensure};
use crate::tensor::DType;

/// What the user chose; `None` takes the target's default.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// Element type of activations.
    pub activation: Option<DType>,
    /// Element type of weights.
    pub weight: Option<DType>,
    /// Whether the zero point of activations is in the middle.
    pub symmetric_activations: Option<bool>,
    /// Whether the zero point of weights is in the middle.
    pub symmetric_weights: Option<bool>,
    /// Whether weights have a scale for each output channel.
    pub per_channel: Option<bool>,
    /// Whether one bit of the weights is left unused.
    pub reduce_range: Option<bool>,
    /// Whether biases stay float.
    pub float_bias: Option<bool>,
    /// Whether `QuantizeLinear` and `DequantizeLinear` are ONNX Runtime's own, which have 16 bits at every opset.
    pub own_domain: bool,
    /// How quantized operators are written.
    pub form: Form,
}

/// How quantized operators are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Float operators between `DequantizeLinear` and `QuantizeLinear`.
    #[default]
    Qdq,
    /// Operators on quantized tensors.
    QOperator,
}

/// How tensors are quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheme {
    /// Element type of activations.
    pub activation: DType,
    /// Whether the zero point of activations is in the middle.
    pub symmetric_activations: bool,
    /// How weights are stored.
    pub weight: WeightForm,
    /// Whether weights have a scale for each output channel, where the operator allows it.
    pub per_channel: bool,
    /// How biases are stored.
    pub bias: BiasType,
    /// Whether `Relu` and `Clip` may vanish into the saturation of a `QuantizeLinear`.
    pub absorb: bool,
    /// Whether `QuantizeLinear` and `DequantizeLinear` are those of `com.microsoft`.
    pub own_domain: bool,
    /// How quantized operators are written.
    pub form: Form,
}

/// How weights are stored: element type, place of the zero point, and the integers in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightForm {
    /// Element type: an integer of at most 16 bits, or an 8-bit float.
    pub dtype: DType,
    /// Whether every zero point is [`WeightForm::middle`].
    pub symmetric: bool,
    /// The smallest integer in use; of no meaning for a float type.
    pub low: i32,
    /// The largest integer in use.
    pub high: i32,
}

impl WeightForm {
    /// A form in which the whole type is in use, or with `reduce_range` all of it but one bit. Symmetric forms leave out
    /// the lowest integer, so that negation is exact and runtimes without it agree.
    ///
    /// # Errors
    /// The type is no integer of at most 16 bits and no 8-bit float.
    pub fn new(dtype: DType, symmetric: bool, reduce_range: bool) -> Result<Self> {
        if dtype.is_float8() {
            ensure!(!reduce_range, "{dtype} has no range to reduce");
            return Ok(WeightForm { dtype, symmetric: true, low: 0, high: 0 });
        }
        let Some((low, high)) = dtype.int_range().filter(|_| dtype.bits() <= 16) else {
            bail!("weights cannot be stored as {dtype}")
        };
        let (mut low, mut high) = (low as i32, high as i32);
        if reduce_range {
            // [-64, 63] of [-128, 127], [0, 127] of [0, 255].
            (low, high) = if low < 0 { (low / 2, high / 2) } else { (0, high / 2) };
        }
        match (symmetric, reduce_range, low < 0) {
            // Runtimes bound the sum of two products by 64 * 255 * 2 < 2^15: +64 is within it.
            (true, true, true) => high = -low,
            (true, ..) => low += 1,
            _ => {}
        }
        Ok(WeightForm { dtype, symmetric, low, high })
    }

    /// The integer that stands for 0 in a symmetric form.
    #[must_use]
    pub fn middle(self) -> i32 {
        i32::midpoint(self.low, self.high)
    }

    /// The step with which the integers in use cover a range that holds 0.
    #[must_use]
    pub fn step_of(self, range: super::params::Range) -> f32 {
        ((f64::from(range.max) - f64::from(range.min)) / f64::from(self.high - self.low)) as f32
    }

    /// What the largest magnitude of a weight is divided by to get a symmetric scale.
    #[must_use]
    pub fn steps(self) -> f32 {
        if self.dtype.is_float8() { float8_max(self.dtype) } else { (self.high - self.middle()) as f32 }
    }
}

/// The largest finite value of an 8-bit float type.
#[must_use]
pub fn float8_max(dtype: DType) -> f32 {
    (0..=127u8).map(|b| crate::tensor::minifloat::decode(dtype, b)).filter(|x| x.is_finite()).fold(0.0, f32::max)
}

impl Scheme {
    /// The target's defaults with the user's choices.
    ///
    /// # Errors
    /// The target does not run a choice; the error says why and what it runs.
    pub fn new(target: &Target, choices: &Choices) -> Result<Self> {
        let activation = pick_type(target, "--activation-type", &target.activation, choices.activation)?;
        let weight = pick_type(target, "--weight-type", &target.weight, choices.weight)?;
        let only = |option: &str, wanted: Option<bool>, allowed: &[bool], why: &str| -> Result<bool> {
            let default = *allowed.first().unwrap_or(&false);
            match wanted {
                Some(w) if !allowed.contains(&w) => {
                    bail!("{option} = {w} does not go with target {}: {why}", target.name)
                }
                w => Ok(w.unwrap_or(default)),
            }
        };
        let (a, w) = (&target.activation, &target.weight);
        let wanted = only("--symmetric-activations", choices.symmetric_activations, &a.symmetric, &a.why)?;
        // An unsigned type has its zero at one end by nature, unless the user or the target wants the middle.
        let free = choices.symmetric_activations.is_none() && a.symmetric.contains(&false);
        let unsigned = !activation.is_signed_integer() && !activation.is_float8();
        let symmetric_activations = (wanted && !(free && unsigned)) || activation.is_float8();
        let symmetric_weights = only("--symmetric-weights", choices.symmetric_weights, &w.symmetric, &w.why)?;
        let per_channel = only("--per-channel", choices.per_channel, &w.per_channel, &w.why)?;
        let reduce_range = only("--reduce-range", choices.reduce_range, &w.reduce_range, &w.why)?;
        let is_float = activation.is_float8();
        ensure!(
            is_float == weight.is_float8(),
            "activations of type {activation} do not go with weights of type {weight}: both are 8-bit floats or neither is"
        );
        ensure!(
            w.mixed_sign || is_float || weight.is_signed_integer() || !activation.is_signed_integer(),
            "--weight-type {weight} does not go with signed activations in target {}: use int8 weights",
            target.name
        );
        let wanted = choices.float_bias.map(|f| if f { BiasType::Float32 } else { BiasType::Int32 });
        let bias = match wanted {
            Some(b) if !target.bias.types.contains(&b) => {
                let value = choices.float_bias == Some(true);
                bail!("--float-bias = {value} does not go with target {}: {}", target.name, target.bias.why)
            }
            Some(b) => b,
            None => *target.bias.types.first().ok_or_else(|| anyhow!("target {} has no bias type", target.name))?,
        };
        ensure!(
            !choices.own_domain || target.qoperator,
            "the operators of com.microsoft are ONNX Runtime's own: target {} does not know them",
            target.name
        );
        ensure!(
            !choices.own_domain || !is_float,
            "the QuantizeLinear of com.microsoft has no 8-bit floats: leave its choice out"
        );
        if choices.form == Form::QOperator {
            ensure!(target.qoperator, "target {} reads the QDQ form only", target.name);
            let is_8_bit = |d: DType| matches!(d, DType::U8 | DType::I8);
            ensure!(
                is_8_bit(activation) && is_8_bit(weight) && bias == BiasType::Int32,
                "--format qoperator has int8 and uint8 tensors with int32 biases: add --float-bias=false, or take another target or type"
            );
        }
        Ok(Scheme {
            activation,
            symmetric_activations,
            weight: WeightForm::new(weight, symmetric_weights, reduce_range)?,
            per_channel,
            // A sum of products of 8-bit floats has no int32 form.
            bias: if is_float { BiasType::Float32 } else { bias },
            // Saturation bounds at 0 only where 0 is the lowest integer.
            absorb: target.absorb && !symmetric_activations,
            own_domain: choices.own_domain,
            form: choices.form,
        })
    }

    /// The lowest opset in which the scheme can be written.
    #[must_use]
    pub fn opset_floor(&self, target: &Target) -> i64 {
        let of = |d: DType| match d {
            d if d.is_float8() => 19,
            _ if self.own_domain => 0,
            d if d.bits() != 8 => 21,
            _ => 13,
        };
        target.opset.max(of(self.activation)).max(of(self.weight.dtype))
    }
}

fn pick_type(target: &Target, option: &str, tensors: &super::target::Tensors, wanted: Option<DType>) -> Result<DType> {
    let types = tensors.types()?;
    match wanted {
        Some(d) if !types.contains(&d) => {
            let names: Vec<_> = types.iter().map(|t| t.name()).collect();
            bail!(
                "{option} {d} does not go with target {}: {}; it takes {}",
                target.name,
                tensors.why,
                names.join(", ")
            )
        }
        Some(d) => Ok(d),
        None => types.first().copied().ok_or_else(|| anyhow!("target {} has no types", target.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_in_use() {
        let of = |dtype, symmetric, reduce| {
            let f = WeightForm::new(dtype, symmetric, reduce).unwrap();
            (f.low, f.high, f.middle(), f.steps())
        };
        assert_eq!(of(DType::I8, true, false), (-127, 127, 0, 127.0));
        assert_eq!(of(DType::I8, true, true), (-64, 64, 0, 64.0));
        assert_eq!(of(DType::I8, false, false), (-128, 127, 0, 127.0));
        assert_eq!(of(DType::U8, true, false), (1, 255, 128, 127.0));
        assert_eq!(of(DType::U8, true, true), (1, 127, 64, 63.0));
        assert_eq!(of(DType::U8, false, true), (0, 127, 63, 64.0));
        assert_eq!(of(DType::I16, true, false), (-32767, 32767, 0, 32767.0));
        assert_eq!(WeightForm::new(DType::F8E4M3FN, true, false).unwrap().steps(), 448.0);
        assert!(WeightForm::new(DType::F32, true, false).is_err());
    }

    #[test]
    fn choices_that_a_target_does_not_run_are_refused_with_the_reason() {
        let said = |target: &str, c: Choices| {
            let t = Target::named(target).unwrap();
            Scheme::new(&t, &c).unwrap_err().to_string()
        };
        let trt = said("tensorrt", Choices { activation: Some(DType::U8), ..Choices::default() });
        assert!(trt.contains("--activation-type uint8") && trt.contains("it takes int8"), "{trt}");
        let e = said("tensorrt", Choices { float_bias: Some(false), ..Choices::default() });
        assert!(e.contains("--float-bias = false"), "{e}");
        let e = said("ort-cpu", Choices { activation: Some(DType::U16), ..Choices::default() });
        assert!(e.contains("16"), "{e}");
        let e = said("ort-arm64", Choices { weight: Some(DType::U8), ..Choices::default() });
        assert!(e.contains("signed activations"), "{e}");
        let e = said("portable", Choices { activation: Some(DType::F8E4M3FN), ..Choices::default() });
        assert!(e.contains("both are 8-bit floats"), "{e}");
    }

    #[test]
    fn floors_and_what_follows_from_types() {
        let t = Target::named("portable").unwrap();
        let of = |c: Choices| Scheme::new(&t, &c).unwrap();
        let eight = of(Choices::default());
        assert_eq!(eight.opset_floor(&t), 13);
        let sixteen = of(Choices { activation: Some(DType::U16), ..Choices::default() });
        assert_eq!((sixteen.opset_floor(&t), sixteen.symmetric_activations), (21, false));
        let f8 = Choices { activation: Some(DType::F8E4M3FN), weight: Some(DType::F8E4M3FN), ..Choices::default() };
        let f8 = of(f8);
        assert_eq!((f8.opset_floor(&t), f8.bias, f8.absorb), (19, BiasType::Float32, false));
    }
}
