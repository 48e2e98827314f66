//! Matrix products on a GPU: through cuBLASLt where it is used and knows an algorithm, else by `kernels/matmul.cu`.

use super::Product;
use crate::device::{Arg, Buffer, CudaDevice, Device, Grid, Kind, Layout, Operand, Operation, Pointers};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::Format;
use std::marker::PhantomData;
use std::ops::Range;

/// A row-major matrix in a GPU's memory, for as long as that memory is borrowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    address: u64,
    rows: usize,
    cols: usize,
    /// From row to row, in elements.
    ld: usize,
    dtype: DType,
    memory: PhantomData<&'a ()>,
}

impl<'a> Block<'a> {
    /// Some rows of a tensor.
    pub(crate) fn rows(tensor: &'a Tensor, rows: Range<usize>) -> Self {
        debug_assert!(rows.start <= rows.end && rows.end <= tensor.rows());
        let (cols, dtype) = (tensor.cols(), tensor.dtype());
        let address = tensor.address() + (rows.start * cols * dtype.size()) as u64;
        Self { address, rows: rows.len(), cols, ld: cols, dtype, memory: PhantomData }
    }

    /// A tensor to be written; copied first if its memory is shared.
    pub(crate) fn whole_mut(tensor: &'a mut Tensor) -> Self {
        let rows = tensor.rows();
        Self::rows_mut(tensor, 0..rows)
    }

    /// Some rows of a tensor to be written; copied first if its memory is shared.
    pub(crate) fn rows_mut(tensor: &'a mut Tensor, rows: Range<usize>) -> Self {
        tensor.address_mut();
        Self::rows(tensor, rows)
    }

    /// Rows of `cols` elements of `dtype` at the start of a buffer, `ld` apart.
    pub(crate) fn within(buffer: &'a Buffer, rows: usize, cols: usize, ld: usize, dtype: DType) -> Self {
        debug_assert!(cols <= ld && rows * ld * dtype.size() <= buffer.len());
        Self { address: buffer.device_address(), rows, cols, ld, dtype, memory: PhantomData }
    }

    fn describe(&self) -> String {
        format!("[{}, {}] {}", self.rows, self.cols, self.dtype)
    }
}

/// `y (+)= x Wᵀ` or `x W`, plus `bias` `[1, n]` in every row. What is added to is read in the type of `y`.
///
/// # Errors
/// [`Error::Op`] for shapes or types that do not fit; [`Error::Device`] where the GPU or the library fails.
///
/// # Safety
/// `y` is memory that nothing else is using, and apart from the operands'.
pub(crate) unsafe fn matmul(
    cuda: &CudaDevice,
    y: Block<'_>,
    accumulate: Accumulate,
    x: Block<'_>,
    w: Block<'_>,
    product: Product,
    bias: Option<&Tensor>,
) -> Result<()> {
    let layout = match product {
        Product::Transposed => Layout::Nt,
        Product::AsStored => Layout::Nn,
    };
    // SAFETY: the caller's word.
    unsafe { multiply(cuda, y, accumulate, x, w, layout, bias) }
}

/// `y (+)= xᵀ w`, a weight's gradient. What is added to is read in the type of `y`.
///
/// # Errors
/// As [`matmul`].
///
/// # Safety
/// As [`matmul`].
pub(crate) unsafe fn weight_product(
    cuda: &CudaDevice,
    y: Block<'_>,
    accumulate: Accumulate,
    x: Block<'_>,
    w: Block<'_>,
) -> Result<()> {
    // SAFETY: the caller's word.
    unsafe { multiply(cuda, y, accumulate, x, w, Layout::Tn, None) }
}

