//! `ir::Model` to `ModelProto`: ids become names here and only here.
//!
//! Each message starts as what import kept of it, or empty for what a pass has made, and gets the current modelled
//! parts. Types and tensors that did not change are written as they were read. What a declared type says is kept as
//! long as it does not contradict the value's type, so inference that found out more changes nothing in the file.

use super::import::{field, value_type};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};
use super::residue::{Kept, KeptAttr, KeptFunction, KeptGraph, KeptModel, KeptNode, keep};
use super::tensor::{FileTensor, SparseFileTensor, to_message};
use super::unknown::Unknown;
use crate::error::{At, Context, Result};
use crate::ir::attr::NamedAttr;
use crate::ir::{
    Attr, Attrs, Def, Dim, Domain, Function, Graph, GraphId, Model, NodeId, TensorRef, TensorType, ValueId, ValueType,
};

/// Up to this IR version constants have to be listed as graph inputs.
const LISTED_UNTIL: i64 = 3;

/// What a stored tensor is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// An initializer, which may go into an external file.
    Initializer,
    /// Part of an attribute.
    Attribute,
}

/// Makes the message of a stored tensor; the name is filled in afterwards.
pub(super) type Store<'a> = &'a mut dyn FnMut(&TensorRef, Role) -> Result<TensorProto>;

/// The message of a tensor as it was read, or with its elements inside when it is new.
pub(super) fn verbatim(tensor: &TensorRef, _: Role) -> Result<TensorProto> {
    match tensor.source().as_any().downcast_ref::<FileTensor>() {
        Some(file) => Ok(file.message.clone()),
        None => to_message(&tensor.read()?),
    }
}

/// The model's message, and the unknown fields to splice into its bytes.
///
/// # Errors
/// A graph has a cycle, or a tensor cannot be decoded or stored.
pub(super) fn export(model: &Model, store: Store<'_>) -> Result<(ModelProto, Unknown)> {
    let new = KeptModel::default();
    let old = model.residue.get::<KeptModel>().unwrap_or(&new);
    let Kept { mut message, mut unknown } = old.kept.clone();
    let mut exporter = Exporter { model, store };

    message.ir_version = keep(message.ir_version.as_ref(), model.ir_version);
    message.opset_import = opset_imports(&message.opset_import, &model.opsets);
    message.producer_name = keep(message.producer_name.as_ref(), model.producer_name.clone());
    message.producer_version = keep(message.producer_version.as_ref(), model.producer_version.clone());
    message.metadata_props = metadata(&message.metadata_props, &model.metadata);
    let (graph, branch) = exporter.graph(GraphId::MAIN)?;
    message.graph = Some(graph);
    unknown.put(field::MODEL_GRAPH, 0, branch);
    for (i, function) in model.functions.iter().enumerate() {
        let (function, branch) =
            exporter.function(function).with_context(|| format!("function \"{}\"", function.name))?;
        message.functions.push(function);
        unknown.put(field::MODEL_FUNCTIONS, i, branch);
    }
    Ok((message, unknown))
}

/// Imports with the presence of fields as in the file.
fn opset_imports(old: &[OperatorSetIdProto], now: &[(Domain, i64)]) -> Vec<OperatorSetIdProto> {
    now.iter()
        .enumerate()
        .map(|(i, (domain, version))| {
            let same = |o: &&OperatorSetIdProto| o.domain() == domain.spelling();
            let old = old.get(i).filter(same).or_else(|| old.iter().find(same)).cloned().unwrap_or_default();
            OperatorSetIdProto {
                domain: keep(old.domain.as_ref(), domain.spelling().to_owned()),
                version: keep(old.version.as_ref(), *version),
            }
        })
        .collect()
}

fn metadata(old: &[StringStringEntryProto], now: &[(String, String)]) -> Vec<StringStringEntryProto> {
    let entry = |(i, (key, value)): (usize, &(String, String))| {
        let old = old.get(i).cloned().unwrap_or_default();
        StringStringEntryProto {
            key: keep(old.key.as_ref(), key.clone()),
            value: keep(old.value.as_ref(), value.clone()),
        }
    };
    now.iter().enumerate().map(entry).collect()
}

