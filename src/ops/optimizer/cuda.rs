//! `optimizer` on a GPU: `kernels/optimizer.cu`.

use super::{AdafactorStep, AdamWStep};
use crate::device::{Arg, Buffer, CudaDevice, Device, Grid, Kernel, Kind};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

fn kernel<'a>(cuda: &'a CudaDevice, name: &str, dtype: DType) -> Result<Kernel<'a>> {
    cuda.kernel("optimizer", name, dtype)
}

/// A grid whose blocks leave a partial sum each, with the memory for them; it depends on the size alone, and so do the
/// bits of the sum.
struct Partials {
    blocks: usize,
    sums: Buffer,
}

impl Partials {
    fn new(cuda: &CudaDevice, count: usize) -> Self {
        let blocks = Self::blocks(count);
        let bytes = blocks * size_of::<f64>();
        Self { blocks, sums: Device::Cuda(cuda.clone()).allocate(bytes, Kind::Workspace) }
    }

    fn blocks(count: usize) -> usize {
        count.div_ceil(4 * THREADS as usize).clamp(1, 1024)
    }

    fn grid(&self) -> Grid {
        Grid::new(self.blocks, THREADS)
    }
}

/// In bf16 `value` is the weight, and `params` its copy in f32.
pub(super) fn adamw(
    cuda: &CudaDevice,
    params: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    step: &AdamWStep,
    value: Option<&mut Tensor>,
) -> Result<()> {
    let kernel = kernel(cuda, "adamw", grad.dtype())?;
    let mut args = vec![
        Arg::tensor_mut(params), // float* p
        Arg::tensor_mut(m),      // float* m
        Arg::tensor_mut(v),      // float* v
        Arg::tensor(grad),       // const T* g
    ];
    args.extend(value.map(Arg::tensor_mut)); // bf16* value
    args.extend([
        Arg::long(grad.len()),       // long long count
        Arg::float(step.factor),     // float factor
        Arg::float(step.keep),       // float keep
        Arg::float(step.towards),    // float towards
        Arg::float(step.decay),      // float decay
        Arg::float(step.share),      // float share
        Arg::float(step.size),       // float size
        Arg::float(step.correction), // float correction
        Arg::float(step.eps),        // float epsilon
    ]);
    // SAFETY: all of them hold `count` elements of the types in the comments. A thread has 4 of them.
    unsafe { kernel.run(Grid::elements(grad.len(), DType::F32), &args) }
}

pub(super) fn adafactor(
    cuda: &CudaDevice,
    params: &mut Tensor,
    grad: &Tensor,
    v: &mut Tensor,
    step: &AdafactorStep,
) -> Result<()> {
    let (count, dtype) = (grad.len(), grad.dtype());
    let mut partials = Partials::new(cuda, count);
    let grid = partials.grid();
    let args = [
        Arg::tensor_mut(v),                  // float* v
        Arg::tensor(grad),                   // const float* g
        Arg::buffer_mut(&mut partials.sums), // double* partial
        Arg::long(count),                    // long long count
        Arg::float(1.0 - step.share),        // float keep
        Arg::float(step.share),              // float share
        Arg::float(step.eps),                // float epsilon
    ];
    // SAFETY: v and g hold `count` floats, `partial` a number for each block.
    unsafe { kernel(cuda, "adafactor_moment", dtype)?.run(grid, &args) }?;
    let squares = squares(cuda, params, step)?;
    let args = [
        Arg::tensor_mut(params),                          // float* p
        Arg::tensor(grad),                                // const float* g
        Arg::tensor(v),                                   // const float* v
        Arg::buffer(&partials.sums),                      // const double* partial
        squares_arg(squares.as_ref()),                    // const double* squares
        Arg::int(partials.blocks),                        // int partials
        Arg::long(count),                                 // long long count
        Arg::double(step.lr),                             // double lr
        Arg::double(step.parameter_scale.unwrap_or(0.0)), // double least
        Arg::double(step.clip_threshold),                 // double clip
        Arg::float(step.keep),                            // float keep
    ];
    // SAFETY: as above; p holds `count` floats too, and `squares` as many numbers as `partial`, or is null.
    unsafe { kernel(cuda, "adafactor_apply", dtype)?.run(grid, &args) }
}

