//! `TreeEnsemble`, `TreeEnsembleClassifier`, `TreeEnsembleRegressor` — sums of decision trees.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html> (ai.onnx.ml 5),
//! `TreeEnsembleClassifier`, `TreeEnsembleRegressor` (ai.onnx.ml 1, 3, 5)
//! Input: X `[N, F]`, any number type. Outputs: `[N, n_targets]`, float or for TreeEnsemble X's type; for the classifier
//! Y, labels `[N]` and Z, scores float `[N, E]`.
//! A missing feature (NaN) goes where nodes_missing_value_tracks_true says. The `_as_tensor` forms hold doubles.
//! Quantized: stays float; there is no integer form of it.
//! Errors: lists of different lengths; nodes that are not there; a cycle; targets or features out of range.

use std::collections::{BTreeMap, BTreeSet};

use super::post_transform::{
    Labels, PostTransform, arg_max, both_classes, classified, features, numbers, rows, scores, strings,
};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::tensor::{DType, cast};

const TREE_ENSEMBLE: OpDef = OpDef {
    name: "TreeEnsemble",
    domain: OpDomain::Ml,
    since: 5,
    inputs: Arity::exactly(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer: infer_regression,
    eval: ensemble,
    quant: QuantRule::Keep { why: "has no integer form" },
};

pub(super) const OPS: &[OpDef] = &[
    TREE_ENSEMBLE,
    OpDef {
        name: "TreeEnsembleClassifier",
        since: 1,
        outputs: Arity::range(1, 2),
        infer: infer_classifier,
        eval: classify,
        ..TREE_ENSEMBLE
    },
    OpDef { name: "TreeEnsembleRegressor", since: 1, eval: regress, ..TREE_ENSEMBLE },
];

fn infer_regression(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = ctx.attrs.int("n_targets").unwrap_or(1);
    let targets = usize::try_from(n).map_or(Dim::Unknown, Dim::Known);
    let dtype = if ctx.op_type == "TreeEnsemble" { ctx.dtype(0) } else { Some(DType::F32) };
    ctx.set_tensor(0, dtype, Some(vec![rows(ctx.shape(0)), targets]));
    Ok(())
}

fn infer_classifier(ctx: &mut InferCtx<'_>) -> Result<()> {
    let labels = Labels::of(ctx.attrs, "classlabels_int64s", "classlabels_strings");
    let n = rows(ctx.shape(0));
    ctx.set_tensor(0, Some(labels.dtype()), Some(vec![n.clone()]));
    let classes = if labels.len() > 1 { Dim::Known(labels.len()) } else { Dim::Unknown };
    ctx.set_tensor(1, Some(DType::F32), Some(vec![n, classes]));
    Ok(())
}

/// Which branch a node takes.
#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Leq(f64),
    Lt(f64),
    Gte(f64),
    Gt(f64),
    Eq(f64),
    Neq(f64),
    Member(Vec<f64>),
}

#[derive(Debug, Clone)]
enum Node {
    Branch {
        rule: Rule,
        feature: usize,
        missing: bool,
        yes: usize,
        no: usize,
    },
    /// Votes for targets.
    Leaf(Vec<(usize, f64)>),
}

/// Trees in one list of nodes.
struct Forest {
    nodes: Vec<Node>,
    roots: Vec<usize>,
    n_targets: usize,
}

impl Forest {
    /// Checks that every number leads somewhere.
    fn checked(self, n_features: usize) -> Result<Self> {
        let n = self.nodes.len();
        for (i, node) in self.nodes.iter().enumerate() {
            match node {
                Node::Branch { feature, yes, no, .. } => {
                    ensure!(*feature < n_features, "tree node {i} asks for feature {feature} of {n_features}");
                    ensure!(*yes < n && *no < n, "tree node {i} leads to a node that is not there");
                }
                Node::Leaf(votes) => {
                    for (t, _) in votes {
                        ensure!(*t < self.n_targets, "tree leaf {i} votes for target {t} of {}", self.n_targets);
                    }
                }
            }
        }
        ensure!(self.roots.iter().all(|&r| r < n), "a tree's root is not there");
        Ok(self)
    }

