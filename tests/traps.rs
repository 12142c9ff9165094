//! What goes wrong with 8 bits in real models, each on the smallest model that has it: the plan does what it should, the
//! emitted model is accurate in our interpreter and in ONNX Runtime, and the summary has a line for it. Where a wrong plan
//! would still be a valid one, a control says what that would cost.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use common::made::arrays;
use common::models::numbers;
use common::ort::{Level, ort_run_at};
use onnx_quant::calibrate::dataset::{Dataset, Sample};
use onnx_quant::diag::Sink;
use onnx_quant::error::Result;
use onnx_quant::ir::Model;
use onnx_quant::ir::text_parse::parse;
use onnx_quant::onnx::{WriteOptions, write};
use onnx_quant::quant::algo::Improvement;
use onnx_quant::quant::plan::{Decision, NodePlan, QuantPlan};
use onnx_quant::quant::scheme::{Choices, Scheme};
use onnx_quant::quant::sensitivity::Study;
use onnx_quant::quant::{Config, Data, Quantized, Quiet, plan_for, quantize};
use onnx_quant::tensor::{DType, Tensor};

type Inputs = Vec<(String, Tensor)>;

struct Samples(Vec<Inputs>);

impl Dataset for Samples {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        Ok(Sample { origin: format!("sample {i}"), inputs: self.0[i].clone() })
    }
}

/// One input `x` of this shape, times `size`.
fn x(shape: &'static [usize], size: f32) -> impl Fn(u64) -> Inputs {
    move |i| vec![("x".into(), tensor(shape, 1000 + i, size))]
}

fn tensor(shape: &[usize], seed: u64, size: f32) -> Tensor {
    let n = shape.iter().product();
    Tensor::new(shape, numbers(n, seed).iter().map(|x| x * size).collect()).unwrap()
}

/// An initializer in ONNX's text.
fn stored(name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let values: Vec<String> = values.into_iter().map(|x| format!("{x:?}")).collect();
    assert_eq!(values.len(), shape.iter().product::<usize>());
    format!("float[{}] {name} = {{{}}}", dims.join(","), values.join(", "))
}

fn random(name: &str, shape: &[usize], seed: u64) -> String {
    stored(name, shape, numbers(shape.iter().product(), seed))
}

/// What became of a model.
struct Done {
    done: Quantized,
    /// SQNR over held-out samples of each output in ONNX Runtime, in dB.
    ort: Vec<f64>,
}

impl Done {
    fn new(signature: &str, stored: &[String], body: &str, inputs: &dyn Fn(u64) -> Inputs) -> Self {
        Self::with(signature, stored, body, inputs, |_| {})
    }

