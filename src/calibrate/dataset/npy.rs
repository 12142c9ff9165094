//! NumPy's `.npy` format, versions 1 to 3: reader for every numeric type, strings, both byte orders and both memory
//! layouts, and writer.
//!
//! Nothing is ever unpickled: arrays of Python objects are refused.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

use std::io::{Read, Write};

use bytemuck::Pod;
use half::f16;

use crate::error::{Context, Result, WithHelp, anyhow, bail, ensure};
use crate::tensor::strided::gather;
use crate::tensor::{C64, C128, DType, Data, Element, Tensor, count};
use crate::with_data;

const MAGIC: &[u8] = b"\x93NUMPY";
/// A header is a line of text; one of a structured type may be long, but not this long.
const MAX_HEADER: usize = 1 << 20;

/// How an array's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// Numbers of this type.
    Numbers(DType),
    /// Zero-padded byte strings of this length.
    Bytes(usize),
    /// Zero-padded UTF-32 strings of this many characters.
    Unicode(usize),
}

/// What an `.npy` file says about its array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    stored: Stored,
    /// Whether the bytes of each element are in the other order than this machine's.
    swapped: bool,
    /// Whether the first axis varies fastest.
    fortran_order: bool,
    shape: Vec<usize>,
    /// Bytes before the first element.
    data_start: u64,
}

impl Header {
    /// Of little-endian elements in row-major order without a header of their own, from `data_start` on.
    #[must_use]
    pub fn raw(dtype: DType, shape: Vec<usize>, data_start: u64) -> Self {
        let swapped = cfg!(target_endian = "big");
        Header { stored: Stored::Numbers(dtype), swapped, fortran_order: false, shape, data_start }
    }

    /// The element type of the tensor that the array becomes.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self.stored {
            Stored::Numbers(d) => d,
            Stored::Bytes(_) | Stored::Unicode(_) => DType::Str,
        }
    }

    /// The dimension sizes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes before the first element.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Whether rows (along the first axis) lie one after the other.
    #[must_use]
    pub fn has_rows_in_order(&self) -> bool {
        !self.fortran_order || self.shape.len() < 2
    }

    /// Bytes of an element.
    fn item_size(&self) -> usize {
        match self.stored {
            Stored::Numbers(d) => d.bits() / 8,
            Stored::Bytes(n) => n,
            Stored::Unicode(n) => n * 4,
        }
    }

    /// Bytes of the elements.
    ///
    /// # Errors
    /// They do not fit `usize`.
    pub fn n_bytes(&self) -> Result<usize> {
        count(&self.shape)?
            .checked_mul(self.item_size())
            .ok_or_else(|| anyhow!("an array of shape {:?} is too large", self.shape))
    }

    /// The header of `n` rows of the array.
    #[must_use]
    pub fn rows(&self, n: usize) -> Header {
        let mut h = self.clone();
        if let Some(first) = h.shape.first_mut() {
            *first = n;
        }
        h
    }
}

/// Reads a header and leaves the reader at the first element.
///
/// # Errors
/// It is no `.npy` file, or its elements are Python objects, records, dates or of a type that ONNX does not have.
pub fn read_header(reader: &mut dyn Read) -> Result<Header> {
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(|_| anyhow!("is too short for an .npy file"))?;
    ensure!(&start[..6] == MAGIC, "is no .npy file: it does not start with \\x93NUMPY");
    let (len, before) = match start[6] {
        1 => {
            let mut len = [0u8; 2];
            reader.read_exact(&mut len).context("truncated .npy header")?;
            (usize::from(u16::from_le_bytes(len)), 10)
        }
        2 | 3 => {
            let mut len = [0u8; 4];
            reader.read_exact(&mut len).context("truncated .npy header")?;
            (u32::from_le_bytes(len) as usize, 12)
        }
        v => bail!("has .npy format version {v}; versions 1 to 3 are known"),
    };
    ensure!(len <= MAX_HEADER, "has an .npy header of {len} bytes");
    let mut text = vec![0u8; len];
    reader.read_exact(&mut text).context("truncated .npy header")?;
    let text = String::from_utf8_lossy(&text);
    let dict = Dict::parse(&text).with_context(|| format!("bad .npy header {:?}", text.trim()))?;
    let (stored, swapped) = element(&dict.descr)?;
    Ok(Header {
        stored,
        swapped,
        fortran_order: dict.fortran_order,
        shape: dict.shape,
        data_start: (before + len) as u64,
    })
}

