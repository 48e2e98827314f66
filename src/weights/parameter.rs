//! A weight that is trained: its value changes between steps, and gradients know it by a number.

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::ops::Range;
use std::sync::{PoisonError, RwLock};

/// A weight that is trained, in the type that the model computes in and on its device.
#[derive(Debug)]
pub struct Parameter {
    id: usize,
    place: Place,
    value: RwLock<Tensor>,
}

/// Which part of which tensor of a model's files a parameter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// The rows of it, all in one for a tensor of one dimension.
    pub rows: Range<usize>,
    /// The columns of it.
    pub cols: Range<usize>,
}

impl Parameter {
    /// The parameter numbered `id`, with the value it begins with.
    pub fn new(id: usize, place: Place, value: Tensor) -> Self {
        Self { id, place, value: RwLock::new(value) }
    }

    /// What gradients know it by: its place among [`crate::Model::parameters`].
    pub fn id(&self) -> usize {
        self.id
    }

    /// What it is in the model's files.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether weight decay is for it: for matrices, but not for those of biases, as the HF Trainer goes by names.
    pub fn is_decayed(&self) -> bool {
        self.place.shape.len() > 1 && !self.place.name.contains("bias")
    }

    /// The value now. It is shared: whoever holds on to it makes the next update copy it.
    pub fn value(&self) -> Tensor {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets `change` write the value in place.
    ///
    /// # Errors
    /// What `change` reports; [`Error::Op`] if it changes shape or type.
    pub fn update(&self, change: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
        let before = (value.rows(), value.cols(), value.dtype());
        change(&mut value)?;
        if (value.rows(), value.cols(), value.dtype()) != before {
            return Err(Error::op("parameter", format!("{before:?}"), value.describe()));
        }
        Ok(())
    }
}
