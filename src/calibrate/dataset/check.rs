//! What a model asks of its inputs, and whether data fits: types and shapes before anything runs, values as they are
//! read. Every refusal says what was found, what was expected and the nearest way out.

use std::fmt::Write as _;

use crate::error::{Result, WithHelp, anyhow, bail};
use crate::ir::{Def, Dim, Model, TensorType, ValueType};
use crate::tensor::{DType, Tensor, cast};
use crate::with_floats;

/// An input of a model.
#[derive(Debug, Clone)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its declared type, as far as the model says.
    pub ty: TensorType,
    /// Whether it must be given; one with a default need not be.
    pub is_required: bool,
}

impl InputSpec {
    /// The number of dimensions, if the model says.
    pub(super) fn rank(&self) -> Option<usize> {
        self.ty.shape.as_ref().map(Vec::len)
    }

    /// The first dimension, if the model says.
    pub(super) fn first_dim(&self) -> Option<&Dim> {
        self.ty.shape.as_ref().and_then(|s| s.first())
    }
}

/// The inputs of a model's main graph, without constants that old files list among them.
///
/// # Errors
/// An input is a sequence, an optional or a map, which no data format that we read can hold.
pub fn input_specs(model: &Model) -> Result<Vec<InputSpec>> {
    let graph = model.main();
    let mut specs = Vec::new();
    for &id in graph.inputs() {
        let value = graph.value(id);
        let is_required = match value.def {
            Def::Input => true,
            Def::Overridable(_) => false,
            _ => continue,
        };
        let ty = match &value.ty {
            Some(ValueType::Tensor(t)) => t.clone(),
            None | Some(ValueType::Unknown) => TensorType { dtype: None, shape: None },
            Some(other) if is_required => bail!("input \"{}\" is a {other}; data can only hold tensors", value.name),
            Some(_) => continue,
        };
        specs.push(InputSpec { name: value.name.clone(), ty, is_required });
    }
    Ok(specs)
}

/// How the arrays of a file become samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The array is the sample.
    Whole,
    /// The first axis counts samples and the model does not have it.
    Drop,
    /// This many rows are a sample.
    Rows(usize),
}

/// Whether a file is meant to hold many samples or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// The first axis counts samples.
    Many,
    /// One, unless the model's fixed shape says that they are several.
    One,
}

/// How an array of this shape becomes samples for an input, and how many (`None`: any number, it is the same for all).
pub(super) fn cut(spec: &InputSpec, shape: &[usize], holds: Holds) -> (Cut, Option<usize>) {
    let Some(rank) = spec.rank() else {
        return match (holds, shape) {
            (Holds::Many, [n, ..]) => (Cut::Drop, Some(*n)),
            _ => (Cut::Whole, None),
        };
    };
    if shape.len() == rank + 1 {
        return (Cut::Drop, Some(shape[0]));
    }
    match (shape, spec.first_dim()) {
        ([n, rest @ ..], Some(first)) if shape.len() == rank && fits_dims(&spec.ty, rest, 1) => match first {
            Dim::Known(rows) if *rows > 0 && n % rows == 0 => {
                let samples = n / rows;
                if samples == 1 { (Cut::Whole, Some(1)) } else { (Cut::Rows(*rows), Some(samples)) }
            }
            Dim::Symbol(_) | Dim::Unknown if holds == Holds::Many => (Cut::Rows(1), Some(*n)),
            _ => (Cut::Whole, Some(1)),
        },
        ([], _) => (Cut::Whole, None),
        _ => (Cut::Whole, Some(1)),
    }
}

/// The shape of one sample of an array that is cut like this.
pub(super) fn cut_shape(cut: Cut, shape: &[usize]) -> Vec<usize> {
    match (cut, shape) {
        (Cut::Drop, [_, rest @ ..]) => rest.to_vec(),
        (Cut::Rows(rows), [_, rest @ ..]) => [&[rows], rest].concat(),
        _ => shape.to_vec(),
    }
}

