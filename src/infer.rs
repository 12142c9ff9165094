//! Type and shape inference: walks every graph in order, asks each operator, and merges with what the file declares.
//!
//! Sizes are computed with names (see [`sym`](crate::ir::sym)). A size that follows from nothing, such as the number of
//! elements that are not zero, gets the name of its value, so that what depends on it can be written down.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::diag::Sink;
use crate::error::{Location, Result, ensure};
use crate::ir::{Attrs, Bindings, Def, Dim, Graph, GraphId, Model, NodeId, TensorType, ValueId, ValueType};
use crate::ops::{InferBodies, InferCtx, OpDef, evaluate, lookup};
use crate::tensor::{Tensor, count};

/// Constants of more elements than this are not shown to inference: it asks for shapes, axes and the like.
const MAX_CONSTANT: usize = 1024;

/// Axes of an output that always have the same name; further ones may get another one when inference runs again.
const NAMED_AXES: usize = 8;

/// Function calls nested deeper than this are an endless recursion.
const MAX_DEPTH: usize = 64;

/// Finds types and shapes of all values in the main graph and in the bodies of its control-flow nodes. What a file
/// declares and inference contradicts is reported to `sink` and replaced, except for graph inputs and outputs, which
/// stay as declared.
///
/// A node that contradicts its operator's specification is reported too; its outputs keep what the file declares.
///
/// # Errors
/// A graph has a cycle; the error names a node of it.
pub fn infer(model: &mut Model, sink: &mut Sink) -> Result<()> {
    let names = Names::new(model);
    let mut walk = Walk {
        model,
        sink,
        values: HashMap::new(),
        folded: HashMap::new(),
        found: HashMap::new(),
        names,
        bindings: Bindings::new(),
        depth: 0,
    };
    walk.name_inputs();
    walk.graph(GraphId::MAIN)
}

/// Names of sizes that follow from nothing.
struct Names {
    /// Names that mean something else.
    used: HashSet<String>,
    given: HashMap<(GraphId, ValueId, usize), Arc<str>>,
}

impl Names {
    /// The names that the model's inputs declare are taken.
    fn new(model: &Model) -> Self {
        let mut names = Names { used: HashSet::new(), given: HashMap::new() };
        names.take(model.main(), model.main().inputs().iter().copied());
        names
    }

    /// The names that values declare are taken.
    fn take(&mut self, g: &Graph, values: impl Iterator<Item = ValueId>) {
        for d in values.filter_map(|v| g.value(v).ty.as_ref()?.shape()).flatten() {
            if let Dim::Symbol(s) = d {
                self.used.insert(s.to_string());
            }
        }
    }

    /// The name of a size of a value: always the same one, and that of no other.
    fn of(&mut self, place: (GraphId, ValueId, usize), value: &str) -> Arc<str> {
        if let Some(name) = self.given.get(&place) {
            return name.clone();
        }
        let plain: String = value.chars().map(|c| if c.is_alphanumeric() || c == '.' { c } else { '_' }).collect();
        // A word that starts with a digit reads as a number.
        let word = plain.trim_matches('_');
        let lead = if word.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
        let base = format!("{lead}{word}_dim_{}", place.2);
        let further = (2..).map(|n| format!("{base}_{n}"));
        let name =
            std::iter::once(base.clone()).chain(further).find(|n| !self.used.contains(n)).unwrap_or(base.clone());
        self.used.insert(name.clone());
        let name: Arc<str> = name.into();
        self.given.insert(place, name.clone());
        name
    }
}

/// Whether nothing is known of a size. Some exporters write a question mark where they know no name.
fn is_open(d: &Dim) -> bool {
    match d {
        Dim::Unknown => true,
        Dim::Symbol(s) => &**s == "?",
        Dim::Known(_) => false,
    }
}

struct Walk<'a> {
    model: &'a mut Model,
    sink: &'a mut Sink,
    /// Elements of values that are shapes.
    values: HashMap<(GraphId, ValueId), Vec<Dim>>,
    /// Small values that are computed from constants alone.
    folded: HashMap<(GraphId, ValueId), Tensor>,
    /// Types as the nodes that read a value see them, where the model keeps what the file declares: names of sizes
    /// that follow from those of the inputs, where an output of the model has other ones.
    found: HashMap<(GraphId, ValueId), ValueType>,
    names: Names,
    /// Attributes of the function call that is being inferred.
    bindings: Bindings,
    /// How deep function calls are nested.
    depth: usize,
}