pub(super) fn adafactor_factored(
    cuda: &CudaDevice,
    params: &mut Tensor,
    grad: &Tensor,
    rows: &mut Tensor,
    cols: &mut Tensor,
    step: &AdafactorStep,
) -> Result<()> {
    let (height, width, dtype) = (grad.rows(), grad.cols(), grad.dtype());
    let args = [
        Arg::tensor_mut(rows),   // float* r
        Arg::tensor(grad),       // const float* g
        Arg::int(width),         // int cols
        Arg::double(step.share), // double share
        Arg::double(step.eps),   // double epsilon
    ];
    // SAFETY: g is [rows, cols]; r has a number for each row, and so many blocks run.
    unsafe { kernel(cuda, "adafactor_rows", dtype)?.run(Grid::new(height, THREADS), &args) }?;
    let args = [
        Arg::tensor_mut(cols),   // float* k
        Arg::tensor(grad),       // const float* g
        Arg::int(height),        // int rows
        Arg::int(width),         // int cols
        Arg::double(step.share), // double share
        Arg::double(step.eps),   // double epsilon
    ];
    // SAFETY: g is [rows, cols]; k has a number for each column.
    unsafe { kernel(cuda, "adafactor_cols", dtype)?.run(Grid::cover(width, THREADS), &args) }?;

    let factor = |length| Tensor::scratch(grad.device(), 1, length, dtype, Kind::Workspace);
    let (mut row_factor, mut col_factor) = (factor(height), factor(width));
    let args = [
        Arg::tensor(rows),                // const float* r
        Arg::tensor(cols),                // const float* k
        Arg::tensor_mut(&mut row_factor), // float* row_factor
        Arg::tensor_mut(&mut col_factor), // float* col_factor
        Arg::int(height),                 // int rows
        Arg::int(width),                  // int cols
    ];
    // SAFETY: r and its factors have `rows` numbers, k and its factors `cols`.
    unsafe { kernel(cuda, "adafactor_factors", dtype)?.run(Grid::new(1, THREADS), &args) }?;

    let mut partials = Partials::new(cuda, grad.len());
    let grid = partials.grid();
    let args = [
        Arg::tensor(grad),                   // const float* g
        Arg::tensor(&row_factor),            // const float* row_factor
        Arg::tensor(&col_factor),            // const float* col_factor
        Arg::buffer_mut(&mut partials.sums), // double* partial
        Arg::int(height),                    // int rows
        Arg::int(width),                     // int cols
    ];
    // SAFETY: shapes as above; `partial` has a number for each block.
    unsafe { kernel(cuda, "adafactor_factored", dtype)?.run(grid, &args) }?;
    let squares = squares(cuda, params, step)?;
    let args = [
        Arg::tensor_mut(params),                          // float* p
        Arg::tensor(grad),                                // const float* g
        Arg::tensor(&row_factor),                         // const float* row_factor
        Arg::tensor(&col_factor),                         // const float* col_factor
        Arg::buffer(&partials.sums),                      // const double* partial
        squares_arg(squares.as_ref()),                    // const double* squares
        Arg::int(partials.blocks),                        // int partials
        Arg::int(height),                                 // int rows
        Arg::int(width),                                  // int cols
        Arg::double(step.lr),                             // double lr
        Arg::double(step.parameter_scale.unwrap_or(0.0)), // double least
        Arg::double(step.clip_threshold),                 // double clip
        Arg::float(step.keep),                            // float keep
    ];
    // SAFETY: as above; p is [rows, cols] too, and `squares` has as many numbers as `partial`, or is null.
    unsafe { kernel(cuda, "adafactor_factored_apply", dtype)?.run(grid, &args) }
}

/// Partial sums of the squares of parameters, where their size scales the update.
fn squares(cuda: &CudaDevice, params: &Tensor, step: &AdafactorStep) -> Result<Option<Partials>> {
    if step.parameter_scale.is_none() {
        return Ok(None);
    }
    let mut partials = Partials::new(cuda, params.len());
    let grid = partials.grid();
    let args = [
        Arg::tensor(params),                 // const float* g
        Arg::buffer_mut(&mut partials.sums), // double* partial
        Arg::long(params.len()),             // long long count
    ];
    // SAFETY: g holds `count` floats, `partial` a number for each block.
    unsafe { kernel(cuda, "gradient_norm", params.dtype())?.run(grid, &args) }?;
    Ok(Some(partials))
}

