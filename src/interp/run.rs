//! Executes a compiled program.

use std::cell::RefCell;

use super::compile::{Kind, Operand, Plan, Program, Step};
use super::{NoTap, RunOptions, Tap};
use crate::error::{At, Location, Result, anyhow, bail, ensure};
use crate::ir::{GraphId, ValueType};
use crate::ops::pointwise::Pointwise;
use crate::ops::{Bodies, Call, Fusion, Item};
use crate::tensor::{DType, Tensor};

impl Program {
    /// Runs the program on inputs given by name, and gives the outputs in order; `None` for an output that depends on
    /// an operator that was skipped as unknown.
    ///
    /// # Errors
    /// An input is missing or of the wrong element type, or an operator fails; the error names the node.
    pub fn run_named(
        &self,
        inputs: &[(String, Tensor)],
        options: RunOptions,
        tap: &mut dyn Tap,
    ) -> Result<Vec<Option<Item>>> {
        let mut items = Vec::with_capacity(self.inputs.len());
        for input in self.fed() {
            let given = inputs.iter().find(|(name, _)| *name == input.name).map(|(_, t)| t.clone());
            items.push(match (given, &input.default) {
                (Some(t), _) => {
                    let want = input.ty.as_ref().and_then(crate::ir::ValueType::dtype);
                    ensure!(
                        want.is_none_or(|w| w == t.dtype()),
                        "input \"{}\" is {}, expected {}",
                        input.name,
                        t.dtype(),
                        want.map_or("", crate::tensor::DType::name)
                    );
                    Item::Tensor(t)
                }
                (None, Some(t)) => Item::Tensor(t.get()?.clone()),
                (None, None) => bail!("input \"{}\" is missing", input.name),
            });
        }
        self.run(items, options, tap)
    }

    /// Runs the program on inputs in order (see [`Program::inputs`]), and gives the outputs in order; `None` for an
    /// output that depends on an operator that was skipped as unknown.
    ///
    /// # Errors
    /// The number of inputs is wrong, or an operator fails; the error names the node.
    pub fn run(&self, inputs: Vec<Item>, options: RunOptions, tap: &mut dyn Tap) -> Result<Vec<Option<Item>>> {
        let inputs = inputs.into_iter().map(Some).collect();
        run_plan(&self.main, inputs, &[], options, &RefCell::new(tap))
    }

    /// Runs the program without a tap on tensors in order and gives the outputs, all of which must be tensors.
    ///
    /// # Errors
    /// As [`Program::run`], or an output is not a tensor.
    pub fn run_tensors(&self, inputs: &[Tensor], options: RunOptions) -> Result<Vec<Tensor>> {
        let items = inputs.iter().cloned().map(Item::Tensor).collect();
        let outputs = self.run(items, options, &mut NoTap)?;
        outputs
            .into_iter()
            .zip(&self.outputs)
            .map(|(o, name)| {
                o.ok_or_else(|| anyhow!("is not computed: an operator before it is not supported"))
                    .and_then(Item::into_tensor)
                    .at(|| Location::value(name))
            })
            .collect()
    }

    fn fed(&self) -> impl Iterator<Item = &super::Input> {
        self.inputs.iter()
    }
}

type Frame = Vec<Option<Item>>;
type SharedTap<'t, 'a> = &'t RefCell<&'a mut dyn Tap>;

/// Runs a graph. `captured` are the values of the outer graph that it uses, in the order of the plan's captures.
fn run_plan(
    plan: &Plan,
    inputs: Vec<Option<Item>>,
    captured: &[Option<Item>],
    options: RunOptions,
    tap: SharedTap<'_, '_>,
) -> Result<Vec<Option<Item>>> {
    let mut frame: Frame = vec![None; plan.n_slots];
    ensure!(
        inputs.len() <= plan.inputs.len(),
        "{} inputs are given, expected at most {}",
        inputs.len(),
        plan.inputs.len()
    );
    for ((slot, value, watched), item) in plan.inputs.iter().zip(inputs) {
        if let (true, Some(item)) = (*watched, &item) {
            tap.borrow_mut().see(plan.graph, *value, item)?;
        }
        frame[*slot as usize] = item;
    }
    for ((slot, _), item) in plan.captures.iter().zip(captured) {
        frame[*slot as usize] = item.clone();
    }
    for step in &plan.steps {
        let is_over = run_step(plan, step, &mut frame, options, tap).at(|| step.location())?;
        for step in step.fused.iter().filter(|_| !is_over).flat_map(|f| &f.steps) {
            run_step(plan, step, &mut frame, options, tap).at(|| step.location())?;
        }
        tap.borrow_mut().done(&step.label, &step.op_type);
    }
    plan.outputs
        .iter()
        .map(|o| match o {
            Operand::Constant(c) => Ok(Some(Item::Tensor(plan.constants[*c as usize].get()?.clone()))),
            Operand::Slot { slot, .. } => Ok(frame[*slot as usize].clone()),
            Operand::Empty => Ok(None),
        })
        .collect()
}

