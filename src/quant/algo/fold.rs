//! Where a positive factor for each channel of a tensor can go, on the side that makes the tensor, without a node more:
//! into a weight, a normalization's scale and shift, or a constant that is multiplied or added, looking through everything
//! that lets a factor pass: functions that are positively homogeneous, pooling, and movement of elements that keeps
//! channels together.

use super::channels::Axis;
use super::layout::Layout;
use crate::error::Result;
use crate::ir::{Dim, GraphId, Model, Names, NodeId, ValueId};
use crate::ops::{QuantRule, lookup};
use crate::quant::annotate::constant;
use crate::tensor::{DType, Tensor};

/// One constant that takes the factor.
#[derive(Debug, Clone, PartialEq)]
enum Edit {
    /// The output channels of a weight.
    Weight { node: NodeId, slot: usize, layout: Layout },
    /// A vector with one number for each channel.
    Vector { node: NodeId, slot: usize },
    /// A constant operand that is spread over the other one: multiplied by the factor, or divided.
    Operand { node: NodeId, slot: usize, axis: Axis, divide: bool },
}

/// The constants that take the factor for one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Fold {
    edits: Vec<Edit>,
    /// What scaled values must stay below: the upper bound of a `Clip` on the way.
    pub limit: Option<f32>,
    /// The values that are scaled and the axis of their channels, from where the constants are on to the tensor.
    pub scaled: Vec<(ValueId, Axis)>,
}

impl Fold {
    fn of(edit: Edit) -> Self {
        Fold { edits: vec![edit], limit: None, scaled: Vec::new() }
    }

    fn and(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }
}

/// Most nodes that are looked through.
const MOST_STEPS: usize = 12;

/// Where a factor for each of the `n` channels of a tensor can go. The tensor's own uses are the caller's affair; what
/// lies before it must have no other use.
#[must_use]
pub fn find(model: &Model, id: GraphId, v: ValueId, axis: Axis, n: usize) -> Option<Fold> {
    Search { model, id, n }.value(v, axis, MOST_STEPS)
}

struct Search<'a> {
    model: &'a Model,
    id: GraphId,
    n: usize,
}