struct Exporter<'a> {
    model: &'a Model,
    store: Store<'a>,
}

impl Exporter<'_> {
    /// The name of a value; that of a captured value is the name it has where it is defined.
    fn name(&self, graph: &Graph, value: ValueId) -> String {
        let (mut graph, mut value) = (graph, value);
        while let Def::Capture(outer, source) = graph.value(value).def {
            (graph, value) = (self.model.graph(outer), source);
        }
        graph.value(value).name.clone()
    }

    fn slot(&self, graph: &Graph, value: Option<ValueId>) -> String {
        value.map_or_else(String::new, |v| self.name(graph, v))
    }

    fn graph(&mut self, id: GraphId) -> Result<(GraphProto, Unknown)> {
        let g = self.model.graph(id);
        let new = KeptGraph::default();
        let old = g.residue.get::<KeptGraph>().unwrap_or(&new);
        let Kept { mut message, mut unknown } = old.kept.clone();
        message.name = keep(message.name.as_ref(), g.name.clone());

        for (i, n) in g.order()?.into_iter().enumerate() {
            let (node, branch) = self.node(g, n).at(|| g.node(n).location())?;
            message.node.push(node);
            unknown.put(field::GRAPH_NODE, i, branch);
        }
        for &v in g.initializers() {
            let value = g.value(v);
            let (Def::Initializer(tensor) | Def::Overridable(tensor)) = &value.def else { continue };
            self.initializer(tensor, &value.name, &mut message, &mut unknown)
                .with_context(|| format!("initializer \"{}\"", value.name))?;
        }
        for (i, v) in self.listed_inputs(g, old).into_iter().enumerate() {
            let (info, branch) = self.info(g, v, entry(&old.inputs, i, v));
            message.input.push(info);
            unknown.put(field::GRAPH_INPUT, i, branch);
        }
        for (i, &v) in g.outputs().iter().enumerate() {
            let (info, branch) = self.info(g, v, entry(&old.outputs, i, v));
            message.output.push(info);
            unknown.put(field::GRAPH_OUTPUT, i, branch);
        }
        self.value_infos(g, old, &mut message, &mut unknown);
        for annotation in &old.annotations {
            let Kept { message: mut a, unknown: branch } = annotation.kept.clone();
            let mut values = annotation.values.iter().copied();
            let mut current = |name: &mut Option<String>| match values.next().flatten() {
                Some(v) if g.has_value(v) => {
                    let now = self.name(g, v);
                    *name = keep(name.as_ref(), now);
                    true
                }
                Some(_) => false,
                None => true,
            };
            if !current(&mut a.tensor_name) {
                continue;
            }
            a.quant_parameter_tensor_names.iter_mut().for_each(|p| {
                current(&mut p.value);
            });
            unknown.put(field::GRAPH_ANNOTATION, message.quantization_annotation.len(), branch);
            message.quantization_annotation.push(a);
        }
        Ok((message, unknown))
    }

    /// The graph inputs as the file has to list them: below IR version 4 with the constants among them.
    fn listed_inputs(&self, g: &Graph, old: &KeptGraph) -> Vec<ValueId> {
        let is_function = self.model.functions.iter().any(|f| std::ptr::eq(self.model.graph(f.body), g));
        if self.model.ir_version > LISTED_UNTIL || g.owner().is_some() || is_function {
            return g.inputs().to_vec();
        }
        let is_constant = |v: &ValueId| g.has_value(*v) && g.constant(*v).is_some();
        let mut listed: Vec<_> =
            old.inputs.iter().map(|(v, _)| *v).filter(|v| g.inputs().contains(v) || is_constant(v)).collect();
        for &v in g.inputs().iter().chain(g.initializers()) {
            if !listed.contains(&v) {
                listed.push(v);
            }
        }
        listed
    }

    /// Declared types of values in between. An entry goes with its value, and a leftover entry gives way to a new
    /// value of the same name.
    fn value_infos(&self, g: &Graph, old: &KeptGraph, message: &mut GraphProto, unknown: &mut Unknown) {
        for (value, kept) in &old.infos {
            let (info, branch) = match value {
                Some(v) if g.has_value(*v) && is_defined(g, *v) => self.info(g, *v, Some(kept)),
                Some(_) => continue,
                None if g.find_value(kept.message.name()).is_some() => continue,
                None => (kept.message.clone(), kept.unknown.clone()),
            };
            unknown.put(field::GRAPH_VALUE_INFO, message.value_info.len(), branch);
            message.value_info.push(info);
        }
    }

    fn info(&self, g: &Graph, v: ValueId, old: Option<&Kept<ValueInfoProto>>) -> (ValueInfoProto, Unknown) {
        let Kept { message: mut info, unknown } = old.cloned().unwrap_or_default();
        info.name = keep(info.name.as_ref(), self.name(g, v));
        if let Some(now) = &g.value(v).ty
            && !info.r#type.as_ref().map_or(old.is_some(), |t| says(t, now))
        {
            let denotation = info.r#type.and_then(|t| t.denotation);
            info.r#type = Some(TypeProto { denotation, ..type_message(now) });
        }
        (info, unknown)
    }

    fn initializer(
        &mut self,
        tensor: &TensorRef,
        name: &str,
        message: &mut GraphProto,
        unknown: &mut Unknown,
    ) -> Result<()> {
        if let Some(sparse) = tensor.source().as_any().downcast_ref::<SparseFileTensor>() {
            let mut proto: SparseTensorProto = sparse.message.clone();
            if let Some(values) = &mut proto.values {
                values.name = keep(values.name.as_ref(), name.to_owned());
            }
            unknown.put(field::GRAPH_SPARSE, message.sparse_initializer.len(), sparse.unknown.clone());
            message.sparse_initializer.push(proto);
            return Ok(());
        }
        let (mut proto, branch) = self.tensor(tensor, Role::Initializer)?;
        proto.name = keep(proto.name.as_ref(), name.to_owned());
        unknown.put(field::GRAPH_INITIALIZER, message.initializer.len(), branch);
        message.initializer.push(proto);
        Ok(())
    }

    fn tensor(&mut self, tensor: &TensorRef, role: Role) -> Result<(TensorProto, Unknown)> {
        let unknown = match tensor.source().as_any().downcast_ref::<FileTensor>() {
            Some(file) => file.unknown.clone(),
            None => Unknown::default(),
        };
        Ok(((self.store)(tensor, role)?, unknown))
    }

    fn node(&mut self, g: &Graph, id: NodeId) -> Result<(NodeProto, Unknown)> {
        let node = g.node(id);
        let new = KeptNode::default();
        let old = node.residue.get::<KeptNode>().unwrap_or(&new);
        let Kept { mut message, mut unknown } = old.kept.clone();
        message.input = g.node_inputs(id).into_iter().map(|v| self.slot(g, v)).collect();
        message.output = g.node_outputs(id).into_iter().map(|v| self.slot(g, v)).collect();
        message.name = keep(message.name.as_ref(), node.name.clone());
        message.op_type = keep(message.op_type.as_ref(), node.op_type.clone());
        message.domain = keep(message.domain.as_ref(), node.domain.spelling().to_owned());
        message.overload = keep(message.overload.as_ref(), node.overload.clone());
        let specs = message.device_configurations.iter_mut().flat_map(|c| &mut c.sharding_spec);
        for (spec, value) in specs.zip(&old.sharded) {
            if let Some(v) = value.filter(|v| g.has_value(*v)) {
                spec.tensor_name = keep(spec.tensor_name.as_ref(), self.name(g, v));
            }
        }
        (message.attribute, unknown) = self.attributes(&node.attrs, field::NODE_ATTRIBUTE, unknown)?;
        Ok((message, unknown))
    }

    fn attributes(
        &mut self,
        attrs: &Attrs,
        number: u32,
        mut unknown: Unknown,
    ) -> Result<(Vec<AttributeProto>, Unknown)> {
        let mut messages = Vec::new();
        for (i, attr) in attrs.iter().enumerate() {
            let (message, branch) = self.attribute(attr).with_context(|| format!("attribute \"{}\"", attr.name))?;
            messages.push(message);
            unknown.put(number, i, branch);
        }
        Ok((messages, unknown))
    }

    fn attribute(&mut self, attr: &NamedAttr) -> Result<(AttributeProto, Unknown)> {
        let old = attr.residue.get::<KeptAttr>();
        let Kept { mut message, mut unknown } = old.cloned().unwrap_or_default();
        message.name = keep(message.name.as_ref(), attr.name.clone());
        let kind = match &attr.value {
            Attr::Float(f) => {
                message.f = keep_or_new(old, message.f.as_ref(), *f);
                AttributeType::Float
            }
            Attr::Int(i) => {
                message.i = keep_or_new(old, message.i.as_ref(), *i);
                AttributeType::Int
            }
            Attr::String(s) => {
                message.s = keep_or_new(old, message.s.as_ref(), s.clone());
                AttributeType::String
            }
            Attr::Floats(v) => {
                message.floats.clone_from(v);
                AttributeType::Floats
            }
            Attr::Ints(v) => {
                message.ints.clone_from(v);
                AttributeType::Ints
            }
            Attr::Strings(v) => {
                message.strings.clone_from(v);
                AttributeType::Strings
            }
            Attr::Tensor(t) => {
                let (t, branch) = self.tensor(t, Role::Attribute)?;
                message.t = Some(t);
                unknown.put(field::ATTRIBUTE_T, 0, branch);
                AttributeType::Tensor
            }
            Attr::Tensors(tensors) => {
                for (i, t) in tensors.iter().enumerate() {
                    let (t, branch) = self.tensor(t, Role::Attribute)?;
                    message.tensors.push(t);
                    unknown.put(field::ATTRIBUTE_TENSORS, i, branch);
                }
                AttributeType::Tensors
            }
            Attr::Graph(id) => {
                let (g, branch) = self.graph(*id)?;
                message.g = Some(g);
                unknown.put(field::ATTRIBUTE_G, 0, branch);
                AttributeType::Graph
            }
            Attr::Graphs(ids) => {
                for (i, id) in ids.iter().enumerate() {
                    let (g, branch) = self.graph(*id)?;
                    message.graphs.push(g);
                    unknown.put(field::ATTRIBUTE_GRAPHS, i, branch);
                }
                AttributeType::Graphs
            }
            Attr::Type(ty) => {
                if message.tp.as_ref().is_none_or(|tp| value_type(tp) != *ty) {
                    message.tp = Some(type_message(ty));
                }
                AttributeType::TypeProto
            }
            Attr::Ref(name) => {
                message.ref_attr_name = Some(name.clone());
                message.r#type()
            }
            Attr::Opaque => message.r#type(),
        };
        if old.is_none() {
            message.r#type = Some(kind.into());
        }
        Ok((message, unknown))
    }

    fn function(&mut self, function: &Function) -> Result<(FunctionProto, Unknown)> {
        let new = KeptFunction::default();
        let old = function.residue.get::<KeptFunction>().unwrap_or(&new);
        let Kept { mut message, mut unknown } = old.clone();
        let (body, mut branch) = self.graph(function.body)?;
        for i in 0..body.node.len() {
            unknown.put(field::FUNCTION_NODE, i, branch.take(field::GRAPH_NODE, i));
        }
        for i in 0..body.value_info.len() {
            unknown.put(field::FUNCTION_VALUE_INFO, i, branch.take(field::GRAPH_VALUE_INFO, i));
        }
        let name = |info: ValueInfoProto| info.name.unwrap_or_default();
        message.name = keep(message.name.as_ref(), function.name.clone());
        message.input = body.input.into_iter().map(name).collect();
        message.output = body.output.into_iter().map(name).collect();
        message.attribute.clone_from(&function.attributes);
        (message.attribute_proto, unknown) =
            self.attributes(&function.attribute_defaults, field::FUNCTION_DEFAULTS, unknown)?;
        message.node = body.node;
        message.value_info = body.value_info;
        message.opset_import = opset_imports(&message.opset_import, &function.opsets);
        message.domain = keep(message.domain.as_ref(), function.domain.spelling().to_owned());
        message.overload = keep(message.overload.as_ref(), function.overload.clone());
        Ok((message, unknown))
    }
}

