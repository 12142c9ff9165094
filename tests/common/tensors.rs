//! Our tensors as arrays that travel to Python, and back.

use half::f16;
use onnx_quant::tensor::{DType, Data, Element, Tensor};

use super::npz::Array;

/// A tensor as an array; `None` for element types that NumPy does not have.
pub fn to_array(t: &Tensor) -> Option<Array> {
    macro_rules! pod {
        ($b:expr) => {
            Array::new(t.shape(), $b.as_slice())
        };
    }
    Some(match (t.dtype(), t.data()) {
        (DType::Bool, Data::Bool(b)) => Array::bools(t.shape(), b.as_slice()),
        (DType::F32, Data::F32(b)) => pod!(b),
        (DType::F64, Data::F64(b)) => pod!(b),
        (DType::F16, Data::F16(b)) => pod!(b),
        (DType::I8, Data::I8(b)) => pod!(b),
        (DType::I16, Data::I16(b)) => pod!(b),
        (DType::I32, Data::I32(b)) => pod!(b),
        (DType::I64, Data::I64(b)) => pod!(b),
        (DType::U8, Data::U8(b)) => pod!(b),
        (DType::U16, Data::U16(b)) => pod!(b),
        (DType::U32, Data::U32(b)) => pod!(b),
        (DType::U64, Data::U64(b)) => pod!(b),
        _ => return None,
    })
}

/// An array as a tensor. Panics for types that [`to_array`] does not make, except strings.
pub fn from_array(a: &Array) -> Tensor {
    fn pod<T: Element + bytemuck::AnyBitPattern>(a: &Array) -> Tensor {
        let v = a.bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect::<Vec<T>>();
        Tensor::new(&a.shape, v).unwrap()
    }
    match a.descr.as_str() {
        "|b1" => Tensor::new(&a.shape, a.bytes.iter().map(|&b| b != 0).collect::<Vec<bool>>()).unwrap(),
        "<f4" => pod::<f32>(a),
        "<f8" => pod::<f64>(a),
        "<f2" => pod::<f16>(a),
        "|i1" => pod::<i8>(a),
        "<i2" => pod::<i16>(a),
        "<i4" => pod::<i32>(a),
        "<i8" => pod::<i64>(a),
        "|u1" => pod::<u8>(a),
        "<u2" => pod::<u16>(a),
        "<u4" => pod::<u32>(a),
        "<u8" => pod::<u64>(a),
        other => panic!("NumPy type {other}"),
    }
}