/// # Safety
/// As [`matmul`].
unsafe fn multiply(
    cuda: &CudaDevice,
    y: Block<'_>,
    accumulate: Accumulate,
    x: Block<'_>,
    w: Block<'_>,
    layout: Layout,
    bias: Option<&Tensor>,
) -> Result<()> {
    let (k, shapes) = match layout {
        Layout::Nt => (x.cols, [(y.rows, x.cols), (y.cols, x.cols)]),
        Layout::Nn => (x.cols, [(y.rows, x.cols), (x.cols, y.cols)]),
        Layout::Tn => (x.rows, [(x.rows, y.rows), (x.rows, y.cols)]),
    };
    let types_fit = x.dtype == w.dtype && (y.dtype == x.dtype || y.dtype == DType::F32);
    if [(x.rows, x.cols), (w.rows, w.cols)] != shapes || !types_fit {
        let expected = format!("operands of {layout:?} for {}", y.describe());
        return Err(Error::op("matmul", expected, format!("{} and {}", x.describe(), w.describe())));
    }
    if let Some(bias) = bias
        && (bias.rows(), bias.cols(), bias.dtype()) != (1, y.cols, x.dtype)
    {
        return Err(Error::op("matmul", format!("a bias [1, {}] {}", y.cols, x.dtype), bias.describe()));
    }
    if y.rows == 0 || y.cols == 0 {
        return Ok(());
    }
    let operation = Operation {
        layout,
        m: y.rows,
        n: y.cols,
        k,
        ldy: y.ld,
        ldx: x.ld,
        ldw: w.ld,
        input: x.dtype,
        output: y.dtype,
        bias: bias.is_some(),
    };
    let pointers = Pointers { y: y.address, x: x.address, w: w.address, bias: bias.map_or(0, Operand::address) };
    // SAFETY: the blocks name memory of this device of the shapes that `operation` gives; the caller answers for `y`.
    unsafe {
        if !through_library(cuda, &operation, pointers, accumulate)? {
            through_kernel(cuda, &operation, pointers, accumulate)?;
        }
    }
    Ok(())
}

/// # Safety
/// As [`matmul`], of the memory that `operation` and `pointers` describe.
unsafe fn through_library(
    cuda: &CudaDevice,
    operation: &Operation,
    pointers: Pointers,
    accumulate: Accumulate,
) -> Result<bool> {
    let Some(blas) = cuda.blas()? else { return Ok(false) };
    let Some(bytes) = blas.workspace(operation, pointers)? else { return Ok(false) };
    // Given back when the product is in the stream, which is early enough: whoever gets it next comes after it there.
    let workspace = (bytes > 0).then(|| Device::Cuda(cuda.clone()).allocate(bytes, Kind::Workspace));
    let workspace = workspace.as_ref().map_or(0, Buffer::device_address);
    // SAFETY: the caller answers for the memory; the workspace is as large as the library asked for.
    unsafe { cuda.multiply(operation, pointers, accumulate == Accumulate::Add, workspace) }?;
    Ok(true)
}

/// Rows and columns of `y` that a block of threads computes, and how many threads it has.
struct Tile {
    edge: usize,
    threads: u32,
    suffix: &'static str,
}

const LARGE: Tile = Tile { edge: 128, threads: 256, suffix: "" };
const SMALL: Tile = Tile { edge: 64, threads: 128, suffix: "_small" };

/// Terms of a sum that a block adds at least, where sums are split among blocks.
const MIN_SPAN: usize = 512;

impl Tile {
    fn blocks(&self, operation: &Operation) -> usize {
        operation.m.div_ceil(self.edge) * operation.n.div_ceil(self.edge)
    }
}

/// The tile that fills the GPU, and how many terms of a sum each block adds: all, or a multiple of 32 of them.
fn plan(operation: &Operation, multiprocessors: usize) -> (Tile, usize) {
    let is_thin = operation.m <= SMALL.edge || operation.n <= SMALL.edge;
    let tile = if is_thin || LARGE.blocks(operation) < multiprocessors { SMALL } else { LARGE };
    let splits = (multiprocessors / tile.blocks(operation)).min(operation.k / MIN_SPAN).max(1);
    let span = if splits == 1 { operation.k } else { operation.k.div_ceil(splits).next_multiple_of(32) };
    (tile, span)
}

