//! Small safetensors files: prompts and optimizer states, read whole and strictly, written with the same bytes each
//! time.
//!
//! Models are another matter (memory-mapped, see the weights module); here every tensor is copied out as f32 or f64.

use crate::error::{Error, Place, Result};
use crate::storage;
use crate::values::Values;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// The largest file read: above any prompt and optimizer state, below what would exhaust memory by mistake.
pub const MAX_BYTES: u64 = 1 << 30;

/// One tensor of a [`TensorFile`].
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its shape; the product is the number of values.
    pub shape: Vec<usize>,
    /// Its values, row by row. F16 and BF16 in the file are widened to f32, exactly.
    pub values: Values,
}

/// The content of a small safetensors file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TensorFile {
    /// The floating-point tensors, by name in rising order.
    pub tensors: Vec<NamedTensor>,
    /// The names of tensors of other types, whose values are not read.
    pub others: Vec<String>,
    /// The `__metadata__` entries.
    pub meta: BTreeMap<String, String>,
}

impl TensorFile {
    /// Reads the whole file at `path`.
    ///
    /// # Errors
    /// `Input` where the file is missing, larger than [`MAX_BYTES`], truncated or no safetensors file, names a tensor
    /// twice, or its header does not fit its bytes; `Io` where the system refuses.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(&storage::read_limited(path, MAX_BYTES)?).map_err(|e| e.in_file(path))
    }

    /// Parses a whole file's bytes.
    ///
    /// # Errors
    /// As [`TensorFile::read`], without a path.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (header_len, header) = SafeTensors::read_metadata(bytes).map_err(|e| broken(e.to_string()))?;
        check_unique(&bytes[8..8 + header_len])?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| broken(e.to_string()))?;
        let meta = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut out = Self { meta, ..Self::default() };
        let mut views: Vec<_> = file.iter().collect();
        views.sort_by(|a, b| a.0.cmp(b.0));
        for (name, view) in views {
            match widen(view.dtype(), view.data()) {
                Some(values) => {
                    out.tensors.push(NamedTensor { name: name.to_owned(), shape: view.shape().to_vec(), values })
                }
                None => out.others.push(name.to_owned()),
            }
        }
        Ok(out)
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&NamedTensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The file's bytes: `__metadata__` first, then the tensors as they are listed, f64 before f32 so that each stands
    /// on a multiple of its size. Equal content gives equal bytes.
    ///
    /// # Errors
    /// `Op` where a shape does not fit its values or two tensors share a name.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut order: Vec<&NamedTensor> = self.tensors.iter().collect();
        order.sort_by_key(|t| matches!(t.values, Values::F32(_)));
        let mut header = serde_json::Map::new();
        if !self.meta.is_empty() {
            header.insert("__metadata__".into(), json!(self.meta));
        }
        let mut data = Vec::new();
        for tensor in order {
            let start = data.len();
            check_shape(tensor)?;
            data.extend(tensor.values.to_le_bytes());
            let dtype = tensor.values.dtype().to_string().to_uppercase();
            let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
            if header.insert(tensor.name.clone(), entry).is_some() {
                return Err(Error::op("TensorFile::to_bytes", "names that differ", format!("{} twice", tensor.name)));
            }
        }
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text);
        out.extend(data);
        Ok(out)
    }
}

fn check_shape(tensor: &NamedTensor) -> Result<()> {
    let count = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if count != Some(tensor.values.len()) {
        let got = format!("{} of shape {:?}", tensor.name, tensor.shape);
        return Err(Error::op("TensorFile::to_bytes", format!("a shape of {} values", tensor.values.len()), got));
    }
    Ok(())
}

fn broken(reason: impl Into<String>) -> Error {
    Error::input(Place::default(), "a whole safetensors file", reason)
        .hint("the file is truncated, damaged or of another format")
}

