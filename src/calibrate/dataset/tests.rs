//! Data sets of every kind, written to temporary folders and read back against models' inputs.

use std::fs::{self, File};

use super::*;
use crate::error::help_of;
use crate::ir::{Dim, TensorType};
use crate::tensor::DType;

fn spec(name: &str, dtype: DType, dims: &[&str]) -> InputSpec {
    let dim = |d: &&str| d.parse().map_or_else(|_| Dim::Symbol((*d).into()), Dim::Known);
    InputSpec { name: name.into(), ty: TensorType::new(dtype, dims.iter().map(dim).collect()), is_required: true }
}

fn request(specs: &[InputSpec]) -> Request {
    Request { specs: specs.to_vec(), ..Request::default() }
}

fn image() -> InputSpec {
    spec("image", DType::F32, &["N", "2"])
}

fn ids() -> InputSpec {
    spec("model/ids:0", DType::I64, &["N", "L"])
}

fn npz(path: &Path, arrays: &[(&str, Tensor)]) {
    npy::write_npz(arrays.iter().map(|(n, t)| (*n, t)), File::create(path).unwrap()).unwrap();
}

fn npy_file(path: &Path, tensor: &Tensor) {
    npy::write(tensor, &mut File::create(path).unwrap()).unwrap();
}

/// A 1x2 image of these numbers.
fn pixels(a: f32, b: f32) -> Tensor {
    Tensor::of(&[1, 2], vec![a, b])
}

fn open_path(path: &Path, specs: &[InputSpec]) -> Result<Samples> {
    open(&[path.to_owned()], &request(specs), &mut Sink::default())
}

fn message(e: &anyhow::Error) -> String {
    format!("{e:#}")
}

/// The elements of input `name` of every sample.
fn column(data: &dyn Dataset, name: &str) -> Vec<Vec<f64>> {
    (0..data.len())
        .map(|i| data.sample(i).unwrap().inputs.into_iter().find(|(n, _)| n == name).unwrap().1.to_f64s().unwrap())
        .collect()
}

#[test]
fn folder_of_npz_in_natural_order() {
    let dir = tempfile::tempdir().unwrap();
    for i in [10, 9, 100] {
        npz(&dir.path().join(format!("s{i}.npz")), &[("image", pixels(i as f32, 0.0))]);
    }
    fs::write(dir.path().join("labels.json"), "{}").unwrap();
    fs::write(dir.path().join(".done"), "").unwrap();
    let mut sink = Sink::default();
    let data = open(&[dir.path().to_owned()], &request(&[image()]), &mut sink).unwrap();
    assert_eq!(column(&data, "image"), [[9.0, 0.0], [10.0, 0.0], [100.0, 0.0]]);
    assert_eq!(data.sample(1).unwrap().origin, "'s10.npz'");
    let codes: Vec<_> = sink.diagnostics().iter().map(ToString::to_string).collect();
    assert!(codes[0].starts_with("note[ignored-files]") && codes[0].ends_with("'labels.json' ignored"), "{codes:?}");
    assert!(codes[1].starts_with("warning[few-samples]: 3 samples"), "{codes:?}");
    assert!(data.sample(3).is_err());
}

