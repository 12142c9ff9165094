//! Sizes that inference writes with names, against those of evaluated values.

use std::collections::BTreeMap;

use onnx_quant::ir::{Def, Dim, Model, TensorType, ValueType, sym};
use onnx_quant::ops::Item;
use onnx_quant::tensor::Tensor;

/// What the names stand for.
#[derive(Default)]
pub struct Sizes(BTreeMap<String, i64>);

impl Sizes {
    /// Takes the names of a declared type from a value that has it.
    pub fn bind(&mut self, ty: Option<&ValueType>, value: &Tensor) {
        for (d, n) in ty.and_then(ValueType::shape).into_iter().flatten().zip(value.shape()) {
            if let Dim::Symbol(s) = d {
                self.0.entry(s.to_string()).or_insert(*n as i64);
            }
        }
    }

    /// Whether a type's sizes come to those of the value. A name that is new stands for the size that it has here.
    pub fn check(&mut self, ty: Option<&ValueType>, value: &Item) -> Result<(), String> {
        let (Some(shape), Some(t)) = (ty.and_then(ValueType::shape), value.tensor()) else { return Ok(()) };
        if shape.len() != t.rank() {
            return Err(format!("rank {}, evaluated {:?}", shape.len(), t.shape()));
        }
        for (i, (d, &n)) in shape.iter().zip(t.shape()).enumerate() {
            let found = match d {
                Dim::Unknown => continue,
                Dim::Known(m) => Some(*m as i64),
                Dim::Symbol(_) => sym::evaluate(d, &|name| self.0.get(name).copied()),
            };
            match (found, d) {
                // A slice that begins behind the end is empty.
                (Some(..0), Dim::Symbol(_)) if n == 0 => {}
                (Some(m), _) if m != n as i64 => {
                    return Err(format!("size {i} is {d}, which is {m} with {:?}, evaluated {:?}", self.0, t.shape()));
                }
                (None, Dim::Symbol(s)) => {
                    self.0.insert(s.to_string(), n as i64);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The model with a name for every size of its inputs, and no types but those, and what the names stand for.
pub fn named(model: &Model, fed: &[(String, Tensor)]) -> (Model, Sizes) {
    let mut model = model.clone();
    for id in model.graph_ids() {
        let g = model.graph_mut(id);
        for v in g.values().collect::<Vec<_>>() {
            if matches!(g.value(v).def, Def::Node) {
                g.set_type(v, None);
            }
        }
    }
    let mut sizes = Sizes::default();
    let g = model.main_mut();
    for (k, v) in g.inputs().to_vec().into_iter().enumerate() {
        let Some((_, t)) = fed.iter().find(|(name, _)| *name == g.value(v).name) else { continue };
        let dims = (0..t.rank()).map(|i| Dim::Symbol(format!("i{k}_{i}").into())).collect();
        let ty = ValueType::Tensor(TensorType::new(t.dtype(), dims));
        sizes.bind(Some(&ty), t);
        g.set_type(v, Some(ty));
    }
    (model, sizes)
}
