//! A graph over `petgraph`: all queries and all edits.
//!
//! Vertices are nodes and values; an edge `In(slot)` leads from a value to the node that reads it, `Out(slot)` from a
//! node to the value that it makes, `Capture` from a value to the node whose body uses it. Degrees are small, so slots
//! are found by looking at the edges; whoever needs them in a hot loop (the interpreter) compiles them once.

use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::stable_graph::StableDiGraph;
use petgraph::visit::EdgeRef;

use super::{Def, GraphId, Node, Residue, TensorRef, Value, ValueType};

/// A node of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) NodeIndex);

/// A value of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(super) NodeIndex);

impl NodeId {
    /// A small number that is unique in the graph, for tables.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.index()
    }
}

impl ValueId {
    /// A small number that is unique in the graph, for tables.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.index()
    }
}

#[derive(Debug, Clone)]
pub(super) enum Vertex {
    Node(Box<Node>),
    Value(Box<Value>),
    /// What was deleted. Its place is not given away: an id that somebody kept must not name something else.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edge {
    In(u32),
    Out(u32),
    Capture,
}

/// The node that a graph is a body of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The graph that the node is in.
    pub graph: GraphId,
    /// The node.
    pub node: NodeId,
}

/// A graph: the main one, a body of a control-flow node or a function's body.
#[derive(Debug, Clone)]
pub struct Graph {
    net: StableDiGraph<Vertex, Edge>,
    /// The graph's name.
    pub name: String,
    owner: Option<Owner>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    initializers: Vec<ValueId>,
    /// What the file says about it and the IR does not model.
    pub residue: Residue,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Graph {
            net: StableDiGraph::new(),
            name: name.to_owned(),
            owner: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            initializers: Vec::new(),
            residue: Residue::default(),
        }
    }

    pub(super) fn net(&self) -> &StableDiGraph<Vertex, Edge> {
        &self.net
    }

    // ---- queries ----

    /// The node that this graph is a body of; `None` for the main graph and function bodies.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Graph inputs in order, overridable initializers included where the file lists them.
    #[must_use]
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Graph outputs in order.
    #[must_use]
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Stored tensors in the file's order, overridable ones included.
    #[must_use]
    pub fn initializers(&self) -> &[ValueId] {
        &self.initializers
    }

    /// All nodes, in no particular but a stable order; see [`Graph::order`] for the topological one.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.net.node_indices().filter(|&i| matches!(self.net[i], Vertex::Node(_))).map(NodeId)
    }

    /// All values, in a stable order.
    pub fn values(&self) -> impl Iterator<Item = ValueId> {
        self.net.node_indices().filter(|&i| matches!(self.net[i], Vertex::Value(_))).map(ValueId)
    }

    /// One more than the largest index of a node or value, for tables.
    #[must_use]
    pub fn index_bound(&self) -> usize {
        self.net.capacity().0.max(self.net.node_indices().next_back().map_or(0, |i| i.index() + 1))
    }

    /// A node.
    ///
    /// # Panics
    /// The id is of another graph, or the node was deleted: a bug in the caller. The same holds for all queries by id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        match &self.net[id.0] {
            Vertex::Node(n) => n,
            Vertex::Value(_) | Vertex::Gone => unreachable!("a NodeId names a node"),
        }
    }

    /// A node for changing.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match &mut self.net[id.0] {
            Vertex::Node(n) => n,
            Vertex::Value(_) | Vertex::Gone => unreachable!("a NodeId names a node"),
        }
    }

    /// A value.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        match &self.net[id.0] {
            Vertex::Value(v) => v,
            Vertex::Node(_) | Vertex::Gone => unreachable!("a ValueId names a value"),
        }
    }

    fn value_mut(&mut self, id: ValueId) -> &mut Value {
        match &mut self.net[id.0] {
            Vertex::Value(v) => v,
            Vertex::Node(_) | Vertex::Gone => unreachable!("a ValueId names a value"),
        }
    }

    /// Whether the node is still there.
    #[must_use]
    pub fn has_node(&self, id: NodeId) -> bool {
        matches!(self.net.node_weight(id.0), Some(Vertex::Node(_)))
    }

    /// Whether the value is still there.
    #[must_use]
    pub fn has_value(&self, id: ValueId) -> bool {
        matches!(self.net.node_weight(id.0), Some(Vertex::Value(_)))
    }

    /// A node's input slots; an empty optional one is `None`.
    #[must_use]
    pub fn node_inputs(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).n_inputs];
        for e in self.net.edges_directed(id.0, Direction::Incoming) {
            if let Edge::In(slot) = e.weight() {
                slots[*slot as usize] = Some(ValueId(e.source()));
            }
        }
        slots
    }

    /// A node's output slots; an empty optional one is `None`.
    #[must_use]
    pub fn node_outputs(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).n_outputs];
        for e in self.net.edges_directed(id.0, Direction::Outgoing) {
            if let Edge::Out(slot) = e.weight() {
                slots[*slot as usize] = Some(ValueId(e.target()));
            }
        }
        slots
    }

    /// The value in an input slot.
    #[must_use]
    pub fn input(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        self.net
            .edges_directed(id.0, Direction::Incoming)
            .find(|e| *e.weight() == Edge::In(slot as u32))
            .map(|e| ValueId(e.source()))
    }

    /// The value in an output slot.
    #[must_use]
    pub fn output(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        self.net
            .edges_directed(id.0, Direction::Outgoing)
            .find(|e| *e.weight() == Edge::Out(slot as u32))
            .map(|e| ValueId(e.target()))
    }

    /// Outer values that the node's bodies use, each once.
    #[must_use]
    pub fn captures(&self, id: NodeId) -> Vec<ValueId> {
        let mut v: Vec<_> = self
            .net
            .edges_directed(id.0, Direction::Incoming)
            .filter(|e| *e.weight() == Edge::Capture)
            .map(|e| ValueId(e.source()))
            .collect();
        v.sort_unstable();
        v
    }

    /// The node and output slot that make a value.
    #[must_use]
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        self.net.edges_directed(id.0, Direction::Incoming).find_map(|e| match e.weight() {
            Edge::Out(slot) => Some((NodeId(e.source()), *slot as usize)),
            _ => None,
        })
    }

    /// Nodes and input slots that read a value, in the order of the file. Captures and graph outputs are apart:
    /// see [`Graph::is_captured`], [`Graph::is_output`] and [`Graph::n_uses`].
    #[must_use]
    pub fn consumers(&self, id: ValueId) -> Vec<(NodeId, usize)> {
        let mut v: Vec<_> = self
            .net
            .edges_directed(id.0, Direction::Outgoing)
            .filter_map(|e| match e.weight() {
                Edge::In(slot) => Some((NodeId(e.target()), *slot as usize)),
                _ => None,
            })
            .collect();
        v.sort_unstable_by_key(|&(n, slot)| (self.node(n).pos, n, slot));
        v
    }

    /// Nodes whose bodies use the value.
    #[must_use]
    pub fn capturers(&self, id: ValueId) -> Vec<NodeId> {
        let mut v: Vec<_> = self
            .net
            .edges_directed(id.0, Direction::Outgoing)
            .filter(|e| *e.weight() == Edge::Capture)
            .map(|e| NodeId(e.target()))
            .collect();
        v.sort_unstable();
        v
    }

    /// Whether a body of some node uses the value.
    #[must_use]
    pub fn is_captured(&self, id: ValueId) -> bool {
        self.net.edges_directed(id.0, Direction::Outgoing).any(|e| *e.weight() == Edge::Capture)
    }

    /// Whether the value is a graph output.
    #[must_use]
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.contains(&id)
    }

    /// How often the value is used: by input slots, by bodies of nodes, as a graph output.
    #[must_use]
    pub fn n_uses(&self, id: ValueId) -> usize {
        self.net.edges_directed(id.0, Direction::Outgoing).count() + self.outputs.iter().filter(|&&o| o == id).count()
    }

    /// The stored tensor of a value that cannot be overridden; `None` for anything else, captures included.
    #[must_use]
    pub fn constant(&self, id: ValueId) -> Option<&TensorRef> {
        if let Def::Initializer(t) = &self.value(id).def { Some(t) } else { None }
    }

    /// The first value of this name.
    #[must_use]
    pub fn find_value(&self, name: &str) -> Option<ValueId> {
        self.values().find(|&v| self.value(v).name == name)
    }

    /// The first node of this name.
    #[must_use]
    pub fn find_node(&self, name: &str) -> Option<NodeId> {
        self.nodes().find(|&n| self.node(n).name == name)
    }

    // ---- edits ----

    /// Adds a node that reads and makes these values. Output values must have no producer yet; their [`Def`] becomes
    /// [`Def::Node`].
    pub fn add_node(&mut self, mut node: Node, inputs: &[Option<ValueId>], outputs: &[Option<ValueId>]) -> NodeId {
        node.n_inputs = inputs.len();
        node.n_outputs = outputs.len();
        let id = NodeId(self.net.add_node(Vertex::Node(Box::new(node))));
        for (slot, v) in inputs.iter().enumerate() {
            if let Some(v) = v {
                self.net.add_edge(v.0, id.0, Edge::In(slot as u32));
            }
        }
        for (slot, v) in outputs.iter().enumerate() {
            if let Some(v) = v {
                self.net.add_edge(id.0, v.0, Edge::Out(slot as u32));
                self.value_mut(*v).def = Def::Node;
            }
        }
        id
    }

    /// Adds a value. Graph inputs, outputs and initializers are listed by [`Graph::set_inputs`],
    /// [`Graph::set_outputs`] and [`Graph::add_initializer`].
    pub fn add_value(&mut self, name: impl Into<String>, ty: Option<ValueType>, def: Def) -> ValueId {
        let value = Value { name: name.into(), ty, def, residue: Residue::default() };
        ValueId(self.net.add_node(Vertex::Value(Box::new(value))))
    }

    /// Adds a value that a node will make.
    pub fn add_result(&mut self, name: impl Into<String>, ty: Option<ValueType>) -> ValueId {
        self.add_value(name, ty, Def::Node)
    }

    /// Adds a stored constant at the end of the list of initializers.
    pub fn add_initializer(&mut self, name: impl Into<String>, tensor: impl Into<TensorRef>) -> ValueId {
        let tensor = tensor.into();
        let ty = ValueType::Tensor(super::TensorType::fixed(tensor.dtype(), tensor.shape()));
        let id = self.add_value(name, Some(ty), Def::Initializer(tensor));
        self.initializers.push(id);
        id
    }

    /// Puts a value (or nothing) into a node's input slot; slots are added when the node has fewer.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: Option<ValueId>) {
        let old = self
            .net
            .edges_directed(node.0, Direction::Incoming)
            .find(|e| *e.weight() == Edge::In(slot as u32))
            .map(|e| e.id());
        if let Some(e) = old {
            self.net.remove_edge(e);
        }
        if let Some(v) = value {
            self.net.add_edge(v.0, node.0, Edge::In(slot as u32));
        }
        let n = self.node_mut(node);
        n.n_inputs = n.n_inputs.max(slot + 1);
    }

    /// Drops input slots from `n` on.
    pub fn truncate_inputs(&mut self, node: NodeId, n: usize) {
        for slot in n..self.node(node).n_inputs {
            self.set_input(node, slot, None);
        }
        let node = self.node_mut(node);
        node.n_inputs = node.n_inputs.min(n);
    }

    /// Lets a node make another value in an output slot (or none). The old value keeps its users and becomes free
    /// until something else defines it.
    pub fn set_output(&mut self, node: NodeId, slot: usize, value: Option<ValueId>) {
        let old = self
            .net
            .edges_directed(node.0, Direction::Outgoing)
            .find(|e| *e.weight() == Edge::Out(slot as u32))
            .map(|e| (e.id(), ValueId(e.target())));
        if let Some((e, v)) = old {
            self.net.remove_edge(e);
            self.value_mut(v).def = Def::Free;
        }
        if let Some(v) = value {
            self.net.add_edge(node.0, v.0, Edge::Out(slot as u32));
            self.value_mut(v).def = Def::Node;
        }
        let n = self.node_mut(node);
        n.n_outputs = n.n_outputs.max(slot + 1);
    }

    /// Drops output slots from `n` on; values in them become free.
    pub fn truncate_outputs(&mut self, node: NodeId, n: usize) {
        for slot in n..self.node(node).n_outputs {
            self.set_output(node, slot, None);
        }
        let node = self.node_mut(node);
        node.n_outputs = node.n_outputs.min(n);
    }

    /// Lets every node that reads `old` read `new`. Graph outputs and captures keep `old`: a graph output's name is the
    /// user's (see [`Graph::take_over`]), and captures are resolved by the model.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        for (node, slot) in self.consumers(old) {
            self.set_input(node, slot, Some(new));
        }
    }

    /// Lets `node` make `value` in `slot`, taking it from whoever made it before: so a replacement keeps name, type and
    /// users of the value that it replaces, graph outputs and captures included.
    pub fn take_over(&mut self, node: NodeId, slot: usize, value: ValueId) {
        if let Some((old, old_slot)) = self.producer(value) {
            self.set_output(old, old_slot, None);
        }
        self.set_output(node, slot, Some(value));
    }

    /// Records that a body of `node` uses `value`.
    pub fn add_capture(&mut self, node: NodeId, value: ValueId) {
        if !self.captures(node).contains(&value) {
            self.net.add_edge(value.0, node.0, Edge::Capture);
        }
    }

    /// Forgets that a body of `node` uses `value`.
    pub fn remove_capture(&mut self, node: NodeId, value: ValueId) {
        let e = self.net.edges_connecting(value.0, node.0).find(|e| *e.weight() == Edge::Capture).map(|e| e.id());
        if let Some(e) = e {
            self.net.remove_edge(e);
        }
    }

    /// Changes where a value comes from, keeping the list of initializers in step.
    pub fn set_def(&mut self, id: ValueId, def: Def) {
        let stored = matches!(def, Def::Initializer(_) | Def::Overridable(_));
        self.value_mut(id).def = def;
        let listed = self.initializers.contains(&id);
        if stored && !listed {
            self.initializers.push(id);
        } else if !stored && listed {
            self.initializers.retain(|&v| v != id);
        }
    }

    /// Changes what is known of a value's type.
    pub fn set_type(&mut self, id: ValueId, ty: Option<ValueType>) {
        self.value_mut(id).ty = ty;
    }

    /// Sets what the importer keeps of a value's message.
    pub fn set_residue(&mut self, id: ValueId, residue: Residue) {
        self.value_mut(id).residue = residue;
    }

    /// Changes a value's name. The caller vouches that it is unique.
    pub fn rename(&mut self, id: ValueId, name: impl Into<String>) {
        self.value_mut(id).name = name.into();
    }

    /// Lists the graph inputs.
    pub fn set_inputs(&mut self, inputs: Vec<ValueId>) {
        self.inputs = inputs;
    }

    /// Lists the graph outputs.
    pub fn set_outputs(&mut self, outputs: Vec<ValueId>) {
        self.outputs = outputs;
    }

    /// Says which node the graph is a body of.
    pub fn set_owner(&mut self, owner: Option<Owner>) {
        self.owner = owner;
    }

    /// Deletes a node; its outputs become free. Only `eliminate-dead` calls it.
    pub fn delete_node(&mut self, id: NodeId) {
        for v in self.node_outputs(id).into_iter().flatten() {
            self.value_mut(v).def = Def::Free;
        }
        self.bury(id.0);
    }

    /// Deletes a value that nothing uses or makes. Only `eliminate-dead` calls it.
    pub fn delete_value(&mut self, id: ValueId) {
        debug_assert!(self.n_uses(id) == 0 && self.producer(id).is_none());
        self.initializers.retain(|&v| v != id);
        self.inputs.retain(|&v| v != id);
        self.bury(id.0);
    }

    fn bury(&mut self, at: NodeIndex) {
        let ends = [Direction::Incoming, Direction::Outgoing];
        let edges: Vec<_> = ends.iter().flat_map(|&d| self.net.edges_directed(at, d).map(|e| e.id())).collect();
        for e in edges {
            self.net.remove_edge(e);
        }
        self.net[at] = Vertex::Gone;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_edits_and_order() {
        let mut g = Graph::new("g");
        let x = g.add_value("x", None, Def::Input);
        g.set_inputs(vec![x]);
        let (a, b) = (g.add_result("a", None), g.add_result("b", None));
        // The second node of the file comes first in the arena.
        let n2 =
            g.add_node(Node::new("Relu").at(super::super::Position { anchor: 1, offset: 0 }), &[Some(a)], &[Some(b)]);
        let n1 = g.add_node(Node::new("Add"), &[Some(x), Some(x)], &[Some(a)]);
        g.set_outputs(vec![b]);
        assert_eq!(g.order().unwrap(), vec![n1, n2]);
        assert_eq!(g.node_inputs(n1), vec![Some(x), Some(x)]);
        assert_eq!(g.consumers(x), vec![(n1, 0), (n1, 1)]);
        assert_eq!(g.producer(b), Some((n2, 0)));
        assert_eq!(g.n_uses(b), 1);
        g.set_input(n1, 3, Some(x));
        assert_eq!(g.node_inputs(n1), vec![Some(x), Some(x), None, Some(x)]);
        g.replace_uses(x, b);
        assert!(g.order().is_err(), "x was replaced by what depends on it");
    }
}
