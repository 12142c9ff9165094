//! `Upsample` became `Resize`, which then learned about coordinates.

use super::Conversion;
use super::edit::Edit;
use crate::error::{Result, anyhow, ensure};
use crate::ir::Attr;
use crate::tensor::Tensor;

pub(super) const CONVERSIONS: &[Conversion] = &[
    Conversion { op: "GridSample", to: 20, convert: grid_sample },
    Conversion { op: "Resize", to: 11, convert: resize_coordinates },
    Conversion { op: "Resize", to: 13, convert: resize_optional_inputs },
    Conversion { op: "Upsample", to: 7, convert: upsample_scales },
    Conversion { op: "Upsample", to: 9, convert: upsample_input },
    Conversion { op: "Upsample", to: 10, convert: upsample_to_resize },
];

fn upsample_scales(e: &mut Edit<'_>) -> Result<()> {
    let mut scale = |name| e.take_float(name)?.ok_or_else(|| anyhow!("attribute \"{name}\" is missing"));
    let (h, w) = (scale("height_scale")?, scale("width_scale")?);
    e.set("scales", Attr::Floats(vec![1.0, 1.0, h, w]));
    if e.take_str("mode")?.is_some_and(|m| m == "bilinear") {
        e.set("mode", "linear");
    }
    Ok(())
}

fn upsample_input(e: &mut Edit<'_>) -> Result<()> {
    match e.take("scales")? {
        Some(Attr::Floats(scales)) => e.set_constant(1, "scales", Tensor::vector(scales)),
        _ => return Err(anyhow!("attribute \"scales\" is missing")),
    }
    Ok(())
}

fn upsample_to_resize(e: &mut Edit<'_>) -> Result<()> {
    let node = e.node;
    e.g_mut().node_mut(node).op_type = "Resize".to_owned();
    Ok(())
}

/// The old operator multiplied coordinates by the scale, without any shift, and took the pixel before; where it
/// shrank, the specification said nothing and ONNX Runtime took the pixel after.
fn resize_coordinates(e: &mut Edit<'_>) -> Result<()> {
    let scales = e.input(1)?;
    let shrinks = match e.constant(1) {
        Some(t) => t.get()?.to_f32s()?.iter().any(|&s| s < 1.0),
        None => false,
    };
    e.set_constant(1, "roi", Tensor::vector(Vec::<f32>::new()));
    e.set_input(2, Some(scales));
    e.set("coordinate_transformation_mode", "asymmetric");
    let node = e.node;
    if e.g().node(node).attrs.str("mode").unwrap_or("nearest") == "nearest" {
        e.set("nearest_mode", if shrinks { "ceil" } else { "floor" });
    }
    Ok(())
}

/// What had to be given as an empty tensor is left out.
fn resize_optional_inputs(e: &mut Edit<'_>) -> Result<()> {
    let node = e.node;
    let mode = e.g().node(node).attrs.str("coordinate_transformation_mode").unwrap_or("half_pixel");
    ensure!(mode != "tf_half_pixel_for_nn", "coordinate_transformation_mode \"{mode}\" is gone");
    for slot in 1..e.n_inputs() {
        if e.constant(slot).is_some_and(|t| t.is_empty()) {
            e.set_input(slot, None);
        }
    }
    Ok(())
}

fn grid_sample(e: &mut Edit<'_>) -> Result<()> {
    if let Some(mode) = e.take_str("mode")? {
        let renamed = match mode.as_str() {
            "bilinear" => "linear",
            "bicubic" => "cubic",
            other => other,
        };
        e.set("mode", renamed);
    }
    Ok(())
}
