//! What makes inference fast leaves the results alone, to the bit: steps that are done together, values that somebody
//! watches, threads.

use std::collections::BTreeSet;

use onnx_quant::error::Result;
use onnx_quant::interp::{CompileOptions, NoTap, Program, RunOptions};
use onnx_quant::ir::text_parse::parse;
use onnx_quant::ir::{GraphId, Model, ValueId};
use onnx_quant::ops::Item;
use onnx_quant::tensor::Tensor;

/// Convolutions with everything behind them that is fused: activations in one operator and in several, a residual
/// addition, quantization of a value that others read too, and a value that is an output as well.
const MODEL: &str = r#"
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4,96,96] x) => (float[1,16,96,96] y, float[1,16,96,96] kept, float[1,16,48,48] z)
<float three = {3.0}, float zero = {0.0}, float six = {6.0}, float[1] half = {0.5}, float scale = {0.03},
 uint8 point = {128}, float tiny = {0.01}, uint8 first = {0}>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w)
  s = Sigmoid (a)
  silu = Mul (a, s)
  q = QuantizeLinear (silu, scale, point)
  d = DequantizeLinear (q, scale, point)
  b = Conv <pads = [1, 1, 1, 1], group = 16> (d, v)
  plus = Add (b, three)
  clipped = Clip (plus, zero, six)
  product = Mul (b, clipped)
  swish = Div (product, six)
  sum = Add (swish, silu)
  kept = Relu (sum)
  scaled = Mul (half, kept)
  square = Mul (scaled, scaled)
  y = Sub (three, square)
  qk = QuantizeLinear (kept, tiny, first)
  dk = DequantizeLinear (qk, tiny, first)
  pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (dk)
  z = LeakyRelu <alpha = 0.1> (pooled)
}
"#;

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn model() -> (Model, Vec<(String, Tensor)>) {
    let weights = [("w", vec![16, 4, 3, 3]), ("v", vec![16, 1, 3, 3])];
    let declared: Vec<String> = weights
        .iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let list = |v: Vec<String>| v.join(",");
            let values = list(numbers(n).iter().map(f32::to_string).collect());
            format!("float[{}] {name} = {{{values}}}", list(shape.iter().map(usize::to_string).collect()))
        })
        .collect();
    let text = MODEL.replacen("<float three", &format!("<{}, float three", declared.join(", ")), 1);
    let x = Tensor::new(&[1, 4, 96, 96], numbers(4 * 96 * 96)).unwrap();
    (parse(&text).unwrap(), vec![("x".into(), x)])
}

fn bits(outputs: Vec<Option<Item>>) -> Vec<String> {
    let text = |t: &Tensor| match t.slice::<f32>() {
        Ok(v) => format!("{:?} {:?}", t.shape(), v.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
        Err(_) => format!("{t:?}"),
    };
    outputs.iter().map(|o| o.as_ref().and_then(Item::tensor).map_or_else(|| format!("{o:?}"), text)).collect()
}

#[test]
fn watched_values_are_made_and_the_outputs_stay_the_same() {
    let (model, inputs) = model();
    let fused = Program::compile(&model, &CompileOptions::default()).unwrap();
    let expected = bits(fused.run_named(&inputs, RunOptions::default(), &mut NoTap).unwrap());
    let all = CompileOptions { watch: &|_, _| true, ..CompileOptions::default() };
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut tap = |g: GraphId, v: ValueId, _: &Item| -> Result<()> {
        seen.insert(model.graph(g).value(v).name.clone());
        Ok(())
    };
    let watched = Program::compile(&model, &all).unwrap();
    let got = bits(watched.run_named(&inputs, RunOptions::default(), &mut tap).unwrap());
    assert!(got == expected, "other outputs when every value is watched");
    let g = model.main();
    for v in g.order().unwrap().into_iter().flat_map(|n| g.node_outputs(n)).flatten() {
        let name = &g.value(v).name;
        assert!(seen.contains(name), "{name} was not seen");
    }
}

#[test]
fn outputs_do_not_depend_on_the_number_of_threads() {
    let (model, inputs) = model();
    let program = Program::compile(&model, &CompileOptions::default()).unwrap();
    let run = |threads: usize| {
        let options = RunOptions { threads, ..RunOptions::default() };
        bits(program.run_named(&inputs, options, &mut NoTap).unwrap())
    };
    let one = run(1);
    for threads in [2, 4] {
        assert!(run(threads) == one, "other outputs with {threads} threads");
    }
}
