//! What an operator sees when it is evaluated.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use crate::error::{Context, Result, anyhow, bail};
use crate::ir::{Attr, Attrs, GraphId, TensorRef, ValueType};
use crate::tensor::{DType, Tensor};

/// A value at run time.
#[derive(Debug, Clone)]
pub enum Item {
    /// A dense tensor.
    Tensor(Tensor),
    /// A sequence.
    Sequence(Arc<Vec<Item>>),
    /// A value or nothing.
    Optional(Option<Arc<Item>>),
    /// A map with keys in order (`ai.onnx.ml`).
    Map(Arc<Vec<(Item, Item)>>),
}

impl From<Tensor> for Item {
    fn from(t: Tensor) -> Self {
        Item::Tensor(t)
    }
}

impl From<Tensor> for Vec<Item> {
    fn from(t: Tensor) -> Self {
        vec![Item::Tensor(t)]
    }
}

impl Item {
    /// The tensor, if it is one.
    #[must_use]
    pub fn tensor(&self) -> Option<&Tensor> {
        if let Item::Tensor(t) = self { Some(t) } else { None }
    }

    /// The tensor by value.
    ///
    /// # Errors
    /// It is something else.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Item::Tensor(t) => Ok(t),
            other => bail!("is {}, expected a tensor", other.kind()),
        }
    }

    /// What it is, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Item::Tensor(_) => "a tensor",
            Item::Sequence(_) => "a sequence",
            Item::Optional(_) => "an optional",
            Item::Map(_) => "a map",
        }
    }
}

/// Runs bodies of control-flow nodes; the interpreter implements it.
pub trait Bodies {
    /// Runs a body with these inputs; outer values are there already. Gives the body's outputs.
    ///
    /// # Errors
    /// Evaluation inside fails.
    fn run(&self, body: GraphId, inputs: Vec<Item>) -> Result<Vec<Item>>;

    /// What is known of the types of a body's outputs, for when it never runs.
    fn output_types(&self, body: GraphId) -> Vec<Option<ValueType>> {
        let _ = body;
        Vec::new()
    }
}

/// State of a step that lives as long as the compiled plan and is shared between runs: packed weights and the like.
pub type Shared = OnceLock<Box<dyn Any + Send + Sync>>;

/// One evaluation of an operator.
pub struct Call<'a> {
    /// The operator's name, for families that share an `eval`.
    pub op_type: &'a str,
    /// Attributes.
    pub attrs: &'a Attrs,
    /// Version of the operator's domain.
    pub opset: i64,
    /// Inputs; `None` for an empty slot. Owned: the last user of a value holds its only reference and may write in place.
    pub inputs: Vec<Option<Item>>,
    /// For each input, whether it is the same stored constant in every run.
    pub constant: &'a [bool],
    /// For each output slot of the node, whether anybody wants it.
    pub wanted: &'a [bool],
    /// Threads that the operator may use, through `rayon`'s current pool.
    pub threads: usize,
    /// Seed of this step for random operators.
    pub seed: u64,
    /// Runs the node's bodies.
    pub bodies: &'a dyn Bodies,
    /// State that is shared between runs.
    pub shared: &'a Shared,
}

