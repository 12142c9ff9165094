//! From a graph to steps over numbered slots.

use std::collections::HashMap;

use super::Input;
use super::fuse::{Fused, fuse, lifetimes};
use crate::error::{At, Location, Result, bail, ensure};
use crate::ir::{Attrs, Bindings, Def, Domain, GraphId, Model, NodeId, TensorRef, ValueId, ValueType};
use crate::ops::{OpDef, Shared, evaluate, lookup};
use crate::tensor::Tensor;

/// How to compile.
pub struct CompileOptions<'a> {
    /// Which values the tap wants to see.
    pub watch: &'a dyn Fn(GraphId, ValueId) -> bool,
    /// Operators that we do not know: `false` makes them an error, `true` leaves out whatever depends on them.
    pub skip_unknown: bool,
}

impl Default for CompileOptions<'_> {
    fn default() -> Self {
        CompileOptions { watch: &|_, _| false, skip_unknown: false }
    }
}

/// A compiled model.
pub struct Program {
    pub(super) main: Plan,
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<String>,
}

/// Where a step finds an operand.
pub(super) enum Operand {
    Empty,
    Slot { slot: u32, last_use: bool },
    Constant(u32),
}

/// What a step does.
pub(super) enum Kind {
    Op(&'static OpDef),
    /// Calls a function of the model.
    Function(Box<Plan>),
    /// Runs the fused program over its only operand.
    Pointwise,
    /// Leaves its outputs undefined.
    Unknown,
}

pub(super) struct Output {
    pub slot: u32,
    pub value: ValueId,
    pub watched: bool,
}

pub(super) struct Step {
    pub kind: Kind,
    pub op_type: String,
    pub label: String,
    /// Number in the plan as it was before steps were fused; random operators depend on it.
    pub number: usize,
    pub opset: i64,
    pub attrs: Attrs,
    pub operands: Vec<Operand>,
    pub constant: Vec<bool>,
    pub outputs: Vec<Option<Output>>,
    pub wanted: Vec<bool>,
    /// Slots that nobody needs after this step and that are not operands (captured by its bodies, or made for nobody).
    /// They and the operands' last uses are filled in when all steps are there.
    pub release: Vec<u32>,
    pub bodies: Vec<(GraphId, Plan)>,
    pub shared: Shared,
    /// Elementwise steps behind this one that are done together with it.
    pub fused: Option<Fused>,
}

/// A compiled graph.
pub(super) struct Plan {
    pub graph: GraphId,
    pub n_slots: usize,
    /// Slot and value of each graph input, and whether the tap wants it.
    pub inputs: Vec<(u32, ValueId, bool)>,
    pub constants: Vec<TensorRef>,
    /// For each captured value: slot here, operand in the owner's plan.
    pub captures: Vec<(u32, Operand)>,
    pub steps: Vec<Step>,
    pub outputs: Vec<Operand>,
    /// What is known of the outputs' types.
    pub output_types: Vec<Option<ValueType>>,
}

impl Step {
    /// Where it is, for messages.
    pub(super) fn location(&self) -> Location {
        Location::node(&self.label, &self.op_type)
    }
}

impl Program {
    /// Compiles a model.
    ///
    /// # Errors
    /// An operator is not known (unless those are skipped), a node has a wrong number of inputs, a graph has a cycle
    /// or uses a value that nothing defines.
    pub fn compile(model: &Model, options: &CompileOptions<'_>) -> Result<Program> {
        let g = model.main();
        let mut compiler = Compiler { model, options, depth: 0 };
        let main = compiler.plan(GraphId::MAIN, &model.opsets, None, &Bindings::new())?;
        let inputs = g
            .inputs()
            .iter()
            .map(|&v| {
                let value = g.value(v);
                let default = if let Def::Overridable(t) = &value.def { Some(t.clone()) } else { None };
                Input { name: value.name.clone(), ty: value.ty.clone(), default }
            })
            .collect();
        let outputs = g.outputs().iter().map(|&v| g.value(v).name.clone()).collect();
        Ok(Program { main, inputs, outputs })
    }

    /// Graph inputs in order, without those that are constants.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Names of the graph outputs in order.
    #[must_use]
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }
}

struct Compiler<'a> {
    model: &'a Model,
    options: &'a CompileOptions<'a>,
    depth: usize,
}

/// Where a value is, for steps and, with the constant that it may be, for the captures of bodies.
type Find<'a> = &'a dyn Fn(ValueId) -> Result<(Operand, Option<TensorRef>)>;

