//! The weights of a frozen model: opened where they lie, mapped, never copied.
//!
//! A model is a directory in Hugging Face layout, one `.safetensors` file or one `.gguf` file. Everything a header
//! says is checked against the file when it is opened, so that reading a tensor later cannot go wrong.

mod format;
pub mod gguf;
pub mod locate;
mod map;
mod matrix;
mod open;
mod parameter;
mod quant;
pub mod safetensors;
mod stored;

pub use format::Format;
pub(crate) use matrix::Resident;
pub use matrix::{Axis, Matrix, Orientation, Panel};
pub use parameter::{Parameter, Place as ParameterPlace};
pub use stored::StoredTensor;

use crate::error::Place;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stored::Source;

/// An opened model: its files, mapped, and the tensors they hold.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    gguf: Option<gguf::Metadata>,
}

struct Entry {
    info: TensorInfo,
    source: Arc<Source>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in {}", self.info, self.source.path.display())
    }
}

/// What a file's header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// The type as the file names it, also where this crate cannot read it.
    pub dtype: String,
    /// The type, if this crate can read it.
    pub format: Option<Format>,
    /// The shape, row-major, outermost dimension first.
    pub shape: Vec<usize>,
    /// Where in its file the tensor's bytes lie. Empty if the size of the type is not known.
    pub range: Range<usize>,
}

impl Weights {
    /// Opens a model: a directory in Hugging Face layout (`model.safetensors`, or `model.safetensors.index.json` and
    /// its shards, or else the only `.gguf` file), a `.safetensors` file, or a `.gguf` file.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no model, or a header is broken or does not fit its file; [`Error::Io`] if the
    /// system refuses to read. A tensor of a type this crate cannot read is no error until it is asked for.
    pub fn open(path: &Path) -> Result<Self> {
        open::open(path).map_err(|error| {
            error.or_hint("the file is damaged, incomplete or of another format: download or convert the model again")
        })
    }

    /// The file or directory that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`Error::Input`] if there is none, naming those with similar names, or if its type cannot be read.
    pub fn get(&self, name: &str) -> Result<StoredTensor> {
        let Some(entry) = self.tensors.get(name) else { return Err(self.missing(name)) };
        entry.open(name)
    }

    /// The tensor called `name`, if there is one that can be read.
    ///
    /// Where a tensor of an unreadable type must not pass for a missing one, use [`Weights::optional`].
    pub fn find(&self, name: &str) -> Option<StoredTensor> {
        self.optional(name).ok().flatten()
    }

    /// The tensor called `name`, or `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Input`] if the type of the tensor cannot be read.
    pub fn optional(&self, name: &str) -> Result<Option<StoredTensor>> {
        self.tensors.get(name).map(|entry| entry.open(name)).transpose()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What the headers say of each tensor, and the file it is in; sorted by name.
    pub fn infos(&self) -> impl Iterator<Item = (&TensorInfo, &Path)> {
        self.tensors.values().map(|entry| (&entry.info, entry.source.path.as_path()))
    }

    /// The safetensors files' `__metadata__`; empty for GGUF.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The metadata of a GGUF file.
    pub fn gguf(&self) -> Option<&gguf::Metadata> {
        self.gguf.as_ref()
    }

    fn missing(&self, name: &str) -> Error {
        let near = near(name, self.names());
        let hint = match (near.is_empty(), self.tensors.first_key_value(), self.tensors.last_key_value()) {
            (false, ..) => format!("similar names in it: {}", near.join(", ")),
            (true, Some((first, _)), Some((last, _))) => {
                format!("it holds {} tensors, from {first} to {last}", self.tensors.len())
            }
            _ => "it holds no tensors".to_owned(),
        };
        Error::input(Place::file(&self.path).of(name), "a tensor of this name", "none").hint(hint)
    }
}

impl Entry {
    fn open(&self, name: &str) -> Result<StoredTensor> {
        let info = &self.info;
        let Some(format) = info.format else {
            let place = Place::file(&self.source.path).of(name);
            return Err(Error::input(place, format!("one of {}", Format::names()), info.dtype.clone())
                .hint("convert the model to a type that can be read"));
        };
        Ok(StoredTensor::new(name, &info.shape, format, &self.source, &info.range))
    }
}

/// Up to three of `names` that `wanted` may be a slip for: the same but for what stands before it, or a few letters
/// off.
fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    const LONGEST: usize = 200;
    let dotted = |whole: &str, end: &str| whole.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'));
    let mut scored: Vec<_> = names
        .filter(|name| name.len().max(wanted.len()) <= LONGEST)
        .filter_map(|name| {
            if dotted(name, wanted) || dotted(wanted, name) {
                return Some((0, name));
            }
            let limit = wanted.len() / 4 + 1;
            let near_enough = name.len().abs_diff(wanted.len()) <= limit;
            let distance = if near_enough { edits(wanted.as_bytes(), name.as_bytes()) } else { usize::MAX };
            (distance <= limit).then_some((distance, name))
        })
        .collect();
    scored.sort_unstable();
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Levenshtein distance.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        assert_eq!(edits(b"kitten", b"sitting"), 3);
        assert_eq!(edits(b"", b"abc"), 3);
        assert_eq!(edits(b"abc", b"abc"), 0);
    }

    #[test]
    fn near_misses_are_found_by_ending_and_by_spelling() {
        let names = ["h.0.attn.weight", "h.1.attn.weight", "ln_f.weight", "wte.weight"];
        assert_eq!(near("transformer.ln_f.weight", names.into_iter()), ["ln_f.weight"]);
        assert_eq!(near("h.0.atn.weight", names.into_iter())[0], "h.0.attn.weight");
        assert!(near("lm_head.bias", names.into_iter()).is_empty());
    }
}
