//! Shapes with named dimensions: inference computes with the names, so that the dump of a model with dynamic axes says
//! how every size follows from those of the inputs.

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::sizes::Sizes;
use common::tensors::from_array;
use common::{npz, zoo};
use onnx_quant::diag::Sink;
use onnx_quant::infer::infer;
use onnx_quant::interp::{CompileOptions, Program, RunOptions};
use onnx_quant::ir::text::type_text;
use onnx_quant::ir::text_parse::parse;
use onnx_quant::ir::{Def, Dim, GraphId, Model, ValueId, ValueType};
use onnx_quant::ops::Item;
use onnx_quant::tensor::Tensor;

/// What a case shows, its graph, and the type of its output.
const CASES: &[(&str, &str, &str)] = &[
    (
        "heads of an attention, from Shape, Gather, Unsqueeze, Concat and Reshape",
        "main (float[N,S,12] x) => (y)
         <int64 zero = {0}, int64 one = {1}, int64[1] axes = {0}, int64[1] heads = {3}, int64[1] size = {4}> {
           s = Shape (x)
           n = Gather <axis = 0> (s, zero)
           t = Gather <axis = 0> (s, one)
           n1 = Unsqueeze (n, axes)
           t1 = Unsqueeze (t, axes)
           shape = Concat <axis = 0> (n1, t1, heads, size)
           r = Reshape (x, shape)
           y = Transpose <perm = [0, 2, 1, 3]> (r)
         }",
        "float[N,3,S,4]",
    ),
    (
        "a size twice that of the input, from Slice, Mul and Concat",
        "main (float[N,3,H,W] x) => (y)
         <int64[1] two = {2}, int64[1] four = {4}, int64[1] start = {0}, int64[2] twice = {2, 2}> {
           s = Shape (x)
           hw = Slice (s, two, four)
           big = Mul (hw, twice)
           nc = Slice (s, start, two)
           sizes = Concat <axis = 0> (nc, big)
           y = Resize <mode = \"nearest\"> (x, , , sizes)
         }",
        "float[N,3,\"2*H\",\"2*W\"]",
    ),
    (
        "convolutions with strides",
        "main (float[N,3,H,W] x, float[4,3,3,3] w, float[5,4,3,3] v) => (y) {
           a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
           y = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (a, v)
         }",
        "float[N,5,\"floor((H + 3)/4)\",\"floor((W + 1)/2)\"]",
    ),
    (
        "a pool, and a transposed convolution that undoes it",
        "main (float[N,3,H,W] x, float[3,6,2,2] w) => (y) {
           a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
           y = ConvTranspose <strides = [2, 2]> (a, w)
         }",
        "float[N,6,\"2*floor(H/2)\",\"2*floor(W/2)\"]",
    ),
    (
        "the rest of a Reshape",
        "main (float[N,8,H,W] x) => (y) <int64[3] shape = {0, 0, -1}> { y = Reshape (x, shape) }",
        "float[N,8,\"H*W\"]",
    ),
    ("a product of dimensions", "main (float[N,8,H,W] x) => (y) { y = Flatten (x) }", "float[N,\"8*H*W\"]"),
    (
        "positions, from Shape and Range",
        "main (int64[B,S] x) => (y) <int64 zero = {0}, int64 one = {1}, int64[1] axes = {0}> {
           s = Shape (x)
           n = Gather <axis = 0> (s, one)
           p = Range (zero, n, one)
           y = Unsqueeze (p, axes)
         }",
        "int64[1,S]",
    ),
    (
        "a mask that is expanded to the shape of another input",
        "main (float[B,S,4] x, float[S,1] m) => (y) {
           s = Shape (x)
           y = Expand (m, s)
         }",
        "float[B,S,4]",
    ),
    (
        "two sequences behind each other",
        "main (float[B,S,4] x, float[B,P,4] past) => (y) { y = Concat <axis = 1> (past, x) }",
        "float[B,\"P + S\",4]",
    ),
];