    fn with(
        signature: &str,
        stored: &[String],
        body: &str,
        inputs: &dyn Fn(u64) -> Inputs,
        set: impl FnOnce(&mut Config),
    ) -> Self {
        let mut text = String::new();
        let _ = write!(text, "<ir_version: 8, opset_import: [\"\" : 17]>\ng ({signature})\n");
        if !stored.is_empty() {
            let _ = writeln!(text, "<{}>", stored.join(", "));
        }
        let _ = write!(text, "{{\n{body}\n}}\n");
        let mut model = parse(&text).unwrap_or_else(|e| panic!("{e:#}\n{text}"));
        onnx_quant::infer::infer(&mut model, &mut Sink::default()).unwrap();
        let (calibration, holdout) = (Samples((0..40).map(inputs).collect()), Samples((40..52).map(inputs).collect()));
        let mut config = Config { threads: 1, ..Config::new("ort-cpu").unwrap() };
        config.target.cost = None;
        set(&mut config);
        let data = Data { calibration: &calibration, holdout: &holdout, is_shared: false, labels: None };
        let done = quantize(model.clone(), &config, &data, &Quiet, &mut |_, _| {}, &mut Sink::default())
            .unwrap_or_else(|e| panic!("{e:#}\n{text}"));
        // Neither a plan without the work nor a study takes for possible what this is too large for.
        let hopeless = |model: &Model, plan: &QuantPlan| -> BTreeSet<(String, &'static str)> {
            let of = |n: &NodePlan| match n.decision {
                Decision::Float { code: code @ ("masked" | "whole-numbers"), .. } => {
                    Some((model.graph(n.place.0).node(n.place.1).label(), code))
                }
                _ => None,
            };
            plan.nodes.iter().filter_map(of).collect()
        };
        let expected = hopeless(&done.prepared, &done.plan);
        let study = Study::new(model.clone(), &config, &calibration, &Quiet, &mut Sink::default()).unwrap();
        assert_eq!(hopeless(&study.model, &study.plan), expected, "a study\n{text}");
        let plan = plan_for(&study.model, &config, &calibration, &Quiet, &mut Sink::default()).unwrap();
        assert_eq!(hopeless(&study.model, &plan), expected, "a plan alone\n{text}");
        let dir = tempfile::tempdir().unwrap();
        let paths = ["float.onnx", "int8.onnx"].map(|n| dir.path().join(n));
        write(&model, &paths[0], &WriteOptions::default()).unwrap();
        write(&done.model, &paths[1], &WriteOptions::default()).unwrap();
        let mut sums: Vec<(f64, f64)> = Vec::new();
        for sample in &holdout.0 {
            let given = arrays(sample);
            let given: Vec<_> = given.iter().map(|(n, a)| (*n, a)).collect();
            // What is made for an NPU is not for the integer kernels of this machine, which may saturate.
            let level = if config.target.whole { Level::Disabled } else { Level::All };
            let [float, int8] = paths.each_ref().map(|p| ort_run_at(p, &given, level).unwrap());
            sums.resize(float.len(), (0.0, 0.0));
            for (sum, ((_, a), (_, b))) in sums.iter_mut().zip(float.iter().zip(&int8)) {
                for (a, b) in a.to_vec::<f32>().into_iter().zip(b.to_vec::<f32>()) {
                    *sum = (sum.0 + f64::from(a).powi(2), sum.1 + f64::from(a - b).powi(2));
                }
            }
        }
        let ort = sums.into_iter().map(|(s, n)| 10.0 * (s / n.max(1e-30)).log10()).collect();
        Done { done, ort }
    }

    /// What became of a node: `integer`, `absorbed`, or the code of the reason why it is float.
    fn decision(&self, label: &str) -> &'static str {
        let g = |id| self.done.prepared.graph(id);
        let found = self.done.plan.nodes.iter().find(|n| g(n.place.0).node(n.place.1).label() == label);
        match &found.unwrap_or_else(|| panic!("no node {label}:\n{}", self.plan())).decision {
            Decision::Integer => "integer",
            Decision::Absorbed(_) => "absorbed",
            Decision::Float { code, .. } => code,
        }
    }

    fn plan(&self) -> String {
        self.done.plan.print(&self.done.prepared)
    }

    /// Whether both the interpreter and ONNX Runtime are this accurate, and the summary has the line.
    #[track_caller]
    fn check(&self, least: f64, line: &str) {
        let ours: Vec<f64> = self.done.report.outputs.iter().map(|o| o.sqnr_db).collect();
        // Written so that NaN fails.
        let is_sane = |db: &f64| *db >= least;
        assert!(ours.iter().chain(&self.ort).all(is_sane), "{ours:?} {:?}\n{}", self.ort, self.plan());
        let traps = &self.done.report.traps;
        assert!(traps.iter().any(|t| t.contains(line)), "no \"{line}\" in {traps:#?}\n{}", self.plan());
    }

    /// The parameters of an activation: scale, zero point, and the largest value that they hold.
    fn range(&self, name: &str) -> (f32, i32, f32) {
        let g = self.done.prepared.main();
        let v = g.find_value(name).unwrap();
        let t = self.done.plan.tensors.iter().find(|((_, t), _)| *t == v);
        let p = t.unwrap_or_else(|| panic!("{name} is not quantized:\n{}", self.plan())).1.params.unwrap();
        (p.scale, p.zero_point, p.covered().max)
    }
}

/// What is left, in dB, of values that are rounded to 255 steps over a range of this size.
fn control(values: impl IntoIterator<Item = f32>, range: f32) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for v in values {
        let step = range / 255.0;
        let e = f64::from(v - (v / step).round() * step);
        (signal, noise) = (signal + f64::from(v).powi(2), noise + e * e);
    }
    10.0 * (signal / noise.max(1e-30)).log10()
}

