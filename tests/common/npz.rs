//! Arrays in NumPy's `.npy` and `.npz` form: just enough to pass tensors to Python and back.
//! It is written apart from the reader under test, so that one bug cannot hide in both.

use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;

/// An array as NumPy describes it: little endian, C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// NumPy's type string: `<f4`, `<i8`, `|u1`, `|b1`, ...
    pub descr: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A Rust type that NumPy has too.
pub trait Element: bytemuck::Pod {
    const DESCR: &'static str;
}

macro_rules! elements {
    ($($t:ty = $descr:literal),*) => { $(impl Element for $t { const DESCR: &'static str = $descr; })* };
}
elements!(
    f32 = "<f4",
    f64 = "<f8",
    half::f16 = "<f2",
    i8 = "|i1",
    i16 = "<i2",
    i32 = "<i4",
    i64 = "<i8",
    u8 = "|u1",
    u16 = "<u2",
    u32 = "<u4",
    u64 = "<u8"
);

impl Array {
    /// An array of `shape` with `values` in row-major order.
    pub fn new<T: Element>(shape: &[usize], values: &[T]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        Array { descr: T::DESCR.into(), shape: shape.into(), bytes: bytemuck::cast_slice(values).into() }
    }

    /// A boolean array.
    pub fn bools(shape: &[usize], values: &[bool]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?}");
        Array { descr: "|b1".into(), shape: shape.into(), bytes: values.iter().map(|&b| b.into()).collect() }
    }

    /// `n` numbers per shape, in `[low, high)`, from a fixed sequence that `seed` selects.
    pub fn random(shape: &[usize], low: f32, high: f32, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0xD1B5_4A32_D192_ED03);
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                // xorshift64*: the top 24 bits make a uniform f32.
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let bits = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
                low + (high - low) * (bits as f32 / (1u32 << 24) as f32)
            })
            .collect();
        Self::new(shape, &values)
    }

    /// The elements in row-major order. Panics when the array holds another type.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        assert_eq!(self.descr, T::DESCR, "element type");
        bytemuck::pod_collect_to_vec(&self.bytes)
    }

    /// The bytes of an `.npy` file, format version 1.0.
    pub fn to_npy(&self) -> Vec<u8> {
        let dims: String = self.shape.iter().map(|d| format!("{d},")).collect();
        let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({dims}), }}", self.descr);
        // Magic, version and length take 10 bytes; the data starts at a multiple of 64.
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend((header.len() as u16).to_le_bytes());
        out.extend(header.as_bytes());
        out.extend(&self.bytes);
        out
    }

    /// Reads an `.npy` file of version 1 to 3. Panics on anything NumPy would not write by itself.
    pub fn from_npy(file: &[u8]) -> Self {
        assert_eq!(&file[..6], b"\x93NUMPY");
        let (start, len) = match file[6] {
            1 => (10, u16::from_le_bytes([file[8], file[9]]) as usize),
            _ => (12, u32::from_le_bytes([file[8], file[9], file[10], file[11]]) as usize),
        };
        let header = std::str::from_utf8(&file[start..start + len]).unwrap();
        let after = |key: &str| header.split_once(key).unwrap_or_else(|| panic!("no {key} in {header}")).1;
        assert!(after("'fortran_order':").trim_start().starts_with("False"), "Fortran order: {header}");
        let descr = after("'descr':").split('\'').nth(1).unwrap().to_string();
        let dims = after("'shape':").split_once('(').unwrap().1.split_once(')').unwrap().0;
        let shape: Vec<usize> =
            dims.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
        Array { descr, shape, bytes: file[start + len..].to_vec() }
    }
}

/// Writes named arrays as an `.npz` file.
pub fn write(path: &Path, arrays: &[(&str, &Array)]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    for (name, array) in arrays {
        zip.start_file(format!("{name}.npy"), SimpleFileOptions::default()).unwrap();
        zip.write_all(&array.to_npy()).unwrap();
    }
    zip.finish().unwrap();
}

/// The arrays of an `.npz` file, in file order.
pub fn read(path: &Path) -> Vec<(String, Array)> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    (0..zip.len())
        .map(|i| {
            let mut member = zip.by_index(i).unwrap();
            let name = member.name().unwrap().strip_suffix(".npy").unwrap().to_string();
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes).unwrap();
            (name, Array::from_npy(&bytes))
        })
        .collect()
}