fn inferred(model: &mut Model) -> Vec<String> {
    let mut sink = Sink::default();
    infer(model, &mut sink).unwrap();
    sink.diagnostics().iter().filter(|d| d.code == "shape-inference").map(ToString::to_string).collect()
}

#[test]
fn sizes_are_computed_with_names() {
    let mut wrong = String::new();
    for (what, graph, expected) in CASES {
        let text = format!("<ir_version: 8, opset_import: [\"\" : 17]>\n{graph}");
        let mut model = parse(&text).unwrap_or_else(|e| panic!("{what}: {e}"));
        let found = inferred(&mut model);
        assert!(found.is_empty(), "{what}: {found:?}");
        let g = model.main();
        let got = g.value(g.outputs()[0]).ty.as_ref().map_or_else(|| "nothing".to_owned(), type_text);
        if got != *expected {
            writeln!(wrong, "{what}: {got}, expected {expected}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Small models whose values have sizes that follow from nothing that inference sees, inputs, and what is printed.
const NAMED: &[(&str, &str, &[&str])] = &[
    (
        "a size of an input without a name, and the number of elements that are not zero; the outputs stay open",
        "main (float[N,?] x) => (y, n) <int64[1] axes = {1}> {
           n = NonZero (x)
           t = Transpose <perm = [1, 0]> (n)
           y = Concat <axis = 1> (x, x)
         }",
        &["n int64[2,?]", "t int64[n_dim_1,2]", "y float[N,\"2*x_dim_1\"]"],
    ),
    (
        "what a loop carries and leaves as it is, and what grows",
        "main (float[N,4] x, int64 count) => (last, all) <bool true = {1}> {
           last, all = Loop <body = body (int64 i, bool go, float[] a, float[] b) => (bool go_on, float[] c, float[] d) {
             go_on = Identity (go)
             c = Relu (a)
             d = Concat <axis = 0> (b, a)
           }> (count, true, x, x)
           more = Relu (all)
         }",
        &["last float[N,4]", "more float[all_dim_0,4]"],
    ),
];

#[test]
fn sizes_that_follow_from_nothing_get_names() {
    let mut wrong = String::new();
    for (what, graph, expected) in NAMED {
        let text = format!("<ir_version: 8, opset_import: [\"\" : 17]>\n{graph}");
        let mut model = parse(&text).unwrap_or_else(|e| panic!("{what}: {e}"));
        let declared: Vec<_> = model.main().inputs().iter().map(|&v| model.main().value(v).ty.clone()).collect();
        let found = inferred(&mut model);
        assert!(found.is_empty(), "{what}: {found:?}");
        let g = model.main();
        let after: Vec<_> = g.inputs().iter().map(|&v| g.value(v).ty.clone()).collect();
        assert_eq!(after, declared, "{what}: the inputs stay as declared");
        let types: Vec<String> = g
            .values()
            .map(|v| format!("{} {}", g.value(v).name, g.value(v).ty.as_ref().map_or("?".into(), type_text)))
            .collect();
        for e in *expected {
            if !types.iter().any(|t| t == e) {
                writeln!(wrong, "{what}: no {e} in {types:?}").unwrap();
            }
        }
        // The same names when it is done again.
        let mut again = model.clone();
        inferred(&mut again);
        let g = again.main();
        let second: Vec<String> = g
            .values()
            .map(|v| format!("{} {}", g.value(v).name, g.value(v).ty.as_ref().map_or("?".into(), type_text)))
            .collect();
        assert_eq!(types, second, "{what}");
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Real models with open sizes, and how many sizes and shapes of their values at most may stay unknown: those of values
/// that come from one of two branches with different ranks.
const MODELS: &[(&str, usize)] = &[
    ("crnn_en", 0),
    ("magika", 0),
    ("minilm_l3", 0),
    ("minilm_l6_int8", 0),
    ("oww_melspec", 0),
    ("ppocr_v2_cls", 0),
    ("ppocr_v4_det", 0),
    ("ppocr_v4_rec", 0),
    ("silero_vad_op15", 25),
    ("slanet_table", 0),
    ("thai_deepcut", 0),
];

/// Sizes of which nothing is known, and those in all, among the values of a model and its bodies.
fn open_sizes(model: &Model) -> (usize, usize) {
    let mut counts = (0, 0);
    for id in model.graph_ids() {
        let g = model.graph(id);
        for v in g.values().filter(|&v| matches!(g.value(v).def, Def::Node)) {
            let shape = g.value(v).ty.as_ref().and_then(ValueType::shape);
            counts.0 += shape.map_or(1, |s| s.iter().filter(|d| **d == Dim::Unknown).count());
            counts.1 += shape.map_or(1, <[Dim]>::len);
        }
    }
    counts
}

/// Whether the sizes with names come to those of the values that a sample gives; how many values were compared.
fn agrees(model: &Model, sample: &Path) -> Result<usize, String> {
    let all = CompileOptions { watch: &|_, _| true, ..CompileOptions::default() };
    let program = Program::compile(model, &all).map_err(|e| format!("{e:#}"))?;
    let inputs: Vec<(String, Tensor)> = npz::read(sample).iter().map(|(n, a)| (n.clone(), from_array(a))).collect();
    let mut sizes = Sizes::default();
    let g = model.main();
    for &v in g.inputs() {
        if let Some((_, t)) = inputs.iter().find(|(n, _)| *n == g.value(v).name) {
            sizes.bind(g.value(v).ty.as_ref(), t);
        }
    }
    let (mut n, mut wrong) = (0, None);
    let mut tap = |id: GraphId, v: ValueId, item: &Item| -> onnx_quant::error::Result<()> {
        if id == GraphId::MAIN {
            n += 1;
            let found = sizes.check(g.value(v).ty.as_ref(), item);
            wrong = wrong.take().or(found.err().map(|e| format!("{}: {e}", g.value(v).name)));
        }
        Ok(())
    };
    let options = RunOptions { threads: 2, ..RunOptions::default() };
    program.run_named(&inputs, options, &mut tap).map_err(|e| format!("{e:#}"))?;
    wrong.map_or(Ok(n), Err)
}

/// Runs where a folder of real models is named (see `common::zoo`).
#[test]
fn real_models_have_readable_shapes_that_agree_with_evaluation() {
    let Some(zoo) = zoo() else { return };
    let mut wrong = String::new();
    for (name, most) in MODELS {
        let path = zoo.join(format!("models/{name}.onnx"));
        if !path.exists() {
            continue;
        }
        let mut model = onnx_quant::onnx::read(&path).unwrap();
        inferred(&mut model);
        let (n, of) = open_sizes(&model);
        let samples = zoo.join("data").join(name).join("eval");
        let mut samples: Vec<_> = std::fs::read_dir(samples).unwrap().map(|e| e.unwrap().path()).collect();
        samples.sort();
        let compared = agrees(&model, &samples[0]);
        println!("{name}: {n} of {of} sizes are open, {compared:?} values agree");
        if n > *most {
            writeln!(wrong, "{name}: {n} sizes are open, at most {most} should be").unwrap();
            for (g, v) in model.graph_ids().map(|g| model.graph(g)).flat_map(|g| g.values().map(move |v| (g, v))) {
                let value = g.value(v);
                let open = |t: &ValueType| t.shape().is_none_or(|s| s.contains(&Dim::Unknown));
                if matches!(value.def, Def::Node) && value.ty.as_ref().is_none_or(open) && wrong.lines().count() < 60 {
                    writeln!(wrong, "    {}: {}", value.name, value.ty.as_ref().map_or("?".into(), type_text)).unwrap();
                }
            }
        }
        if let Err(e) = compared {
            writeln!(wrong, "{name}: {e}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