#[test]
fn heads_that_join_boxes_and_scores_keep_the_scores() {
    // A detector's head: boxes in pixels and scores from 0 to 1 in one tensor.
    let stored = [stored("w", &[4, 4, 1, 1], numbers(16, 1).iter().map(|x| 200.0 * x)), random("v", &[2, 4, 1, 1], 2)];
    let body = "[boxes] b = Conv (x, w)\n [logits] l = Conv (x, v)\n [scores] s = Sigmoid (l)\n \
                [join] y = Concat <axis = 1> (b, s)";
    let done = Done::new("float[1,4,6,6] x) => (float[1,6,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 1.0));
    assert_ne!(done.decision("join"), "integer");
    assert_eq!((done.decision("boxes"), done.decision("logits")), ("integer", "integer"));
    done.check(30.0, "Concat \"join\" joins ranges that differ up to");
    let worst = done.done.report.outputs[0].worst_channel_db.unwrap();
    assert!(worst > 28.0, "the scores: {worst:.1} dB");
    // In one range with the boxes nothing would be left of the scores.
    let scores = numbers(300, 3).into_iter().map(|x| 0.5 + 0.2 * x);
    assert!(control(scores, 800.0) < 1.0);
}

#[test]
fn joined_ranges_in_front_of_a_convolution_both_count() {
    let (big, small) = (numbers(16, 1).into_iter().map(|x| 64.0 * x), numbers(16, 2));
    // The reader's weights give both halves the same say.
    let v = numbers(32, 3).into_iter().enumerate().map(|(i, x)| if i % 8 < 4 { x / 64.0 } else { x });
    let stored = [stored("w", &[4, 4, 1, 1], big), stored("u", &[4, 4, 1, 1], small), stored("v", &[4, 8, 1, 1], v)];
    let body = "[large] a = Conv (x, w)\n [small] b = Conv (x, u)\n [join] c = Concat <axis = 1> (a, b)\n \
                [read] y = Conv (c, v)";
    let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 1.0));
    // Equalized where that helps, else float: the floor of 20 dB holds either way, in one range it would not.
    done.check(20.0, "Concat \"join\" joins ranges that differ up to");
    assert!(control(numbers(300, 3), 2.0 * 64.0 * 3.0) < 12.0);
}

#[test]
fn softmax_and_sigmoid_have_the_range_of_the_function() {
    // On these samples probabilities stay below a third; on others they need not.
    let stored = [random("w", &[4, 4, 1, 1], 1), random("v", &[4, 4, 1, 1], 2)];
    let body = "[a] a = Conv (x, w)\n [sig] s = Sigmoid (a)\n [b] y = Conv (s, v)";
    let small = &x(&[1, 4, 6, 6], 0.1);
    let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, small);
    assert_eq!(done.decision("sig"), "integer");
    assert_eq!(done.range("s"), (1.0 / 256.0, 0, 255.0 / 256.0));
    done.check(25.0, "1 outputs of Softmax, Sigmoid and the like have the range of the function");
    let body = "[a] a = Conv (x, w)\n [soft] s = Softmax <axis = 1> (a)\n [b] y = Conv (s, v)";
    let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 1.0));
    assert_eq!(done.range("s").2, 255.0 / 256.0);
    done.check(25.0, "have the range of the function");
}

#[test]
fn masks_do_not_drown_what_they_leave() {
    for (hidden, name) in [(-1e9f32, "1.0e9"), (-3.4e38, "3.4e38"), (-1e4, "1.0e4"), (f32::NEG_INFINITY, "inf")] {
        let mask = numbers(36, 9).into_iter().map(|x| if x > 0.4 { hidden } else { 0.0 });
        let mask = stored("mask", &[1, 1, 6, 6], mask);
        let stored = [random("w", &[4, 4, 1, 1], 1), random("v", &[4, 4, 1, 1], 2), mask];
        let body = "[scores] a = Conv (x, w)\n [masked] m = Add (a, mask)\n [soft] s = Softmax <axis = -1> (m)\n \
                    [mix] y = Conv (s, v)";
        let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 1.0));
        let code = if hidden.is_finite() { "masked" } else { "not-finite" };
        assert_eq!(done.decision("masked"), code, "{name}");
        assert_eq!((done.decision("scores"), done.decision("mix")), ("integer", "integer"), "{name}");
        done.check(28.0, "Add \"masked\" masks with ");
        done.check(28.0, &format!("{name}: stays float"));
    }
    // In a range that holds the mask all scores are the same.
    assert!(control(numbers(300, 1), 1e4) < 0.1);
}

