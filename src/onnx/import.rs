//! `ModelProto` to `ir::Model`: names become ids here and only here.
//!
//! Every message is split by destructuring without `..` into what the IR models and what stays in the residue, so a
//! new field of the schema is a compile error here until somebody has decided where it belongs.
//!
//! Names: a name that a body does not define is looked up in the enclosing graphs and becomes a capture at each level
//! in between. A name that nobody defines becomes a free value and is reported. Nodes may come in any order; a cycle is
//! an error. Graph inputs with a stored tensor are overridable from IR version 4 on; before, the listing was mandatory
//! and they are constants, which the IR does not count among the inputs.

use std::collections::HashMap;

use super::external::{Folder, Outside, Place};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    TensorProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto::dimension, type_proto,
};
use super::residue::{Kept, KeptAnnotation, KeptGraph, KeptModel, KeptNode};
use super::tensor::{FileTensor, SparseFileTensor};
use super::unknown::Unknown;
use crate::diag::Sink;
use crate::error::{At, Context, Location, Result, anyhow, bail, ensure};
use crate::ir::attr::NamedAttr;
use crate::ir::graph::Owner;
use crate::ir::{
    Attr, Attrs, Def, Dim, Domain, Function, Graph, GraphId, Model, Node, NodeId, Position, Residue, TensorRef,
    TensorType, ValueId, ValueType,
};
use crate::tensor::DType;

/// From this IR version on, a graph input with a stored tensor can be overridden.
const OVERRIDABLE_SINCE: i64 = 4;
/// The newest IR version that `proto/onnx.proto` covers.
const NEWEST_IR: i64 = 14;

/// Field numbers of the messages that are taken out of others; for the branches of [`Unknown`].
pub(super) mod field {
    pub(in super::super) const MODEL_GRAPH: u32 = 7;
    pub(in super::super) const MODEL_FUNCTIONS: u32 = 25;
    pub(in super::super) const GRAPH_NODE: u32 = 1;
    pub(in super::super) const GRAPH_INITIALIZER: u32 = 5;
    pub(in super::super) const GRAPH_INPUT: u32 = 11;
    pub(in super::super) const GRAPH_OUTPUT: u32 = 12;
    pub(in super::super) const GRAPH_VALUE_INFO: u32 = 13;
    pub(in super::super) const GRAPH_ANNOTATION: u32 = 14;
    pub(in super::super) const GRAPH_SPARSE: u32 = 15;
    pub(in super::super) const NODE_ATTRIBUTE: u32 = 5;
    pub(in super::super) const ATTRIBUTE_T: u32 = 5;
    pub(in super::super) const ATTRIBUTE_G: u32 = 6;
    pub(in super::super) const ATTRIBUTE_TENSORS: u32 = 10;
    pub(in super::super) const ATTRIBUTE_GRAPHS: u32 = 11;
    pub(in super::super) const FUNCTION_NODE: u32 = 7;
    pub(in super::super) const FUNCTION_DEFAULTS: u32 = 11;
    pub(in super::super) const FUNCTION_VALUE_INFO: u32 = 12;
}

/// The model of a decoded file; `origin` has what reading knows of the file.
///
/// # Errors
/// The model has no graph, a value is defined twice, a graph has a cycle, or a stored tensor is broken.
pub(super) fn import(proto: ModelProto, mut unknown: Unknown, folder: Folder, origin: KeptModel) -> Result<Model> {
    let ModelProto {
        ir_version,
        opset_import,
        producer_name,
        producer_version,
        domain,
        model_version,
        doc_string,
        graph,
        metadata_props,
        training_info,
        functions,
        configuration,
    } = proto;
    let graph = graph.ok_or_else(|| anyhow!("the model has no graph"))?;
    let mut model = Model::new(ir_version.unwrap_or(0), 0);
    model.opsets = opsets(&opset_import);
    model.producer_name = producer_name.clone().unwrap_or_default();
    model.producer_version = producer_version.clone().unwrap_or_default();
    model.metadata = metadata_props.iter().map(|p| (p.key().to_owned(), p.value().to_owned())).collect();

    let n_nodes = graph.node.len();
    let mut importer = Importer { model, folder, notes: Sink::default(), scopes: Vec::new() };
    if importer.model.ir_version > NEWEST_IR {
        importer.notes.note(
            "newer-ir-version",
            Location::default(),
            format!("IR version {} is newer than {NEWEST_IR}, the newest one known here", importer.model.ir_version),
        );
    }
    for (message, number) in unknown.numbers(super::unknown::MODEL) {
        let what = format!("field {number} of {message} is not known here; it is kept as it is");
        importer.notes.note("unknown-field", Location::default(), what);
    }
    importer.body(graph, unknown.take(field::MODEL_GRAPH, 0), GraphId::MAIN)?;
    for (i, function) in functions.into_iter().enumerate() {
        let name = function.name().to_owned();
        let branch = unknown.take(field::MODEL_FUNCTIONS, i);
        importer.function(function, branch).with_context(|| format!("function \"{name}\""))?;
    }

    let Importer { mut model, folder, notes, scopes: _ } = importer;
    let message = ModelProto {
        ir_version,
        opset_import,
        producer_name,
        producer_version,
        domain,
        model_version,
        doc_string,
        graph: None,
        metadata_props,
        training_info,
        functions: Vec::new(),
        configuration,
    };
    let notes = notes.diagnostics().to_vec();
    let files = origin.files.iter().cloned().chain(folder.into_paths()).collect();
    model.residue = Residue::new(KeptModel { kept: Kept { message, unknown }, n_nodes, files, notes, ..origin });
    Ok(model)
}

