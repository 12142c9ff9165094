//! Makes one step of an operator and the elementwise ones behind it.
//!
//! A region starts with a value: what some step makes, or what an elementwise step reads. It grows by the steps that
//! read its values, as long as each reads nothing else but constants of one element, and records what it does when it
//! is traced ([`crate::ops::pointwise`]). It may end where no value inside is needed outside: by another step, a body, a
//! graph output or the tap. Values that somebody watches are therefore made as they are without fusion.
//!
//! The steps are kept: tensors that turn out not to be of 32-bit floats go through them one by one.

use super::compile::{Kind, Operand, Plan, Step};
use crate::error::{Result, bail};
use crate::ir::{GraphId, TensorRef};
use crate::ops::pointwise::{Pointwise, Trace, Traced};
use crate::ops::{Bodies, Call, Fusion, Item, Shared};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Tensor};

/// Steps of a region at most.
const MOST: usize = 16;
/// A use that is no step: by a graph output or the tap.
const OUTSIDE: usize = usize::MAX;

/// The elementwise steps that are done together with a step.
pub(super) struct Fused {
    /// What they do.
    pub program: Pointwise,
    /// The steps themselves, in order; the last one makes the result.
    pub steps: Vec<Step>,
}

/// Fuses what can be fused in a plan.
pub(super) fn fuse(plan: &mut Plan) {
    let uses = uses(plan);
    let mut steps: Vec<Option<Step>> = std::mem::take(&mut plan.steps).into_iter().map(Some).collect();
    for i in 0..steps.len() {
        let Some(first) = &steps[i] else { continue };
        let read = only_slot(first);
        let region = match read.and_then(|slot| Region::read_by(i, slot, &steps, &plan.constants)) {
            Some(region) => region.grow(&steps, &uses, &plan.constants).filter(|r| r.members.len() > 1),
            None => Region::made_by(i, first).and_then(|r| r.grow(&steps, &uses, &plan.constants)),
        };
        let mut made = region.map(|r| r.take(&mut steps));
        let step = match (steps[i].take(), made.take()) {
            // The step makes the value that the region starts with.
            (Some(step), fused) => Step { fused, ..step },
            // It belongs to the region.
            (None, Some(fused)) => alone(fused, read),
            (None, None) => continue,
        };
        plan.steps.push(step);
    }
}

/// For each slot, which steps use it.
fn uses(plan: &Plan) -> Vec<Vec<usize>> {
    let mut uses = vec![Vec::new(); plan.n_slots];
    let mut add = |o: &Operand, i: usize| {
        if let Operand::Slot { slot, .. } = o {
            uses[*slot as usize].push(i);
        }
    };
    for (i, step) in plan.steps.iter().enumerate() {
        step.operands.iter().for_each(|o| add(o, i));
        step.bodies.iter().flat_map(|(_, body)| &body.captures).for_each(|(_, o)| add(o, i));
        for out in step.outputs.iter().flatten().filter(|out| out.watched) {
            add(&Operand::Slot { slot: out.slot, last_use: false }, OUTSIDE);
        }
    }
    plan.outputs.iter().for_each(|o| add(o, OUTSIDE));
    uses
}

/// The slot that all operands with one have.
fn only_slot(step: &Step) -> Option<u32> {
    let mut slots =
        step.operands.iter().filter_map(|o| if let Operand::Slot { slot, .. } = o { Some(*slot) } else { None });
    let first = slots.next()?;
    slots.all(|s| s == first).then_some(first)
}

/// A region of elementwise steps that is no part of what another operator does.
fn alone(fused: Fused, read: Option<u32>) -> Step {
    let first = &fused.steps[0];
    Step {
        kind: Kind::Pointwise,
        op_type: first.op_type.clone(),
        label: first.label.clone(),
        number: first.number,
        opset: first.opset,
        attrs: crate::ir::Attrs::default(),
        operands: read.map(|slot| Operand::Slot { slot, last_use: false }).into_iter().collect(),
        constant: vec![false],
        outputs: Vec::new(),
        wanted: Vec::new(),
        release: Vec::new(),
        bodies: Vec::new(),
        shared: Shared::new(),
        fused: Some(fused),
    }
}

struct Region {
    /// Values by slot, the first is the one that the region starts with, and their element types.
    values: Vec<(u32, DType)>,
    /// The steps, by number.
    members: Vec<usize>,
    functions: Vec<(Traced, Vec<usize>)>,
    /// Whether the first value vanishes too.
    owns_first: bool,
}

impl Region {
    /// A region that starts with what step `i` reads, and has step `i`.
    fn read_by(i: usize, slot: u32, steps: &[Option<Step>], constants: &[TensorRef]) -> Option<Self> {
        let mut region =
            Region { values: vec![(slot, DType::F32)], members: Vec::new(), functions: Vec::new(), owns_first: false };
        region.add(i, steps[i].as_ref()?, constants).then_some(region)
    }

    /// A region that starts with what a step makes.
    fn made_by(_: usize, step: &Step) -> Option<Self> {
        let [Some(out)] = step.outputs.as_slice() else { return None };
        if !matches!(step.kind, Kind::Op(_)) {
            return None;
        }
        let values = vec![(out.slot, DType::F32)];
        Some(Region { values, members: Vec::new(), functions: Vec::new(), owns_first: true })
    }

