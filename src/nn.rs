//! The building blocks that models share: a linear map with its bias, norms, rotation tables. Their weights are frozen or
//! trained; what they compute is the same.

use crate::device::{Device, Kind};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{self, Pairing, rope::Rotation};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::weights::{Matrix, Parameter};
use std::sync::{Arc, Mutex, PoisonError};

/// A bias or a norm's weight, `[1, n]`.
#[derive(Debug, Clone)]
pub enum Vector {
    /// As the model came.
    Frozen(Tensor),
    /// What training changes.
    Trained(Arc<Parameter>),
}

impl Vector {
    fn var(&self, tape: &mut Tape) -> Var {
        match self {
            Self::Frozen(tensor) => Var::constant(tensor.clone()),
            Self::Trained(parameter) => tape.parameter_var(Some(parameter.id()), parameter.value()),
        }
    }
}

/// `x W + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The matrix.
    pub weight: Arc<Matrix>,
    /// `[1, out]`
    pub bias: Option<Vector>,
}

impl Linear {
    /// Applies the map to the rows of `x`.
    ///
    /// # Errors
    /// [`crate::Error::Op`] if the shapes do not fit.
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let bias = self.bias.as_ref().map(|bias| bias.var(tape));
        ops::linear(tape, x, &self.weight, bias.as_ref())
    }
}

/// A norm over the features of a row.
#[derive(Debug, Clone)]
pub enum Norm {
    /// Root mean square.
    Rms {
        /// `[1, d]`
        weight: Vector,
        /// Added to the mean square.
        epsilon: f64,
    },
    /// Mean and variance.
    Layer {
        /// `[1, d]`
        weight: Vector,
        /// `[1, d]`
        bias: Vector,
        /// Added to the variance.
        epsilon: f64,
    },
}

impl Norm {
    /// Normalises the rows of `x`.
    ///
    /// # Errors
    /// [`crate::Error::Op`] if the shapes do not fit.
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        match self {
            Self::Rms { weight, epsilon } => {
                let weight = weight.var(tape);
                ops::rms_norm(tape, x, &weight, *epsilon)
            }
            Self::Layer { weight, bias, epsilon } => {
                let (weight, bias) = (weight.var(tape), bias.var(tape));
                ops::layer_norm(tape, x, &weight, &bias, *epsilon)
            }
        }
    }

    /// The sum of `x` and `residual`, and the sum normalised.
    ///
    /// # Errors
    /// [`crate::Error::Op`] if the shapes do not fit.
    pub fn after_add(&self, tape: &mut Tape, x: &Var, residual: Var) -> Result<(Var, Var)> {
        match self {
            Self::Rms { weight, epsilon } => {
                let weight = weight.var(tape);
                ops::add_rms_norm(tape, x, residual, &weight, *epsilon)
            }
            Self::Layer { weight, bias, epsilon } => {
                let (weight, bias) = (weight.var(tape), bias.var(tape));
                ops::add_layer_norm(tape, x, residual, &weight, &bias, *epsilon)
            }
        }
    }

    /// [`Norm::after_add`] where something is still to be added to `x`, else `x` itself and [`Norm::forward`] of it.
    ///
    /// # Errors
    /// [`crate::Error::Op`] if the shapes do not fit.
    pub fn join(&self, tape: &mut Tape, x: Var, branch: Option<Var>) -> Result<(Var, Var)> {
        match branch {
            Some(branch) => self.after_add(tape, &x, branch),
            None => {
                let normed = self.forward(tape, &x)?;
                Ok((x, normed))
            }
        }
    }
}

/// Cosines and sines of the rotary embedding, computed in f64 as far as positions have been asked for.
#[derive(Debug)]
pub struct RotaryTable {
    device: Device,
    dtype: DType,
    pairing: Pairing,
    frequencies: Vec<f64>,
    table: Mutex<Option<Arc<Rotation>>>,
}

impl RotaryTable {
    /// A table of angles `position · frequencies[pair]`.
    pub fn new(device: &Device, dtype: DType, pairing: Pairing, frequencies: Vec<f64>) -> Self {
        Self { device: device.clone(), dtype, pairing, frequencies, table: Mutex::new(None) }
    }

    /// A table that has at least the positions below `positions`.
    ///
    /// # Errors
    /// None but those of the device.
    pub fn up_to(&self, positions: usize) -> Result<Arc<Rotation>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rotation) = table.as_ref().filter(|rotation| rotation.cos.rows() >= positions) {
            return Ok(Arc::clone(rotation));
        }
        let rows = positions.next_power_of_two().max(128);
        let of = |function: fn(f64) -> f64| {
            let values: Vec<f64> = (0..rows)
                .flat_map(|position| {
                    self.frequencies.iter().map(move |frequency| function(position as f64 * frequency))
                })
                .collect();
            Tensor::from_f64(
                &self.device,
                rows,
                self.frequencies.len(),
                self.dtype.accumulator(),
                &values,
                Kind::Weights,
            )
        };
        let rotation = Arc::new(Rotation { pairing: self.pairing, cos: of(f64::cos)?, sin: of(f64::sin)? });
        *table = Some(Arc::clone(&rotation));
        Ok(rotation)
    }
}
