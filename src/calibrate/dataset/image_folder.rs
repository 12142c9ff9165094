//! A folder of images, flat or with a folder per class: each a sample of a model's only input.
//!
//! A value is `(pixel * scale - mean) / std` with pixels from 0 to 255, so that `--scale 1/255 --mean 0.485,0.456,0.406
//! --std 0.229,0.224,0.225` is what torchvision does and `--mean 127.5 --std 127.5` gives -1 to 1. How a model was
//! trained cannot be guessed: one of the three must be given, unless the input is uint8.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::check::InputSpec;
use super::npy_file::only_input;
use super::{Dataset, Request, Sample, Source, file_name, has_extension, listing, note_ignored};
use crate::diag::Sink;
use crate::error::{Context, Result, WithHelp, anyhow, bail, ensure};
use crate::ops::rgb_of;
use crate::tensor::{DType, Tensor};

pub(super) const SOURCE: Source = Source { accepts: "a folder of images (with --scale, --mean or --std)", open };

const EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm", "pgm"];

/// How images become tensors.
#[derive(Debug, Clone, Default)]
pub struct ImageOptions {
    /// What pixels (0 to 255) are multiplied with first.
    pub scale: Option<f32>,
    /// What is subtracted then: one number, or one per channel.
    pub mean: Vec<f32>,
    /// What is divided by at last: one number, or one per channel.
    pub std: Vec<f32>,
    /// Whether channels come last; as the input's shape has it, if not given.
    pub channels_last: Option<bool>,
    /// Whether channels are blue, green, red.
    pub is_bgr: bool,
    /// Size that images are scaled to.
    pub resize: Option<Resize>,
    /// Height and width of the part in the middle that is cut out.
    pub crop: Option<(u32, u32)>,
}

/// A size to scale images to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side, keeping the proportions; then the middle of the model's size is cut out.
    Short(u32),
    /// Height and width.
    Exact(u32, u32),
}

impl ImageOptions {
    fn is_given(&self) -> bool {
        self.scale.is_some() || !self.mean.is_empty() || !self.std.is_empty()
    }
}

struct Images {
    files: Vec<PathBuf>,
    spec: InputSpec,
    form: Form,
    options: ImageOptions,
}

/// What the input looks like.
struct Form {
    channels: usize,
    channels_last: bool,
    /// Height and width, where the model fixes them.
    size: Option<(u32, u32)>,
    has_batch: bool,
}

fn open(path: &Path, request: &Request, sink: &mut Sink) -> Result<Option<Box<dyn Dataset>>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let is_image = |p: &PathBuf| EXTENSIONS.iter().any(|e| has_extension(p, e));
    let (mut files, others): (Vec<_>, Vec<_>) = listing(path)?.into_iter().partition(is_image);
    if files.is_empty() {
        for folder in others.iter().filter(|p| p.is_dir()) {
            files.extend(listing(folder)?.into_iter().filter(is_image));
        }
    } else {
        note_ignored(path, &others, sink);
    }
    if files.is_empty() {
        return Ok(None);
    }
    let spec = only_input(&request.specs, path)?.clone();
    let options = request.image.clone();
    let form = form(&spec, &options)?;
    if !options.is_given() && spec.ty.dtype != Some(DType::U8) {
        return Err(anyhow!("'{}' holds images, and how the model wants their pixels is not said", path.display()))
            .help(|| {
                "give what it was trained with: --scale 1/255, --mean 127.5 --std 127.5, or --scale 1/255 --mean \
                 0.485,0.456,0.406 --std 0.229,0.224,0.225"
                    .into()
            });
    }
    for (name, given) in [("mean", &options.mean), ("std", &options.std)] {
        let n = given.len();
        ensure!(n <= 1 || n == form.channels, "--{name} has {n} numbers, the input {} channels", form.channels);
    }
    Ok(Some(Box::new(Images { files, spec, form, options })))
}