#[test]
fn masks_that_have_to_be_quantized_are_clipped() {
    let weights = [random("wq", &[8, 8], 1), random("wk", &[8, 8], 2), random("wv", &[8, 8], 3)];
    let inputs = |i: u64| {
        let keep = (0..6).map(|j| i64::from(j < 6 - i % 3)).collect();
        let mask = Tensor::new(&[1, 1, 6], keep).unwrap();
        vec![("x".to_owned(), tensor(&[1, 6, 8], 1000 + i, 1.0)), ("keep".to_owned(), mask)]
    };
    let body = "[q] q = MatMul (x, wq)\n [k] k = MatMul (x, wk)\n [v] v = MatMul (x, wv)\n \
                [turn] t = Transpose <perm = [0, 2, 1]> (k)\n [scores] s = MatMul (q, t)\n \
                f = Cast <to = 1> (keep)\n [invert] i = Sub (one, f)\n [size] padding = Mul (i, large)\n \
                [padded] a = Add (s, padding)\n [causal] b = Add (a, later)\n [soft] p = Softmax <axis = -1> (b)\n \
                [mix] y = MatMul (p, v)";
    let nodes = ["q", "k", "v", "turn", "scores", "invert", "size", "padded", "causal", "soft", "mix"];
    for hidden in [-1e4f32, -3.4e38] {
        let later = (0..36).map(|i| if i % 6 > i / 6 { hidden } else { 0.0 });
        let scalars = [stored("one", &[1], [1.0]), stored("large", &[1], [hidden]), stored("later", &[1, 6, 6], later)];
        let stored: Vec<String> = weights.iter().chain(&scalars).cloned().collect();
        for (dtype, least) in [(DType::U8, 25.0), (DType::U16, 38.0)] {
            let signature = "float[1,6,8] x, int64[1,1,6] keep) => (float[1,6,8] y";
            let done = Done::with(signature, &stored, body, &inputs, |c| {
                let own = Config::new("qnn").unwrap();
                let choices = Choices { activation: Some(dtype), ..Choices::default() };
                c.scheme = Scheme::new(&own.target, &choices).unwrap();
                c.target = own.target;
                c.without.insert(Improvement::FloatFallback);
            });
            // Products of two activations included: nothing else runs there.
            for node in nodes {
                assert_eq!(done.decision(node), "integer", "{node} with {hidden:e} in {dtype}");
            }
            let (scale, _, max) = done.range("b");
            assert!(scale * ((1u64 << dtype.bits()) as f32) < 70.0 && max > 0.5, "{hidden:e}: {scale} {max}");
            // Beside -1e4 the scores are not small enough to be worth a word.
            done.check(least, if hidden < -1e5 { "in integers, clipped where Softmax alone reads them" } else { "" });
            // Both sides of every sum and product have the type of its output.
            let g = done.done.model.main();
            let mut n_sides = 0;
            for n in g.nodes().filter(|&n| ["Add", "Sub", "Mul"].contains(&g.node(n).op_type.as_str())) {
                for v in g.node_inputs(n).into_iter().flatten() {
                    let (dq, _) = g.producer(v).expect("a float constant");
                    assert_eq!(g.node(dq).op_type, "DequantizeLinear");
                    let q = g.input(dq, 0).unwrap();
                    let stored = g.constant(q).map(|t| t.dtype());
                    let made = g.value(q).ty.as_ref().and_then(|t| t.dtype());
                    assert_eq!(stored.or(made), Some(dtype), "{}", g.value(q).name);
                    n_sides += 1;
                }
            }
            assert_eq!(n_sides, 8);
        }
    }
}

#[test]
fn embeddings_and_positions_stay_float() {
    let table = stored("table", &[50, 8], numbers(400, 1));
    let places = stored("places", &[6, 8], numbers(48, 2).into_iter().map(|x| 0.02 * x));
    let stored = [table, places, random("w", &[8, 8], 3), stored("g", &[8], [1.0; 8])];
    let body = "[words] e = Gather (table, ids)\n [add] a = Add (e, places)\n \
                n = LayerNormalization <axis = -1> (a, g)\n [dense] y = MatMul (n, w)";
    let ids = |i: u64| {
        let ids = numbers(6, 100 + i).iter().map(|x| ((x + 1.0) * 24.9) as i64).collect();
        vec![("ids".to_owned(), Tensor::new(&[1, 6], ids).unwrap())]
    };
    let done = Done::new("int64[1,6] ids) => (float[1,6,8] y", &stored, body, &ids);
    assert_eq!((done.decision("words"), done.decision("dense")), ("constant-data", "integer"));
    assert_ne!(done.decision("add"), "integer");
    done.check(28.0, "1 embedding lookups and 1 of 1 additions of them stay float");
}