/// Reads the elements that follow a header.
///
/// # Errors
/// The reader ends early or fails, or a string is not valid.
pub fn read_data(header: &Header, reader: &mut dyn Read) -> Result<Tensor> {
    let n = count(&header.shape)?;
    header.n_bytes()?;
    let swap = header.swapped;
    let data = match header.stored {
        Stored::Numbers(d) => match d {
            DType::F32 => f32::wrap(numbers::<f32>(reader, n, swap, 4)?.into()),
            DType::F64 => f64::wrap(numbers::<f64>(reader, n, swap, 8)?.into()),
            DType::F16 => f16::wrap(numbers::<f16>(reader, n, swap, 2)?.into()),
            DType::I8 => i8::wrap(numbers::<i8>(reader, n, swap, 1)?.into()),
            DType::I16 => i16::wrap(numbers::<i16>(reader, n, swap, 2)?.into()),
            DType::I32 => i32::wrap(numbers::<i32>(reader, n, swap, 4)?.into()),
            DType::I64 => i64::wrap(numbers::<i64>(reader, n, swap, 8)?.into()),
            DType::U8 => u8::wrap(numbers::<u8>(reader, n, swap, 1)?.into()),
            DType::U16 => u16::wrap(numbers::<u16>(reader, n, swap, 2)?.into()),
            DType::U32 => u32::wrap(numbers::<u32>(reader, n, swap, 4)?.into()),
            DType::U64 => u64::wrap(numbers::<u64>(reader, n, swap, 8)?.into()),
            DType::C64 => C64::wrap(numbers::<C64>(reader, n, swap, 4)?.into()),
            DType::C128 => C128::wrap(numbers::<C128>(reader, n, swap, 8)?.into()),
            DType::Bool => {
                bool::wrap(numbers::<u8>(reader, n, swap, 1)?.into_iter().map(|b| b != 0).collect::<Vec<_>>().into())
            }
            other => bail!("elements of type {other} are not stored in .npy files"),
        },
        Stored::Bytes(size) => {
            let bytes = numbers::<u8>(reader, n * size, false, 1)?;
            let text = |i: usize| {
                let s = &bytes[i * size..(i + 1) * size];
                let end = s.iter().rposition(|&b| b != 0).map_or(0, |p| p + 1);
                String::from_utf8(s[..end].to_vec()).map_err(|_| anyhow!("string {i} is not UTF-8"))
            };
            String::wrap((0..n).map(text).collect::<Result<Vec<_>>>()?.into())
        }
        Stored::Unicode(size) => {
            let codes = numbers::<u32>(reader, n * size, swap, 4)?;
            let text = |i: usize| {
                let s = &codes[i * size..(i + 1) * size];
                let end = s.iter().rposition(|&c| c != 0).map_or(0, |p| p + 1);
                let char = |&c: &u32| char::from_u32(c).ok_or_else(|| anyhow!("string {i} is not Unicode"));
                s[..end].iter().map(char).collect::<Result<String>>()
            };
            String::wrap((0..n).map(text).collect::<Result<Vec<_>>>()?.into())
        }
    };
    if header.has_rows_in_order() {
        return Tensor::from_buf(header.dtype(), &header.shape, data);
    }
    // The first dimension is the closest.
    let steps: Vec<isize> =
        (0..header.shape.len()).map(|k| header.shape[..k].iter().product::<usize>() as isize).collect();
    with_data!(data, T, b => {
        let rows = gather::<T>(b.as_slice(), 0, &header.shape, &steps);
        Tensor::from_buf(header.dtype(), &header.shape, T::wrap(rows.into()))
    })
}

/// Reads a whole `.npy` file.
///
/// # Errors
/// See [`read_header`] and [`read_data`]; the array is larger than `limit` bytes.
pub fn read(reader: &mut dyn Read, limit: u64) -> Result<Tensor> {
    let header = read_header(reader)?;
    check_size(&header, limit)?;
    read_data(&header, reader)
}

/// Checks that a file of `size` bytes can hold the array, before anything is allocated for it.
pub(super) fn check_size(header: &Header, size: u64) -> Result<()> {
    let needed = header.data_start.saturating_add(header.n_bytes()? as u64);
    ensure!(needed <= size, "is truncated: shape {:?} needs {needed} bytes, the file has {size}", header.shape);
    Ok(())
}

/// `n` numbers, whose parts of `part` bytes (the halves of complex numbers) are reversed when `swap` says so.
fn numbers<T: Pod>(reader: &mut dyn Read, n: usize, swap: bool, part: usize) -> Result<Vec<T>> {
    let mut v = vec![T::zeroed(); n];
    read_parts(reader, bytemuck::cast_slice_mut(&mut v), if swap { part } else { 1 })?;
    Ok(v)
}