fn form(spec: &InputSpec, options: &ImageOptions) -> Result<Form> {
    let dims: Vec<Option<usize>> =
        spec.ty.shape.as_ref().map(|s| s.iter().map(|d| d.known()).collect()).unwrap_or_default();
    let (has_batch, image) = match dims.as_slice() {
        [_, image @ ..] if image.len() == 3 => (true, image),
        image if image.len() == 3 => (false, image),
        _ => bail!("images do not fit input \"{}\": it is {}", spec.name, spec.ty),
    };
    let is_channels = |d: Option<usize>| matches!(d, Some(1 | 3));
    let channels_last = options.channels_last.unwrap_or(!is_channels(image[0]) && is_channels(image[2]));
    let (channels, h, w) = if channels_last { (image[2], image[0], image[1]) } else { (image[0], image[1], image[2]) };
    let channels = channels.unwrap_or(3);
    ensure!(matches!(channels, 1 | 3), "images do not fit input \"{}\": it has {channels} channels", spec.name);
    let size = match (h, w) {
        (Some(h), Some(w)) => Some((u32::try_from(h)?, u32::try_from(w)?)),
        _ => None,
    };
    Ok(Form { channels, channels_last, size, has_batch })
}

/// A new image from an old one, through `$here` for the pixels that image files mostly have and through the image
/// crate's own function for all others. That crate takes 20 s to compile when it is optimised, so that it is not: what
/// is generic is compiled, and optimised, here.
macro_rules! map_pixels {
    ($image:expr, $pixels:ident => $here:expr, $other:ident => $there:expr) => {
        match $image {
            DynamicImage::ImageRgb8($pixels) => DynamicImage::ImageRgb8($here),
            DynamicImage::ImageRgba8($pixels) => DynamicImage::ImageRgba8($here),
            DynamicImage::ImageLuma8($pixels) => DynamicImage::ImageLuma8($here),
            $other => $there,
        }
    };
}

/// Turned as the camera was held.
fn upright(image: DynamicImage, orientation: Orientation) -> DynamicImage {
    use Orientation::*;
    let turned = match orientation {
        Rotate90 | Rotate90FlipH => map_pixels!(&image, p => imageops::rotate90(p), other => other.rotate90()),
        Rotate180 => map_pixels!(&image, p => imageops::rotate180(p), other => other.rotate180()),
        Rotate270 | Rotate270FlipH => map_pixels!(&image, p => imageops::rotate270(p), other => other.rotate270()),
        NoTransforms | FlipHorizontal | FlipVertical => image,
    };
    match orientation {
        FlipHorizontal | Rotate90FlipH | Rotate270FlipH => {
            map_pixels!(&turned, p => imageops::flip_horizontal(p), other => other.fliph())
        }
        FlipVertical => map_pixels!(&turned, p => imageops::flip_vertical(p), other => other.flipv()),
        NoTransforms | Rotate90 | Rotate180 | Rotate270 => turned,
    }
}

fn resize(image: &DynamicImage, w: u32, h: u32) -> DynamicImage {
    let filter = FilterType::Triangle;
    map_pixels!(image, p => imageops::resize(p, w, h, filter), other => other.resize_exact(w, h, filter))
}

impl Images {
    /// Scaled and cut out.
    fn fit(&self, image: DynamicImage) -> Result<DynamicImage> {
        let scaled = match (self.options.resize, self.form.size) {
            (Some(Resize::Short(n)), _) => {
                let (w, h) = (image.width(), image.height());
                let side = |x: u32| (u64::from(x) * u64::from(n)).div_ceil(u64::from(w.min(h).max(1))).max(1) as u32;
                resize(&image, side(w), side(h))
            }
            (Some(Resize::Exact(h, w)), _) => resize(&image, w, h),
            (None, Some((h, w))) if self.options.crop.is_none() => resize(&image, w, h),
            (None, _) => image,
        };
        let crop =
            self.options.crop.or(self.form.size.filter(|_| matches!(self.options.resize, Some(Resize::Short(_)))));
        let Some((h, w)) = crop else { return Ok(scaled) };
        let (width, height) = (scaled.width(), scaled.height());
        ensure!(h <= height && w <= width, "cannot cut {h}x{w} out of an image of {height}x{width}");
        let (x, y) = ((width - w) / 2, (height - h) / 2);
        Ok(map_pixels!(&scaled, p => imageops::crop_imm(p, x, y, w, h).to_image(), p => p.crop_imm(x, y, w, h)))
    }