#[test]
fn one_file_with_a_leading_sample_axis() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    let images = Tensor::of(&[3, 2], vec![0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let texts = Tensor::of(&[3, 1, 2], vec![1i64, 2, 3, 4, 5, 6]);
    let rate = spec("sr", DType::I64, &[]);
    let specs = [image(), ids(), rate];
    npz(&path, &[("image", images.clone()), ("sr", Tensor::scalar(16_000i64)), ("model/ids:0", texts)]);
    let data = open_path(&path, &specs).unwrap();
    assert_eq!(column(&data, "image"), [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]);
    assert_eq!(column(&data, "model/ids:0"), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
    assert_eq!(column(&data, "sr"), [[16_000.0], [16_000.0], [16_000.0]]);
    let sample = data.sample(2).unwrap();
    assert_eq!((sample.inputs[0].1.shape(), sample.inputs[1].1.shape()), (&[1, 2][..], &[1, 2][..]));
    assert_eq!(sample.origin, "'data.npz', sample 2");

    npz(&path, &[("image", images.clone()), ("model/ids:0", Tensor::of(&[2, 1], vec![1i64, 2]))]);
    let e = message(&open_path(&path, &specs[..2]).unwrap_err());
    assert!(e.ends_with("different numbers of samples: \"image\" 3, \"model/ids:0\" 2"), "{e}");

    let path = dir.path().join("images.npy");
    npy_file(&path, &images);
    assert_eq!(column(&open_path(&path, &[image()]).unwrap(), "image").len(), 3);
    let e = open_path(&path, &[image(), ids()]).unwrap_err();
    assert!(message(&e).contains("holds one array, but the model has 2 inputs"), "{e:#}");
    assert!(help_of(&e).unwrap().contains(".npz"));
}

#[test]
fn compressed_and_column_major_files_are_cut_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.npz");
    let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("image.npy", options).unwrap();
    npy::write(&Tensor::of(&[2, 2], vec![0.0f32, 1.0, 2.0, 3.0]), &mut zip).unwrap();
    zip.finish().unwrap();
    assert_eq!(column(&open_path(&path, &[image()]).unwrap(), "image"), [[0.0, 1.0], [2.0, 3.0]]);

    let path = dir.path().join("f.npy");
    let mut bytes = Vec::new();
    npy::write(&Tensor::of(&[2, 2], vec![0.0f32, 2.0, 1.0, 3.0]), &mut bytes).unwrap();
    let at = bytes.windows(5).position(|w| w == b"False").unwrap();
    bytes[at..at + 5].copy_from_slice(b"True ");
    fs::write(&path, bytes).unwrap();
    assert_eq!(column(&open_path(&path, &[image()]).unwrap(), "image"), [[0.0, 1.0], [2.0, 3.0]]);
}

#[test]
fn folders_of_npy() {
    let specs = [image(), ids()];
    let text = |a: i64| Tensor::of(&[1, 1], vec![a]);

    let single = tempfile::tempdir().unwrap();
    npy_file(&single.path().join("b2.npy"), &pixels(2.0, 2.0));
    npy_file(&single.path().join("b10.npy"), &pixels(10.0, 10.0));
    assert_eq!(column(&open_path(single.path(), &[image()]).unwrap(), "image"), [[2.0, 2.0], [10.0, 10.0]]);

    let named = tempfile::tempdir().unwrap();
    for i in [2, 10] {
        npy_file(&named.path().join(format!("image_{i}.npy")), &pixels(i as f32, 0.0));
        npy_file(&named.path().join(format!("model_ids_0_{i}.npy")), &text(i));
    }
    let data = open_path(named.path(), &specs).unwrap();
    assert_eq!(column(&data, "image"), [[2.0, 0.0], [10.0, 0.0]]);
    assert_eq!(column(&data, "model/ids:0"), [[2.0], [10.0]]);
    fs::remove_file(named.path().join("image_2.npy")).unwrap();
    let e = message(&open_path(named.path(), &specs).unwrap_err());
    assert!(e.contains("no file for input \"image\" with key \"_2\""), "{e}");
    npy_file(&named.path().join("other.npy"), &text(1));
    let e = message(&open_path(named.path(), &specs).unwrap_err());
    assert!(e.contains("does not start with the name of an input (\"image\", \"model/ids:0\")"), "{e}");

    let folders = tempfile::tempdir().unwrap();
    for name in ["image", "model_ids_0"] {
        fs::create_dir(folders.path().join(name)).unwrap();
    }
    for i in 0..2 {
        npy_file(&folders.path().join(format!("image/a{i}.npy")), &pixels(i as f32, 0.0));
        npy_file(&folders.path().join(format!("model_ids_0/b{i}.npy")), &text(i));
    }
    assert_eq!(column(&open_path(folders.path(), &specs).unwrap(), "model/ids:0"), [[0.0], [1.0]]);
    fs::remove_file(folders.path().join("image/a0.npy")).unwrap();
    let e = message(&open_path(folders.path(), &specs).unwrap_err());
    assert!(e.ends_with("different numbers of samples: \"image\" 1, \"model/ids:0\" 2"), "{e}");
}

#[test]
fn test_data_sets() {
    let dir = tempfile::tempdir().unwrap();
    let mut optional = spec("scale", DType::F32, &[]);
    optional.is_required = false;
    let specs = [image(), ids(), optional];
    for i in [10, 2] {
        let set = dir.path().join(format!("test_data_set_{i}"));
        fs::create_dir(&set).unwrap();
        crate::onnx::write_tensor_pb(&set.join("input_0.pb"), "image", &pixels(i as f32, 0.0)).unwrap();
        crate::onnx::write_tensor_pb(&set.join("input_1.pb"), "", &Tensor::of(&[1, 1], vec![i])).unwrap();
        crate::onnx::write_tensor_pb(&set.join("output_0.pb"), "y", &pixels(0.0, 0.0)).unwrap();
    }
    let data = open_path(dir.path(), &specs).unwrap();
    assert_eq!(column(&data, "image"), [[2.0, 0.0], [10.0, 0.0]]);
    assert_eq!(column(&data, "model/ids:0"), [[2.0], [10.0]]);
    let one = open_path(&dir.path().join("test_data_set_10"), &specs).unwrap();
    assert_eq!(column(&one, "image"), [[10.0, 0.0]]);
    let e = message(&open_path(dir.path(), &[ids(), image()]).unwrap().sample(0).unwrap_err());
    assert!(e.contains("input_0.pb': input \"model/ids:0\" expects elements of type int64, found float"), "{e}");
    let e = message(&open_path(dir.path(), &specs[..1]).unwrap_err());
    assert!(e.contains("input_1.pb' exists, but the model has 1 inputs"), "{e}");
    fs::remove_file(dir.path().join("test_data_set_2/input_1.pb")).unwrap();
    let e = message(&open_path(dir.path(), &specs).unwrap_err());
    assert!(e.contains("has no input_1.pb for input \"model/ids:0\""), "{e}");
}

#[test]
fn what_holds_no_data_says_what_would() {
    let dir = tempfile::tempdir().unwrap();
    let e = open_path(dir.path(), &[image()]).unwrap_err();
    assert!(message(&e).ends_with("is an empty folder"), "{e:#}");
    assert!(help_of(&e).unwrap().contains(".npz") && help_of(&e).unwrap().contains("test_data_set_N"));
    fs::write(dir.path().join("a.doc"), "").unwrap();
    fs::write(dir.path().join("b.doc"), "").unwrap();
    let e = message(&open_path(dir.path(), &[image()]).unwrap_err());
    assert!(e.ends_with("holds 2 files ('a.doc' to 'b.doc'), none of them data"), "{e}");
    let e = message(&open_path(&dir.path().join("a.doc"), &[image()]).unwrap_err());
    assert!(e.ends_with("is no data file that is known"), "{e}");
    let e = message(&open_path(&dir.path().join("none.npz"), &[image()]).unwrap_err());
    assert!(e.contains("cannot read"), "{e}");
    fs::write(dir.path().join("bad.npz"), "no zip").unwrap();
    let e = message(&open_path(&dir.path().join("bad.npz"), &[image()]).unwrap_err());
    assert!(e.contains("is no .npz file"), "{e}");
    npy_file(&dir.path().join("none.npy"), &Tensor::of(&[0, 2], Vec::<f32>::new()));
    let e = message(&open_path(&dir.path().join("none.npy"), &[image()]).unwrap_err());
    assert!(e.ends_with("holds no samples"), "{e}");
}

#[test]
fn headers_are_checked_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    npz(&dir.path().join("0.npz"), &[("image", pixels(0.0, 0.0))]);
    npz(&dir.path().join("1.npz"), &[("image", Tensor::of(&[1, 3], vec![0.0f32; 3]))]);
    let e = message(&open_path(dir.path(), &[image()]).unwrap_err());
    assert!(e.contains("1.npz', array \"image\": input \"image\" expects float[N,2], found shape [1, 3]"), "{e}");
    npz(&dir.path().join("1.npz"), &[("image", Tensor::of(&[1, 2], vec![0u8; 2]))]);
    let e = message(&open_path(dir.path(), &[image()]).unwrap_err());
    assert!(e.contains("expects elements of type float, found uint8"), "{e}");
    npz(&dir.path().join("1.npz"), &[("img", pixels(0.0, 0.0))]);
    let e = message(&open_path(dir.path(), &[image()]).unwrap_err());
    assert!(e.contains("no array for input \"image\""), "{e}");
}