/// Fills `bytes` and reverses each part of them.
fn read_parts(reader: &mut dyn Read, bytes: &mut [u8], part: usize) -> Result<()> {
    reader.read_exact(bytes).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => anyhow!("is truncated: its elements end early"),
        _ => anyhow!(e),
    })?;
    if part > 1 {
        bytes.chunks_exact_mut(part).for_each(<[u8]>::reverse);
    }
    Ok(())
}

/// The storage and byte order of a NumPy type string.
fn element(descr: &str) -> Result<(Stored, bool)> {
    let (order, rest) = match descr.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
        _ => ("=", descr),
    };
    let swapped = match order {
        "<" => cfg!(target_endian = "big"),
        ">" => cfg!(target_endian = "little"),
        _ => false,
    };
    let stored = match rest {
        "f2" => Stored::Numbers(DType::F16),
        "f4" => Stored::Numbers(DType::F32),
        "f8" => Stored::Numbers(DType::F64),
        "i1" => Stored::Numbers(DType::I8),
        "i2" => Stored::Numbers(DType::I16),
        "i4" => Stored::Numbers(DType::I32),
        "i8" => Stored::Numbers(DType::I64),
        "u1" => Stored::Numbers(DType::U8),
        "u2" => Stored::Numbers(DType::U16),
        "u4" => Stored::Numbers(DType::U32),
        "u8" => Stored::Numbers(DType::U64),
        "b1" => Stored::Numbers(DType::Bool),
        "c8" => Stored::Numbers(DType::C64),
        "c16" => Stored::Numbers(DType::C128),
        "O" => {
            return Err(anyhow!("holds Python objects, which are never unpickled")).help(|| {
                "save arrays of numbers: samples of different shapes go into one file each (np.savez(\"0001.npz\", \
                 name=x))"
                    .into()
            });
        }
        _ => match (rest.chars().next(), rest.get(1..).and_then(|n| n.parse::<usize>().ok())) {
            (Some('S' | 'a'), Some(n)) if n < 1 << 24 => Stored::Bytes(n),
            (Some('U'), Some(n)) if n < 1 << 24 => Stored::Unicode(n),
            _ => bail!("has NumPy element type '{descr}', which is no type of ONNX"),
        },
    };
    Ok((stored, swapped))
}

/// The three entries of a header.
struct Dict {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Dict {
    /// Parses the Python literal of a header. Keys may come in any order.
    fn parse(text: &str) -> Result<Self> {
        let mut p = Parser(text.trim());
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        p.expect("{")?;
        while !p.accept("}") {
            let key = p.string()?;
            p.expect(":")?;
            match key.as_str() {
                "descr" if p.peek('[') => bail!("records (structured types) are not supported"),
                "descr" => descr = Some(p.string()?),
                "fortran_order" => fortran_order = Some(p.bool()?),
                "shape" => shape = Some(p.tuple()?),
                _ => bail!("unknown key '{key}'"),
            }
            if !p.accept(",") {
                p.expect("}")?;
                break;
            }
        }
        Ok(Dict {
            descr: descr.context("'descr' is missing")?,
            fortran_order: fortran_order.context("'fortran_order' is missing")?,
            shape: shape.context("'shape' is missing")?,
        })
    }
}

/// What is left of the text.
struct Parser<'a>(&'a str);

impl<'a> Parser<'a> {
    fn accept(&mut self, token: &str) -> bool {
        match self.0.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn peek(&self, c: char) -> bool {
        self.0.trim_start().starts_with(c)
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        ensure!(self.accept(token), "expected '{token}' at '{}'", self.0.chars().take(20).collect::<String>());
        Ok(())
    }

    fn until(&mut self, end: impl Fn(char) -> bool) -> &'a str {
        let text = self.0.trim_start();
        let (head, rest) = text.split_at(text.find(end).unwrap_or(text.len()));
        self.0 = rest;
        head
    }

    fn string(&mut self) -> Result<String> {
        let quote = if self.accept("'") {
            '\''
        } else if self.accept("\"") {
            '"'
        } else {
            bail!("expected a string")
        };
        let (text, rest) = self.0.split_once(quote).context("a string does not end")?;
        self.0 = rest;
        Ok(text.to_owned())
    }

    fn bool(&mut self) -> Result<bool> {
        if self.accept("True") {
            Ok(true)
        } else {
            self.expect("False")?;
            Ok(false)
        }
    }

