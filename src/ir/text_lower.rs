//! Makes a model of parsed text: names become values, and a body's use of an outer value becomes a capture at each level
//! in between. A name that nobody defines becomes a free value, which `verify` reports.

use std::collections::HashMap;

use super::graph::Owner;
use super::text_parse::{PAttr, PGraph, PNode};
use super::{Attr, Def, Graph, GraphId, Model, Position, ValueId};
use crate::error::{Result, ensure};

/// Makes graphs of what was parsed.
pub(super) struct Lower {
    pub(super) model: Model,
    names: HashMap<GraphId, HashMap<String, ValueId>>,
    overridable: bool,
}

impl Lower {
    pub(super) fn new(model: Model) -> Self {
        let overridable = model.ir_version >= 4;
        Lower { model, names: HashMap::new(), overridable }
    }

    pub(super) fn graph(&mut self, id: GraphId, parsed: PGraph) -> Result<()> {
        let PGraph { name, inputs, outputs, others, nodes } = parsed;
        let overridable = self.overridable;
        let g = self.model.graph_mut(id);
        g.name = name;
        let mut names = HashMap::new();
        let mut input_ids = Vec::new();
        for v in inputs {
            let id = g.add_value(&v.name, v.ty, Def::Input);
            ensure!(names.insert(v.name.clone(), id).is_none(), "two values are named \"{}\"", v.name);
            if let Some(t) = v.tensor {
                g.set_def(id, if overridable { Def::Overridable(t) } else { Def::Initializer(t) });
            }
            input_ids.push(id);
        }
        g.set_inputs(input_ids);
        let mut types = Vec::new();
        for v in others {
            match (v.tensor, names.get(&v.name)) {
                (None, _) => types.push((v.name, v.ty)),
                (Some(t), Some(&input)) => {
                    g.set_def(input, if overridable { Def::Overridable(t) } else { Def::Initializer(t) });
                }
                (Some(t), None) => {
                    let id = g.add_initializer(&v.name, t);
                    g.set_type(id, v.ty);
                    names.insert(v.name, id);
                }
            }
        }
        for name in nodes.iter().flat_map(|n| &n.outputs).filter(|n| !n.is_empty()) {
            let v = g.add_result(name, None);
            ensure!(names.insert(name.clone(), v).is_none(), "two values are named \"{name}\"");
        }
        self.names.insert(id, names);
        for (i, node) in nodes.into_iter().enumerate() {
            self.node(id, u32::try_from(i)?, node)?;
        }
        let mut output_ids = Vec::new();
        for v in outputs {
            let o = self.resolve(id, &v.name);
            types.push((v.name, v.ty));
            output_ids.push(o);
        }
        self.model.graph_mut(id).set_outputs(output_ids);
        for (name, ty) in types {
            let v = self.resolve(id, &name);
            let g = self.model.graph_mut(id);
            if g.value(v).ty.is_none() {
                g.set_type(v, ty);
            }
        }
        Ok(())
    }

    fn node(&mut self, id: GraphId, i: u32, parsed: PNode) -> Result<()> {
        let PNode { mut node, inputs, outputs, attrs } = parsed;
        node.pos = Position { anchor: i, offset: 0 };
        let mut ids = |names: Vec<String>| -> Vec<_> {
            names.iter().map(|n| if n.is_empty() { None } else { Some(self.resolve(id, n)) }).collect()
        };
        let (inputs, outputs) = (ids(inputs), ids(outputs));
        let n = self.model.graph_mut(id).add_node(node, &inputs, &outputs);
        for (name, attr) in attrs {
            let attr = match attr {
                PAttr::Plain(a) => a,
                PAttr::Graph(g) => Attr::Graph(self.body(Owner { graph: id, node: n }, g)?),
                PAttr::Graphs(v) => Attr::Graphs(
                    v.into_iter().map(|g| self.body(Owner { graph: id, node: n }, g)).collect::<Result<_>>()?,
                ),
            };
            self.model.graph_mut(id).node_mut(n).attrs.set(&name, attr);
        }
        Ok(())
    }

    fn body(&mut self, owner: Owner, parsed: PGraph) -> Result<GraphId> {
        let mut g = Graph::new("");
        g.set_owner(Some(owner));
        let id = self.model.add_graph(g);
        self.graph(id, parsed)?;
        Ok(id)
    }

    /// The value that a name means in a graph; one that nobody defines is free.
    fn resolve(&mut self, id: GraphId, name: &str) -> ValueId {
        if let Some(v) = self.visible(id, name) {
            return v;
        }
        let v = self.model.graph_mut(id).add_value(name, None, Def::Free);
        self.names.entry(id).or_default().insert(name.to_owned(), v);
        v
    }