#[test]
fn samples_are_checked_and_judged_as_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    npz(&dir.path().join("0.npz"), &[("image", Tensor::of(&[1, 2], vec![0.5f64, 0.5]))]);
    npz(&dir.path().join("1.npz"), &[("image", Tensor::of(&[1, 2], vec![0.5f64, 0.5]))]);
    npz(&dir.path().join("2.npz"), &[("image", Tensor::of(&[1, 2], vec![0.5f64, f64::NAN]))]);
    let data = open_path(dir.path(), &[image()]).unwrap();
    assert_eq!(data.sample(0).unwrap().inputs[0].1.dtype(), DType::F32);
    data.sample(1).unwrap();
    let e = message(&data.sample(2).unwrap_err());
    assert_eq!(e, "'2.npz': input \"image\" has NaN at [0, 1]");
    let mut sink = Sink::default();
    data.report(&mut sink);
    let found: Vec<_> = sink.diagnostics().iter().map(|d| d.code).collect();
    assert_eq!(found, ["converted-input", "identical-samples", "constant-input"]);
    assert_eq!(data.digests().len(), 2);

    npz(&dir.path().join("1.npz"), &[("image", pixels(0.25, 0.5))]);
    fs::remove_file(dir.path().join("2.npz")).unwrap();
    let data = open_path(dir.path(), &[image()]).unwrap();
    column(&data, "image");
    let mut sink = Sink::default();
    data.report(&mut sink);
    assert_eq!(sink.diagnostics().iter().map(|d| d.code).collect::<Vec<_>>(), ["converted-input"]);
}