fn opsets(imports: &[OperatorSetIdProto]) -> Vec<(Domain, i64)> {
    imports.iter().map(|o| (Domain::new(o.domain()), o.version())).collect()
}

/// A graph whose import is under way.
struct Scope {
    graph: GraphId,
    names: HashMap<String, ValueId>,
    /// The node whose bodies are being imported.
    node: Option<NodeId>,
}

struct Importer {
    model: Model,
    folder: Folder,
    notes: Sink,
    /// The graph at hand comes last, those that enclose it before.
    scopes: Vec<Scope>,
}

impl Importer {
    fn graph(&mut self, id: GraphId) -> &mut Graph {
        self.model.graph_mut(id)
    }

    /// Fills graph `id`, which encloses nothing that is not in `scopes`.
    fn body(&mut self, proto: GraphProto, unknown: Unknown, id: GraphId) -> Result<()> {
        self.scopes.push(Scope { graph: id, names: HashMap::new(), node: None });
        let name = proto.name().to_owned();
        let done = self.body_in_scope(proto, unknown, id);
        self.scopes.pop();
        if id == GraphId::MAIN { done } else { done.with_context(|| format!("graph \"{name}\"")) }
    }

    fn body_in_scope(&mut self, proto: GraphProto, mut unknown: Unknown, id: GraphId) -> Result<()> {
        let GraphProto {
            node,
            name,
            initializer,
            sparse_initializer,
            doc_string,
            input,
            output,
            value_info,
            quantization_annotation,
            metadata_props,
        } = proto;
        self.graph(id).name = name.clone().unwrap_or_default();
        let mut kept = KeptGraph::default();

        for (i, info) in input.into_iter().enumerate() {
            let branch = unknown.take(field::GRAPH_INPUT, i);
            let value = self.define(info.name(), "graph input", |g, name| {
                g.add_value(name, info.r#type.as_ref().map(value_type), Def::Input)
            })?;
            kept.inputs.push((value, Kept { message: info, unknown: branch }));
        }
        self.graph(id).set_inputs(kept.inputs.iter().map(|(v, _)| *v).collect());
        for (i, tensor) in initializer.into_iter().enumerate() {
            let branch = unknown.take(field::GRAPH_INITIALIZER, i);
            self.initializer(id, tensor, branch)?;
        }
        for (i, tensor) in sparse_initializer.into_iter().enumerate() {
            let branch = unknown.take(field::GRAPH_SPARSE, i);
            self.sparse_initializer(id, tensor, branch)?;
        }
        self.drop_constants_from_inputs(id);

        for node in &node {
            for name in node.output.iter().filter(|n| !n.is_empty()) {
                self.define(name, "node output", |g, name| g.add_result(name, None))
                    .at(|| Location::node(node.name(), node.op_type()))?;
            }
        }
        for (i, node) in node.into_iter().enumerate() {
            let branch = unknown.take(field::GRAPH_NODE, i);
            let location = Location::node(&label(&node, i), node.op_type());
            self.node(id, node, branch, i).at(|| location)?;
        }

        for (i, info) in output.into_iter().enumerate() {
            let branch = unknown.take(field::GRAPH_OUTPUT, i);
            ensure!(!info.name().is_empty(), "graph output {i} has no name");
            let value = self.resolve(info.name(), || format!("graph output {i}"));
            self.declare(id, value, &info);
            kept.outputs.push((value, Kept { message: info, unknown: branch }));
        }
        self.graph(id).set_outputs(kept.outputs.iter().map(|(v, _)| *v).collect());
        for (i, info) in value_info.into_iter().enumerate() {
            let branch = unknown.take(field::GRAPH_VALUE_INFO, i);
            let value = self.local(info.name());
            if let Some(value) = value {
                self.declare(id, value, &info);
            }
            kept.infos.push((value, Kept { message: info, unknown: branch }));
        }
        for (i, message) in quantization_annotation.into_iter().enumerate() {
            let unknown = unknown.take(field::GRAPH_ANNOTATION, i);
            let mut values = vec![self.local(message.tensor_name())];
            values.extend(message.quant_parameter_tensor_names.iter().map(|p| self.local(p.value())));
            kept.annotations.push(KeptAnnotation { kept: Kept { message, unknown }, values });
        }
        self.check_order(id)?;

        let message = GraphProto {
            node: Vec::new(),
            name,
            initializer: Vec::new(),
            sparse_initializer: Vec::new(),
            doc_string,
            input: Vec::new(),
            output: Vec::new(),
            value_info: Vec::new(),
            quantization_annotation: Vec::new(),
            metadata_props,
        };
        kept.kept = Kept { message, unknown };
        self.graph(id).residue = Residue::new(kept);
        Ok(())
    }

    /// The value of this name in the graph at hand.
    fn local(&self, name: &str) -> Option<ValueId> {
        self.scopes.last().and_then(|s| s.names.get(name)).copied()
    }

    /// Makes the value of a new name.
    fn define(&mut self, name: &str, what: &str, make: impl FnOnce(&mut Graph, &str) -> ValueId) -> Result<ValueId> {
        let Some(scope) = self.scopes.last_mut() else { bail!("{what} \"{name}\" outside of a graph") };
        ensure!(!name.is_empty(), "{what} without a name");
        ensure!(!scope.names.contains_key(name), "{what} \"{name}\": another value has this name");
        let value = make(self.model.graph_mut(scope.graph), name);
        scope.names.insert(name.to_owned(), value);
        Ok(value)
    }

    fn fetch(&mut self, tensor: &TensorProto, size: usize) -> Result<Outside> {
        self.folder.find(&Place::of(tensor)?, size)
    }

    fn tensor(&mut self, tensor: TensorProto, unknown: Unknown) -> Result<TensorRef> {
        Ok(TensorRef::new(FileTensor::new(tensor, unknown, |t, size| self.fetch(t, size))?))
    }

    fn initializer(&mut self, id: GraphId, tensor: TensorProto, unknown: Unknown) -> Result<()> {
        let name = tensor.name().to_owned();
        let tensor = self.tensor(tensor, unknown).with_context(|| format!("initializer \"{name}\""))?;
        self.store(id, &name, tensor)
    }

    fn sparse_initializer(&mut self, id: GraphId, tensor: SparseTensorProto, unknown: Unknown) -> Result<()> {
        let name = tensor.values.as_ref().map_or("", TensorProto::name).to_owned();
        let source = SparseFileTensor::new(tensor, unknown, |t, size| self.fetch(t, size))
            .with_context(|| format!("sparse initializer \"{name}\""))?;
        self.store(id, &name, TensorRef::new(source))
    }

    fn store(&mut self, id: GraphId, name: &str, tensor: TensorRef) -> Result<()> {
        let overridable = self.model.ir_version >= OVERRIDABLE_SINCE;
        let Some(value) = self.local(name) else {
            if name.is_empty() {
                self.notes.warn(
                    "nameless-initializer",
                    Location::default(),
                    "an initializer has no name; it is unused",
                );
                return Ok(());
            }
            self.define(name, "initializer", |g, name| g.add_initializer(name, tensor))?;
            return Ok(());
        };
        let def = match self.graph(id).value(value).def {
            Def::Input if overridable => Def::Overridable(tensor),
            Def::Overridable(_) => Def::Overridable(tensor),
            _ => Def::Initializer(tensor),
        };
        if matches!(self.graph(id).value(value).def, Def::Initializer(_) | Def::Overridable(_)) {
            let what = "stored twice; the last one counts";
            self.notes.warn("duplicate-initializer", Location::value(name), what);
        }
        self.graph(id).set_def(value, def);
        Ok(())
    }

    /// Takes the constants that files below IR version 4 list as inputs off the list of inputs.
    fn drop_constants_from_inputs(&mut self, id: GraphId) {
        let g = self.graph(id);
        let is_input = |v: &ValueId| !matches!(g.value(*v).def, Def::Initializer(_));
        let inputs: Vec<_> = g.inputs().iter().copied().filter(is_input).collect();
        if inputs.len() < g.inputs().len() {
            g.set_inputs(inputs);
        }
    }

    /// The value of a name that is used: defined here, captured, or free.
    fn resolve(&mut self, name: &str, user: impl FnOnce() -> String) -> ValueId {
        if let Some(value) = self.lookup(name, self.scopes.len()) {
            return value;
        }
        self.notes.warn(
            "undefined-value",
            Location::value(name),
            format!("{} uses it, but nothing defines it", user()),
        );
        let Some(scope) = self.scopes.last_mut() else { unreachable!("names are used in graphs") };
        let value = self.model.graph_mut(scope.graph).add_value(name, None, Def::Free);
        scope.names.insert(name.to_owned(), value);
        value
    }

    /// Looks a name up in the innermost of the first `depth` scopes, then outwards, capturing on the way back.
    fn lookup(&mut self, name: &str, depth: usize) -> Option<ValueId> {
        let depth = depth.checked_sub(1)?;
        if let Some(&value) = self.scopes.get(depth)?.names.get(name) {
            return Some(value);
        }
        let outer = self.lookup(name, depth)?;
        let owner = self.scopes.get(depth.checked_sub(1)?)?;
        let (outer_graph, node) = (owner.graph, owner.node);
        let scope = self.scopes.get_mut(depth)?;
        let value = self.model.graph_mut(scope.graph).add_value(name, None, Def::Capture(outer_graph, outer));
        scope.names.insert(name.to_owned(), value);
        if let Some(node) = node {
            self.model.graph_mut(outer_graph).add_capture(node, outer);
        }
        Some(value)
    }

    /// Gives a value the type that `info` declares, unless it has one.
    fn declare(&mut self, id: GraphId, value: ValueId, info: &ValueInfoProto) {
        let g = self.model.graph_mut(id);
        let known = g.value(value);
        if known.ty.is_none() && !matches!(known.def, Def::Capture(..)) {
            g.set_type(value, info.r#type.as_ref().map(value_type));
        }
    }

    fn node(&mut self, id: GraphId, proto: NodeProto, mut unknown: Unknown, index: usize) -> Result<()> {
        let NodeProto {
            input,
            output,
            name,
            op_type,
            domain,
            overload,
            attribute,
            doc_string,
            metadata_props,
            device_configurations,
        } = proto;
        let user = || format!("node \"{}\" ({})", name.as_deref().unwrap_or(""), op_type.as_deref().unwrap_or(""));
        let inputs: Vec<_> = input.iter().map(|n| (!n.is_empty()).then(|| self.resolve(n, user))).collect();
        let outputs: Vec<_> = output.iter().map(|n| self.local(n)).collect();
        let mut node = Node::new(op_type.as_deref().unwrap_or(""));
        node.domain = Domain::new(domain.as_deref().unwrap_or(""));
        node.overload = overload.clone().unwrap_or_default();
        node.name = name.clone().unwrap_or_default();
        node.pos = Position { anchor: u32::try_from(index)?, offset: 0 };
        let node = self.graph(id).add_node(node, &inputs, &outputs);

        if let Some(scope) = self.scopes.last_mut() {
            scope.node = Some(node);
        }
        let mut attrs = Attrs::default();
        for (i, attribute) in attribute.into_iter().enumerate() {
            let name = attribute.name().to_owned();
            let branch = unknown.take(field::NODE_ATTRIBUTE, i);
            let attr = self.attribute(attribute, branch, Some(Owner { graph: id, node }));
            attrs.push(attr.with_context(|| format!("attribute \"{name}\""))?);
        }
        let sharded = device_configurations
            .iter()
            .flat_map(|c| &c.sharding_spec)
            .map(|spec| self.local(spec.tensor_name()))
            .collect();
        let message = NodeProto {
            input: Vec::new(),
            output: Vec::new(),
            name,
            op_type,
            domain,
            overload,
            attribute: Vec::new(),
            doc_string,
            metadata_props,
            device_configurations,
        };
        let node = self.graph(id).node_mut(node);
        node.attrs = attrs;
        node.residue = Residue::new(KeptNode { kept: Kept { message, unknown }, sharded });
        Ok(())
    }

    /// An attribute; bodies are imported only for the attribute of a node, `owner`.
    fn attribute(&mut self, proto: AttributeProto, mut unknown: Unknown, owner: Option<Owner>) -> Result<NamedAttr> {
        let kind = kind(&proto);
        let AttributeProto {
            name,
            ref_attr_name,
            doc_string,
            r#type,
            f,
            i,
            mut s,
            mut t,
            mut g,
            sparse_tensor,
            tp,
            mut floats,
            mut ints,
            mut strings,
            mut tensors,
            mut graphs,
            sparse_tensors,
            type_protos,
        } = proto;
        let value = match (kind, owner) {
            _ if ref_attr_name.as_ref().is_some_and(|r| !r.is_empty()) => {
                Attr::Ref(ref_attr_name.clone().unwrap_or_default())
            }
            (AttributeType::Float, _) => Attr::Float(f.unwrap_or_default()),
            (AttributeType::Int, _) => Attr::Int(i.unwrap_or_default()),
            // The kept message needs to know whether the field was there, not what it said.
            (AttributeType::String, _) => Attr::String(s.as_mut().map(std::mem::take).unwrap_or_default()),
            (AttributeType::Floats, _) => Attr::Floats(std::mem::take(&mut floats)),
            (AttributeType::Ints, _) => Attr::Ints(std::mem::take(&mut ints)),
            (AttributeType::Strings, _) => Attr::Strings(std::mem::take(&mut strings)),
            (AttributeType::Tensor, _) if t.is_some() => {
                let tensor = t.take().unwrap_or_default();
                Attr::Tensor(self.tensor(tensor, unknown.take(field::ATTRIBUTE_T, 0))?)
            }
            (AttributeType::Tensors, _) => {
                let tensors = std::mem::take(&mut tensors).into_iter().enumerate();
                let tensor = |(n, t)| self.tensor(t, unknown.take(field::ATTRIBUTE_TENSORS, n));
                Attr::Tensors(tensors.map(tensor).collect::<Result<_>>()?)
            }
            (AttributeType::Graph, Some(owner)) if g.is_some() => {
                let body = g.take().unwrap_or_default();
                Attr::Graph(self.owned_body(body, unknown.take(field::ATTRIBUTE_G, 0), owner)?)
            }
            (AttributeType::Graphs, Some(owner)) => {
                let bodies = std::mem::take(&mut graphs).into_iter().enumerate();
                let body = |(n, g)| self.owned_body(g, unknown.take(field::ATTRIBUTE_GRAPHS, n), owner);
                Attr::Graphs(bodies.map(body).collect::<Result<_>>()?)
            }
            (AttributeType::TypeProto, _) if tp.is_some() => {
                Attr::Type(tp.as_ref().map_or(ValueType::Unknown, value_type))
            }
            _ => Attr::Opaque,
        };
        let named = name.clone().unwrap_or_default();
        let message = AttributeProto {
            name,
            ref_attr_name,
            doc_string,
            r#type,
            f,
            i,
            s,
            t,
            g,
            sparse_tensor,
            tp,
            floats,
            ints,
            strings,
            tensors,
            graphs,
            sparse_tensors,
            type_protos,
        };
        Ok(NamedAttr { name: named, value, residue: Residue::new(Kept { message, unknown }) })
    }

    fn owned_body(&mut self, body: GraphProto, unknown: Unknown, owner: Owner) -> Result<GraphId> {
        let id = self.model.add_graph(Graph::new(""));
        self.graph(id).set_owner(Some(owner));
        self.body(body, unknown, id)?;
        Ok(id)
    }

    fn function(&mut self, proto: FunctionProto, mut unknown: Unknown) -> Result<()> {
        let FunctionProto {
            name,
            input,
            output,
            attribute,
            attribute_proto,
            node,
            doc_string,
            opset_import,
            domain,
            overload,
            value_info,
            metadata_props,
        } = proto;
        let info = |name: String| ValueInfoProto { name: Some(name), ..ValueInfoProto::default() };
        let mut branch = Unknown::default();
        for i in 0..node.len() {
            branch.put(field::GRAPH_NODE, i, unknown.take(field::FUNCTION_NODE, i));
        }
        for i in 0..value_info.len() {
            branch.put(field::GRAPH_VALUE_INFO, i, unknown.take(field::FUNCTION_VALUE_INFO, i));
        }
        let body = GraphProto {
            node,
            name: name.clone(),
            input: input.into_iter().map(info).collect(),
            output: output.into_iter().map(info).collect(),
            value_info,
            ..GraphProto::default()
        };
        let id = self.model.add_graph(Graph::new(""));
        self.body(body, branch, id)?;

        let mut attribute_defaults = Attrs::default();
        for (i, attribute) in attribute_proto.into_iter().enumerate() {
            let branch = unknown.take(field::FUNCTION_DEFAULTS, i);
            attribute_defaults.push(self.attribute(attribute, branch, None)?);
        }
        self.model.functions.push(Function {
            name: name.clone().unwrap_or_default(),
            domain: Domain::new(domain.as_deref().unwrap_or("")),
            overload: overload.clone().unwrap_or_default(),
            attributes: attribute,
            attribute_defaults,
            opsets: opsets(&opset_import),
            body: id,
            residue: Residue::new(Kept {
                message: FunctionProto {
                    name,
                    input: Vec::new(),
                    output: Vec::new(),
                    attribute: Vec::new(),
                    attribute_proto: Vec::new(),
                    node: Vec::new(),
                    doc_string,
                    opset_import,
                    domain,
                    overload,
                    value_info: Vec::new(),
                    metadata_props,
                },
                unknown,
            }),
        });
        Ok(())
    }

    /// Fails on a cycle; notes when the file's order is not topological.
    fn check_order(&mut self, id: GraphId) -> Result<()> {
        let g = self.graph(id);
        let order = g.order()?;
        if !order.is_sorted_by_key(|&n| g.node(n).pos) {
            let what = "nodes do not come after what they use; they are put in order";
            self.notes.note("unsorted-nodes", Location::default(), what);
        }
        Ok(())
    }
}

fn label(node: &NodeProto, index: usize) -> String {
    if node.name().is_empty() { format!("#{index}") } else { node.name().to_owned() }
}

/// Which field holds the attribute's value; files below IR version 2 do not say, so the field that is there does.
fn kind(proto: &AttributeProto) -> AttributeType {
    let stated = proto.r#type();
    if stated != AttributeType::Undefined {
        return stated;
    }
    let present = [
        (proto.f.is_some(), AttributeType::Float),
        (proto.i.is_some(), AttributeType::Int),
        (proto.s.is_some(), AttributeType::String),
        (proto.t.is_some(), AttributeType::Tensor),
        (proto.g.is_some(), AttributeType::Graph),
        (!proto.floats.is_empty(), AttributeType::Floats),
        (!proto.ints.is_empty(), AttributeType::Ints),
        (!proto.strings.is_empty(), AttributeType::Strings),
        (!proto.tensors.is_empty(), AttributeType::Tensors),
        (!proto.graphs.is_empty(), AttributeType::Graphs),
        (proto.tp.is_some(), AttributeType::TypeProto),
    ];
    present.into_iter().find(|(there, _)| *there).map_or(AttributeType::Undefined, |(_, kind)| kind)
}

/// A type as far as the IR models it.
pub(super) fn value_type(proto: &TypeProto) -> ValueType {
    let inner = |t: Option<&TypeProto>| Box::new(t.map_or(ValueType::Unknown, value_type));
    match &proto.value {
        Some(type_proto::Value::TensorType(t)) => ValueType::Tensor(tensor_type(t.elem_type(), t.shape.as_ref())),
        Some(type_proto::Value::SparseTensorType(t)) => {
            ValueType::SparseTensor(tensor_type(t.elem_type(), t.shape.as_ref()))
        }
        Some(type_proto::Value::SequenceType(t)) => ValueType::Sequence(inner(t.elem_type.as_deref())),
        Some(type_proto::Value::OptionalType(t)) => ValueType::Optional(inner(t.elem_type.as_deref())),
        Some(type_proto::Value::MapType(t)) => match DType::from_code(t.key_type()) {
            Some(key) => ValueType::Map(key, inner(t.value_type.as_deref())),
            None => ValueType::Unknown,
        },
        Some(type_proto::Value::OpaqueType(_)) | None => ValueType::Unknown,
    }
}

fn tensor_type(elem_type: i32, shape: Option<&super::proto::TensorShapeProto>) -> TensorType {
    let dim = |d: &super::proto::tensor_shape_proto::Dimension| match &d.value {
        // Some exporters write -1 for what they do not know.
        Some(dimension::Value::DimValue(n)) => usize::try_from(*n).map_or(Dim::Unknown, Dim::Known),
        Some(dimension::Value::DimParam(s)) if !s.is_empty() => Dim::Symbol(s.as_str().into()),
        _ => Dim::Unknown,
    };
    TensorType { dtype: DType::from_code(elem_type), shape: shape.map(|s| s.dim.iter().map(dim).collect()) }
}
