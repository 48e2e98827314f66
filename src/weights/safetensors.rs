//! The safetensors format: `[n: u64][n bytes of JSON][data]`, the JSON giving each tensor's dtype, shape and offsets.
//!
//! Stricter than common readers: a name may stand only once, and the tensors must cover the data without gap or
//! overlap, so that no two readers can see two different models in one file.

use super::stored::{Source, elements};
use super::{Format, TensorInfo};
use crate::error::Place;
use crate::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

/// The longest header the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// What a file's header says.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of the safetensors file at `path`.
///
/// # Errors
/// [`Error::Input`] if the header is broken or does not fit the file; [`Error::Io`] if it cannot be read.
pub fn header(path: &Path) -> Result<Header> {
    parse(path, Source::mapped(path)?.bytes())
}

/// Checks the header of a file whose content is `bytes`; `path` is for messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let start = data_start(path, bytes)?;
    let json: RawHeader = serde_json::from_slice(&bytes[8..start])
        .map_err(|e| Error::input(Place::file(path), "a JSON header listing each tensor once", e.to_string()))?;
    let mut tensors = Vec::with_capacity(json.tensors.len());
    for (name, raw) in json.tensors {
        tensors.push(check(path, name, raw, start, bytes.len())?);
    }
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    check_cover(path, &tensors, start, bytes.len())?;
    Ok(Header { tensors, metadata: json.metadata })
}

/// Where the data starts.
fn data_start(path: &Path, bytes: &[u8]) -> Result<usize> {
    let broken = |expected: &str, got: String| {
        Error::input(Place::file(path), expected, got).hint("not a safetensors file, or an incomplete download")
    };
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(broken("a header length of 8 bytes", format!("a file of {} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let rest = (bytes.len() - 8) as u64;
    if length > rest.min(LONGEST_HEADER) {
        let expected = format!("a header of at most {} bytes", rest.min(LONGEST_HEADER));
        return Err(broken(&expected, format!("a header length of {length}")));
    }
    Ok(8 + length as usize)
}

fn check(path: &Path, name: String, raw: RawTensor, start: usize, end: usize) -> Result<TensorInfo> {
    let wrong = |expected: String, got: String| Err(Error::input(Place::file(path).of(&name), expected, got));
    let [from, to] = raw.data_offsets;
    let data = (end - start) as u64;
    if from > to || to > data {
        return wrong(format!("data offsets within 0..{data}"), format!("{from}..{to}"));
    }
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let Some((shape, count)) = shape.and_then(|s| elements(&s).map(|n| (s, n))) else {
        return wrong("a shape that fits in memory".to_owned(), format!("{:?}", raw.shape));
    };
    if let Some(bits) = bits(&raw.dtype) {
        let expected = (count as u64).checked_mul(bits).filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8);
        if expected != Some(to - from) {
            let size = expected.map_or("a whole number of".to_owned(), |n| n.to_string());
            return wrong(format!("{size} bytes for {} {shape:?}", raw.dtype), format!("{} bytes", to - from));
        }
    }
    let range = start + from as usize..start + to as usize;
    Ok(TensorInfo { format: format(&raw.dtype), dtype: raw.dtype, name, shape, range })
}

/// The tensors, in order, cover the data exactly.
fn check_cover(path: &Path, tensors: &[TensorInfo], start: usize, end: usize) -> Result<()> {
    let mut next = start;
    for tensor in tensors {
        let Range { start: from, end: to } = tensor.range;
        if from != next {
            let got = if from < next { "bytes of two tensors" } else { "bytes of no tensor before it" };
            let place = Place::file(path).of(&tensor.name);
            return Err(Error::input(
                place,
                format!("data from offset {}", next - start),
                format!("{got}, from {}", from - start),
            ));
        }
        next = to;
    }
    if next != end {
        let (expected, got) = (format!("{} bytes of data", next - start), format!("{}", end - start));
        return Err(Error::input(Place::file(path), expected, got).hint("bytes that belong to no tensor"));
    }
    Ok(())
}

/// Bits of one element; `None` for a dtype that is not known.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

fn format(dtype: &str) -> Option<Format> {
    [Format::F64, Format::F32, Format::F16, Format::BF16].into_iter().find(|f| f.name() == dtype)
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("{name} twice")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value::<Option<UniqueMap<String>>>()?.unwrap_or_default().0;
            } else {
                let raw = map.next_value().map_err(|e| A::Error::custom(format_args!("{name}: {e}")))?;
                header.tensors.push((name, raw));
            }
        }
        Ok(header)
    }
}

/// A JSON object in which a key may stand only once.
pub(super) struct UniqueMap<V>(pub(super) BTreeMap<String, V>);

impl<V> Default for UniqueMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
        let mut values = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.contains_key(&key) {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format_args!("{key} twice")));
            }
            values.insert(key, map.next_value()?);
        }
        Ok(UniqueMap(values))
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
