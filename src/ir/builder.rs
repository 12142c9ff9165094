//! Terse graph construction for passes: nodes and constants beside a node that is there. Tests write whole models as
//! text ([`super::text_parse`]).

use super::{Graph, GraphId, Model, Names, Node, NodeId, Position, TensorRef, ValueId, ValueType};

/// Adds nodes and constants to a graph, beside one of its nodes.
///
/// New nodes take the neighbour's place in the file, so they appear just before what depends on them.
pub struct Beside<'a> {
    model: &'a mut Model,
    names: &'a mut Names,
    graph: GraphId,
    pos: Position,
    base: String,
}

impl<'a> Beside<'a> {
    /// Before `node`. New values are named after the node's first output.
    pub fn before(model: &'a mut Model, names: &'a mut Names, graph: GraphId, node: NodeId) -> Self {
        let pos = model.graph(graph).node(node).pos.before();
        Self::at(model, names, graph, node, pos)
    }

    /// After `node`.
    pub fn after(model: &'a mut Model, names: &'a mut Names, graph: GraphId, node: NodeId) -> Self {
        let pos = model.graph(graph).node(node).pos.after();
        Self::at(model, names, graph, node, pos)
    }

    fn at(model: &'a mut Model, names: &'a mut Names, graph: GraphId, node: NodeId, pos: Position) -> Self {
        let g = model.graph(graph);
        let first = g.node_outputs(node).into_iter().flatten().next();
        let base = first.map_or_else(|| g.node(node).name.clone(), |v| g.value(v).name.clone());
        Beside { model, names, graph, pos, base }
    }

    /// The graph.
    #[must_use]
    pub fn graph(&mut self) -> &mut Graph {
        self.model.graph_mut(self.graph)
    }

    /// Names new values after this one instead.
    #[must_use]
    pub fn named_after(mut self, value: ValueId) -> Self {
        self.base = self.model.graph(self.graph).value(value).name.clone();
        self
    }

    /// A stored constant named `<base>_<suffix>`; inside a function, which stores nothing, the output of a `Constant`.
    pub fn constant(&mut self, suffix: &str, tensor: impl Into<TensorRef>) -> ValueId {
        let tensor = tensor.into();
        // What was derived once keeps its name when it is derived again.
        let stem = self.base.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_');
        let ending = format!("_{suffix}");
        let stem = if stem.ends_with(&ending) { stem.strip_suffix(&ending).unwrap_or(stem) } else { &self.base };
        let name = self.names.fresh(&format!("{stem}{ending}"));
        if self.model.is_in_function(self.graph) {
            let ty = ValueType::Tensor(super::TensorType::fixed(tensor.dtype(), tensor.shape()));
            let v = self.graph().add_result(name, Some(ty));
            self.node_into(Node::new("Constant").attr("value", tensor), &[], v);
            return v;
        }
        self.graph().add_initializer(name, tensor)
    }

    /// A node with one output, which is named `<base>_<suffix>`.
    pub fn node(&mut self, node: Node, inputs: &[ValueId], suffix: &str, ty: Option<ValueType>) -> ValueId {
        let name = self.names.fresh(&format!("{}_{suffix}", self.base));
        let v = self.graph().add_result(name, ty);
        self.node_into(node, &inputs.iter().map(|&v| Some(v)).collect::<Vec<_>>(), v);
        v
    }

    /// A node that makes a value that is there, in place of whoever made it.
    pub fn node_into(&mut self, mut node: Node, inputs: &[Option<ValueId>], output: ValueId) -> NodeId {
        if node.name.is_empty() {
            let made = &self.model.graph(self.graph).value(output).name;
            node.name = self.names.fresh(&format!("{made}_{}", node.op_type));
        }
        node.pos = self.pos;
        let g = self.graph();
        let n = g.add_node(node, inputs, &[]);
        g.take_over(n, 0, output);
        n
    }

    /// A new value that some node will make, named `<base>_<suffix>`.
    pub fn value(&mut self, suffix: &str, ty: Option<ValueType>) -> ValueId {
        let name = self.names.fresh(&format!("{}_{suffix}", self.base));
        self.graph().add_result(name, ty)
    }
}
