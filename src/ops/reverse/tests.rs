//! Every rule against finite differences of the operator's own evaluation.

use std::collections::BTreeSet;

use super::ALL;
use crate::ops::testing::Case;
use crate::tensor::Tensor;

/// Numbers without a pattern, none nearer to 0 than 0.05 (kinks) and none equal to another.
fn data(shape: &[usize], seed: u32) -> Tensor {
    let n = shape.iter().product::<usize>() as u32;
    let at = |i: u32| {
        let x = (i * 2_654_435 + seed * 40_503 + 17).wrapping_mul(2_246_822_519) >> 8;
        let x = f64::from(x % 100_000) / 100_000.0 * 2.0 - 1.0;
        (x + if x < 0.0 { -0.05 } else { 0.05 } + f64::from(i) * 1e-4) as f32
    };
    Tensor::of(shape, (0..n).map(at).collect())
}

/// The same, between `low` and `high`.
fn within(shape: &[usize], seed: u32, low: f32, high: f32) -> Tensor {
    let v = data(shape, seed).slice::<f32>().unwrap().iter().map(|x| low + (high - low) * (x + 1.1) / 2.3).collect();
    Tensor::of(shape, v)
}

fn ints(v: &[i64]) -> Tensor {
    Tensor::vector(v.to_vec())
}

