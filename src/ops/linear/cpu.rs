//! `linear` on the CPU: products with a frozen matrix, panel by panel.

use crate::dtype::Element;
use crate::ops::gemm::{Product, frozen_product, view, view_mut};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::Matrix;

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
    let (rows, cols) = (y.rows(), y.cols());
    let device = x.device().clone();
    let x = view::<E>(x.as_slice(), rows, x.cols());
    let y = view_mut::<E>(y.make_mut(), rows, cols);
    frozen_product(&device, y, accumulate, x, matrix, product, bias.map(Tensor::as_slice));
}
