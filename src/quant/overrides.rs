//! What the user says of single tensors: type, form, range or the very scale; in the JSON form of ONNX Runtime's
//! quantizer (`TensorQuantOverrides`): tensor name to a list of one object, or of one for each channel.
//!
//! ```json
//! { "conv1_out": [{ "quant_type": "QUInt16", "rmin": -1.0, "rmax": 6.0 }],
//!   "conv1_w":   [{ "quant_type": "QInt8", "axis": 0, "symmetric": true, "reduce_range": true }],
//!   "logits":    [{ "scale": 0.1, "zero_point": 128 }] }
//! ```

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::params::{QParams, Range, WeightParams};
use super::scheme::{Scheme, WeightForm};
use crate::error::{Context, Result, bail, ensure};
use crate::tensor::DType;

/// What the user says of one tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Override {
    /// Its type.
    pub dtype: Option<DType>,
    /// Whether its zero point is in the middle.
    pub symmetric: Option<bool>,
    /// Whether one bit is left unused (weights).
    pub reduce_range: Option<bool>,
    /// Whether it has a scale for each index of this axis (weights).
    pub axis: Option<i64>,
    /// The range of each channel, or of the whole.
    pub ranges: Vec<Range>,
    /// The scale of each channel, or of the whole.
    pub scales: Vec<f32>,
    /// As many as scales.
    pub zero_points: Vec<i32>,
}

/// By tensor name.
pub type Overrides = BTreeMap<String, Override>;

/// Reads the JSON form.
///
/// # Errors
/// It is no JSON of that form; the error names tensor and key.
pub fn parse(text: &str) -> Result<Overrides> {
    let value: Value = serde_json::from_str(text).context("is no JSON")?;
    let Value::Object(tensors) = value else { bail!("expected an object of tensor names") };
    tensors
        .into_iter()
        .map(|(name, v)| Ok((name.clone(), one(&v).with_context(|| format!("tensor \"{name}\""))?)))
        .collect()
}

fn one(value: &Value) -> Result<Override> {
    let list = match value {
        Value::Array(list) => list.clone(),
        Value::Object(_) => vec![value.clone()],
        _ => bail!("expected a list of objects"),
    };
    let mut out = Override::default();
    for (i, channel) in list.iter().enumerate() {
        let Value::Object(keys) = channel else { bail!("expected a list of objects") };
        channel_of(&mut out, keys, i == 0)?;
    }
    let n = list.len();
    ensure!(n > 0, "the list is empty");
    for (what, len) in [("rmin and rmax", out.ranges.len()), ("scale", out.scales.len())] {
        ensure!(len == 0 || len == n, "{what} are given for {len} of {n} channels");
    }
    ensure!(n == 1 || out.axis.is_some(), "{n} channels and no axis");
    ensure!(
        out.zero_points.is_empty() || out.zero_points.len() == out.scales.len(),
        "scale and zero_point go together"
    );
    if out.zero_points.is_empty() && !out.scales.is_empty() {
        out.zero_points = vec![0; out.scales.len()];
    }
    Ok(out)
}

