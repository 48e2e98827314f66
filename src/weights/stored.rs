//! One weight as it lies in its file: a name, a shape, and a range of mapped bytes.

use super::{Format, quant};
use crate::dtype::{DType, Element};
use crate::{Error, Result};
use bytemuck::allocation::try_cast_vec;
use memmap2::Mmap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that tensors point into: a mapped file, or values made in memory.
pub(super) struct Source {
    pub(super) path: PathBuf,
    buffer: Buffer,
}

enum Buffer {
    Mapped(Mmap),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<u8>),
}

impl Source {
    pub(super) fn mapped(path: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { path: path.to_path_buf(), buffer: Buffer::Mapped(super::map::map(path)?) }))
    }

    /// What a file of these bytes would be.
    #[cfg(test)]
    pub(super) fn in_memory(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { path: PathBuf::from("m.gguf"), buffer: Buffer::Bytes(bytes) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Buffer::Mapped(map) => map,
            Buffer::F32(values) => bytemuck::cast_slice(values),
            Buffer::F64(values) => bytemuck::cast_slice(values),
            Buffer::Bytes(bytes) => bytes,
        }
    }
}

/// A weight in the form it is stored in. Cloning copies a reference, not the data.
#[derive(Clone)]
pub struct StoredTensor {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    shape: Vec<usize>,
    format: Format,
    source: Arc<Source>,
    range: Range<usize>,
}

impl StoredTensor {
    /// The caller has checked that `range` lies inside `source` and is `shape` in `format`.
    pub(super) fn new(name: &str, shape: &[usize], format: Format, source: &Arc<Source>, range: &Range<usize>) -> Self {
        let inner = Inner {
            name: name.to_owned(),
            shape: shape.to_vec(),
            format,
            source: Arc::clone(source),
            range: range.clone(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A weight that is not in any file, of `shape` (row-major), stored as `E`.
    ///
    /// # Errors
    /// [`Error::Op`] if `shape` does not hold exactly `values.len()` elements.
    pub fn from_values<E: Element>(name: &str, shape: &[usize], values: Vec<E>) -> Result<Self> {
        if elements(shape) != Some(values.len()) {
            let got = format!("{} values", values.len());
            return Err(Error::op("from_values", format!("values for {name} of shape {shape:?}"), got));
        }
        let (format, buffer) = if E::DTYPE == DType::F32 {
            (Format::F32, try_cast_vec(values).map(Buffer::F32).map_err(|(e, _)| e))
        } else {
            (Format::F64, try_cast_vec(values).map(Buffer::F64).map_err(|(e, _)| e))
        };
        // Casting a vector to its own type does not fail.
        let buffer = buffer.map_err(|e| Error::op("from_values", format!("{}", E::DTYPE), e.to_string()))?;
        Ok(Self::owned(name, shape, format, buffer))
    }

    /// A weight that is not in any file, of `shape` (row-major), from its bytes in `format`.
    ///
    /// # Errors
    /// [`Error::Op`] if `bytes` is not exactly `shape` in `format`, or a row is not whole blocks.
    pub fn from_bytes(name: &str, shape: &[usize], format: Format, bytes: Vec<u8>) -> Result<Self> {
        let whole = shape.last().copied().unwrap_or(1).is_multiple_of(format.block_len());
        let expected = elements(shape).and_then(|n| format.bytes(n));
        if !whole || expected != Some(bytes.len()) {
            let got = format!("{} bytes", bytes.len());
            return Err(Error::op("from_bytes", format!("bytes of {name} {shape:?} as {format}"), got));
        }
        Ok(Self::owned(name, shape, format, Buffer::Bytes(bytes)))
    }

    fn owned(name: &str, shape: &[usize], format: Format, buffer: Buffer) -> Self {
        let source = Arc::new(Source { path: PathBuf::from("(memory)"), buffer });
        let range = 0..source.bytes().len();
        Self::new(name, shape, format, &source, &range)
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The shape, row-major, outermost dimension first (for GGUF: ggml's order reversed). Empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.inner.shape
    }

    /// How the elements are laid out.
    pub fn format(&self) -> Format {
        self.inner.format
    }

    /// The file, for messages; `(memory)` for a tensor that has none.
    pub fn path(&self) -> &Path {
        &self.inner.source.path
    }

    /// The elements as they are stored.
    pub fn bytes(&self) -> &[u8] {
        &self.inner.source.bytes()[self.inner.range.clone()]
    }

    /// Number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        let format = self.format();
        self.inner.range.len() / format.block_bytes() * format.block_len()
    }

    /// The elements in place, if they are stored as exactly `E`, aligned, in this machine's byte order.
    pub fn as_slice<E: Element>(&self) -> Option<&[E]> {
        let stored_as = if E::DTYPE == DType::F32 { Format::F32 } else { Format::F64 };
        if self.format() != stored_as || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes()).ok()
    }

    /// Writes elements `first..first + out.len()`, in storage order, to `out`.
    ///
    /// `first` and `out.len()` are multiples of the format's block length.
    ///
    /// # Panics
    /// If the range reaches past the tensor's end.
    pub fn widen<E: Element>(&self, first: usize, out: &mut [E]) {
        let (len, size) = (self.format().block_len(), self.format().block_bytes());
        debug_assert!(
            first.is_multiple_of(len) && out.len().is_multiple_of(len),
            "{}: {} elements from {first} are not whole blocks of {len}",
            self.name(),
            out.len()
        );
        let bytes = &self.bytes()[first / len * size..][..out.len() / len * size];
        quant::widen(self.format(), bytes, out);
    }
}

impl fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {:?} in {}", self.name(), self.format(), self.shape(), self.path().display())
    }
}

