//! A matrix as ops use it: panels of it, in the type they compute in.
//!
//! A frozen one's stored bytes stay in the memory map. A panel that is stored in the working type is borrowed; any other is widened
//! into scratch that lives as long as the panel, so that the model never exists a second time in memory, unless
//! [`Matrix::widen`] was asked to trade memory for speed. A trained one is a [`Parameter`], held in the working type.

use super::{Format, Parameter, StoredTensor};
use crate::device::{Buffer, CudaDevice, Device, Kind, OnDevice};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, with_element};
use faer::MatRef;
use std::ops::Range;
use std::sync::Arc;

/// How a stored matrix maps inputs to outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// A row per output: `y = x Wᵀ`, as `nn.Linear` and GGUF store it.
    RowPerOutput,
    /// A row per input: `y = x W`, as GPT-2's `Conv1D` stores it.
    RowPerInput,
}

/// A block of a stored matrix, used as a linear map.
#[derive(Debug, Clone)]
pub struct Matrix {
    source: Source,
    rows: Range<usize>,
    cols: Range<usize>,
    orientation: Orientation,
    widened: Option<Tensor>,
    /// Whether GPUs hold it in the type they compute in, even where that is wider than what is stored.
    is_widened_on_gpus: bool,
    on_device: OnDevice<Resident>,
}

#[derive(Debug, Clone)]
enum Source {
    Stored(StoredTensor),
    Trained(Arc<Parameter>),
}

/// What a GPU holds of a matrix: the block of it, row after row.
#[derive(Debug)]
pub(crate) enum Resident {
    /// In the type it computes in, `[rows, cols]` as stored.
    Plain(Tensor),
    /// As the file stores it; a product widens it into scratch.
    Stored {
        /// The elements.
        bytes: Buffer,
        /// Their layout.
        format: Format,
    },
}

/// Panels of rows or of columns of the stored block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Whole rows.
    Rows,
    /// Whole columns.
    Cols,
}

/// Part of a matrix in the working type.
pub enum Panel<'a, E: Element> {
    /// Straight from where it is stored.
    Borrowed(MatRef<'a, E>),
    /// Widened into scratch, row after row.
    Widened(Tensor),
    /// Rows and columns of a trained matrix's value.
    Shared(Tensor, Range<usize>, Range<usize>),
}

impl<E: Element> Panel<'_, E> {
    /// The panel as a matrix.
    pub fn view(&self) -> MatRef<'_, E> {
        match self {
            Self::Borrowed(view) => *view,
            Self::Widened(tensor) => MatRef::from_row_major_slice(tensor.as_slice(), tensor.rows(), tensor.cols()),
            Self::Shared(tensor, rows, cols) => {
                let whole = MatRef::from_row_major_slice(tensor.as_slice(), tensor.rows(), tensor.cols());
                whole.submatrix(rows.start, cols.start, rows.len(), cols.len())
            }
        }
    }
}

impl Matrix {
    /// The whole of a two-dimensional stored tensor.
    ///
    /// # Errors
    /// [`Error::Input`] if it has another number of dimensions.
    pub fn new(stored: StoredTensor, orientation: Orientation) -> Result<Self> {
        let &[rows, cols] = stored.shape() else {
            return Err(Error::input(
                crate::error::Place::file(stored.path()).of(stored.name()),
                "a matrix",
                format!("shape {:?}", stored.shape()),
            ));
        };
        Ok(Self {
            source: Source::Stored(stored),
            rows: 0..rows,
            cols: 0..cols,
            orientation,
            widened: None,
            is_widened_on_gpus: false,
            on_device: OnDevice::default(),
        })
    }

    /// A matrix whose elements `parameter` holds.
    pub fn trained(parameter: Arc<Parameter>, orientation: Orientation) -> Self {
        let value = parameter.value();
        Self {
            source: Source::Trained(parameter),
            rows: 0..value.rows(),
            cols: 0..value.cols(),
            orientation,
            widened: None,
            is_widened_on_gpus: false,
            on_device: OnDevice::default(),
        }
    }

    /// What holds the elements, if they are trained.
    pub fn parameter(&self) -> Option<&Arc<Parameter>> {
        match &self.source {
            Source::Trained(parameter) => Some(parameter),
            Source::Stored(_) => None,
        }
    }

