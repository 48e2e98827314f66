//! The GGUF format, versions 2 and 3: metadata, a table of tensors, and their data.
//!
//! Little-endian throughout: `GGUF`, version u32, number of tensors u64, number of metadata entries u64, the entries,
//! the table, then, aligned, the data. Every count and length is checked against what is left of the file before
//! anything is reserved for it, and arrays stay in the file until they are walked.

#[cfg(test)]
pub(crate) mod build;
mod cursor;
mod value;

pub use value::{Array, Value};

use super::stored::{Source, elements};
use super::{Format, TensorInfo};
use crate::error::Place;
use crate::{Error, Result};
use cursor::Cursor;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Dimensions a tensor can have.
const MOST_DIMENSIONS: u32 = 4;
/// Bytes a metadata entry takes at least: an empty key, a type, a value.
const SMALLEST_ENTRY: usize = 8 + 4 + 1;
/// Bytes a line of the tensor table takes at least: an empty name, no dimension, a type, an offset.
const SMALLEST_TENSOR: usize = 8 + 4 + 4 + 8;

/// The metadata of a GGUF file.
#[derive(Debug, Clone)]
pub struct Metadata {
    path: PathBuf,
    version: u32,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The string `key`, or `None` if there is no such key.
    ///
    /// # Errors
    /// [`Error::Input`] if it is not a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The integer `key`, or `None` if there is no such key.
    ///
    /// # Errors
    /// [`Error::Input`] if it is not an integer, or is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer that is not negative", |value| match value {
            Value::U64(n) => Some(*n),
            Value::I64(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// The number `key`, or `None` if there is no such key.
    ///
    /// # Errors
    /// [`Error::Input`] if it is neither a floating-point number nor an integer.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            Value::F64(x) => Some(*x),
            Value::U64(n) => Some(*n as f64),
            Value::I64(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// The truth value `key`, or `None` if there is no such key.
    ///
    /// # Errors
    /// [`Error::Input`] if it is not a truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// The array `key`, or `None` if there is no such key.
    ///
    /// # Errors
    /// [`Error::Input`] if it is not an array.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(Error::input(Place::file(&self.path).of(key), expected, format!("{value:.80}"))),
        }
    }
}

/// Parses the header of the GGUF file that is `source`.
pub(super) fn parse(path: &Path, source: &Arc<Source>) -> Result<(Metadata, Vec<TensorInfo>)> {
    let mut cursor = Cursor::new(path, source.bytes());
    let version = preamble(&mut cursor)?;
    let tensors = cursor.u64("the number of tensors")?;
    let entries = cursor.count(SMALLEST_ENTRY, "metadata entries")?;
    let mut values = BTreeMap::new();
    for _ in 0..entries {
        let key = cursor.string("a metadata key")?.to_owned();
        let value = value::read(&mut cursor, source, &key)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(Error::input(Place::file(path).of(key), "each metadata key once", "it twice"));
        }
    }
    let metadata = Metadata { path: path.to_path_buf(), version, values };
    let alignment = alignment(&metadata)?;
    let tensors = cursor.check_count(tensors, SMALLEST_TENSOR, "tensors")?;
    let mut raw = Vec::with_capacity(tensors);
    for _ in 0..tensors {
        raw.push(RawTensor::read(&mut cursor)?);
    }
    let start = cursor.at().next_multiple_of(alignment);
    Ok((metadata, place(path, raw, start, source.bytes().len(), alignment)?))
}

fn preamble(cursor: &mut Cursor<'_>) -> Result<u32> {
    let place = Place::file(cursor.path());
    let magic = cursor.take(4, "the magic")?;
    if magic != b"GGUF" {
        let got = format!("\"{}\"", magic.escape_ascii());
        return Err(Error::input(place, "the magic \"GGUF\" at its start", got).hint("not a GGUF file"));
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        v if matches!(v.swap_bytes(), 1..=3) => {
            Err(Error::input(place, "a little-endian file", "a big-endian one")
                .hint("convert the model on this machine"))
        }
        v => Err(Error::input(place, "GGUF version 2 or 3", format!("version {v}")).hint("convert the model anew")),
    }
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    let alignment = metadata.u64("general.alignment")?.unwrap_or(32);
    match usize::try_from(alignment) {
        Ok(n) if n.is_power_of_two() && n <= 1 << 20 => Ok(n),
        _ => {
            let place = Place::file(&metadata.path).of("general.alignment");
            Err(Error::input(place, "a power of two up to 2^20", alignment.to_string()))
        }
    }
}

struct RawTensor {
    name: String,
    /// Row-major: ggml's order reversed.
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl RawTensor {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let name = cursor.string("a tensor's name")?.to_owned();
        let dimensions = cursor.u32("a tensor's number of dimensions")?;
        if dimensions > MOST_DIMENSIONS {
            let place = Place::file(cursor.path()).of(name);
            return Err(Error::input(place, format!("at most {MOST_DIMENSIONS} dimensions"), dimensions.to_string()));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let length = cursor.u64("a tensor's shape")?;
            let Ok(length) = usize::try_from(length) else {
                let place = Place::file(cursor.path()).of(name);
                return Err(Error::input(place, "a shape that fits in memory", length.to_string()));
            };
            shape.insert(0, length);
        }
        Ok(Self { name, shape, kind: cursor.u32("a tensor's type")?, offset: cursor.u64("a tensor's offset")? })
    }
}

