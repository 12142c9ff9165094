//! Pruning: the weights of smallest magnitude become zero, for runtimes with sparse kernels and for files that compress.
//!
//! Paper of the pattern of 2 in 4: Mishra et al. 2021, *Accelerating Sparse Deep Neural Networks*.

use crate::error::Result;
use crate::ir::{Def, GraphId, Model, NodeId, ValueId};
use crate::ops::{QuantRule, WeightAxis, lookup};
use crate::tensor::{DType, Tensor};

/// Which weights may become zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pattern {
    /// This share of each weight, wherever.
    Share(f64),
    /// Two of every four in a row along the inputs.
    TwoInFour,
}

/// What was pruned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Stored weights.
    pub n_weights: usize,
    /// Their elements.
    pub elements: usize,
    /// Those that are zero now.
    pub zeros: usize,
}

/// Prunes every stored float weight of `Conv`, `Gemm`, `MatMul` and the like that nothing else reads.
///
/// # Errors
/// A stored tensor cannot be read.
pub fn prune(model: &mut Model, pattern: Pattern) -> Result<Pruned> {
    let mut out = Pruned::default();
    for id in model.graph_ids() {
        for v in model.graph(id).initializers().to_vec() {
            let Some(axis) = input_axis(model, id, v) else { continue };
            let Def::Initializer(t) = &model.graph(id).value(v).def else { continue };
            let t = t.get()?;
            let (shape, mut w) = (t.shape().to_vec(), t.slice::<f32>()?.to_vec());
            match pattern {
                Pattern::Share(f) => share(&mut w, f),
                Pattern::TwoInFour => two_in_four(&mut w, &shape, axis),
            }
            out.n_weights += 1;
            out.elements += w.len();
            out.zeros += w.iter().filter(|w| **w == 0.0).count();
            model.graph_mut(id).set_def(v, Def::Initializer(Tensor::new(&shape, w)?.into()));
        }
    }
    Ok(out)
}

/// The axis of a weight that its inputs are counted on, when all its readers are operators that have it as their weight.
fn input_axis(model: &Model, id: GraphId, v: ValueId) -> Option<usize> {
    let g = model.graph(id);
    let t = g.constant(v).filter(|t| t.dtype() == DType::F32 && t.shape().len() >= 2)?;
    let of = |n: NodeId, slot: usize| {
        let node = g.node(n);
        let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let QuantRule::Weighted { weight, axis, .. } = lookup(&node.domain, &node.op_type, opset)?.quant else {
            return None;
        };
        let out = axis.resolve(&node.attrs, t.shape().len()).filter(|_| slot == weight)?;
        // Products count inputs on the other of the last two axes, convolutions on the axis next to the channels.
        Some(if axis == WeightAxis::Last { out.checked_sub(1)? } else { 1 - out.min(1) })
    };
    let axes: Option<Vec<usize>> = g.consumers(v).into_iter().map(|(n, slot)| of(n, slot)).collect();
    let axes = axes?;
    (g.n_uses(v) == axes.len() && axes.windows(2).all(|a| a[0] == a[1])).then(|| axes.first().copied())?
}

fn share(w: &mut [f32], f: f64) {
    let n = (w.len() as f64 * f).round() as usize;
    let mut order: Vec<usize> = (0..w.len()).collect();
    order.sort_by(|&a, &b| w[a].abs().total_cmp(&w[b].abs()).then(a.cmp(&b)));
    for &i in &order[..n.min(w.len())] {
        w[i] = 0.0;
    }
}

fn two_in_four(w: &mut [f32], shape: &[usize], axis: usize) {
    let inner: usize = shape[axis + 1..].iter().product();
    let n = shape[axis];
    for start in (0..w.len()).filter(|i| (i / inner.max(1) % n).is_multiple_of(4)) {
        // The last group of a length that is no multiple of four is left as it is.
        if start / inner % n + 4 > n {
            continue;
        }
        let mut group: Vec<usize> = (0..4).map(|i| start + i * inner).collect();
        group.sort_by(|&a, &b| w[a].abs().total_cmp(&w[b].abs()).then(a.cmp(&b)));
        w[group[0]] = 0.0;
        w[group[1]] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text_parse::parse;

    fn weight(model: &Model, name: &str) -> Vec<f32> {
        let g = model.main();
        g.constant(g.find_value(name).unwrap()).unwrap().get().unwrap().slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn the_smallest_go() {
        let text = "<ir_version: 8, opset_import: [\"\" : 13]>
             g (float[1,4] x) => (float[1,2] y, float[1,2] z)
             <float[4,2] w = {1.0, -8.0, 2.0, 7.0, -3.0, 6.0, 4.0, 5.0}, float[2,4] t = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0},
              float[2] k = {0.1, 0.2}>
             { [a] p = MatMul(x, w) [b] y = Add(p, k) [c] z = Gemm <transB = 1> (x, t) }";
        let mut model = parse(text).unwrap();
        let done = prune(&mut model, Pattern::Share(0.25)).unwrap();
        assert_eq!(done, Pruned { n_weights: 2, elements: 16, zeros: 4 });
        assert_eq!(weight(&model, "w"), [0.0, -8.0, 0.0, 7.0, -3.0, 6.0, 4.0, 5.0]);
        assert_eq!(weight(&model, "k"), [0.1, 0.2]);
        let mut model = parse(text).unwrap();
        prune(&mut model, Pattern::TwoInFour).unwrap();
        assert_eq!(weight(&model, "w"), [0.0, -8.0, 0.0, 7.0, -3.0, 0.0, 4.0, 0.0]);
        assert_eq!(weight(&model, "t"), [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 7.0, 8.0]);
    }
}