#[test]
fn random_only_by_name() {
    let open_with = |specs: &[InputSpec], shapes: &[(String, Vec<usize>)]| {
        let request = Request { specs: specs.to_vec(), shapes: shapes.to_vec(), seed: 1, ..Request::default() };
        open(&["random".into()], &request, &mut Sink::default())
    };
    let data = open_with(&[image()], &[]).unwrap();
    let all = column(&data, "image");
    assert!(all.len() == 16 && all[0] != all[1] && all.iter().flatten().all(|x| (0.0..1.0).contains(x)), "{all:?}");
    assert_eq!(column(&data, "image"), all, "the same at each call");
    let e = open_with(&[ids()], &[]).unwrap_err();
    assert!(help_of(&e).unwrap().contains("--input-shape model/ids:0:1"), "{e:#}");
    let data = open_with(&[ids()], &[("model/ids:0".into(), vec![2, 5])]).unwrap();
    assert!(column(&data, "model/ids:0").iter().all(|v| v.len() == 10 && v.iter().all(|&x| x == 0.0 || x == 1.0)));
    assert!(open_with(&[ids()], &[("ids".into(), vec![2, 5])]).is_err());
}

#[test]
fn several_paths_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    npz(&dir.path().join("a.npz"), &[("image", pixels(1.0, 0.0))]);
    npy_file(&dir.path().join("b.npy"), &Tensor::of(&[2, 2], vec![2.0f32, 0.0, 3.0, 0.0]));
    let paths = [dir.path().join("b.npy"), dir.path().join("a.npz")];
    let data = open(&paths, &request(&[image()]), &mut Sink::default()).unwrap();
    assert_eq!(column(&data, "image"), [[2.0, 0.0], [3.0, 0.0], [1.0, 0.0]]);
}

#[test]
fn a_sample_that_changes_under_us_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    npy_file(&path, &Tensor::of(&[2, 2], vec![0.0f32; 4]));
    let data = open_path(&path, &[image()]).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(130).unwrap();
    let e = message(&data.sample(1).unwrap_err());
    assert!(e.contains("truncated"), "{e}");
}

#[test]
fn natural_order() {
    let mut names =
        ["b", "a10", "a9", "a09", "a", "9", "10", "a9b2", "a9b10", "x99999999999999999999999999999999999999999"];
    names.sort_by_cached_key(|n| natural_key(n));
    let expected = ["9", "10", "a", "a09", "a9", "a9b2", "a9b10", "a10", "b", names[9]];
    assert_eq!(names, expected);
}

#[test]
fn safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.safetensors");
    let header = r#"{"__metadata__":{"made":"here"},"image":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}"#;
    let write = |header: &str, n: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..n).flat_map(|i| (i as f32).to_le_bytes()));
        fs::write(&path, bytes).unwrap();
    };
    write(header, 6);
    let data = open_path(&path, &[image()]).unwrap();
    assert_eq!(column(&data, "image"), [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]);
    write(header, 5);
    assert!(message(&open_path(&path, &[image()]).unwrap_err()).contains("truncated"));
    for (from, to, why) in
        [("24", "20", "do not agree"), ("F32", "F8_E4M3", "type F8_E4M3"), ("[3,2]", "3", "\"shape\"")]
    {
        write(&header.replace(from, to), 6);
        let e = message(&open_path(&path, &[image()]).unwrap_err());
        assert!(e.contains(why) && e.contains("tensor \"image\""), "{e}");
    }
    fs::write(&path, [255; 12]).unwrap();
    assert!(message(&open_path(&path, &[image()]).unwrap_err()).contains("no .safetensors file"));
}

