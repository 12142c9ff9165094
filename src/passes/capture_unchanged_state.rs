//! Lets the bodies of `Loop` and `Scan` capture what they carry from step to step and never change.
//!
//! Some exporters hand every weight that a body uses to the node as state, and the body hands it on as it is. As a
//! capture it is a constant in the body: it can be folded, fused and quantized there, and is not copied at each step.
//!
//! State stays where a graph output or another output of the body needs it. `Scan` before opset 9, which has another
//! layout, is left alone.

use super::eliminate_identity::origin;
use super::rewrite::redirect;
use super::{Ctx, Info, Pass};
use crate::error::Result;
use crate::ir::{Def, GraphId, Model, NodeId, ValueId};

/// The pass.
pub const PASS: &dyn Pass = &CaptureUnchangedState;

struct CaptureUnchangedState;

impl Pass for CaptureUnchangedState {
    fn info(&self) -> Info {
        Info { name: "capture_unchanged_state", summary: "lets loop bodies capture state that they never change" }
    }

    fn run(&self, model: &mut Model, _: &mut Ctx<'_>) -> Result<bool> {
        let mut changed = false;
        for id in model.graph_ids().collect::<Vec<_>>() {
            for n in model.graph(id).order()? {
                let Some(carrier) = Carrier::of(model, id, n) else { continue };
                // From the last to the first, so that the slots of those before stay.
                for k in (0..carrier.n_states).rev() {
                    if let Some(found) = carrier.unchanged(model, k) {
                        carrier.capture(model, k, found);
                        changed = true;
                    }
                }
            }
        }
        Ok(changed)
    }
}

/// A node that carries state through its body, and the slots in which its first state is.
struct Carrier {
    graph: GraphId,
    node: NodeId,
    body: GraphId,
    /// In the node's inputs and in the body's.
    input: usize,
    /// In the body's outputs.
    output: usize,
    n_states: usize,
}

/// State that its body hands on as it is.
struct Unchanged {
    /// What the node starts with.
    initial: ValueId,
    /// What the node ends with, where that is used.
    last: Option<ValueId>,
    /// What stands for it in the body.
    inside: ValueId,
}

impl Carrier {
    fn of(model: &Model, graph: GraphId, node: NodeId) -> Option<Self> {
        let g = model.graph(graph);
        let opset = model.opsets_in(graph).iter().find(|(d, _)| d.is_onnx()).map_or(1, |(_, v)| *v);
        let (is_loop, is_scan) = (g.node(node).is("Loop"), g.node(node).is("Scan") && opset >= 9);
        if !is_loop && !is_scan {
            return None;
        }
        let body = g.node(node).attrs.graph("body")?;
        let n_inputs = model.graph(body).inputs().len();
        let (input, output, n_states) = if is_loop {
            (2, 1, n_inputs.checked_sub(2)?)
        } else {
            let scanned = usize::try_from(g.node(node).attrs.int("num_scan_inputs")?).ok()?;
            (0, 0, n_inputs.checked_sub(scanned)?)
        };
        let is_whole = g.node_inputs(node).len() == n_inputs && model.graph(body).outputs().len() >= output + n_states;
        is_whole.then_some(Carrier { graph, node, body, input, output, n_states })
    }

    fn unchanged(&self, model: &Model, k: usize) -> Option<Unchanged> {
        let (g, body) = (model.graph(self.graph), model.graph(self.body));
        let (inside, next) = (body.inputs()[self.input + k], body.outputs()[self.output + k]);
        if origin(model, self.body, next) != inside {
            return None;
        }
        let n_handed_on = body.outputs().iter().filter(|&&o| o == inside).count();
        let initial = g.input(self.node, self.input + k)?;
        let last = g.output(self.node, k);
        let name = &g.value(initial).name;
        let is_shadowed = model.graph_ids().filter(|&b| model.is_inside(b, self.body)).any(|b| {
            let b = model.graph(b);
            b.find_value(name).is_some_and(|v| !matches!(b.value(v).def, Def::Capture(..)))
        });
        let is_needed = n_handed_on > usize::from(next == inside) || last.is_some_and(|v| g.is_output(v));
        (!is_needed && !is_shadowed).then_some(Unchanged { initial, last, inside })
    }

    fn capture(&self, model: &mut Model, k: usize, found: Unchanged) {
        let Unchanged { initial, last, inside } = found;
        let value = model.graph(self.graph).value(initial).clone();
        let source = (self.graph, initial);
        let body = model.graph_mut(self.body);
        let known = body.values().find(|&v| matches!(body.value(v).def, Def::Capture(g, s) if (g, s) == source));
        let inner = known.unwrap_or_else(|| body.add_value(value.name, value.ty, Def::Capture(self.graph, initial)));
        body.set_inputs(without(body.inputs(), self.input + k));
        body.set_outputs(without(body.outputs(), self.output + k));
        body.set_def(inside, Def::Free);
        redirect(model, self.body, inside, inner);
        if let Some(last) = last {
            redirect(model, self.graph, last, initial);
        }
        let g = model.graph_mut(self.graph);
        g.add_capture(self.node, initial);
        let (inputs, outputs) = (g.node_inputs(self.node), g.node_outputs(self.node));
        for (slot, &v) in inputs.iter().enumerate().skip(self.input + k + 1) {
            g.set_input(self.node, slot - 1, v);
        }
        g.truncate_inputs(self.node, inputs.len() - 1);
        if k < outputs.len() {
            g.truncate_outputs(self.node, k);
            for (slot, &v) in outputs.iter().enumerate().skip(k + 1) {
                g.set_output(self.node, slot - 1, v);
            }
        }
    }
}

fn without(list: &[ValueId], at: usize) -> Vec<ValueId> {
    let mut list = list.to_vec();
    list.remove(at);
    list
}
