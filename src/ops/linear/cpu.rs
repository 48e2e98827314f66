//! `linear` on the CPU: products with a matrix, panel by panel, and those that its gradient is.

use crate::device::Kind;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::ops::gemm::{Product, frozen_product, view, view_mut, weight_product};
use crate::ops::wide::{column_sums, round_to, widened};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::{Matrix, Orientation};

/// Sums of up to this many products are taken in f64: see [`crate::ops::wide`].
const SHORT: usize = 128;

/// `is_trained`: there will be a backward pass.
pub(super) fn forward<E: Element>(
    x: &Tensor,
    matrix: &Matrix,
    bias: Option<&Tensor>,
    y: &mut Tensor,
    is_trained: bool,
) -> Result<()> {
    let product = Product::forward(matrix.orientation());
    if is_trained && x.rows() == 1 {
        return run_twice::<E>(x, matrix, product, bias, y, Accumulate::Replace);
    }
    run::<E>(x, matrix, product, bias, y, Accumulate::Replace);
    Ok(())
}

pub(super) fn backward<E: Element>(
    dy: &Tensor,
    matrix: &Matrix,
    dx: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let product = Product::backward(matrix.orientation());
    if dy.rows() == 1 {
        return run_twice::<E>(dy, matrix, product, None, dx, accumulate);
    }
    run::<E>(dy, matrix, product, None, dx, accumulate);
    Ok(())
}

/// [`run`] of a single row as of two: the library adds up a product of one row in another order than one of several, and a
/// prompt's bits are not to depend on whether it is alone in a pass. Generation, of a row at a time, keeps the faster kernel.
fn run_twice<E: Element>(
    x: &Tensor,
    matrix: &Matrix,
    product: Product,
    bias: Option<&Tensor>,
    y: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let mut both = Tensor::stacked(&[y, y], Kind::Workspace)?;
    run::<E>(&Tensor::stacked(&[x, x], Kind::Workspace)?, matrix, product, bias, &mut both, accumulate);
    y.copy_from_prefix(&both, 1)
}

fn run<E: Element>(
    x: &Tensor,
    matrix: &Matrix,
    product: Product,
    bias: Option<&Tensor>,
    y: &mut Tensor,
    accumulate: Accumulate,
) {
    if E::DTYPE == DType::F32 && x.cols() <= SHORT {
        return run_in_f64(x, matrix, product, bias, y, accumulate);
    }
    let (rows, cols) = (y.rows(), y.cols());
    let device = x.device().clone();
    let x = view::<E>(x.as_slice(), rows, x.cols());
    let y = view_mut::<E>(y.make_mut(), rows, cols);
    frozen_product(&device, y, accumulate, x, matrix, product, bias.map(Tensor::as_slice));
}

/// [`run`] on tensors of f64.
fn run_in_f64(
    x: &Tensor,
    matrix: &Matrix,
    product: Product,
    bias: Option<&Tensor>,
    y: &mut Tensor,
    accumulate: Accumulate,
) {
    let (bias, mut wide) = (bias.map(widened), widened(y));
    run::<f64>(&widened(x), matrix, product, bias.as_ref(), &mut wide, accumulate);
    round_to(y, &wide);
}

/// `dW (+)= dyᵀ x`, or `xᵀ dy` for a row per input.
pub(super) fn weight_gradient<E: Element>(
    x: &Tensor,
    dy: &Tensor,
    orientation: Orientation,
    dw: &mut Tensor,
    accumulate: Accumulate,
) {
    let rows = dy.rows();
    let (x, dy) = (view::<E>(x.as_slice(), rows, x.cols()), view::<E>(dy.as_slice(), rows, dy.cols()));
    let (left, right) = match orientation {
        Orientation::RowPerOutput => (dy, x),
        Orientation::RowPerInput => (x, dy),
    };
    let (out_rows, out_cols) = (dw.rows(), dw.cols());
    weight_product(view_mut(dw.make_mut::<E>(), out_rows, out_cols), accumulate, left, right);
}

/// `db (+)= Σ dy` over the rows.
pub(super) fn bias_gradient<E: Element>(dy: &Tensor, db: &mut Tensor, accumulate: Accumulate) {
    let cols = dy.cols();
    column_sums(dy.rows(), db.make_mut::<E>(), accumulate, |rows, sums| {
        for row in dy.as_slice::<E>()[rows.start * cols..rows.end * cols].chunks_exact(cols.max(1)) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += Element::to_f64(value);
            }
        }
    });
}
