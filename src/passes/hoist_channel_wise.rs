//! Moves what is done to each channel alone from behind a `Squeeze` or `Transpose` to the convolution in front of it:
//! `Conv`, `Squeeze`, `Add` of a bias, `Relu` (a convolution of one dimension, as TensorFlow's exporter writes it)
//! becomes `Conv`, `Add`, `Relu`, `Squeeze`, of which `fuse_conv_batch_norm` and runtimes make one convolution.
//!
//! - `Add`, `Sub`, `Mul` and `Div` with a constant that has an element for each channel, or one for all.
//! - `Relu`, and `Clip` between constants.

use super::rewrite::wherever;
use super::{Ctx, Info, Pass, pattern};
use crate::error::Result;
use crate::ir::builder::Beside;
use crate::ir::{Graph, GraphId, Model, Names, NodeId, ValueId, ValueType};
use crate::tensor::Tensor;
use pattern::{Match, Skip, because, require};

/// The pass.
pub const PASS: &dyn Pass = &HoistChannelWise;

struct HoistChannelWise;

impl Pass for HoistChannelWise {
    fn info(&self) -> Info {
        Info {
            name: "hoist_channel_wise",
            summary: "moves what is done to channels in front of Squeeze and Transpose, to the convolution",
        }
    }

    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool> {
        wherever(model, ctx, self.info().name, behind_movement, |model, names, id, n, found| {
            hoist(model, names, id, n, found);
            Ok(())
        })
    }
}

struct Found {
    /// The `Squeeze` or `Transpose`, what it reads and what it makes.
    movement: NodeId,
    from: ValueId,
    to: ValueId,
    /// The input slot that reads it.
    slot: usize,
    /// The other operand, for the convolution's output, where that needs another shape.
    constant: Option<(usize, Tensor)>,
}

/// A node that could stand before the movement in front of it.
fn behind_movement(model: &Model, id: GraphId, n: NodeId) -> Match<Found> {
    let g = model.graph(id);
    let op = |names: &[&str]| names.iter().any(|name| g.node(n).is(name));
    let is_binary = op(&["Add", "Sub", "Mul", "Div"]);
    require(is_binary || op(&["Relu", "Clip"]))?;
    let slot = usize::from(is_binary && constant(model, id, n, 0).is_some());
    let to = pattern::input(g, n, slot)?;
    let movement = pattern::made_by(g, to, "Squeeze").or_else(|_| pattern::made_by(g, to, "Transpose"))?;
    let from = pattern::input(g, movement, 0)?;
    pattern::made_by(g, from, "Conv").or_else(|_| pattern::made_by(g, from, "ConvTranspose"))?;
    let constant = if is_binary {
        let other = 1 - slot;
        let t = constant(model, id, n, other).ok_or(Skip::No)?;
        let places = places(model, id, movement)?;
        let channels = g.value(from).ty.as_ref().and_then(ValueType::shape).and_then(|s| s.get(1)?.known());
        let shape = before(&t, &places, channels)?;
        let t = t.reshaped(&shape).map_err(|_| Skip::No)?;
        Some((other, t))
    } else {
        let bounds = g.node_inputs(n).into_iter().skip(1).flatten();
        for v in bounds {
            require(pattern::constant(model, id, v).is_some())?;
        }
        None
    };
    pattern::only_user(g, to)?;
    pattern::only_user(g, from)?;
    Ok(Found { movement, from, to, slot, constant })
}

fn constant(model: &Model, id: GraphId, n: NodeId, slot: usize) -> Option<Tensor> {
    pattern::constant_input(model, id, n, slot).ok()
}

fn rank(g: &Graph, v: ValueId) -> Match<usize> {
    g.value(v).ty.as_ref().and_then(ValueType::shape).map(<[_]>::len).ok_or(Skip::No)
}

/// For each dimension behind a movement, which one it was.
fn places(model: &Model, id: GraphId, movement: NodeId) -> Match<(Vec<usize>, usize)> {
    let g = model.graph(id);
    let rank = rank(g, pattern::input(g, movement, 0)?)?;
    let at = |i: i64| usize::try_from(if i < 0 { i + rank as i64 } else { i }).ok().filter(|&i| i < rank);
    if g.node(movement).is("Transpose") {
        let perm = g.node(movement).attrs.ints("perm").ok_or(Skip::No)?;
        let places: Option<Vec<usize>> = perm.iter().map(|&i| at(i)).collect();
        return Ok((places.ok_or(Skip::No)?, rank));
    }
    let axes = pattern::int_input(model, id, movement, 1)?;
    let gone: Option<Vec<usize>> = axes.iter().map(|&i| at(i)).collect();
    let gone = gone.ok_or(Skip::No)?;
    Ok(((0..rank).filter(|i| !gone.contains(i)).collect(), rank))
}

/// The shape of an operand in front of the movement: one element, or one for each channel. One that would make more
/// channels stays.
fn before(t: &Tensor, (places, rank): &(Vec<usize>, usize), channels: Option<usize>) -> Match<Vec<usize>> {
    let mut shape = vec![1; *rank];
    require(t.rank() <= places.len())?;
    for (&size, &place) in t.shape().iter().zip(&places[places.len() - t.rank()..]) {
        if size != 1 {
            if place != 1 {
                return because("its constant differs along another axis than the channels");
            }
            if Some(size) != channels {
                return because("its constant has another number of channels");
            }
            shape[place] = size;
        }
    }
    Ok(shape)
}

/// The two nodes change places; what lies between them has the type of what lay in front.
fn hoist(model: &mut Model, names: &mut Names, id: GraphId, n: NodeId, f: Found) {
    let made = f.constant.map(|(slot, t)| {
        let mut beside = Beside::before(model, names, id, n);
        if let Some(v) = beside.graph().input(n, slot) {
            beside = beside.named_after(v);
        }
        (slot, beside.constant("channels", t))
    });
    let between = names.fresh(&model.graph(id).value(f.to).name);
    let g = model.graph_mut(id);
    if let Some((slot, v)) = made {
        g.set_input(n, slot, Some(v));
    }
    let ty = g.value(f.from).ty.clone();
    let output = g.output(n, 0);
    g.set_input(n, f.slot, Some(f.from));
    if let Some(y) = output {
        g.take_over(f.movement, 0, y);
    }
    g.set_type(f.to, ty);
    g.rename(f.to, between);
    g.set_output(n, 0, Some(f.to));
    g.set_input(f.movement, 0, Some(f.to));
}