/// Whether sizes fit the declared dimensions from `skip` on.
fn fits_dims(ty: &TensorType, sizes: &[usize], skip: usize) -> bool {
    let Some(dims) = &ty.shape else { return true };
    dims.len() == sizes.len() + skip
        && dims[skip..].iter().zip(sizes).all(|(d, &n)| d.known().is_none_or(|known| known == n))
}

/// Checks that a sample's shape fits an input.
pub(super) fn check_shape(spec: &InputSpec, shape: &[usize], label: &str) -> Result<()> {
    if fits_dims(&spec.ty, shape, 0) {
        return Ok(());
    }
    let error = anyhow!("{label}: input \"{}\" expects {}, found shape {shape:?}", spec.name, spec.ty);
    match shape_hint(spec, shape) {
        Some(hint) => Err(error).help(|| hint),
        None => Err(error),
    }
}

/// The nearest way to make a shape fit.
fn shape_hint(spec: &InputSpec, shape: &[usize]) -> Option<String> {
    let dims = spec.ty.shape.as_ref()?;
    let rank = dims.len();
    if shape.len() + 1 == rank && fits_dims(&spec.ty, shape, 1) {
        return Some("add the batch axis: x = x[None] (numpy.expand_dims(x, 0))".into());
    }
    // Layouts that people mix up, as numpy.transpose takes them.
    let permutations: &[&[usize]] = match rank {
        4 => &[&[0, 3, 1, 2], &[0, 2, 3, 1], &[0, 1, 3, 2], &[3, 2, 0, 1], &[1, 0, 2, 3]],
        3 => &[&[0, 2, 1], &[2, 0, 1], &[1, 2, 0], &[1, 0, 2], &[2, 1, 0]],
        2 => &[&[1, 0]],
        5 => &[&[0, 4, 1, 2, 3], &[0, 2, 3, 4, 1]],
        _ => &[],
    };
    let fits = |p: &[usize], shape: &[usize]| {
        let permuted: Vec<usize> = p.iter().map(|&i| shape[i]).collect();
        fits_dims(&spec.ty, &permuted, 0)
    };
    let layout = |p: &[usize]| match p {
        [0, 3, 1, 2] => "the data is channels last (NHWC), the model wants channels first (NCHW): ",
        [0, 2, 3, 1] => "the data is channels first (NCHW), the model wants channels last (NHWC): ",
        _ => "the axes are in another order: ",
    };
    if shape.len() == rank
        && let Some(p) = permutations.iter().find(|p| fits(p, shape))
    {
        return Some(format!("{}x = x.transpose({})", layout(p), list(p)));
    }
    if shape.len() + 1 == rank {
        let with_batch = [&[1], shape].concat();
        if let Some(p) = permutations.iter().find(|p| fits(p, &with_batch)) {
            return Some(format!("{}x = x[None].transpose({})", layout(p), list(p)));
        }
    }
    if shape.len() == rank + 1 && shape[0] == 1 && fits_dims(&spec.ty, &shape[1..], 0) {
        return Some("drop the first axis: x = x[0]".into());
    }
    let known: usize = dims.iter().filter_map(Dim::known).product();
    let total: usize = shape.iter().product();
    let n_open = dims.iter().filter(|d| d.known().is_none()).count();
    if known > 0 && (n_open == 0 && total == known || n_open == 1 && total > 0 && total.is_multiple_of(known)) {
        let sizes: Vec<String> = dims.iter().map(|d| d.known().map_or("-1".into(), |n| n.to_string())).collect();
        return Some(format!("the number of elements fits: x = x.reshape({})", sizes.join(", ")));
    }
    None
}