impl Walk<'_> {
    fn graph(&mut self, id: GraphId) -> Result<()> {
        let order = self.model.graph(id).order()?;
        for v in self.model.graph(id).values().collect::<Vec<_>>() {
            if let Def::Capture(outer, source) = self.model.graph(id).value(v).def {
                let ty = self.type_of(outer, source);
                self.model.graph_mut(id).set_type(v, ty);
                if let Some(values) = self.values.get(&(outer, source)).cloned() {
                    self.values.insert((id, v), values);
                }
            }
        }
        for n in order {
            let location = self.model.graph(id).node(n).location();
            // The interpreter decides what runs; a contradiction found here costs types, not the run.
            if let Err(e) = self.node(id, n) {
                self.sink.warn("shape-inference", location, format!("{e:#}"));
            }
        }
        Ok(())
    }

    /// The inputs of the model stay as declared; what follows from a size without a name uses the input's name. That
    /// is the same name whenever a model is inferred, so the names of other values do not matter yet.
    fn name_inputs(&mut self) {
        for v in self.model.main().inputs().to_vec() {
            if let Some(ty) = self.model.main().value(v).ty.clone() {
                let named = self.named(GraphId::MAIN, v, ty);
                self.found.insert((GraphId::MAIN, v), named);
            }
        }
        // Outputs keep what they declare as well, so their names are as lasting as those of the inputs.
        for v in self.model.main().outputs().to_vec() {
            for axis in 0..NAMED_AXES {
                self.names.of((GraphId::MAIN, v, axis), &self.model.main().value(v).name);
            }
        }
        for id in self.model.graph_ids() {
            let g = self.model.graph(id);
            self.names.take(g, g.values());
        }
    }

    /// A tensor's type with a name for each size of which nothing is known. A function's body has none: each call
    /// has other sizes.
    fn named(&mut self, id: GraphId, v: ValueId, mut ty: ValueType) -> ValueType {
        if let (0, ValueType::Tensor(TensorType { shape: Some(shape), .. })) = (self.depth, &mut ty) {
            let value = &self.model.graph(id).value(v).name;
            for (i, d) in shape.iter_mut().enumerate().filter(|(_, d)| is_open(d)) {
                *d = Dim::Symbol(self.names.of((id, v, i), value));
            }
        }
        ty
    }

    /// A value's type as its readers see it.
    fn type_of(&self, id: GraphId, v: ValueId) -> Option<ValueType> {
        self.found.get(&(id, v)).or(self.model.graph(id).value(v).ty.as_ref()).cloned()
    }

    fn constant(&self, id: GraphId, v: ValueId) -> Result<Option<Tensor>> {
        let mut at = (id, v);
        while let Def::Capture(outer, source) = self.model.graph(at.0).value(at.1).def {
            at = (outer, source);
        }
        match &self.model.graph(at.0).value(at.1).def {
            Def::Initializer(t) if t.len() <= MAX_CONSTANT => Ok(Some(t.get()?.clone())),
            Def::Node | Def::Input => Ok(self.folded.get(&at).cloned()),
            _ => Ok(None),
        }
    }

    fn node(&mut self, id: GraphId, n: NodeId) -> Result<()> {
        let g = self.model.graph(id);
        let node = g.node(n);
        let opset = self.model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let attrs = node.attrs.bound(&self.bindings);
        let ins = g.node_inputs(n);
        let outs = g.node_outputs(n);
        if let Some(f) = self.model.function(&node.domain, &node.op_type, &node.overload) {
            let (body, bindings) = (f.body, f.bind(&attrs));
            let inputs: Vec<_> = ins.iter().map(|v| v.and_then(|v| self.type_of(id, v))).collect();
            for (&formal, v) in self.model.graph(body).inputs().iter().zip(&ins) {
                let Some(v) = *v else { continue };
                if let Some(t) = self.constant(id, v)? {
                    self.folded.insert((body, formal), t);
                }
                if let Some(values) = self.values.get(&(id, v)).cloned() {
                    self.values.insert((body, formal), values);
                }
            }
            let types = self.call(body, bindings, &inputs)?;
            for (v, ty) in outs.into_iter().zip(types) {
                if let (Some(v), Some(ty)) = (v, ty) {
                    self.merge(id, v, ty);
                }
            }
            return Ok(());
        }
        let Some(def) = lookup(&node.domain, &node.op_type, opset) else { return Ok(()) };
        let op_type = node.op_type.clone();
        let constants = ins.iter().map(|v| v.map_or(Ok(None), |v| self.constant(id, v))).collect::<Result<Vec<_>>>()?;
        let inputs = ins.iter().map(|v| v.and_then(|v| self.type_of(id, v))).collect();
        let values = ins.iter().map(|v| v.and_then(|v| self.values.get(&(id, v)).cloned())).collect();
        let present = ins.iter().map(Option::is_some).collect();
        let mut ctx = InferCtx {
            op_type: &op_type,
            attrs: &attrs,
            opset,
            inputs,
            present,
            constants,
            values,
            outputs: vec![None; outs.len()],
            output_values: vec![None; outs.len()],
            bodies: self,
        };
        (def.infer)(&mut ctx)?;
        let (types, shapes) = (ctx.outputs, ctx.output_values);
        let folded = fold(def, &attrs, opset, ctx.constants, &ctx.present, &types);
        for (i, ((v, ty), values)) in outs.into_iter().zip(types).zip(shapes).enumerate() {
            let Some(v) = v else { continue };
            match folded.get(i) {
                Some(t) if t.len() <= MAX_CONSTANT => self.folded.insert((id, v), t.clone()),
                _ => self.folded.remove(&(id, v)),
            };
            if let Some(ty) = ty {
                self.merge(id, v, ty);
            }
            match values {
                Some(values) => self.values.insert((id, v), values),
                None => self.values.remove(&(id, v)),
            };
        }
        Ok(())
    }

    /// Types of the outputs of a function that is called with inputs of these types. What one call finds inside the
    /// body says nothing about the next call, so the body is left as it was.
    fn call(
        &mut self,
        body: GraphId,
        bindings: Bindings,
        inputs: &[Option<ValueType>],
    ) -> Result<Vec<Option<ValueType>>> {
        ensure!(self.depth < MAX_DEPTH, "functions are nested more than {MAX_DEPTH} deep, or one calls itself");
        let saved = self.saved(body);
        let outer = std::mem::replace(&mut self.bindings, bindings);
        self.depth += 1;
        let types = InferBodies::infer(self, body, inputs);
        self.depth -= 1;
        self.bindings = outer;
        self.restore(saved);
        types
    }

    /// A body with all bodies inside.
    fn saved(&self, body: GraphId) -> Vec<(GraphId, Graph)> {
        let ids = self.model.graph_ids().filter(|&g| self.model.is_inside(g, body));
        ids.map(|g| (g, self.model.graph(g).clone())).collect()
    }

    /// Forgets what was found in graphs.
    fn restore(&mut self, saved: Vec<(GraphId, Graph)>) {
        for (id, graph) in saved {
            self.values.retain(|(g, _), _| *g != id);
            self.folded.retain(|(g, _), _| *g != id);
            self.found.retain(|(g, _), _| *g != id);
            *self.model.graph_mut(id) = graph;
        }
    }

    fn merge(&mut self, id: GraphId, v: ValueId, found: ValueType) {
        let g = self.model.graph(id);
        let value = g.value(v);
        let declared = value.ty.clone();
        let merged = match &declared {
            None => found,
            Some(declared) => match merge(declared, &found) {
                Some(t) => t,
                None if g.is_output(v) => {
                    self.sink.warn(
                        "output-type-contradicted",
                        Location::value(&value.name),
                        format!("is declared {declared}, inference finds {found}"),
                    );
                    return;
                }
                None => {
                    self.sink.note(
                        "stale-value-info",
                        Location::value(&value.name),
                        format!("is declared {declared}, inference finds {found}"),
                    );
                    found
                }
            },
        };
        let named = self.named(id, v, merged.clone());
        if id == GraphId::MAIN && self.model.main().is_output(v) {
            let stored = declared.as_ref().and_then(|d| merge(&merged, d)).unwrap_or(merged);
            self.model.graph_mut(id).set_type(v, Some(stored));
            self.found.insert((id, v), named);
        } else {
            self.model.graph_mut(id).set_type(v, Some(named));
        }
    }
}