/// A case with the inputs whose gradient is checked, and whether its evaluation has only 32 bits, so that the
/// differences are coarse.
struct Check(Case, &'static [usize], bool);

fn check(case: Case, slots: &'static [usize]) -> Check {
    Check(case, slots, false)
}

fn coarse(case: Case, slots: &'static [usize]) -> Check {
    Check(case, slots, true)
}

fn case(op: &str, x: Tensor) -> Case {
    Case::new(op, 13).input(x)
}

fn elementwise(out: &mut Vec<Check>) {
    let x = || data(&[3, 7], 1);
    for op in ["Abs", "Asinh", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Neg", "Reciprocal", "Round"] {
        out.push(check(case(op, x()), &[0]));
    }
    for op in ["Sign", "Sin", "Sinh", "Tan", "Relu", "Elu", "Celu", "LeakyRelu", "HardSigmoid", "Selu", "Sigmoid"] {
        out.push(check(case(op, x()), &[0]));
    }
    for op in ["Softplus", "Softsign", "Tanh", "ThresholdedRelu"] {
        out.push(check(case(op, within(&[21], 2, -3.0, 3.0)), &[0]));
    }
    for op in ["Acos", "Asin", "Atanh"] {
        out.push(check(case(op, within(&[9], 3, -0.8, 0.8)), &[0]));
    }
    for op in ["Log", "Sqrt"] {
        out.push(check(case(op, within(&[9], 3, 0.2, 3.0)), &[0]));
    }
    out.push(check(case("Acosh", within(&[9], 3, 1.5, 3.0)), &[0]));
    let wide = || within(&[40], 4, -5.0, 5.0);
    for (op, opset) in [("HardSwish", 14), ("Mish", 18), ("Gelu", 20), ("Swish", 24), ("Shrink", 9)] {
        out.push(check(Case::new(op, opset).input(wide()), &[0]));
    }
    out.push(check(Case::new("Gelu", 20).attr("approximate", "tanh").input(wide()), &[0]));
    for op in ["Gelu", "QuickGelu"] {
        out.push(check(Case::new(op, 1).domain("com.microsoft").input(wide()), &[0]));
    }
    out.push(check(case("Elu", x()).attr("alpha", 0.7f32), &[0]));
    out.push(check(case("Celu", x()).attr("alpha", 0.7f32), &[0]));
    out.push(check(case("HardSigmoid", wide()).attr("alpha", 0.3f32), &[0]));
    let bounds = |t: Tensor| case("Clip", t).input(Tensor::scalar(-0.4f32)).input(Tensor::scalar(0.6f32));
    out.push(check(bounds(x()), &[0]));
    out.push(check(Case::new("Clip", 6).input(x()).attr("max", 0.5f32), &[0]));
    out.push(check(case("Cast", x()).attr("to", 1i64).attr("to", 11i64), &[]));
    out.push(check(Case::new("CastLike", 15).input(x()).input(x()), &[]));
    out.push(check(case("CumSum", x()).input(Tensor::scalar(1i64)), &[0]));
    let from_the_end = case("CumSum", x()).input(Tensor::scalar(0i64)).attr("reverse", 1i64).attr("exclusive", 1i64);
    out.push(check(from_the_end, &[0]));
}

fn broadcasting(out: &mut Vec<Check>) {
    let shapes: [(&[usize], &[usize]); 4] = [(&[2, 3, 4], &[4]), (&[3, 1], &[2, 1, 5]), (&[6], &[6]), (&[], &[2, 2])];
    for (a, b) in shapes {
        for op in ["Add", "Sub", "Mul", "Div"] {
            out.push(check(case(op, data(a, 5)).input(within(b, 6, 0.5, 2.0)), &[0, 1]));
        }
        out.push(check(case("Pow", within(a, 5, 0.3, 2.0)).input(data(b, 6)), &[0, 1]));
        for op in ["Max", "Min", "Sum", "Mean"] {
            out.push(check(case(op, data(a, 5)).input(data(b, 6)).input(data(b, 7)), &[0, 1, 2]));
        }
    }
    out.push(check(case("Pow", data(&[5], 1)).input(Tensor::scalar(2.0f32)), &[0]));
    out.push(check(case("Pow", data(&[5], 1)).input(Tensor::scalar(3i64)), &[0]));
    out.push(check(case("PRelu", data(&[2, 3, 4], 1)).input(data(&[3, 1], 2)), &[0, 1]));
    let condition = Tensor::of(&[2, 3], vec![true, false, true, false, false, true]);
    let chosen = case("Where", condition).input(data(&[2, 3], 1)).input(data(&[3], 2));
    out.push(check(chosen, &[1, 2]));
}

fn movements(out: &mut Vec<Check>) {
    let x = || data(&[2, 3, 4], 1);
    for (op, arg) in [
        ("Reshape", vec![4i64, 6]),
        ("Squeeze", vec![]),
        ("Unsqueeze", vec![0]),
        ("Expand", vec![2, 2, 3, 4]),
        ("Tile", vec![2, 1, 3]),
        ("Split", vec![1, 1]),
    ] {
        let n = if op == "Split" { 2 } else { 1 };
        let mut c = case(op, x());
        if op != "Squeeze" {
            c = c.input(ints(&arg));
        }
        out.push(check(c.outputs(n), &[0]));
    }
    out.push(check(case("Flatten", x()), &[0]));
    out.push(check(case("Identity", x()), &[0]));
    out.push(check(case("Dropout", x()), &[0]));
    out.push(check(case("Transpose", x()).attr("perm", vec![2i64, 0, 1]), &[0]));
    out.push(check(case("Concat", x()).input(data(&[2, 1, 4], 2)).attr("axis", 1i64), &[0, 1]));
    let slice = case("Slice", x()).input(ints(&[3, 0])).input(ints(&[0, 2])).input(ints(&[2, 1]));
    out.push(check(slice.input(ints(&[-1, 1])), &[0]));
    out.push(check(case("Gather", x()).input(ints(&[2, 0, 2])).attr("axis", 1i64), &[0]));
    out.push(check(case("GatherElements", x()).input(Tensor::of(&[1, 2, 2], vec![1i64, 0, 1, 1])), &[0]));
    out.push(check(case("GatherND", x()).input(Tensor::of(&[2, 2], vec![1i64, 2, 0, 0])), &[0]));
    let condition = Tensor::vector(vec![true, false, true]);
    out.push(check(case("Compress", x()).input(condition).attr("axis", 1i64), &[0]));
    let rows = Tensor::of(&[2, 1], vec![1i64, 0]);
    out.push(check(case("ScatterND", data(&[3, 2], 1)).input(rows).input(data(&[2, 2], 2)), &[0, 2]));
    for op in ["ScatterElements", "Scatter"] {
        let opset = if op == "Scatter" { 9 } else { 13 };
        let c = Case::new(op, opset).input(data(&[3, 2], 1)).input(Tensor::of(&[1, 2], vec![2i64, 0]));
        out.push(check(c.input(data(&[1, 2], 2)), &[0, 2]));
    }
    for op in ["DepthToSpace", "SpaceToDepth"] {
        let x = data(if op == "DepthToSpace" { &[1, 8, 2, 3] } else { &[1, 2, 4, 6] }, 1);
        out.push(check(case(op, x).attr("blocksize", 2i64), &[0]));
    }
    let mode = |m: &str| case("Pad", data(&[2, 4], 1)).input(ints(&[0, 2, 1, 1])).attr("mode", m);
    out.push(check(mode("constant").input(Tensor::scalar(3.0f32)), &[0]));
    out.push(check(mode("edge"), &[0]));
    out.push(check(
        Case::new("Pad", 10).input(x()).attr("pads", vec![0i64, 1, 1, 0, 0, -1]).attr("value", 1.0f32),
        &[0],
    ));
    out.push(check(case("Pad", data(&[4], 1)).input(ints(&[2, 3])).attr("mode", "reflect"), &[0]));
    out.push(check(Case::new("Trilu", 14).input(data(&[3, 4], 1)), &[0]));
    out.push(check(Case::new("CenterCropPad", 18).input(x()).input(ints(&[3, 2, 4])), &[0]));
    out.push(check(case("ReverseSequence", data(&[4, 2], 1)).input(ints(&[3, 2])), &[0]));
    let top = case("TopK", x()).input(ints(&[2])).attr("axis", 2i64).outputs(2);
    out.push(check(top, &[0]));
    let resize =
        |scales: [f32; 4]| case("Resize", data(&[1, 2, 3, 4], 1)).skip().input(Tensor::vector(scales.to_vec()));
    for scales in [[1.0, 1.0, 2.0, 2.5], [1.0, 1.0, 0.6, 0.5]] {
        out.push(check(resize(scales), &[0]));
        for coordinates in ["half_pixel", "align_corners", "asymmetric"] {
            let c = resize(scales).attr("mode", "linear").attr("coordinate_transformation_mode", coordinates);
            out.push(check(c, &[0]));
        }
        out.push(check(resize(scales).attr("mode", "cubic"), &[0]));
    }
    let upsample = Case::new("Upsample", 9).input(data(&[1, 1, 2, 3], 1)).attr("mode", "linear");
    out.push(check(upsample.input(Tensor::vector(vec![1.0f32, 1.0, 2.0, 2.0])), &[0]));
}

fn reductions(out: &mut Vec<Check>) {
    for op in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Sum", "SumSquare"] {
        let name = format!("Reduce{op}");
        for (axes, keep) in [(vec![1i64], 1i64), (vec![0, 2], 0), (vec![2], 0), (vec![0, 1, 2], 1)] {
            let c = Case::new(&name, 11).input(within(&[2, 3, 4], 1, 0.2, 2.0)).attr("axes", axes);
            out.push(check(c.attr("keepdims", keep), &[0]));
        }
        out.push(check(Case::new(&name, 18).input(within(&[2, 3], 1, 0.2, 2.0)).input(ints(&[-1])), &[0]));
    }
    for op in ["Softmax", "LogSoftmax"] {
        for (opset, axis) in [(13, 1i64), (13, -1), (11, 1)] {
            out.push(check(Case::new(op, opset).input(data(&[2, 3, 4], 1)).attr("axis", axis), &[0]));
        }
    }
    let channels = |seed: u32| within(&[3], seed, 0.5, 1.5);
    let c = case("BatchNormalization", data(&[2, 3, 2, 2], 1)).input(channels(2)).input(channels(3));
    out.push(check(c.input(channels(4)).input(channels(5)), &[0]));
    let norm = |op: &str, opset: i64| Case::new(op, opset).input(data(&[2, 3, 5], 1)).input(within(&[5], 2, 0.5, 1.5));
    out.push(coarse(norm("LayerNormalization", 17).input(data(&[5], 3)), &[0, 1, 2]));
    let over_two = Case::new("LayerNormalization", 17).input(data(&[2, 3, 5], 1)).input(data(&[3, 5], 2));
    out.push(coarse(over_two.attr("axis", 1i64), &[0, 1]));
    out.push(coarse(norm("RMSNormalization", 23), &[0, 1]));
    out.push(coarse(norm("SimplifiedLayerNormalization", 17), &[0, 1]));
    out.push(coarse(norm("SimplifiedLayerNormalization", 1).domain("com.microsoft"), &[0, 1]));
    for op in ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"] {
        let c = Case::new(op, 1).domain("com.microsoft").input(data(&[2, 3, 5], 1)).input(data(&[2, 3, 5], 2));
        out.push(coarse(c.input(within(&[5], 3, 0.5, 1.5)), &[0, 1]));
    }
    let c = case("InstanceNormalization", data(&[2, 3, 4, 2], 1)).input(channels(2));
    out.push(coarse(c.input(channels(3)), &[0]));
    for (opset, n) in [(18, 2), (21, 4)] {
        let c = Case::new("GroupNormalization", opset).input(data(&[2, 4, 3, 2], 1)).attr("num_groups", 2i64);
        out.push(coarse(c.input(within(&[n], 2, 0.5, 1.5)).input(data(&[n], 3)), &[0]));
    }
}

