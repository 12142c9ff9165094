//! `TensorProto` to [`Tensor`] and back: every element type in every encoding.
//!
//! Spec: the comments of `TensorProto` in `onnx.proto`. `raw_data` and external files hold little-endian elements
//! without gaps; types of less than a byte are a stream of bits, the first element in the lowest bits. The typed lists
//! hold one element a number, except for complex types (two numbers an element) and the 4- and 2-bit types, which
//! stay packed in bytes.

use bytes::Bytes;
use half::{bf16, f16};

use super::external::Outside;
use super::proto::{SparseTensorProto, TensorProto, tensor_proto::DataLocation};
use super::unknown::Unknown;
use crate::error::{Context, Result, anyhow, bail, ensure};
use crate::ir::{TensorRef, value::TensorSource};
use crate::tensor::{self, Buf, DType, Data, Element, Tensor, count};

/// Most bytes that a sparse tensor may take when it is made dense: its shape costs the file nothing.
const MAX_DENSE: usize = 1 << 30;

/// A tensor of a file, decoded when it is asked for.
#[derive(Debug)]
pub(super) struct FileTensor {
    /// The message, as it was read.
    pub(super) message: TensorProto,
    /// The elements, if they lie outside of the model file.
    pub(super) outside: Option<Outside>,
    pub(super) unknown: Unknown,
    dtype: DType,
    shape: Vec<usize>,
}

impl FileTensor {
    /// Checks that type, shape and size of a tensor agree; `fetch` gets external data of that many bytes.
    ///
    /// # Errors
    /// They do not, or a type or encoding is not known.
    pub(super) fn new(
        message: TensorProto,
        unknown: Unknown,
        fetch: impl FnOnce(&TensorProto, usize) -> Result<Outside>,
    ) -> Result<Self> {
        let (dtype, shape) = header(&message)?;
        let n = count(&shape)?;
        let outside = if is_external(&message) {
            ensure!(dtype != DType::Str, "strings cannot be external data");
            Some(fetch(&message, packed_size(dtype, n)?)?)
        } else {
            check_size(&message, dtype, n)?;
            None
        };
        Ok(FileTensor { message, outside, unknown, dtype, shape })
    }

    /// The elements as `raw_data` would hold them, if the file does so.
    ///
    /// # Errors
    /// The file that they lie in cannot be read any more.
    pub(super) fn raw(&self) -> Result<Option<Bytes>> {
        match &self.outside {
            Some(outside) => outside.bytes().map(Some),
            None => Ok(self.message.raw_data.clone()),
        }
    }
}

impl TensorSource for FileTensor {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn load(&self) -> Result<Tensor> {
        let data = match self.raw()? {
            Some(raw) => from_raw(self.dtype, count(&self.shape)?, raw)?,
            None => from_lists(&self.message, self.dtype, count(&self.shape)?)?,
        };
        Tensor::from_buf(self.dtype, &self.shape, data)
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// A sparse tensor of a file, made dense when it is asked for.
#[derive(Debug)]
pub(super) struct SparseFileTensor {
    /// The message, as it was read.
    pub(super) message: SparseTensorProto,
    pub(super) unknown: Unknown,
    values: FileTensor,
    indices: FileTensor,
    shape: Vec<usize>,
}

impl SparseFileTensor {
    /// Checks a sparse tensor like [`FileTensor::new`] does.
    ///
    /// # Errors
    /// Sizes do not agree, or the dense tensor would be too large.
    pub(super) fn new(
        message: SparseTensorProto,
        unknown: Unknown,
        mut fetch: impl FnMut(&TensorProto, usize) -> Result<Outside>,
    ) -> Result<Self> {
        let part = |tensor: &Option<TensorProto>, what: &str| {
            tensor.clone().ok_or_else(|| anyhow!("sparse tensor without {what}"))
        };
        let values = FileTensor::new(part(&message.values, "values")?, Unknown::default(), &mut fetch)?;
        let indices = FileTensor::new(part(&message.indices, "indices")?, Unknown::default(), &mut fetch)?;
        let shape = dims(&message.dims)?;
        let n = count(&shape)?;
        ensure!(
            n.checked_mul(16).is_some_and(|bytes| bytes <= MAX_DENSE),
            "sparse tensor of shape {shape:?} is too large to be made dense"
        );
        ensure!(indices.dtype == DType::I64, "indices of a sparse tensor are {}, expected int64", indices.dtype);
        let nnz = count(&values.shape)?;
        let expected = if indices.shape.len() == 2 { vec![nnz, shape.len()] } else { vec![nnz] };
        ensure!(
            values.shape.len() == 1 && indices.shape == expected,
            "sparse tensor has values of shape {:?} and indices of shape {:?}",
            values.shape,
            indices.shape
        );
        Ok(SparseFileTensor { message, unknown, values, indices, shape })
    }

