//! What the numbers of a quantized operator must be for its integers to mean what its floats meant, on any runtime.

use super::view::View;
use super::{Find, Found, Rule, Severity, rule};
use crate::ops::QuantRule;
use crate::tensor::DType;

use Find::Graph;
use Severity::{Error, Warning};

/// Rules about scales and axes that belong together.
pub(super) const RULES: &[Rule] = &[
    rule("weight-axis", Error, "scales of a weight follow its output channels", Graph(weight_axis)),
    rule("bias-scale", Error, "an int32 bias has the product of the scales of data and weight", Graph(bias_scale)),
    rule("bias-zero-point", Error, "an int32 bias has zero point 0", Graph(bias_zero)),
    rule("parameters-change", Warning, "operators that move elements keep scale and zero point", Graph(moved)),
];

fn weight_axis(v: &View<'_>, out: &mut Found) {
    for &n in &v.nodes {
        let Some(w) = v.weighted(n, None) else { continue };
        let (Some(stored), Some(scale)) = (v.stored_input(w.dq, 0), v.stored_input(w.dq, 1)) else { continue };
        let is_blocked = v.node(w.dq).attrs.int("block_size").is_some_and(|b| b > 0);
        if scale.shape().len() != 1 || scale.len() < 2 || is_blocked {
            continue;
        }
        let want = w.axis.resolve(&v.node(n).attrs, stored.shape().len()).map(|a| a as i64);
        let axis = v.axis(w.dq);
        if axis != want {
            let (axis, want) = (axis.unwrap_or(-1), want.unwrap_or(-1));
            out.push((v.at(n), format!("its weight has scales along axis {axis}, its channels are on axis {want}")));
        }
    }
}

fn bias_scale(v: &View<'_>, out: &mut Found) {
    for &n in &v.nodes {
        let Some(w) = v.weighted(n, None) else { continue };
        let Some(b) = w.bias.and_then(|slot| v.dq_at(n, slot)) else { continue };
        if v.quantized_type(b) != Some(DType::I32) {
            continue;
        }
        let scale = |dq| v.elements(dq, 1).and_then(|t| t.slice::<f32>().ok());
        let Some(x) = v.dq_at(n, w.data) else { continue };
        let (Some(b), Some(x), Some(w)) = (scale(b), scale(x), scale(w.dq)) else { continue };
        let ([x], true) = (x, b.len() == w.len() || b.len() == 1 || w.len() == 1) else {
            out.push((v.at(n), format!("its bias has {} scales, its weight {}", b.len(), w.len())));
            continue;
        };
        let at = |s: &[f32], i: usize| s[if s.len() == 1 { 0 } else { i }];
        // In float32, as runtimes compute it: the last bit may differ with the order of the factors.
        let wrong = (0..b.len().max(w.len())).find(|&i| {
            let want = x * at(w, i);
            (at(b, i) - want).abs() > want.abs() * f32::EPSILON
        });
        if let Some(i) = wrong {
            let (is, want) = (at(b, i), x * at(w, i));
            let what = format!("scale {i} of its bias is {is:e}, the product of the other two is {want:e}");
            out.push((v.at(n), what));
        }
    }
}

fn bias_zero(v: &View<'_>, out: &mut Found) {
    for n in v.quantizers().filter(|&n| v.is_dq(n) && v.quantized_type(n) == Some(DType::I32)) {
        if v.zero_is(n, |_| 0) == Some(false) {
            out.push((v.at(n), "has int32 data and a zero point that is not 0".into()));
        }
    }
}

fn moved(v: &View<'_>, out: &mut Found) {
    for &n in &v.nodes {
        if v.rule(n, None) != Some(QuantRule::Share) {
            continue;
        }
        let Some(x) = v.dq_at(n, 0).filter(|&dq| !v.is_weight(dq)) else { continue };
        for y in v.g.node_outputs(n).into_iter().flatten() {
            for q in v.qs_on(v.behind(y)) {
                let same = |slot: usize| {
                    v.input(x, slot) == v.input(q, slot)
                        || v.elements(x, slot).is_some_and(|a| v.elements(q, slot) == Some(a))
                };
                if !(same(1) && same(2)) {
                    let what = "its input and output differ in scale or zero point, which makes it compute in float";
                    out.push((v.at(n), what.into()));
                }
            }
        }
    }
}
