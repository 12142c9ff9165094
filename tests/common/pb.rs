//! ONNX's stored test values: `TensorProto`, `SequenceProto`, `OptionalProto` and `MapProto` files.
//! Decoded from the wire format directly, apart from the reader under test, so that one bug cannot hide in both.

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use onnx_quant::ir::ValueType;
use onnx_quant::ops::Item;
use onnx_quant::tensor::{DType, Data, Element, Tensor};

/// The value in a file that holds a value of type `ty`. Panics on a damaged file.
pub fn read(path: &Path, ty: Option<&ValueType>) -> Item {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    value(&bytes, ty)
}

fn value(bytes: &[u8], ty: Option<&ValueType>) -> Item {
    match ty {
        Some(ValueType::Sequence(_)) => sequence(bytes),
        Some(ValueType::Optional(_)) => optional(bytes),
        Some(ValueType::Map(..)) => map(bytes),
        _ => Item::Tensor(tensor(bytes)),
    }
}

/// A field of a message: its number and what it holds.
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed(u64, usize),
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> u64 {
        let (mut v, mut shift) = (0, 0);
        loop {
            let b = self.0[0];
            self.0 = &self.0[1..];
            v |= u64::from(b & 127) << shift;
            if b < 128 {
                return v;
            }
            shift += 7;
        }
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Wire<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let key = self.varint();
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()),
            1 => Wire::Fixed(u64::from_le_bytes(self.take(8).try_into().unwrap()), 8),
            2 => {
                let n = self.varint() as usize;
                Wire::Bytes(self.take(n))
            }
            5 => Wire::Fixed(u32::from_le_bytes(self.take(4).try_into().unwrap()).into(), 4),
            other => panic!("wire type {other}"),
        };
        Some((key >> 3, wire))
    }
}

impl Wire<'_> {
    fn bytes(&self) -> &[u8] {
        if let Wire::Bytes(b) = self { b } else { panic!("expected bytes") }
    }

    fn int(&self) -> i64 {
        if let Wire::Varint(v) = self { v.cast_signed() } else { panic!("expected a number") }
    }

    /// One element, or a packed list of elements.
    fn ints(&self, out: &mut Vec<u64>) {
        match self {
            Wire::Varint(v) => out.push(*v),
            Wire::Bytes(b) => {
                let mut f = Fields(b);
                while !f.0.is_empty() {
                    out.push(f.varint());
                }
            }
            Wire::Fixed(..) => panic!("expected numbers"),
        }
    }

    fn fixed(&self, size: usize, out: &mut Vec<u8>) {
        match self {
            Wire::Fixed(v, n) if *n == size => out.extend(&v.to_le_bytes()[..size]),
            Wire::Bytes(b) => out.extend(*b),
            _ => panic!("expected fixed-size numbers"),
        }
    }
}

fn tensor(bytes: &[u8]) -> Tensor {
    let (mut dims, mut code, mut ints) = (Vec::new(), 0, Vec::new());
    let (mut raw, mut strings) = (Vec::new(), Vec::new());
    for (number, wire) in Fields(bytes) {
        match number {
            1 => wire.ints(&mut dims),
            2 => code = wire.int(),
            4 => wire.fixed(4, &mut raw),
            5 | 7 | 11 => wire.ints(&mut ints),
            6 => strings.push(String::from_utf8(wire.bytes().to_vec()).unwrap()),
            9 => raw = wire.bytes().to_vec(),
            10 => wire.fixed(8, &mut raw),
            8 | 12 => {}
            other => panic!("TensorProto field {other}"),
        }
    }
    let shape: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
    let n = shape.iter().product();
    let dtype = DType::from_code(code as i32).expect("element type");
    if dtype == DType::Str {
        return Tensor::of(&shape, strings);
    }
    // Typed lists hold an element per number; below a byte the bytes are packed.
    if !ints.is_empty() {
        let size = dtype.bits().div_ceil(8).min(if dtype.bits() < 8 { 1 } else { 8 });
        raw = ints.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect();
    }
    Tensor::from_buf(dtype, &shape, elements(dtype, n, &raw)).unwrap()
}

