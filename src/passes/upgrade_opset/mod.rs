//! Converts a model to a newer opset, operator by operator.
//!
//! The whole model is converted: the main graph, bodies of control-flow nodes, function bodies. A [`Conversion`] takes
//! one operator from the version before `to` to `to`; versions that changed only the permitted types or added an
//! attribute whose default is the old behaviour need none. What cannot be expressed is an error that names the node.
//!
//! The IR version rises with the opset as in ONNX's table of releases and is never lowered. Constants that only IR
//! versions before 4 had to list among the inputs are unlisted: from version 4 on the list would make them overridable.

mod attributes;
mod broadcast;
mod edit;
mod misc;
mod resize;
mod softmax;

use super::{Ctx, Info, Pass};
use crate::error::{Location, Result, ensure};
use crate::ir::{Domain, GraphId, Model, Names};
use edit::Edit;

/// The pass.
pub const PASS: &dyn Pass = &UpgradeOpset;

/// How an operator's nodes change from one opset version to the next.
struct Conversion {
    op: &'static str,
    /// The version that changed the operator.
    to: i64,
    convert: fn(&mut Edit<'_>) -> Result<()>,
}

const CONVERSIONS: &[&[Conversion]] =
    &[attributes::CONVERSIONS, broadcast::CONVERSIONS, misc::CONVERSIONS, resize::CONVERSIONS, softmax::CONVERSIONS];

/// The newest version that the conversions know of: none of the operators with attributes or inputs that changed
/// meaning changed after it.
const NEWEST: i64 = 25;

struct UpgradeOpset;

impl Pass for UpgradeOpset {
    fn info(&self) -> Info {
        Info { name: "upgrade_opset", summary: "converts the model to the opset version that quantization needs" }
    }

    fn run(&self, model: &mut Model, ctx: &mut Ctx<'_>) -> Result<bool> {
        let floor = ctx.opset_floor;
        ensure!(floor <= NEWEST, "opset {floor} is not supported, expected at most {NEWEST}");
        let mut names = Names::of(model);
        let mut changed = false;
        let from = model.onnx_opset();
        let mut roots = vec![(GraphId::MAIN, from)];
        roots.extend(model.functions.iter().map(|f| (f.body, version(&f.opsets))));
        for (root, from) in roots.into_iter().filter(|&(_, from)| from < floor) {
            // A file from before opsets were imported means version 1.
            for to in from.max(1) + 1..=floor {
                convert(model, &mut names, root, to)?;
            }
            changed = true;
        }
        if from < floor {
            ctx.sink.note("upgrade_opset", Location::default(), format!("opset {from} became {floor}"));
            set_version(&mut model.opsets, floor);
        }
        for f in &mut model.functions {
            if version(&f.opsets) < floor {
                set_version(&mut f.opsets, floor);
            }
        }
        Ok(changed | raise_ir_version(model))
    }
}

fn convert(model: &mut Model, names: &mut Names, root: GraphId, to: i64) -> Result<()> {
    let table: Vec<_> = CONVERSIONS.iter().copied().flatten().filter(|c| c.to == to).collect();
    for graph in model.graph_ids().filter(|&g| model.root_of(g) == root).collect::<Vec<_>>() {
        for node in model.graph(graph).order()? {
            let op = model.graph(graph).node(node).op_type.as_str();
            let Some(c) = table.iter().find(|c| c.op == op && model.graph(graph).node(node).is(op)) else { continue };
            let location = model.graph(graph).node(node).location();
            (c.convert)(&mut Edit { model, names, graph, node })
                .map_err(|e| e.context(format!("{location}: cannot be converted to opset {to}")))?;
        }
    }
    Ok(())
}

fn version(opsets: &[(Domain, i64)]) -> i64 {
    opsets.iter().find(|(d, _)| d.is_onnx()).map_or(0, |(_, v)| *v)
}

fn set_version(opsets: &mut Vec<(Domain, i64)>, version: i64) {
    if !opsets.iter().any(|(d, _)| d.is_onnx()) {
        opsets.insert(0, (Domain::onnx(), version));
    }
    for (_, v) in opsets.iter_mut().filter(|(d, _)| d.is_onnx()) {
        *v = version;
    }
}

/// The IR version of the ONNX release that brought an opset version (`onnx.helper.VERSION_TABLE`).
#[must_use]
pub fn ir_version_for(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        28.. => 14,
    }
}

fn raise_ir_version(model: &mut Model) -> bool {
    let needed = ir_version_for(model.onnx_opset());
    if model.ir_version >= needed {
        return false;
    }
    if model.ir_version < 4 && needed >= 4 {
        let g = model.main_mut();
        let inputs = g.inputs().iter().copied().filter(|&v| g.constant(v).is_none()).collect();
        g.set_inputs(inputs);
    }
    model.ir_version = needed;
    true
}