impl Compiler<'_> {
    fn plan(
        &mut self,
        id: GraphId,
        opsets: &[(Domain, i64)],
        outer: Option<Find<'_>>,
        bindings: &Bindings,
    ) -> Result<Plan> {
        ensure!(self.depth < 64, "graphs are nested more than 64 deep, or a function calls itself");
        self.depth += 1;
        let model = self.model;
        let g = model.graph(id);
        let order = g.order()?;
        let bound = g.index_bound();
        let mut slots = vec![u32::MAX; bound];
        let mut n_slots = 0u32;
        let mut slot_of = |v: ValueId, slots: &mut Vec<u32>| {
            let s = &mut slots[v.index()];
            if *s == u32::MAX {
                *s = n_slots;
                n_slots += 1;
            }
            *s
        };
        let mut constants = Vec::new();
        let mut constant_of = HashMap::new();
        let mut captures = Vec::new();
        let mut inputs = Vec::new();
        for &v in g.inputs() {
            // Below IR version 4 constants are listed as inputs too; nothing is fed for them.
            if matches!(g.value(v).def, Def::Initializer(_)) {
                continue;
            }
            inputs.push((slot_of(v, &mut slots), v, (self.options.watch)(id, v)));
        }
        for v in g.values() {
            match &g.value(v).def {
                Def::Initializer(t) => {
                    constant_of.insert(v, constants.len() as u32);
                    constants.push(t.clone());
                }
                Def::Overridable(t) if !g.inputs().contains(&v) => {
                    constant_of.insert(v, constants.len() as u32);
                    constants.push(t.clone());
                }
                Def::Capture(_, source) => {
                    // A constant of the owner is one of the body too: what depends on it alone is computed once, and
                    // weights are packed once.
                    match outer.map(|find| find(*source)).transpose()? {
                        Some((_, Some(t))) if !(self.options.watch)(id, v) => {
                            constant_of.insert(v, constants.len() as u32);
                            constants.push(t);
                        }
                        Some((operand, _)) => captures.push((slot_of(v, &mut slots), operand)),
                        None => {}
                    }
                }
                _ => {}
            }
        }
        let mut steps = Vec::with_capacity(order.len());
        for &n in &order {
            if let Some(folded) = self.fold(id, n, opsets, bindings, &constant_of, &constants) {
                for (v, t) in folded {
                    constant_of.insert(v, constants.len() as u32);
                    constants.push(t.into());
                }
                continue;
            }
            for v in g.node_outputs(n).into_iter().flatten() {
                slot_of(v, &mut slots);
            }
            let find = |v: ValueId| {
                if let Some(&c) = constant_of.get(&v) {
                    return Ok((Operand::Constant(c), Some(constants[c as usize].clone())));
                }
                match slots[v.index()] {
                    u32::MAX => bail!("tensor \"{}\" is used but nothing defines it", g.value(v).name),
                    slot => Ok((Operand::Slot { slot, last_use: false }, None)),
                }
            };
            let step = self.step(id, n, steps.len(), (opsets, bindings), &find).at(|| g.node(n).location())?;
            steps.push(step);
        }
        let outputs = g
            .outputs()
            .iter()
            .map(|&v| match constant_of.get(&v) {
                Some(&c) => Ok(Operand::Constant(c)),
                None if slots[v.index()] == u32::MAX => {
                    bail!("output \"{}\" is defined by nothing", g.value(v).name)
                }
                None => Ok(Operand::Slot { slot: slots[v.index()], last_use: false }),
            })
            .collect::<Result<_>>()?;
        let output_types = g.outputs().iter().map(|&v| g.value(v).ty.clone()).collect();
        self.depth -= 1;
        let n_slots = n_slots as usize;
        let mut plan = Plan { graph: id, n_slots, inputs, constants, captures, steps, outputs, output_types };
        fuse(&mut plan);
        lifetimes(&mut plan);
        Ok(plan)
    }

    /// The outputs of a pure node whose inputs are all constant, or that has none: computed once here instead of in every run, above all
    /// the weights of a quantized model. `None` when it must stay a step.
    fn fold(
        &self,
        id: GraphId,
        n: NodeId,
        opsets: &[(Domain, i64)],
        bindings: &Bindings,
        constant_of: &HashMap<ValueId, u32>,
        constants: &[TensorRef],
    ) -> Option<Vec<(ValueId, Tensor)>> {
        let g = self.model.graph(id);
        let node = g.node(n);
        let ins = g.node_inputs(n);
        let outs = g.node_outputs(n);
        let is_open = outs.iter().flatten().any(|&v| (self.options.watch)(id, v));
        if is_open || node.attrs.graphs().next().is_some() {
            return None;
        }
        if self.model.function(&node.domain, &node.op_type, &node.overload).is_some() {
            return None;
        }
        let opset = opsets.iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let def = lookup(&node.domain, &node.op_type, opset).filter(|d| d.is_pure)?;
        check_arity(def, &ins, outs.len()).ok()?;
        let mut inputs = Vec::with_capacity(ins.len());
        for v in &ins {
            inputs.push(match v {
                None => None,
                Some(v) => Some(constants[*constant_of.get(v)? as usize].get().ok()?.clone()),
            });
        }
        // What fails here fails in the run, where the error names the node.
        let tensors = evaluate(def, &node.attrs.bound(bindings), opset, inputs, outs.len()).ok()?;
        let mut folded = Vec::with_capacity(outs.len());
        for (slot, v) in outs.iter().enumerate() {
            if let Some(v) = v {
                folded.push((*v, tensors.get(slot)?.clone()));
            }
        }
        Some(folded)
    }

    fn step(
        &mut self,
        id: GraphId,
        n: NodeId,
        number: usize,
        (opsets, bindings): (&[(Domain, i64)], &Bindings),
        find: Find<'_>,
    ) -> Result<Step> {
        let g = self.model.graph(id);
        let node = g.node(n);
        let attrs = node.attrs.bound(bindings);
        let opset = opsets.iter().find(|(d, _)| *d == node.domain).map_or(1, |(_, v)| *v);
        let ins = g.node_inputs(n);
        let outs = g.node_outputs(n);
        let operand = |v: ValueId| find(v).map(|found| found.0);
        let operands = ins.iter().map(|v| v.map_or(Ok(Operand::Empty), operand)).collect::<Result<Vec<_>>>()?;
        let mut outputs = Vec::with_capacity(outs.len());
        for v in &outs {
            outputs.push(match v {
                None => None,
                Some(v) => {
                    let Operand::Slot { slot, .. } = operand(*v)? else {
                        bail!("output \"{}\" is a constant as well", g.value(*v).name)
                    };
                    let watched = (self.options.watch)(id, *v);
                    Some(Output { slot, value: *v, watched })
                }
            });
        }
        let wanted: Vec<bool> =
            outs.iter().map(|v| v.is_some_and(|v| g.n_uses(v) > 0 || (self.options.watch)(id, v))).collect();
        let kind = if let Some(f) = self.model.function(&node.domain, &node.op_type, &node.overload) {
            let body = self.model.graph(f.body);
            ensure!(
                ins.len() <= body.inputs().len() && outs.len() <= body.outputs().len(),
                "has more inputs or outputs than its function"
            );
            Kind::Function(Box::new(self.plan(f.body, &f.opsets, None, &f.bind(&attrs))?))
        } else if let Some(def) = lookup(&node.domain, &node.op_type, opset) {
            check_arity(def, &ins, outs.len())?;
            Kind::Op(def)
        } else if self.options.skip_unknown {
            Kind::Unknown
        } else {
            bail!("operator {} of domain {} at opset {opset} is not supported", node.op_type, node.domain)
        };
        let mut bodies = Vec::new();
        for body in attrs.graphs() {
            bodies.push((body, self.plan(body, opsets, Some(find), bindings)?));
        }
        Ok(Step {
            kind,
            op_type: node.op_type.clone(),
            label: node.label(),
            number,
            opset,
            attrs,
            constant: operands.iter().map(|o| matches!(o, Operand::Constant(_))).collect(),
            operands,
            outputs,
            wanted,
            release: Vec::new(),
            bodies,
            shared: Shared::new(),
            fused: None,
        })
    }
}

fn check_arity(def: &OpDef, ins: &[Option<ValueId>], n_outputs: usize) -> Result<()> {
    let given = ins.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
    ensure!(given <= def.inputs.max, "has {given} inputs, expected at most {}", def.inputs.max);
    for slot in 0..def.inputs.min {
        ensure!(ins.get(slot).is_some_and(Option::is_some), "input {slot} is missing");
    }
    ensure!(n_outputs <= def.outputs.max, "has {n_outputs} outputs, expected at most {}", def.outputs.max);
    Ok(())
}