fn products(out: &mut Vec<Check>) {
    for (a, b) in [
        (&[2usize, 3][..], &[3usize, 4][..]),
        (&[2, 2, 3], &[3, 4]),
        (&[2, 1, 2, 3], &[3, 3, 2]),
        (&[3], &[3, 2]),
        (&[2, 3], &[3]),
        (&[1, 2, 3], &[2, 3, 2]),
    ] {
        out.push(check(case("MatMul", data(a, 1)).input(data(b, 2)), &[0, 1]));
    }
    for (ta, tb) in [(0i64, 0i64), (0, 1), (1, 0), (1, 1)] {
        let a = data(if ta == 1 { &[3, 2] } else { &[2, 3] }, 1);
        let b = data(if tb == 1 { &[4, 3] } else { &[3, 4] }, 2);
        let c = case("Gemm", a).input(b).input(data(&[4], 3)).attr("transA", ta).attr("transB", tb);
        out.push(check(c.attr("alpha", 0.5f32).attr("beta", 2.0f32), &[0, 1, 2]));
    }
    for (equation, a, b) in [
        ("bij,bjk->bik", &[2usize, 2, 3][..], &[2usize, 3, 2][..]),
        ("bhqd,bhkd->bhqk", &[1, 2, 3, 2], &[1, 2, 2, 2]),
        ("ij,jk->ki", &[2, 3], &[3, 2]),
        ("...ij,jk", &[2, 2, 3], &[3, 2]),
    ] {
        out.push(check(case("Einsum", data(a, 1)).input(data(b, 2)).attr("equation", equation), &[0, 1]));
    }
    let conv = |x: &[usize], w: &[usize], bias: usize| {
        Case::new("Conv", 11).input(data(x, 1)).input(data(w, 2)).input(data(&[bias], 3))
    };
    let all: &[usize] = &[0, 1, 2];
    out.push(check(conv(&[2, 3, 5, 6], &[4, 3, 3, 3], 4).attr("pads", vec![1i64, 1, 1, 1]), all));
    out.push(check(conv(&[1, 3, 7], &[4, 3, 3], 4), all));
    out.push(check(conv(&[1, 4, 6, 5], &[4, 2, 3, 2], 4).attr("group", 2i64).attr("strides", vec![2i64, 1]), all));
    out.push(check(conv(&[1, 3, 6, 5], &[3, 1, 3, 3], 3).attr("group", 3i64).attr("auto_pad", "SAME_UPPER"), all));
    let strided = conv(&[2, 3, 7, 6], &[3, 1, 3, 3], 3).attr("group", 3i64).attr("strides", vec![2i64, 2]);
    out.push(check(strided.attr("pads", vec![1i64, 0, 1, 1]), all));
    out.push(check(conv(&[1, 2, 8, 7], &[3, 2, 2, 3], 3).attr("dilations", vec![2i64, 2]), all));
    out.push(check(conv(&[1, 2, 3, 3, 4], &[2, 2, 2, 2, 2], 2).attr("strides", vec![1i64, 1, 2]), all));
    out.push(check(conv(&[1, 2, 3, 3], &[2, 2, 1, 1], 2).attr("pads", vec![1i64, 1, 1, 1]), all));
    let back = |x: &[usize], w: &[usize], bias: usize| {
        Case::new("ConvTranspose", 11).input(data(x, 1)).input(data(w, 2)).input(data(&[bias], 3))
    };
    out.push(check(back(&[1, 3, 3, 4], &[3, 2, 3, 3], 2), all));
    let strided = back(&[1, 4, 3, 3], &[4, 1, 2, 3], 2).attr("group", 2i64).attr("strides", vec![2i64, 2]);
    out.push(check(strided.attr("pads", vec![1i64, 1, 0, 1]).attr("output_padding", vec![1i64, 0]), all));
    out.push(check(back(&[1, 2, 5], &[2, 2, 3], 2).attr("auto_pad", "SAME_UPPER").attr("strides", vec![2i64]), all));
}

