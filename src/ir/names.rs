//! Unique names, seeded with every name in every scope.

use std::collections::HashSet;

use super::Model;

/// Hands out names that no value and no node of the model has.
#[derive(Debug, Clone, Default)]
pub struct Names(HashSet<String>);

impl Names {
    /// Seeded with the names of all values and nodes in all graphs.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let mut names = HashSet::new();
        for id in model.graph_ids() {
            let g = model.graph(id);
            names.extend(g.values().map(|v| g.value(v).name.clone()));
            names.extend(g.nodes().map(|n| g.node(n).name.clone()));
        }
        Names(names)
    }

    /// `wanted` when it is free, else `wanted_1`, `wanted_2` …
    pub fn fresh(&mut self, wanted: &str) -> String {
        if self.0.insert(wanted.to_owned()) {
            return wanted.to_owned();
        }
        let mut i = 1u64;
        loop {
            let name = format!("{wanted}_{i}");
            if self.0.insert(name.clone()) {
                return name;
            }
            i += 1;
        }
    }
}
