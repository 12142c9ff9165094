//! An array in a file: its header is read when the data set is opened, its elements when a sample is asked for.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use zip::{CompressionMethod, ZipArchive};

use super::npy::{self, Header};
use crate::error::{Context, Result, anyhow, ensure};
use crate::tensor::{Buf, DType, Tensor};
use crate::with_data;

/// Deflate cannot shrink anything more than this; a member that claims otherwise lies about its size.
const MAX_DEFLATE_RATIO: u64 = 1040;

/// An array in a file.
pub(super) struct Array {
    path: PathBuf,
    place: Place,
    /// All elements, kept when single rows of an array that cannot be read in part were asked for.
    whole: OnceLock<Tensor>,
}

enum Place {
    Npy(Header),
    Npz {
        member: usize,
        name: String,
        header: Header,
        is_compressed: bool,
    },
    /// A `TensorProto`: small files whose type is known once they are read.
    Pb,
}

impl Array {
    /// The array of an `.npy` file.
    pub(super) fn npy(path: &Path) -> Result<Self> {
        let what = || format!("cannot read '{}'", path.display());
        let file = File::open(path).with_context(what)?;
        let size = file.metadata().with_context(what)?.len();
        let header = npy::read_header(&mut BufReader::new(file)).with_context(what)?;
        npy::check_size(&header, size).with_context(what)?;
        Ok(Array { path: path.into(), place: Place::Npy(header), whole: OnceLock::new() })
    }

    /// Elements that a file of `size` bytes holds without a header of their own.
    pub(super) fn raw(path: &Path, header: Header, size: u64) -> Result<Self> {
        npy::check_size(&header, size).with_context(|| format!("cannot read '{}'", path.display()))?;
        Ok(Array { path: path.into(), place: Place::Npy(header), whole: OnceLock::new() })
    }

    /// The arrays of an `.npz` file by name, in the file's order.
    pub(super) fn npz(path: &Path) -> Result<Vec<(String, Self)>> {
        let what = || format!("cannot read '{}'", path.display());
        let mut zip = open_zip(path).with_context(what)?;
        let mut arrays = Vec::with_capacity(zip.len());
        for member in 0..zip.len() {
            let mut file = zip.by_index(member).with_context(what)?;
            let full = file.name().with_context(what)?.into_owned();
            let Some(name) = full.strip_suffix(".npy").map(str::to_owned) else { continue };
            let what = || format!("cannot read array \"{name}\" of '{}'", path.display());
            let (size, compressed) = (file.size(), file.compressed_size());
            ensure!(
                size / MAX_DEFLATE_RATIO <= compressed.saturating_add(64),
                "'{}': array \"{name}\" claims {size} bytes out of {compressed}",
                path.display()
            );
            let is_compressed = file.compression() != CompressionMethod::Stored;
            let header = npy::read_header(&mut file).with_context(what)?;
            npy::check_size(&header, size).with_context(what)?;
            let place = Place::Npz { member, name: name.clone(), header, is_compressed };
            arrays.push((name, Array { path: path.into(), place, whole: OnceLock::new() }));
        }
        Ok(arrays)
    }

    /// The tensor of a file that holds one encoded `TensorProto`.
    pub(super) fn pb(path: &Path) -> Self {
        Array { path: path.into(), place: Place::Pb, whole: OnceLock::new() }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file and the array in it, for messages.
    pub(super) fn label(&self) -> String {
        match &self.place {
            Place::Npz { name, .. } => format!("'{}', array \"{name}\"", self.path.display()),
            Place::Npy(_) | Place::Pb => format!("'{}'", self.path.display()),
        }
    }

    /// Element type and shape, if the file says so before its elements are read.
    pub(super) fn ty(&self) -> Option<(DType, &[usize])> {
        match &self.place {
            Place::Npy(h) | Place::Npz { header: h, .. } => Some((h.dtype(), h.shape())),
            Place::Pb => None,
        }
    }

    /// All elements.
    pub(super) fn load(&self) -> Result<Tensor> {
        let read = self.read();
        // Reading a tensor file says the path by itself.
        if matches!(self.place, Place::Pb) {
            read
        } else {
            read.with_context(|| format!("cannot read {}", self.label()))
        }
    }

    fn read(&self) -> Result<Tensor> {
        match &self.place {
            Place::Npy(header) => {
                let mut file = File::open(&self.path)?;
                file.seek(SeekFrom::Start(header.data_start()))?;
                npy::read_data(header, &mut file)
            }
            Place::Npz { member, header, .. } => {
                let mut zip = open_zip(&self.path)?;
                let mut file = zip.by_index(*member)?;
                npy::read_header(&mut file)?;
                let tensor = npy::read_data(header, &mut file)?;
                // Reading to the end is what makes the archive's checksum count.
                std::io::copy(&mut file, &mut std::io::sink())?;
                Ok(tensor)
            }
            Place::Pb => Ok(crate::onnx::read_tensor_pb(&self.path)?.1),
        }
    }

    /// `n` rows (along the first axis) from row `start` on, read without the others where the file allows it.
    pub(super) fn rows(&self, start: usize, n: usize) -> Result<Tensor> {
        let what = || format!("cannot read {}", self.label());
        match &self.place {
            Place::Npy(header) if header.has_rows_in_order() => {
                let mut file = File::open(&self.path).with_context(what)?;
                let offset = header.data_start() + row_offset(header, start)?;
                file.seek(SeekFrom::Start(offset)).with_context(what)?;
                npy::read_data(&header.rows(n), &mut file).with_context(what)
            }
            Place::Npz { member, header, is_compressed: false, .. } if header.has_rows_in_order() => {
                let mut zip = open_zip(&self.path).with_context(what)?;
                let mut file = zip.by_index_seek(*member).with_context(what)?;
                let offset = header.data_start() + row_offset(header, start)?;
                file.seek(SeekFrom::Start(offset)).with_context(what)?;
                npy::read_data(&header.rows(n), &mut file).with_context(what)
            }
            _ => {
                if self.whole.get().is_none() {
                    // Another thread may be as fast; both read the same.
                    let _ = self.whole.set(self.load()?);
                }
                let whole = self.whole.get().ok_or_else(|| anyhow!("{} was not kept", self.label()))?;
                slice_rows(whole, start, n)
            }
        }
    }
}

fn open_zip(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut magic = [0u8; 2];
    let is_zip = file.read_exact(&mut magic).is_ok() && &magic == b"PK";
    ensure!(is_zip, "is no .npz file: it is no zip archive");
    file.rewind()?;
    ZipArchive::new(file).context("is no .npz file")
}

/// Bytes of the rows before `start`.
fn row_offset(header: &Header, start: usize) -> Result<u64> {
    Ok(header.rows(start).n_bytes()? as u64)
}

/// `n` rows of a tensor from row `start` on.
fn slice_rows(t: &Tensor, start: usize, n: usize) -> Result<Tensor> {
    let mut shape = t.shape().to_vec();
    let first = shape.first_mut().ok_or_else(|| anyhow!("a scalar has no rows"))?;
    ensure!(start + n <= *first, "rows {start} to {} of {first}", start + n);
    *first = n;
    let row: usize = shape[1..].iter().product();
    with_data!(t.data(), T, b => {
        let rows = b.as_slice()[start * row..(start + n) * row].to_vec();
        Tensor::from_buf(t.dtype(), &shape, <T as crate::tensor::Element>::wrap(Buf::from(rows)))
    })
}
