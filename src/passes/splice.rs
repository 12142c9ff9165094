//! Copies the contents of one graph into another: the body of an `If` whose condition is known, the body of a function.

use std::collections::{HashMap, HashSet};

use crate::error::{Result, anyhow, ensure};
use crate::ir::graph::Owner;
use crate::ir::{Attr, Bindings, Def, GraphId, Model, Names, Node, NodeId, Position, ValueId};

/// Where the contents of a graph go.
pub(super) struct Splice<'a> {
    pub model: &'a mut Model,
    pub names: &'a mut Names,
    /// The graph that is copied.
    pub source: GraphId,
    /// The graph that it is copied into.
    pub target: GraphId,
    /// The node that the copy replaces.
    pub node: NodeId,
    /// In front of the names of what is copied; may be empty.
    pub prefix: String,
    /// What references to a function's attributes stand for.
    pub bindings: Bindings,
}

impl Splice<'_> {
    /// Copies everything: `inputs` stand for the inputs of the source, and its outputs are made into the outputs of
    /// the node that is replaced, which is left without any.
    ///
    /// # Errors
    /// The source uses a missing input where a value is required, or has too few outputs.
    pub(super) fn run(mut self, inputs: &[Option<ValueId>]) -> Result<()> {
        let results = self.model.graph(self.target).node_outputs(self.node);
        let node = self.node;
        for slot in 0..results.len() {
            self.model.graph_mut(self.target).set_output(node, slot, None);
        }
        let mut map = HashMap::new();
        let source = self.model.graph(self.source).clone();
        for (i, &v) in source.inputs().iter().enumerate() {
            map.insert(v, inputs.get(i).copied().flatten());
        }
        let made = self.outputs(&source, &results, &mut map)?;
        for v in source.values() {
            if !map.contains_key(&v) {
                let new = self.value(&source, v);
                map.insert(v, Some(new));
            }
        }
        for (i, n) in source.order()?.into_iter().enumerate() {
            self.node(&source, n, i32::try_from(i)?, &map)?;
        }
        // What the source does not make but passes on.
        for (&o, result) in source.outputs().iter().zip(results) {
            let Some(y) = result.filter(|y| !made.contains(y)) else { continue };
            let v = map.get(&o).copied().flatten().ok_or_else(|| anyhow!("an output is a missing input"))?;
            let node = self.model.graph(self.target).node(self.node);
            let identity =
                Node::new("Identity").named(self.names.fresh(&format!("{}_Identity", node.name))).at(node.pos);
            self.model.graph_mut(self.target).add_node(identity, &[Some(v)], &[Some(y)]);
        }
        Ok(())
    }

    /// Lets outputs that a node of the source makes become the results themselves, once each.
    fn outputs(
        &self,
        source: &crate::ir::Graph,
        results: &[Option<ValueId>],
        map: &mut HashMap<ValueId, Option<ValueId>>,
    ) -> Result<HashSet<ValueId>> {
        ensure!(results.len() <= source.outputs().len(), "it has {} outputs, its body makes fewer", results.len());
        let mut made = HashSet::new();
        for (&o, result) in source.outputs().iter().zip(results) {
            if let Some(y) = result
                && source.producer(o).is_some()
                && !map.contains_key(&o)
            {
                map.insert(o, Some(*y));
                made.insert(*y);
            }
        }
        Ok(made)
    }

    fn fresh(&mut self, name: &str) -> String {
        if name.is_empty() { String::new() } else { self.names.fresh(&format!("{}{name}", self.prefix)) }
    }

    fn value(&mut self, source: &crate::ir::Graph, v: ValueId) -> ValueId {
        let old = source.value(v).clone();
        if let Def::Capture(outer, inner) = old.def
            && outer == self.target
        {
            return inner;
        }
        let name = self.fresh(&old.name);
        let g = self.model.graph_mut(self.target);
        match old.def {
            Def::Initializer(t) | Def::Overridable(t) => {
                let id = g.add_initializer(name, t);
                g.set_type(id, old.ty);
                id
            }
            Def::Node => g.add_result(name, old.ty),
            _ => g.add_value(name, old.ty, Def::Free),
        }
    }

    fn node(
        &mut self,
        source: &crate::ir::Graph,
        n: NodeId,
        index: i32,
        map: &HashMap<ValueId, Option<ValueId>>,
    ) -> Result<()> {
        let of = |slots: Vec<Option<ValueId>>| -> Vec<Option<ValueId>> {
            slots.into_iter().map(|v| v.and_then(|v| map.get(&v).copied().flatten())).collect()
        };
        let mut node = source.node(n).clone();
        node.name = self.fresh(&node.name);
        node.attrs = node.attrs.bound(&self.bindings);
        let call = self.model.graph(self.target).node(self.node).pos;
        node.pos = Position { anchor: call.anchor, offset: call.offset.saturating_add(index) };
        let new =
            self.model.graph_mut(self.target).add_node(node, &of(source.node_inputs(n)), &of(source.node_outputs(n)));
        for v in source.captures(n) {
            let outer = map.get(&v).copied().flatten().ok_or_else(|| anyhow!("a body uses a missing input"))?;
            self.model.graph_mut(self.target).add_capture(new, outer);
        }
        self.bodies(self.target, new, self.source, &|v| map.get(&v).copied().flatten())
    }

    /// Gives a copied node copies of its bodies. `map` says what values of the graph `old`, which the original node is
    /// in, are in the graph that the copy is in.
    fn bodies(
        &mut self,
        graph: GraphId,
        node: NodeId,
        old: GraphId,
        map: &dyn Fn(ValueId) -> Option<ValueId>,
    ) -> Result<()> {
        let mut attrs = self.model.graph(graph).node(node).attrs.clone();
        for a in attrs.iter_mut() {
            match &mut a.value {
                Attr::Graph(b) => *b = self.body(*b, Owner { graph, node }, old, map)?,
                Attr::Graphs(list) => {
                    for b in list {
                        *b = self.body(*b, Owner { graph, node }, old, map)?;
                    }
                }
                _ => {}
            }
        }
        self.model.graph_mut(graph).node_mut(node).attrs = attrs;
        Ok(())
    }

    fn body(
        &mut self,
        body: GraphId,
        owner: Owner,
        old: GraphId,
        map: &dyn Fn(ValueId) -> Option<ValueId>,
    ) -> Result<GraphId> {
        let mut copy = self.model.graph(body).clone();
        copy.set_owner(Some(owner));
        for v in copy.values().collect::<Vec<_>>() {
            if let Def::Capture(outer, inner) = copy.value(v).def {
                ensure!(outer == old, "a body captures from a graph that does not own it");
                let source = map(inner).ok_or_else(|| anyhow!("a body uses a missing input"))?;
                let name = self.model.graph(owner.graph).value(source).name.clone();
                copy.set_def(v, Def::Capture(owner.graph, source));
                copy.rename(v, name);
            } else {
                let name = self.fresh(&copy.value(v).name.clone());
                copy.rename(v, name);
            }
        }
        for n in copy.nodes().collect::<Vec<_>>() {
            let name = self.fresh(&copy.node(n).name.clone());
            let node = copy.node_mut(n);
            node.name = name;
            node.attrs = node.attrs.bound(&self.bindings);
        }
        let id = self.model.add_graph(copy);
        for n in self.model.graph(id).nodes().collect::<Vec<_>>() {
            self.bodies(id, n, body, &Some)?;
        }
        Ok(id)
    }
}