fn pools(out: &mut Vec<Check>) {
    for op in ["MaxPool", "AveragePool"] {
        let pool = || Case::new(op, 19).input(data(&[2, 2, 6, 5], 1)).attr("kernel_shape", vec![3i64, 2]);
        out.push(check(pool(), &[0]));
        out.push(check(pool().attr("strides", vec![2i64, 2]).attr("pads", vec![1i64, 0, 1, 1]), &[0]));
        out.push(check(pool().attr("strides", vec![2i64, 3]).attr("ceil_mode", 1i64), &[0]));
        out.push(check(Case::new(op, 19).input(data(&[1, 2, 7], 1)).attr("kernel_shape", vec![3i64]), &[0]));
    }
    let counted = Case::new("AveragePool", 19).input(data(&[1, 1, 4, 4], 1)).attr("kernel_shape", vec![2i64, 2]);
    out.push(check(counted.attr("pads", vec![1i64, 1, 1, 1]).attr("count_include_pad", 1i64), &[0]));
    for op in ["GlobalAveragePool", "GlobalMaxPool"] {
        out.push(check(case(op, data(&[2, 3, 4, 2], 1)), &[0]));
    }
}

fn checks() -> Vec<Check> {
    let mut out = Vec::new();
    elementwise(&mut out);
    broadcasting(&mut out);
    movements(&mut out);
    reductions(&mut out);
    products(&mut out);
    pools(&mut out);
    out
}