    /// The shape of the tensor that it is, or is part of.
    pub fn stored_shape(&self) -> Vec<usize> {
        match &self.source {
            Source::Stored(stored) => stored.shape().to_vec(),
            Source::Trained(parameter) => parameter.place().shape.clone(),
        }
    }

    /// The rows that it is of its tensor in the file.
    pub fn stored_rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns that it is of its tensor in the file.
    pub fn stored_cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// All elements in `dtype`, row after row as they are stored, in memory of `device`.
    ///
    /// # Errors
    /// [`Error::Device`] where a GPU fails.
    pub fn to_tensor(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let (rows, cols) = (self.rows.len(), self.cols.len());
        match (&self.source, device) {
            (Source::Trained(parameter), _) => {
                Tensor::from_f64(device, rows, cols, dtype, &parameter.value().to_f64_vec()?, Kind::Weights)
            }
            (_, Device::Cuda(cuda)) => self.copy_in(cuda, dtype),
            (_, Device::Cpu(_)) => Ok(with_element!(dtype, E => {
                let mut whole = Tensor::scratch(device, rows, cols, dtype, Kind::Weights);
                self.widen_block::<E>(0..rows, 0..cols, whole.make_mut());
                whole
            })),
        }
    }

    fn format(&self) -> Format {
        match &self.source {
            Source::Stored(stored) => stored.format(),
            Source::Trained(parameter) => match parameter.value().dtype() {
                DType::F32 => Format::F32,
                DType::F64 => Format::F64,
                DType::BF16 => Format::BF16,
            },
        }
    }

    /// Columns of the stored tensor, of which the block may be a part.
    fn stride(&self) -> usize {
        match &self.source {
            Source::Stored(stored) => stored.shape()[1],
            Source::Trained(_) => self.cols.len(),
        }
    }

    /// The same matrix restricted to some of its outputs, as one of the projections of a fused q, k, v.
    ///
    /// # Errors
    /// [`Error::Op`] if the range is out of bounds or cuts a block of a quantised format.
    pub fn outputs(&self, outputs: Range<usize>) -> Result<Self> {
        let block = self.format().block_len();
        let mut part = self.clone();
        let (side, granule) = match self.orientation {
            Orientation::RowPerOutput => (&mut part.rows, 1),
            Orientation::RowPerInput => (&mut part.cols, block),
        };
        if outputs.end > side.len() || !outputs.start.is_multiple_of(granule) || !outputs.end.is_multiple_of(granule) {
            return Err(Error::op("matrix", format!("outputs within {}", side.len()), format!("{outputs:?}")));
        }
        *side = side.start + outputs.start..side.start + outputs.end;
        part.widened = None;
        Ok(part)
    }

    /// How many numbers go in.
    pub fn in_features(&self) -> usize {
        match self.orientation {
            Orientation::RowPerOutput => self.cols.len(),
            Orientation::RowPerInput => self.rows.len(),
        }
    }

    /// How many numbers come out.
    pub fn out_features(&self) -> usize {
        match self.orientation {
            Orientation::RowPerOutput => self.rows.len(),
            Orientation::RowPerInput => self.cols.len(),
        }
    }

    /// How it maps inputs to outputs.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Whether panels in `dtype` are borrowed rather than widened.
    pub fn is_direct(&self, dtype: DType) -> bool {
        self.widened.as_ref().is_some_and(|tensor| tensor.dtype() == dtype)
            || match &self.source {
                Source::Stored(stored) => with_element!(dtype, E => stored.as_slice::<E>().is_some()),
                Source::Trained(parameter) => parameter.value().dtype() == dtype,
            }
    }

    /// Widens the whole block once, to be borrowed from then on: faster steps for `rows × cols` elements of memory.
    pub fn widen(&mut self, device: &Device, dtype: DType) {
        if let Device::Cuda(_) = device {
            self.is_widened_on_gpus = true;
        } else if !self.is_direct(dtype) {
            self.widened = Some(with_element!(dtype, E => {
                let mut whole = Tensor::scratch(device, self.rows.len(), self.cols.len(), dtype, Kind::Weights);
                self.widen_block::<E>(0..self.rows.len(), 0..self.cols.len(), whole.make_mut());
                whole
            }));
        }
    }