    /// The leaf of each tree that a row comes to.
    fn leaves<'a>(&'a self, x: &'a [f64]) -> impl Iterator<Item = Result<&'a [(usize, f64)]>> {
        self.roots.iter().map(move |&root| {
            let mut at = root;
            // A path that is longer than there are nodes goes in a circle.
            for _ in 0..=self.nodes.len() {
                match &self.nodes[at] {
                    Node::Leaf(votes) => return Ok(votes.as_slice()),
                    Node::Branch { rule, feature, missing, yes, no } => {
                        let v = x[*feature];
                        let holds = match rule {
                            Rule::Leq(t) => v <= *t,
                            Rule::Lt(t) => v < *t,
                            Rule::Gte(t) => v >= *t,
                            Rule::Gt(t) => v > *t,
                            Rule::Eq(t) => v == *t,
                            Rule::Neq(t) => v != *t && !v.is_nan(),
                            Rule::Member(set) => set.contains(&v),
                        };
                        at = if holds || (*missing && v.is_nan()) { *yes } else { *no };
                    }
                }
            }
            bail!("a tree goes in a circle")
        })
    }

    /// The targets of a row, votes combined as `how` says; and whether anything voted for each.
    fn predict(&self, x: &[f64], how: Aggregate) -> Result<Vec<f64>> {
        let mut out: Vec<Option<f64>> = vec![None; self.n_targets];
        for votes in self.leaves(x) {
            for &(t, w) in votes? {
                out[t] = Some(match (how, out[t]) {
                    (_, None) => w,
                    (Aggregate::Sum | Aggregate::Average, Some(v)) => v + w,
                    (Aggregate::Min, Some(v)) => v.min(w),
                    (Aggregate::Max, Some(v)) => v.max(w),
                });
            }
        }
        let n = if how == Aggregate::Average { self.roots.len() as f64 } else { 1.0 };
        Ok(out.into_iter().map(|v| v.unwrap_or(0.0) / n).collect())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

fn ints<'a>(attrs: &'a Attrs, name: &str) -> Result<&'a [i64]> {
    attrs.ints(name).ok_or_else(|| anyhow!("attribute \"{name}\" is missing"))
}

fn index(n: i64, what: &str) -> Result<usize> {
    usize::try_from(n).map_err(|_| anyhow!("attribute \"{what}\" has the entry {n}"))
}

fn same_length(n: usize, what: &str, expected: usize) -> Result<()> {
    ensure!(n == expected, "attribute \"{what}\" has {n} entries, expected {expected}");
    Ok(())
}

