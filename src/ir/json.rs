//! Prints a model as JSON, for programs. Version 1 of the form:
//!
//! ```json
//! {
//!   "schema": 1,
//!   "ir_version": 8,
//!   "opsets": [{ "domain": "", "version": 17 }],
//!   "producer_name": "", "producer_version": "", "metadata": { "key": "value" },
//!   "graphs": [{
//!     "id": 0, "name": "main",
//!     "owner": null,
//!     "inputs": ["x"], "outputs": ["y"],
//!     "values": [{ "name": "x", "kind": "input", "type": "float[N,3]", "dtype": "float", "shape": ["N", 3] }],
//!     "nodes": [{
//!       "name": "conv", "op_type": "Conv", "domain": "",
//!       "inputs": ["x", "w", null], "outputs": ["y"],
//!       "attributes": { "group": 1 }
//!     }]
//!   }],
//!   "functions": [{ "domain": "", "name": "f", "overload": "", "attributes": [], "body": 1 }]
//! }
//! ```
//!
//! The main graph has id 0; `owner` of a body is `{ "graph": 0, "node": "if" }`. Nodes come in the order of execution.
//! `kind` is `input`, `initializer`, `overridable` (an input with a stored default), `node`, `capture` (of an outer
//! graph's value) or `free` (made by nothing). `shape` holds numbers, names, and null for what is not known; it is
//! missing when the rank is not known. Initializers have a `digest` (see `text`), and `data` in row-major order when they
//! have at most 32 elements. A body in an attribute is `{ "graph": 1 }`, a tensor has `dtype`, `shape`, `digest`, `data`,
//! a reference to a function's attribute is `{ "ref": "name" }`. Numbers that are not finite are the strings `nan`,
//! `inf` and `-inf`.

use serde_json::{Map, Value, json};

use super::text::{digest, type_text};
use super::{Attr, Def, Dim, Domain, GraphId, Model, NodeId, TensorRef, ValueId, ValueType};

/// Tensors of more elements have a digest only.
const MAX_ELEMENTS: usize = 32;

/// The model as JSON text; see the module's documentation.
#[must_use]
pub fn print(model: &Model) -> String {
    let functions: Vec<Value> = model
        .functions
        .iter()
        .map(|f| {
            json!({
                "domain": f.domain.canonical(), "name": f.name, "overload": f.overload,
                "attributes": f.attributes, "body": f.body.index(),
            })
        })
        .collect();
    let metadata: Map<String, Value> = model.metadata.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    let value = json!({
        "schema": 1,
        "ir_version": model.ir_version,
        "opsets": opsets(&model.opsets),
        "producer_name": model.producer_name,
        "producer_version": model.producer_version,
        "metadata": metadata,
        "graphs": model.graph_ids().map(|id| graph(model, id)).collect::<Vec<_>>(),
        "functions": functions,
    });
    format!("{value:#}\n")
}

fn opsets(opsets: &[(Domain, i64)]) -> Vec<Value> {
    opsets.iter().map(|(d, v)| json!({ "domain": d.canonical(), "version": v })).collect()
}

fn graph(model: &Model, id: GraphId) -> Value {
    let g = model.graph(id);
    let names = |v: &[ValueId]| v.iter().map(|&v| model.value_name(id, v)).collect::<Vec<_>>();
    let owner =
        g.owner().map(|o| json!({ "graph": o.graph.index(), "node": model.graph(o.graph).node(o.node).label() }));
    let order = g.order().unwrap_or_else(|_| g.nodes().collect());
    json!({
        "id": id.index(),
        "name": g.name,
        "owner": owner,
        "inputs": names(g.inputs()),
        "outputs": names(g.outputs()),
        "values": g.values().map(|v| value(model, id, v)).collect::<Vec<_>>(),
        "nodes": order.into_iter().map(|n| node(model, id, n)).collect::<Vec<_>>(),
    })
}

fn value(model: &Model, graph: GraphId, id: ValueId) -> Value {
    let v = model.graph(graph).value(id);
    let mut out = Map::new();
    out.insert("name".into(), model.value_name(graph, id).into());
    let (kind, tensor) = match &v.def {
        Def::Input => ("input", None),
        Def::Initializer(t) => ("initializer", Some(t)),
        Def::Overridable(t) => ("overridable", Some(t)),
        Def::Node => ("node", None),
        Def::Capture(..) => ("capture", None),
        Def::Free => ("free", None),
    };
    out.insert("kind".into(), kind.into());
    if let Some(ty) = &v.ty {
        out.insert("type".into(), type_text(ty).into());
        if let ValueType::Tensor(t) = ty {
            if let Some(d) = t.dtype {
                out.insert("dtype".into(), d.name().into());
            }
            if let Some(shape) = &t.shape {
                let dim = |d: &Dim| match d {
                    Dim::Known(n) => Value::from(*n),
                    Dim::Symbol(s) => Value::from(&**s),
                    Dim::Unknown => Value::Null,
                };
                out.insert("shape".into(), shape.iter().map(dim).collect());
            }
        }
    }
    if let Some(t) = tensor {
        contents(t, &mut out);
    }
    Value::Object(out)
}

