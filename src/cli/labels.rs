//! `--labels`: reads what is known of the samples, and which metric it goes with.
//!
//! Accepted are JSON (an array in the order of the samples, with `null` for one without a label, or an object by file
//! name) and text with `name,label` a line. A label is a class index, for an output of several rows a list of them, or for
//! `mse` the numbers of the output: a list, nested as one likes, or the path of an `.npy` file, relative to the labels.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::session::usage;
use crate::calibrate::dataset::{Dataset, Split, npy};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::quant::labels::{Label, Labels, Metric, Table};

/// What is asked of labels.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Labels")]
pub(super) struct Args {
    /// What is known of the samples: a JSON array in their order, a JSON object by file name, or text with `name,label` a
    /// line. A label is a class index or, for `--metric mse`, a list of numbers or the path of an .npy file
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// What --max-drop is about: top-1, top-5 (points lost of the labelled samples), mse (growth of the mean squared
    /// difference to the labels), agreement (rows whose first class is not the float model's; needs no labels)
    /// [default: top-1 or mse, as the labels are; agreement without any]
    #[arg(long, value_name = "METRIC", value_parser = metric)]
    metric: Option<Metric>,
}

fn metric(text: &str) -> std::result::Result<Metric, String> {
    let plain = text.to_ascii_lowercase().replace('_', "-").replace("top1", "top-1").replace("top5", "top-5");
    let found = Metric::ALL.iter().find(|(name, _)| *name == plain);
    found.map(|(_, m)| *m).ok_or_else(|| "expected top-1, top-5, mse or agreement".into())
}

impl Args {
    /// Whether labels were given.
    pub(super) fn is_given(&self) -> bool {
        self.labels.is_some()
    }

    /// Fails for a metric that does not go with what else was said.
    pub(super) fn check(&self) -> Result<()> {
        match (self.labels.is_some(), self.metric) {
            (true, Some(Metric::Agreement)) => {
                usage("--metric agreement is the one without labels: leave --labels out")
            }
            (false, Some(m)) if m != Metric::Agreement => usage(format!("--metric {m} needs --labels FILE")),
            _ => Ok(()),
        }
    }

    /// Reads the labels of these samples.
    pub(super) fn read(&self, all: &dyn Dataset, split: &Split) -> Result<Option<Labels>> {
        let Some(path) = &self.labels else { return Ok(None) };
        self.of(path, all, split).with_context(|| format!("--labels '{}'", path.display())).map(Some)
    }

    fn of(&self, path: &Path, all: &dyn Dataset, split: &Split) -> Result<Labels> {
        let text = std::fs::read_to_string(path).context("cannot be read")?;
        let (table, are_classes) = parse(&text, path.parent().unwrap_or(Path::new(".")))?;
        let metric = self.metric.unwrap_or(if are_classes { Metric::Top1 } else { Metric::Mse });
        let labels = table.of(all)?;
        let take = |indices: &[usize]| indices.iter().map(|&i| labels[i].clone()).collect::<Vec<_>>();
        let labels = Labels {
            metric,
            // The same samples do not count twice.
            calibration: if split.is_shared { Vec::new() } else { take(split.calibration.indices()) },
            held_out: take(split.held_out.indices()),
        };
        labels.check()?;
        Ok(labels)
    }
}

/// The labels of a file, and whether each is a single whole number.
fn parse(text: &str, folder: &Path) -> Result<(Table, bool)> {
    let mut are_classes = true;
    let mut one = |value: &Value, of: &dyn Fn() -> String| -> Result<Label> {
        are_classes &= value.is_i64();
        label(value, folder).with_context(of)
    };
    if !text.trim_start().starts_with(['[', '{']) {
        let mut named = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = line.rsplit_once(',').or_else(|| line.rsplit_once(char::is_whitespace));
            let (name, value) = fields.with_context(|| format!("line {}: expected name,label", i + 1))?;
            let (name, value) = (unquoted(name), unquoted(value));
            let is_head = i == 0 && ["label", "class", "target"].contains(&value.to_ascii_lowercase().as_str());
            if !is_head {
                let value = value.parse::<i64>().map_or_else(|_| Value::from(value), Value::from);
                named.push((name.to_owned(), one(&value, &|| format!("line {}", i + 1))?));
            }
        }
        ensure!(!named.is_empty(), "there are no labels in it");
        return Ok((Table::ByName(named), are_classes));
    }
    let table = match serde_json::from_str(text).context("is no JSON")? {
        Value::Array(all) => {
            let each = all.iter().enumerate().map(|(i, v)| match v {
                Value::Null => Ok(None),
                v => one(v, &|| format!("label {i}")).map(Some),
            });
            Table::InOrder(each.collect::<Result<_>>()?)
        }
        Value::Object(all) => {
            let each = all.iter().map(|(name, v)| Ok((name.clone(), one(v, &|| format!("label of \"{name}\""))?)));
            Table::ByName(each.collect::<Result<_>>()?)
        }
        _ => bail!("expected an array or an object"),
    };
    Ok((table, are_classes))
}