    fn tensor(&self, image: DynamicImage) -> Result<Tensor> {
        let (h, w) = (image.height() as usize, image.width() as usize);
        let (c, n) = (self.form.channels, h * w);
        let mut bytes = if c == 1 { image.into_luma8().into_raw() } else { rgb_of(image).into_raw() };
        if self.options.is_bgr && c == 3 {
            bytes.chunks_exact_mut(3).for_each(|p| p.swap(0, 2));
        }
        let ordered: Vec<u8> = if self.form.channels_last {
            bytes
        } else {
            (0..c).flat_map(|k| bytes[k..].iter().step_by(c).copied()).collect()
        };
        let mut shape = if self.form.channels_last { vec![h, w, c] } else { vec![c, h, w] };
        if self.form.has_batch {
            shape.insert(0, 1);
        }
        if !self.options.is_given() {
            return Tensor::new(&shape, ordered);
        }
        let of = |list: &[f32], k: usize, default: f32| {
            list.get(if list.len() == 1 { 0 } else { k }).copied().unwrap_or(default)
        };
        let scale = self.options.scale.unwrap_or(1.0);
        let value = |(i, b): (usize, u8)| {
            let k = if self.form.channels_last { i % c } else { i / n };
            (f32::from(b) * scale - of(&self.options.mean, k, 0.0)) / of(&self.options.std, k, 1.0)
        };
        Tensor::new(&shape, ordered.into_iter().enumerate().map(value).collect::<Vec<f32>>())
    }

    fn read(&self, path: &Path) -> Result<Tensor> {
        // From memory, as operators decode: the decoders are compiled for each kind of reader.
        let bytes = std::fs::read(path)?;
        let mut reader = ImageReader::new(Cursor::new(bytes.as_slice()));
        if let Ok(format) = ImageFormat::from_path(path) {
            reader.set_format(format);
        }
        let mut decoder = reader.with_guessed_format()?.into_decoder()?;
        let orientation = decoder.orientation()?;
        let image = upright(DynamicImage::from_decoder(decoder)?, orientation);
        self.tensor(self.fit(image)?)
    }
}

impl Dataset for Images {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let path = self.files.get(i).ok_or_else(|| anyhow!("there is no sample {i}"))?;
        let tensor = self.read(path).with_context(|| format!("cannot read image '{}'", path.display()))?;
        super::check::check_shape(&self.spec, tensor.shape(), &format!("'{}'", path.display()))?;
        Ok(Sample { origin: format!("'{}'", file_name(path)), inputs: vec![(self.spec.name.clone(), tensor)] })
    }

    fn name(&self, i: usize) -> Option<String> {
        self.files.get(i).map(|p| p.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is compiled here does what the image crate does.
    #[test]
    fn pixels_as_the_image_crate_gives_them() {
        let pixel = |x: u32, y: u32, k: u32| ((x * 37 + y * 101 + k * 59) % 256) as u8;
        let rgba = image::RgbaImage::from_fn(5, 3, |x, y| image::Rgba([0, 1, 2, 3].map(|k| pixel(x, y, k))));
        let rgba = DynamicImage::ImageRgba8(rgba);
        let images =
            [rgba.to_rgb8().into(), rgba.to_luma8().into(), rgba.to_luma_alpha8().into(), rgba.to_rgb16().into(), rgba];
        for image in images {
            for exif in 1..=8 {
                let orientation = Orientation::from_exif(exif).unwrap();
                let mut expected = image.clone();
                expected.apply_orientation(orientation);
                assert_eq!(upright(image.clone(), orientation), expected, "{orientation:?} of {:?}", image.color());
            }
            assert_eq!(resize(&image, 7, 2), image.resize_exact(7, 2, FilterType::Triangle), "{:?}", image.color());
            assert_eq!(rgb_of(image.clone()), image.to_rgb8(), "{:?}", image.color());
        }
    }
}
