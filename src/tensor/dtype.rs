//! Element types, with ONNX's names and codes (`TensorProto.DataType`).

use std::fmt;

macro_rules! dtypes {
    ($($variant:ident = $code:literal, $name:literal, $bits:literal;)*) => {
        /// An element type of ONNX (IR version 14).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DType { $(#[doc = concat!("`", $name, "`, code ", $code, " in `TensorProto.DataType`.")] $variant,)* }

        impl DType {
            /// Every type, in the order of the codes.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// The type of a `TensorProto.DataType` code; `None` for 0 (undefined) and codes that ONNX does not define.
            #[must_use]
            pub fn from_code(code: i32) -> Option<Self> {
                match code { $($code => Some(DType::$variant),)* _ => None }
            }

            /// The `TensorProto.DataType` code.
            #[must_use]
            pub fn code(self) -> i32 {
                match self { $(DType::$variant => $code,)* }
            }

            /// ONNX's name in its textual syntax: `float`, `int8`, `float8e4m3fn`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// Bits per element in a file; 0 for strings, whose size varies.
            #[must_use]
            pub fn bits(self) -> usize {
                match self { $(DType::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    F32 = 1, "float", 32;
    U8 = 2, "uint8", 8;
    I8 = 3, "int8", 8;
    U16 = 4, "uint16", 16;
    I16 = 5, "int16", 16;
    I32 = 6, "int32", 32;
    I64 = 7, "int64", 64;
    Str = 8, "string", 0;
    Bool = 9, "bool", 8;
    F16 = 10, "float16", 16;
    F64 = 11, "double", 64;
    U32 = 12, "uint32", 32;
    U64 = 13, "uint64", 64;
    C64 = 14, "complex64", 64;
    C128 = 15, "complex128", 128;
    BF16 = 16, "bfloat16", 16;
    F8E4M3FN = 17, "float8e4m3fn", 8;
    F8E4M3FNUZ = 18, "float8e4m3fnuz", 8;
    F8E5M2 = 19, "float8e5m2", 8;
    F8E5M2FNUZ = 20, "float8e5m2fnuz", 8;
    U4 = 21, "uint4", 4;
    I4 = 22, "int4", 4;
    F4E2M1 = 23, "float4e2m1", 4;
    F8E8M0 = 24, "float8e8m0", 8;
    U2 = 25, "uint2", 2;
    I2 = 26, "int2", 2;
    F6E2M3 = 27, "float6e2m3", 6;
    F6E3M2 = 28, "float6e3m2", 6;
}

impl DType {
    /// The type with this ONNX name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|d| d.name() == name)
    }

    /// Whether it is a floating-point type, the 8-, 6- and 4-bit ones included.
    #[must_use]
    pub fn is_float(self) -> bool {
        use DType::*;
        matches!(self, F32 | F16 | F64 | BF16 | F4E2M1 | F6E2M3 | F6E3M2) || self.is_float8()
    }

    /// Whether it is one of the 8-bit floating-point types.
    #[must_use]
    pub fn is_float8(self) -> bool {
        use DType::*;
        matches!(self, F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0)
    }

    /// Whether it is a signed or unsigned integer type (not `bool`).
    #[must_use]
    pub fn is_integer(self) -> bool {
        use DType::*;
        matches!(self, U8 | I8 | U16 | I16 | I32 | I64 | U32 | U64 | U4 | I4 | U2 | I2)
    }

    /// Whether it is a signed integer type.
    #[must_use]
    pub fn is_signed_integer(self) -> bool {
        use DType::*;
        matches!(self, I8 | I16 | I32 | I64 | I4 | I2)
    }

    /// The smallest and largest value of an integer type of at most 32 bits.
    #[must_use]
    pub fn int_range(self) -> Option<(i64, i64)> {
        let bits = self.bits();
        if !self.is_integer() || bits > 32 {
            return None;
        }
        Some(if self.is_signed_integer() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
