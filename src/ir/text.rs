//! Prints a model in ONNX's textual syntax (`docs/Syntax.md` of the specification's repository); [`super::text_parse`]
//! reads it back. For `--dump-ir` and for test fixtures.
//!
//! What this prints, `onnx.parser` reads, with these extensions and deviations, each of which it refuses or reads as
//! something harmless:
//! - A tensor of more than [`PrintOptions::max_elements`] elements prints as type, shape and digest, in the form that
//!   the syntax has for external data: `float[64,3] w = ["sha256": "0123456789abcdef"]`. The digest is the start of the
//!   SHA-256 of the elements as they lie in memory on a little-endian machine, types of less than a byte one to a byte,
//!   strings each followed by a zero byte. Read back, such a tensor has a type and a shape but no elements.
//! - Elements of float16, bfloat16 and smaller floats print as their bits, which is how `onnx.parser` reads them.
//!   Elements of 4- and 2-bit types print one by one; `onnx.parser` expects them packed.
//! - Operators, domains, attributes and bodies of nodes whose names are no identifiers are quoted.
//! - A string attribute that is not UTF-8 prints as `x"00ff"`.
//! - A graph input or output whose elements' type is not known prints as `undefined[..]`, one of a type that the IR does
//!   not look into as `opaque()`.
//! - An attribute that the IR does not look into prints as `opaque()` too; its contents are not in the text.
//!
//! Printing what was read gives the same text.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::text_parse::Elsewhere;
use super::{Attr, Def, Dim, Function, Graph, GraphId, Model, Node, NodeId, TensorRef, TensorType, ValueId, ValueType};
use crate::tensor::{DType, Data, Tensor};

/// What to print.
#[derive(Debug, Clone, Copy)]
pub struct PrintOptions {
    /// Tensors of more elements print as a digest.
    pub max_elements: usize,
    /// Whether types of values that are neither inputs nor outputs are printed.
    pub value_types: bool,
}

impl Default for PrintOptions {
    fn default() -> Self {
        PrintOptions { max_elements: 32, value_types: true }
    }
}

/// The model in ONNX's textual syntax; see the module's documentation.
#[must_use]
pub fn print(model: &Model, options: &PrintOptions) -> String {
    let mut p = Printer { model, options, out: String::new() };
    p.header();
    p.graph(GraphId::MAIN, 0);
    p.out.push('\n');
    for f in &model.functions {
        p.function(f);
    }
    p.out
}

/// A type in ONNX's textual syntax: `float` has rank 0, `float[]` an unknown rank, `float[N,?,3]` rank 3.
#[must_use]
pub fn type_text(ty: &ValueType) -> String {
    match ty {
        ValueType::Tensor(t) => tensor_type_text(t),
        ValueType::SparseTensor(t) => format!("sparse_tensor({})", tensor_type_text(t)),
        ValueType::Sequence(t) => format!("seq({})", type_text(t)),
        ValueType::Optional(t) => format!("optional({})", type_text(t)),
        ValueType::Map(k, v) => format!("map({k}, {})", type_text(v)),
        ValueType::Unknown => "opaque()".to_owned(),
    }
}

fn tensor_type_text(t: &TensorType) -> String {
    let mut s = t.dtype.map_or("undefined", DType::name).to_owned();
    match &t.shape {
        None => s.push_str("[]"),
        Some(dims) if dims.is_empty() => {}
        Some(dims) => {
            let dims: Vec<_> = dims
                .iter()
                .map(|d| match d {
                    Dim::Known(n) => n.to_string(),
                    Dim::Symbol(name) => ident(name),
                    Dim::Unknown => "?".to_owned(),
                })
                .collect();
            let _ = write!(s, "[{}]", dims.join(","));
        }
    }
    s
}

/// The name, quoted unless it is an identifier that means nothing else.
pub(super) fn ident(name: &str) -> String {
    if is_identifier(name) && !is_type_word(name) { name.to_owned() } else { quoted(name) }
}

/// A string literal.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether a word starts a type.
pub(super) fn is_type_word(word: &str) -> bool {
    DType::from_name(word).is_some()
        || matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque" | "undefined")
}

/// The start of the SHA-256 of a tensor's elements, in hexadecimal; see the module's documentation.
#[must_use]
pub fn digest(t: &Tensor) -> String {
    let mut hash = Sha256::new();
    macro_rules! plain {
        ($($variant:ident)*) => {
            match t.data() {
                $(Data::$variant(b) => hash.update(bytemuck::cast_slice::<_, u8>(b.as_slice())),)*
                Data::Str(b) => b.as_slice().iter().for_each(|s| {
                    hash.update(s);
                    hash.update([0]);
                }),
            }
        };
    }
    plain!(F32 F64 F16 BF16 I8 I16 I32 I64 U8 U16 U32 U64 Bool C64 C128);
    hash.finalize().iter().take(8).fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

struct Printer<'a> {
    model: &'a Model,
    options: &'a PrintOptions,
    out: String,
}