    /// The matrix in the memory of `cuda`, copied there when it is first asked for. It is held in `dtype`, unless what is
    /// stored is narrower and nobody asked to widen it.
    ///
    /// # Errors
    /// [`Error::Op`] if it is held in another type already; [`Error::Device`] where the GPU fails.
    pub(crate) fn on(&self, cuda: &CudaDevice, dtype: DType) -> Result<Arc<Resident>> {
        let resident = match &self.source {
            Source::Trained(parameter) => Arc::new(Resident::Plain(parameter.value())),
            Source::Stored(_) => self.on_device.get(cuda, || self.copy_to(cuda, dtype))?,
        };
        match &*resident {
            Resident::Plain(tensor) if tensor.dtype() != dtype => {
                Err(Error::op("matrix", format!("a matrix in {dtype}"), tensor.describe()))
            }
            _ => Ok(resident),
        }
    }

    fn copy_to(&self, cuda: &CudaDevice, dtype: DType) -> Result<Resident> {
        let device = Device::Cuda(cuda.clone());
        let (rows, cols, format) = (self.rows.len(), self.cols.len(), self.format());
        let is_same = matches!((format, dtype), (Format::F32, DType::F32) | (Format::BF16, DType::BF16));
        let is_narrower = format.block_bytes() < format.block_len() * dtype.size();
        if is_same || (is_narrower && !self.is_widened_on_gpus) {
            let row_bytes = format.bytes(cols).unwrap_or(0);
            let mut bytes = device.allocate(rows * row_bytes, Kind::Weights);
            self.for_each_run(|first_row, run| bytes.upload_at(first_row * row_bytes, run))?;
            return Ok(match is_same {
                true => Resident::Plain(Tensor::from_buffer(&device, rows, cols, dtype, bytes)),
                false => Resident::Stored { bytes, format },
            });
        }
        Ok(Resident::Plain(self.copy_in(cuda, dtype)?))
    }

    /// Through f32, a few rows at a time: the host never holds the matrix a second time.
    fn copy_in(&self, cuda: &CudaDevice, dtype: DType) -> Result<Tensor> {
        const RUN: usize = 1 << 22;
        let device = Device::Cuda(cuda.clone());
        let (rows, cols) = (self.rows.len(), self.cols.len());
        let run_rows = (RUN / cols.max(1)).max(1);
        let mut held = device.allocate(rows * cols * dtype.size(), Kind::Weights);
        for first in (0..rows).step_by(run_rows) {
            let range = first..(first + run_rows).min(rows);
            let mut values = vec![0f32; range.len() * cols];
            self.widen_block(range, 0..cols, &mut values);
            let start = first * cols * dtype.size();
            if dtype == DType::BF16 {
                let rounded: Vec<half::bf16> = values.iter().map(|&value| half::bf16::from_f32(value)).collect();
                held.upload_at(start, bytemuck::cast_slice(&rounded))?;
            } else {
                held.upload_at(start, bytemuck::cast_slice(&values))?;
            }
        }
        Ok(Tensor::from_buffer(&device, rows, cols, dtype, held))
    }

    /// The stored bytes of the block in as few pieces as they lie in, each with the row it begins at.
    fn for_each_run(&self, mut work: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let Source::Stored(stored) = &self.source else { return Ok(()) };
        let (format, stride) = (stored.format(), stored.shape()[1]);
        let bytes_of = |elements: usize| elements / format.block_len() * format.block_bytes();
        let piece = |row: usize, rows: usize| {
            let first = bytes_of((self.rows.start + row) * stride + self.cols.start);
            &stored.bytes()[first..first + bytes_of(rows * self.cols.len())]
        };
        if self.cols.len() == stride {
            return work(0, piece(0, self.rows.len()));
        }
        (0..self.rows.len()).try_for_each(|row| work(row, piece(row, 1)))
    }

    /// How wide panels along `axis` should be: near `wanted`, and never cutting a quantised block.
    pub fn panel_width(&self, axis: Axis, wanted: usize, dtype: DType) -> usize {
        match axis {
            Axis::Cols if !self.is_direct(dtype) => wanted.next_multiple_of(self.format().block_len()),
            _ => wanted,
        }
    }

