//! Tensors: an element type, a shape and elements in row-major order, shared until somebody writes.
//!
//! Elements lie in a [`Buf`], a reference-counted buffer: a clone costs nothing, a write through [`Tensor::data_mut`]
//! copies only when the buffer is shared. That makes in-place operators safe without any analysis: an operator that
//! was handed the last reference writes in place, any other gets a copy of its own. A buffer may also lie in a memory-mapped model file.
//!
//! Kernels work on slices; [`Tensor::view`] gives an `ndarray` view for everything where strides and axes matter.
//! Types of less than a byte are stored one element a byte: int4 and int2 as `i8`, uint4, uint2 and the 8-, 6- and
//! 4-bit floats as `u8` (the bit pattern).

pub mod affine;
pub mod broadcast;
pub mod cast;
mod dtype;
pub mod minifloat;
pub mod order;
mod recycle;
pub mod strided;

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use num_complex::Complex;

pub use dtype::DType;
pub use recycle::{buffer, buffer_of, keep};

use crate::error::{Result, anyhow, bail, ensure};

/// Dimension sizes.
pub type Shape = smallvec::SmallVec<[usize; 6]>;

/// A complex number of two 32-bit floats.
pub type C64 = Complex<f32>;
/// A complex number of two 64-bit floats.
pub type C128 = Complex<f64>;

#[derive(Debug)]
enum Store<T: 'static> {
    Owned(Vec<T>),
    /// Bytes of a mapped file, cast at each access by the function, which was chosen where `T` is plain old data.
    Mapped(Bytes, fn(&[u8]) -> &[T]),
}

/// A reference-counted buffer of elements; see the module documentation.
#[derive(Debug)]
pub struct Buf<T: 'static>(Arc<Store<T>>);

impl<T> Drop for Store<T> {
    fn drop(&mut self) {
        if let Store::Owned(v) = self {
            recycle::recycle(v);
        }
    }
}

impl<T> Clone for Buf<T> {
    fn clone(&self) -> Self {
        Buf(Arc::clone(&self.0))
    }
}

impl<T> From<Vec<T>> for Buf<T> {
    fn from(v: Vec<T>) -> Self {
        Buf(Arc::new(Store::Owned(v)))
    }
}

impl<T> Buf<T> {
    /// The elements.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        match &*self.0 {
            Store::Owned(v) => v,
            Store::Mapped(b, cast) => cast(b),
        }
    }

    /// Whether a write needs no copy.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        matches!(&*self.0, Store::Owned(_)) && Arc::strong_count(&self.0) == 1
    }
}

impl<T: Clone> Buf<T> {
    /// The elements for writing, copied first when the buffer is shared or mapped.
    pub fn make_mut(&mut self) -> &mut Vec<T> {
        if !matches!(Arc::get_mut(&mut self.0), Some(Store::Owned(_))) {
            *self = Buf::from(self.as_slice().to_vec());
        }
        match Arc::get_mut(&mut self.0) {
            Some(Store::Owned(v)) => v,
            _ => unreachable!("the buffer was made unique and owned above"),
        }
    }

    /// The elements as a vector, without a copy when nobody else holds them.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        match Arc::try_unwrap(self.0) {
            Ok(mut store) => match &mut store {
                Store::Owned(v) => std::mem::take(v),
                Store::Mapped(b, cast) => cast(b).to_vec(),
            },
            Err(shared) => Buf(shared).as_slice().to_vec(),
        }
    }
}

impl<T: bytemuck::AnyBitPattern> Buf<T> {
    /// A buffer over the bytes of a mapped file, in the machine's byte order; copies when they are not aligned for `T`.
    /// Trailing bytes that do not fill an element are ignored.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        let size = std::mem::size_of::<T>();
        let bytes = bytes.slice(..bytes.len() - bytes.len() % size);
        match bytemuck::try_cast_slice::<u8, T>(&bytes) {
            Ok(_) => Buf(Arc::new(Store::Mapped(bytes, |b| bytemuck::cast_slice(b)))),
            Err(_) => Buf::from(bytes.chunks_exact(size).map(bytemuck::pod_read_unaligned).collect::<Vec<T>>()),
        }
    }
}