    fn tuple(&mut self) -> Result<Vec<usize>> {
        self.expect("(")?;
        let mut dims = Vec::new();
        while !self.accept(")") {
            let number = self.until(|c| !c.is_ascii_digit());
            dims.push(number.parse().map_err(|_| anyhow!("bad dimension '{number}'"))?);
            // Python 2 wrote long integers with a suffix.
            self.accept("L");
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        ensure!(dims.len() <= 64, "{} dimensions", dims.len());
        Ok(dims)
    }
}

/// Writes a tensor as an `.npy` file of version 1, in row-major order and little endian; strings as UTF-32.
///
/// # Errors
/// NumPy has no such type (bfloat16, 8-bit floats and smaller types), or the writer fails.
pub fn write(tensor: &Tensor, writer: &mut dyn Write) -> Result<()> {
    let (descr, bytes) = encode(tensor)?;
    let dims: String = match tensor.shape() {
        [n] => format!("{n},"),
        shape => shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Magic, version and length take 10 bytes, the newline one; elements start at a multiple of 64.
    let padding = (64 - (10 + header.len() + 1) % 64) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let len = u16::try_from(header.len()).map_err(|_| anyhow!("too many dimensions for an .npy file"))?;
    writer.write_all(MAGIC)?;
    writer.write_all(&[1, 0])?;
    writer.write_all(&len.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    writer.write_all(&bytes)?;
    Ok(())
}

/// Writes named tensors as an `.npz` file, uncompressed as `numpy.savez` does, so that parts of it can be read.
///
/// # Errors
/// See [`write`].
pub fn write_npz<'a>(
    arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    writer: impl Write + std::io::Seek,
) -> Result<()> {
    let mut zip = zip::ZipWriter::new(writer);
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, tensor) in arrays {
        zip.start_file(format!("{name}.npy"), options.large_file(tensor.n_bytes() > 1 << 31))?;
        write(tensor, &mut zip).with_context(|| format!("array \"{name}\""))?;
    }
    zip.finish()?.flush()?;
    Ok(())
}

/// The named tensors of an `.npz` file, in the file's order.
///
/// # Errors
/// It cannot be read or is no `.npz` file, or an array is of a type that ONNX does not have.
pub fn read_npz(path: &std::path::Path) -> Result<Vec<(String, Tensor)>> {
    super::array::Array::npz(path)?.into_iter().map(|(name, array)| Ok((name, array.load()?))).collect()
}

/// NumPy's type string and the little-endian bytes of a tensor.
fn encode(tensor: &Tensor) -> Result<(String, Vec<u8>)> {
    fn little<T: Pod>(v: &[T], part: usize) -> Vec<u8> {
        let mut bytes = bytemuck::cast_slice(v).to_vec();
        if cfg!(target_endian = "big") && part > 1 {
            bytes.chunks_exact_mut(part).for_each(<[u8]>::reverse);
        }
        bytes
    }
    let dtype = tensor.dtype();
    Ok(match tensor.data() {
        Data::F32(b) => ("<f4".into(), little(b.as_slice(), 4)),
        Data::F64(b) => ("<f8".into(), little(b.as_slice(), 8)),
        Data::F16(b) => ("<f2".into(), little(b.as_slice(), 2)),
        Data::I8(b) if dtype == DType::I8 => ("|i1".into(), little(b.as_slice(), 1)),
        Data::I16(b) => ("<i2".into(), little(b.as_slice(), 2)),
        Data::I32(b) => ("<i4".into(), little(b.as_slice(), 4)),
        Data::I64(b) => ("<i8".into(), little(b.as_slice(), 8)),
        Data::U8(b) if dtype == DType::U8 => ("|u1".into(), little(b.as_slice(), 1)),
        Data::U16(b) => ("<u2".into(), little(b.as_slice(), 2)),
        Data::U32(b) => ("<u4".into(), little(b.as_slice(), 4)),
        Data::U64(b) => ("<u8".into(), little(b.as_slice(), 8)),
        Data::Bool(b) => ("|b1".into(), b.as_slice().iter().map(|&x| x.into()).collect()),
        Data::C64(b) => ("<c8".into(), little(b.as_slice(), 4)),
        Data::C128(b) => ("<c16".into(), little(b.as_slice(), 8)),
        Data::Str(b) => {
            let width = b.as_slice().iter().map(|s| s.chars().count()).max().unwrap_or(0).max(1);
            let mut bytes = Vec::with_capacity(b.as_slice().len() * width * 4);
            for s in b.as_slice() {
                let codes = s.chars().map(u32::from).chain(std::iter::repeat(0)).take(width);
                bytes.extend(codes.flat_map(u32::to_le_bytes));
            }
            (format!("<U{width}"), bytes)
        }
        _ => bail!("NumPy has no type {dtype}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version `version` with this header and these bytes.
    fn file(version: u8, header: &str, bytes: &[u8]) -> Vec<u8> {
        let mut f = MAGIC.to_vec();
        f.extend([version, 0]);
        if version == 1 {
            f.extend((header.len() as u16).to_le_bytes());
        } else {
            f.extend((header.len() as u32).to_le_bytes());
        }
        f.extend(header.as_bytes());
        f.extend(bytes);
        f
    }

    fn load(f: &[u8]) -> Result<Tensor> {
        read(&mut &*f, f.len() as u64)
    }

    #[test]
    fn reads_both_byte_orders_and_both_layouts() {
        let big: Vec<u8> = [1i32, 2, 3, 4, 5, 6].iter().flat_map(|x| x.to_be_bytes()).collect();
        let t = load(&file(1, "{'descr': '>i4', 'fortran_order': False, 'shape': (2, 3), }\n", &big)).unwrap();
        assert_eq!(t, Tensor::of(&[2, 3], vec![1i32, 2, 3, 4, 5, 6]));
        // Columns one after the other.
        let t = load(&file(2, "{'shape': (2, 3), 'fortran_order': True, 'descr': '>i4'}", &big)).unwrap();
        assert_eq!(t, Tensor::of(&[2, 3], vec![1i32, 3, 5, 2, 4, 6]));
        let t = load(&file(3, "{\"shape\":(2L,), \"fortran_order\":True, \"descr\":\"<c8\"}", &{
            [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()
        }))
        .unwrap();
        assert_eq!(t, Tensor::vector(vec![C64::new(1.0, 2.0), C64::new(3.0, 4.0)]));
    }

    #[test]
    fn writes_what_it_reads() {
        let tensors = [
            Tensor::scalar(1.5f32),
            Tensor::vector(vec![1.0f64, -0.0]),
            Tensor::of(&[2, 1], vec![f16::from_f32(1.5), f16::MAX]),
            Tensor::of(&[2, 2], vec![1i8, -2, 3, -128]),
            Tensor::vector(vec![1i16, -2]),
            Tensor::vector(vec![1i32, i32::MIN]),
            Tensor::vector(vec![1i64, i64::MAX]),
            Tensor::vector(vec![1u8, 255]),
            Tensor::vector(vec![1u16, 65535]),
            Tensor::vector(vec![1u32, u32::MAX]),
            Tensor::vector(vec![1u64, u64::MAX]),
            Tensor::vector(vec![true, false]),
            Tensor::vector(vec![C128::new(1.0, -1.0)]),
            Tensor::of(&[0, 3], Vec::<f32>::new()),
            Tensor::vector(vec!["a".to_owned(), "größer".to_owned(), String::new()]),
        ];
        for t in tensors {
            let mut f = Vec::new();
            write(&t, &mut f).unwrap();
            assert_eq!(f.len() % 64, (f.len() - read_header(&mut &f[..]).unwrap().data_start() as usize) % 64);
            assert_eq!(load(&f).unwrap(), t);
        }
        assert!(write(&Tensor::scalar(1u8).retyped(DType::U4).unwrap(), &mut Vec::new()).is_err());
    }

    #[test]
    fn refuses_what_it_should() {
        let header =
            |descr: &str, shape: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}");
        for (f, message) in [
            (file(1, &header("'|O'", "(1,)"), b"junk"), "Python objects"),
            (file(1, &header("[('a', '<f4')]", "(1,)"), &[0; 4]), "records"),
            (file(1, &header("'<M8[ns]'", "(1,)"), &[0; 8]), "no type of ONNX"),
            (file(1, &header("'<f4'", "(3,)"), &[0; 8]), "truncated"),
            (file(1, &header("'<f4'", "(4294967296, 4294967296, 4294967296)"), &[0; 8]), "too many elements"),
            (file(1, &header("'<f4'", "(4611686018427387903,)"), &[0; 8]), "too many elements"),
            (file(1, &header("'<f4'", "(-1,)"), &[0; 8]), "bad dimension"),
            (file(1, "{'descr': '<f4'", &[]), "bad .npy header"),
            (file(9, "", &[]), "version 9"),
            (b"PK\x03\x04 something else".to_vec(), "is no .npy file"),
            (b"\x93NU".to_vec(), "too short"),
        ] {
            let e = format!("{:#}", load(&f).unwrap_err());
            assert!(e.contains(message), "{e:?} does not say {message:?}");
        }
    }
}
