//! Which nodes of a plan should run in integers: the cheapest choice of all, found as a minimum cut.
//!
//! Every node that can run in integers takes one of two sides. A node costs its time on the side that it takes, and, in
//! integers, the noise of its weight; a tensor costs the noise of its quantization where it is quantized, and a
//! conversion where its maker and a reader take different sides. All of these are costs of one side, or of a pair on
//! different sides, so that a minimum cut of a flow network gives the exact optimum (Greig, Porteous and Seheult 1989).
//! Costs are whole nanoseconds: the result does not depend on rounding.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::dinics;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::plan::{NodePlace, Place};

/// A node that can run in integers.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeCost {
    /// Cost in float.
    pub float: f64,
    /// Cost in integers, noise included.
    pub integer: f64,
    /// Whether it can give floats although it runs in integers.
    pub gives_floats: bool,
}

/// A tensor that some of those nodes make or read.
#[derive(Debug, Clone, Default)]
pub struct TensorCost {
    /// The node that makes it, where that can run in integers.
    pub maker: Option<NodePlace>,
    /// The nodes that can read it as integers.
    pub readers: BTreeSet<NodePlace>,
    /// Whether something else reads it, in float.
    pub has_float_readers: bool,
    /// Cost of its quantization in noise.
    pub noise: f64,
    /// Cost of `QuantizeLinear`, where it is made in float.
    pub quantize: f64,
    /// Cost of `DequantizeLinear`, where it is read in float.
    pub dequantize: f64,
}

/// More than any sum of costs.
const INFINITE: u64 = 1 << 50;

/// Costs in nanoseconds; negative ones and those that are no number count as nothing.
fn weight(cost: f64) -> u64 {
    ((cost.max(0.0) * 1e3).round() as u64).min(INFINITE / 1024)
}

struct Network {
    graph: DiGraph<(), u64>,
    source: NodeIndex,
    sink: NodeIndex,
}

impl Network {
    /// `cost` is paid when `a` is on the source's side (integers) and `b` is not.
    fn pair(&mut self, a: NodeIndex, b: NodeIndex, cost: u64) {
        if cost > 0 && a != b {
            self.graph.add_edge(a, b, cost);
        }
    }

    /// A vertex that must be on the source's side when one of `any` is.
    fn or(&mut self, any: &[NodeIndex]) -> NodeIndex {
        let v = self.graph.add_node(());
        for &a in any {
            self.pair(a, v, INFINITE);
        }
        v
    }

    /// A vertex that cannot be on the source's side when one of `all` is not.
    fn and(&mut self, all: &[NodeIndex]) -> NodeIndex {
        let v = self.graph.add_node(());
        for &a in all {
            self.pair(v, a, INFINITE);
        }
        v
    }

    /// The vertices on the source's side of a minimum cut.
    fn cut(&self) -> BTreeSet<NodeIndex> {
        let (_, flows) = dinics(&self.graph, self.source, self.sink);
        let mut side = BTreeSet::from([self.source]);
        let mut open = vec![self.source];
        while let Some(v) = open.pop() {
            let forward = self.graph.edges(v).filter(|e| flows[e.id().index()] < *e.weight()).map(|e| e.target());
            let back = self.graph.edges_directed(v, petgraph::Incoming);
            let back = back.filter(|e| flows[e.id().index()] > 0).map(|e| e.source());
            for next in forward.chain(back).collect::<Vec<_>>() {
                if side.insert(next) {
                    open.push(next);
                }
            }
        }
        side
    }
}

