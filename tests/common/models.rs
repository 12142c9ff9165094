//! Small models with pseudo-random weights, built node by node, and what it takes to quantize them without data.

use onnx_quant::calibrate::dataset::{Dataset, Sample};
use onnx_quant::diag::Sink;
use onnx_quant::error::Result;
use onnx_quant::ir::{Def, Dim, Model, Node, TensorType, ValueId, ValueType};
use onnx_quant::quant::{Config, Data, Mode, Quantized, Quiet, quantize};
use onnx_quant::tensor::{DType, Tensor};

/// Numbers in [-1, 1), the same in every run.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut seed = seed;
    (0..n)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A model that grows.
pub struct Builder {
    pub model: Model,
    n: u64,
}

impl Builder {
    /// A model with one input `x`; `None` is an open dimension.
    pub fn new(dtype: DType, dims: &[Option<usize>]) -> (Self, ValueId) {
        let mut model = Model::new(8, 17);
        let dims = dims.iter().map(|d| d.map_or_else(|| Dim::Unknown, Dim::Known)).collect();
        let ty = ValueType::Tensor(TensorType::new(dtype, dims));
        let x = model.main_mut().add_value("x", Some(ty), Def::Input);
        model.main_mut().set_inputs(vec![x]);
        (Builder { model, n: 0 }, x)
    }

    pub fn weight(&mut self, shape: &[usize]) -> ValueId {
        let values = numbers(shape.iter().product(), self.n + 1);
        self.stored(Tensor::new(shape, values).unwrap())
    }

    /// A weight that the test chooses.
    pub fn stored(&mut self, t: Tensor) -> ValueId {
        self.n += 1;
        self.model.main_mut().add_initializer(format!("w{}", self.n), t)
    }

    pub fn op(&mut self, node: Node, ins: &[ValueId]) -> ValueId {
        self.n += 1;
        let y = self.model.main_mut().add_result(format!("{}{}", node.op_type.to_lowercase(), self.n), None);
        let ins: Vec<_> = ins.iter().map(|&v| Some(v)).collect();
        self.model.main_mut().add_node(node.named(format!("n{}", self.n)), &ins, &[Some(y)]);
        y
    }

    pub fn done(mut self, y: ValueId) -> Model {
        self.model.main_mut().set_outputs(vec![y]);
        onnx_quant::infer::infer(&mut self.model, &mut Sink::default()).unwrap();
        self.model
    }
}

/// No samples.
pub struct Nothing;

impl Dataset for Nothing {
    fn len(&self) -> usize {
        0
    }
    fn sample(&self, _: usize) -> Result<Sample> {
        unreachable!("there are no samples")
    }
}

/// Quantizes without data.
pub fn quantized_without_data(model: Model, mode: Mode) -> (Quantized, Sink) {
    let config = Config { mode, threads: 1, ..Config::new("ort-cpu").unwrap() };
    let data = Data { calibration: &Nothing, holdout: &Nothing, is_shared: false, labels: None };
    let mut sink = Sink::default();
    let done = quantize(model, &config, &data, &Quiet, &mut |_, _| {}, &mut sink).unwrap();
    (done, sink)
}