fn list(p: &[usize]) -> String {
    p.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether elements of type `from` may stand for an input of type `to`: floats of any width for floats, integers and
/// bools for integers (values are checked when they are read).
pub(super) fn is_convertible(from: DType, to: DType) -> bool {
    let wide_float = |d: DType| d.is_float() && d.bits() >= 16;
    from == to || wide_float(from) && wide_float(to) || (from.is_integer() || from == DType::Bool) && to.is_integer()
}

/// Checks that an element type fits an input.
pub(super) fn check_dtype(spec: &InputSpec, dtype: DType, label: &str) -> Result<()> {
    let Some(wanted) = spec.ty.dtype else { return Ok(()) };
    if is_convertible(dtype, wanted) {
        return Ok(());
    }
    Err(anyhow!("{label}: input \"{}\" expects elements of type {wanted}, found {dtype}", spec.name)).help(|| {
        match (dtype, wanted) {
            (DType::U8, w) if w.is_float() => {
                "apply the preprocessing that the model was trained with, such as x.astype(numpy.float32) / 255".into()
            }
            (f, w) if f.is_float() && w.is_integer() => {
                format!("are these the right arrays? if the values are whole numbers: x.astype(numpy.{w})")
            }
            (_, w) => format!("convert it: x.astype(numpy.{})", if w == DType::F32 { "float32" } else { w.name() }),
        }
    })
}

/// The tensor in the type that the input wants.
pub(super) fn convert(spec: &InputSpec, tensor: Tensor, label: &str) -> Result<Tensor> {
    let Some(wanted) = spec.ty.dtype else { return Ok(tensor) };
    if tensor.dtype() == wanted {
        return Ok(tensor);
    }
    let converted = cast::cast(&tensor, wanted, true)?;
    if wanted.is_integer() {
        let (before, after) = (tensor.to_i64s()?, converted.to_i64s()?);
        if let Some(i) = before.iter().zip(&after).position(|(a, b)| a != b) {
            bail!(
                "{label}: input \"{}\" expects elements of type {wanted}, which cannot hold {} at {}",
                spec.name,
                before[i],
                index(tensor.shape(), i)
            );
        }
    }
    Ok(converted)
}

/// Refuses NaN and infinity. Minus infinity passes: attention masks are made of it.
pub(super) fn check_values(spec: &InputSpec, tensor: &Tensor, label: &str) -> Result<()> {
    let bad = with_floats!(tensor.data(), T, b => {
        b.as_slice().iter().position(|&x| cast::Number::to_f64(x).is_nan() || cast::Number::to_f64(x) == f64::INFINITY)
    }, _ => None);
    let Some(i) = bad else { return Ok(()) };
    let value = tensor.to_f64s()?[i];
    let what = if value.is_nan() { "NaN" } else { "infinity" };
    Err(anyhow!("{label}: input \"{}\" has {what} at {}", spec.name, index(tensor.shape(), i)))
        .help(|| "take the sample out, or repair the preprocessing that made it".into())
}

/// The indices of element `i`, as NumPy writes them.
fn index(shape: &[usize], mut i: usize) -> String {
    let mut indices = Vec::with_capacity(shape.len());
    for &d in shape.iter().rev() {
        indices.push(i % d.max(1));
        i /= d.max(1);
    }
    indices.reverse();
    format!("[{}]", list(&indices))
}

/// Assigns the names of arrays to inputs: the index of the array of each input, if it is there.
///
/// # Errors
/// A required input has no array, or an array belongs to no input.
pub(super) fn match_names(specs: &[InputSpec], names: &[String], label: &str) -> Result<Vec<Option<usize>>> {
    let found: Vec<Option<usize>> = specs.iter().map(|s| names.iter().position(|n| *n == s.name)).collect();
    let missing: Vec<&str> =
        specs.iter().zip(&found).filter(|(s, f)| s.is_required && f.is_none()).map(|(s, _)| s.name.as_str()).collect();
    let extra: Vec<&str> =
        names.iter().enumerate().filter(|(i, _)| !found.contains(&Some(*i))).map(|(_, n)| n.as_str()).collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(found);
    }
    // What numpy.savez calls arrays that were given without names; their order is the inputs'.
    let positional: Option<Vec<usize>> = names.iter().map(|n| n.strip_prefix("arr_")?.parse().ok()).collect();
    if let Some(positional) = positional
        && names.len() == specs.len()
        && found.iter().all(Option::is_none)
    {
        return Ok((0..specs.len()).map(|i| positional.iter().position(|&p| p == i)).collect());
    }
    let mut message = format!("{label}: ");
    if !missing.is_empty() {
        let _ = write!(message, "no array for input {}", quoted(&missing));
    }
    if !extra.is_empty() {
        let separator = if missing.is_empty() { "" } else { "; " };
        let _ = match extra.as_slice() {
            [one] => write!(message, "{separator}array \"{one}\" is no input of the model"),
            more => write!(message, "{separator}arrays {} are no inputs of the model", quoted(more)),
        };
    }
    let inputs: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    let arrays: Vec<&str> = names.iter().map(String::as_str).collect();
    let _ = write!(message, " (model inputs: {}; arrays: {})", quoted(&inputs), quoted(&arrays));
    let renames: Vec<String> = match (missing.as_slice(), extra.as_slice()) {
        ([m], [e]) => vec![format!("\"{e}\" to \"{m}\"")],
        _ => missing
            .iter()
            .filter_map(|m| extra.iter().find(|e| is_similar(m, e)).map(|e| format!("\"{e}\" to \"{m}\"")))
            .collect(),
    };
    let error = Err(anyhow!(message));
    match (renames.is_empty(), missing.is_empty()) {
        (false, _) => error.help(|| format!("rename array {}", renames.join(", "))),
        (true, true) => error.help(|| "leave out what is no input, such as labels".into()),
        (true, false) => error,
    }
}

