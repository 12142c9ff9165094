//! What we print in ONNX's textual syntax, ONNX's own parser reads; what we print for Graphviz, a parser of its language.

mod common;

use common::{python, testdata};
use onnx_quant::ir::dot;
use onnx_quant::ir::text::{PrintOptions, print};
use onnx_quant::ir::text_parse::parse;
use serde_json::json;

const PARSE: &str = "import onnx.parser, onnx.printer\n\
                     def main(text):\n    m = onnx.parser.parse_model(text)\n    return onnx.printer.to_text(m)\n";

/// Every type, name and attribute that is hard to write.
const HARD: &str = r#"
<ir_version: 10, opset_import: ["" : 21, "a.b" : 1], producer_name: "a \"b\" \\", metadata_props: ["k": "v"]>
main (float[N,"2*N",?,3] x, float z = {1.5}, float[] u, seq(float[2]) s, optional(int64) o) => (float y)
<
  float[3] w = {1.5, -2e-30, 1e30}, double[2] d = {-inf, nan}, float16[1] h = {15360}, bool[2] b = {1, 0},
  string[1] str = {"a\"b"}, uint64[1] big = {18446744073709551615}, int64[1] low = {-9223372036854775808},
  int8[0] empty = {}, float[100] far = ["sha256": "0123"]
>
{
  [n] a = Foo <i = 1, f = 1.0, inf = -inf, s = "x", li = [1], lf = [0.5], e: floats = [], t = float[1] {3.0}, ty = float[N]> (x, , w)
  ["n 2"] "", "q r" = a.b.Call:over (d, h)
  y = If <then_branch = g1 () => (float v) { v = Neg (a) }, else_branch = g2 () => (float t) { t = Neg ("q r") }> (b)
}
<domain: "a.b", overload: "over", opset_import: ["" : 21]> Call <alpha> (p, q) => (o, r)
{
  o = Neg <a = @alpha> (p)
  r = Neg (q)
}
"#;

#[test]
fn onnx_parses_what_we_print() {
    let ours = print(&parse(HARD).unwrap(), &PrintOptions::default());
    let theirs = python::call(PARSE, json!(ours)).unwrap_or_else(|e| panic!("{e}\n{ours}"));
    // Both parsers understand the same thing: what ONNX prints of it reads here as the same model.
    // (Its printer leaves out complex numbers and the defaults of a function's attributes.)
    let again = parse(theirs.as_str().unwrap()).unwrap_or_else(|e| panic!("{e}\n{theirs}"));
    let again = print(&again, &PrintOptions::default());
    let lines = |s: &str| s.lines().map(str::to_owned).collect::<Vec<_>>();
    let (a, b) = (lines(&ours), lines(&again));
    let different: Vec<_> = a.iter().zip(&b).filter(|(a, b)| a != b).collect();
    assert!(different.is_empty() && a.len() == b.len(), "{different:#?}\n{ours}\n{again}");
}

/// The names of all nodes, and the ends of edges that are no node: those Graphviz would draw as empty boxes.
const PARSE_DOT: &str = "import pydot\n\
    def main(text):\n\
    \x20   graphs = pydot.graph_from_dot_data(text)\n\
    \x20   def walk(g):\n\
    \x20       yield g\n\
    \x20       for s in g.get_subgraphs(): yield from walk(s)\n\
    \x20   parts = list(walk(graphs[0]))\n\
    \x20   nodes = {n.get_name() for g in parts for n in g.get_nodes()}\n\
    \x20   ends = [e for g in parts for x in g.get_edges() for e in (x.get_source(), x.get_destination())]\n\
    \x20   return {'graphs': len(graphs), 'nodes': len(nodes), 'edges': len(ends) // 2,\n\
    \x20           'strange': [e for e in ends if e.split(':')[0] not in nodes]}\n";

#[test]
fn graphviz_parses_what_we_print() {
    let mut models = vec![("hard names".to_owned(), parse(HARD).unwrap())];
    for entry in std::fs::read_dir(testdata("models")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "onnx") {
            models.push((path.display().to_string(), onnx_quant::onnx::read(&path).unwrap()));
        }
    }
    assert!(models.len() > 10, "only {} models", models.len());
    for (name, model) in models {
        let text = dot::print(&model);
        let seen = python::call(PARSE_DOT, json!(text)).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
        let least: usize = model.graph_ids().map(|g| model.graph(g).nodes().count()).sum();
        assert_eq!(seen["graphs"], 1, "{name}\n{text}");
        assert!(seen["nodes"].as_u64().unwrap() as usize >= least, "{name}: {seen} of {least}\n{text}");
        assert_eq!(seen["edges"].as_u64().unwrap() as usize, text.matches("->").count(), "{name}\n{text}");
        assert_eq!(seen["strange"], json!([]), "{name}\n{text}");
    }
}
