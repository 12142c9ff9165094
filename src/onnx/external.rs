//! Tensor data outside of the model file: where it may lie, and what of it a tensor takes.
//!
//! Each tensor's bytes are mapped when they are asked for and unmapped when nobody needs them any more: whoever goes
//! through a large model tensor by tensor has only one of them in memory.
//!
//! A location is a path relative to the model's folder, and a model that was downloaded must not be able to name any
//! other file of the machine: no absolute path, no `..`, and the file that it leads to, symbolic links followed, lies
//! in the model's folder or in the folder of the file that the model itself links to (download caches keep both model
//! and data as links into one folder of blobs).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::proto::TensorProto;
use super::read::map_range;
use crate::error::{Context, Result, WithHelp, anyhow, bail, ensure};

/// Where the elements of a tensor lie outside of the model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The file, relative to the model's folder.
    pub(super) location: String,
    /// The first byte.
    pub(super) offset: u64,
    /// The number of bytes; to the end of the file when it is not given.
    pub(super) length: Option<u64>,
}

impl Place {
    /// The place that the tensor's `external_data` names. Other keys, such as `checksum`, are left alone.
    pub(super) fn of(tensor: &TensorProto) -> Result<Self> {
        let mut place = Place { location: String::new(), offset: 0, length: None };
        for entry in &tensor.external_data {
            let value = entry.value();
            let number = || value.trim().parse::<u64>().map_err(|_| anyhow!("external {} {value:?}", entry.key()));
            match entry.key() {
                "location" => value.clone_into(&mut place.location),
                "offset" => place.offset = number()?,
                "length" => place.length = Some(number()?),
                _ => {}
            }
        }
        ensure!(!place.location.is_empty(), "external data without a location");
        Ok(place)
    }
}

/// A tensor's bytes in a data file.
#[derive(Debug, Clone)]
pub(super) struct Outside {
    file: Arc<File>,
    offset: u64,
    length: usize,
}

impl Outside {
    /// The bytes, mapped anew.
    ///
    /// # Errors
    /// The file is shorter by now, or cannot be mapped.
    pub(super) fn bytes(&self) -> Result<Bytes> {
        map_range(&self.file, self.offset, self.length).context("external data")
    }
}

/// The data files of a model, each opened once.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// The folders that data may lie in, canonical; none for a model without a folder.
    allowed: Vec<PathBuf>,
    base: PathBuf,
    /// Open files by location, each with its canonical path and its size.
    files: BTreeMap<String, (PathBuf, Arc<File>, u64)>,
}

impl Folder {
    /// The folder of the model file at `path`.
    pub(super) fn of_model(path: &Path) -> Result<Self> {
        let mut folder = Self::new(parent(path))?;
        if let Some(real) = path.canonicalize()?.parent()
            && !folder.allowed.iter().any(|a| a == real)
        {
            folder.allowed.push(real.to_path_buf());
        }
        Ok(folder)
    }

    /// A folder by itself.
    pub(super) fn new(base: &Path) -> Result<Self> {
        let canonical = base.canonicalize().with_context(|| format!("folder {}", base.display()))?;
        Ok(Folder { allowed: vec![canonical], base: base.to_path_buf(), files: BTreeMap::new() })
    }

    /// The bytes at `place`, of which there have to be `expected`.
    pub(super) fn find(&mut self, place: &Place, expected: usize) -> Result<Outside> {
        let (file, size) = match self.files.get(&place.location) {
            Some((_, file, size)) => (Arc::clone(file), *size),
            None => {
                let (path, file, size) = self.open(&place.location)?;
                self.files.insert(place.location.clone(), (path, Arc::clone(&file), size));
                (file, size)
            }
        };
        let length = match place.length {
            Some(length) => length,
            None => u64::try_from(expected)?,
        };
        place.offset.checked_add(length).filter(|&end| end <= size).ok_or_else(|| {
            anyhow!("{} has {size} bytes, expected {length} from byte {}", place.location, place.offset)
        })?;
        ensure!(
            length == u64::try_from(expected)?,
            "{length} bytes of external data, expected {expected} by data type and shape"
        );
        Ok(Outside { file, offset: place.offset, length: expected })
    }

    fn open(&self, location: &str) -> Result<(PathBuf, Arc<File>, u64)> {
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if self.allowed.is_empty() {
            bail!("external data {location:?}, but the model has no folder");
        }
        // A backslash is a separator on one system and part of a name on the others.
        ensure!(
            Path::new(location).components().all(inside) && !location.contains(['\\', '\0']),
            "external data {location:?} lies outside of the model's folder"
        );
        let path = self.base.join(location);
        let real = path
            .canonicalize()
            .with_context(|| format!("external data file {}", path.display()))
            .help(|| "put the data file next to the model, under the name that the model expects".into())?;
        ensure!(
            self.allowed.iter().any(|a| real.starts_with(a)),
            "external data {location:?} leads outside of the model's folder, to {}",
            real.display()
        );
        let open = || -> Result<_> {
            let file = File::open(&real)?;
            let meta = file.metadata()?;
            ensure!(meta.is_file(), "is not a regular file");
            Ok((Arc::new(file), meta.len()))
        };
        let (file, size) = open().with_context(|| format!("external data file {}", path.display()))?;
        Ok((real, file, size))
    }

