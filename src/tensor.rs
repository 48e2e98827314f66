//! A matrix on a device: rows of a stream by features.
//!
//! Everything that flows through a model here is a matrix: the stream has a row per token, and heads lie side by side
//! in a row. A clone shares the memory; writing to shared memory copies it first.

use crate::device::{Buffer, Device, Kind, Operand, unwind};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::values::Values;
use half::bf16;
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

/// Runs an expression with `$E` bound to the Rust type of a [`DType`] that a CPU computes in.
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
            $crate::dtype::DType::BF16 => unreachable!("bf16 on a CPU, where no tensor has it"),
        }
    };
}
pub(crate) use with_element;

impl Tensor {
    /// A matrix whose contents are unspecified: the caller writes every element.
    pub fn scratch(device: &Device, rows: usize, cols: usize, dtype: DType, kind: Kind) -> Self {
        debug_assert!(device.computes_in(dtype), "{dtype} on {}", device.name());
        let buffer = device.allocate(rows * cols * dtype.size(), kind);
        Self { rows, cols, dtype, buffer: Arc::new(buffer), device: device.clone() }
    }

    /// A matrix of zeros.
    pub fn zeros(device: &Device, rows: usize, cols: usize, dtype: DType, kind: Kind) -> Self {
        let mut buffer = device.allocate(rows * cols * dtype.size(), kind);
        buffer.clear().unwrap_or_else(|failed| unwind(failed));
        Self::from_buffer(device, rows, cols, dtype, buffer)
    }

    /// A matrix with every element `value`.
    ///
    /// # Errors
    /// [`Error::Device`] where a GPU fails.
    pub fn full(device: &Device, rows: usize, cols: usize, dtype: DType, value: f64, kind: Kind) -> Result<Self> {
        let mut buffer = device.allocate(rows * cols * dtype.size(), kind);
        match dtype {
            DType::F32 => buffer.fill_words((value as f32).to_bits())?,
            DType::F64 | DType::BF16 => {
                return Self::from_f64(device, rows, cols, dtype, &vec![value; rows * cols], kind);
            }
        }
        Ok(Self::from_buffer(device, rows, cols, dtype, buffer))
    }

    /// A matrix holding `values`, row after row.
    ///
    /// # Errors
    /// [`Error::Op`] if there are not `rows × cols` of them.
    pub fn from_slice<E: Element>(device: &Device, rows: usize, cols: usize, values: &[E], kind: Kind) -> Result<Self> {
        if values.len() != rows * cols {
            return Err(Error::op("tensor", format!("{rows} × {cols} elements"), format!("{}", values.len())));
        }
        Self::from_bytes(device, rows, cols, E::DTYPE, bytemuck::cast_slice(values), kind)
    }

    /// A matrix whose elements `buffer` holds.
    pub(crate) fn from_buffer(device: &Device, rows: usize, cols: usize, dtype: DType, buffer: Buffer) -> Self {
        debug_assert_eq!(buffer.len(), rows * cols * dtype.size());
        Self { rows, cols, dtype, buffer: Arc::new(buffer), device: device.clone() }
    }

