//! Prints a model for Graphviz: a box per node with its operator, edges with names and types of values, a cluster for
//! each body inside the graph of the node that owns it.
//!
//! Stored tensors are lines of the boxes of the nodes that read them, so that the picture shows what flows. Edges are
//! dashed where a body uses a value of an outer graph.

use std::fmt::Write as _;

use super::text::type_text;
use super::{Attr, Def, GraphId, Model, NodeId, ValueId};

/// Attributes longer than this are cut.
const MAX_ATTRIBUTE: usize = 40;

/// The model in Graphviz's language.
#[must_use]
pub fn print(model: &Model) -> String {
    let mut p = Printer { model, out: String::new() };
    p.out.push_str("digraph {\n  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=10];\n");
    p.out.push_str("  edge [fontname=\"sans-serif\", fontsize=8];\n");
    p.graph(GraphId::MAIN, 1);
    for f in &model.functions {
        p.cluster(f.body, &format!("function {}", f.name), 1);
    }
    p.out.push_str("}\n");
    p.out
}

struct Printer<'a> {
    model: &'a Model,
    out: String,
}

/// A string in quotes; Graphviz takes `\n` in it for a line break.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
    format!("\"{escaped}\"")
}

/// Lines in quotes.
fn lines(lines: &[String]) -> String {
    let inner = lines.iter().map(|l| {
        let quoted = quoted(l);
        quoted[1..quoted.len() - 1].to_owned()
    });
    let inner: Vec<String> = inner.collect();
    format!("\"{}\"", inner.join("\\n"))
}

impl Printer<'_> {
    fn line(&mut self, indent: usize, text: &str) {
        let _ = writeln!(self.out, "{}{text}", "  ".repeat(indent));
    }

    fn node_id(graph: GraphId, n: NodeId) -> String {
        format!("g{}_n{}", graph.index(), n.index())
    }

    fn value_id(graph: GraphId, v: ValueId) -> String {
        format!("g{}_v{}", graph.index(), v.index())
    }

    /// Where an edge of a value starts: the node that makes it, its own vertex, or the same in the outer graph.
    fn source(&self, graph: GraphId, v: ValueId) -> (String, bool) {
        let g = self.model.graph(graph);
        match g.value(v).def {
            Def::Capture(outer, of) => (self.source(outer, of).0, true),
            _ => match g.producer(v) {
                Some((n, _)) => (Self::node_id(graph, n), false),
                None => (Self::value_id(graph, v), false),
            },
        }
    }

    /// The stored tensor behind a value, that of an outer graph included.
    fn is_stored(&self, graph: GraphId, v: ValueId) -> bool {
        match self.model.graph(graph).value(v).def {
            Def::Initializer(_) => true,
            Def::Capture(outer, of) => self.is_stored(outer, of),
            _ => false,
        }
    }

    fn describe(&self, graph: GraphId, v: ValueId) -> String {
        let name = self.model.value_name(graph, v);
        match &self.model.graph(graph).value(v).ty {
            Some(ty) => format!("{name}: {}", type_text(ty)),
            None => name.to_owned(),
        }
    }

    fn cluster(&mut self, id: GraphId, label: &str, indent: usize) {
        self.line(indent, &format!("subgraph cluster_{} {{", id.index()));
        self.line(indent + 1, &format!("label={};", quoted(label)));
        self.graph(id, indent + 1);
        self.line(indent, "}");
    }

    fn graph(&mut self, id: GraphId, indent: usize) {
        let model = self.model;
        let g = model.graph(id);
        // Graph inputs, and values that nothing makes; stored tensors show in the nodes.
        for v in g.values() {
            let is_source = match g.value(v).def {
                Def::Input | Def::Overridable(_) => true,
                Def::Free => g.n_uses(v) > 0,
                _ => false,
            };
            if is_source {
                let label = quoted(&self.describe(id, v));
                self.line(indent, &format!("{} [shape=ellipse, label={label}];", Self::value_id(id, v)));
            }
        }
        let order = g.order().unwrap_or_else(|_| g.nodes().collect());
        for n in order {
            self.node(id, n, indent);
        }
        for (k, &v) in g.outputs().iter().enumerate() {
            let out = format!("g{}_out{k}", id.index());
            let label = quoted(&self.describe(id, v));
            self.line(indent, &format!("{out} [shape=ellipse, label={label}];"));
            let (from, _) = self.source(id, v);
            if !self.is_stored(id, v) {
                self.line(indent, &format!("{from} -> {out};"));
            }
        }
    }

    fn node(&mut self, graph: GraphId, n: NodeId, indent: usize) {
        let model = self.model;
        let g = model.graph(graph);
        let node = g.node(n);
        let mut label = vec![node.op_type.clone()];
        if !node.name.is_empty() {
            label.push(node.name.clone());
        }
        for a in node.attrs.iter() {
            if let Some(text) = attribute(&a.value) {
                label.push(format!("{} = {text}", a.name));
            }
        }
        let inputs: Vec<ValueId> = g.node_inputs(n).into_iter().flatten().collect();
        label.extend(inputs.iter().filter(|&&v| self.is_stored(graph, v)).map(|&v| self.describe(graph, v)));
        let id = Self::node_id(graph, n);
        self.line(indent, &format!("{id} [label={}];", lines(&label)));
        let flowing: Vec<ValueId> = inputs.into_iter().filter(|&v| !self.is_stored(graph, v)).collect();
        for v in flowing {
            let (from, is_captured) = self.source(graph, v);
            let style = if is_captured { ", style=dashed" } else { "" };
            let label = quoted(&self.describe(graph, v));
            self.line(indent, &format!("{from} -> {id} [label={label}{style}];"));
        }
        for a in node.attrs.iter() {
            let bodies: &[GraphId] = match &a.value {
                Attr::Graph(b) => std::slice::from_ref(b),
                Attr::Graphs(b) => b,
                _ => &[],
            };
            for &b in bodies {
                self.cluster(b, &format!("{} of {}", a.name, node.label()), indent);
            }
        }
    }
}

