//! Weight-only forms: stored integers in blocks, float activations.
//!
//! - QDQ: a blocked `DequantizeLinear` (opset 21) of a `[K, N]` matrix, which ONNX Runtime fuses into `MatMulNBits`.
//!   It does so only where weight and scales have one user, so each user gets its own; a `Gemm` that transposes gets a
//!   matrix that is turned. A table is gathered as int8 and multiplied with the gathered scales of its rows: a
//!   `DequantizeLinear` before the `Gather` would widen the whole table on every run.
//! - `MatMulNBits` and `GatherBlockQuantized` (com.microsoft), which need no fusion. A table that is a matrix as well
//!   is stored once for both.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{At, Result, anyhow};
use crate::ir::builder::Beside;
use crate::ir::{Attr, Domain, GraphId, Model, Names, Node, NodeId, TensorRef, TensorType, ValueId, ValueType};
use crate::quant::annotate::constant;
use crate::quant::lazy::{Form, Job, Which};
use crate::quant::plan::{NodePlace, Place};
use crate::tensor::{DType, Tensor};

/// A stored matrix as an operator uses it.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// The value that stores it, where it is defined.
    pub root: Place,
    /// Its elements.
    pub tensor: TensorRef,
    /// Whether a `Transpose` stands in between.
    pub is_transposed: bool,
}

/// The stored matrix behind a value, through captures and one `Transpose`.
#[must_use]
pub fn matrix(model: &Model, id: GraphId, v: ValueId) -> Option<Matrix> {
    let root = |(mut g, mut v): Place| {
        while let crate::ir::Def::Capture(outer, source) = model.graph(g).value(v).def {
            (g, v) = (outer, source);
        }
        (g, v)
    };
    if let Some(t) = constant(model, id, v) {
        return Some(Matrix { root: root((id, v)), tensor: t.clone(), is_transposed: false });
    }
    let (id, v) = root((id, v));
    let g = model.graph(id);
    let (n, _) = g.producer(v)?;
    let node = g.node(n);
    let x = g.input(n, 0)?;
    let t = constant(model, id, x)?;
    // Without a permutation all axes are reversed.
    let turns = match node.attrs.get("perm") {
        None => true,
        Some(Attr::Ints(p)) => p[..] == [1, 0],
        Some(_) => false,
    };
    let found = node.is("Transpose") && turns && t.shape().len() == 2;
    found.then(|| Matrix { root: root((id, x)), tensor: t.clone(), is_transposed: true })
}

/// Whether a node takes rows of a table by index.
#[must_use]
pub fn gathers_rows(node: &Node) -> bool {
    node.is("Gather") && node.attrs.int("axis").unwrap_or(0) == 0
}

/// Why a `Gemm` cannot keep its factors with a weight in blocks; `None` for any other operator.
#[must_use]
pub fn gemm_obstacle(node: &Node) -> Option<&'static str> {
    if !node.is("Gemm") {
        return None;
    }
    let factor = |name| node.attrs.float(name).unwrap_or(1.0) != 1.0;
    if node.attrs.int("transA").unwrap_or(0) != 0 {
        return Some("its data is transposed");
    }
    (factor("alpha") || factor("beta")).then_some("alpha or beta is not 1")
}

/// What a weight in blocks is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// `MatMul` or `Gemm`: weight in slot 1, bias, if any, in slot 2.
    Product,
    /// `Gather`: table in slot 0, indices in slot 1.
    Lookup,
}

/// A node whose weight is to be stored in blocks.
#[derive(Debug, Clone)]
pub struct Item {
    /// The node.
    pub place: NodePlace,
    /// How it uses the weight.
    pub usage: Use,
    /// Makes what is stored; nodes with the same job share what it makes.
    pub job: Arc<Job>,
    /// What the data is multiplied with first, one number per input channel.
    pub factors: Option<Arc<Vec<f32>>>,
}

/// Rewrites the nodes. What they no longer use is left for `eliminate-dead`.
///
/// # Errors
/// A node is not as the plan knows it.
pub fn realize(model: &mut Model, items: &[Item]) -> Result<()> {
    let names = Names::of(model);
    let mut w = Writer { model, names, stored: BTreeMap::new(), scaled: BTreeMap::new() };
    for item in items {
        let location = w.model.graph(item.place.0).node(item.place.1).location();
        w.item(item).at(|| location)?;
    }
    let uses_microsoft = items.iter().any(|i| matches!(i.job.form, Form::Packed | Form::Table));
    if uses_microsoft && model.opset(&Domain::microsoft()).is_none() {
        model.opsets.push((Domain::microsoft(), 1));
    }
    Ok(())
}

struct Writer<'a> {
    model: &'a mut Model,
    names: Names,
    /// Parts that several nodes of a graph read, by job.
    stored: BTreeMap<(GraphId, usize, usize), ValueId>,
    /// Data that was multiplied, by data and factors.
    scaled: BTreeMap<(GraphId, ValueId, Vec<u32>), ValueId>,
}