fn node(model: &Model, graph: GraphId, id: NodeId) -> Value {
    let g = model.graph(graph);
    let n = g.node(id);
    let names = |slots: Vec<Option<ValueId>>| {
        slots.into_iter().map(|v| v.map(|v| model.value_name(graph, v))).collect::<Vec<_>>()
    };
    let attributes: Map<String, Value> = n.attrs.iter().map(|a| (a.name.clone(), attribute(&a.value))).collect();
    json!({
        "name": n.name,
        "op_type": n.op_type,
        "domain": n.domain.canonical(),
        "inputs": names(g.node_inputs(id)),
        "outputs": names(g.node_outputs(id)),
        "attributes": attributes,
    })
}

fn attribute(value: &Attr) -> Value {
    let text = |b: &[u8]| Value::from(String::from_utf8_lossy(b));
    match value {
        Attr::Float(x) => number(f64::from(*x)),
        Attr::Int(x) => (*x).into(),
        Attr::String(s) => text(s),
        Attr::Floats(v) => v.iter().map(|x| number(f64::from(*x))).collect(),
        Attr::Ints(v) => v.as_slice().into(),
        Attr::Strings(v) => v.iter().map(|s| text(s)).collect(),
        Attr::Tensor(t) => tensor(t),
        Attr::Tensors(v) => v.iter().map(tensor).collect(),
        Attr::Graph(g) => json!({ "graph": g.index() }),
        Attr::Graphs(v) => v.iter().map(|g| json!({ "graph": g.index() })).collect(),
        Attr::Type(t) => type_text(t).into(),
        Attr::Ref(name) => json!({ "ref": name }),
        Attr::Opaque => Value::Null,
    }
}

fn tensor(t: &TensorRef) -> Value {
    let mut out = Map::new();
    out.insert("dtype".into(), t.dtype().name().into());
    out.insert("shape".into(), t.shape().into());
    contents(t, &mut out);
    Value::Object(out)
}

/// Digest and, for small tensors, elements. A tensor that cannot be decoded has neither.
fn contents(t: &TensorRef, out: &mut Map<String, Value>) {
    let Ok(tensor) = t.get() else { return };
    out.insert("digest".into(), digest(tensor).into());
    if tensor.len() > MAX_ELEMENTS {
        return;
    }
    let data: Option<Value> = match tensor.to_i64s() {
        Ok(v) => Some(v.into()),
        Err(_) => match tensor.slice::<String>() {
            Ok(v) => Some(v.into()),
            Err(_) => tensor.to_f64s().ok().map(|v| v.into_iter().map(number).collect()),
        },
    };
    if let Some(data) = data {
        out.insert("data".into(), data);
    }
}

fn number(x: f64) -> Value {
    if x.is_finite() {
        x.into()
    } else if x.is_nan() {
        "nan".into()
    } else if x > 0.0 {
        "inf".into()
    } else {
        "-inf".into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::text_parse;
    use super::*;

    #[test]
    fn what_the_documentation_says() {
        let model = text_parse::parse(
            "<ir_version: 8, opset_import: [\"\": 17]>
             g (float[N,?] x, bool c) => (float[] y)
             <float[2] w = {1, -inf}>
             {
               [clip] a = Clip (x, \"\", w)
               [if] y = If (c) <
                 then_branch = t () => (float p) { p = Relu <alpha = 0.5> (a) },
                 else_branch = e () => (float q) { q = Identity (w) }>
             }",
        )
        .unwrap();
        let v: Value = serde_json::from_str(&print(&model)).unwrap();
        assert_eq!(v["schema"], 1);
        assert_eq!(v["opsets"], json!([{ "domain": "", "version": 17 }]));
        let main = &v["graphs"][0];
        assert_eq!(main["inputs"], json!(["x", "c"]));
        assert_eq!(main["nodes"][0]["inputs"], json!(["x", null, "w"]));
        let find = |g: &Value, name: &str| {
            g["values"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned().unwrap()
        };
        assert_eq!(find(main, "x")["shape"], json!(["N", null]));
        assert_eq!(find(main, "w")["data"], json!([1.0, "-inf"]));
        assert_eq!(find(main, "w")["kind"], "initializer");
        assert!(find(main, "y").get("shape").is_none());
        let then = main["nodes"][1]["attributes"]["then_branch"]["graph"].as_u64().unwrap();
        let then = &v["graphs"][then as usize];
        assert_eq!(then["owner"], json!({ "graph": 0, "node": "if" }));
        assert_eq!(find(then, "a")["kind"], "capture");
        assert_eq!(then["nodes"][0]["attributes"]["alpha"], 0.5);
    }
}