#[test]
fn every_rule_agrees_with_finite_differences() {
    let mut failures = Vec::new();
    for (i, Check(case, slots, is_coarse)) in checks().into_iter().enumerate() {
        let (step, tolerance) = if is_coarse { (1e-2, 5e-3) } else { (1e-5, 2e-5) };
        if let Err(e) = case.differentiates(slots, step, tolerance) {
            failures.push(format!("{} (check {i}): {e:#}", case.operator().1));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_rule_is_checked() {
    let checked: BTreeSet<(String, String)> =
        checks().iter().map(|c| c.0.operator()).map(|(d, n)| (d.to_owned(), n.to_owned())).collect();
    for rule in ALL.iter().copied().flatten() {
        let key = (rule.domain.name().to_owned(), rule.name.to_owned());
        assert!(checked.contains(&key), "the rule of {} is not in the table", rule.name);
    }
}

#[test]
fn float_types_pass_through_casts_and_integers_do_not() {
    let x = Tensor::vector(vec![1.5f32, -2.0]);
    for (to, passes) in [(1i64, true), (7, false)] {
        let case = case("Cast", x.clone()).attr("to", to);
        let outputs: Vec<_> = case.run().unwrap().into_iter().map(Some).collect();
        let g = Some(Tensor::vector(vec![3.0f32, 4.0]));
        let found = case.reversed(&outputs, &[g.clone()]).unwrap();
        assert_eq!(found.first().cloned().flatten(), if passes { g } else { None });
    }
}