impl Writer<'_> {
    fn item(&mut self, item: &Item) -> Result<()> {
        let (id, n) = item.place;
        if let Some(f) = &item.factors {
            self.scale_data(id, n, f)?;
        }
        match (item.usage, item.job.form) {
            (Use::Product, Form::Columns) => self.dequantized(id, n, &item.job),
            (Use::Product, _) => self.mat_mul_n_bits(id, n, &item.job),
            (Use::Lookup, Form::Rows) => self.rows(id, n, &item.job),
            (Use::Lookup, _) => self.gather_blocks(id, n, &item.job),
        }
    }

    /// Multiplies the data with factors; products that read the same data share the result.
    fn scale_data(&mut self, id: GraphId, n: NodeId, factors: &[f32]) -> Result<()> {
        let g = self.model.graph(id);
        let x = g.input(n, 0).ok_or_else(|| anyhow!("input 0 is missing"))?;
        let key = (id, x, factors.iter().map(|f| f.to_bits()).collect());
        let scaled = match self.scaled.get(&key) {
            Some(&v) => v,
            None => {
                let ty = g.value(x).ty.clone();
                let mut beside = Beside::before(self.model, &mut self.names, id, n).named_after(x);
                let factors = beside.constant("factors", Tensor::vector(factors.to_vec()));
                beside.node(Node::new("Mul"), &[x, factors], "scaled", ty)
            }
        };
        self.scaled.insert(key, scaled);
        self.model.graph_mut(id).set_input(n, 0, Some(scaled));
        Ok(())
    }

    /// A part as an initializer. Parts of one job in one graph are stored once where the form allows it.
    fn part(&mut self, id: GraphId, job: &Arc<Job>, which: Which, suffix: &str) -> Option<ValueId> {
        let tensor = job.part(which)?;
        let key = (id, Arc::as_ptr(job) as usize, which as usize);
        if job.form != Form::Columns
            && let Some(&v) = self.stored.get(&key)
        {
            return Some(v);
        }
        let name = self.names.fresh(&format!("{}_{suffix}", job.name));
        let v = self.model.graph_mut(id).add_initializer(name, tensor);
        self.stored.insert(key, v);
        Some(v)
    }

    fn parts(&mut self, id: GraphId, job: &Arc<Job>) -> Result<(ValueId, ValueId, Option<ValueId>)> {
        let q = self.part(id, job, Which::Integers, "quantized").ok_or_else(|| anyhow!("has no integers"))?;
        let s = self.part(id, job, Which::Scales, "scale").ok_or_else(|| anyhow!("has no scales"))?;
        Ok((q, s, self.part(id, job, Which::Zeros, "zero_point")))
    }

    fn dequantized(&mut self, id: GraphId, n: NodeId, job: &Arc<Job>) -> Result<()> {
        let (q, s, z) = self.parts(id, job)?;
        let g = self.model.graph_mut(id);
        let node = Node::new("DequantizeLinear")
            .attr("axis", 0i64)
            .attr("block_size", job.scheme.block as i64)
            .named(self.names.fresh(&format!("{}_DequantizeLinear", job.name)))
            .at(g.node(n).pos.before());
        let ty = ValueType::Tensor(TensorType::fixed(DType::F32, &[job.k, job.n]));
        let out = g.add_result(self.names.fresh(&format!("{}_DequantizeLinear_Output", job.name)), Some(ty));
        let ins: Vec<_> = [Some(q), Some(s), z].into_iter().filter(Option::is_some).collect();
        g.add_node(node, &ins, &[Some(out)]);
        g.set_input(n, 1, Some(out));
        if g.node(n).is("Gemm") {
            g.node_mut(n).attrs.remove("transB");
            self.flatten_bias(id, n, job.n)?;
        }
        Ok(())
    }

    /// A `Gemm`'s bias `[1, N]` as `[N]`, which alone fuses.
    fn flatten_bias(&mut self, id: GraphId, n: NodeId, columns: usize) -> Result<()> {
        let Some(b) = self.model.graph(id).input(n, 2) else { return Ok(()) };
        let Some(t) = constant(self.model, id, b).filter(|t| t.shape() == [1, columns]).cloned() else {
            return Ok(());
        };
        let flat = t.get()?.clone().reshaped(&[columns])?;
        let name = self.names.fresh(&format!("{}_vector", self.model.graph(id).value(b).name));
        let v = self.model.graph_mut(id).add_initializer(name, flat);
        self.model.graph_mut(id).set_input(n, 2, Some(v));
        Ok(())
    }

    fn mat_mul_n_bits(&mut self, id: GraphId, n: NodeId, job: &Arc<Job>) -> Result<()> {
        let (q, s, z) = self.parts(id, job)?;
        self.flatten_bias(id, n, job.n)?;
        let g = self.model.graph(id);
        let (x, y) = (g.input(n, 0), g.output(n, 0).ok_or_else(|| anyhow!("output 0 is missing"))?);
        let bias = g.input(n, 2);
        let is_vector = bias.is_none_or(|b| {
            constant(self.model, id, b).map(|t| t.shape().to_vec()) == Some(vec![job.n])
                || self.fixed_shape(id, b) == Some(vec![job.n])
        });
        let name = self.model.graph(id).node(n).label();
        let node = Node::new("MatMulNBits")
            .domain(Domain::microsoft())
            .named(self.names.fresh(&format!("{name}_MatMulNBits")))
            .attr("K", job.k as i64)
            .attr("N", job.n as i64)
            .attr("bits", job.scheme.bits() as i64)
            .attr("block_size", job.scheme.block as i64);
        // Integer products with activations that are quantized on the way: what the QDQ form becomes, too. There are none
        // with zero points that are floats.
        let node = if job.scheme.float_zeros { node } else { node.attr("accuracy_level", 4i64) };
        let mut ins = vec![x, Some(q), Some(s)];
        match (z, bias) {
            (z, Some(b)) if is_vector => ins.extend([z, None, Some(b)]),
            (Some(z), _) => ins.push(Some(z)),
            (None, _) => {}
        }
        let product = if is_vector {
            y
        } else {
            // A bias of another shape is added.
            let ty = self.model.graph(id).value(y).ty.clone();
            let mut beside = Beside::after(self.model, &mut self.names, id, n);
            let v = beside.value("product", ty);
            if let Some(b) = bias {
                beside.node_into(Node::new("Add"), &[Some(v), Some(b)], y);
            }
            v
        };
        Beside::before(self.model, &mut self.names, id, n).node_into(node, &ins, product);
        Ok(())
    }

    fn fixed_shape(&self, id: GraphId, v: ValueId) -> Option<Vec<usize>> {
        self.model.graph(id).value(v).ty.as_ref()?.as_tensor()?.fixed_shape()
    }

    /// `Gather` of rows and of their scales, and their product.
    fn rows(&mut self, id: GraphId, n: NodeId, job: &Arc<Job>) -> Result<()> {
        let (q, s, _) = self.parts(id, job)?;
        let g = self.model.graph(id);
        let index = g.input(n, 1).ok_or_else(|| anyhow!("input 1 is missing"))?;
        let y = g.output(n, 0).ok_or_else(|| anyhow!("output 0 is missing"))?;
        let shape = g.value(y).ty.as_ref().and_then(|t| t.as_tensor()).and_then(|t| t.shape.clone());
        let typed = |dtype| Some(ValueType::Tensor(TensorType { dtype: Some(dtype), shape: shape.clone() }));
        let of_scales = shape.as_ref().map(|s| {
            let mut s = s.clone();
            if let Some(last) = s.last_mut() {
                *last = crate::ir::Dim::Known(1);
            }
            s
        });
        let mut beside = Beside::before(self.model, &mut self.names, id, n);
        let rows = beside.node(Node::new("Gather"), &[q, index], "quantized_rows", typed(job.scheme.dtype));
        let ty = ValueType::Tensor(TensorType { dtype: Some(DType::F32), shape: of_scales });
        let scales = beside.node(Node::new("Gather"), &[s, index], "row_scales", Some(ty));
        let cast = Node::new("Cast").attr("to", i64::from(DType::F32.code()));
        let floats = beside.node(cast, &[rows], "float_rows", typed(DType::F32));
        beside.node_into(Node::new("Mul"), &[Some(floats), Some(scales)], y);
        Ok(())
    }

    fn gather_blocks(&mut self, id: GraphId, n: NodeId, job: &Arc<Job>) -> Result<()> {
        let (mut q, s, z) = self.parts(id, job)?;
        let g = self.model.graph(id);
        let index = g.input(n, 1);
        let y = g.output(n, 0).ok_or_else(|| anyhow!("output 0 is missing"))?;
        let mut beside = Beside::before(self.model, &mut self.names, id, n);
        if job.form == Form::Packed {
            // The same bytes, which a product reads as blocks.
            let width = job.k * job.scheme.bits() / 8;
            let shape = beside.constant("table_shape", Tensor::vector(vec![job.n as i64, width as i64]));
            let ty = ValueType::Tensor(TensorType::fixed(DType::U8, &[job.n, width]));
            q = beside.node(Node::new("Reshape"), &[q, shape], "table", Some(ty));
        }
        let node = Node::new("GatherBlockQuantized")
            .domain(Domain::microsoft())
            .attr("gather_axis", 0i64)
            .attr("quantize_axis", 1i64)
            .attr("block_size", job.scheme.block as i64)
            .attr("bits", job.scheme.bits() as i64);
        let mut ins = vec![Some(q), index, Some(s)];
        ins.extend(z.map(Some));
        beside.node_into(node, &ins, y);
        Ok(())
    }
}