macro_rules! data {
    ($($variant:ident($ty:ty) = $dtype:ident;)*) => {
        /// The elements of a tensor by storage type.
        #[derive(Debug, Clone)]
        pub enum Data { $(#[doc = concat!("Elements stored as `", stringify!($ty), "`.")] $variant(Buf<$ty>),)* }

        impl Data {
            /// The number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Data::$variant(b) => b.as_slice().len(),)* }
            }

            /// Whether there are no elements.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        $(impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
            fn wrap(b: Buf<Self>) -> Data { Data::$variant(b) }
            fn peek(d: &Data) -> Option<&Buf<Self>> { match d { Data::$variant(b) => Some(b), _ => None } }
            fn peek_mut(d: &mut Data) -> Option<&mut Buf<Self>> { match d { Data::$variant(b) => Some(b), _ => None } }
            fn unwrap(d: Data) -> Option<Buf<Self>> { match d { Data::$variant(b) => Some(b), _ => None } }
        })*
    };
}

/// A Rust type that elements are stored as.
pub trait Element: Clone + Send + Sync + std::fmt::Debug + Default + PartialEq + 'static {
    /// The element type that a tensor of this storage type has unless it is said otherwise.
    const DTYPE: DType;
    /// Wraps a buffer.
    fn wrap(b: Buf<Self>) -> Data;
    /// The buffer, if the data is stored as this type.
    fn peek(d: &Data) -> Option<&Buf<Self>>;
    /// The buffer for writing, if the data is stored as this type.
    fn peek_mut(d: &mut Data) -> Option<&mut Buf<Self>>;
    /// The buffer by value, if the data is stored as this type.
    fn unwrap(d: Data) -> Option<Buf<Self>>;
}

data! {
    F32(f32) = F32;
    F64(f64) = F64;
    F16(f16) = F16;
    BF16(bf16) = BF16;
    I8(i8) = I8;
    I16(i16) = I16;
    I32(i32) = I32;
    I64(i64) = I64;
    U8(u8) = U8;
    U16(u16) = U16;
    U32(u32) = U32;
    U64(u64) = U64;
    Bool(bool) = Bool;
    Str(String) = Str;
    C64(C64) = C64;
    C128(C128) = C128;
}

/// Runs `$body` with `$t` bound to the storage type and `$b` to the buffer, for every storage type.
///
/// `with_data!(tensor.data(), T, b => Tensor::from_vec(shape, gather::<T>(b.as_slice(), ..)))`
#[macro_export]
macro_rules! with_data {
    ($data:expr, $t:ident, $b:ident => $body:expr) => {{
        use $crate::tensor::Data as D__;
        match $data {
            D__::F32($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = f32;
                $body
            }
            D__::F64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = f64;
                $body
            }
            D__::F16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = half::f16;
                $body
            }
            D__::BF16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = half::bf16;
                $body
            }
            D__::I8($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i8;
                $body
            }
            D__::I16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i16;
                $body
            }
            D__::I32($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i32;
                $body
            }
            D__::I64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i64;
                $body
            }
            D__::U8($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u8;
                $body
            }
            D__::U16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u16;
                $body
            }
            D__::U32($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u32;
                $body
            }
            D__::U64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u64;
                $body
            }
            D__::Bool($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = bool;
                $body
            }
            D__::Str($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = String;
                $body
            }
            D__::C64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = $crate::tensor::C64;
                $body
            }
            D__::C128($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = $crate::tensor::C128;
                $body
            }
        }
    }};
}

/// Like [`with_data!`] for the real number types only (floats and integers, no bool, string or complex); the last arm
/// is the expression for all others.
#[macro_export]
macro_rules! with_numbers {
    ($data:expr, $t:ident, $b:ident => $body:expr, _ => $other:expr) => {{
        use $crate::tensor::Data as D__;
        match $data {
            D__::F32($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = f32;
                $body
            }
            D__::F64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = f64;
                $body
            }
            D__::F16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = half::f16;
                $body
            }
            D__::BF16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = half::bf16;
                $body
            }
            D__::I8($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i8;
                $body
            }
            D__::I16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i16;
                $body
            }
            D__::I32($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i32;
                $body
            }
            D__::I64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = i64;
                $body
            }
            D__::U8($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u8;
                $body
            }
            D__::U16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u16;
                $body
            }
            D__::U32($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u32;
                $body
            }
            D__::U64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = u64;
                $body
            }
            _ => $other,
        }
    }};
}