#[test]
fn lists_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    npy_file(&file("a.npy"), &pixels(1.0, 2.0));
    fs::write(file("b.raw"), [3.0f32, 4.0].map(f32::to_le_bytes).concat()).unwrap();
    fs::write(file("ids.raw"), [7i64, 8, 9].map(i64::to_le_bytes).concat()).unwrap();
    let list = file("list.txt");
    fs::write(&list, "# samples\na.npy ids.raw\n\nmodel/ids:0:=ids.raw image:=b.raw\n").unwrap();
    let specs = [image(), ids()];
    let data = open_path(&list, &specs).unwrap();
    assert_eq!(column(&data, "image"), [[1.0, 2.0], [3.0, 4.0]]);
    assert_eq!(column(&data, "model/ids:0"), [[7.0, 8.0, 9.0], [7.0, 8.0, 9.0]]);
    for (text, why) in [
        ("a.npy", "no file for input \"model/ids:0\""),
        ("a.npy ids.raw a.npy", "more files than the model inputs"),
        ("x:=a.npy", "\"x\" is no input"),
        ("a.npy gone.raw", "gone.raw"),
        ("list.txt", "is no .npy, .raw or .bin file"),
    ] {
        fs::write(&list, text).unwrap();
        let e = message(&open_path(&list, &specs).unwrap_err());
        assert!(e.contains(why) && e.contains("line 1"), "{e}");
    }
    fs::write(file("b.raw"), [0; 12]).unwrap();
    fs::write(&list, "b.raw ids.raw").unwrap();
    assert!(message(&open_path(&list, &specs).unwrap_err()).contains("12 bytes"), "three floats are no pairs");
}

#[test]
fn images() {
    let dir = tempfile::tempdir().unwrap();
    let mut picture = ::image::RgbImage::new(4, 2);
    for (x, y, p) in picture.enumerate_pixels_mut() {
        *p = ::image::Rgb([x as u8 * 10, y as u8 * 100, 200]);
    }
    fs::create_dir(dir.path().join("class")).unwrap();
    picture.save(dir.path().join("class/a.png")).unwrap();
    let nchw = spec("x", DType::F32, &["N", "3", "2", "4"]);
    let read = |spec: &InputSpec, image: ImageOptions| -> Result<Vec<f64>> {
        let request = Request { specs: vec![spec.clone()], image, ..Request::default() };
        let data = open(&[dir.path().to_owned()], &request, &mut Sink::default())?;
        Ok(column(&data, "x").remove(0))
    };
    let plain = || ImageOptions { scale: Some(1.0), ..ImageOptions::default() };
    let red = [0.0, 10.0, 20.0, 30.0, 0.0, 10.0, 20.0, 30.0];
    let x = read(&nchw, plain()).unwrap();
    assert_eq!(x[..8], red);
    assert_eq!(x[8..16], [0.0, 0.0, 0.0, 0.0, 100.0, 100.0, 100.0, 100.0]);
    assert_eq!(x[16..], [200.0; 8]);
    assert_eq!(read(&nchw, ImageOptions { is_bgr: true, ..plain() }).unwrap()[16..], red);
    let normal =
        ImageOptions { scale: Some(0.5), mean: vec![1.0, 2.0, 3.0], std: vec![2.0], ..ImageOptions::default() };
    let x = read(&nchw, normal).unwrap();
    assert_eq!((x[1], x[12], x[20]), (2.0, 24.0, 48.5));
    // Channels last, as the shape has it, and uint8 needs no options.
    let nhwc = spec("x", DType::U8, &["1", "2", "4", "3"]);
    assert_eq!(read(&nhwc, ImageOptions::default()).unwrap()[..6], [0.0, 0.0, 200.0, 10.0, 0.0, 200.0]);
    // The middle of the picture; the shorter side scaled to the model's.
    let square = spec("x", DType::F32, &["N", "3", "2", "2"]);
    assert_eq!(read(&square, ImageOptions { crop: Some((2, 2)), ..plain() }).unwrap()[..4], [10.0, 20.0, 10.0, 20.0]);
    let short = ImageOptions { resize: Some(Resize::Short(2)), ..plain() };
    assert_eq!(read(&square, short).unwrap()[..4], [10.0, 20.0, 10.0, 20.0]);
    assert_eq!(read(&square, plain()).unwrap().len(), 12, "scaled to the model's size");
    let e = read(&nchw, ImageOptions::default()).unwrap_err();
    assert!(help_of(&e).unwrap().contains("--scale 1/255"), "{e:#}");
    let e = read(&nchw, ImageOptions { mean: vec![1.0, 2.0], ..ImageOptions::default() }).unwrap_err();
    assert!(message(&e).contains("--mean has 2 numbers, the input 3 channels"), "{e:#}");
    fs::write(dir.path().join("class/a.png"), "no picture").unwrap();
    let request = Request { specs: vec![nchw], image: plain(), ..Request::default() };
    let data = open(&[dir.path().to_owned()], &request, &mut Sink::default()).unwrap();
    assert!(message(&data.sample(0).unwrap_err()).contains("a.png"));
}