    fn from_bytes(device: &Device, rows: usize, cols: usize, dtype: DType, bytes: &[u8], kind: Kind) -> Result<Self> {
        let mut buffer = device.allocate(rows * cols * dtype.size(), kind);
        buffer.upload(bytes)?;
        Ok(Self::from_buffer(device, rows, cols, dtype, buffer))
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
        if values.len() != rows * cols {
            return Err(Error::op("tensor", format!("{rows} × {cols} elements"), format!("{}", values.len())));
        }
        if dtype == DType::BF16 {
            let rounded: Vec<bf16> = values.iter().map(|&value| bf16::from_f64(value)).collect();
            return Self::from_bytes(device, rows, cols, dtype, bytemuck::cast_slice(&rounded), kind);
        }
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

    /// The elements, row after row, of a tensor on the CPU.
    ///
    /// # Panics
    /// If `E` is not the tensor's type, or the tensor lives on a GPU: ops check both before they get here.
    pub fn as_slice<E: Element>(&self) -> &[E] {
        assert_eq!(self.dtype, E::DTYPE, "a tensor read as another type");
        &self.buffer.as_slice::<E>()[..self.rows * self.cols]
    }

    /// The elements, to be written, of a tensor on the CPU; copied first if the memory is shared.
    ///
    /// # Panics
    /// If `E` is not the tensor's type, or the tensor lives on a GPU.
    pub fn make_mut<E: Element>(&mut self) -> &mut [E] {
        assert_eq!(self.dtype, E::DTYPE, "a tensor written as another type");
        let length = self.rows * self.cols;
        &mut self.buffer_mut().as_mut_slice::<E>()[..length]
    }

    /// The memory, to be written; copied first if it is shared.
    pub(crate) fn buffer_mut(&mut self) -> &mut Buffer {
        if Arc::get_mut(&mut self.buffer).is_none() {
            *self = self.copy_rows(self.rows, self.buffer.kind());
        }
        Arc::get_mut(&mut self.buffer).expect("the buffer is not shared")
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
        let bytes = rows * self.cols * self.dtype.size();
        let mut buffer = self.device.allocate(bytes, kind);
        buffer.copy_from(0, &self.buffer, 0, bytes).unwrap_or_else(|failed| unwind(failed));
        Self { rows, buffer: Arc::new(buffer), ..self.clone() }
    }

    /// The rows of all `parts`, one part after the other; of a single part its own memory.
    ///
    /// # Errors
    /// [`Error::Op`] for no parts, or parts of different widths or types; [`Error::Device`] where a GPU fails.
    pub fn stacked(parts: &[&Self], kind: Kind) -> Result<Self> {
        let &[first, ref others @ ..] = parts else {
            return Err(Error::op("stack", "at least one tensor", "none"));
        };
        if others.is_empty() {
            return Ok(first.clone());
        }
        if let Some(other) = others.iter().find(|other| (other.cols, other.dtype) != (first.cols, first.dtype)) {
            return Err(Error::op("stack", format!("rows as of {}", first.describe()), other.describe()));
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        let row_bytes = first.cols * first.dtype.size();
        let mut buffer = first.device.allocate(rows * row_bytes, kind);
        let mut to = 0;
        for part in parts {
            let bytes = part.rows * row_bytes;
            buffer.copy_from(to, &part.buffer, 0, bytes)?;
            to += bytes;
        }
        Ok(Self { rows, buffer: Arc::new(buffer), ..first.clone() })
    }

    /// The parts of what [`Tensor::stacked`] made, `rows` of each, in memory of their own; a single part is all of it.
    ///
    /// # Errors
    /// [`Error::Op`] if these are not all rows; [`Error::Device`] where a GPU fails.
    pub fn unstacked(self, rows: &[usize], kind: Kind) -> Result<Vec<Self>> {
        if rows.iter().sum::<usize>() != self.rows {
            return Err(Error::op("unstack", format!("{} rows in all", self.rows), format!("{rows:?}")));
        }
        if rows.len() == 1 {
            return Ok(vec![self]);
        }
        let row_bytes = self.cols * self.dtype.size();
        let mut from = 0;
        let parts = rows.iter().map(|&rows| {
            let bytes = rows * row_bytes;
            let mut buffer = self.device.allocate(bytes, kind);
            buffer.copy_from(0, &self.buffer, from, bytes)?;
            from += bytes;
            Ok(Self { rows, buffer: Arc::new(buffer), ..self.clone() })
        });
        parts.collect()
    }

    /// Writes the rows of `source` over rows `placement`.
    ///
    /// # Errors
    /// [`Error::Op`] for shapes that do not fit; [`Error::Device`] where a GPU fails.
    pub fn write_rows(&mut self, placement: &[usize], source: &Self) -> Result<()> {
        let fits = placement.len() == source.rows && placement.iter().all(|&row| row < self.rows);
        if !fits || (source.cols, source.dtype) != (self.cols, self.dtype) {
            let expected = format!("{} rows for places in {}", placement.len(), self.describe());
            return Err(Error::op("write_rows", expected, source.describe()));
        }
        let row_bytes = self.cols * self.dtype.size();
        let target = self.buffer_mut();
        let mut from = 0;
        for run in placement.chunk_by(|a, b| a + 1 == *b) {
            target.copy_from(run[0] * row_bytes, &source.buffer, from * row_bytes, run.len() * row_bytes)?;
            from += run.len();
        }
        Ok(())
    }

    /// Copies the first `rows` rows of `source` over the first of this.
    ///
    /// # Errors
    /// [`Error::Op`] for shapes that do not fit; [`Error::Device`] where a GPU fails.
    pub fn copy_from_prefix(&mut self, source: &Self, rows: usize) -> Result<()> {
        if rows > self.rows.min(source.rows) || (source.cols, source.dtype) != (self.cols, self.dtype) {
            return Err(Error::op("copy", format!("{rows} rows within {}", self.describe()), source.describe()));
        }
        let bytes = rows * self.cols * self.dtype.size();
        self.buffer_mut().copy_from(0, &source.buffer, 0, bytes)
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
    ///
    /// # Errors
    /// [`Error::Device`] where a GPU fails.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        if self.dtype == DType::BF16 {
            let mut values = vec![bf16::ZERO; self.len()];
            self.buffer.download(bytemuck::cast_slice_mut(&mut values))?;
            return Ok(values.into_iter().map(bf16::to_f64).collect());
        }
        with_element!(self.dtype, E => Ok(self.to_vec::<E>()?.into_iter().map(Element::to_f64).collect()))
    }

    /// A copy of all elements, row after row.
    ///
    /// # Errors
    /// [`Error::Op`] if `E` is not the tensor's type; [`Error::Device`] where a GPU fails.
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>> {
        if self.dtype != E::DTYPE {
            return Err(Error::op("to_vec", E::DTYPE.to_string(), self.describe()));
        }
        let mut values = vec![E::ZERO; self.len()];
        self.buffer.download(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Copies all elements out as bytes; as many bytes must be given.
    ///
    /// # Errors
    /// [`Error::Op`] if there are more; [`Error::Device`] where a GPU fails.
    pub(crate) fn download(&self, bytes: &mut [u8]) -> Result<()> {
        self.buffer.download(bytes)
    }

    /// A matrix holding `values`, row after row, in their own type.
    ///
    /// # Errors
    /// [`Error::Op`] if there are not `rows × cols` of them.
    pub fn from_values(device: &Device, rows: usize, cols: usize, values: &Values, kind: Kind) -> Result<Self> {
        match values {
            Values::F32(values) => Self::from_slice(device, rows, cols, values, kind),
            Values::F64(values) => Self::from_slice(device, rows, cols, values, kind),
        }
    }

    /// A copy of all elements in their own type.
    ///
    /// # Errors
    /// [`Error::Op`] for bf16; [`Error::Device`] where a GPU fails.
    pub fn to_values(&self) -> Result<Values> {
        match self.dtype {
            DType::F32 => Ok(Values::F32(self.to_vec()?)),
            DType::F64 => Ok(Values::F64(self.to_vec()?)),
            DType::BF16 => Err(Error::op("to_values", "f32 or f64", self.describe())),
        }
    }

    /// `self += other`, element by element.
    ///
    /// # Errors
    /// [`Error::Op`] if the shapes or types differ.
    pub fn add_assign(&mut self, other: &Self) -> Result<()> {
        if (self.rows, self.cols, self.dtype) != (other.rows, other.cols, other.dtype) {
            return Err(Error::op("add", self.describe(), other.describe()));
        }
        match self.device.clone() {
            Device::Cpu(_) => with_element!(self.dtype, E => {
                let other = other.as_slice::<E>();
                crate::ops::simd::add_assign(self.make_mut::<E>(), other);
            }),
            Device::Cuda(cuda) => crate::ops::add::cuda::add_assign(&cuda, self, other)?,
        }
        Ok(())
    }

    /// Shape and type in words, for errors.
    pub fn describe(&self) -> String {
        format!("[{}, {}] {}", self.rows, self.cols, self.dtype)
    }
}

impl Operand for Tensor {
    fn address(&self) -> u64 {
        self.buffer.device_address()
    }

    fn address_mut(&mut self) -> u64 {
        self.buffer_mut().device_address()
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