#[test]
fn shape_and_scalar_arithmetic_is_left_alone() {
    let stored = [random("w", &[4, 4, 1, 1], 1), random("v", &[4, 4, 1, 1], 2), "int64[2] hw = {6, 6}".into()];
    let stored = [&stored[..], &["float half = {0.5}".into(), "int64[1] two = {2}".into()]].concat();
    let body = "[a] a = Conv (x, w)\n sh = Shape (a)\n [head] front = Slice (sh, from, two)\n \
                [dims] d = Concat <axis = 0> (front, hw)\n r = Reshape (a, d)\n m = ReduceMean <keepdims = 1> (r)\n \
                [scalar] s = Mul (m, half)\n [b] b = Conv (r, v)\n y = Add (b, s)";
    let stored = [&stored[..], &["int64[1] from = {0}".into()]].concat();
    let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 1.0));
    for (node, code) in [("head", "not-float32"), ("dims", "not-float32")] {
        // The shape may have become a constant: then there is nothing left to go wrong.
        if done.plan().contains(&format!(" {node} ")) {
            assert_eq!(done.decision(node), code, "{node}");
        }
    }
    assert_ne!(done.decision("scalar"), "integer");
    assert_eq!((done.decision("a"), done.decision("b")), ("integer", "integer"));
    done.check(28.0, "nodes of shape and scalar arithmetic are left alone");
}

#[test]
fn the_state_of_recurrent_layers_stays_float() {
    let stored =
        [random("w", &[1, 16, 4], 1), random("r", &[1, 16, 4], 2), random("v", &[4, 4], 3), random("u", &[4, 4], 4)];
    let body = "[in] a = MatMul (x, u)\n [lstm] h, last = LSTM <hidden_size = 4> (a, w, r)\n \
                f = Squeeze (h, one)\n [out] y = MatMul (f, v)";
    let stored = [&stored[..], &["int64[1] one = {1}".into()]].concat();
    let done = Done::new("float[20,1,4] x) => (float[20,1,4] y", &stored, body, &x(&[20, 1, 4], 1.0));
    assert_ne!(done.decision("lstm"), "integer");
    assert_eq!(done.decision("out"), "integer");
    done.check(25.0, "the state of LSTM \"lstm\" stays float from step to step");
}

#[test]
fn first_and_last_layer_are_chosen_by_what_they_cost() {
    let stored = [random("w", &[4, 4, 1, 1], 1), random("v", &[4, 4, 1, 1], 2)];
    let body = "[first] a = Conv (x, w)\n r = Relu (a)\n [last] y = Conv (r, v)";
    let run =
        |inputs: &dyn Fn(u64) -> Inputs| Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, inputs);
    let done = run(&x(&[1, 4, 6, 6], 1.0));
    assert_eq!((done.decision("first"), done.decision("last")), ("integer", "integer"));
    done.check(28.0, "the first and last layer, \"first\" and \"last\", are in integers");
    // An input whose tail 8 bits cannot hold: the first layer alone stays float, and the line says so.
    let tailed = |i: u64| {
        let t = numbers(144, 1000 + i).iter().map(|x| if *x > 0.9985 { 3000.0 } else { *x }).collect();
        vec![("x".to_owned(), Tensor::new(&[1, 4, 6, 6], t).unwrap())]
    };
    let done = Done::with("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &tailed, |c| c.min_sqnr_db = 60.0);
    assert!(
        done.done.report.traps.iter().any(|t| t.starts_with("the first") && t.contains("float")),
        "{:?}",
        done.plan()
    );
}

