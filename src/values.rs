//! Host buffers that keep the element type they were stored in, and hashes over their exact bits.
//!
//! Files hold f32 or f64; a prompt that travels through one must come back with the same bits, so nothing here
//! converts unless it is asked to.

use crate::dtype::{DType, Element};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// A flat buffer of f32 or f64.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// 32-bit floating point.
    F32(Vec<f32>),
    /// 64-bit floating point.
    F64(Vec<f64>),
}

impl Values {
    /// A copy of `values` in their own type.
    pub fn from_slice<E: Element>(values: &[E]) -> Self {
        if E::DTYPE == DType::F32 {
            Self::F32(values.iter().map(|v| v.to_f32()).collect())
        } else {
            Self::F64(values.iter().map(|v| v.to_f64()).collect())
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index` as f64, exactly; `None` past the end.
    pub fn get(&self, index: usize) -> Option<f64> {
        match self {
            Self::F32(v) => v.get(index).map(|&x| f64::from(x)),
            Self::F64(v) => v.get(index).copied(),
        }
    }

    /// The elements as `E`: exact unless f64 is narrowed to f32 (then rounded to nearest).
    pub fn to_vec<E: Element>(&self) -> Vec<E> {
        match self {
            Self::F32(v) => v.iter().map(|&x| E::from_f32(x)).collect(),
            Self::F64(v) => v.iter().map(|&x| E::from_f64(x)).collect(),
        }
    }

    /// The elements' bytes, little-endian.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// The first `len` elements; all of them where there are fewer.
    #[must_use]
    pub fn prefix(&self, len: usize) -> Self {
        match self {
            Self::F32(v) => Self::F32(v[..len.min(v.len())].to_vec()),
            Self::F64(v) => Self::F64(v[..len.min(v.len())].to_vec()),
        }
    }

    /// The index of the first element that is infinite or NaN.
    pub fn first_non_finite(&self) -> Option<usize> {
        match self {
            Self::F32(v) => v.iter().position(|x| !x.is_finite()),
            Self::F64(v) => v.iter().position(|x| !x.is_finite()),
        }
    }
}

/// SHA-256 of `bytes`, in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The hash that tells two prompts apart: SHA-256, in hex, over `rows` and `cols` as 64-bit little-endian integers and
/// then the `[rows, cols]` values' little-endian bytes in their own type.
///
/// Two prompts have one hash exactly if they have the same shape, type and bits.
pub fn prompt_hash(rows: usize, cols: usize, values: &Values) -> String {
    let mut sha = Sha256::new();
    sha.update((rows as u64).to_le_bytes());
    sha.update((cols as u64).to_le_bytes());
    sha.update(values.to_le_bytes());
    hex(&sha.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_standard_one() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_prompt_hash_sees_shape_type_and_every_bit() {
        let values = Values::F32(vec![0.0, 1.0, 2.0, 3.0]);
        let hash = prompt_hash(2, 2, &values);
        // Python: hashlib.sha256(struct.pack('<QQ4f', 2, 2, 0, 1, 2, 3)).
        assert_eq!(hash, "a79f2a8c54bb2a3777f8caf831791a95bfd7cf238062c3e2cab6bbae4af94080");
        assert_ne!(hash, prompt_hash(4, 1, &values));
        assert_ne!(hash, prompt_hash(2, 2, &Values::F64(vec![0.0, 1.0, 2.0, 3.0])));
        assert_ne!(hash, prompt_hash(2, 2, &Values::F32(vec![-0.0, 1.0, 2.0, 3.0])));
    }

    #[test]
    fn values_keep_their_type_and_bits() {
        let odd = [f32::MIN_POSITIVE / 8.0, -0.0, 1.0 / 3.0];
        let values = Values::from_slice(&odd);
        assert_eq!(values.dtype(), DType::F32);
        assert_eq!(values.to_vec::<f32>().map_bits(), odd.to_vec().map_bits());
        assert_eq!(values.to_vec::<f64>()[2], f64::from(1.0f32 / 3.0));
        assert_eq!(Values::from_slice(&[1.0f64 / 3.0]).to_vec::<f64>(), [1.0 / 3.0]);
        assert_eq!(Values::F64(vec![0.0, f64::NAN]).first_non_finite(), Some(1));
        assert_eq!(values.prefix(9).len(), 3);
    }

    trait Bits {
        fn map_bits(self) -> Vec<u32>;
    }
    impl Bits for Vec<f32> {
        fn map_bits(self) -> Vec<u32> {
            self.into_iter().map(f32::to_bits).collect()
        }
    }
}
