//! Parts of a graph between two places: what lies on a path from one to the other.

use std::collections::BTreeSet;

use crate::error::{Result, ensure};
use crate::ir::{Graph, Model, NodeId};

/// A part of the main graph: the nodes on the paths from one node or tensor to another, both included. An end that is
/// not given is the graph's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Node or tensor that it starts at.
    pub from: Option<String>,
    /// Node or tensor that it ends at.
    pub to: Option<String>,
}

impl Region {
    /// Nodes of the main graph in the region.
    ///
    /// # Errors
    /// An end is no node or tensor of the graph, or no path joins them; the error says which.
    pub fn nodes(&self, model: &Model) -> Result<BTreeSet<NodeId>> {
        let g = model.main();
        let mut nodes: BTreeSet<NodeId> = g.nodes().collect();
        if let Some(from) = &self.from {
            let after = reach(g, ends(g, from, false)?, true);
            nodes.retain(|n| after.contains(n));
        }
        if let Some(to) = &self.to {
            let before = reach(g, ends(g, to, true)?, false);
            nodes.retain(|n| before.contains(n));
        }
        let name = |end: &Option<String>, own: &str| end.clone().unwrap_or_else(|| own.to_owned());
        ensure!(
            !nodes.is_empty(),
            "there is no path from \"{}\" to \"{}\"",
            name(&self.from, "the inputs"),
            name(&self.to, "the outputs")
        );
        Ok(nodes)
    }
}

/// The nodes that a name means: a node itself; of a tensor its readers, or its maker.
fn ends(g: &Graph, name: &str, maker: bool) -> Result<Vec<NodeId>> {
    let found: Vec<NodeId> = g.nodes().filter(|&n| g.node(n).label() == name).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let found = match g.find_value(name) {
        Some(v) if maker => g.producer(v).map(|(n, _)| n).into_iter().collect(),
        Some(v) => g.consumers(v).into_iter().map(|(n, _)| n).collect(),
        None => Vec::new(),
    };
    ensure!(!found.is_empty(), "\"{name}\" is no node and no tensor between nodes");
    Ok(found)
}

fn reach(g: &Graph, start: Vec<NodeId>, forward: bool) -> BTreeSet<NodeId> {
    let mut seen: BTreeSet<NodeId> = start.iter().copied().collect();
    let mut open = start;
    while let Some(n) = open.pop() {
        let next: Vec<NodeId> = if forward {
            let outs = g.node_outputs(n).into_iter().flatten();
            outs.flat_map(|v| g.consumers(v).into_iter().map(|(n, _)| n).chain(g.capturers(v))).collect()
        } else {
            let ins = g.node_inputs(n).into_iter().flatten().chain(g.captures(n));
            ins.filter_map(|v| g.producer(v).map(|(n, _)| n)).collect()
        };
        open.extend(next.into_iter().filter(|&n| seen.insert(n)));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text_parse::parse;

    #[test]
    fn what_lies_between() {
        let model = parse(
            "<ir_version: 8, opset_import: [\"\" : 13]>
             g (float[1] x) => (float[1] y, float[1] z)
             { [a] p = Neg(x) [b] q = Abs(p) [c] r = Exp(p) [d] y = Add(q, r) [e] z = Log(p) }",
        )
        .unwrap();
        let names = |from: Option<&str>, to: Option<&str>| {
            let r = Region { from: from.map(Into::into), to: to.map(Into::into) };
            r.nodes(&model).map(|n| n.iter().map(|&n| model.main().node(n).name.clone()).collect::<Vec<_>>().join(""))
        };
        assert_eq!(names(Some("b"), Some("d")).unwrap(), "bd");
        assert_eq!(names(Some("p"), Some("y")).unwrap(), "bcd");
        assert_eq!(names(None, Some("z")).unwrap(), "ae");
        assert_eq!(names(Some("c"), None).unwrap(), "cd");
        assert!(names(Some("e"), Some("d")).unwrap_err().to_string().contains("no path"));
        assert!(names(Some("nope"), None).unwrap_err().to_string().contains("\"nope\""));
    }
}