fn channel_of(out: &mut Override, keys: &Map<String, Value>, is_first: bool) -> Result<()> {
    let number = |key: &str, v: &Value| -> Result<f64> {
        let v = match v {
            // A scale may be written as an array of one, as NumPy prints it.
            Value::Array(a) if a.len() == 1 => &a[0],
            v => v,
        };
        v.as_f64().filter(|x| x.is_finite()).with_context(|| format!("{key} is {v}, expected a number"))
    };
    let flag = |key: &str, v: &Value| v.as_bool().with_context(|| format!("{key} is {v}, expected true or false"));
    let (mut low, mut high) = (None, None);
    for (key, v) in keys {
        match key.as_str() {
            "quant_type" => {
                let dtype = v.as_str().and_then(type_named);
                let dtype =
                    dtype.with_context(|| format!("quant_type is {v}, expected QInt8, QUInt8, QInt16 or QUInt16"))?;
                ensure!(is_first || out.dtype == Some(dtype), "channels have different types");
                out.dtype = Some(dtype);
            }
            "symmetric" => out.symmetric = Some(flag(key, v)?),
            "reduce_range" => out.reduce_range = Some(flag(key, v)?),
            "axis" => out.axis = Some(v.as_i64().with_context(|| format!("axis is {v}, expected an integer"))?),
            "rmin" => low = Some(number(key, v)? as f32),
            "rmax" => high = Some(number(key, v)? as f32),
            "scale" => {
                let s = number(key, v)? as f32;
                ensure!(s > 0.0, "scale is {s}, expected a positive number");
                out.scales.push(s);
            }
            "zero_point" => out.zero_points.push(number(key, v)? as i32),
            "convert" => bail!("convert is not supported: a tensor has one type for all its readers"),
            other => bail!(
                "{other} is not known; there are quant_type, symmetric, reduce_range, axis, rmin, rmax, scale and zero_point"
            ),
        }
    }
    match (low, high) {
        (None, None) => {}
        (Some(low), Some(high)) if low <= high => out.ranges.push(Range::new(low, high)),
        _ => bail!("rmin and rmax go together, rmin first"),
    }
    Ok(())
}

/// ONNX's name, or that of ONNX Runtime's quantizer with or without its class in front.
fn type_named(text: &str) -> Option<DType> {
    let name = text.rsplit('.').next()?.to_ascii_lowercase();
    DType::from_name(name.strip_prefix('q').unwrap_or(&name))
}

impl Override {
    /// The parameters of an activation that was seen in a range.
    ///
    /// # Errors
    /// The override is one for weights, or its numbers do not fit the type.
    pub fn activation(&self, seen: Range, scheme: &Scheme) -> Result<QParams> {
        ensure!(self.axis.is_none(), "an activation has one scale: axis is for weights");
        ensure!(self.reduce_range != Some(true), "reduce_range is for weights");
        let dtype = self.dtype.unwrap_or(scheme.activation);
        if let (Some(&scale), Some(&zero_point)) = (self.scales.first(), self.zero_points.first()) {
            let p = QParams { dtype, scale, zero_point };
            let (lo, hi) = p.bounds();
            ensure!((lo..=hi).contains(&zero_point), "zero_point {zero_point} is out of range for {dtype}");
            return Ok(p);
        }
        let range = self.ranges.first().copied().unwrap_or(seen);
        QParams::covering(range, dtype, self.symmetric.unwrap_or(scheme.symmetric_activations))
    }