fn quoted(names: &[&str]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ")
}

/// Whether two names differ little: in case, in separators, in a prefix or suffix or in two letters.
#[must_use]
pub fn is_similar(a: &str, b: &str) -> bool {
    let plain = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<Vec<char>>();
    let (a, b) = (plain(a), plain(b));
    if a.is_empty() || b.is_empty() {
        return false;
    }
    let contains = |long: &[char], short: &[char]| short.len() >= 3 && long.windows(short.len()).any(|w| w == short);
    a == b || contains(&a, &b) || contains(&b, &a) || distance(&a, &b) <= a.len().max(b.len()).div_ceil(4).min(2)
}

/// Levenshtein's edit distance.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn spec(name: &str, dtype: DType, dims: &[&str]) -> InputSpec {
        let dim = |d: &&str| d.parse().map_or_else(|_| Dim::Symbol((*d).into()), Dim::Known);
        let ty = TensorType::new(dtype, dims.iter().map(dim).collect());
        InputSpec { name: name.into(), ty, is_required: true }
    }

    #[test]
    fn first_axis_becomes_samples() {
        let image = spec("x", DType::F32, &["N", "3", "8", "8"]);
        let fixed = spec("x", DType::F32, &["2", "3"]);
        let no_batch = spec("x", DType::F32, &["3", "4", "5"]);
        let scalar = spec("sr", DType::I64, &[]);
        for (spec, shape, holds, expected) in [
            (&image, &[16, 3, 8, 8][..], Holds::Many, (Cut::Rows(1), Some(16))),
            (&image, &[16, 3, 8, 8], Holds::One, (Cut::Whole, Some(1))),
            (&image, &[16, 1, 3, 8, 8], Holds::One, (Cut::Drop, Some(16))),
            (&fixed, &[6, 3], Holds::One, (Cut::Rows(2), Some(3))),
            (&fixed, &[2, 3], Holds::Many, (Cut::Whole, Some(1))),
            (&fixed, &[5, 3], Holds::Many, (Cut::Whole, Some(1))),
            (&no_batch, &[16, 3, 4, 5], Holds::Many, (Cut::Drop, Some(16))),
            (&no_batch, &[3, 4, 5], Holds::Many, (Cut::Whole, Some(1))),
            (&scalar, &[], Holds::Many, (Cut::Whole, None)),
            (&scalar, &[7], Holds::Many, (Cut::Drop, Some(7))),
        ] {
            assert_eq!(cut(spec, shape, holds), expected, "{} {shape:?}", spec.ty);
        }
        assert_eq!(cut_shape(Cut::Rows(2), &[6, 3]), [2, 3]);
        assert_eq!(cut_shape(Cut::Drop, &[6, 3]), [3]);
    }

    #[test]
    fn shapes_that_do_not_fit_say_what_would() {
        let image = spec("image", DType::F32, &["N", "3", "32", "48"]);
        for (shape, hint) in [
            (&[1, 32, 48, 3][..], "NHWC), the model wants channels first (NCHW): x = x.transpose(0, 3, 1, 2)"),
            (&[3, 32, 48], "add the batch axis"),
            (&[32, 48, 3], "x = x[None].transpose(0, 3, 1, 2)"),
            (&[1, 3, 48, 32], "x = x.transpose(0, 1, 3, 2)"),
            (&[1, 2, 3, 32, 48], "drop the first axis: x = x[0]"),
            (&[4608], "x = x.reshape(-1, 3, 32, 48)"),
            (&[1, 3, 64, 64], ""),
        ] {
            let e = check_shape(&image, shape, "'a.npy'").unwrap_err();
            let expected = format!("'a.npy': input \"image\" expects float[N,3,32,48], found shape {shape:?}");
            assert_eq!(format!("{e:#}"), expected);
            let help = crate::error::help_of(&e).unwrap_or("");
            assert!(if hint.is_empty() { help.is_empty() } else { help.contains(hint) }, "{shape:?}: {help:?}");
        }
        assert!(check_shape(&image, &[7, 3, 32, 48], "").is_ok());
    }

    #[test]
    fn element_types() {
        let x = spec("x", DType::F32, &["N"]);
        let ids = spec("ids", DType::I32, &["N"]);
        let e = check_dtype(&x, DType::U8, "'a.npy'").unwrap_err();
        assert_eq!(format!("{e:#}"), "'a.npy': input \"x\" expects elements of type float, found uint8");
        assert!(crate::error::help_of(&e).unwrap().contains("/ 255"));
        assert!(check_dtype(&ids, DType::F32, "").is_err());
        assert!(check_dtype(&x, DType::F64, "").is_ok());
        let t = convert(&ids, Tensor::vector(vec![1i64, -5]), "").unwrap();
        assert_eq!(t, Tensor::vector(vec![1i32, -5]));
        let e = convert(&ids, Tensor::of(&[1, 2], vec![1i64, 1 << 40]), "'a.npy'").unwrap_err();
        assert!(e.to_string().ends_with("which cannot hold 1099511627776 at [0, 1]"), "{e}");
    }

    #[test]
    fn nan_and_infinity_are_found() {
        let x = spec("x", DType::F32, &["2", "3"]);
        let with = |v: f32| Tensor::of(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, v, 5.0]);
        let e = check_values(&x, &with(f32::NAN), "'a.npz', array \"x\"").unwrap_err();
        assert_eq!(e.to_string(), "'a.npz', array \"x\": input \"x\" has NaN at [1, 1]");
        assert!(check_values(&x, &with(f32::INFINITY), "").is_err());
        assert!(check_values(&x, &with(f32::NEG_INFINITY), "").is_ok());
        assert!(check_values(&x, &Tensor::vector(vec![1i64]), "").is_ok());
    }

    #[test]
    fn names_are_matched_or_suggested() {
        let specs = [spec("input_ids", DType::I64, &["N"]), spec("attention_mask", DType::I64, &["N"])];
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let found = match_names(&specs, &names(&["attention_mask", "input_ids"]), "").unwrap();
        assert_eq!(found, [Some(1), Some(0)]);
        assert_eq!(match_names(&specs, &names(&["arr_1", "arr_0"]), "").unwrap(), [Some(1), Some(0)]);
        let e = match_names(&specs, &names(&["inputids", "attention_mask", "label"]), "'a.npz'").unwrap_err();
        assert_eq!(
            e.to_string(),
            "'a.npz': no array for input \"input_ids\"; arrays \"inputids\", \"label\" are no inputs of the model \
             (model inputs: \"input_ids\", \"attention_mask\"; arrays: \"inputids\", \"attention_mask\", \"label\")"
        );
        assert_eq!(crate::error::help_of(&e), Some("rename array \"inputids\" to \"input_ids\""));
        let mut with_default = specs.to_vec();
        with_default[1].is_required = false;
        assert_eq!(match_names(&with_default, &names(&["input_ids"]), "").unwrap(), [Some(0), None]);
    }
}