fn unquoted(field: &str) -> &str {
    let field = field.trim();
    field.strip_prefix('"').and_then(|f| f.strip_suffix('"')).unwrap_or(field)
}

fn label(value: &Value, folder: &Path) -> Result<Label> {
    match value {
        Value::Number(n) => Ok(vec![n.as_f64().context("is no number")?]),
        Value::Array(parts) => {
            let mut out = Vec::new();
            for p in parts {
                match p {
                    Value::String(_) => bail!("a list of numbers was expected"),
                    p => out.extend(label(p, folder)?),
                }
            }
            Ok(out)
        }
        Value::String(path) => {
            let path = folder.join(path);
            let what = || format!("cannot read '{}'", path.display());
            let file = File::open(&path).with_context(what)?;
            let size = file.metadata().with_context(what)?.len();
            npy::read(&mut BufReader::new(file), size).and_then(|t| t.to_f64s()).with_context(what)
        }
        _ => Err(anyhow!("expected a class index, a list of numbers, or the path of an .npy file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Table, bool), String> {
        parse(text, Path::new("/nowhere")).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn every_form_is_read() {
        let of =
            |pairs: &[(&str, f64)]| Table::ByName(pairs.iter().map(|(n, l)| ((*n).to_owned(), vec![*l])).collect());
        assert_eq!(read("[3, null, 0]"), Ok((Table::InOrder(vec![Some(vec![3.0]), None, Some(vec![0.0])]), true)));
        assert_eq!(read(r#"{"a.npz": 3, "b": 0}"#), Ok((of(&[("a.npz", 3.0), ("b", 0.0)]), true)));
        assert_eq!(
            read("name,label\n\"a, 1.jpg\",3\n# no\n\nb, 0\n"),
            Ok((of(&[("a, 1.jpg", 3.0), ("b", 0.0)]), true))
        );
        assert_eq!(read("a.jpg 3\nb.jpg\t0"), Ok((of(&[("a.jpg", 3.0), ("b.jpg", 0.0)]), true)));
        assert_eq!(read("[[[1, 2.5], [3, 4]]]"), Ok((Table::InOrder(vec![Some(vec![1.0, 2.5, 3.0, 4.0])]), false)));
        assert!(!read("[1.5]").unwrap().1);
    }

    #[test]
    fn arrays_are_read_beside_the_labels() {
        let dir = tempfile::tempdir().unwrap();
        let t = crate::tensor::Tensor::new(&[1, 2], vec![0.5f32, 2.0]).unwrap();
        npy::write(&t, &mut File::create(dir.path().join("a.npy")).unwrap()).unwrap();
        let (table, are_classes) = parse("x.npz,a.npy", dir.path()).unwrap();
        assert_eq!((table, are_classes), (Table::ByName(vec![("x.npz".into(), vec![0.5, 2.0])]), false));
    }

    #[test]
    fn what_is_no_label_is_refused() {
        assert_eq!(read("a.jpg").unwrap_err(), "line 1: expected name,label");
        assert_eq!(read("# none\n").unwrap_err(), "there are no labels in it");
        assert!(read("[1, 2").unwrap_err().starts_with("is no JSON: "));
        assert!(read("a,b.npy").unwrap_err().starts_with("line 1: cannot read '/nowhere/b.npy': "));
        assert!(read(r#"{"a": {}}"#).unwrap_err().starts_with("label of \"a\": expected a class index"));
        assert_eq!(read(r#"[["a"]]"#).unwrap_err(), "label 0: a list of numbers was expected");
    }
}
