//! A matrix on a device: rows of a stream by features.
//!
//! Everything that flows through a model here is a matrix: the stream has a row per token, and heads lie side by side
//! in a row. A clone shares the memory; writing to shared memory copies it first.

use crate::device::{Buffer, Device, Kind};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use std::sync::Arc;

/// A matrix of `rows` × `cols` elements, row after row.
#[derive(Debug, Clone)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    dtype: DType,
    buffer: Arc<Buffer>,
    device: Device,
}

/// Runs an expression with `$E` bound to the Rust type of a [`DType`].
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $E = f32;
                $body
            }
            $crate::dtype::DType::F64 => {
                type $E = f64;
                $body
            }
        }
    };
}
pub(crate) use with_element;

impl Tensor {
    /// A matrix whose contents are unspecified: the caller writes every element.
    pub fn scratch(device: &Device, rows: usize, cols: usize, dtype: DType, kind: Kind) -> Self {
        let buffer = device.allocate(rows * cols * dtype.size(), kind);
        Self { rows, cols, dtype, buffer: Arc::new(buffer), device: device.clone() }
    }

    /// A matrix of zeros.
    pub fn zeros(device: &Device, rows: usize, cols: usize, dtype: DType, kind: Kind) -> Self {
        let mut tensor = Self::scratch(device, rows, cols, dtype, kind);
        with_element!(dtype, E => tensor.make_mut::<E>().fill(E::ZERO));
        tensor
    }

    /// A matrix holding `values`, row after row.
    ///
    /// # Errors
    /// [`Error::Op`] if there are not `rows × cols` of them.
    pub fn from_slice<E: Element>(device: &Device, rows: usize, cols: usize, values: &[E], kind: Kind) -> Result<Self> {
        if values.len() != rows * cols {
            return Err(Error::op("tensor", format!("{rows} × {cols} elements"), format!("{}", values.len())));
        }
        let mut tensor = Self::scratch(device, rows, cols, E::DTYPE, kind);
        tensor.make_mut::<E>().copy_from_slice(values);
        Ok(tensor)
    }

    /// A matrix of type `dtype` holding `values` rounded to it, row after row.
    ///
    /// # Errors
    /// [`Error::Op`] if there are not `rows × cols` of them.
    pub fn from_f64(
        device: &Device,
        rows: usize,
        cols: usize,
        dtype: DType,
        values: &[f64],
        kind: Kind,
    ) -> Result<Self> {
        with_element!(dtype, E => {
            let rounded: Vec<E> = values.iter().map(|&value| E::from_f64(value)).collect();
            Self::from_slice(device, rows, cols, &rounded, kind)
        })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, row after row.
    ///
    /// # Panics
    /// If `E` is not the tensor's type: ops check types before they get here.
    pub fn as_slice<E: Element>(&self) -> &[E] {
        assert_eq!(self.dtype, E::DTYPE, "a tensor read as another type");
        &self.buffer.as_slice::<E>()[..self.rows * self.cols]
    }

    /// The elements, to be written; copied first if the memory is shared.
    ///
    /// # Panics
    /// If `E` is not the tensor's type.
    pub fn make_mut<E: Element>(&mut self) -> &mut [E] {
        assert_eq!(self.dtype, E::DTYPE, "a tensor written as another type");
        if Arc::get_mut(&mut self.buffer).is_none() {
            *self = self.copy_rows(self.rows, self.buffer.kind());
        }
        let length = self.rows * self.cols;
        let buffer = Arc::get_mut(&mut self.buffer).expect("the buffer is not shared");
        &mut buffer.as_mut_slice::<E>()[..length]
    }

    /// Whether no other tensor shares the memory.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }

    /// Row `row`.
    pub fn row<E: Element>(&self, row: usize) -> &[E] {
        &self.as_slice::<E>()[row * self.cols..(row + 1) * self.cols]
    }

    /// The first `rows` rows, sharing the memory.
    pub fn prefix(&self, rows: usize) -> Self {
        debug_assert!(rows <= self.rows);
        Self { rows, ..self.clone() }
    }

    /// The first `rows` rows in memory of their own.
    pub fn copy_rows(&self, rows: usize, kind: Kind) -> Self {
        let mut copy = Self::scratch(&self.device, rows, self.cols, self.dtype, kind);
        with_element!(self.dtype, E => {
            let source = &self.as_slice::<E>()[..rows * self.cols];
            copy.make_mut::<E>().copy_from_slice(source);
        });
        copy
    }

    /// Counts the tensor's memory under `kind` from now on.
    pub fn retag(&self, kind: Kind) {
        self.buffer.retag(kind);
    }

    /// The bytes of memory behind the tensor, also where it shows only some of the rows.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// All elements as f64, exactly.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        with_element!(self.dtype, E => self.as_slice::<E>().iter().map(|&x| Element::to_f64(x)).collect())
    }

    /// `self += other`, element by element.
    ///
    /// # Errors
    /// [`Error::Op`] if the shapes or types differ.
    pub fn add_assign(&mut self, other: &Self) -> Result<()> {
        if (self.rows, self.cols, self.dtype) != (other.rows, other.cols, other.dtype) {
            return Err(Error::op("add", self.describe(), other.describe()));
        }
        with_element!(self.dtype, E => {
            let other = other.as_slice::<E>();
            crate::ops::simd::add_assign(self.make_mut::<E>(), other);
        });
        Ok(())
    }

    /// Shape and type in words, for errors.
    pub fn describe(&self) -> String {
        format!("[{}, {}] {}", self.rows, self.cols, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_to_shared_memory_copies_it() {
        let device = Device::cpu(Some(1)).unwrap();
        let mut a = Tensor::from_slice(&device, 2, 2, &[1f32, 2.0, 3.0, 4.0], Kind::Workspace).unwrap();
        let b = a.clone();
        a.make_mut::<f32>()[0] = 9.0;
        assert_eq!(b.as_slice::<f32>(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(a.as_slice::<f32>(), [9.0, 2.0, 3.0, 4.0]);
        assert_eq!(b.prefix(1).as_slice::<f32>(), [1.0, 2.0]);
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let device = Device::cpu(Some(1)).unwrap();
        let mut a = Tensor::zeros(&device, 2, 2, DType::F32, Kind::Workspace);
        let b = Tensor::zeros(&device, 2, 3, DType::F32, Kind::Workspace);
        assert_eq!(a.add_assign(&b).unwrap_err().to_string(), "add: expected [2, 2] f32, got [2, 3] f32");
        assert!(Tensor::from_slice(&device, 2, 2, &[0f32; 3], Kind::Workspace).is_err());
    }
}