/// The trees of `TreeEnsemble`: inner nodes and leaves in lists of their own.
fn forest_5(attrs: &Attrs, n_targets: usize) -> Result<Forest> {
    let modes = attrs.tensor("nodes_modes").context("attribute \"nodes_modes\" is missing")?.get()?.to_i64s()?;
    let n = modes.len();
    let splits = numbers(attrs, "nodes_splits")?.context("attribute \"nodes_splits\" is missing")?;
    let weights = numbers(attrs, "leaf_weights")?.context("attribute \"leaf_weights\" is missing")?;
    let targets = ints(attrs, "leaf_targetids")?;
    same_length(splits.len(), "nodes_splits", n)?;
    same_length(targets.len(), "leaf_targetids", weights.len())?;
    let list = |name: &str| -> Result<&[i64]> {
        let v = ints(attrs, name)?;
        same_length(v.len(), name, n)?;
        Ok(v)
    };
    let (feature, yes, no) = (list("nodes_featureids")?, list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
    let (yes_leaf, no_leaf) = (list("nodes_trueleafs")?, list("nodes_falseleafs")?);
    let missing = attrs.ints("nodes_missing_value_tracks_true").unwrap_or_default();
    let members = numbers(attrs, "membership_values")?.unwrap_or_default();
    // Splitting nothing would give one empty set.
    let mut sets = if members.is_empty() { None } else { Some(members.split(|v| v.is_nan())) }.into_iter().flatten();
    let mut nodes = Vec::with_capacity(n + weights.len());
    // Leaves stand behind the inner nodes.
    let place =
        |id: i64, is_leaf: i64, what: &str| Ok::<_, anyhow::Error>(index(id, what)? + if is_leaf != 0 { n } else { 0 });
    for (i, &t) in splits.iter().enumerate() {
        let rule = match modes[i] {
            0 => Rule::Leq(t),
            1 => Rule::Lt(t),
            2 => Rule::Gte(t),
            3 => Rule::Gt(t),
            4 => Rule::Eq(t),
            5 => Rule::Neq(t),
            6 => Rule::Member(sets.next().context("attribute \"membership_values\" has too few sets")?.to_vec()),
            m => bail!("attribute \"nodes_modes\" has the entry {m}, expected 0 to 6"),
        };
        nodes.push(Node::Branch {
            rule,
            feature: index(feature[i], "nodes_featureids")?,
            missing: missing.get(i).is_some_and(|&m| m != 0),
            yes: place(yes[i], yes_leaf[i], "nodes_truenodeids")?,
            no: place(no[i], no_leaf[i], "nodes_falsenodeids")?,
        });
    }
    for (&t, &w) in targets.iter().zip(&weights) {
        nodes.push(Node::Leaf(vec![(index(t, "leaf_targetids")?, w)]));
    }
    let roots = ints(attrs, "tree_roots")?.iter().map(|&r| index(r, "tree_roots")).collect::<Result<_>>()?;
    Ok(Forest { nodes, roots, n_targets })
}

/// The trees of the older operators: nodes by tree and number, votes in lists named `prefix`.
fn forest_1(attrs: &Attrs, prefix: &str, n_targets: usize) -> Result<Forest> {
    let (trees, ids) = (ints(attrs, "nodes_treeids")?, ints(attrs, "nodes_nodeids")?);
    let n = trees.len();
    let modes = strings(attrs, "nodes_modes").context("attribute \"nodes_modes\" is missing")?;
    let values = numbers(attrs, "nodes_values")?.context("attribute \"nodes_values\" is missing")?;
    same_length(ids.len(), "nodes_nodeids", n)?;
    same_length(modes.len(), "nodes_modes", n)?;
    same_length(values.len(), "nodes_values", n)?;
    let list = |name: &str| -> Result<&[i64]> {
        let v = ints(attrs, name)?;
        same_length(v.len(), name, n)?;
        Ok(v)
    };
    let (feature, yes, no) = (list("nodes_featureids")?, list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
    let missing = attrs.ints("nodes_missing_value_tracks_true").unwrap_or_default();
    let place: BTreeMap<(i64, i64), usize> = trees.iter().copied().zip(ids.iter().copied()).zip(0..).collect();
    let name = |part: &str| format!("{prefix}_{part}");
    let (vote_trees, vote_nodes) = (ints(attrs, &name("treeids"))?, ints(attrs, &name("nodeids"))?);
    let targets = ints(attrs, &name("ids"))?;
    let weights =
        numbers(attrs, &name("weights"))?.with_context(|| format!("attribute \"{prefix}_weights\" is missing"))?;
    for (len, part) in [(vote_nodes.len(), "nodeids"), (targets.len(), "ids"), (weights.len(), "weights")] {
        same_length(len, &name(part), vote_trees.len())?;
    }
    let mut votes: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
    for (i, &weight) in weights.iter().enumerate() {
        let key = (vote_trees[i], vote_nodes[i]);
        let at = place
            .get(&key)
            .with_context(|| format!("a vote belongs to node {} of tree {}, which is not there", key.1, key.0))?;
        votes.entry(*at).or_default().push((index(targets[i], &name("ids"))?, weight));
    }
    let child = |tree: i64, id: i64| {
        place.get(&(tree, id)).copied().with_context(|| format!("node {id} of tree {tree} is not there"))
    };
    let mut nodes = Vec::with_capacity(n);
    for (i, &t) in values.iter().enumerate() {
        let rule = match modes[i].as_str() {
            "LEAF" => {
                nodes.push(Node::Leaf(votes.remove(&i).unwrap_or_default()));
                continue;
            }
            "BRANCH_LEQ" => Rule::Leq(t),
            "BRANCH_LT" => Rule::Lt(t),
            "BRANCH_GTE" => Rule::Gte(t),
            "BRANCH_GT" => Rule::Gt(t),
            "BRANCH_EQ" => Rule::Eq(t),
            "BRANCH_NEQ" => Rule::Neq(t),
            m => bail!("attribute \"nodes_modes\" has the entry \"{m}\", which the specification does not define"),
        };
        nodes.push(Node::Branch {
            rule,
            feature: index(feature[i], "nodes_featureids")?,
            missing: missing.get(i).is_some_and(|&m| m != 0),
            yes: child(trees[i], yes[i])?,
            no: child(trees[i], no[i])?,
        });
    }
    // The first node of each tree is its root.
    let mut seen = BTreeSet::new();
    let roots = (0..n).filter(|&i| seen.insert(trees[i])).collect();
    Ok(Forest { nodes, roots, n_targets })
}

fn n_targets(call: &Call<'_>) -> Result<usize> {
    let n = call.int("n_targets", 1);
    usize::try_from(n).ok().filter(|&n| n < 1 << 24).ok_or_else(|| anyhow!("attribute \"n_targets\" is {n}"))
}

fn ensemble(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, n, f) = features(call)?;
    let forest = forest_5(call.attrs, n_targets(call)?)?.checked(f)?;
    let how = match call.int("aggregate_function", 1) {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        a => bail!("attribute \"aggregate_function\" is {a}, expected 0 to 3"),
    };
    let transform = PostTransform::of(call.attrs)?;
    let mut out = Vec::with_capacity(n * forest.n_targets);
    for i in 0..n {
        let mut row = forest.predict(&x[i * f..(i + 1) * f], how)?;
        transform.apply(&mut row);
        out.append(&mut row);
    }
    Ok(cast::from_f64s(call.input(0)?.dtype(), &[n, forest.n_targets], out)?.into())
}

/// Adds base values to a row: one for all, or one for each.
fn add_base(row: &mut [f64], base: Option<&[f64]>) -> Result<()> {
    match base {
        None | Some([]) => {}
        Some([b]) => row.iter_mut().for_each(|x| *x += b),
        Some(b) => {
            same_length(b.len(), "base_values", row.len())?;
            row.iter_mut().zip(b).for_each(|(x, b)| *x += b);
        }
    }
    Ok(())
}

fn regress(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, n, f) = features(call)?;
    let forest = forest_1(call.attrs, "target", n_targets(call)?)?.checked(f)?;
    let how = match call.str("aggregate_function", "SUM") {
        "AVERAGE" => Aggregate::Average,
        "SUM" => Aggregate::Sum,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        a => bail!("attribute \"aggregate_function\" is \"{a}\", expected AVERAGE, SUM, MIN or MAX"),
    };
    let transform = PostTransform::of(call.attrs)?;
    let base = numbers(call.attrs, "base_values")?;
    let mut out = Vec::with_capacity(n);
    for i in 0..n {
        let mut row = forest.predict(&x[i * f..(i + 1) * f], how)?;
        add_base(&mut row, base.as_deref())?;
        transform.apply(&mut row);
        out.push(row);
    }
    Ok(scores(out)?.into())
}