/// Whether something makes, stores or feeds the value, so that its declared type means something.
fn is_defined(g: &Graph, v: ValueId) -> bool {
    match g.value(v).def {
        Def::Node => g.producer(v).is_some(),
        Def::Free => g.n_uses(v) > 0,
        Def::Input | Def::Initializer(_) | Def::Overridable(_) | Def::Capture(..) => true,
    }
}

/// A new attribute states its value even when it is the default.
fn keep_or_new<T: Default + PartialEq>(attr: Option<&KeptAttr>, old: Option<&T>, now: T) -> Option<T> {
    if attr.is_none() { Some(now) } else { keep(old, now) }
}

/// The entry of a value in a list whose order may have changed.
fn entry(list: &[(ValueId, Kept<ValueInfoProto>)], i: usize, value: ValueId) -> Option<&Kept<ValueInfoProto>> {
    let same = |(v, _): &&(ValueId, Kept<ValueInfoProto>)| *v == value;
    list.get(i).filter(same).or_else(|| list.iter().find(same)).map(|(_, kept)| kept)
}

/// Whether a declared type holds for what is known now: it may say less, but nothing else.
fn says(declared: &TypeProto, now: &ValueType) -> bool {
    agrees(&value_type(declared), now)
}

fn agrees(declared: &ValueType, now: &ValueType) -> bool {
    match (declared, now) {
        (ValueType::Tensor(d), ValueType::Tensor(n)) | (ValueType::SparseTensor(d), ValueType::SparseTensor(n)) => {
            d.dtype.is_none_or(|d| n.dtype.is_none_or(|n| d == n))
                && shape_agrees(d.shape.as_deref(), n.shape.as_deref())
        }
        (ValueType::Sequence(d), ValueType::Sequence(n)) | (ValueType::Optional(d), ValueType::Optional(n)) => {
            agrees(d, n)
        }
        (ValueType::Map(dk, d), ValueType::Map(nk, n)) => dk == nk && agrees(d, n),
        (ValueType::Unknown, _) | (_, ValueType::Unknown) => true,
        _ => false,
    }
}

