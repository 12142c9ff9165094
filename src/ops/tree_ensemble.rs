//! `TreeEnsemble`, `TreeEnsembleClassifier`, `TreeEnsembleRegressor` — sums of what decision trees give.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html> (`ai.onnx.ml` 5; the two older forms 1, 3, 5)
//! Input: X `[N, C]` of numbers. Outputs: `[N, targets]`; or the label of each sample and its scores.
//! A missing value (NaN) goes where `nodes_missing_value_tracks_true` says. Modes compare the feature with the node's
//! value; `BRANCH_MEMBER` asks whether it is in the node's set.
//! Errors: lists of different lengths, a node that does not exist, a walk that does not end.

use std::collections::{BTreeMap, HashMap};

use super::ml::{
    self, Labels, ML, PostTransform, SecondScore, best, infer_classifier, infer_regressor, ints, rows, strings, two_scores,
};
use super::{Arity, Call, InferCtx, Item, OpDef};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::{Attrs, Dim};
use crate::tensor::cast::cast;
use crate::tensor::{Tensor, count};

pub(super) const OPS: &[OpDef] = &[
    OpDef { name: "TreeEnsemble", since: 5, infer, eval, ..ML },
    OpDef {
        name: "TreeEnsembleClassifier",
        outputs: Arity::range(1, 2),
        infer: |ctx| infer_classifier(ctx, "classlabels_int64s"),
        eval: classify,
        ..ML
    },
    OpDef {
        name: "TreeEnsembleRegressor",
        infer: |ctx| infer_regressor(ctx, Some(ctx.attrs.int("n_targets").unwrap_or(1))),
        eval: regress,
        ..ML
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
    Member,
}

impl Mode {
    const ALL: [(Mode, &'static str); 7] = [
        (Mode::Leq, "BRANCH_LEQ"),
        (Mode::Lt, "BRANCH_LT"),
        (Mode::Gte, "BRANCH_GTE"),
        (Mode::Gt, "BRANCH_GT"),
        (Mode::Eq, "BRANCH_EQ"),
        (Mode::Neq, "BRANCH_NEQ"),
        (Mode::Member, "BRANCH_MEMBER"),
    ];
}

/// Where a branch leads.
#[derive(Debug, Clone, Copy)]
enum Next {
    Node(usize),
    Leaf(usize),
}

struct Node {
    mode: Mode,
    feature: usize,
    value: f64,
    members: Vec<f64>,
    missing_is_true: bool,
    yes: Next,
    no: Next,
}

/// How the trees' values are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

impl Aggregate {
    const ALL: [(Aggregate, &'static str); 4] =
        [(Aggregate::Average, "AVERAGE"), (Aggregate::Sum, "SUM"), (Aggregate::Min, "MIN"), (Aggregate::Max, "MAX")];
}

struct Forest {
    roots: Vec<Next>,
    nodes: Vec<Node>,
    /// For each leaf: target and value.
    leaves: Vec<Vec<(usize, f64)>>,
    n_targets: usize,
    aggregate: Aggregate,
}

impl Forest {
    /// The leaf of a tree that a sample reaches.
    fn leaf(&self, root: Next, x: &[f64]) -> Result<usize> {
        let mut at = root;
        // A tree has no cycle: as many steps as nodes are enough.
        for _ in 0..=self.nodes.len() {
            match at {
                Next::Leaf(l) => return Ok(l),
                Next::Node(n) => {
                    let node = &self.nodes[n];
                    let x = *x.get(node.feature).ok_or_else(|| {
                        anyhow!("a node asks for feature {}, input 0 has {} columns", node.feature, x.len())
                    })?;
                    let holds = match node.mode {
                        Mode::Leq => x <= node.value,
                        Mode::Lt => x < node.value,
                        Mode::Gte => x >= node.value,
                        Mode::Gt => x > node.value,
                        Mode::Eq => x == node.value,
                        Mode::Neq => x != node.value,
                        Mode::Member => node.members.contains(&x),
                    };
                    at = if holds || node.missing_is_true && x.is_nan() { node.yes } else { node.no };
                }
            }
        }
        bail!("a walk from the root of a tree does not end")
    }

    /// Values of the targets for one sample; `None` for a target that no leaf speaks of.
    fn eval(&self, x: &[f64]) -> Result<Vec<Option<f64>>> {
        let mut out: Vec<Option<f64>> = vec![None; self.n_targets];
        for &root in &self.roots {
            for &(target, value) in &self.leaves[self.leaf(root, x)?] {
                let slot = &mut out[target];
                *slot = Some(match (*slot, self.aggregate) {
                    (None, _) => value,
                    (Some(old), Aggregate::Sum | Aggregate::Average) => old + value,
                    (Some(old), Aggregate::Min) => old.min(value),
                    (Some(old), Aggregate::Max) => old.max(value),
                });
            }
        }
        if self.aggregate == Aggregate::Average && !self.roots.is_empty() {
            let n = self.roots.len() as f64;
            out.iter_mut().flatten().for_each(|v| *v /= n);
        }
        Ok(out)
    }

    fn check(self) -> Result<Self> {
        let exists = |n: &Next| match n {
            Next::Node(i) => *i < self.nodes.len(),
            Next::Leaf(i) => *i < self.leaves.len(),
        };
        let all = self.nodes.iter().flat_map(|n| [&n.yes, &n.no]).chain(&self.roots);
        ensure!(all.into_iter().all(exists), "a branch leads to a node that does not exist");
        let n = self.n_targets;
        for (t, _) in self.leaves.iter().flatten() {
            ensure!(*t < n, "a leaf speaks of target {t}, there are {n}");
        }
        Ok(self)
    }

    /// The form of version 5.
    fn of(attrs: &Attrs) -> Result<Self> {
        let list = |name: &str| attrs.ints(name).ok_or_else(|| anyhow!("attribute \"{name}\" is missing or no list of integers"));
        let tensor = |name: &str| -> Result<Vec<f64>> {
            attrs.tensor(name).ok_or_else(|| anyhow!("attribute \"{name}\" is missing or no tensor"))?.get()?.to_f64s()
        };
        let (modes, splits, features) = (tensor("nodes_modes")?, tensor("nodes_splits")?, list("nodes_featureids")?);
        let (yes, yes_leaf) = (list("nodes_truenodeids")?, list("nodes_trueleafs")?);
        let (no, no_leaf) = (list("nodes_falsenodeids")?, list("nodes_falseleafs")?);
        let (targets, weights) = (list("leaf_targetids")?, tensor("leaf_weights")?);
        let missing = ints(attrs, "nodes_missing_value_tracks_true");
        let n = modes.len();
        for (name, len) in [
            ("nodes_splits", splits.len()),
            ("nodes_featureids", features.len()),
            ("nodes_truenodeids", yes.len()),
            ("nodes_trueleafs", yes_leaf.len()),
            ("nodes_falsenodeids", no.len()),
            ("nodes_falseleafs", no_leaf.len()),
        ] {
            ensure!(len == n, "attribute \"{name}\" has {len} elements, expected {n}");
        }
        ensure!(targets.len() == weights.len(), "{} leaves have a target and {} a weight", targets.len(), weights.len());
        let members = match attrs.tensor("membership_values") {
            Some(t) => t.get()?.to_f64s()?,
            None => Vec::new(),
        };
        // The sets of member nodes lie one after another, NaN between them.
        let mut sets = members.split(|v| v.is_nan());
        let next = |id: i64, is_leaf: i64| {
            let id = index(id)?;
            Ok::<_, anyhow::Error>(if is_leaf != 0 { Next::Leaf(id) } else { Next::Node(id) })
        };
        let mut nodes = Vec::with_capacity(n);
        for i in 0..n {
            let mode = Mode::ALL.iter().map(|m| m.0).nth(modes[i] as usize);
            let mode = mode.ok_or_else(|| anyhow!("attribute \"nodes_modes\" has {}, expected 0 to 6", modes[i]))?;
            nodes.push(Node {
                mode,
                feature: index(features[i])?,
                value: splits[i],
                members: if mode == Mode::Member { sets.next().unwrap_or_default().to_vec() } else { Vec::new() },
                missing_is_true: missing.get(i).is_some_and(|&m| m != 0),
                yes: next(yes[i], yes_leaf[i])?,
                no: next(no[i], no_leaf[i])?,
            });
        }
        let leaves = targets
            .iter()
            .zip(&weights)
            .map(|(&t, &w)| Ok(vec![(index(t)?, w)]))
            .collect::<Result<Vec<_>>>()?;
        // A tree that is one leaf has a node whose branches are that leaf.
        let roots = list("tree_roots")?.iter().map(|&r| Ok(Next::Node(index(r)?))).collect::<Result<_>>()?;
        let code = attrs.int("aggregate_function").unwrap_or(1);
        let aggregate = usize::try_from(code).ok().and_then(|c| Aggregate::ALL.get(c)).map(|a| a.0);
        let aggregate = aggregate.ok_or_else(|| anyhow!("attribute \"aggregate_function\" is {code}, expected 0 to 3"))?;
        let n_targets = index(attrs.int("n_targets").unwrap_or(1))?;
        Forest { roots, nodes, leaves, n_targets, aggregate }.check()
    }

    /// The form of the older operators; `prefix` is `target` or `class`.
    fn of_lists(attrs: &Attrs, prefix: &str, n_targets: usize, aggregate: Aggregate) -> Result<Self> {
        let (trees, ids) = (ints(attrs, "nodes_treeids"), ints(attrs, "nodes_nodeids"));
        let (features, values) = (ints(attrs, "nodes_featureids"), ml::floats(attrs, "nodes_values")?);
        let (yes, no) = (ints(attrs, "nodes_truenodeids"), ints(attrs, "nodes_falsenodeids"));
        let modes = strings(attrs, "nodes_modes")?.unwrap_or_default();
        let missing = ints(attrs, "nodes_missing_value_tracks_true");
        let n = modes.len();
        for (name, len) in [
            ("nodes_treeids", trees.len()),
            ("nodes_nodeids", ids.len()),
            ("nodes_featureids", features.len()),
            ("nodes_values", values.len()),
            ("nodes_truenodeids", yes.len()),
            ("nodes_falsenodeids", no.len()),
        ] {
            ensure!(len == n, "attribute \"{name}\" has {len} elements, expected {n}");
        }
        let at: HashMap<(i64, i64), usize> = (0..n).map(|i| ((trees[i], ids[i]), i)).collect();
        let mut leaves: Vec<Vec<(usize, f64)>> = vec![Vec::new(); n];
        let list = |suffix: &str| ints(attrs, &format!("{prefix}_{suffix}")).to_vec();
        let (leaf_trees, leaf_nodes, leaf_ids) = (list("treeids"), list("nodeids"), list("ids"));
        let weights = ml::floats(attrs, &format!("{prefix}_weights"))?;
        ensure!(
            leaf_trees.len() == weights.len() && leaf_nodes.len() == weights.len() && leaf_ids.len() == weights.len(),
            "the lists {prefix}_treeids, {prefix}_nodeids, {prefix}_ids and {prefix}_weights differ in length"
        );
        for i in 0..weights.len() {
            let leaf = at.get(&(leaf_trees[i], leaf_nodes[i])).ok_or_else(|| {
                anyhow!("a leaf is node {} of tree {}, which does not exist", leaf_nodes[i], leaf_trees[i])
            })?;
            leaves[*leaf].push((index(leaf_ids[i])?, weights[i]));
        }
        let is_leaf: Vec<bool> = modes.iter().map(|m| m == "LEAF").collect();
        let place = |tree: i64, id: i64| {
            let i = at.get(&(tree, id)).copied();
            let i = i.ok_or_else(|| anyhow!("a branch leads to node {id} of tree {tree}, which does not exist"))?;
            Ok::<_, anyhow::Error>(if is_leaf[i] { Next::Leaf(i) } else { Next::Node(i) })
        };
        let mut nodes = Vec::with_capacity(n);
        let mut roots = BTreeMap::new();
        let mut order = Vec::new();
        for i in 0..n {
            if roots.insert(trees[i], ()).is_none() {
                // The first node of a tree is its root.
                order.push(if is_leaf[i] { Next::Leaf(i) } else { Next::Node(i) });
            }
            let mode = Mode::ALL.iter().find(|m| m.1 == modes[i]).map(|m| m.0);
            let Some(mode) = mode else {
                ensure!(is_leaf[i], "attribute \"nodes_modes\" has \"{}\", which names no mode", modes[i]);
                let here = Next::Leaf(i);
                nodes.push(Node { mode: Mode::Leq, feature: 0, value: 0.0, members: Vec::new(), missing_is_true: false, yes: here, no: here });
                continue;
            };
            nodes.push(Node {
                mode,
                feature: index(features[i])?,
                value: values[i],
                members: Vec::new(),
                missing_is_true: missing.get(i).is_some_and(|&m| m != 0),
                yes: place(trees[i], yes[i])?,
                no: place(trees[i], no[i])?,
            });
        }
        Forest { roots: order, nodes, leaves, n_targets, aggregate }.check()
    }
}

fn index(i: i64) -> Result<usize> {
    match usize::try_from(i) {
        Ok(i) if i < 1 << 32 => Ok(i),
        _ => bail!("an index of the ensemble is {i}"),
    }
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = ctx.shape(0).and_then(<[Dim]>::first).cloned().unwrap_or(Dim::Unknown);
    let targets = ctx.attrs.int("n_targets").unwrap_or(1);
    ctx.set_tensor(0, ctx.dtype(0), Some(vec![n, usize::try_from(targets).map_or(Dim::Unknown, Dim::Known)]));
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::numbered(call.int("post_transform", 0))?;
    let x = call.input(0)?;
    let (n, c, v) = rows(x)?;
    let forest = call.shared(|| Forest::of(call.attrs))?;
    let mut out = Vec::with_capacity(count(&[n, forest.n_targets])?);
    for i in 0..n {
        let mut row: Vec<f64> = forest.eval(&v[i * c..(i + 1) * c])?.into_iter().map(|v| v.unwrap_or(0.0)).collect();
        transform.apply(&mut row);
        out.extend(row);
    }
    Ok(cast(&Tensor::new(&[n, forest.n_targets], out)?, x.dtype(), true)?.into())
}

fn regress(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let (n, c, v) = rows(call.input(0)?)?;
    let name = call.str("aggregate_function", "SUM");
    let aggregate = Aggregate::ALL.iter().find(|a| a.1 == name).map(|a| a.0);
    let aggregate = aggregate.ok_or_else(|| anyhow!("attribute \"aggregate_function\" is \"{name}\""))?;
    let n_targets = index(call.int("n_targets", 1))?;
    let base = base_values(call.attrs, n_targets)?;
    let forest = call.shared(|| Forest::of_lists(call.attrs, "target", n_targets, aggregate))?;
    let mut out = Vec::with_capacity(count(&[n, n_targets])?);
    for i in 0..n {
        let values = forest.eval(&v[i * c..(i + 1) * c])?;
        let mut row: Vec<f64> = values.iter().enumerate().map(|(j, v)| v.unwrap_or(0.0) + base.get(j).unwrap_or(&0.0)).collect();
        transform.apply(&mut row);
        out.extend(row);
    }
    Ok(ml::scores(n, &out)?.into())
}

fn base_values(attrs: &Attrs, n: usize) -> Result<Vec<f64>> {
    let base = ml::floats(attrs, "base_values")?;
    ensure!(base.len() <= n.max(1), "attribute \"base_values\" has {} elements, expected {n}", base.len());
    Ok(base)
}

fn classify(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let transform = PostTransform::of(call.attrs)?;
    let (n, c, v) = rows(call.input(0)?)?;
    let labels = Labels::of(call.attrs, "classlabels_int64s", 0)?;
    let n_classes = labels.len();
    ensure!(n_classes > 0, "has no class labels");
    let base = base_values(call.attrs, n_classes)?;
    let forest = call.shared(|| Forest::of_lists(call.attrs, "class", n_classes, Aggregate::Sum))?;
    let ids = ints(call.attrs, "class_ids");
    // Two classes, and all leaves speak of the first: its score is that of the second class.
    let is_binary = n_classes == 2 && ids.iter().all(|i| *i == 0);
    // All leaves speak of the second: the first has no score, and the same limit decides.
    let is_second = n_classes == 2 && !ids.is_empty() && ids.iter().all(|i| *i == 1);
    let is_probability = ml::floats(call.attrs, "class_weights")?.iter().all(|&w| w >= 0.0);
    let (mut classes, mut out) = (Vec::new(), Vec::new());
    for i in 0..n {
        let values = forest.eval(&v[i * c..(i + 1) * c])?;
        let (limit, second) =
            if is_probability { (0.5, SecondScore::Complement) } else { (0.0, SecondScore::Negation) };
        if is_binary {
            let base = base.last().copied().unwrap_or(0.0);
            let score = values[0].unwrap_or(0.0) + base;
            classes.push(usize::from(score > limit));
            out.extend(two_scores(score, transform, second));
            continue;
        }
        let mut row: Vec<f64> = values.iter().enumerate().map(|(j, v)| v.unwrap_or(0.0) + base.get(j).unwrap_or(&0.0)).collect();
        classes.push(if is_second { usize::from(row[1] > limit) } else { best(&row) });
        transform.apply(&mut row);
        out.extend(row);
    }
    Ok(vec![labels.pick(&classes)?.into(), ml::scores(n, &out)?.into()])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::ir::Attr;
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn stump(op: &str) -> Case {
        let words = |v: &[&'static str]| Attr::Strings(v.iter().map(|s| Bytes::from_static(s.as_bytes())).collect());
        Case::new(op, 3)
            .domain("ai.onnx.ml")
            .input(Tensor::of(&[2, 1], vec![0.0f32, 2.0]))
            .attr("nodes_treeids", vec![0i64, 0, 0])
            .attr("nodes_nodeids", vec![0i64, 1, 2])
            .attr("nodes_featureids", vec![0i64, 0, 0])
            .attr("nodes_values", vec![1.0f32, 0.0, 0.0])
            .attr("nodes_modes", words(&["BRANCH_LEQ", "LEAF", "LEAF"]))
            .attr("nodes_truenodeids", vec![1i64, 0, 0])
            .attr("nodes_falsenodeids", vec![2i64, 0, 0])
    }

    #[test]
    fn a_regressor_adds_leaves_and_base() {
        stump("TreeEnsembleRegressor")
            .attr("target_treeids", vec![0i64, 0])
            .attr("target_nodeids", vec![1i64, 2])
            .attr("target_ids", vec![0i64, 0])
            .attr("target_weights", vec![5.0f32, 7.0])
            .attr("n_targets", 1i64)
            .attr("base_values", vec![0.5f32])
            .expect(&[Tensor::of(&[2, 1], vec![5.5f32, 7.5])]);
    }

    #[test]
    fn a_classifier_takes_the_class_with_most_votes() {
        stump("TreeEnsembleClassifier")
            .attr("class_treeids", vec![0i64, 0, 0])
            .attr("class_nodeids", vec![1i64, 2, 2])
            .attr("class_ids", vec![0i64, 1, 2])
            .attr("class_weights", vec![1.0f32, 1.0, 3.0])
            .attr("classlabels_int64s", vec![10i64, 11, 12])
            .outputs(2)
            .expect(&[
                Tensor::vector(vec![10i64, 12]),
                Tensor::of(&[2, 3], vec![1.0f32, 0.0, 0.0, 0.0, 1.0, 3.0]),
            ]);
    }

    #[test]
    fn a_leaf_that_is_no_node_is_an_error() {
        stump("TreeEnsembleRegressor")
            .attr("target_treeids", vec![0i64])
            .attr("target_nodeids", vec![9i64])
            .attr("target_ids", vec![0i64])
            .attr("target_weights", vec![5.0f32])
            .fails("does not exist");
    }
}