impl Call<'_> {
    /// An input item.
    ///
    /// # Errors
    /// The slot is empty.
    pub fn item(&self, slot: usize) -> Result<&Item> {
        self.inputs.get(slot).and_then(Option::as_ref).ok_or_else(|| anyhow!("input {slot} is missing"))
    }

    /// An input tensor.
    ///
    /// # Errors
    /// The slot is empty or holds no tensor.
    pub fn input(&self, slot: usize) -> Result<&Tensor> {
        let item = self.item(slot)?;
        item.tensor().ok_or_else(|| anyhow!("input {slot} is {}, expected a tensor", item.kind()))
    }

    /// An optional input tensor; `None` for an empty slot.
    ///
    /// # Errors
    /// The slot holds no tensor.
    pub fn optional(&self, slot: usize) -> Result<Option<&Tensor>> {
        match self.inputs.get(slot) {
            Some(Some(_)) => self.input(slot).map(Some),
            _ => Ok(None),
        }
    }

    /// An input tensor by value, for writing in place; the slot is empty afterwards.
    ///
    /// # Errors
    /// The slot is empty or holds no tensor.
    pub fn take(&mut self, slot: usize) -> Result<Tensor> {
        self.take_item(slot)?.into_tensor().with_context(|| format!("input {slot}"))
    }

    /// An input by value; the slot is empty afterwards.
    ///
    /// # Errors
    /// The slot is empty.
    pub fn take_item(&mut self, slot: usize) -> Result<Item> {
        self.inputs.get_mut(slot).and_then(Option::take).ok_or_else(|| anyhow!("input {slot} is missing"))
    }

    /// The elements of an optional input of integers: a shape, axes, indices. `None` for an empty slot.
    ///
    /// # Errors
    /// The slot holds no tensor, or one that is not of integers.
    pub fn optional_ints(&self, slot: usize) -> Result<Option<Vec<i64>>> {
        self.optional(slot)?.map(|t| t.to_i64s().with_context(|| format!("input {slot}"))).transpose()
    }

    /// The elements of an input of integers: a shape, axes, indices.
    ///
    /// # Errors
    /// The slot is empty, holds no tensor, or one that is not of integers.
    pub fn ints(&self, slot: usize) -> Result<Vec<i64>> {
        self.input(slot)?.to_i64s().with_context(|| format!("input {slot}"))
    }

    /// The number of input slots.
    #[must_use]
    pub fn n_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// The number of output slots.
    #[must_use]
    pub fn n_outputs(&self) -> usize {
        self.wanted.len()
    }

    /// Whether anybody wants an output.
    #[must_use]
    pub fn wants(&self, slot: usize) -> bool {
        self.wanted.get(slot).copied().unwrap_or(false)
    }

    /// Whether an input is the same stored constant in every run.
    #[must_use]
    pub fn is_constant(&self, slot: usize) -> bool {
        self.constant.get(slot).copied().unwrap_or(false)
    }

    /// An integer attribute, or its default.
    #[must_use]
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attrs.int(name).unwrap_or(default)
    }

    /// A flag: an integer attribute that is not 0.
    #[must_use]
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name, default.into()) != 0
    }

    /// A float attribute, or its default.
    #[must_use]
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attrs.float(name).unwrap_or(default)
    }

    /// A string attribute, or its default.
    #[must_use]
    pub fn str(&self, name: &str, default: &'static str) -> &str {
        self.attrs.str(name).unwrap_or(default)
    }

    /// An integer attribute that the specification requires.
    ///
    /// # Errors
    /// It is missing or of another kind.
    pub fn required_int(&self, name: &str) -> Result<i64> {
        self.attrs.int(name).ok_or_else(|| anyhow!("attribute \"{name}\" is missing or no integer"))
    }

    /// A tensor attribute that the specification requires.
    ///
    /// # Errors
    /// It is missing or of another kind.
    pub fn required_tensor(&self, name: &str) -> Result<&TensorRef> {
        self.attrs.tensor(name).ok_or_else(|| anyhow!("attribute \"{name}\" is missing or no tensor"))
    }

    /// A body that the specification requires.
    ///
    /// # Errors
    /// It is missing or of another kind.
    pub fn required_graph(&self, name: &str) -> Result<GraphId> {
        match self.attrs.get(name) {
            Some(Attr::Graph(g)) => Ok(*g),
            _ => bail!("attribute \"{name}\" is missing or no graph"),
        }
    }

    /// A list of integers as sizes (kernel shapes, strides, dilations), or its default.
    ///
    /// # Errors
    /// One is negative.
    pub fn sizes(&self, name: &str, default: impl FnOnce() -> Vec<usize>) -> Result<Vec<usize>> {
        match self.attrs.ints(name) {
            None => Ok(default()),
            Some(v) => v
                .iter()
                .map(|&x| usize::try_from(x).map_err(|_| anyhow!("attribute \"{name}\" has the negative value {x}")))
                .collect(),
        }
    }

    /// A type attribute given as a `TensorProto.DataType` code, or its default.
    ///
    /// # Errors
    /// The code names no type.
    pub fn dtype(&self, name: &str, default: DType) -> Result<DType> {
        match self.attrs.int(name) {
            None => Ok(default),
            Some(code) => i32::try_from(code)
                .ok()
                .and_then(DType::from_code)
                .ok_or_else(|| anyhow!("attribute \"{name}\" is {code}, which names no element type")),
        }
    }

    /// What `make` makes, made once for the compiled plan and shared between runs and threads. It may depend on
    /// attributes and constant inputs only.
    ///
    /// # Errors
    /// What `make` returns.
    pub fn shared<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        if self.shared.get().is_none() {
            let made = make()?;
            // Another thread may have been faster; both made the same.
            let _ = self.shared.set(Box::new(made));
        }
        self.shared.get().and_then(|b| b.downcast_ref()).ok_or_else(|| anyhow!("shared state of another type"))
    }
}

/// Evaluates an operator on constants, outside any run: for folding. The operator must have no bodies.
///
/// # Errors
/// The evaluation fails, or an output is not a tensor.
pub fn evaluate(
    def: &super::OpDef,
    attrs: &Attrs,
    opset: i64,
    inputs: Vec<Option<Tensor>>,
    n_outputs: usize,
) -> Result<Vec<Tensor>> {
    let mut call = Call {
        op_type: def.name,
        attrs,
        opset,
        constant: &vec![true; inputs.len()],
        inputs: inputs.into_iter().map(|t| t.map(Item::Tensor)).collect(),
        wanted: &vec![true; n_outputs],
        threads: 1,
        seed: 0,
        bodies: &NoBodies,
        shared: &Shared::new(),
    };
    (def.eval)(&mut call)?.into_iter().map(Item::into_tensor).collect()
}

pub(super) struct NoBodies;

impl Bodies for NoBodies {
    fn run(&self, _: GraphId, _: Vec<Item>) -> Result<Vec<Item>> {
        bail!("a node with bodies is not folded")
    }
}

/// A possibly negative axis as an index into `rank` dimensions.
///
/// # Errors
/// It lies outside `[-rank, rank)`.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize> {
    let r = rank as i64;
    if axis < -r || axis >= r {
        bail!("axis {axis} is out of range for rank {rank}");
    }
    Ok(if axis < 0 { axis + r } else { axis } as usize)
}

/// Possibly negative axes, in the given order.
///
/// # Errors
/// One lies outside `[-rank, rank)`, or two are the same.
pub(crate) fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>> {
    let v = list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>>>()?;
    for (i, a) in v.iter().enumerate() {
        if v[..i].contains(a) {
            bail!("axis {a} is given twice");
        }
    }
    Ok(v)
}