/// An attribute in few letters; `None` for bodies, which are drawn.
fn attribute(value: &Attr) -> Option<String> {
    let text = match value {
        Attr::Float(x) => x.to_string(),
        Attr::Int(x) => x.to_string(),
        Attr::String(s) => String::from_utf8_lossy(s).into_owned(),
        Attr::Floats(v) => format!("{v:?}"),
        Attr::Ints(v) => format!("{v:?}"),
        Attr::Strings(v) => v.iter().map(|s| String::from_utf8_lossy(s)).collect::<Vec<_>>().join(", "),
        Attr::Tensor(t) => format!("{}{:?}", t.dtype(), t.shape()),
        Attr::Tensors(v) => format!("{} tensors", v.len()),
        Attr::Type(t) => type_text(t),
        Attr::Ref(name) => format!("@{name}"),
        Attr::Graph(_) | Attr::Graphs(_) => return None,
        Attr::Opaque => "…".into(),
    };
    Some(if text.chars().count() > MAX_ATTRIBUTE {
        text.chars().take(MAX_ATTRIBUTE).chain(['…']).collect()
    } else {
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::text_parse;
    use super::*;

    #[test]
    fn boxes_edges_and_clusters() {
        let model = text_parse::parse(
            "<ir_version: 8, opset_import: [\"\": 17]>
             g (float[N,2] x, bool c) => (float[N,2] y)
             <float[2] w = {1, 2}>
             {
               [first] a = Add (x, w)
               [\"a \\\"b\\\"\"] y = If (c) <
                 then_branch = t () => (float[N,2] p) { p = Relu (a) },
                 else_branch = e () => (float[N,2] q) { q = Identity (w) }>
             }",
        )
        .unwrap();
        let dot = print(&model);
        for part in [
            "[label=\"Add\\nfirst\\nw: float[2]\"];",
            "[label=\"x: float[N,2]\"];",
            "label=\"then_branch of a \\\"b\\\"\";",
            "[label=\"Identity\\nw: float[2]\"];",
            ", style=dashed];",
            "[shape=ellipse, label=\"y: float[N,2]\"];",
        ] {
            assert!(dot.contains(part), "{part} is missing in\n{dot}");
        }
        assert_eq!(dot.matches('{').count(), dot.matches('}').count());
        assert_eq!(dot.matches("subgraph cluster_").count(), 2);
        assert_eq!(dot, print(&model));
    }
}