    /// Adds steps while that is possible, and gives the largest region that may end where it does.
    fn grow(mut self, steps: &[Option<Step>], uses: &[Vec<usize>], constants: &[TensorRef]) -> Option<Self> {
        let mut closed = if self.is_closed(uses) { self.members.len() } else { 0 };
        while self.members.len() < MOST {
            let inner = &self.values[usize::from(!self.owns_first)..];
            let readers = inner.iter().flat_map(|(slot, _)| &uses[*slot as usize]);
            let next = readers.copied().filter(|&j| j != OUTSIDE && !self.members.contains(&j)).min();
            let Some((j, step)) = next.and_then(|j| Some((j, steps[j].as_ref()?))) else { break };
            if !self.add(j, step, constants) {
                break;
            }
            if self.is_closed(uses) {
                closed = self.members.len();
            }
        }
        self.members.truncate(closed);
        self.functions.truncate(closed);
        (closed > 0).then_some(self)
    }

    /// Whether nobody outside needs a value but the last one.
    fn is_closed(&self, uses: &[Vec<usize>]) -> bool {
        let inner = &self.values[usize::from(!self.owns_first)..self.values.len() - 1];
        let is_float = self.values.last().is_some_and(|v| v.1 == DType::F32);
        is_float && inner.iter().all(|(slot, _)| uses[*slot as usize].iter().all(|j| self.members.contains(j)))
    }

    /// Adds a step, if it is a function of elements of the region's values.
    fn add(&mut self, j: usize, step: &Step, constants: &[TensorRef]) -> bool {
        let Some((traced, values)) = trace(step, &self.values, constants) else { return false };
        let [Some(out)] = step.outputs.as_slice() else { return false };
        self.values.push((out.slot, traced.dtype));
        self.members.push(j);
        self.functions.push((traced, values));
        true
    }

    /// Takes the region's steps out of the list.
    fn take(self, steps: &mut [Option<Step>]) -> Fused {
        let steps = self.members.iter().filter_map(|&j| steps[j].take()).collect();
        Fused { program: Pointwise::new(self.functions), steps }
    }
}

/// What a step does to each element, and which of the values it reads.
fn trace(step: &Step, values: &[(u32, DType)], constants: &[TensorRef]) -> Option<(Traced, Vec<usize>)> {
    let Kind::Op(def) = &step.kind else { return None };
    if !def.is_pure || !step.bodies.is_empty() || step.outputs.len() != 1 {
        return None;
    }
    let mut inputs = Vec::with_capacity(step.operands.len());
    let mut read = vec![None; step.operands.len()];
    for (k, operand) in step.operands.iter().enumerate() {
        inputs.push(match operand {
            Operand::Empty => None,
            Operand::Constant(c) => {
                let t = constants[*c as usize].get().ok().filter(|t| t.len() == 1)?;
                Some(Item::Tensor(t.clone()))
            }
            Operand::Slot { slot, .. } => {
                let at = values.iter().position(|v| v.0 == *slot)?;
                read[k] = Some(at);
                // An empty tensor stands for it.
                Some(Item::Tensor(cast(&Tensor::vector(Vec::<f32>::new()), values[at].1, true).ok()?))
            }
        });
    }
    let trace = Trace::default();
    let mut call = Call {
        op_type: &step.op_type,
        attrs: &step.attrs,
        opset: step.opset,
        inputs,
        constant: &step.constant,
        wanted: &step.wanted,
        threads: 1,
        seed: 0,
        bodies: &NoBodies,
        shared: &Shared::new(),
        fusion: Fusion { epilogue: None.into(), trace: Some(&trace) },
    };
    (def.eval)(&mut call).ok()?;
    let traced = trace.take()?;
    let reads_all = (0..read.len()).all(|k| read[k].is_some() == traced.operands.contains(&k));
    let values = traced.operands.iter().map(|&k| read.get(k).copied().flatten()).collect::<Option<Vec<_>>>()?;
    reads_all.then_some((traced, values))
}

struct NoBodies;

impl Bodies for NoBodies {
    fn run(&self, _: GraphId, _: Vec<Item>) -> Result<Vec<Item>> {
        bail!("a step with bodies is not elementwise")
    }
}

/// Says for each operand whether it is the last use of its slot, and which slots each step has to release.
pub(super) fn lifetimes(plan: &mut Plan) {
    let mut seen = vec![false; plan.n_slots];
    for o in &plan.outputs {
        if let Operand::Slot { slot, .. } = o {
            seen[*slot as usize] = true;
        }
    }
    plan.steps.iter_mut().rev().for_each(|step| lifetimes_of_step(step, &mut seen));
}

fn lifetimes_of_step(step: &mut Step, seen: &mut [bool]) {
    // The steps of a region may run one by one. Else what the first of them reads is needed until the region is over.
    let needed_later = seen.to_vec();
    if let Some(fused) = &mut step.fused {
        fused.steps.iter_mut().rev().for_each(|s| lifetimes_of_step(s, seen));
    }
    let outputs = step.outputs.iter().flatten().map(|out| out.slot);
    step.release = outputs.filter(|&slot| !seen[slot as usize]).collect();
    for (_, body) in &step.bodies {
        for (_, o) in &body.captures {
            if let Operand::Slot { slot, .. } = o
                && !std::mem::replace(&mut seen[*slot as usize], true)
            {
                step.release.push(*slot);
            }
        }
    }
    let is_region = matches!(step.kind, Kind::Pointwise);
    // A value in several slots is moved out of its slot by the last of them only.
    for o in step.operands.iter_mut().rev() {
        if let Operand::Slot { slot, last_use } = o {
            let at = *slot as usize;
            *last_use = if is_region { !needed_later[at] } else { !seen[at] };
            seen[at] = true;
        }
    }
}