impl Search<'_> {
    fn value(&self, v: ValueId, axis: Axis, steps: usize) -> Option<Fold> {
        let mut fold = self.made(v, axis, steps)?;
        fold.scaled.push((v, axis));
        Some(fold)
    }

    fn made(&self, v: ValueId, axis: Axis, steps: usize) -> Option<Fold> {
        let g = self.model.graph(self.id);
        let (n, out) = g.producer(v)?;
        if out != 0 || steps == 0 {
            return None;
        }
        let node = g.node(n);
        if let Some(fold) = self.weighted(n, axis) {
            return Some(fold);
        }
        let before = |slot: usize, axis: Axis| self.before(n, slot, axis, steps - 1);
        match node.op_type.as_str() {
            "Relu" | "LeakyRelu" | "PRelu" | "Identity" | "Dropout" => before(0, axis),
            "Clip" => {
                let limit = self.upper_bound(n)?;
                let fold = before(0, axis)?;
                let both = [limit, fold.limit].into_iter().flatten().reduce(f32::min);
                Some(Fold { limit: both, ..fold })
            }
            // What is beyond the image counts as nothing, or as what the pool leaves out.
            "MaxPool" | "GlobalMaxPool" if axis == Axis::Second => before(0, axis),
            // A mean does not tell how near to a bound the largest value is.
            "AveragePool" | "GlobalAveragePool" if axis == Axis::Second => {
                before(0, axis).filter(|f| f.limit.is_none())
            }
            "Flatten" | "Reshape" | "Squeeze" | "Transpose" => before(0, self.moved(n, axis)?),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" | "SkipLayerNormalization" => {
                self.normalization(n, axis, if node.op_type.starts_with("Skip") { 2 } else { 1 }, Axis::Last)
            }
            "BatchNormalization" | "InstanceNormalization" | "GroupNormalization" => {
                self.normalization(n, axis, 1, Axis::Second)
            }
            "Mul" | "Div" => self.product(n, axis, steps),
            "Add" | "Sub" => {
                let slot = (0..2).find(|&slot| self.is_operand(n, slot, axis))?;
                // A bound before the sum is none of the sum.
                let fold = before(1 - slot, axis).filter(|f| f.limit.is_none())?;
                Some(fold.and(Edit::Operand { node: n, slot, axis, divide: false }))
            }
            _ => None,
        }
    }

    /// An input of a node that nothing else uses.
    fn before(&self, n: NodeId, slot: usize, axis: Axis, steps: usize) -> Option<Fold> {
        let g = self.model.graph(self.id);
        let x = g.input(n, slot)?;
        if g.n_uses(x) != 1 || g.node_outputs(n).iter().skip(1).flatten().any(|&v| g.n_uses(v) > 0) {
            return None;
        }
        self.value(x, axis, steps)
    }

    fn stored(&self, n: NodeId, slot: usize) -> Option<&crate::ir::TensorRef> {
        let v = self.model.graph(self.id).input(n, slot)?;
        constant(self.model, self.id, v).filter(|t| t.dtype() == DType::F32)
    }

    /// The weight and the bias of a node that multiplies with one.
    fn weighted(&self, n: NodeId, axis: Axis) -> Option<Fold> {
        let g = self.model.graph(self.id);
        let node = g.node(n);
        let opset = self.model.opsets_in(self.id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let QuantRule::Weighted { weight, bias, axis: channels, .. } =
            lookup(&node.domain, &node.op_type, opset)?.quant
        else {
            return None;
        };
        let w = self.stored(n, weight)?;
        let layout = Layout::of(&node.attrs, channels, w.shape().len())?;
        let is_conv = matches!(layout, Layout::Conv { .. });
        let is_scaled = ["alpha", "beta"].iter().any(|a| node.attrs.float(a).is_some_and(|x| x != 1.0));
        if layout.n_outputs(w.shape()) != self.n || is_conv != (axis == Axis::Second) || is_scaled {
            return None;
        }
        let mut fold = Fold::of(Edit::Weight { node: n, slot: weight, layout });
        if let Some(slot) = bias.filter(|&slot| g.input(n, slot).is_some()) {
            self.stored(n, slot).filter(|t| t.len() == self.n && t.shape().last() == Some(&self.n))?;
            fold = fold.and(Edit::Vector { node: n, slot });
        }
        Some(fold)
    }

    /// The upper bound of a `Clip` at 0: `Some(None)` when there is none.
    fn upper_bound(&self, n: NodeId) -> Option<Option<f32>> {
        let g = self.model.graph(self.id);
        let bound = |slot: usize, name: &str| -> Option<f64> {
            match g.node(n).attrs.float(name) {
                Some(x) => Some(f64::from(x)),
                None => constant(self.model, self.id, g.input(n, slot)?)?.get().ok()?.to_f64().ok(),
            }
        };
        if bound(1, "min") != Some(0.0) {
            return None;
        }
        let upper = bound(2, "max");
        (upper.is_some() || g.input(n, 2).is_none()).then_some(upper.map(|x| x as f32))
    }

    /// Where the channels of a node's output are in its input, when elements of a channel stay together.
    fn moved(&self, n: NodeId, axis: Axis) -> Option<Axis> {
        let g = self.model.graph(self.id);
        let shape = |v: Option<ValueId>| g.value(v?).ty.as_ref()?.shape().map(<[Dim]>::to_vec);
        let (x, y) = (shape(g.input(n, 0))?, shape(g.output(n, 0))?);
        let known = |s: &[Dim], i: usize| s.get(i).and_then(Dim::known);
        let is_channel = |s: &[Dim], i: usize| known(s, i) == Some(self.n);
        if g.node(n).op_type == "Transpose" {
            let perm = g.node(n).attrs.ints("perm")?;
            let at = if axis == Axis::Second { 1 } else { perm.len() - 1 };
            let from = usize::try_from(*perm.get(at)?).ok()?;
            return match from {
                _ if from + 1 == x.len() => Some(Axis::Last),
                1 => Some(Axis::Second),
                _ => None,
            };
        }
        match axis {
            Axis::Last => {
                if is_channel(&x, x.len().checked_sub(1)?) && is_channel(&y, y.len().checked_sub(1)?) {
                    return Some(Axis::Last);
                }
                // [N, C, 1, 1] to [N, C].
                let flat = x.len() > 2 && (2..x.len()).all(|i| known(&x, i) == Some(1));
                (flat && is_channel(&x, 1) && is_channel(&y, y.len() - 1)).then_some(Axis::Second)
            }
            Axis::Second => {
                let same_batch = matches!((x.first(), y.first()), (Some(a), Some(b)) if a == b && *a != Dim::Unknown);
                (same_batch && is_channel(&x, 1) && is_channel(&y, 1)).then_some(Axis::Second)
            }
        }
    }

    /// Scale and shift of a normalization: slots `first` and the one after it.
    fn normalization(&self, n: NodeId, axis: Axis, first: usize, at: Axis) -> Option<Fold> {
        let g = self.model.graph(self.id);
        // Another axis than the last has a scale of another shape than [C].
        let is_vector = |slot: usize| self.stored(n, slot).is_some_and(|t| t.shape() == [self.n]);
        if axis != at || !is_vector(first) {
            return None;
        }
        let mut fold = Fold::of(Edit::Vector { node: n, slot: first });
        if g.input(n, first + 1).is_some() {
            if !is_vector(first + 1) {
                return None;
            }
            fold = fold.and(Edit::Vector { node: n, slot: first + 1 });
        }
        Some(fold)
    }

    /// A product: its constant, or whatever makes one of its operands.
    fn product(&self, n: NodeId, axis: Axis, steps: usize) -> Option<Fold> {
        let g = self.model.graph(self.id);
        let divides = g.node(n).op_type == "Div";
        let slots = if divides { 1..2 } else { 0..2 };
        if let Some(slot) = slots.clone().find(|&slot| self.is_operand(n, slot, axis)) {
            return Some(Fold::of(Edit::Operand { node: n, slot, axis, divide: divides }));
        }
        // Only an operand that has the channels of the result can take them.
        let full = |slot: &usize| {
            let shape = g.input(n, *slot).and_then(|x| g.value(x).ty.as_ref()?.shape().map(<[Dim]>::to_vec));
            shape.is_some_and(|s| {
                let at = if axis == Axis::Second { Some(1) } else { s.len().checked_sub(1) };
                at.and_then(|i| s.get(i)).and_then(Dim::known) == Some(self.n)
            })
        };
        let mut operands = if divides { 0..1 } else { 0..2 };
        operands.find_map(|slot| {
            let found = Some(slot).filter(full).and_then(|slot| self.before(n, slot, axis, steps - 1));
            found.filter(|f| f.limit.is_none())
        })
    }

    /// Whether an operand is a constant that differs along channels at most.
    fn is_operand(&self, n: NodeId, slot: usize, axis: Axis) -> bool {
        let Some(t) = self.stored(n, slot) else { return false };
        let g = self.model.graph(self.id);
        // The factor needs the rank of the result to find its axis.
        let rank = g.output(n, 0).and_then(|y| g.value(y).ty.as_ref()?.shape().map(<[Dim]>::len));
        let Some(rank) = rank.filter(|r| *r >= 2 && t.shape().len() <= *r) else { return false };
        let at = if axis == Axis::Second { rank - 2 } else { 0 };
        t.len() == 1 || (t.len() == self.n && from_end_is(t.shape(), at, self.n))
    }
}