/// The nodes that should run in integers.
#[must_use]
pub fn cheapest(nodes: &BTreeMap<NodePlace, NodeCost>, tensors: &BTreeMap<Place, TensorCost>) -> BTreeSet<NodePlace> {
    let mut graph = DiGraph::new();
    let (source, sink) = (graph.add_node(()), graph.add_node(()));
    let mut net = Network { graph, source, sink };
    let vertex: BTreeMap<NodePlace, NodeIndex> = nodes.keys().map(|&p| (p, net.graph.add_node(()))).collect();
    for (p, n) in nodes {
        // Where both cost the same, integers are smaller.
        net.pair(source, vertex[p], weight(n.float) + 1);
        net.pair(vertex[p], sink, weight(n.integer));
    }
    for t in tensors.values() {
        let readers: Vec<NodeIndex> = t.readers.iter().filter_map(|p| vertex.get(p).copied()).collect();
        let some = net.or(&readers);
        let Some((maker, cost)) = t.maker.and_then(|m| Some((*vertex.get(&m)?, nodes[&m]))) else {
            net.pair(some, sink, weight(t.noise) + weight(t.quantize));
            continue;
        };
        net.pair(some, maker, weight(t.quantize));
        let quantized = if cost.gives_floats { some } else { net.or(&[maker, some]) };
        net.pair(quantized, sink, weight(t.noise));
        let needs = if cost.gives_floats { some } else { maker };
        if t.has_float_readers {
            net.pair(needs, sink, weight(t.dequantize));
        } else {
            let all = net.and(&readers);
            net.pair(needs, all, weight(t.dequantize));
        }
    }
    let side = net.cut();
    vertex.into_iter().filter(|(_, v)| side.contains(v)).map(|(p, _)| p).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{GraphId, Model, Node};

    /// Places to name nodes and tensors with.
    fn places(n: usize) -> (Vec<NodePlace>, Vec<Place>) {
        let mut m = Model::new(13, 8);
        let g = m.main_mut();
        let nodes = (0..n).map(|_| (GraphId::MAIN, g.add_node(Node::new("Relu"), &[], &[]))).collect();
        let values = (0..n).map(|i| (GraphId::MAIN, g.add_result(format!("v{i}"), None))).collect();
        (nodes, values)
    }

    /// The cost of a choice, by the definition.
    fn total(
        chosen: &BTreeSet<NodePlace>,
        nodes: &BTreeMap<NodePlace, NodeCost>,
        tensors: &BTreeMap<Place, TensorCost>,
    ) -> f64 {
        let mut sum: f64 = nodes.iter().map(|(p, n)| if chosen.contains(p) { n.integer } else { n.float }).sum();
        for t in tensors.values() {
            let some = t.readers.iter().any(|r| chosen.contains(r));
            let all = t.readers.iter().all(|r| chosen.contains(r)) && !t.has_float_readers;
            let made = t.maker.is_some_and(|m| chosen.contains(&m));
            if some || made {
                sum += t.noise;
            }
            if some && !made {
                sum += t.quantize;
            }
            if made && !all {
                sum += t.dequantize;
            }
        }
        sum
    }

    #[test]
    fn finds_what_trying_all_choices_finds() {
        let n = 7;
        let (names, values) = places(n);
        let mut seed = 1u64;
        let mut random = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 33) % limit) as f64
        };
        for _ in 0..200 {
            let nodes: BTreeMap<_, _> = names
                .iter()
                .map(|&p| (p, NodeCost { float: random(20), integer: random(20), gives_floats: false }))
                .collect();
            // A chain with some skips.
            let mut tensors = BTreeMap::new();
            for (i, &v) in values.iter().enumerate().take(n - 1) {
                let mut readers = BTreeSet::from([names[i + 1]]);
                if i + 3 < n && random(2) > 0.0 {
                    readers.insert(names[i + 3]);
                }
                let t = TensorCost {
                    maker: (i > 0).then_some(names[i]),
                    readers,
                    has_float_readers: random(4) == 0.0,
                    noise: random(5),
                    quantize: random(8),
                    dequantize: random(8),
                };
                tensors.insert(v, t);
            }
            let found = cheapest(&nodes, &tensors);
            let best = (0..1u32 << n)
                .map(|bits| {
                    let chosen =
                        names.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, p)| *p).collect();
                    total(&chosen, &nodes, &tensors)
                })
                .fold(f64::INFINITY, f64::min);
            assert!(
                (total(&found, &nodes, &tensors) - best).abs() < 0.05,
                "{} {best}",
                total(&found, &nodes, &tensors)
            );
        }
    }
}