fn shape_agrees(declared: Option<&[Dim]>, now: Option<&[Dim]>) -> bool {
    let (Some(declared), Some(now)) = (declared, now) else { return true };
    let same = |(d, n): (&Dim, &Dim)| match (d.known(), n.known()) {
        (Some(d), Some(n)) => d == n,
        _ => true,
    };
    declared.len() == now.len() && declared.iter().zip(now).all(same)
}

/// A type as a message.
fn type_message(ty: &ValueType) -> TypeProto {
    let inner = |t: &ValueType| Some(Box::new(type_message(t)));
    let value = match ty {
        ValueType::Tensor(TensorType { dtype, shape }) => Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: dtype.map(|d| d.code()),
            shape: shape.as_deref().map(shape_message),
        })),
        ValueType::SparseTensor(TensorType { dtype, shape }) => {
            Some(type_proto::Value::SparseTensorType(type_proto::SparseTensor {
                elem_type: dtype.map(|d| d.code()),
                shape: shape.as_deref().map(shape_message),
            }))
        }
        ValueType::Sequence(t) => {
            Some(type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type: inner(t) })))
        }
        ValueType::Optional(t) => {
            Some(type_proto::Value::OptionalType(Box::new(type_proto::Optional { elem_type: inner(t) })))
        }
        ValueType::Map(key, t) => Some(type_proto::Value::MapType(Box::new(type_proto::Map {
            key_type: Some(key.code()),
            value_type: inner(t),
        }))),
        ValueType::Unknown => None,
    };
    TypeProto { value, denotation: None }
}

fn shape_message(shape: &[Dim]) -> TensorShapeProto {
    let dim = |d: &Dim| Dimension {
        value: match d {
            Dim::Known(n) => i64::try_from(*n).ok().map(dimension::Value::DimValue),
            Dim::Symbol(s) => Some(dimension::Value::DimParam(s.to_string())),
            Dim::Unknown => None,
        },
        denotation: None,
    };
    TensorShapeProto { dim: shape.iter().map(dim).collect() }
}
