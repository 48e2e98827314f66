//! Matrix products, for the ops that are made of them.

mod cpu;
#[allow(unsafe_code, reason = "launches kernels")]
pub(crate) mod cuda;

pub(crate) use cpu::{frozen_product, gemm, product, view, view_mut, weight_product};

use crate::weights::Orientation;

/// Which product with a stored matrix `W` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// `x Wᵀ`: a panel of the result needs rows of `W`.
    Transposed,
    /// `x W`: a panel of the result needs columns of `W`.
    AsStored,
}

impl Product {
    /// What takes inputs to outputs.
    pub(crate) fn forward(orientation: Orientation) -> Self {
        match orientation {
            Orientation::RowPerOutput => Self::Transposed,
            Orientation::RowPerInput => Self::AsStored,
        }
    }

    /// What takes the gradient of the outputs to that of the inputs.
    pub(crate) fn backward(orientation: Orientation) -> Self {
        match orientation {
            Orientation::RowPerOutput => Self::AsStored,
            Orientation::RowPerInput => Self::Transposed,
        }
    }
}
