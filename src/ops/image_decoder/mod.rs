//! `ImageDecoder` — pixels from an encoded image.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__ImageDecoder.html> (opset 20)
//! Input: encoded_stream uint8 `[n]`: BMP, JPEG, JPEG 2000, PNG, PNM, TIFF, WebP. Output: uint8 `[H, W, C]`.
//! Attribute: pixel_format RGB (default), BGR, Grayscale (C = 1; weights of ITU-R 601).
//! Quantized: gives integers, so nothing.
//! Errors: the bytes are no image of these formats; an unknown pixel format.

mod entropy;
mod jpeg;

use std::io::Cursor;

use image::{DynamicImage, ImageReader, RgbImage};

use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::Dim;
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "ImageDecoder",
    domain: OpDomain::Onnx,
    since: 20,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "gives integers" },
}];

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let channels = if ctx.attrs.str("pixel_format") == Some("Grayscale") { 1 } else { 3 };
    ctx.set_tensor(0, Some(DType::U8), Some(vec![Dim::Unknown, Dim::Unknown, Dim::Known(channels)]));
    Ok(())
}

/// The pixels of an image as 8-bit red, green and blue. The image crate is not optimised: what is common is done here.
pub(crate) fn rgb_of(image: DynamicImage) -> RgbImage {
    let (w, h) = (image.width(), image.height());
    let rgb: Option<Vec<u8>> = match &image {
        DynamicImage::ImageRgba8(p) => Some(p.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect()),
        DynamicImage::ImageLuma8(p) => Some(p.as_raw().iter().flat_map(|&g| [g; 3]).collect()),
        _ => None,
    };
    rgb.and_then(|rgb| RgbImage::from_raw(w, h, rgb)).unwrap_or_else(|| image.into_rgb8())
}

/// The start of a JPEG 2000 file, and of a bare code stream.
const JP2: [&[u8]; 2] = [b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"];

fn decode(bytes: &[u8]) -> Result<RgbImage> {
    if JP2.iter().any(|m| bytes.starts_with(m)) {
        let settings = hayro_jpeg2000::DecodeSettings::default();
        let image = hayro_jpeg2000::Image::new(bytes, &settings).map_err(|e| anyhow!("JPEG 2000: {e:?}"))?;
        let (w, h) = (image.width(), image.height());
        ensure!(u64::from(w) * u64::from(h) < 1 << 30, "the image of {w} x {h} pixels is too large");
        let mut context = hayro_jpeg2000::DecoderContext::default();
        let data = image.decode(&mut context).map_err(|e| anyhow!("JPEG 2000: {e:?}"))?.data_u8();
        let rgb: Vec<u8> = match data.len() as u64 / (u64::from(w) * u64::from(h)).max(1) {
            1 => data.iter().flat_map(|&g| [g; 3]).collect(),
            2 => data.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
            3 => data,
            4 => data.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
            n => bail!("JPEG 2000: {n} components"),
        };
        return RgbImage::from_raw(w, h, rgb).context("JPEG 2000: the pixels do not fill the image");
    }
    if bytes.starts_with(b"\xff\xd8") {
        let jpeg::Rgb { width, height, pixels } = jpeg::decode(bytes)?;
        return RgbImage::from_raw(width as u32, height as u32, pixels)
            .context("JPEG: the pixels do not fill the image");
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    Ok(rgb_of(reader.decode()?))
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let format = call.str("pixel_format", "RGB");
    ensure!(
        matches!(format, "RGB" | "BGR" | "Grayscale"),
        "attribute \"pixel_format\" is \"{format}\", expected RGB, BGR or Grayscale"
    );
    let image = decode(call.input(0)?.slice::<u8>().context("input 0")?).context("input 0 (encoded_stream)")?;
    let (w, h) = (image.width() as usize, image.height() as usize);
    let mut pixels = image.into_raw();
    Ok(match format {
        "Grayscale" => {
            let gray =
                |p: &[u8]| (u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471 + 0x8000) >> 16;
            Tensor::new(&[h, w, 1], pixels.chunks_exact(3).map(|p| gray(p) as u8).collect::<Vec<u8>>())?
        }
        "BGR" => {
            pixels.chunks_exact_mut(3).for_each(|p| p.swap(0, 2));
            Tensor::new(&[h, w, 3], pixels)?
        }
        _ => Tensor::new(&[h, w, 3], pixels)?,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    #[test]
    fn decodes_pixels() {
        let ppm = || Tensor::vector(b"P6 2 1 255 \x01\x02\x03\xff\x00\x00".to_vec());
        let case = || Case::new("ImageDecoder", 20).input(ppm());
        case().expect(&[Tensor::of(&[1, 2, 3], vec![1u8, 2, 3, 255, 0, 0])]);
        case().attr("pixel_format", "BGR").expect(&[Tensor::of(&[1, 2, 3], vec![3u8, 2, 1, 0, 0, 255])]);
        case().attr("pixel_format", "Grayscale").expect(&[Tensor::of(&[1, 2, 1], vec![2u8, 76])]);
        case().attr("pixel_format", "HSV").fails("pixel_format");
        Case::new("ImageDecoder", 20).input(Tensor::vector(vec![1u8, 2])).fails("input 0 (encoded_stream)");
    }
}