fn classify(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let (x, n, f) = features(call)?;
    let labels = Labels::of(call.attrs, "classlabels_int64s", "classlabels_strings");
    let transform = PostTransform::of(call.attrs)?;
    let base = numbers(call.attrs, "base_values")?;
    let ids: BTreeSet<i64> = ints(call.attrs, "class_ids")?.iter().copied().collect();
    let n_classes = labels.len().max(1);
    let forest = forest_1(call.attrs, "class", n_classes)?.checked(f)?;
    // Two classes of which only one gets votes: they are the score of the second one.
    let one_score = n_classes <= 2 && ids.len() == 1;
    let all_positive = numbers(call.attrs, "class_weights")?.is_none_or(|w| w.iter().all(|&w| w >= 0.0));
    let (mut classes, mut out) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for i in 0..n {
        let mut row = forest.predict(&x[i * f..(i + 1) * f], Aggregate::Sum)?;
        if one_score {
            let voted = ids.first().and_then(|&t| usize::try_from(t).ok()).unwrap_or(0).min(row.len() - 1);
            let base = base.as_deref().and_then(|b| b.get(voted).or(b.first())).copied().unwrap_or(0.0);
            let score = row[voted] + base;
            classes.push(usize::from(score > if all_positive { 0.5 } else { 0.0 }));
            out.push(both_classes(score, all_positive, transform));
        } else {
            add_base(&mut row, base.as_deref())?;
            classes.push(arg_max(&row));
            transform.apply(&mut row);
            out.push(row);
        }
    }
    let labels = labels.tensor(&classes);
    Ok(classified(call, labels, scores(out)?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::ir::{Attr, TensorRef};
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn x() -> Tensor {
        Tensor::of(&[3, 1], vec![1.0f32, 3.0, f32::NAN])
    }

    fn modes(v: &[&str]) -> Attr {
        Attr::Strings(v.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect())
    }

    /// One tree: feature 0 at most 2 gives node 1, else node 2.
    fn case(op: &str, prefix: &str, ids: [i64; 2], weights: [f32; 2]) -> Case {
        let name = |s: &str| format!("{prefix}_{s}");
        Case::new(op, 3)
            .domain("ai.onnx.ml")
            .input(x())
            .attr("nodes_treeids", vec![0i64; 3])
            .attr("nodes_nodeids", vec![0i64, 1, 2])
            .attr("nodes_featureids", vec![0i64; 3])
            .attr("nodes_values", vec![2.0f32, 0.0, 0.0])
            .attr("nodes_modes", modes(&["BRANCH_LEQ", "LEAF", "LEAF"]))
            .attr("nodes_truenodeids", vec![1i64, 0, 0])
            .attr("nodes_falsenodeids", vec![2i64, 0, 0])
            .attr(&name("treeids"), vec![0i64; 2])
            .attr(&name("nodeids"), vec![1i64, 2])
            .attr(&name("ids"), ids.to_vec())
            .attr(&name("weights"), weights.to_vec())
    }

    #[test]
    fn trees_decide() {
        let reg = || case("TreeEnsembleRegressor", "target", [0, 0], [10.0, 20.0]);
        let y = |v: &[f32]| [Tensor::of(&[3, 1], v.to_vec())];
        reg().expect(&y(&[10.0, 20.0, 20.0]));
        reg().attr("nodes_missing_value_tracks_true", vec![1i64, 0, 0]).expect(&y(&[10.0, 20.0, 10.0]));
        reg().attr("base_values", vec![1.0f32]).expect(&y(&[11.0, 21.0, 21.0]));
        reg().attr("nodes_truenodeids", vec![7i64, 0, 0]).fails("node 7 of tree 0 is not there");
        reg().attr("nodes_truenodeids", vec![0i64, 0, 0]).fails("in a circle");
        reg().attr("nodes_featureids", vec![5i64, 0, 0]).fails("feature 5 of 1");
        reg().attr("nodes_values", vec![2.0f32]).fails("\"nodes_values\" has 1 entries, expected 3");
        case("TreeEnsembleClassifier", "class", [0, 1], [1.0, 1.0])
            .attr("classlabels_int64s", vec![5i64, 6])
            .outputs(2)
            .expect(&[Tensor::vector(vec![5i64, 6, 6]), Tensor::of(&[3, 2], vec![1.0f32, 0.0, 0.0, 1.0, 0.0, 1.0])]);
        case("TreeEnsembleClassifier", "class", [1, 1], [0.25, 0.75])
            .attr("classlabels_int64s", vec![5i64, 6])
            .outputs(2)
            .expect(&[
                Tensor::vector(vec![5i64, 6, 6]),
                Tensor::of(&[3, 2], vec![0.75f32, 0.25, 0.25, 0.75, 0.25, 0.75]),
            ]);
    }

    #[test]
    fn leaves_in_their_own_lists() {
        let t = |v: Vec<f32>| TensorRef::from(Tensor::vector(v));
        let case = |mode: u8| {
            Case::new("TreeEnsemble", 5)
                .domain("ai.onnx.ml")
                .input(x())
                .attr("nodes_modes", TensorRef::from(Tensor::vector(vec![mode])))
                .attr("nodes_splits", t(vec![2.0]))
                .attr("nodes_featureids", vec![0i64])
                .attr("nodes_truenodeids", vec![0i64])
                .attr("nodes_falsenodeids", vec![1i64])
                .attr("nodes_trueleafs", vec![1i64])
                .attr("nodes_falseleafs", vec![1i64])
                .attr("leaf_weights", t(vec![10.0, 20.0]))
                .attr("leaf_targetids", vec![0i64, 1])
                .attr("n_targets", 2)
                .attr("tree_roots", vec![0i64])
        };
        let y = |v: &[f32]| [Tensor::of(&[3, 2], v.to_vec())];
        case(0).expect(&y(&[10.0, 0.0, 0.0, 20.0, 0.0, 20.0]));
        case(6).attr("membership_values", t(vec![3.0, f32::NAN])).expect(&y(&[0.0, 20.0, 10.0, 0.0, 0.0, 20.0]));
        case(6).fails("too few sets");
        case(9).fails("expected 0 to 6");
    }
}