/// Runs a step, and says whether the steps that are fused with it are done as well.
fn run_step(plan: &Plan, step: &Step, frame: &mut Frame, options: RunOptions, tap: SharedTap<'_, '_>) -> Result<bool> {
    let mut inputs = Vec::with_capacity(step.operands.len());
    let mut known = !matches!(step.kind, Kind::Unknown);
    for o in &step.operands {
        inputs.push(match o {
            Operand::Empty => None,
            Operand::Constant(c) => Some(Item::Tensor(plan.constants[*c as usize].get()?.clone())),
            Operand::Slot { slot, last_use } => {
                let s = &mut frame[*slot as usize];
                let item = if *last_use { s.take() } else { s.clone() };
                known &= item.is_some();
                item
            }
        });
    }
    // A value that depends on an unknown operator stays undefined, and so does everything that is made of it.
    if !known {
        return Ok(true);
    }
    let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(step.number as u64);
    let mut epilogue = step.fused.as_ref().map(|f| &f.program);
    let outputs: Vec<Option<Item>> = match &step.kind {
        Kind::Unknown => return Ok(true),
        Kind::Pointwise => {
            if let (Some(Operand::Slot { slot, .. }), false) = (step.operands.first(), fits(epilogue, &inputs)) {
                frame[*slot as usize] = inputs.pop().flatten();
                return Ok(false);
            }
            inputs
        }
        Kind::Function(body) => run_plan(body, inputs, &[], options, tap)?,
        Kind::Op(def) => {
            let bodies = Runner { plan, step, frame, options, tap };
            let mut call = Call {
                op_type: &step.op_type,
                attrs: &step.attrs,
                opset: step.opset,
                inputs,
                constant: &step.constant,
                wanted: &step.wanted,
                threads: options.threads,
                seed,
                bodies: &bodies,
                shared: &step.shared,
                fusion: Fusion { epilogue: epilogue.into(), trace: None },
            };
            let outputs = (def.eval)(&mut call)?;
            let is_done = epilogue.is_some() && call.fusion.epilogue.get().is_none();
            if is_done {
                epilogue = None;
            }
            outputs.into_iter().map(Some).collect()
        }
    };
    // The fused steps, unless the operator has done what they do.
    let (outputs, last) = match &step.fused {
        Some(f) if fits(epilogue, &outputs) => {
            let done = outputs.into_iter().map(|o| after(o, epilogue, options.threads)).collect::<Result<Vec<_>>>()?;
            (done, f.steps.last())
        }
        _ => (outputs, None),
    };
    let is_over = last.is_some() || step.fused.is_none();
    let step = last.unwrap_or(step);
    let mut outputs = outputs.into_iter();
    for slot in &step.outputs {
        let item = outputs.next().flatten();
        let Some(out) = slot else { continue };
        if let (true, Some(item)) = (out.watched, &item) {
            tap.borrow_mut().see(plan.graph, out.value, item)?;
        }
        frame[out.slot as usize] = item;
    }
    for &slot in &step.release {
        frame[slot as usize] = None;
    }
    Ok(is_over)
}

/// Whether a program can run over the only value. One that has run already fits.
fn fits(program: Option<&Pointwise>, values: &[Option<Item>]) -> bool {
    let Some(program) = program else { return true };
    match values {
        [Some(Item::Tensor(t))] => t.dtype() == DType::F32 && program.fits(t.rank()),
        _ => false,
    }
}

/// Runs a program over a value.
fn after(item: Option<Item>, program: Option<&Pointwise>, threads: usize) -> Result<Option<Item>> {
    match (item, program) {
        (Some(Item::Tensor(t)), Some(program)) => Ok(Some(program.map(t, threads)?.into())),
        (item, _) => Ok(item),
    }
}

/// Runs the bodies of one step.
struct Runner<'a, 't, 'u> {
    plan: &'a Plan,
    step: &'a Step,
    frame: &'a Frame,
    options: RunOptions,
    tap: SharedTap<'t, 'u>,
}

impl Bodies for Runner<'_, '_, '_> {
    fn run(&self, body: GraphId, inputs: Vec<Item>) -> Result<Vec<Item>> {
        let Some((_, plan)) = self.step.bodies.iter().find(|(id, _)| *id == body) else {
            bail!("the node has no such body")
        };
        let captured = plan
            .captures
            .iter()
            .map(|(_, o)| match o {
                Operand::Constant(c) => Ok(Some(Item::Tensor(self.plan.constants[*c as usize].get()?.clone()))),
                Operand::Slot { slot, .. } => Ok(self.frame[*slot as usize].clone()),
                Operand::Empty => Ok(None),
            })
            .collect::<Result<Vec<_>>>()?;
        let inputs = inputs.into_iter().map(Some).collect();
        run_plan(plan, inputs, &captured, self.options, self.tap)?
            .into_iter()
            .map(|o| o.ok_or_else(|| anyhow!("an output of the body depends on an operator that is not supported")))
            .collect()
    }

    fn output_types(&self, body: GraphId) -> Vec<Option<ValueType>> {
        let plan = self.step.bodies.iter().find(|(id, _)| *id == body);
        plan.map(|(_, p)| p.output_types.clone()).unwrap_or_default()
    }
}