impl Printer<'_> {
    fn header(&mut self) {
        let m = self.model;
        let mut fields =
            vec![format!("ir_version: {}", m.ir_version), format!("opset_import: {}", opset_text(&m.opsets))];
        if !m.producer_name.is_empty() {
            fields.push(format!("producer_name: {}", quoted(&m.producer_name)));
        }
        if !m.producer_version.is_empty() {
            fields.push(format!("producer_version: {}", quoted(&m.producer_version)));
        }
        if !m.metadata.is_empty() {
            let pairs: Vec<_> = m.metadata.iter().map(|(k, v)| format!("{}: {}", quoted(k), quoted(v))).collect();
            fields.push(format!("metadata_props: [{}]", pairs.join(", ")));
        }
        let _ = writeln!(self.out, "<\n  {}\n>", fields.join(",\n  "));
    }

    fn function(&mut self, f: &Function) {
        let mut fields = vec![format!("domain: {}", quoted(f.domain.spelling()))];
        if !f.overload.is_empty() {
            fields.push(format!("overload: {}", quoted(&f.overload)));
        }
        fields.push(format!("opset_import: {}", opset_text(&f.opsets)));
        let _ = write!(self.out, "<\n  {}\n>\n{}", fields.join(",\n  "), ident(&f.name));
        if !f.attributes.is_empty() || f.attribute_defaults.iter().next().is_some() {
            self.out.push_str(" <");
            let mut first = true;
            for a in f.attributes.iter().filter(|a| f.attribute_defaults.get(a).is_none()) {
                self.separate(&mut first);
                self.out.push_str(&ident(a));
            }
            for a in f.attribute_defaults.iter() {
                self.separate(&mut first);
                self.attr(&a.name, &a.value, 0);
            }
            self.out.push('>');
        }
        let g = self.model.graph(f.body);
        let names = |ids: &[ValueId]| ids.iter().map(|&v| ident(&g.value(v).name)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(self.out, " ({}) => ({})", names(g.inputs()), names(g.outputs()));
        self.stored_and_typed(f.body, 0, true);
        self.nodes(f.body, 0);
        self.out.push('\n');
    }

    fn separate(&mut self, first: &mut bool) {
        if !std::mem::replace(first, false) {
            self.out.push_str(", ");
        }
    }

    fn graph(&mut self, id: GraphId, indent: usize) {
        let g = self.model.graph(id);
        let name = if is_identifier(&g.name) && !is_type_word(&g.name) && !is_float_word(&g.name) {
            g.name.clone()
        } else {
            quoted(&g.name)
        };
        let _ = write!(self.out, "{name} (");
        let mut first = true;
        for &v in g.inputs() {
            self.separate(&mut first);
            self.typed_name(id, v);
            if let Def::Initializer(t) | Def::Overridable(t) = &g.value(v).def {
                self.out.push_str(" = ");
                self.tensor_data(t);
            }
        }
        self.out.push_str(") => (");
        let mut first = true;
        for &v in g.outputs() {
            self.separate(&mut first);
            self.typed_name(id, v);
        }
        self.out.push_str(")\n");
        self.stored_and_typed(id, indent, false);
        self.nodes(id, indent);
    }

    fn typed_name(&mut self, graph: GraphId, v: ValueId) {
        if let Some(ty) = &self.model.graph(graph).value(v).ty {
            let _ = write!(self.out, "{} ", type_text(ty));
        }
        self.out.push_str(&ident(self.model.value_name(graph, v)));
    }

    /// The block of initializers and of types of values that are no inputs and outputs.
    fn stored_and_typed(&mut self, id: GraphId, indent: usize, is_function: bool) {
        let g = self.model.graph(id);
        let pad = " ".repeat(indent + 2);
        let mut entries = Vec::new();
        for &v in g.initializers().iter().filter(|v| !g.inputs().contains(v)) {
            if let Def::Initializer(t) | Def::Overridable(t) = &g.value(v).def {
                let ty = ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape()));
                let start = self.out.len();
                let _ = write!(self.out, "{} {} = ", type_text(&ty), ident(&g.value(v).name));
                self.tensor_data(t);
                entries.push(self.out.split_off(start));
            }
        }
        if self.options.value_types {
            let listed = |v: ValueId| !is_function && (g.inputs().contains(&v) || g.outputs().contains(&v));
            let made = order(g).into_iter().flat_map(|n| g.node_outputs(n)).flatten();
            let inputs = g.inputs().iter().copied().filter(|_| is_function);
            for v in inputs.chain(made).filter(|&v| !listed(v)) {
                if let Some(ty) = g.value(v).ty.as_ref().filter(|ty| is_expressible(ty)) {
                    entries.push(format!("{} {}", type_text(ty), ident(&g.value(v).name)));
                }
            }
        }
        if !entries.is_empty() {
            let end = " ".repeat(indent);
            let _ = writeln!(self.out, "{end}<\n{pad}{}\n{end}>", entries.join(&format!(",\n{pad}")));
        }
    }

    fn nodes(&mut self, id: GraphId, indent: usize) {
        let g = self.model.graph(id);
        let _ = writeln!(self.out, "{}{{", " ".repeat(indent));
        for n in order(g) {
            self.out.push_str(&" ".repeat(indent + 2));
            self.node(id, n, indent + 2);
            self.out.push('\n');
        }
        let _ = write!(self.out, "{}}}", " ".repeat(indent));
        if indent == 0 {
            self.out.push('\n');
        }
    }

    fn node(&mut self, graph: GraphId, id: NodeId, indent: usize) {
        let (model, g) = (self.model, self.model.graph(graph));
        let node = g.node(id);
        if !node.name.is_empty() {
            let _ = write!(self.out, "[{}] ", ident(&node.name));
        }
        let names = |slots: Vec<Option<ValueId>>| {
            let names = slots.iter().map(|v| v.map_or("\"\"".to_owned(), |v| ident(model.value_name(graph, v))));
            names.collect::<Vec<_>>().join(", ")
        };
        let outputs = names(g.node_outputs(id));
        let _ = write!(self.out, "{outputs}{}= {}", if outputs.is_empty() { "" } else { " " }, operator(node));
        let mut first = true;
        for a in node.attrs.iter() {
            self.out.push_str(if first { " <" } else { ", " });
            first = false;
            self.attr(&a.name, &a.value, indent);
        }
        let close = if first { " " } else { "> " };
        let _ = write!(self.out, "{close}({})", names(g.node_inputs(id)));
    }

    fn attr(&mut self, name: &str, value: &Attr, indent: usize) {
        let name = if is_identifier(name) { name.to_owned() } else { quoted(name) };
        self.out.push_str(&name);
        macro_rules! list {
            ($kind:literal, $v:expr, $x:ident => $e:expr) => {{
                // The type of an empty list is not to be seen.
                self.out.push_str(if $v.is_empty() { concat!(": ", $kind, " = []") } else { " = [" });
                let mut first = true;
                for $x in $v {
                    self.separate(&mut first);
                    $e;
                }
                if !$v.is_empty() {
                    self.out.push(']');
                }
            }};
        }
        match value {
            Attr::Floats(v) => list!("floats", v, x => { let _ = write!(self.out, "{x:?}"); }),
            Attr::Ints(v) => list!("ints", v, x => { let _ = write!(self.out, "{x}"); }),
            Attr::Strings(v) => list!("strings", v, x => self.out.push_str(&bytes_text(x))),
            Attr::Tensors(v) => list!("tensors", v, x => self.tensor(x)),
            Attr::Graphs(v) => list!("graphs", v, x => self.graph(*x, indent)),
            _ => {
                self.out.push_str(" = ");
                match value {
                    Attr::Float(x) => write!(self.out, "{x:?}").unwrap_or_default(),
                    Attr::Int(x) => write!(self.out, "{x}").unwrap_or_default(),
                    Attr::String(s) => self.out.push_str(&bytes_text(s)),
                    Attr::Tensor(t) => self.tensor(t),
                    Attr::Graph(g) => self.graph(*g, indent),
                    Attr::Type(t) => self.out.push_str(&type_text(t)),
                    Attr::Ref(name) => write!(self.out, "@{}", ident(name)).unwrap_or_default(),
                    _ => self.out.push_str("opaque()"),
                }
            }
        }
    }

    fn tensor(&mut self, t: &TensorRef) {
        let ty = ValueType::Tensor(TensorType::fixed(t.dtype(), t.shape()));
        let _ = write!(self.out, "{} = ", type_text(&ty));
        self.tensor_data(t);
    }

    fn tensor_data(&mut self, t: &TensorRef) {
        if let Some(e) = t.source().as_any().downcast_ref::<Elsewhere>() {
            let pairs: Vec<_> = e.entries.iter().map(|(k, v)| format!("{}: {}", quoted(k), quoted(v))).collect();
            let _ = write!(self.out, "[{}]", pairs.join(", "));
            return;
        }
        match t.get() {
            Ok(t) if t.len() <= self.options.max_elements => elements(&mut self.out, t),
            Ok(t) => {
                let _ = write!(self.out, "[\"sha256\": \"{}\"]", digest(t));
            }
            Err(e) => {
                let _ = write!(self.out, "[\"error\": {}]", quoted(&format!("{e:#}")));
            }
        }
    }
}

