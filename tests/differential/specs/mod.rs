//! What random cases are made of: for each operator its versions and a function that makes a node.

mod elementwise;
mod microsoft;
mod nn;
mod quantized;
mod recurrent;
mod reduce;
mod shape;

use onnx_quant::tensor::Tensor;

use crate::graph::{Node, Slot};
use crate::random::Gen;

/// The tensor to work on and a node that uses it as [`Slot::X`]; `None` when the given tensor does not fit.
pub type Made = Option<(Option<Tensor>, Node)>;

pub struct Spec {
    pub op: &'static str,
    pub domain: &'static str,
    /// Opset versions to take turns.
    pub opsets: &'static [i64],
    /// Whether it may stand in a chain: it takes and gives float tensors of some shape.
    pub chain: bool,
    pub make: fn(&mut Gen, &'static str, i64, Option<&Tensor>) -> Made,
}

const fn spec(
    op: &'static str,
    opsets: &'static [i64],
    make: fn(&mut Gen, &'static str, i64, Option<&Tensor>) -> Made,
) -> Spec {
    Spec { op, domain: "", opsets, chain: false, make }
}

const fn link(
    op: &'static str,
    opsets: &'static [i64],
    make: fn(&mut Gen, &'static str, i64, Option<&Tensor>) -> Made,
) -> Spec {
    Spec { op, domain: "", opsets, chain: true, make }
}

const fn microsoft(op: &'static str, make: fn(&mut Gen, &'static str, i64, Option<&Tensor>) -> Made) -> Spec {
    Spec { op, domain: "com.microsoft", opsets: &[17], chain: false, make }
}

/// Every operator of the table.
pub fn all() -> Vec<Spec> {
    let mut all = Vec::new();
    let families = [
        elementwise::SPECS,
        reduce::SPECS,
        shape::SPECS,
        nn::SPECS,
        recurrent::SPECS,
        quantized::SPECS,
        microsoft::SPECS,
    ];
    for family in families {
        all.extend(family.iter().map(|s| Spec { ..*s }));
    }
    all
}

/// A constant vector of integers.
fn ints(v: Vec<i64>) -> Slot {
    Slot::Const(Tensor::vector(v))
}
