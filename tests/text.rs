//! What we print in ONNX's textual syntax, ONNX's own parser reads.

mod common;

use common::python;
use onnx_quant::ir::text::{PrintOptions, print};
use onnx_quant::ir::text_parse::parse;
use serde_json::json;

const PARSE: &str = "import onnx.parser, onnx.printer\n\
                     def main(text):\n    m = onnx.parser.parse_model(text)\n    return onnx.printer.to_text(m)\n";

#[test]
fn onnx_parses_what_we_print() {
    let text = r#"
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
    let ours = print(&parse(text).unwrap(), &PrintOptions::default());
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