/// Like [`with_numbers!`] for the floating-point storage types only.
#[macro_export]
macro_rules! with_floats {
    ($data:expr, $t:ident, $b:ident => $body:expr, _ => $other:expr) => {{
        use $crate::tensor::Data as D__;
        match $data {
            D__::F32($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = f32;
                $body
            }
            D__::F64($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = f64;
                $body
            }
            D__::F16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = half::f16;
                $body
            }
            D__::BF16($b) => {
                #[allow(dead_code, reason = "not every use names the type")]
                type $t = half::bf16;
                $body
            }
            _ => $other,
        }
    }};
}

/// A tensor: element type, shape and elements in row-major order.
#[derive(Debug, Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    data: Data,
}

/// Elements of a tensor at most: what a model asks for beyond that is a mistake, and memory for it is not there.
pub const MAX_ELEMENTS: usize = 1 << 32;

/// The number of elements of a shape.
///
/// # Errors
/// It is larger than [`MAX_ELEMENTS`].
pub fn count(shape: &[usize]) -> Result<usize> {
    // A size of 0 makes the tensor empty, however large the others are.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d).filter(|&n| n <= MAX_ELEMENTS))
        .ok_or_else(|| anyhow!("shape {shape:?} has too many elements, more than {MAX_ELEMENTS}"))
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Errors
    /// The number of elements is not the product of the shape.
    pub fn new<T: Element>(shape: &[usize], v: Vec<T>) -> Result<Self> {
        Self::from_buf(T::DTYPE, shape, T::wrap(Buf::from(v)))
    }

    /// A tensor of a type that is stored in `data`'s storage type.
    ///
    /// # Errors
    /// The number of elements is not the product of the shape, or `dtype` is not stored like that.
    pub fn from_buf(dtype: DType, shape: &[usize], data: Data) -> Result<Self> {
        ensure!(storage_matches(dtype, &data), "{dtype} elements are not stored like that");
        ensure!(count(shape)? == data.len(), "shape {shape:?} does not hold {} elements", data.len());
        Ok(Tensor { dtype, shape: shape.into(), data })
    }

    /// A tensor of these elements, whose number is known to fit (kernels that sized the vector by the shape).
    ///
    /// # Panics
    /// The number of elements is not the product of the shape: a bug in the caller.
    #[must_use]
    pub fn of<T: Element>(shape: &[usize], v: Vec<T>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), v.len(), "shape {shape:?}");
        Tensor { dtype: T::DTYPE, shape: shape.into(), data: T::wrap(Buf::from(v)) }
    }

    /// A tensor of rank 0.
    #[must_use]
    pub fn scalar<T: Element>(v: T) -> Self {
        Tensor { dtype: T::DTYPE, shape: Shape::new(), data: T::wrap(Buf::from(vec![v])) }
    }

    /// A tensor of rank 1.
    #[must_use]
    pub fn vector<T: Element>(v: Vec<T>) -> Self {
        Self::of(&[v.len()], v)
    }

    /// A tensor of zeros (empty strings, false).
    ///
    /// # Errors
    /// The shape has too many elements.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self> {
        let n = count(shape)?;
        ensure!(n <= isize::MAX as usize / 16, "shape {shape:?} is too large");
        let data = match dtype {
            DType::F32 => f32::wrap(vec![0.0; n].into()),
            DType::F64 => f64::wrap(vec![0.0; n].into()),
            DType::F16 => f16::wrap(vec![f16::ZERO; n].into()),
            DType::BF16 => bf16::wrap(vec![bf16::ZERO; n].into()),
            DType::I8 | DType::I4 | DType::I2 => i8::wrap(vec![0; n].into()),
            DType::I16 => i16::wrap(vec![0; n].into()),
            DType::I32 => i32::wrap(vec![0; n].into()),
            DType::I64 => i64::wrap(vec![0; n].into()),
            DType::U16 => u16::wrap(vec![0; n].into()),
            DType::U32 => u32::wrap(vec![0; n].into()),
            DType::U64 => u64::wrap(vec![0; n].into()),
            DType::Bool => bool::wrap(vec![false; n].into()),
            DType::Str => String::wrap(vec![String::new(); n].into()),
            DType::C64 => C64::wrap(vec![C64::default(); n].into()),
            DType::C128 => C128::wrap(vec![C128::default(); n].into()),
            _ => u8::wrap(vec![0; n].into()),
        };
        Ok(Tensor { dtype, shape: shape.into(), data })
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimension sizes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the elements take in memory, strings counted as pointers.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        with_data!(&self.data, T, b => std::mem::size_of_val::<[T]>(b.as_slice()))
    }

    /// The elements.
    #[must_use]
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements for writing; see [`Buf::make_mut`]. The number of elements must stay.
    pub fn data_mut(&mut self) -> &mut Data {
        &mut self.data
    }

    /// The elements by value.
    #[must_use]
    pub fn into_data(self) -> Data {
        self.data
    }

    /// The elements as a slice of `T`.
    ///
    /// # Errors
    /// They are stored as another type.
    pub fn slice<T: Element>(&self) -> Result<&[T]> {
        match T::peek(&self.data) {
            Some(b) => Ok(b.as_slice()),
            None => bail!("element type is {}, expected {}", self.dtype, T::DTYPE),
        }
    }

    /// The elements as a slice of `T` for writing, copied first when they are shared.
    ///
    /// # Errors
    /// They are stored as another type.
    pub fn slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let dtype = self.dtype;
        match T::peek_mut(&mut self.data) {
            Some(b) => Ok(b.make_mut()),
            None => bail!("element type is {dtype}, expected {}", T::DTYPE),
        }
    }

    /// The elements as a vector, without a copy when nobody else holds them.
    ///
    /// # Errors
    /// They are stored as another type.
    pub fn into_vec<T: Element>(self) -> Result<Vec<T>> {
        let dtype = self.dtype;
        match T::unwrap(self.data) {
            Some(b) => Ok(b.into_vec()),
            None => bail!("element type is {dtype}, expected {}", T::DTYPE),
        }
    }

    /// An `ndarray` view.
    ///
    /// # Errors
    /// The elements are stored as another type.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        Ok(ArrayViewD::from_shape(IxDyn(&self.shape), self.slice()?)?)
    }

    /// A tensor of an `ndarray` array, copied only when it does not lie in row-major order.
    #[must_use]
    pub fn from_array<T: Element>(a: ArrayD<T>) -> Self {
        let shape: Shape = a.shape().into();
        let v = if a.is_standard_layout() {
            let (v, offset) = a.into_raw_vec_and_offset();
            match offset {
                Some(o) if o > 0 => v[o..].to_vec(),
                _ => v,
            }
        } else {
            a.iter().cloned().collect()
        };
        let n = shape.iter().product();
        let v = if v.len() > n { v[..n].to_vec() } else { v };
        Self::of(&shape, v)
    }

    /// The same elements in another shape; no copy.
    ///
    /// # Errors
    /// The number of elements differs.
    pub fn reshaped(mut self, shape: &[usize]) -> Result<Self> {
        ensure!(
            count(shape)? == self.len(),
            "shape {:?} ({} elements) cannot become {shape:?}",
            self.shape.as_slice(),
            self.len()
        );
        self.shape = shape.into();
        Ok(self)
    }

    /// The same elements taken as another type of the same storage (`uint8` as `uint4`, `float8e4m3fn` …).
    ///
    /// # Errors
    /// That type is stored differently.
    pub fn retyped(mut self, dtype: DType) -> Result<Self> {
        ensure!(storage_matches(dtype, &self.data), "{} elements are not stored like {dtype}", self.dtype);
        self.dtype = dtype;
        Ok(self)
    }

    /// The elements as 64-bit integers, from any integer or bool type: shapes, axes, indices.
    ///
    /// # Errors
    /// It is a tensor of floats, strings or complex numbers.
    pub fn to_i64s(&self) -> Result<Vec<i64>> {
        Ok(match &self.data {
            Data::I64(b) => b.as_slice().to_vec(),
            Data::I32(b) => b.as_slice().iter().map(|&x| x.into()).collect(),
            Data::I16(b) => b.as_slice().iter().map(|&x| x.into()).collect(),
            Data::I8(b) => b.as_slice().iter().map(|&x| x.into()).collect(),
            Data::U16(b) => b.as_slice().iter().map(|&x| x.into()).collect(),
            Data::U32(b) => b.as_slice().iter().map(|&x| x.into()).collect(),
            Data::U64(b) => b.as_slice().iter().map(|&x| x.cast_signed()).collect(),
            Data::Bool(b) => b.as_slice().iter().map(|&x| x.into()).collect(),
            Data::U8(b) if self.dtype.is_integer() => b.as_slice().iter().map(|&x| x.into()).collect(),
            _ => bail!("element type is {}, expected an integer type", self.dtype),
        })
    }

    /// The elements as 64-bit floats, from any real type (8-bit floats and smaller included).
    ///
    /// # Errors
    /// It is a tensor of strings or complex numbers.
    pub fn to_f64s(&self) -> Result<Vec<f64>> {
        cast::to_f64s(self)
    }

    /// The elements as 32-bit floats, from any real type; borrowed when they are stored so.
    ///
    /// # Errors
    /// It is a tensor of strings or complex numbers.
    pub fn to_f32s(&self) -> Result<std::borrow::Cow<'_, [f32]>> {
        match &self.data {
            Data::F32(b) => Ok(b.as_slice().into()),
            Data::F16(b) => Ok(cast::widened(b.as_slice()).into()),
            Data::BF16(b) => Ok(cast::widened(b.as_slice()).into()),
            _ => Ok(cast::to_f64s(self)?.into_iter().map(|x| x as f32).collect::<Vec<_>>().into()),
        }
    }

    /// The only element as a 64-bit integer.
    ///
    /// # Errors
    /// There is not exactly one element, or it is no integer.
    pub fn to_i64(&self) -> Result<i64> {
        ensure!(self.len() == 1, "has shape {:?}, expected one element", self.shape());
        Ok(self.to_i64s()?[0])
    }

    /// The only element as a 64-bit float.
    ///
    /// # Errors
    /// There is not exactly one element, or it is no number.
    pub fn to_f64(&self) -> Result<f64> {
        ensure!(self.len() == 1, "has shape {:?}, expected one element", self.shape());
        Ok(self.to_f64s()?[0])
    }
}

