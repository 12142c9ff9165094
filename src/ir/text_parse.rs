//! Parses ONNX's textual syntax; [`super::text`] says what is printed and where it deviates.
//!
//! The text becomes a tree first ([`Parser`]), so that names may be used before they are defined, and the tree becomes
//! a model in [`super::text_lower`].

use half::{bf16, f16};

use super::text::is_type_word;
use super::text_lower::Lower;
use super::{
    Attr, Attrs, Dim, Domain, Function, Graph, GraphId, Model, Node, TensorRef, TensorSource, TensorType, ValueType,
};
use crate::error::{Result, anyhow, bail, ensure};
use crate::tensor::{C64, C128, DType, Element, Tensor};

/// A tensor of which the text has type and shape but no elements: a digest, or a place outside the text.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    dtype: DType,
    shape: Vec<usize>,
    /// What the text says about the elements, as key and value.
    pub entries: Vec<(String, String)>,
}

impl TensorSource for Elsewhere {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn load(&self) -> Result<Tensor> {
        bail!("the text gives only type and shape of this tensor ({}{:?})", self.dtype, self.shape)
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Reads a model in ONNX's textual syntax.
///
/// # Errors
/// The text does not follow the syntax; the error gives line and column.
pub fn parse(text: &str) -> Result<Model> {
    let mut p = Parser { text, at: 0 };
    let result = p.model();
    // The parser stands behind the word that it did not expect.
    result.map_err(|e| {
        let before = &text[..p.at.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        anyhow!("line {line}, column {column}: {e}")
    })
}

/// A graph as parsed.
#[derive(Default)]
pub(super) struct PGraph {
    pub(super) name: String,
    pub(super) inputs: Vec<PValue>,
    pub(super) outputs: Vec<PValue>,
    pub(super) others: Vec<PValue>,
    pub(super) nodes: Vec<PNode>,
}

/// A value with what the text says of it.
pub(super) struct PValue {
    pub(super) name: String,
    pub(super) ty: Option<ValueType>,
    pub(super) tensor: Option<TensorRef>,
}

/// A node with names for values.
pub(super) struct PNode {
    pub(super) node: Node,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) attrs: Vec<(String, PAttr)>,
}

/// An attribute; bodies are still trees.
pub(super) enum PAttr {
    Plain(Attr),
    Graph(PGraph),
    Graphs(Vec<PGraph>),
}

enum Number {
    Int(i128),
    Float(f64),
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    // ---- words ----

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn next(&mut self) -> Option<char> {
        self.skip_space();
        self.rest().chars().next()
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.next() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn expect(&mut self, c: char) -> Result<()> {
        let found = self.next();
        ensure!(found == Some(c), "expected '{c}', found {}", found.map_or("the end".to_owned(), |f| format!("'{f}'")));
        self.at += c.len_utf8();
        Ok(())
    }

    fn peek_word(&mut self) -> &'a str {
        self.skip_space();
        let rest = self.rest();
        if !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return "";
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    }

    fn word(&mut self) -> Result<&'a str> {
        let word = self.peek_word();
        ensure!(!word.is_empty(), "expected a name");
        self.at += word.len();
        Ok(word)
    }

    fn name(&mut self) -> Result<String> {
        if self.next() == Some('"') { self.string() } else { Ok(self.word()?.to_owned()) }
    }