fn elements(dtype: DType, n: usize, raw: &[u8]) -> Data {
    fn pod<T: Element + bytemuck::AnyBitPattern>(raw: &[u8]) -> Data {
        let elements = raw.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>);
        T::wrap(elements.collect::<Vec<_>>().into())
    }
    use DType::*;
    match dtype {
        F32 => pod::<f32>(raw),
        F64 => pod::<f64>(raw),
        F16 => pod::<f16>(raw),
        BF16 => pod::<bf16>(raw),
        I8 => pod::<i8>(raw),
        I16 => pod::<i16>(raw),
        I32 => pod::<i32>(raw),
        I64 => pod::<i64>(raw),
        U16 => pod::<u16>(raw),
        U32 => pod::<u32>(raw),
        U64 => pod::<u64>(raw),
        C64 => pod::<onnx_quant::tensor::C64>(raw),
        C128 => pod::<onnx_quant::tensor::C128>(raw),
        Bool => bool::wrap(raw.iter().map(|&b| b != 0).collect::<Vec<_>>().into()),
        I4 | I2 => {
            i8::wrap(unpack(raw, dtype.bits(), n).map(|x| sign_extend(x, dtype.bits())).collect::<Vec<_>>().into())
        }
        _ if dtype.bits() < 8 => u8::wrap(unpack(raw, dtype.bits(), n).collect::<Vec<_>>().into()),
        _ => pod::<u8>(raw),
    }
}

fn unpack(raw: &[u8], bits: usize, n: usize) -> impl Iterator<Item = u8> {
    (0..n).map(move |i| {
        (0..bits).fold(0, |x, b| {
            let at = i * bits + b;
            x | ((raw[at / 8] >> (at % 8)) & 1) << b
        })
    })
}

fn sign_extend(x: u8, bits: usize) -> i8 {
    let shift = 8 - bits;
    (x << shift).cast_signed() >> shift
}

fn sequence(bytes: &[u8]) -> Item {
    let mut items = Vec::new();
    for (number, wire) in Fields(bytes) {
        match number {
            1 | 2 => {}
            3 => items.push(Item::Tensor(tensor(wire.bytes()))),
            5 => items.push(sequence(wire.bytes())),
            6 => items.push(map(wire.bytes())),
            7 => items.push(optional(wire.bytes())),
            other => panic!("SequenceProto field {other}"),
        }
    }
    Item::Sequence(Arc::new(items))
}

fn optional(bytes: &[u8]) -> Item {
    let mut item = None;
    for (number, wire) in Fields(bytes) {
        match number {
            1 | 2 => {}
            3 => item = Some(Item::Tensor(tensor(wire.bytes()))),
            5 => item = Some(sequence(wire.bytes())),
            6 => item = Some(map(wire.bytes())),
            7 => item = Some(optional(wire.bytes())),
            other => panic!("OptionalProto field {other}"),
        }
    }
    Item::Optional(item.map(Arc::new))
}

fn map(bytes: &[u8]) -> Item {
    let (mut keys, mut ints, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (number, wire) in Fields(bytes) {
        match number {
            1 | 2 => {}
            3 => wire.ints(&mut ints),
            4 => keys.push(Item::Tensor(Tensor::scalar(String::from_utf8(wire.bytes().to_vec()).unwrap()))),
            5 => {
                let Item::Sequence(items) = sequence(wire.bytes()) else { unreachable!("a sequence") };
                values = items.to_vec();
            }
            other => panic!("MapProto field {other}"),
        }
    }
    keys.extend(ints.into_iter().map(|k| Item::Tensor(Tensor::scalar(k.cast_signed()))));
    Item::Map(Arc::new(keys.into_iter().zip(values).collect()))
}