    /// The parameters of a weight, whose channels the target wants on `axis`.
    ///
    /// # Errors
    /// The axis is not that of the output channels, or there are too many or too few numbers.
    pub fn weight(&self, data: &[f32], shape: &[usize], axis: Option<usize>, scheme: &Scheme) -> Result<WeightParams> {
        let base = scheme.weight;
        let is_reduced = base.high < i32::from(i8::MAX) && base.dtype.bits() == 8 && base.low > -128;
        let form = WeightForm::new(
            self.dtype.unwrap_or(base.dtype),
            self.symmetric.unwrap_or(base.symmetric),
            self.reduce_range.unwrap_or(is_reduced),
        )?;
        let axis = match self.axis {
            // An override without an axis is one for the whole tensor where it has numbers.
            None if self.scales.len() == 1 || self.ranges.len() == 1 => None,
            None => axis,
            Some(a) => {
                let wanted = if a < 0 { a + shape.len() as i64 } else { a };
                let fits = axis.is_some_and(|axis| axis as i64 == wanted);
                ensure!(fits, "axis {a} is not that of the output channels");
                axis
            }
        };
        let mut p = WeightParams::covering(data, shape, axis, form);
        let n = p.scales.len();
        for (what, len) in [("scales", self.scales.len()), ("ranges", self.ranges.len())] {
            ensure!(len == 0 || len == n, "{len} {what} for {n} channels");
        }
        if !self.ranges.is_empty() {
            p = WeightParams::of_ranges(&self.ranges, axis, form);
        }
        if !self.scales.is_empty() {
            p.scales.clone_from(&self.scales);
            p.zero_points.clone_from(&self.zero_points);
            let all = form.dtype.int_range().unwrap_or((0, 0));
            let fits = p.zero_points.iter().all(|&z| (all.0..=all.1).contains(&i64::from(z)));
            ensure!(fits, "a zero_point is out of range for {}", form.dtype);
        }
        Ok(p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::scheme::Choices;
    use crate::quant::target::Target;

    #[test]
    fn the_standard_form_is_read() {
        let o = parse(
            r#"{ "a": [{"quant_type": "QUInt16", "rmin": -1.0, "rmax": 6.0}],
                 "w": [{"quant_type": "QuantType.QInt8", "axis": 0, "scale": [0.1], "zero_point": 0},
                       {"quant_type": "QuantType.QInt8", "axis": 0, "scale": 0.2, "zero_point": 0}],
                 "b": [{"symmetric": true, "reduce_range": true}] }"#,
        )
        .unwrap();
        assert_eq!((o["a"].dtype, o["a"].ranges[0]), (Some(DType::U16), Range { min: -1.0, max: 6.0 }));
        assert_eq!((o["w"].scales.as_slice(), o["w"].axis), (&[0.1f32, 0.2][..], Some(0)));
        for (text, says) in [
            (r#"[1]"#, "object of tensor names"),
            (r#"{"a": [{"rmin": 1.0}]}"#, "rmin and rmax go together"),
            (r#"{"a": [{"quant_type": "QInt7"}]}"#, "quant_type"),
            (r#"{"a": [{"scale": 0}]}"#, "positive"),
            (r#"{"a": [{}, {}]}"#, "no axis"),
            (r#"{"a": [{"convert": {}}]}"#, "convert"),
            (r#"{"a": [{"qtype": 1}]}"#, "not known"),
        ] {
            let e = format!("{:#}", parse(text).unwrap_err());
            assert!(e.contains(says), "{text}: {e}");
        }
    }

    #[test]
    fn parameters_follow() {
        let scheme = Scheme::new(&Target::named("ort-cpu").unwrap(), &Choices::default()).unwrap();
        let seen = Range { min: 0.0, max: 2.0 };
        let of = |text: &str| one(&serde_json::from_str(text).unwrap()).unwrap();
        let p = of(r#"[{"rmin": -1.0, "rmax": 1.55}]"#).activation(seen, &scheme).unwrap();
        assert_eq!((p.scale, p.zero_point), (0.01, 100));
        let p = of(r#"[{"scale": 0.5, "zero_point": 7}]"#).activation(seen, &scheme).unwrap();
        assert_eq!((p.scale, p.zero_point, p.dtype), (0.5, 7, DType::U8));
        assert!(of(r#"[{"scale": 0.5, "zero_point": 300}]"#).activation(seen, &scheme).is_err());
        assert!(of(r#"[{"axis": 1}]"#).activation(seen, &scheme).is_err());
        let w = [1.0, -2.0, 0.5, 0.25];
        let p = of(r#"[{"axis": 0, "reduce_range": true}]"#).weight(&w, &[2, 2], Some(0), &scheme).unwrap();
        assert_eq!(p.scales, [2.0 / 64.0, 0.5 / 64.0]);
        let p = of(r#"[{"scale": 0.5}]"#).weight(&w, &[2, 2], Some(0), &scheme).unwrap();
        assert_eq!((p.axis, p.scales.as_slice()), (None, &[0.5f32][..]));
        assert!(of(r#"[{"axis": 1}]"#).weight(&w, &[2, 2], Some(0), &scheme).is_err());
    }
}