    /// The canonical paths of the files that were read.
    pub(super) fn into_paths(self) -> impl Iterator<Item = PathBuf> {
        self.files.into_values().map(|(path, ..)| path)
    }
}

/// The folder that a file lies in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::proto::StringStringEntryProto;
    use super::*;

    fn place(location: &str, offset: u64, length: Option<u64>) -> Place {
        Place { location: location.into(), offset, length }
    }

    #[test]
    fn only_files_of_the_folder_are_read() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("model");
        fs::create_dir_all(inner.join("sub")).unwrap();
        fs::write(outer.path().join("secret"), b"secret").unwrap();
        fs::write(inner.join("data"), b"0123456789").unwrap();
        fs::write(inner.join("sub/data"), b"abc").unwrap();
        let secret = outer.path().join("secret").display().to_string();
        let mut folder = Folder::new(&inner).unwrap();

        assert_eq!(&folder.find(&place("data", 2, Some(3)), 3).unwrap().bytes().unwrap()[..], b"234");
        assert_eq!(&folder.find(&place("./data", 0, None), 4).unwrap().bytes().unwrap()[..], b"0123");
        assert_eq!(&folder.find(&place("sub/data", 1, Some(2)), 2).unwrap().bytes().unwrap()[..], b"bc");
        for (location, offset, length, expected, error) in [
            ("../secret", 0, None, 6, "outside of the model's folder"),
            ("sub/../../secret", 0, None, 6, "outside of the model's folder"),
            (secret.as_str(), 0, None, 6, "outside of the model's folder"),
            ("..\\secret", 0, None, 6, "outside of the model's folder"),
            ("da\0ta", 0, None, 6, "outside of the model's folder"),
            ("missing", 0, None, 1, "external data file"),
            ("sub", 0, None, 1, "external data file"),
            ("data", 8, Some(3), 3, "data has 10 bytes, expected 3 from byte 8"),
            ("data", u64::MAX, Some(3), 3, "data has 10 bytes"),
            ("data", 0, Some(u64::MAX), 3, "data has 10 bytes"),
            ("data", 0, Some(4), 3, "4 bytes of external data, expected 3"),
            ("data", 8, None, 3, "data has 10 bytes, expected 3 from byte 8"),
        ] {
            let found = folder.find(&place(location, offset, length), expected).unwrap_err();
            assert!(format!("{found:#}").contains(error), "{location}: {found:#}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_may_not_lead_out_except_in_a_cache_of_blobs() {
        use std::os::unix::fs::symlink;
        let outer = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (outer.path().join("blobs"), outer.path().join("snapshot"));
        fs::create_dir(&blobs).unwrap();
        fs::create_dir(&snapshot).unwrap();
        fs::write(blobs.join("1"), b"model").unwrap();
        fs::write(blobs.join("2"), b"data").unwrap();
        fs::write(outer.path().join("3"), b"else").unwrap();
        symlink("../blobs/1", snapshot.join("model.onnx")).unwrap();
        symlink("../blobs/2", snapshot.join("data")).unwrap();
        symlink("../3", snapshot.join("other")).unwrap();

        let mut cache = Folder::of_model(&snapshot.join("model.onnx")).unwrap();
        assert_eq!(&cache.find(&place("data", 0, None), 4).unwrap().bytes().unwrap()[..], b"data");
        assert!(cache.find(&place("other", 0, None), 4).is_err());
        let mut plain = Folder::new(&snapshot).unwrap();
        assert!(format!("{:#}", plain.find(&place("data", 0, None), 4).unwrap_err()).contains("leads outside"));
    }

    #[test]
    fn entries_are_parsed() {
        let tensor = |entries: &[(&str, &str)]| TensorProto {
            external_data: entries
                .iter()
                .map(|&(k, v)| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) })
                .collect(),
            ..Default::default()
        };
        let of = |entries| Place::of(&tensor(entries)).map_err(|e| format!("{e:#}"));
        assert_eq!(of(&[("location", "a"), ("offset", "4"), ("checksum", "x")]), Ok(place("a", 4, None)));
        assert_eq!(of(&[("location", "a"), ("length", "9")]), Ok(place("a", 0, Some(9))));
        assert_eq!(of(&[("location", "a"), ("length", "-9")]), Err("external length \"-9\"".into()));
        assert_eq!(of(&[("offset", "4")]), Err("external data without a location".into()));
    }
}
