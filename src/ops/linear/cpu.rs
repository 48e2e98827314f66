//! `linear` on the CPU: products with a frozen matrix, panel by panel.

use crate::dtype::{DType, Element};
use crate::ops::gemm::{Product, frozen_product, view, view_mut};
use crate::ops::wide::{round_to, widened};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::Matrix;

/// Sums of up to this many products are taken in f64: see [`crate::ops::wide`].
const SHORT: usize = 128;

pub(super) fn forward<E: Element>(x: &Tensor, matrix: &Matrix, bias: Option<&Tensor>, y: &mut Tensor) {
    let product = Product::forward(matrix.orientation());
    run::<E>(x, matrix, product, bias, y, Accumulate::Replace);
}

pub(super) fn backward<E: Element>(dy: &Tensor, matrix: &Matrix, dx: &mut Tensor, accumulate: Accumulate) {
    let product = Product::backward(matrix.orientation());
    run::<E>(dy, matrix, product, None, dx, accumulate);
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