impl InferBodies for Walk<'_> {
    fn infer(&mut self, body: GraphId, inputs: &[Option<ValueType>]) -> Result<Vec<Option<ValueType>>> {
        let formal = self.model.graph(body).inputs().to_vec();
        for (v, ty) in formal.into_iter().zip(inputs) {
            if let Some(ty) = ty {
                // A body's inputs have the types of what is passed; what the file says is kept where that is unknown.
                let declared = self.model.graph(body).value(v).ty.clone();
                // A declaration that contradicts it (an iteration count of shape [1]) stays, as for the model's own inputs.
                let merged = match declared {
                    Some(d) => merge(&d, ty).unwrap_or(d),
                    None => ty.clone(),
                };
                let named = self.named(body, v, merged);
                self.model.graph_mut(body).set_type(v, Some(named));
            }
        }
        self.graph(body)?;
        let outputs = self.model.graph(body).outputs();
        Ok(outputs.iter().map(|&v| self.type_of(body, v)).collect())
    }

    fn try_infer(&mut self, body: GraphId, inputs: &[Option<ValueType>]) -> Result<Vec<Option<ValueType>>> {
        let saved = self.saved(body);
        let sink = std::mem::take(self.sink);
        let types = InferBodies::infer(self, body, inputs);
        *self.sink = sink;
        self.restore(saved);
        types
    }
}

