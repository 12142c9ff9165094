//! Ranges from other tools' calibration caches.
//!
//! - ONNX Runtime's JSON, as `write_calibration_table` and `calibration_cache_path` have it: `{"CLS": "TensorsData",
//!   "data": {"name": {"lowest": x, "highest": y}}}`, where a number may be an array of one element.
//! - TensorRT's text: a line `TRT-<version>-<calibrator>`, then `name: hex`, the bits of a float that is the scale of
//!   symmetric int8.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Range;
use crate::error::{Context, Result, bail, ensure};

/// The largest int8, which stands for the end of a symmetric range.
const INT8_MAX: f32 = 127.0;

/// The range of each tensor in a cache of another tool; `None` when the text is no such cache.
///
/// # Errors
/// It is one, and a field is missing or wrong; the error names the tensor.
pub fn ranges(text: &str) -> Result<Option<BTreeMap<String, Range>>> {
    if text.starts_with("TRT-") {
        return text.lines().skip(1).filter(|l| !l.trim().is_empty()).map(tensor_rt).collect::<Result<_>>().map(Some);
    }
    let Ok(v) = serde_json::from_str::<Value>(text) else { return Ok(None) };
    if v["CLS"] != "TensorsData" {
        return Ok(None);
    }
    let data = v["data"].as_object().context("\"data\" is no object")?;
    let one = |(name, v): (&String, &Value)| {
        let (low, high) = (number(&v["lowest"]), number(&v["highest"]));
        let (Some(low), Some(high)) = (low, high) else {
            bail!("tensor \"{name}\" has no \"lowest\" and \"highest\"");
        };
        ensure!(low <= high, "tensor \"{name}\": [{low}, {high}] is no range");
        Ok((name.clone(), (low, high)))
    };
    data.iter().map(one).collect::<Result<_>>().map(Some)
}

/// A finite number, or the first of an array.
fn number(v: &Value) -> Option<f32> {
    let v = v.get("data").map_or(v, |data| data.get(0).unwrap_or(data));
    v.as_f64().map(|x| x as f32).filter(|x| x.is_finite())
}

fn tensor_rt(line: &str) -> Result<(String, Range)> {
    let parsed = line.rsplit_once(':').and_then(|(name, hex)| {
        let scale = f32::from_bits(u32::from_str_radix(hex.trim(), 16).ok()?);
        (scale.is_finite() && scale >= 0.0).then(|| (name.to_owned(), scale * INT8_MAX))
    });
    let (name, end) = parsed.with_context(|| format!("\"{line}\" is not a name and the bits of a scale"))?;
    Ok((name, (-end, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_of_other_tools() {
        // As ONNX Runtime 1.32 wrote it.
        let ort = r#"{"CLS": "TensorsData", "data": {"a": {"lowest": -1.5, "highest": 2.25, "CLS": "TensorData"},
            "b": {"lowest": {"data": [0.0], "dtype": "float32", "CLS": "numpy.array"},
                  "highest": {"data": [3.0], "dtype": "float32", "CLS": "numpy.array"}, "CLS": "TensorData"}},
            "calibration_method": {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}}"#;
        let found = ranges(ort).unwrap().unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("a".into(), (-1.5, 2.25)), ("b".into(), (0.0, 3.0))]);
        // 3c010a14 are the bits of 1 / 126.999... = 0.007876.
        let trt = "TRT-8601-EntropyCalibration2\nin:0: 3f800000\nconv: 3c010a14\n";
        let found = ranges(trt).unwrap().unwrap();
        assert_eq!(found["in:0"], (-127.0, 127.0));
        assert!((found["conv"].1 - 1.0).abs() < 1e-3, "{:?}", found["conv"]);
        assert!(ranges("{}").unwrap().is_none() && ranges("x").unwrap().is_none());
        assert!(ranges("TRT-1-X\nname").is_err());
        assert!(ranges(r#"{"CLS": "TensorsData", "data": {"a": {"lowest": 2, "highest": 1}}}"#).is_err());
    }
}