/// Whether ONNX's syntax has words for a type.
fn is_expressible(ty: &ValueType) -> bool {
    match ty {
        ValueType::Tensor(t) | ValueType::SparseTensor(t) => t.dtype.is_some(),
        ValueType::Sequence(t) | ValueType::Optional(t) | ValueType::Map(_, t) => is_expressible(t),
        ValueType::Unknown => false,
    }
}

/// Topological order; a graph with a cycle prints all the same, in the file's order.
fn order(g: &Graph) -> Vec<NodeId> {
    g.order().unwrap_or_else(|_| {
        let mut nodes: Vec<_> = g.nodes().collect();
        nodes.sort_by_key(|&n| (g.node(n).pos, n));
        nodes
    })
}

fn operator(node: &Node) -> String {
    let mut s = String::new();
    let domain = node.domain.spelling();
    if !domain.is_empty() {
        let parts = domain.split('.').map(|p| if is_identifier(p) { p.to_owned() } else { quoted(p) });
        let _ = write!(s, "{}.", parts.collect::<Vec<_>>().join("."));
    }
    s.push_str(&if is_identifier(&node.op_type) { node.op_type.clone() } else { quoted(&node.op_type) });
    if !node.overload.is_empty() {
        let _ = write!(
            s,
            ":{}",
            if is_identifier(&node.overload) { node.overload.clone() } else { quoted(&node.overload) }
        );
    }
    s
}