/// # Safety
/// As [`matmul`], of the memory that `operation` and `pointers` describe.
unsafe fn through_kernel(
    cuda: &CudaDevice,
    operation: &Operation,
    pointers: Pointers,
    accumulate: Accumulate,
) -> Result<()> {
    let Operation { layout, m, n, k, ldy, ldx, ldw, input, output, bias: _ } = *operation;
    let multiprocessors = usize::try_from(cuda.properties().multiprocessors).unwrap_or(1);
    let (tile, span) = plan(operation, multiprocessors);
    let splits = k.div_ceil(span.max(1)).max(1);
    let name = match layout {
        Layout::Nt => "matmul_nt",
        Layout::Nn => "matmul_nn",
        Layout::Tn => "matmul_tn",
    };
    let kernel = cuda.kernel("matmul", &format!("{name}{}", tile.suffix), input)?;
    let grid = Grid::new_3d([m.div_ceil(tile.edge), n.div_ceil(tile.edge), splits], tile.threads);
    let is_f32 = |dtype| usize::from(dtype == DType::F32);
    let adds = usize::from(accumulate == Accumulate::Add);
    let activation = 0;
    let launch = |y, y_dtype, bias, ldy, adds| {
        let mut args = vec![
            Arg::address(y),          // void* y
            Arg::address(pointers.x), // const T* x
            Arg::address(pointers.w), // const T* w
            Arg::address(bias),       // const T* bias
            Arg::int(m),              // int m
            Arg::int(n),              // int n
            Arg::int(k),              // int k
            Arg::int(ldy),            // int ldy
            Arg::int(ldx),            // int ldx
            Arg::int(ldw),            // int ldw
            Arg::float(1.0),          // float alpha
            Arg::int(adds),           // int accumulate
            Arg::int(activation),     // int activation
        ];
        if input == DType::BF16 {
            args.push(Arg::int(is_f32(y_dtype))); // int y_is_f32
        }
        args.push(Arg::int(span)); // int span
        // SAFETY: `operation` describes the memory of the pointers; the grid covers y, and the kernel leaves out what is
        // beyond its edges. Each of the parts that blocks of different z write is [m, n] f32 in `y`.
        unsafe { kernel.run(grid, &args) }
    };
    if splits == 1 {
        return launch(pointers.y, output, pointers.bias, ldy, adds);
    }
    let parts = Device::Cuda(cuda.clone()).allocate(splits * m * n * size_of::<f32>(), Kind::Workspace);
    launch(parts.device_address(), DType::F32, 0, n, 0)?;
    let mut args = vec![
        Arg::address(pointers.y),    // void* y
        Arg::buffer(&parts),         // const float* parts
        Arg::address(pointers.bias), // const T* bias
        Arg::int(m),                 // int m
        Arg::int(n),                 // int n
        Arg::int(ldy),               // int ldy
        Arg::int(adds),              // int accumulate
        Arg::int(activation),        // int activation
    ];
    if input == DType::BF16 {
        args.push(Arg::int(is_f32(output))); // int y_is_f32
    }
    args.push(Arg::int(splits)); // int splits
    // SAFETY: `parts` holds splits · m · n floats; `operation` describes the memory of the other pointers.
    unsafe { cuda.kernel("matmul", "matmul_join", input)?.run(Grid::cover(m * n, 256), &args) }
}

/// Elements that a block of `dequantise.cu` writes.
const DEQUANTISE_CHUNK: usize = 2048;

/// Rows of a stored matrix in the type that products read, `[rows.len(), cols]`.
///
/// # Errors
/// [`Error::Device`] where the GPU fails.
pub(crate) fn widen(
    cuda: &CudaDevice,
    stored: &Buffer,
    format: Format,
    rows: Range<usize>,
    cols: usize,
    dtype: DType,
) -> Result<Tensor> {
    let mut widened = Tensor::scratch(&Device::Cuda(cuda.clone()), rows.len(), cols, dtype, Kind::Workspace);
    let elements = widened.len();
    let kernel = cuda.kernel("dequantise", &format!("dequantise_{}", format.name().to_lowercase()), dtype)?;
    // Whole rows lie one behind another: one long row.
    let args = [
        Arg::buffer(stored),           // const uint8_t* stored
        Arg::tensor_mut(&mut widened), // T* y
        Arg::long(rows.start * cols),  // long long first
        Arg::long(elements),           // long long stride
        Arg::long(elements),           // long long cols
        Arg::long(stored.len()),       // long long bytes
    ];
    // SAFETY: `stored` holds whole rows of `cols` elements in `format`, at least `rows.end` of them; `widened` has room
    // for what is decoded.
    unsafe { kernel.run(Grid::new(elements.div_ceil(DEQUANTISE_CHUNK), 256), &args) }?;
    Ok(widened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_split_until_the_gpu_is_full() {
        let of = |m, n, k| Operation {
            layout: Layout::Nt,
            m,
            n,
            k,
            ldy: n,
            ldx: k,
            ldw: k,
            input: DType::BF16,
            output: DType::BF16,
            bias: false,
        };
        let planned = |m, n, k| {
            let (tile, span) = plan(&of(m, n, k), 108);
            (tile.edge, span)
        };
        assert_eq!(planned(4096, 4096, 4096), (128, 4096));
        assert_eq!(planned(1000, 600, 600), (64, 600));
        // 9 blocks of 64, 3 times over for 512 terms each; 576 terms are too few to split.
        assert_eq!(planned(32, 576, 1536), (64, 512));
        assert_eq!(planned(32, 576, 576), (64, 576));
        assert_eq!(planned(1, 1, 1), (64, 1));
        let (m, n, k) = (20, 64, 100_000);
        let (_, span) = plan(&of(m, n, k), 108);
        assert!(span % 32 == 0 && k.div_ceil(span) <= 108);
    }
}