    fn visible(&mut self, id: GraphId, name: &str) -> Option<ValueId> {
        if let Some(&v) = self.names.get(&id).and_then(|n| n.get(name)) {
            return Some(v);
        }
        let owner = self.model.graph(id).owner()?;
        let outer = self.visible(owner.graph, name)?;
        let ty = self.model.graph(owner.graph).value(outer).ty.clone();
        self.model.graph_mut(owner.graph).add_capture(owner.node, outer);
        let v = self.model.graph_mut(id).add_value(name, ty, Def::Capture(owner.graph, outer));
        self.names.entry(id).or_default().insert(name.to_owned(), v);
        Some(v)
    }
}

#[cfg(test)]
mod tests {
    use crate::ir::Def;
    use crate::ir::text::{PrintOptions, print};
    use crate::ir::text_parse::parse;
    use crate::ir::verify::verify;

    fn reprint(text: &str) -> String {
        let model = parse(text).unwrap();
        let printed = print(&model, &PrintOptions::default());
        let again = print(&parse(&printed).unwrap(), &PrintOptions::default());
        assert_eq!(printed, again);
        printed
    }

    #[test]
    fn everything_prints_as_it_was_read() {
        let text = r#"<
  ir_version: 8,
  opset_import: ["" : 17, "my-domain.x" : 1],
  producer_name: "say \"hi\"",
  metadata_props: ["key": "value"]
>
"main graph" (float[N,3,?,"a b"] "x 1", float z = {1.5}, float[] unranked, seq(int64) s) => (float y, "float")
<
  float[2] w = {1.5, -2.0},
  float16[1] h = {15360},
  string[1] t = {"a\\b"},
  float[64] big = ["sha256": "00"],
  optional(float[1]) q
>
{
  [n1] a = Add <e: ints = [], f = 1.0, g = 1, s = "text", v = [1.0, -inf], t = float[1] = {3.0}, y = float[N,?], b = x"ff"> (unranked, "", w)
  "", q = "my-domain".x.Foo:over (z, big)
  y = If <then_branch = g1 () => (float b)
  {
    b = Neg (w)
  }, else_branch = "g 2" () => (float c)
  {
    c = If <then_branch = g3 () => (float d)
    {
      d = Neg (a)
    }> ("x 1")
  }> (undefined_name)
  "float" = Relu <alpha = @beta> (h)
}

<
  domain: "my-domain.x",
  overload: "over",
  opset_import: ["" : 17]
>
Foo <beta, gamma = 1.0> (x) => (y)
{
  y = Neg (x)
}

"#;
        assert_eq!(reprint(text), text);
        let model = parse(text).unwrap();
        assert_eq!(verify(&model), Vec::<String>::new());
        let main = model.main();
        let find = |name: &str| main.find_value(name).unwrap();
        assert!(matches!(main.value(find("z")).def, Def::Overridable(_)));
        assert!(matches!(main.value(find("undefined_name")).def, Def::Free));
        let branch = main.producer(find("y")).unwrap().0;
        let mut captured = ["w", "x 1", "a"].map(find);
        captured.sort();
        assert_eq!(main.captures(branch), captured);
    }

    #[test]
    fn old_models_list_their_constants_as_inputs() {
        let model = parse("<ir_version: 3> g (float[1] x, float[1] w = {2.0}) => (y) { y = Add(x, w) }").unwrap();
        let w = model.main().find_value("w").unwrap();
        assert!(model.main().constant(w).is_some() && model.main().inputs().contains(&w));
    }

    #[test]
    fn errors_say_line_and_column() {
        let cases = [
            ("g (float x) => (y)\n{ y = Neg(x }", "line 2, column 13: expected ')', found '}'"),
            ("g (float x) -> (y) {}", "line 1, column 13: expected '=', found '-'"),
            ("<foo: 1> g () => () {}", "line 1, column 6: a model has no field 'foo'"),
            ("g () => () < float[2] w = {1.0} > {}", "line 1, column 32: shape [2] does not hold 1 elements"),
            ("g () => () { y = Neg <a = []> () }", "an empty list needs a kind"),
            ("g () => () { y = Neg <a = [1, \"b\"]> () }", "the elements of a list are of one kind"),
            ("g () => () < uint8[1] w = {256} > {}", "256 does not fit uint8"),
            ("g () => () { y = Neg() y = Neg() }", "two values are named"),
            ("\"g", "the string does not end"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