#[test]
fn depthwise_channels_decades_apart_keep_their_accuracy() {
    let size = |c: usize| 10f32.powi(c as i32 % 4 - 2);
    let w = numbers(72, 1).into_iter().enumerate().map(|(i, x)| x * size(i / 9));
    // Read with weights that give every channel the same say.
    let v = numbers(32, 2).into_iter().enumerate().map(|(i, x)| x / size(i % 8));
    let stored = [stored("w", &[8, 1, 3, 3], w), stored("v", &[4, 8, 1, 1], v)];
    let body = "[dw] a = Conv <group = 8, pads = [1, 1, 1, 1]> (x, w)\n [pw] y = Conv (a, v)";
    let done = Done::new("float[1,8,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 8, 6, 6], 1.0));
    done.check(25.0, "depthwise channels of Conv \"dw\" differ up to");
    done.check(25.0, ": each has a scale of its own");
    // One range for channels a thousand times apart leaves nothing of the smallest.
    assert!(control(numbers(300, 1).into_iter().map(|x| 0.01 * x), 20.0) < 1.0);
}

#[test]
fn dead_channels_do_no_harm() {
    let w = numbers(16, 1).into_iter().enumerate().map(|(i, x)| if i / 4 == 1 { 0.0 } else { x });
    let b = [0.1, 0.0, -0.2, 0.3];
    let stored = [stored("w", &[4, 4, 1, 1], w), stored("b", &[4], b), random("v", &[4, 4, 1, 1], 2)];
    let body = "[dead] a = Conv (x, w, b)\n r = Relu (a)\n [next] y = Conv (r, v)";
    let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 1.0));
    assert_eq!((done.decision("dead"), done.decision("next")), ("integer", "integer"));
    done.check(28.0, "1 dead channels in Conv \"dead\"");
    let scales = done.done.plan.nodes.iter().filter_map(|n| n.weight.as_ref()).flat_map(|w| w.params.scales.clone());
    assert!(scales.into_iter().all(|s| s.is_normal() && s > 1e-6));
}

#[test]
fn ranges_are_taken_behind_bounds() {
    let stored = [random("w", &[4, 4, 1, 1], 1), random("v", &[4, 4, 1, 1], 2)];
    let stored = [&stored[..], &["float lo = {0.0}".into(), "float hi = {1.5}".into()]].concat();
    let body = "[conv] a = Conv (x, w)\n [relu6] r = Clip (a, lo, hi)\n [next] y = Conv (r, v)";
    let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 2.0));
    assert_eq!(done.decision("relu6"), "absorbed");
    let (scale, zero_point, max) = done.range("r");
    // All 255 steps lie within the bounds; quantized in front of them, half would be below 0 and some above 1.5.
    assert!(zero_point == 0 && (max - 1.5).abs() < 1e-3, "{scale} {zero_point} {max}");
    done.check(28.0, "1 Relu and Clip: quantized behind them");
}

#[test]
fn outputs_whose_channels_differ_are_measured_channel_by_channel() {
    // A column of a table of boxes that is a thousand times smaller than the others, made by one product with them.
    let stored = [
        stored("w", &[4, 4], numbers(16, 1).into_iter().map(|x| 1000.0 * x)),
        stored("v", &[4, 1], numbers(4, 2)),
        random("q", &[4, 4], 3),
    ];
    let body = "[a] a = MatMul (x, q)\n [large] b = MatMul (a, w)\n [small] c = MatMul (a, v)\n \
                [join] y = Concat <axis = -1> (b, c)";
    let done = Done::new("float[1,9,4] x) => (float[1,9,5] y", &stored, body, &x(&[1, 9, 4], 1.0));
    let o = &done.done.report.outputs[0];
    assert!(o.worst_channel_db.is_some_and(|w| w > 20.0), "{o:?}");
    done.check(28.0, "");
    // A column that is lost is seen although the whole is fine, and the summary says so.
    let lost = onnx_quant::quant::measure::OutputError { worst_channel_db: Some(2.0), sqnr_db: 40.0, ..o.clone() };
    let fine = onnx_quant::quant::measure::OutputError { worst_channel_db: Some(35.0), ..lost.clone() };
    let lines = onnx_quant::quant::traps::outputs(&[fine, lost]);
    assert_eq!(lines, ["rows or channels of \"y\" have different ranges: 40.0 dB over all, 2.0 dB in the worst"]);
}

