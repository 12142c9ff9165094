//! A model: graphs, functions and operator-set versions.

use super::{Attrs, Bindings, Domain, Graph, Residue};

/// A graph of a model. Ids are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GraphId(pub(super) u32);

impl GraphId {
    /// The main graph.
    pub const MAIN: GraphId = GraphId(0);

    /// A small number that is unique in the model; 0 for the main graph.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A function of a model: a body that nodes of its name call.
#[derive(Debug, Clone)]
pub struct Function {
    /// The name that nodes call it by.
    pub name: String,
    /// Its domain.
    pub domain: Domain,
    /// Which of several functions of the same name.
    pub overload: String,
    /// Names of attributes that a call may give; those with a default keep it in the residue's message.
    pub attributes: Vec<String>,
    /// Attributes with a default.
    pub attribute_defaults: super::Attrs,
    /// Operator sets of its own.
    pub opsets: Vec<(Domain, i64)>,
    /// The body.
    pub body: GraphId,
    /// What the file says about it and the IR does not model.
    pub residue: Residue,
}

impl Function {
    /// What a call with these attributes gives the function's attributes.
    #[must_use]
    pub fn bind(&self, call: &Attrs) -> Bindings {
        let mut bound = Bindings::new();
        for name in &self.attributes {
            bound.insert(name.clone(), call.get(name).cloned());
        }
        for d in self.attribute_defaults.iter() {
            bound.insert(d.name.clone(), Some(call.get(&d.name).unwrap_or(&d.value).clone()));
        }
        bound
    }
}

/// A model.
#[derive(Debug, Clone)]
pub struct Model {
    graphs: Vec<Graph>,
    /// Functions, in the file's order.
    pub functions: Vec<Function>,
    /// Operator sets: domain and version, in the file's order.
    pub opsets: Vec<(Domain, i64)>,
    /// The IR version of the file format.
    pub ir_version: i64,
    /// Who made it; the writer's own name replaces it when a model was changed.
    pub producer_name: String,
    /// The producer's version.
    pub producer_version: String,
    /// The user's key-value pairs, in order.
    pub metadata: Vec<(String, String)>,
    /// What the file says about it and the IR does not model.
    pub residue: Residue,
}

impl Model {
    /// A model of one empty graph.
    #[must_use]
    pub fn new(ir_version: i64, opset: i64) -> Self {
        Model {
            graphs: vec![Graph::new("main")],
            functions: Vec::new(),
            opsets: vec![(Domain::onnx(), opset)],
            ir_version,
            producer_name: String::new(),
            producer_version: String::new(),
            metadata: Vec::new(),
            residue: Residue::default(),
        }
    }

    /// The main graph.
    #[must_use]
    pub fn main(&self) -> &Graph {
        &self.graphs[0]
    }

    /// The main graph for changing.
    pub fn main_mut(&mut self) -> &mut Graph {
        &mut self.graphs[0]
    }

    /// A graph.
    #[must_use]
    pub fn graph(&self, id: GraphId) -> &Graph {
        &self.graphs[id.0 as usize]
    }

    /// A graph for changing.
    pub fn graph_mut(&mut self, id: GraphId) -> &mut Graph {
        &mut self.graphs[id.0 as usize]
    }

    /// Every graph, the main one first, an owner before what it owns.
    pub fn graph_ids(&self) -> impl Iterator<Item = GraphId> + use<> {
        (0..self.graphs.len() as u32).map(GraphId)
    }

    /// Adds a graph and gives its id.
    pub fn add_graph(&mut self, graph: Graph) -> GraphId {
        self.graphs.push(graph);
        GraphId(self.graphs.len() as u32 - 1)
    }

    /// Empties a graph that no node owns any more, and the bodies inside it. Its id stays taken.
    pub fn discard_graph(&mut self, id: GraphId) {
        let nodes: Vec<_> = self.graph(id).nodes().collect();
        let bodies: Vec<_> = nodes.iter().flat_map(|&n| self.graph(id).node(n).attrs.graphs()).collect();
        self.graphs[id.0 as usize] = Graph::new("");
        for body in bodies {
            self.discard_graph(body);
        }
    }

    /// The version of a domain's operator set that the model imports.
    #[must_use]
    pub fn opset(&self, domain: &Domain) -> Option<i64> {
        self.opsets.iter().find(|(d, _)| d == domain).map(|(_, v)| *v)
    }

    /// The version of ONNX's own operator set; 0 when the model does not import it.
    #[must_use]
    pub fn onnx_opset(&self) -> i64 {
        self.opset(&Domain::onnx()).unwrap_or(0)
    }

    /// The operator sets that hold in a graph: the function's own inside a function body, else the model's.
    #[must_use]
    pub fn opsets_in(&self, graph: GraphId) -> &[(Domain, i64)] {
        let g = self.root_of(graph);
        self.functions.iter().find(|f| f.body == g).map_or(&self.opsets, |f| &f.opsets)
    }

    /// The graph that a body lies in at last: the main graph or a function's body.
    #[must_use]
    pub fn root_of(&self, graph: GraphId) -> GraphId {
        let mut g = graph;
        while let Some(o) = self.graph(g).owner() {
            g = o.graph;
        }
        g
    }

    /// Whether a graph is a body, or lies inside it.
    #[must_use]
    pub fn is_inside(&self, graph: GraphId, body: GraphId) -> bool {
        let mut at = Some(graph);
        while let Some(g) = at.filter(|&g| g != body) {
            at = self.graph(g).owner().map(|o| o.graph);
        }
        at.is_some()
    }

    /// Whether a graph is a function's body or lies inside one.
    #[must_use]
    pub fn is_in_function(&self, graph: GraphId) -> bool {
        let root = self.root_of(graph);
        self.functions.iter().any(|f| f.body == root)
    }

    /// A value's name; that of a captured value is the name that it has where it is defined.
    #[must_use]
    pub fn value_name(&self, graph: GraphId, value: super::ValueId) -> &str {
        let (mut graph, mut value) = (graph, value);
        while let super::Def::Capture(outer, source) = self.graph(graph).value(value).def {
            (graph, value) = (outer, source);
        }
        &self.graph(graph).value(value).name
    }

    /// The function that a node calls, if it calls one.
    #[must_use]
    pub fn function(&self, domain: &Domain, name: &str, overload: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name && f.domain == *domain && f.overload == overload)
    }
}
