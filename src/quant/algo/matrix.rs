//! The weight of a node as a matrix: one row for each output channel, which is what rounding works on.

use super::layout::Layout;
use crate::error::Result;
use crate::ir::Model;
use crate::ops::{QuantRule, lookup};
use crate::quant::annotate::constant;
use crate::quant::params;
use crate::quant::plan::{NodePlace, WeightPlan};
use crate::tensor::Tensor;

/// Input slots of a weighted node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// Data.
    pub data: usize,
    /// Weight.
    pub weight: usize,
    /// Bias, where the operator has one.
    pub bias: Option<usize>,
}

/// A weight as a matrix `[rows, k]`: element `[o, i]` is what output channel `o` multiplies its `i`-th input with. For a
/// convolution the inputs are a patch, `[C/group, kernel…]`.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Output channels.
    pub rows: usize,
    /// Inputs of each.
    pub k: usize,
    /// Groups of output channels that read inputs of their own.
    pub groups: usize,
    /// Elements, row by row.
    pub data: Vec<f32>,
    /// Input slots of the node.
    pub slots: Slots,
    /// How the elements are stored.
    pub layout: Layout,
    /// The stored shape.
    pub shape: Vec<usize>,
}

impl Matrix {
    /// The weight of a node; `None` when it has no float constant weight, or one that is no matrix (`ConvTranspose`,
    /// batched `MatMul`, transposed data).
    #[must_use]
    pub fn of(model: &Model, place: NodePlace) -> Option<Self> {
        let (id, n) = place;
        let g = model.graph(id);
        let node = g.node(n);
        let opset = model.opsets_in(id).iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let QuantRule::Weighted { data, weight, bias, axis } = lookup(&node.domain, &node.op_type, opset)?.quant else {
            return None;
        };
        if node.attrs.int("transA").unwrap_or(0) != 0 {
            return None;
        }
        let stored = constant(model, id, g.input(n, weight)?)?;
        let shape = stored.shape().to_vec();
        let layout = Layout::of(&node.attrs, axis, shape.len())?;
        let x = stored.get().ok()?.slice::<f32>().ok()?;
        let (rows, groups) = match layout {
            Layout::Conv { group } => (shape[0], group.max(1)),
            Layout::Kn => (shape[1], 1),
            Layout::Nk => (shape[0], 1),
        };
        if x.is_empty() || !rows.is_multiple_of(groups) {
            return None;
        }
        let k = x.len() / rows;
        let data_rows = if layout == Layout::Kn { transposed(x, k, rows) } else { x.to_vec() };
        Some(Matrix { rows, k, groups, data: data_rows, slots: Slots { data, weight, bias }, layout, shape })
    }

    /// Output channels that read the same inputs.
    #[must_use]
    pub fn rows_per_group(&self) -> usize {
        self.rows / self.groups
    }

    /// The rows of one group.
    #[must_use]
    pub fn group(&self, group: usize) -> &[f32] {
        let size = self.rows_per_group() * self.k;
        &self.data[group * size..][..size]
    }

    /// Channels of the data.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.layout.n_inputs(&self.shape)
    }

    /// The channel of the data that input `i` of a group belongs to.
    #[must_use]
    pub fn channel(&self, group: usize, i: usize) -> usize {
        match self.layout {
            Layout::Conv { .. } => group * self.shape[1] + i / (self.k / self.shape[1].max(1)).max(1),
            _ => i,
        }
    }

    /// Elements in the order of storage, in rows.
    #[must_use]
    pub fn in_rows<T: Copy>(&self, stored: &[T]) -> Vec<T> {
        if self.layout == Layout::Kn { transposed(stored, self.k, self.rows) } else { stored.to_vec() }
    }

    /// Elements of the rows, `[rows, k]`, in the order of storage.
    #[must_use]
    pub fn in_storage<T: Copy>(&self, rows: Vec<T>) -> Vec<T> {
        if self.layout == Layout::Kn { transposed(&rows, self.rows, self.k) } else { rows }
    }

    /// Integers of the rows, `[rows, k]`, as the tensor to store.
    ///
    /// # Errors
    /// There are not as many as the weight has elements, or the plan's form has none.
    pub fn stored(&self, plan: &WeightPlan, integers: Vec<i32>) -> Result<Tensor> {
        params::integers(plan.params.form.dtype, &self.shape, self.in_storage(integers))
    }

    /// The integers of a plan in rows, `[rows, k]`; `None` when its form has none (8-bit floats).
    ///
    /// # Errors
    /// The plan belongs to another weight.
    pub fn integers(&self, plan: &WeightPlan) -> Result<Option<Vec<i32>>> {
        if plan.params.form.dtype.is_float8() {
            return Ok(None);
        }
        let stored = match &plan.rounded {
            Some(q) => q.clone(),
            None => plan.params.quantize(&self.in_storage(self.data.clone()), &self.shape)?,
        };
        // At most 16 bits: every integer is a float.
        let q: Vec<i32> = stored.to_f32s()?.iter().map(|&q| q as i32).collect();
        Ok(Some(self.in_rows(&q)))
    }

    /// The scale and zero point of a row in a plan.
    #[must_use]
    pub fn step(plan: &WeightPlan, row: usize) -> (f32, i32) {
        let at = if plan.params.axis.is_some() { row } else { 0 };
        (plan.params.scales[at], plan.params.zero_points[at])
    }
}

/// `[rows, columns]` turned into `[columns, rows]`.
pub(super) fn transposed<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(x.len());
    for c in 0..columns {
        out.extend((0..rows).map(|r| x[r * columns + c]));
    }
    out
}