    /// Where in the dense tensor the values go.
    fn positions(&self) -> Result<Vec<usize>> {
        let indices = self.indices.load()?.into_vec::<i64>()?;
        let at = |i: i64, size: usize| {
            usize::try_from(i).ok().filter(|&i| i < size).ok_or_else(|| anyhow!("sparse index {i} is not below {size}"))
        };
        if self.indices.shape.len() == 1 {
            let n = count(&self.shape)?;
            return indices.into_iter().map(|i| at(i, n)).collect();
        }
        indices
            .chunks(self.shape.len().max(1))
            .map(|row| row.iter().zip(&self.shape).try_fold(0, |sum, (&i, &size)| Ok(sum * size + at(i, size)?)))
            .collect()
    }
}

impl TensorSource for SparseFileTensor {
    fn dtype(&self) -> DType {
        self.values.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn load(&self) -> Result<Tensor> {
        let positions = self.positions()?;
        let mut dense = Tensor::zeros(self.dtype(), &self.shape)?;
        let values = self.values.load()?;
        crate::with_data!(values.data(), T, v => {
            let dense = dense.slice_mut::<T>()?;
            for (&at, value) in positions.iter().zip(v.as_slice()) {
                if let Some(element) = dense.get_mut(at) {
                    element.clone_from(value);
                }
            }
        });
        Ok(dense)
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Element type and shape of a message.
fn header(message: &TensorProto) -> Result<(DType, Vec<usize>)> {
    let code = message.data_type();
    let dtype = DType::from_code(code).ok_or_else(|| anyhow!("element type {code} is not known"))?;
    ensure!(message.segment.is_none(), "tensors in segments are not supported");
    Ok((dtype, dims(&message.dims)?))
}

fn dims(dims: &[i64]) -> Result<Vec<usize>> {
    dims.iter().map(|&d| usize::try_from(d).map_err(|_| anyhow!("dimension {d} in shape {dims:?}"))).collect()
}

/// Whether the elements lie outside of the model file.
pub(super) fn is_external(message: &TensorProto) -> bool {
    message.data_location() == DataLocation::External
}

/// Bytes that `n` elements take in `raw_data`.
fn packed_size(dtype: DType, n: usize) -> Result<usize> {
    let bits = n.checked_mul(dtype.bits()).ok_or_else(|| anyhow!("{n} elements of {dtype} are too many"))?;
    Ok(bits.div_ceil(8))
}

/// How many numbers a typed list holds for `n` elements.
fn list_len(dtype: DType, n: usize) -> usize {
    match dtype.bits() {
        4 => n.div_ceil(2),
        2 => n.div_ceil(4),
        _ if matches!(dtype, DType::C64 | DType::C128) => n.saturating_mul(2),
        _ => n,
    }
}

/// Checks that the message holds `n` elements, without decoding them.
fn check_size(message: &TensorProto, dtype: DType, n: usize) -> Result<()> {
    if let Some(raw) = &message.raw_data {
        ensure!(dtype != DType::Str, "strings cannot be raw data");
        let expected = packed_size(dtype, n)?;
        ensure!(
            raw.len() == expected,
            "{} bytes of data, expected {expected} for {dtype}{:?}",
            raw.len(),
            message.dims
        );
        return Ok(());
    }
    let (list, len) = match dtype {
        DType::F32 | DType::C64 => ("float_data", message.float_data.len()),
        DType::F64 | DType::C128 => ("double_data", message.double_data.len()),
        DType::I64 => ("int64_data", message.int64_data.len()),
        DType::U32 | DType::U64 => ("uint64_data", message.uint64_data.len()),
        DType::Str => ("string_data", message.string_data.len()),
        _ => ("int32_data", message.int32_data.len()),
    };
    let expected = list_len(dtype, n);
    ensure!(len == expected, "{len} numbers in {list}, expected {expected} for {dtype}{:?}", message.dims);
    Ok(())
}

/// Elements of `raw`, without a copy where the machine's byte order and alignment allow.
fn from_raw(dtype: DType, n: usize, raw: Bytes) -> Result<Data> {
    use DType::*;
    let expected = packed_size(dtype, n)?;
    ensure!(raw.len() == expected, "{} bytes of data, expected {expected}", raw.len());
    fn pod<T: Element + bytemuck::Pod>(raw: Bytes) -> Data {
        T::wrap(Buf::from_bytes(native(raw, std::mem::size_of::<T>())))
    }
    Ok(match dtype {
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
        U8 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 => pod::<u8>(raw),
        Bool => bool::wrap(raw.iter().map(|&b| b != 0).collect::<Vec<_>>().into()),
        I4 | I2 => {
            i8::wrap(unpack(&raw, dtype.bits(), n).map(|b| sign_extend(b, dtype.bits())).collect::<Vec<_>>().into())
        }
        U4 | U2 | F4E2M1 | F6E2M3 | F6E3M2 => u8::wrap(unpack(&raw, dtype.bits(), n).collect::<Vec<_>>().into()),
        C64 => {
            let parts = Buf::<f32>::from_bytes(native(raw, 4));
            pairs(parts.as_slice(), tensor::C64::new)
        }
        C128 => {
            let parts = Buf::<f64>::from_bytes(native(raw, 8));
            pairs(parts.as_slice(), tensor::C128::new)
        }
        Str => bail!("strings cannot be raw data"),
    })
}

/// Little-endian elements of `size` bytes in the machine's byte order.
fn native(raw: Bytes, size: usize) -> Bytes {
    if cfg!(target_endian = "little") || size == 1 {
        return raw;
    }
    let mut swapped = raw.to_vec();
    swapped.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    swapped.into()
}

/// `n` elements of `bits` bits each from a stream that starts in the lowest bits of the first byte.
fn unpack(packed: &[u8], bits: usize, n: usize) -> impl Iterator<Item = u8> {
    let byte = |i: usize| u16::from(packed.get(i).copied().unwrap_or_default());
    let mask = (1u16 << bits) - 1;
    (0..n).map(move |i| {
        let at = i * bits;
        let window = byte(at / 8) | (byte(at / 8 + 1) << 8);
        low_byte((window >> (at % 8)) & mask)
    })
}

/// The reverse of [`unpack`].
fn pack(elements: impl ExactSizeIterator<Item = u8>, bits: usize) -> Vec<u8> {
    let mut packed = vec![0u8; (elements.len() * bits).div_ceil(8)];
    let mask = (1u16 << bits) - 1;
    for (i, element) in elements.enumerate() {
        let at = i * bits;
        let window = (u16::from(element) & mask) << (at % 8);
        for (byte, part) in packed.iter_mut().skip(at / 8).zip(window.to_le_bytes()) {
            *byte |= part;
        }
    }
    packed
}

fn low_byte(x: u16) -> u8 {
    let [low, _] = x.to_le_bytes();
    low
}

/// The lowest `bits` bits as a signed number.
fn sign_extend(x: u8, bits: usize) -> i8 {
    let shift = 8 - bits;
    (x << shift).cast_signed() >> shift
}

fn pairs<T: Copy, C: Element>(parts: &[T], make: fn(T, T) -> C) -> Data {
    let pair = |p: &[T]| match p {
        [re, im] => Some(make(*re, *im)),
        _ => None,
    };
    C::wrap(parts.chunks_exact(2).filter_map(pair).collect::<Vec<_>>().into())
}

/// Elements of the typed list that belongs to `dtype`.
fn from_lists(message: &TensorProto, dtype: DType, n: usize) -> Result<Data> {
    use DType::*;
    check_size(message, dtype, n)?;
    let ints = message.int32_data.iter();
    // Numbers out of range are cut to the type's width, as ONNX's own reader does.
    let bytes = || ints.clone().map(|x| x.to_le_bytes()[0]);
    let words = || ints.clone().map(|x| u16::from_le_bytes([x.to_le_bytes()[0], x.to_le_bytes()[1]]));
    Ok(match dtype {
        F32 => f32::wrap(message.float_data.clone().into()),
        F64 => f64::wrap(message.double_data.clone().into()),
        I64 => i64::wrap(message.int64_data.clone().into()),
        U64 => u64::wrap(message.uint64_data.clone().into()),
        U32 => u32::wrap(message.uint64_data.iter().map(|x| low_word(*x)).collect::<Vec<_>>().into()),
        I32 => i32::wrap(message.int32_data.clone().into()),
        I16 => i16::wrap(words().map(u16::cast_signed).collect::<Vec<_>>().into()),
        U16 => u16::wrap(words().collect::<Vec<_>>().into()),
        F16 => f16::wrap(words().map(f16::from_bits).collect::<Vec<_>>().into()),
        BF16 => bf16::wrap(words().map(bf16::from_bits).collect::<Vec<_>>().into()),
        I8 => i8::wrap(bytes().map(u8::cast_signed).collect::<Vec<_>>().into()),
        Bool => bool::wrap(ints.map(|&x| x != 0).collect::<Vec<_>>().into()),
        I4 | I2 | U4 | U2 | F4E2M1 => from_raw(dtype, n, bytes().collect::<Vec<_>>().into())?,
        F6E2M3 | F6E3M2 => u8::wrap(bytes().map(|b| b & 0x3f).collect::<Vec<_>>().into()),
        U8 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 => u8::wrap(bytes().collect::<Vec<_>>().into()),
        C64 => pairs(&message.float_data, tensor::C64::new),
        C128 => pairs(&message.double_data, tensor::C128::new),
        Str => {
            let text = |(i, bytes): (usize, &Bytes)| {
                std::str::from_utf8(bytes).map(str::to_owned).with_context(|| format!("string {i}"))
            };
            String::wrap(message.string_data.iter().enumerate().map(text).collect::<Result<Vec<_>>>()?.into())
        }
    })
}

fn low_word(x: u64) -> u32 {
    let [a, b, c, d, ..] = x.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Shares a buffer's bytes with [`Bytes`].
struct Shared<T: 'static>(Buf<T>);

impl<T: bytemuck::NoUninit + 'static> AsRef<[u8]> for Shared<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.as_slice())
    }
}

/// The elements as `raw_data` holds them, without a copy where the machine's byte order allows; `None` for strings.
pub(super) fn to_raw(tensor: &Tensor) -> Option<Bytes> {
    fn pod<T: Element + bytemuck::NoUninit>(b: &Buf<T>) -> Bytes {
        native(Bytes::from_owner(Shared(b.clone())), std::mem::size_of::<T>())
    }
    let bits = tensor.dtype().bits();
    Some(match tensor.data() {
        Data::I8(b) if bits < 8 => pack(b.as_slice().iter().map(|&x| x.cast_unsigned()), bits).into(),
        Data::U8(b) if bits < 8 => pack(b.as_slice().iter().copied(), bits).into(),
        Data::F32(b) => pod(b),
        Data::F64(b) => pod(b),
        Data::F16(b) => pod(b),
        Data::BF16(b) => pod(b),
        Data::I8(b) => pod(b),
        Data::I16(b) => pod(b),
        Data::I32(b) => pod(b),
        Data::I64(b) => pod(b),
        Data::U8(b) => pod(b),
        Data::U16(b) => pod(b),
        Data::U32(b) => pod(b),
        Data::U64(b) => pod(b),
        Data::Bool(b) => pod(b),
        Data::C64(b) => b.as_slice().iter().flat_map(|c| [c.re.to_le_bytes(), c.im.to_le_bytes()]).flatten().collect(),
        Data::C128(b) => b.as_slice().iter().flat_map(|c| [c.re.to_le_bytes(), c.im.to_le_bytes()]).flatten().collect(),
        Data::Str(_) => return None,
    })
}

/// A message without a name: strings in `string_data`, everything else in `raw_data`.
///
/// # Errors
/// A dimension does not fit ONNX's 64-bit integers.
pub(super) fn to_message(tensor: &Tensor) -> Result<TensorProto> {
    let dims = tensor.shape().iter().map(|&d| Ok(i64::try_from(d)?)).collect::<Result<_>>()?;
    let mut message = TensorProto { dims, data_type: Some(tensor.dtype().code()), ..TensorProto::default() };
    match tensor.data() {
        Data::Str(b) => {
            message.string_data = b.as_slice().iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect();
        }
        _ => message.raw_data = to_raw(tensor),
    }
    Ok(message)
}

/// The tensor of a message whose elements are in the message itself.
///
/// # Errors
/// See [`FileTensor::new`].
pub(super) fn from_message(message: TensorProto) -> Result<Tensor> {
    FileTensor::new(message, Unknown::default(), |_, _| bail!("external data is not supported here"))?.load()
}

/// The bytes that a tensor takes in `raw_data`; 0 for strings.
pub(super) fn raw_size(tensor: &TensorRef) -> usize {
    packed_size(tensor.dtype(), tensor.len()).unwrap_or(usize::MAX)
}