    fn string(&mut self) -> Result<String> {
        self.expect('"')?;
        let mut s = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(s);
                }
                '\\' => s.push(chars.next().ok_or_else(|| anyhow!("the string does not end"))?.1),
                _ => s.push(c),
            }
        }
        bail!("the string does not end")
    }

    fn number(&mut self) -> Result<Number> {
        self.skip_space();
        let rest = self.rest();
        let unsigned = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - unsigned.len();
        if unsigned.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let end = unsigned.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(unsigned.len());
            let x =
                rest[..sign + end].parse().map_err(|_| anyhow!("expected a number, found '{}'", &unsigned[..end]))?;
            self.at += sign + end;
            return Ok(Number::Float(x));
        }
        let mut end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let mut is_float = unsigned[..end].contains('.');
        if end > 0 && unsigned[end..].starts_with(['e', 'E']) {
            is_float = true;
            end += 1;
            end += usize::from(unsigned[end..].starts_with(['+', '-']));
            end += unsigned[end..].find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len() - end);
        }
        let word = &rest[..sign + end];
        let bad = || anyhow!("expected a number");
        let number = if is_float {
            Number::Float(word.parse().map_err(|_| bad())?)
        } else {
            Number::Int(word.parse().map_err(|_| bad())?)
        };
        self.at += word.len();
        Ok(number)
    }

    fn int(&mut self) -> Result<i64> {
        match self.number()? {
            Number::Int(i) => i64::try_from(i).map_err(|_| anyhow!("{i} does not fit 64 bits")),
            Number::Float(_) => bail!("expected an integer"),
        }
    }

    /// Items between `open` and `close`, separated by commas.
    fn list<T>(&mut self, open: char, close: char, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        if self.take(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if !self.take(',') {
                self.expect(close)?;
                return Ok(items);
            }
        }
    }

    // ---- the model ----

    fn model(&mut self) -> Result<Model> {
        let mut model = Model::new(0, 0);
        model.opsets.clear();
        if self.next() == Some('<') {
            self.list('<', '>', |p| p.model_field(&mut model))?;
        }
        let graph = self.graph()?;
        let mut lower = Lower::new(model);
        lower.graph(GraphId::MAIN, graph)?;
        while self.next().is_some() {
            self.function(&mut lower)?;
        }
        Ok(lower.model)
    }

    fn model_field(&mut self, model: &mut Model) -> Result<()> {
        let key = self.word()?;
        self.expect(':')?;
        match key {
            "ir_version" => model.ir_version = self.int()?,
            "opset_import" => model.opsets = self.opsets()?,
            "producer_name" => model.producer_name = self.string()?,
            "producer_version" => model.producer_version = self.string()?,
            "metadata_props" => model.metadata = self.pairs()?,
            // The IR leaves these to the file.
            "domain" | "doc_string" => drop(self.string()?),
            "model_version" => drop(self.int()?),
            other => bail!("a model has no field '{other}'"),
        }
        Ok(())
    }

    fn opsets(&mut self) -> Result<Vec<(Domain, i64)>> {
        self.list('[', ']', |p| {
            let domain = p.string()?;
            p.expect(':')?;
            Ok((Domain::new(&domain), p.int()?))
        })
    }

    fn pairs(&mut self) -> Result<Vec<(String, String)>> {
        self.list('[', ']', |p| {
            let key = p.string()?;
            p.expect(':')?;
            Ok((key, p.string()?))
        })
    }

    fn function(&mut self, lower: &mut Lower) -> Result<()> {
        let (mut domain, mut overload, mut opsets) = (String::new(), String::new(), Vec::new());
        if self.next() == Some('<') {
            self.list('<', '>', |p| {
                let key = p.word()?;
                p.expect(':')?;
                match key {
                    "domain" => domain = p.string()?,
                    "overload" => overload = p.string()?,
                    "opset_import" => opsets = p.opsets()?,
                    "doc_string" => drop(p.string()?),
                    other => bail!("a function has no field '{other}'"),
                }
                Ok(())
            })?;
        }
        let name = self.name()?;
        let (mut attributes, mut attribute_defaults) = (Vec::new(), Attrs::default());
        if self.next() == Some('<') {
            self.list('<', '>', |p| {
                let name = p.name()?;
                if !matches!(p.next(), Some(':' | '=')) {
                    attributes.push(name);
                    return Ok(());
                }
                match p.attr_value()? {
                    PAttr::Plain(a) => attribute_defaults.set(&name, a),
                    _ => bail!("a default cannot be a graph"),
                }
                Ok(())
            })?;
        }
        let mut graph = PGraph { name: name.clone(), ..PGraph::default() };
        graph.inputs = self.list('(', ')', Self::value)?;
        self.expect('=')?;
        self.expect('>')?;
        graph.outputs = self.list('(', ')', Self::value)?;
        self.body(&mut graph)?;
        let body = lower.model.add_graph(Graph::new(&name));
        lower.graph(body, graph)?;
        let domain = Domain::new(&domain);
        let f = Function {
            name,
            domain,
            overload,
            attributes,
            attribute_defaults,
            opsets,
            body,
            residue: Default::default(),
        };
        lower.model.functions.push(f);
        Ok(())
    }

    fn graph(&mut self) -> Result<PGraph> {
        let name = self.name()?;
        self.graph_named(name)
    }

    fn graph_named(&mut self, name: String) -> Result<PGraph> {
        let mut graph = PGraph { name, ..PGraph::default() };
        graph.inputs = self.list('(', ')', Self::value)?;
        self.expect('=')?;
        self.expect('>')?;
        graph.outputs = self.list('(', ')', Self::value)?;
        self.body(&mut graph)?;
        Ok(graph)
    }

    fn body(&mut self, graph: &mut PGraph) -> Result<()> {
        if self.next() == Some('<') {
            graph.others = self.list('<', '>', Self::value)?;
        }
        self.expect('{')?;
        while !self.take('}') {
            let node = self.node()?;
            graph.nodes.push(node);
        }
        Ok(())
    }

    fn value(&mut self) -> Result<PValue> {
        let ty = if is_type_word(self.peek_word()) { Some(self.ty()?) } else { None };
        let name = self.name()?;
        let tensor = if self.take('=') {
            let ty = ty.as_ref().ok_or_else(|| anyhow!("a stored tensor needs a type"))?;
            Some(self.tensor_data(ty)?)
        } else {
            None
        };
        Ok(PValue { name, ty, tensor })
    }

    fn ty(&mut self) -> Result<ValueType> {
        let word = self.word()?;
        Ok(match word {
            "seq" | "optional" | "sparse_tensor" => {
                self.expect('(')?;
                let inner = self.ty()?;
                self.expect(')')?;
                match (word, inner) {
                    ("seq", inner) => ValueType::Sequence(Box::new(inner)),
                    ("optional", inner) => ValueType::Optional(Box::new(inner)),
                    (_, ValueType::Tensor(t)) => ValueType::SparseTensor(t),
                    _ => bail!("a sparse tensor holds numbers"),
                }
            }
            "map" => {
                self.expect('(')?;
                let key = self.word()?;
                let key = DType::from_name(key).ok_or_else(|| anyhow!("'{key}' is no element type"))?;
                self.expect(',')?;
                let value = self.ty()?;
                self.expect(')')?;
                ValueType::Map(key, Box::new(value))
            }
            "opaque" => {
                // The IR does not look inside.
                self.list('(', ')', |p| {
                    p.word()?;
                    while p.take('.') {
                        p.word()?;
                    }
                    Ok(())
                })?;
                ValueType::Unknown
            }
            _ => {
                let dtype = DType::from_name(word);
                ensure!(dtype.is_some() || word == "undefined", "'{word}' is no type");
                let shape = if self.next() == Some('[') {
                    let dims = self.list('[', ']', Self::dim)?;
                    if dims.is_empty() { None } else { Some(dims) }
                } else {
                    Some(Vec::new())
                };
                ValueType::Tensor(TensorType { dtype, shape })
            }
        })
    }

    fn dim(&mut self) -> Result<Dim> {
        if self.take('?') {
            return Ok(Dim::Unknown);
        }
        if self.next().is_some_and(|c| c.is_ascii_digit()) {
            let n = self.int()?;
            return Ok(Dim::Known(usize::try_from(n).map_err(|_| anyhow!("{n} is no size"))?));
        }
        Ok(Dim::Symbol(self.name()?.into()))
    }

    fn node(&mut self) -> Result<PNode> {
        let mut label = String::new();
        if self.take('[') {
            label = self.name()?;
            self.expect(']')?;
        }
        let outputs = self.ids('=')?;
        self.expect('=')?;
        let mut path = vec![self.name()?];
        while self.take('.') {
            path.push(self.name()?);
        }
        let op = path.pop().unwrap_or_default();
        let mut node = Node::new(&op).domain(Domain::new(&path.join("."))).named(label);
        if self.take(':') {
            node.overload = self.name()?;
        }
        let mut attrs = self.attrs()?;
        self.expect('(')?;
        let inputs = self.ids(')')?;
        self.expect(')')?;
        if attrs.is_empty() {
            attrs = self.attrs()?;
        }
        Ok(PNode { node, inputs, outputs, attrs })
    }

    /// Names up to `end`; an empty one may be `""` or nothing before a comma.
    fn ids(&mut self, end: char) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        while self.next() != Some(end) {
            ids.push(if self.next() == Some(',') { String::new() } else { self.name()? });
            if !self.take(',') {
                break;
            }
        }
        Ok(ids)
    }

    fn attrs(&mut self) -> Result<Vec<(String, PAttr)>> {
        if self.next() != Some('<') {
            return Ok(Vec::new());
        }
        self.list('<', '>', |p| {
            let name = p.name()?;
            Ok((name, p.attr_value()?))
        })
    }

    fn attr_value(&mut self) -> Result<PAttr> {
        let mut kind = "";
        if self.take(':') {
            kind = self.word()?;
        }
        self.expect('=')?;
        if self.next() != Some('[') {
            return self.single_attr(kind);
        }
        let kind = kind.strip_suffix('s').unwrap_or(kind);
        let items = self.list('[', ']', |p| p.single_attr(kind))?;
        Self::attr_list(kind, items)
    }

    fn attr_list(kind: &str, items: Vec<PAttr>) -> Result<PAttr> {
        macro_rules! all {
            ($items:ident, $variant:ident, $list:ident) => {
                PAttr::Plain(Attr::$list(
                    $items
                        .into_iter()
                        .map(|a| match a {
                            PAttr::Plain(Attr::$variant(x)) => Ok(x),
                            _ => Err(anyhow!("the elements of a list are of one kind")),
                        })
                        .collect::<Result<_>>()?,
                ))
            };
        }
        // A list that mixes 1 and 1.5 holds floats.
        let has_float = items.iter().any(|a| matches!(a, PAttr::Plain(Attr::Float(_))));
        let items: Vec<_> = items
            .into_iter()
            .map(|a| match a {
                PAttr::Plain(Attr::Int(i)) if has_float => PAttr::Plain(Attr::Float(i as f32)),
                a => a,
            })
            .collect();
        Ok(match (items.first(), kind) {
            (Some(PAttr::Plain(Attr::Float(_))), _) | (None, "float") => all!(items, Float, Floats),
            (Some(PAttr::Plain(Attr::Int(_))), _) | (None, "int") => all!(items, Int, Ints),
            (Some(PAttr::Plain(Attr::String(_))), _) | (None, "string") => all!(items, String, Strings),
            (Some(PAttr::Plain(Attr::Tensor(_))), _) | (None, "tensor") => all!(items, Tensor, Tensors),
            (Some(PAttr::Graph(_)), _) | (None, "graph") => PAttr::Graphs(
                items
                    .into_iter()
                    .map(|a| if let PAttr::Graph(g) = a { Ok(g) } else { Err(anyhow!("expected a graph")) })
                    .collect::<Result<_>>()?,
            ),
            (None, "") => bail!("an empty list needs a kind, as in 'axes: ints = []'"),
            _ => bail!("a list of this kind is not supported"),
        })
    }

    fn single_attr(&mut self, kind: &str) -> Result<PAttr> {
        let c = self.next();
        let word = self.peek_word();
        if self.take('@') {
            return Ok(PAttr::Plain(Attr::Ref(self.name()?)));
        }
        if self.rest().starts_with("x\"") {
            return self.hex().map(|b| PAttr::Plain(Attr::String(b.into())));
        }
        if c == Some('"') {
            let s = self.string()?;
            return Ok(if self.next() == Some('(') {
                PAttr::Graph(self.graph_named(s)?)
            } else {
                PAttr::Plain(Attr::String(s.into_bytes().into()))
            });
        }
        if is_type_word(word) {
            let ty = self.ty()?;
            let has_name = self.next() == Some('"') || !self.peek_word().is_empty();
            if has_name {
                // A tensor's own name means nothing inside an attribute.
                self.name()?;
            }
            return Ok(PAttr::Plain(if self.take('=') || has_name || self.next() == Some('{') {
                Attr::Tensor(self.tensor_data(&ty)?)
            } else if ty == ValueType::Unknown {
                Attr::Opaque
            } else {
                Attr::Type(ty)
            }));
        }
        if !word.is_empty() && !super::text::is_float_word(word) {
            return Ok(PAttr::Graph(self.graph()?));
        }
        Ok(PAttr::Plain(match self.number()? {
            Number::Int(i) if kind == "float" => Attr::Float(i as f32),
            Number::Int(i) => Attr::Int(i64::try_from(i).map_err(|_| anyhow!("{i} does not fit 64 bits"))?),
            // Parsed as the 64-bit number nearest to the text and rounded once more, which could differ from one
            // rounding only for texts of more digits than a 32-bit float prints with.
            Number::Float(x) => Attr::Float(x as f32),
        }))
    }

    fn hex(&mut self) -> Result<Vec<u8>> {
        self.at += 1;
        let s = self.string()?;
        ensure!(s.len() % 2 == 0 && s.is_ascii(), "a hexadecimal string has an even number of digits");
        (0..s.len() / 2)
            .map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| anyhow!("no hexadecimal string")))
            .collect()
    }

    fn tensor_data(&mut self, ty: &ValueType) -> Result<TensorRef> {
        let (Some(dtype), Some(shape)) = (ty.dtype(), ty.as_tensor().and_then(TensorType::fixed_shape)) else {
            bail!("a stored tensor needs a fixed shape")
        };
        if self.next() == Some('[') {
            let entries = self.pairs()?;
            return Ok(TensorRef::new(Elsewhere { dtype, shape, entries }));
        }
        macro_rules! elements {
            ($item:expr) => {
                Self::tensor(dtype, &shape, self.list('{', '}', $item)?)
            };
        }
        macro_rules! ints {
            ($t:ty) => {
                elements!(|p| match p.number()? {
                    Number::Int(i) => <$t>::try_from(i).map_err(|_| anyhow!("{i} does not fit {dtype}")),
                    Number::Float(_) => bail!("expected an integer"),
                })
            };
        }
        match dtype {
            DType::F32 => elements!(|p| Ok(p.float()? as f32)),
            DType::F64 => elements!(Self::float),
            DType::F16 => elements!(|p| p.bits().map(|b| b.map_or_else(f16::from_f64, f16::from_bits))),
            DType::BF16 => elements!(|p| p.bits().map(|b| b.map_or_else(bf16::from_f64, bf16::from_bits))),
            DType::I8 | DType::I4 | DType::I2 => ints!(i8),
            DType::I16 => ints!(i16),
            DType::I32 => ints!(i32),
            DType::I64 => ints!(i64),
            DType::U16 => ints!(u16),
            DType::U32 => ints!(u32),
            DType::U64 => ints!(u64),
            DType::Bool => elements!(|p| Ok(p.int()? != 0)),
            DType::Str => elements!(Self::string),
            DType::C64 | DType::C128 => {
                let v = self.list('{', '}', Self::float)?;
                ensure!(v.len() % 2 == 0, "a complex number has two parts");
                let pairs = v.chunks_exact(2);
                if dtype == DType::C64 {
                    Self::tensor(dtype, &shape, pairs.map(|c| C64::new(c[0] as f32, c[1] as f32)).collect())
                } else {
                    Self::tensor(dtype, &shape, pairs.map(|c| C128::new(c[0], c[1])).collect())
                }
            }
            _ => ints!(u8),
        }
    }

    fn tensor<T: Element>(dtype: DType, shape: &[usize], v: Vec<T>) -> Result<TensorRef> {
        Ok(Tensor::from_buf(dtype, shape, T::wrap(v.into()))?.into())
    }

    fn float(&mut self) -> Result<f64> {
        Ok(match self.number()? {
            Number::Int(i) => i as f64,
            Number::Float(x) => x,
        })
    }

    /// An integer is the bits of a 16-bit float, a number with a point its value.
    fn bits(&mut self) -> Result<std::result::Result<u16, f64>> {
        Ok(match self.number()? {
            Number::Int(i) => Ok(u16::try_from(i).map_err(|_| anyhow!("{i} does not fit 16 bits"))?),
            Number::Float(x) => Err(x),
        })
    }
}