/// The values of a floating-point tensor; `None` for other types.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Values> {
    let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    Some(match dtype {
        Dtype::F64 => Values::F64(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
        Dtype::F32 => Values::F32(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Values::F32(halves().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Values::F32(halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        _ => return None,
    })
}

/// Refuses a header that has a key twice: readers disagree on which of the two counts.
fn check_unique(header: &[u8]) -> Result<()> {
    let checked: std::result::Result<UniqueKeys, _> = serde_json::from_slice(header);
    checked.map(|_| ()).map_err(|e| broken(e.to_string()))
}

struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<UniqueKeys, A::Error> {
                let mut seen = BTreeSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    map.next_value::<IgnoredAny>()?;
                    if let Some(key) = seen.replace(key) {
                        return Err(A::Error::custom(format!("the tensor {key} is there twice")));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.extend(data);
        out
    }

    fn tensor(name: &str, shape: &[usize], values: Values) -> NamedTensor {
        NamedTensor { name: name.into(), shape: shape.to_vec(), values }
    }

    #[test]
    fn what_is_written_is_read_back_bit_for_bit_and_writes_are_equal() {
        let file = TensorFile {
            tensors: vec![
                tensor("a", &[3], Values::F32(vec![1.0 / 3.0, -0.0, f32::MIN_POSITIVE / 2.0])),
                tensor("b", &[1, 2], Values::F64(vec![1.0 / 3.0, 5e-324])),
                tensor("none", &[0, 4], Values::F32(vec![])),
            ],
            others: vec![],
            meta: BTreeMap::from([("k".into(), "ü\"".into()), ("step".into(), "3".into())]),
        };
        let bytes = file.to_bytes().unwrap();
        assert_eq!(bytes, file.clone().to_bytes().unwrap());
        assert_eq!(TensorFile::from_bytes(&bytes).unwrap(), file);
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.tensor("b").unwrap().shape(), [1, 2]);
    }

    #[test]
    fn half_precision_is_widened_exactly_and_other_types_are_named() {
        let header = r#"{"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]},"i":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}}"#;
        let file = TensorFile::from_bytes(&raw(header, &[0x00, 0x3c, 0x01, 0x00, 0xc0, 0x3f, 1, 2])).unwrap();
        assert_eq!(file.get("h").unwrap().values, Values::F32(vec![1.0, 5.960_464_5e-8]));
        assert_eq!(file.get("b").unwrap().values, Values::F32(vec![1.5]));
        assert_eq!(file.others, ["i"]);
    }

    #[test]
    fn hostile_files_are_refused() {
        let entry = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("empty", vec![]),
            ("only a length", 8u64.to_le_bytes().to_vec()),
            ("header longer than the file", u64::MAX.to_le_bytes().to_vec()),
            ("header no JSON", raw("not json", &[])),
            ("header a list", raw("[1, 2]", &[])),
            ("shape larger than bytes", raw(&entry("[3]", "[0,8]"), &[0; 8])),
            ("shape overflowing", raw(&entry("[4611686018427387905,4]", "[0,16]"), &[0; 16])),
            ("offsets past the end", raw(&entry("[2]", "[8,16]"), &[0; 8])),
            ("offsets reversed", raw(&entry("[2]", "[8,0]"), &[0; 8])),
            ("truncated data", raw(&entry("[2]", "[0,8]"), &[0; 7])),
            ("bytes after the data", raw(&entry("[2]", "[0,8]"), &[0; 9])),
            ("unknown dtype", raw(&entry("[2]", "[0,8]").replace("F32", "F33"), &[0; 8])),
        ];
        for (what, bytes) in cases {
            let error = TensorFile::from_bytes(&bytes).expect_err(what);
            assert_eq!(error.exit_code(), 4, "{what}: {error}");
        }
        let one = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        let error = TensorFile::from_bytes(&raw(&format!("{{{one},{one}}}"), &[0; 4])).unwrap_err();
        assert!(error.to_string().contains("a is there twice"), "{error}");
    }

    #[test]
    fn a_tensor_that_does_not_fit_its_shape_is_not_written() {
        let bad = TensorFile { tensors: vec![tensor("a", &[2, 2], Values::F32(vec![1.0]))], ..Default::default() };
        assert_eq!(bad.to_bytes().unwrap_err().exit_code(), 1);
        let t = tensor("a", &[1], Values::F32(vec![1.0]));
        let twice = TensorFile { tensors: vec![t.clone(), t], ..Default::default() };
        assert_eq!(twice.to_bytes().unwrap_err().exit_code(), 1);
    }
}
