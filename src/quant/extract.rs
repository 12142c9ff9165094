//! A part of a model as a model of its own: the tensors where it is cut become inputs and outputs.

use crate::error::{Result, WithHelp, bail, ensure};
use crate::ir::{Def, Model};
use crate::passes;

/// Cuts a model: `from` become inputs, `to` outputs; what is not needed for them goes. Empty lists leave the model's own
/// inputs or outputs. Inputs of the model that are still needed stay.
///
/// # Errors
/// A name is no tensor of the main graph, or an output does not depend on anything that is left.
pub fn extract(model: &mut Model, from: &[String], to: &[String]) -> Result<()> {
    let find = |model: &Model, name: &String| {
        let found = model.main().find_value(name);
        match found {
            Some(v) => Ok(v),
            None => {
                let e: Result<_> = (|| bail!("\"{name}\" is no tensor of the model's graph"))();
                e.help(|| "onnx-quant --dump-ir prints the names".into())
            }
        }
    };
    let starts = from.iter().map(|n| find(model, n)).collect::<Result<Vec<_>>>()?;
    let ends = to.iter().map(|n| find(model, n)).collect::<Result<Vec<_>>>()?;
    let g = model.main_mut();
    let mut inputs = g.inputs().to_vec();
    for &v in &starts {
        ensure!(
            !matches!(g.value(v).def, Def::Initializer(_)),
            "\"{}\" is stored in the model and cannot be an input",
            g.value(v).name
        );
        if let Some((n, slot)) = g.producer(v) {
            g.set_output(n, slot, None);
            g.set_def(v, Def::Input);
        }
        if !inputs.contains(&v) {
            inputs.push(v);
        }
    }
    if !ends.is_empty() {
        g.set_outputs(ends);
    }
    g.set_inputs(inputs.clone());
    let mut sink = crate::diag::Sink::default();
    passes::manager::run(model, &passes::CLEANUP, &mut passes::Ctx::new(&mut sink), &mut |_, _| {})?;
    let g = model.main_mut();
    // Inputs that nothing reads any more go, in the order of the rest; those asked for come first, in their order.
    let needed = |v| g.n_uses(v) > 0;
    let unused = starts.iter().find(|&&v| !needed(v));
    ensure!(unused.is_none(), "no output depends on \"{}\"", unused.map_or("", |&v| &g.value(v).name));
    let others = inputs.iter().copied().filter(|v| !starts.contains(v) && needed(*v));
    let inputs: Vec<_> = starts.iter().copied().chain(others).collect();
    g.set_inputs(inputs);
    Ok(())
}
