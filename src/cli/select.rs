//! Which nodes the user means: by name, glob or `/regular expression/`, by operator type, included or excluded.

use regex::Regex;

use super::session::{Usage, usage};
use crate::calibrate::dataset::is_similar;
use crate::error::{Result, WithHelp};
use crate::ir::Model;
use crate::quant::region::Region;

/// Choice of nodes.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Selection (names, globs or /regular expressions/; comma lists; repeatable)")]
pub(super) struct Args {
    /// Quantize these nodes only
    #[arg(long, value_name = "NAMES")]
    nodes_to_quantize: Vec<String>,
    /// Keep these nodes float
    #[arg(long, value_name = "NAMES")]
    nodes_to_exclude: Vec<String>,
    /// Quantize nodes of these operators only
    #[arg(long, value_name = "OPS")]
    op_types_to_quantize: Vec<String>,
    /// Keep nodes of these operators float
    #[arg(long, value_name = "OPS")]
    op_types_to_exclude: Vec<String>,
    /// Quantize only what lies between two nodes or tensors; either may be left out
    #[arg(long, value_name = "FROM:TO")]
    region: Vec<String>,
}

/// One pattern as the user wrote it.
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// None for a plain name.
    regex: Option<Regex>,
}

impl Pattern {
    fn new(text: &str) -> Result<Self> {
        let regex = match text.strip_prefix('/').and_then(|t| t.strip_suffix('/')) {
            Some(regex) if !regex.is_empty() => Some(regex.to_owned()),
            // Node names may hold brackets, so only these two make a glob.
            _ if text.contains(['*', '?']) => Some(glob(text)),
            _ => None,
        };
        let regex = match regex.map(|r| Regex::new(&r)).transpose() {
            Ok(regex) => regex,
            Err(e) => {
                let reason = e.to_string();
                let reason = reason.lines().last().unwrap_or(&reason);
                return usage(format!("bad regular expression {text}: {reason}"));
            }
        };
        Ok(Pattern { text: text.to_owned(), regex })
    }

    fn matches(&self, name: &str) -> bool {
        self.regex.as_ref().map_or(self.text == name, |r| r.is_match(name))
    }
}

/// A glob as a regular expression: `*` is any text, slashes too, `?` any character, `**/` any folders or none.
fn glob(text: &str) -> String {
    // Behind a slash of our own the first part of the name is as the others.
    let escaped = regex::escape(&format!("/{text}")).replace(r"/\*\*/", "/(?:.*/)?");
    format!("(?s)^{}$", &escaped.replace(r"\*", ".*").replace(r"\?", ".")[1..])
}

/// What the user chose, ready to be asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    nodes: Vec<Pattern>,
    not_nodes: Vec<Pattern>,
    ops: Vec<Pattern>,
    not_ops: Vec<Pattern>,
    regions: Vec<String>,
}

/// The ends of `FROM:TO`. Names may hold colons: the split is where both sides are names of the model.
fn region(text: &str, model: &Model) -> Result<Region> {
    let g = model.main();
    let exists =
        |name: &str| name.is_empty() || g.find_value(name).is_some() || g.nodes().any(|n| g.node(n).label() == name);
    let end = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    let splits: Vec<_> = text.match_indices(':').map(|(i, _)| (&text[..i], &text[i + 1..])).collect();
    if splits.is_empty() {
        return usage(format!("--region \"{text}\": expected FROM:TO"));
    }
    match splits.iter().find(|(a, b)| exists(a) && exists(b) && !(a.is_empty() && b.is_empty())) {
        Some((a, b)) => Ok(Region { from: end(a), to: end(b) }),
        None => usage(format!("--region \"{text}\" names no nodes or tensors of the model")),
    }
}

impl Selection {
    /// Parses the patterns.
    pub(super) fn new(args: &Args) -> Result<Self> {
        let patterns =
            |texts: &[String]| texts.iter().flat_map(|t| split(t)).map(|t| Pattern::new(&t)).collect::<Result<_>>();
        Ok(Selection {
            nodes: patterns(&args.nodes_to_quantize)?,
            not_nodes: patterns(&args.nodes_to_exclude)?,
            ops: patterns(&args.op_types_to_quantize)?,
            not_ops: patterns(&args.op_types_to_exclude)?,
            regions: args.region.clone(),
        })
    }

    /// The parts of the model that may be quantized; none when all may.
    pub(super) fn regions(&self, model: &Model) -> Result<Vec<Region>> {
        self.regions.iter().map(|text| region(text, model)).collect()
    }

    /// Why the user wants a node float, if so. A node's label is its name or its place.
    pub(super) fn excludes(&self, label: &str, op_type: &str) -> Option<String> {
        let by = |patterns: &[Pattern], text: &str| patterns.iter().find(|p| p.matches(text)).map(|p| p.text.clone());
        if let Some(p) = by(&self.not_nodes, label) {
            return Some(format!("excluded by --nodes-to-exclude {p}"));
        }
        if let Some(p) = by(&self.not_ops, op_type) {
            return Some(format!("excluded by --op-types-to-exclude {p}"));
        }
        if !self.nodes.is_empty() && by(&self.nodes, label).is_none() {
            return Some("not among --nodes-to-quantize".into());
        }
        if !self.ops.is_empty() && by(&self.ops, op_type).is_none() {
            return Some("not among --op-types-to-quantize".into());
        }
        None
    }