/// Whether the dimension that is `at` from the end has size `n`.
fn from_end_is(shape: &[usize], at: usize, n: usize) -> bool {
    shape.len().checked_sub(1 + at).is_some_and(|i| shape[i] == n)
}

/// Multiplies a tensor's channels by the factors where it is made. Constants are replaced by new ones, since others may
/// use them.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn apply(model: &mut Model, names: &mut Names, id: GraphId, fold: &Fold, factors: &[f32]) -> Result<()> {
    for edit in &fold.edits {
        let (node, slot) = match edit {
            Edit::Weight { node, slot, .. } | Edit::Vector { node, slot } | Edit::Operand { node, slot, .. } => {
                (*node, *slot)
            }
        };
        let g = model.graph(id);
        let Some(v) = g.input(node, slot) else { continue };
        let Some(t) = constant(model, id, v).cloned() else { continue };
        let mut x = t.get()?.slice::<f32>()?.to_vec();
        let mut shape = t.shape().to_vec();
        match edit {
            Edit::Weight { layout, .. } => layout.for_each(&shape, &mut x, |_, o, x| *x *= factors[o]),
            Edit::Vector { .. } => x.iter_mut().zip(factors).for_each(|(x, s)| *x *= s),
            Edit::Operand { axis, divide, .. } => {
                let with = |x: f32, s: f32| if *divide { x / s } else { x * s };
                if x.len() == factors.len() {
                    x.iter_mut().zip(factors).for_each(|(x, &s)| *x = with(*x, s));
                } else {
                    x = factors.iter().map(|&s| with(x[0], s)).collect();
                    shape = spread_shape(model, id, node, *axis, factors.len());
                }
            }
        }
        let name = names.fresh(&format!("{}_equalized", g.value(v).name));
        let g = model.graph_mut(id);
        let new = g.add_initializer(name, Tensor::new(&shape, x)?);
        g.set_input(node, slot, Some(new));
    }
    Ok(())
}

/// The shape in which one number for each channel is spread over the result of a node.
fn spread_shape(model: &Model, id: GraphId, node: NodeId, axis: Axis, n: usize) -> Vec<usize> {
    let g = model.graph(id);
    let rank = g.output(node, 0).and_then(|y| g.value(y).ty.as_ref()?.shape().map(<[Dim]>::len)).unwrap_or(2);
    let mut shape = vec![n];
    if axis == Axis::Second {
        shape.resize(rank - 1, 1);
    }
    shape
}