/// Whether the syntax takes the word for a number.
pub(super) fn is_float_word(word: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|w| word.eq_ignore_ascii_case(w))
}

fn opset_text(opsets: &[(super::Domain, i64)]) -> String {
    let pairs: Vec<_> = opsets.iter().map(|(d, v)| format!("{} : {v}", quoted(d.spelling()))).collect();
    format!("[{}]", pairs.join(", "))
}

fn bytes_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(s) => quoted(s),
        Err(_) => {
            let mut s = String::from("x\"");
            for b in bytes {
                let _ = write!(s, "{b:02x}");
            }
            s + "\""
        }
    }
}

fn elements(out: &mut String, t: &Tensor) {
    fn list<T>(out: &mut String, v: &[T], write: impl Fn(&mut String, &T)) {
        out.push('{');
        for (i, x) in v.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            write(out, x);
        }
        out.push('}');
    }
    macro_rules! number {
        ($b:ident, $fmt:literal) => {
            list(out, $b.as_slice(), |o, x| write!(o, $fmt, x).unwrap_or_default())
        };
    }
    match t.data() {
        Data::F32(b) => number!(b, "{:?}"),
        Data::F64(b) => number!(b, "{:?}"),
        Data::F16(b) => list(out, b.as_slice(), |o, x| write!(o, "{}", x.to_bits()).unwrap_or_default()),
        Data::BF16(b) => list(out, b.as_slice(), |o, x| write!(o, "{}", x.to_bits()).unwrap_or_default()),
        Data::I8(b) => number!(b, "{}"),
        Data::I16(b) => number!(b, "{}"),
        Data::I32(b) => number!(b, "{}"),
        Data::I64(b) => number!(b, "{}"),
        Data::U8(b) => number!(b, "{}"),
        Data::U16(b) => number!(b, "{}"),
        Data::U32(b) => number!(b, "{}"),
        Data::U64(b) => number!(b, "{}"),
        Data::Bool(b) => list(out, b.as_slice(), |o, &x| write!(o, "{}", u8::from(x)).unwrap_or_default()),
        Data::Str(b) => list(out, b.as_slice(), |o, x| o.push_str(&quoted(x))),
        Data::C64(b) => list(out, b.as_slice(), |o, x| write!(o, "{:?}, {:?}", x.re, x.im).unwrap_or_default()),
        Data::C128(b) => list(out, b.as_slice(), |o, x| write!(o, "{:?}, {:?}", x.re, x.im).unwrap_or_default()),
    }
}