fn squares_arg(squares: Option<&Partials>) -> Arg<'_> {
    squares.map_or(Arg::null(), |squares| Arg::buffer(&squares.sums))
}

/// The Euclidean norm of all of them, and what brings it to at most `most`: `[norm, factor]`, f64 and f32.
fn norm_and_factor(cuda: &CudaDevice, all: &[Tensor], most: f64) -> Result<[Buffer; 2]> {
    let device = Device::Cuda(cuda.clone());
    let blocks: Vec<usize> = all.iter().map(|x| Partials::blocks(x.len())).collect();
    let total = blocks.iter().sum();
    let sums = device.allocate(total * size_of::<f64>(), Kind::Workspace);
    let mut first = 0;
    for (x, &blocks) in all.iter().zip(&blocks) {
        let partial = Arg::address(sums.device_address() + (first * size_of::<f64>()) as u64);
        let args = [
            Arg::tensor(x),     // const float* g
            partial,            // double* partial
            Arg::long(x.len()), // long long count
        ];
        // SAFETY: g holds `count` floats; `partial` has a number for each block, from this tensor's first on.
        unsafe { kernel(cuda, "gradient_norm", x.dtype())?.run(Grid::new(blocks, THREADS), &args) }?;
        first += blocks;
    }
    let partials = Partials { blocks: total, sums };
    let mut norm = device.allocate(size_of::<f64>(), Kind::Workspace);
    let mut factor = device.allocate(size_of::<f32>(), Kind::Workspace);
    let args = [
        Arg::buffer(&partials.sums),  // const double* partial
        Arg::buffer_mut(&mut norm),   // double* norm
        Arg::buffer_mut(&mut factor), // float* factor
        Arg::int(partials.blocks),    // int partials
        Arg::double(most),            // double most
    ];
    // SAFETY: `partial` holds `partials` numbers, the others one each.
    unsafe { kernel(cuda, "gradient_norm_finish", DType::F32)?.run(Grid::new(1, THREADS), &args) }?;
    Ok([norm, factor])
}

fn read(number: &Buffer) -> Result<f64> {
    let mut bytes = [0; size_of::<f64>()];
    number.download(&mut bytes)?;
    Ok(f64::from_le_bytes(bytes))
}

pub(super) fn clip_grad_norm(cuda: &CudaDevice, grad: &mut Tensor, max_norm: f64) -> Result<f64> {
    if grad.is_empty() {
        return Ok(0.0);
    }
    let [norm, factor] = norm_and_factor(cuda, std::slice::from_ref(grad), max_norm)?;
    multiply(cuda, grad, &factor)?;
    read(&norm)
}

fn multiply(cuda: &CudaDevice, grad: &mut Tensor, factor: &Buffer) -> Result<()> {
    let (grid, count, dtype) = (Grid::elements(grad.len(), grad.dtype()), grad.len(), grad.dtype());
    let args = [
        Arg::tensor_mut(grad), // float* g
        Arg::buffer(factor),   // const float* factor
        Arg::long(count),      // long long count
    ];
    // SAFETY: g holds `count` floats, and a thread has 4 of them; the factor is one float.
    unsafe { kernel(cuda, "gradient_norm_clip", dtype)?.run(grid, &args) }
}

pub(super) fn scale(cuda: &CudaDevice, grad: &mut Tensor, factor: f64) -> Result<()> {
    let mut held = Device::Cuda(cuda.clone()).allocate(size_of::<f32>(), Kind::Workspace);
    held.upload(&(factor as f32).to_le_bytes())?;
    multiply(cuda, grad, &held)
}

pub(super) fn grad_norm(cuda: &CudaDevice, grads: &[Tensor]) -> Result<f64> {
    let all: Vec<Tensor> = grads.iter().filter(|grad| !grad.is_empty()).cloned().collect();
    if all.is_empty() {
        return Ok(0.0);
    }
    let [norm, _] = norm_and_factor(cuda, &all, f64::INFINITY)?;
    read(&norm)
}

/// Squares of f32 do not overflow f64: the norm is finite if and only if every element is.
pub(super) fn is_finite(cuda: &CudaDevice, x: &Tensor) -> Result<bool> {
    if x.is_empty() {
        return Ok(true);
    }
    let [norm, _] = norm_and_factor(cuda, std::slice::from_ref(x), f64::INFINITY)?;
    Ok(read(&norm)?.is_finite())
}