    /// Fails when a pattern matches nothing in any of the models (before and after preparation, which fuses and
    /// removes nodes): a slip of the pen would otherwise go unnoticed.
    pub(super) fn check(&self, models: &[&Model]) -> Result<()> {
        let mut labels = Vec::new();
        let mut ops = Vec::new();
        for model in models {
            for id in model.graph_ids() {
                let g = model.graph(id);
                for n in g.nodes() {
                    labels.push(g.node(n).label());
                    ops.push(g.node(n).op_type.clone());
                }
            }
        }
        let sides = [
            ("--nodes-to-quantize", &self.nodes, &labels, "node"),
            ("--nodes-to-exclude", &self.not_nodes, &labels, "node"),
            ("--op-types-to-quantize", &self.ops, &ops, "operator"),
            ("--op-types-to-exclude", &self.not_ops, &ops, "operator"),
        ];
        for (option, patterns, names, kind) in sides {
            let Some(p) = patterns.iter().find(|p| !names.iter().any(|n| p.matches(n))) else { continue };
            let error = Err(Usage(format!("{option} \"{}\" matches no {kind} of the model", p.text)));
            let mut near: Vec<&str> =
                names.iter().filter(|n| is_similar(n, &p.text)).map(String::as_str).take(3).collect();
            near.dedup();
            return match near.as_slice() {
                [] => error.help(|| format!("onnx-quant inspect lists the {kind}s; * and ? stand for parts of a name")),
                near => error.help(|| format!("did you mean {}?", near.join(", "))),
            };
        }
        Ok(())
    }
}

/// Splits a comma list; a regular expression may hold commas.
fn split(text: &str) -> Vec<String> {
    if text.len() > 2 && text.starts_with('/') && text.ends_with('/') {
        return vec![text.to_owned()];
    }
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Def, Node};

    fn selection(nodes: &[&str], not_nodes: &[&str], ops: &[&str], not_ops: &[&str]) -> Result<Selection> {
        let owned = |t: &[&str]| t.iter().map(|s| (*s).to_owned()).collect();
        Selection::new(&Args {
            nodes_to_quantize: owned(nodes),
            nodes_to_exclude: owned(not_nodes),
            op_types_to_quantize: owned(ops),
            op_types_to_exclude: owned(not_ops),
            region: Vec::new(),
        })
    }

    #[test]
    fn names_globs_and_regular_expressions() {
        let s =
            selection(&[], &["/head/Mul,conv?", "/^b.{1,2}$/", "a[0]*", "**/Add,l.?/**/w"], &[], &["Soft*"]).unwrap();
        for (name, op, excluded) in [
            ("/head/Mul", "Mul", Some("excluded by --nodes-to-exclude /head/Mul")),
            ("/head/Mul_1", "Mul", None),
            ("conv1", "Conv", Some("excluded by --nodes-to-exclude conv?")),
            ("bcd", "Conv", Some("excluded by --nodes-to-exclude /^b.{1,2}$/")),
            ("bcde", "Conv", None),
            ("a[0]/x", "Conv", Some("excluded by --nodes-to-exclude a[0]*")),
            ("a0", "Conv", None),
            ("/block/1/Add", "Add", Some("excluded by --nodes-to-exclude **/Add")),
            ("Add", "Add", Some("excluded by --nodes-to-exclude **/Add")),
            ("/MyAdd", "Add", None),
            ("l.0/q/w", "Gemm", Some("excluded by --nodes-to-exclude l.?/**/w")),
            ("l.0/w", "Gemm", Some("excluded by --nodes-to-exclude l.?/**/w")),
            ("l_0/w", "Gemm", None),
            ("s", "Softmax", Some("excluded by --op-types-to-exclude Soft*")),
        ] {
            assert_eq!(s.excludes(name, op).as_deref(), excluded, "{name}");
        }
        let s = selection(&["conv1"], &[], &["Conv"], &[]).unwrap();
        assert_eq!(s.excludes("conv1", "Conv"), None);
        assert!(s.excludes("conv2", "Conv").unwrap().contains("--nodes-to-quantize"));
        assert!(selection(&["/(/"], &[], &[], &[]).unwrap_err().is::<Usage>());
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_an_error() {
        let mut model = Model::new(8, 13);
        let g = model.main_mut();
        let x = g.add_value("x", None, Def::Input);
        let y = g.add_result("y", None);
        let mut node = Node::new("Conv");
        node.name = "/layer1/conv".into();
        g.add_node(node, &[Some(x)], &[Some(y)]);
        let check = |s: Selection| s.check(&[&model]);
        check(selection(&["/layer1/*"], &[], &["Conv"], &[]).unwrap()).unwrap();
        let e = check(selection(&[], &["/layer1/Conv"], &[], &[]).unwrap()).unwrap_err();
        assert_eq!(e.to_string(), "--nodes-to-exclude \"/layer1/Conv\" matches no node of the model");
        assert_eq!(crate::error::help_of(&e), Some("did you mean /layer1/conv?"));
        let e = check(selection(&[], &[], &[], &["Gemm"]).unwrap()).unwrap_err();
        assert!(crate::error::help_of(&e).unwrap().contains("inspect lists the operators"), "{e:#}");
    }
}