/// Turns offsets into checked ranges of the file: aligned, in bounds, without overlap.
fn place(path: &Path, raw: Vec<RawTensor>, start: usize, end: usize, alignment: usize) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::with_capacity(raw.len());
    let mut tensors = Vec::with_capacity(raw.len());
    for tensor in raw {
        if !names.insert(tensor.name.clone()) {
            return Err(Error::input(Place::file(path).of(tensor.name), "each tensor once", "it twice"));
        }
        tensors.push(place_one(path, tensor, start, end, alignment)?);
    }
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    for pair in tensors.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let got = format!("bytes of {} too", pair[0].name);
            return Err(Error::input(Place::file(path).of(&pair[1].name), "bytes of its own", got));
        }
    }
    Ok(tensors)
}

fn place_one(path: &Path, raw: RawTensor, start: usize, end: usize, alignment: usize) -> Result<TensorInfo> {
    let wrong = |expected: String, got: String| Err(Error::input(Place::file(path).of(&raw.name), expected, got));
    let kind = KINDS.iter().find(|kind| kind.id == raw.kind);
    let dtype = kind.map_or_else(|| format!("type {}", raw.kind), |kind| kind.name.to_owned());
    let Some(count) = elements(&raw.shape) else {
        return wrong("a shape that fits in memory".to_owned(), format!("{:?}", raw.shape));
    };
    let size = match kind {
        // The size of a type nobody has told us of is not known; asking for the tensor will be an error.
        None => 0,
        Some(kind) if !raw.shape.last().unwrap_or(&1).is_multiple_of(kind.block_len) => {
            return wrong(
                format!("rows of whole blocks of {} for {dtype}", kind.block_len),
                format!("{:?}", raw.shape),
            );
        }
        Some(kind) => (count / kind.block_len).saturating_mul(kind.block_bytes),
    };
    if !raw.offset.is_multiple_of(alignment as u64) {
        return wrong(format!("an offset that is a multiple of {alignment}"), raw.offset.to_string());
    }
    let from = usize::try_from(raw.offset).ok().and_then(|offset| offset.checked_add(start));
    match from.and_then(|from| Some(from..from.checked_add(size)?)) {
        Some(range) if range.end <= end => {
            let format = Format::ALL.into_iter().find(|format| format.name() == dtype);
            Ok(TensorInfo { name: raw.name, dtype, format, shape: raw.shape, range })
        }
        _ => {
            let got = format!("{size} bytes from {}", raw.offset);
            let error = Error::input(
                Place::file(path).of(&raw.name),
                format!("bytes within the {} of the data", end.saturating_sub(start)),
                got,
            );
            Err(error.hint("the file is cut off: download it again"))
        }
    }
}

/// A tensor type of ggml.
struct Kind {
    id: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

const fn kind(id: u32, name: &'static str, block_len: usize, block_bytes: usize) -> Kind {
    Kind { id, name, block_len, block_bytes }
}

/// ggml's tensor types, those that can be read and those whose size alone is known.
const KINDS: [Kind; 33] = [
    kind(0, "F32", 1, 4),
    kind(1, "F16", 1, 2),
    kind(2, "Q4_0", 32, 18),
    kind(3, "Q4_1", 32, 20),
    kind(6, "Q5_0", 32, 22),
    kind(7, "Q5_1", 32, 24),
    kind(8, "Q8_0", 32, 34),
    kind(10, "Q2_K", 256, 84),
    kind(11, "Q3_K", 256, 110),
    kind(12, "Q4_K", 256, 144),
    kind(13, "Q5_K", 256, 176),
    kind(14, "Q6_K", 256, 210),
    kind(15, "Q8_K", 256, 292),
    kind(16, "IQ2_XXS", 256, 66),
    kind(17, "IQ2_XS", 256, 74),
    kind(18, "IQ3_XXS", 256, 98),
    kind(19, "IQ1_S", 256, 50),
    kind(20, "IQ4_NL", 32, 18),
    kind(21, "IQ3_S", 256, 110),
    kind(22, "IQ2_S", 256, 82),
    kind(23, "IQ4_XS", 256, 136),
    kind(24, "I8", 1, 1),
    kind(25, "I16", 1, 2),
    kind(26, "I32", 1, 4),
    kind(27, "I64", 1, 8),
    kind(28, "F64", 1, 8),
    kind(29, "IQ1_M", 256, 56),
    kind(30, "BF16", 1, 2),
    kind(34, "TQ1_0", 256, 54),
    kind(35, "TQ2_0", 256, 66),
    kind(39, "MXFP4", 32, 17),
    kind(40, "NVFP4", 64, 36),
    kind(41, "Q1_0", 128, 18),
];

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
