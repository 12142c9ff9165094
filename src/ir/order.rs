//! Stable topological order: an untouched valid graph keeps its exact order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use petgraph::Direction;
use petgraph::visit::EdgeRef;

use super::graph::{Graph, NodeId, Vertex};
use crate::error::{Result, bail};

impl Graph {
    /// Nodes in an order in which each comes after all that it uses, captures included; among those that are ready the
    /// one that stands first in the file comes first.
    ///
    /// # Errors
    /// The graph has a cycle; the error names a node of it.
    pub fn order(&self) -> Result<Vec<NodeId>> {
        let net = self.net();
        let mut waiting = vec![0usize; net.capacity().0];
        let mut ready = BinaryHeap::new();
        let mut n_nodes = 0;
        let key = |n: NodeId| Reverse((self.node(n).pos, n));
        for n in self.nodes() {
            n_nodes += 1;
            // One count for each edge whose value another node produces.
            let count = net.edges_directed(n.0, Direction::Incoming).filter(|e| self.has_producer(e.source())).count();
            waiting[n.0.index()] = count;
            if count == 0 {
                ready.push(key(n));
            }
        }
        let mut order = Vec::with_capacity(n_nodes);
        while let Some(Reverse((_, n))) = ready.pop() {
            order.push(n);
            for v in net.neighbors_directed(n.0, Direction::Outgoing) {
                for user in net.neighbors_directed(v, Direction::Outgoing) {
                    waiting[user.index()] -= 1;
                    if waiting[user.index()] == 0 {
                        ready.push(key(NodeId(user)));
                    }
                }
            }
        }
        if order.len() < n_nodes {
            let stuck = self.nodes().find(|n| waiting[n.0.index()] > 0);
            let label = stuck.map(|n| self.node(n).location().to_string()).unwrap_or_default();
            bail!("{label}: the graph has a cycle through this node");
        }
        Ok(order)
    }

    fn has_producer(&self, value: petgraph::graph::NodeIndex) -> bool {
        debug_assert!(matches!(self.net()[value], Vertex::Value(_)));
        self.net().edges_directed(value, Direction::Incoming).next().is_some()
    }
}