#[test]
fn biases_that_would_not_fit_int32_raise_the_scale() {
    // Channel 1: weights next to nothing, so that its scale times that of the input is far below bias / 2^31.
    let w = numbers(16, 1).into_iter().enumerate().map(|(i, x)| if i / 4 == 1 { 1e-9 * x } else { x });
    let b = [0.1, 5.0, -0.2, 0.3];
    let stored = [stored("w", &[4, 4, 1, 1], w), stored("b", &[4], b), random("v", &[4, 4, 1, 1], 2)];
    let body = "[conv] a = Conv (x, w, b)\n [next] y = Conv (a, v)";
    let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, body, &x(&[1, 4, 6, 6], 1.0));
    assert_eq!(done.decision("conv"), "integer");
    done.check(28.0, "1 biases of Conv \"conv\" would not fit int32");
    let g = done.done.model.main();
    let bias =
        g.values().filter_map(|v| g.constant(v)).filter_map(|t| t.get().ok()?.slice::<i32>().ok().map(<[i32]>::to_vec));
    let largest = bias.flatten().map(|b| i64::from(b).abs()).max().unwrap();
    assert!(largest > 1 << 30 && largest < i64::from(i32::MAX), "{largest}");
    // With the scale that covers the weights the bias would be cut off to a tiny part of itself.
    assert!(5.0 / (1e-9 / 127.0) / (1.0 / 127.0) > 100.0 * f64::from(i32::MAX));
}

#[test]
fn the_tails_of_smooth_gates_lie_within_the_range() {
    let stored = [random("w", &[4, 4, 1, 1], 1), random("v", &[4, 4, 1, 1], 2)];
    for gate in ["s = Sigmoid (a)\n [gate] m = Mul (a, s)", "[gate] m = HardSwish (a)"] {
        let body = format!("[a] a = Conv (x, w)\n {gate}\n [b] y = Conv (m, v)");
        let done = Done::new("float[1,4,6,6] x) => (float[1,4,6,6] y", &stored, &body, &x(&[1, 4, 6, 6], 4.0));
        let (scale, zero_point, max) = done.range("m");
        let min = -scale * zero_point as f32;
        // The tail is there, and the other steps are not wasted below it.
        assert!((-0.45..=-0.2).contains(&min) && max > 3.0 && zero_point < 40, "{gate}: {min} {max}");
        done.check(
            28.0,
            "1 tensors behind SiLU, GELU or HardSwish have a short tail below 0: ranges are not symmetric",
        );
    }
}

#[test]
fn whole_numbers_beyond_8_bits_stay_float() {
    // Positions up to 3000, of which what comes after needs the last digit.
    let stored = [stored("w", &[2, 4], numbers(8, 1))];
    let body = "c = Cast <to = 1> (ids)\n [read] y = MatMul (c, w)";
    let ids = |most: f32| {
        move |i: u64| {
            let ids = numbers(16, 100 + i).iter().map(|x| ((x + 1.0) * most / 2.0) as i64).collect();
            vec![("ids".to_owned(), Tensor::new(&[1, 8, 2], ids).unwrap())]
        }
    };
    let signature = "int64[1,8,2] ids) => (float[1,8,4] y";
    let done = Done::new(signature, &stored, body, &ids(3000.0));
    assert_eq!(done.decision("read"), "whole-numbers");
    done.check(60.0, "MatMul \"read\" reads whole numbers beyond 255 (indices, counts): stays float");
    // Up to 255 they fit.
    let done = Done::new(signature, &stored, body, &ids(200.0));
    assert_eq!(done.decision("read"), "integer");
    done.check(28.0, "");
}

#[test]
fn products_of_two_activations_stay_float() {
    let stored =
        [random("wq", &[8, 8], 1), random("wk", &[8, 8], 2), random("wv", &[8, 8], 3), random("wo", &[8, 8], 4)];
    let body = "[q] q = MatMul (x, wq)\n [k] k = MatMul (x, wk)\n [v] v = MatMul (x, wv)\n \
                t = Transpose <perm = [0, 2, 1]> (k)\n [scores] s = MatMul (q, t)\n p = Softmax <axis = -1> (s)\n \
                [mix] m = MatMul (p, v)\n [out] y = MatMul (m, wo)";
    let done = Done::new("float[1,6,8] x) => (float[1,6,8] y", &stored, body, &x(&[1, 6, 8], 1.0));
    assert_eq!((done.decision("scores"), done.decision("mix")), ("no-integer-form", "no-integer-form"));
    assert_eq!((done.decision("q"), done.decision("out")), ("integer", "integer"));
    done.check(25.0, "2 products of two activations stay float");
}