/// Equal type, shape and elements; floats by value, so a NaN differs from itself.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && with_data!(&self.data, T, a => T::peek(&other.data).is_some_and(|b| a.as_slice() == b.as_slice()))
    }
}

/// Whether elements of `dtype` are stored as `data` stores them.
fn storage_matches(dtype: DType, data: &Data) -> bool {
    matches!(
        (dtype, data),
        (DType::F32, Data::F32(_))
            | (DType::F64, Data::F64(_))
            | (DType::F16, Data::F16(_))
            | (DType::BF16, Data::BF16(_))
            | (DType::I8 | DType::I4 | DType::I2, Data::I8(_))
            | (DType::I16, Data::I16(_))
            | (DType::I32, Data::I32(_))
            | (DType::I64, Data::I64(_))
            | (
                DType::U8
                    | DType::U4
                    | DType::U2
                    | DType::F8E4M3FN
                    | DType::F8E4M3FNUZ
                    | DType::F8E5M2
                    | DType::F8E5M2FNUZ
                    | DType::F8E8M0
                    | DType::F6E2M3
                    | DType::F6E3M2
                    | DType::F4E2M1,
                Data::U8(_)
            )
            | (DType::U16, Data::U16(_))
            | (DType::U32, Data::U32(_))
            | (DType::U64, Data::U64(_))
            | (DType::Bool, Data::Bool(_))
            | (DType::Str, Data::Str(_))
            | (DType::C64, Data::C64(_))
            | (DType::C128, Data::C128(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_copy_only_what_is_shared() {
        let mut a = Tensor::vector(vec![1.0f32, 2.0]);
        let p = a.slice::<f32>().unwrap().as_ptr();
        a.slice_mut::<f32>().unwrap()[0] = 5.0;
        assert_eq!(a.slice::<f32>().unwrap().as_ptr(), p);
        let b = a.clone();
        a.slice_mut::<f32>().unwrap()[0] = 7.0;
        assert_eq!(b.slice::<f32>().unwrap(), &[5.0, 2.0]);
        assert_eq!(a.slice::<f32>().unwrap(), &[7.0, 2.0]);
    }

    #[test]
    fn mapped_bytes_are_read_whatever_their_alignment() {
        let mut raw = vec![0u8];
        for x in [1.5f32, -2.0] {
            raw.extend_from_slice(&x.to_ne_bytes());
        }
        for (bytes, _) in [(Bytes::from(raw.clone()).slice(1..), 0), (Bytes::from(raw[1..].to_vec()), 1)] {
            assert_eq!(Buf::<f32>::from_bytes(bytes).as_slice(), &[1.5, -2.0]);
        }
    }

    #[test]
    fn wrong_sizes_and_types_are_errors() {
        assert!(Tensor::new(&[2, 2], vec![1.0f32]).is_err());
        assert!(Tensor::new(&[usize::MAX, 3], vec![1.0f32]).is_err());
        assert!(Tensor::scalar(1i64).slice::<f32>().is_err());
        assert!(Tensor::scalar(1u8).retyped(DType::I4).is_err());
        assert!(Tensor::scalar(1u8).retyped(DType::U4).is_ok());
    }
}
