//! Computes once what is computed several times: pure nodes of a graph with the same operator, attributes and inputs,
//! where small constants of equal contents count as the same.
//!
//! Nodes with bodies, tensors or references to a function's attributes stay, and so do nodes that make graph outputs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rewrite::unify;
use super::{Ctx, Info, Pass, pattern};
use crate::error::Result;
use crate::ir::text::digest;
use crate::ir::{Attr, GraphId, Model, NodeId, ValueId};
use crate::ops::lookup;

/// The pass.
pub const PASS: &dyn Pass = &EliminateCommonSubexpressions;

/// Constants of at most this many elements are compared by contents.
const SMALL: usize = 64;

struct EliminateCommonSubexpressions;

impl Pass for EliminateCommonSubexpressions {
    fn info(&self) -> Info {
        let summary = "computes once what is computed several times";
        Info { name: "eliminate_common_subexpressions", summary }
    }

    fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
        let mut changed = false;
        for id in model.graph_ids().collect::<Vec<_>>() {
            let mut first: BTreeMap<String, NodeId> = BTreeMap::new();
            for n in model.graph(id).order()? {
                let Some(key) = key(model, id, n) else { continue };
                let Some(&original) = first.get(&key) else {
                    first.insert(key, n);
                    continue;
                };
                let g = model.graph(id);
                let pairs: Vec<_> = g.node_outputs(n).into_iter().zip(g.node_outputs(original)).collect();
                for (copy, original) in pairs {
                    if let (Some(copy), Some(original)) = (copy, original) {
                        changed |= unify(model, id, copy, original);
                    }
                }
            }
        }
        Ok(changed)
    }
}

/// What two nodes have in common that compute the same; `None` for nodes that stay.
fn key(model: &Model, id: GraphId, n: NodeId) -> Option<String> {
    let g = model.graph(id);
    let node = g.node(n);
    let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
    let def = lookup(&node.domain, &node.op_type, opset)?;
    let outputs = g.node_outputs(n);
    if !def.is_pure
        || model.function(&node.domain, &node.op_type, &node.overload).is_some()
        || outputs.iter().flatten().any(|&v| g.is_output(v))
        || outputs.iter().flatten().all(|&v| g.n_uses(v) == 0)
    {
        return None;
    }
    let mut key = format!("{}.{}:{}", node.domain, node.op_type, node.overload);
    // An output that is not there may let an operator compute something else.
    for v in &outputs {
        key.push(if v.is_some() { 'o' } else { '-' });
    }
    let mut attrs: Vec<_> = node.attrs.iter().collect();
    attrs.sort_by(|a, b| a.name.cmp(&b.name));
    for a in attrs {
        let is_plain = matches!(
            a.value,
            Attr::Float(_) | Attr::Int(_) | Attr::String(_) | Attr::Floats(_) | Attr::Ints(_) | Attr::Strings(_)
        );
        if !is_plain {
            return None;
        }
        let _ = write!(key, " {}={:?}", a.name, a.value);
    }
    for v in g.node_inputs(n) {
        key.push(' ');
        key.push_str(&v.map_or(String::new(), |v| operand(model, id, v)));
    }
    Some(key)
}

/// A small constant by its contents, anything else by its id.
fn operand(model: &Model, id: GraphId, v: ValueId) -> String {
    match pattern::constant(model, id, v).filter(|t| t.len() <= SMALL).map(|t| t.get()) {
        Some(Ok(t)) => format!("{}{:?}#{}", t.dtype(), t.shape(), digest(t)),
        _ => format!("%{}", v.index()),
    }
}
