//! Turns a model that computes in float16 or bfloat16 into one that computes in float32.
//!
//! Processors without half-precision arithmetic convert at every node, and integer kernels want float32 scales. Stored
//! tensors, types of values, tensors and type codes in attributes are widened in all graphs; a `Cast` to half
//! precision becomes a `Cast` to float32. The main graph's inputs and outputs keep name and type: a `Cast` stands at the border.
//!
//! Results differ by what rounding to half precision in between did.

use super::rewrite::redirect;
use super::{Ctx, Info, Pass};
use crate::error::{At, Location, Result};
use crate::ir::{Attr, Attrs, Def, GraphId, Model, Names, Node, Position, TensorRef, TensorType, ValueId, ValueType};
use crate::tensor::{DType, cast};

/// The pass.
pub const PASS: &dyn Pass = &WidenFloat16;

/// Attributes that hold a type's code.
const TYPE_CODES: &[&str] = &["to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision"];

struct WidenFloat16;

impl Pass for WidenFloat16 {
    fn info(&self) -> Info {
        Info { name: "widen_float16", summary: "computes in float32 what the model computes in half precision" }
    }

    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool> {
        if !ctx.widen_float16 || !computes_in_half(model) {
            return Ok(false);
        }
        let mut names = Names::of(model);
        let mut changed = false;
        for v in model.main().inputs().to_vec() {
            changed |= widen_input(model, &mut names, v);
        }
        for v in model.main().outputs().to_vec() {
            changed |= widen_output(model, &mut names, v)?;
        }
        for id in model.graph_ids().collect::<Vec<_>>() {
            changed |= widen_values(model, id)?;
            for n in model.graph(id).nodes().collect::<Vec<_>>() {
                // The casts at the border just made keep their types.
                if !is_border(model, id, n) {
                    changed |= widen_attrs(&mut model.graph_mut(id).node_mut(n).attrs)?;
                }
            }
        }
        Ok(changed)
    }
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

fn half_type(ty: Option<&ValueType>) -> bool {
    ty.and_then(ValueType::dtype).is_some_and(is_half)
}

/// Whether there is anything in half precision other than casts at the border.
fn computes_in_half(model: &Model) -> bool {
    model.graph_ids().any(|id| {
        let g = model.graph(id);
        let is_interface = |v: ValueId| id == GraphId::MAIN && (g.inputs().contains(&v) || g.outputs().contains(&v));
        let stored_or_typed = g.values().any(|v| {
            let value = g.value(v);
            let stored = matches!(&value.def, Def::Initializer(t) if is_half(t.dtype()));
            stored || (half_type(value.ty.as_ref()) && !is_interface(v))
        });
        stored_or_typed
            || g.nodes()
                .any(|n| !is_border(model, id, n) && g.node(n).attrs.iter().any(|a| holds_half(&a.name, &a.value)))
            || g.nodes().any(|n| {
                !g.node(n).is("Cast")
                    && g.node_inputs(n).into_iter().flatten().any(|v| half_type(g.value(v).ty.as_ref()))
            })
    })
}

/// Whether a node is a `Cast` that makes a graph output of half precision.
fn is_border(model: &Model, id: GraphId, n: crate::ir::NodeId) -> bool {
    let g = model.graph(id);
    id == GraphId::MAIN
        && g.node(n).is("Cast")
        && g.output(n, 0).is_some_and(|v| g.is_output(v) && half_type(g.value(v).ty.as_ref()))
}

fn code(i: i64) -> Option<DType> {
    i32::try_from(i).ok().and_then(DType::from_code)
}

fn holds_half(name: &str, value: &Attr) -> bool {
    match value {
        Attr::Tensor(t) => is_half(t.dtype()),
        Attr::Tensors(v) => v.iter().any(|t| is_half(t.dtype())),
        Attr::Int(i) => TYPE_CODES.contains(&name) && code(*i).is_some_and(is_half),
        Attr::Type(t) => widened(t).is_some(),
        _ => false,
    }
}

/// The type with float32 for half precision; `None` when it has none.
fn widened(ty: &ValueType) -> Option<ValueType> {
    match ty {
        ValueType::Tensor(t) if t.dtype.is_some_and(is_half) => {
            Some(ValueType::Tensor(TensorType { dtype: Some(DType::F32), shape: t.shape.clone() }))
        }
        ValueType::Sequence(t) => Some(ValueType::Sequence(Box::new(widened(t)?))),
        ValueType::Optional(t) => Some(ValueType::Optional(Box::new(widened(t)?))),
        ValueType::Map(k, t) => Some(ValueType::Map(*k, Box::new(widened(t)?))),
        _ => None,
    }
}

fn widen_tensor(t: &TensorRef) -> Result<TensorRef> {
    Ok(cast::cast(t.get()?, DType::F32, false)?.into())
}

/// What reads the input reads its widened copy.
fn widen_input(model: &mut Model, names: &mut Names, v: ValueId) -> bool {
    let g = model.main_mut();
    if !half_type(g.value(v).ty.as_ref()) || g.constant(v).is_some() || g.consumers(v).is_empty() && !g.is_captured(v) {
        return false;
    }
    if g.consumers(v).iter().all(|&(n, _)| g.node(n).is("Cast")) && !g.is_captured(v) {
        return false;
    }
    let name = g.value(v).name.clone();
    let ty = g.value(v).ty.as_ref().and_then(widened);
    let wide = g.add_result(names.fresh(&format!("{name}_float")), ty);
    redirect(model, GraphId::MAIN, v, wide);
    let cast = Node::new("Cast")
        .attr("to", i64::from(DType::F32.code()))
        .named(names.fresh(&format!("{name}_Cast")))
        .at(Position::default().before());
    model.main_mut().add_node(cast, &[Some(v)], &[Some(wide)]);
    true
}

/// Whoever made the output makes a widened value, of which the output is cast.
fn widen_output(model: &mut Model, names: &mut Names, v: ValueId) -> Result<bool> {
    let g = model.main();
    let Some(dtype) = g.value(v).ty.as_ref().and_then(ValueType::dtype).filter(|&d| is_half(d)) else {
        return Ok(false);
    };
    let name = g.value(v).name.clone();
    let ty = g.value(v).ty.as_ref().and_then(widened);
    if let Some(t) = g.constant(v).cloned() {
        // The output stays as it is stored; what computes with it gets a widened copy.
        if g.consumers(v).is_empty() && !g.is_captured(v) {
            return Ok(false);
        }
        let t = widen_tensor(&t).at(|| Location::value(&name))?;
        let wide = model.main_mut().add_initializer(names.fresh(&format!("{name}_float")), t);
        redirect(model, GraphId::MAIN, v, wide);
        return Ok(true);
    }
    let Some((node, slot)) = g.producer(v) else { return Ok(false) };
    if is_border(model, GraphId::MAIN, node) {
        return Ok(false);
    }
    let pos = g.node(node).pos.after();
    let wide = model.main_mut().add_result(names.fresh(&format!("{name}_float")), ty);
    redirect(model, GraphId::MAIN, v, wide);
    let cast =
        Node::new("Cast").attr("to", i64::from(dtype.code())).named(names.fresh(&format!("{name}_Cast"))).at(pos);
    let g = model.main_mut();
    g.take_over(node, slot, wide);
    g.add_node(cast, &[Some(wide)], &[Some(v)]);
    Ok(true)
}

fn widen_values(model: &mut Model, id: GraphId) -> Result<bool> {
    let mut changed = false;
    let g = model.graph_mut(id);
    let interface: Vec<ValueId> =
        if id == GraphId::MAIN { g.inputs().iter().chain(g.outputs()).copied().collect() } else { Vec::new() };
    for v in g.values().collect::<Vec<_>>() {
        let value = g.value(v);
        if interface.contains(&v) && !(g.constant(v).is_some() && g.inputs().contains(&v) && !g.is_output(v)) {
            continue;
        }
        if let Def::Initializer(t) = &value.def
            && is_half(t.dtype())
        {
            let name = value.name.clone();
            let t = widen_tensor(t).at(|| Location::value(&name))?;
            g.set_def(v, Def::Initializer(t));
            changed = true;
        }
        if let Some(ty) = g.value(v).ty.as_ref().and_then(widened) {
            g.set_type(v, Some(ty));
            changed = true;
        }
    }
    Ok(changed)
}

fn widen_attrs(attrs: &mut Attrs) -> Result<bool> {
    let mut changed = false;
    for a in attrs.iter_mut().filter(|a| holds_half(&a.name, &a.value)) {
        a.value = match &a.value {
            Attr::Tensor(t) => Attr::Tensor(widen_tensor(t)?),
            Attr::Tensors(v) => Attr::Tensors(
                v.iter()
                    .map(|t| if is_half(t.dtype()) { widen_tensor(t) } else { Ok(t.clone()) })
                    .collect::<Result<_>>()?,
            ),
            Attr::Type(t) => widened(t).map_or_else(|| a.value.clone(), Attr::Type),
            _ => Attr::Int(DType::F32.code().into()),
        };
        a.residue = crate::ir::Residue::default();
        changed = true;
    }
    Ok(changed)
}