/// The outputs of a node whose inputs are all small constants and whose outputs are small; else nothing.
fn fold(
    def: &OpDef,
    attrs: &Attrs,
    opset: i64,
    constants: Vec<Option<Tensor>>,
    present: &[bool],
    types: &[Option<ValueType>],
) -> Vec<Tensor> {
    let is_small = |ty: &Option<ValueType>| {
        let shape = ty.as_ref().and_then(ValueType::as_tensor).and_then(TensorType::fixed_shape);
        shape.is_some_and(|s| count(&s).is_ok_and(|n| n <= MAX_CONSTANT))
    };
    let is_constant = constants.iter().zip(present).all(|(c, &p)| c.is_some() == p);
    if !def.is_pure || !is_constant || attrs.graphs().next().is_some() || !types.iter().all(is_small) {
        return Vec::new();
    }
    // A node that cannot be evaluated says so when it runs.
    evaluate(def, attrs, opset, constants, types.len()).unwrap_or_default()
}

/// What both say together; `None` when they contradict each other. Fixed sizes win over names, names over nothing; of
/// two names what is found is taken, which says how the size follows from those of the inputs.
#[must_use]
pub fn merge(declared: &ValueType, found: &ValueType) -> Option<ValueType> {
    match (declared, found) {
        (ValueType::Unknown, t) | (t, ValueType::Unknown) => Some(t.clone()),
        (ValueType::Tensor(a), ValueType::Tensor(b)) => merge_tensor(a, b).map(ValueType::Tensor),
        (ValueType::SparseTensor(a), ValueType::SparseTensor(b)) => merge_tensor(a, b).map(ValueType::SparseTensor),
        (ValueType::Sequence(a), ValueType::Sequence(b)) => Some(ValueType::Sequence(Box::new(merge(a, b)?))),
        (ValueType::Optional(a), ValueType::Optional(b)) => Some(ValueType::Optional(Box::new(merge(a, b)?))),
        (ValueType::Map(k, a), ValueType::Map(l, b)) if k == l => Some(ValueType::Map(*k, Box::new(merge(a, b)?))),
        _ => None,
    }
}

fn merge_tensor(a: &TensorType, b: &TensorType) -> Option<TensorType> {
    let dtype = match (a.dtype, b.dtype) {
        (Some(x), Some(y)) if x != y => return None,
        (x, y) => x.or(y),
    };
    let shape = match (&a.shape, &b.shape) {
        (Some(x), Some(y)) if x.len() != y.len() => return None,
        (Some(x), Some(y)) => Some(x.iter().zip(y).map(|(x, y)| merge_dim(x, y)).collect::<Option<Vec<_>>>()?),
        (x, y) => x.clone().or_else(|| y.clone()),
    };
    Some(TensorType { dtype, shape })
}

fn merge_dim(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => None,
        (Dim::Known(n), _) | (_, Dim::Known(n)) => Some(Dim::Known(*n)),
        (d, found) if is_open(found) => Some(d.clone()),
        (_, found) => Some(found.clone()),
    }
}