    /// The rows or columns `range` of the stored block, all of the other axis.
    pub fn panel<'a, E: Element>(&'a self, axis: Axis, range: Range<usize>, device: &Device) -> Panel<'a, E> {
        let (rows, cols) = match axis {
            Axis::Rows => (range, 0..self.cols.len()),
            Axis::Cols => (0..self.rows.len(), range),
        };
        if let Some(whole) = self.direct::<E>() {
            return Panel::Borrowed(whole.submatrix(rows.start, cols.start, rows.len(), cols.len()));
        }
        if let Source::Trained(parameter) = &self.source
            && parameter.value().dtype() == E::DTYPE
        {
            return Panel::Shared(parameter.value(), rows, cols);
        }
        let mut panel = Tensor::scratch(device, rows.len(), cols.len(), E::DTYPE, Kind::Workspace);
        self.widen_block::<E>(rows, cols, panel.make_mut());
        Panel::Widened(panel)
    }

    /// Writes row `row` of the stored block to `out`.
    pub fn widen_row<E: Element>(&self, row: usize, out: &mut [E]) {
        match self.direct::<E>() {
            Some(whole) => {
                for (out, col) in out.iter_mut().zip(0..whole.ncols()) {
                    *out = whole[(row, col)];
                }
            }
            None => self.widen_block(row..row + 1, 0..self.cols.len(), out),
        }
    }

    /// The block where it lies, if it lies in `E`.
    fn direct<E: Element>(&self) -> Option<MatRef<'_, E>> {
        if let Some(whole) = self.widened.as_ref().filter(|whole| whole.dtype() == E::DTYPE) {
            return Some(MatRef::from_row_major_slice(whole.as_slice(), whole.rows(), whole.cols()));
        }
        let Source::Stored(stored) = &self.source else { return None };
        let shape = stored.shape();
        let whole = MatRef::from_row_major_slice(stored.as_slice::<E>()?, shape[0], shape[1]);
        Some(whole.submatrix(self.rows.start, self.cols.start, self.rows.len(), self.cols.len()))
    }

    fn widen_block<E: Element>(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [E]) {
        let stride = self.stride();
        let first = |row: usize| (self.rows.start + row) * stride + self.cols.start + cols.start;
        let widen = |first: usize, out: &mut [E]| match &self.source {
            Source::Stored(stored) => stored.widen(first, out),
            Source::Trained(parameter) => {
                let value = parameter.value();
                with_element!(value.dtype(), V => {
                    for (out, &value) in out.iter_mut().zip(&value.as_slice::<V>()[first..]) {
                        *out = E::from_f64(Element::to_f64(value));
                    }
                });
            }
        };
        if cols.len() == stride {
            widen(first(rows.start), out);
        } else if !cols.is_empty() {
            for (row, out) in rows.zip(out.chunks_exact_mut(cols.len())) {
                widen(first(row), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_the_same_whether_borrowed_or_widened() {
        let device = Device::cpu(Some(1)).unwrap();
        let values: Vec<f32> = (0..6 * 8).map(|i| i as f32 / 4.0).collect();
        let stored = StoredTensor::from_values("w", &[6, 8], values).unwrap();
        let part = Matrix::new(stored, Orientation::RowPerInput).unwrap().outputs(2..7).unwrap();
        assert_eq!((part.in_features(), part.out_features()), (6, 5));
        for (axis, range) in [(Axis::Rows, 1..4), (Axis::Cols, 1..3)] {
            let borrowed = part.panel::<f32>(axis, range.clone(), &device);
            let widened = part.panel::<f64>(axis, range.clone(), &device);
            assert!(matches!((&borrowed, &widened), (Panel::Borrowed(_), Panel::Widened(_))));
            let (a, b) = (borrowed.view(), widened.view());
            assert_eq!((a.nrows(), a.ncols()), (b.nrows(), b.ncols()));
            for row in 0..a.nrows() {
                for col in 0..a.ncols() {
                    assert_eq!(f64::from(a[(row, col)]), b[(row, col)]);
                }
            }
        }
        let mut kept = part.clone();
        kept.widen(&device, DType::F64);
        assert!(kept.is_direct(DType::F64) && !part.is_direct(DType::F64));
        assert_eq!(device.memory().current(Kind::Weights), 6 * 5 * 8);
    }
}