/// The number of elements of `shape`; `None` if it does not fit the machine.
pub(super) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn owned_values_are_read_in_place_and_widened() {
        let t = StoredTensor::from_values("w", &[2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!((t.name(), t.shape(), t.len(), t.format()), ("w", &[2, 3][..], 6, Format::F32));
        assert_eq!(t.as_slice::<f32>().unwrap()[4], 5.0);
        assert!(t.as_slice::<f64>().is_none());
        let mut out = [0f64; 2];
        t.widen(3, &mut out);
        assert_eq!(out, [4.0, 5.0]);
        let d = StoredTensor::from_values("d", &[], vec![0.1f64]).unwrap();
        assert_eq!(d.as_slice::<f64>(), Some(&[0.1][..]));
        let mut out = [0f32];
        d.widen(0, &mut out);
        assert_eq!(out, [0.1f32]);
    }

    #[test]
    fn shapes_that_do_not_fit_the_values_are_refused() {
        assert!(StoredTensor::from_values("w", &[2, 2], vec![0f32; 3]).is_err());
        assert!(StoredTensor::from_values("w", &[usize::MAX, 2], vec![0f32; 3]).is_err());
        assert!(StoredTensor::from_bytes("w", &[2, 16], Format::Q8_0, vec![0; 34]).is_err());
        assert!(StoredTensor::from_bytes("w", &[1, 32], Format::Q8_0, vec![0; 34]).is_ok());
    }

    #[test]
    fn halves_widen_wherever_they_lie() {
        for odd in [0, 1] {
            let mut bytes = vec![0; odd];
            (0..100).for_each(|i| bytes.extend(f16::from_f32(i as f32 / 8.0).to_le_bytes()));
            (0..100).for_each(|i| bytes.extend(bf16::from_f32(i as f32 / 8.0).to_le_bytes()));
            let source = Arc::new(Source { path: "".into(), buffer: Buffer::Bytes(bytes) });
            for (format, start) in [(Format::F16, odd), (Format::BF16, odd + 200)] {
                let t = StoredTensor::new("w", &[100], format, &source, &(start..start + 200));
                let (mut single, mut double) = ([0f32; 37], [0f64; 37]);
                t.widen(5, &mut single);
                t.widen(5, &mut double);
                assert!((0..37).all(|i| single[i] == (i + 5) as f32 / 8.0 && double[i] == (i + 5) as f64 / 8.0));
            }
        }
    }
}
