//! The building blocks that models share: a linear map with its bias, norms, tables of rotations and of biases by distance. Their weights are frozen or
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

/// A bias of attention by relative position (Raffel et al. 2020 §2.1): distances fall into buckets, single ones near 0 and
/// ever wider ones up to a greatest, and each bucket and head has a number.
#[derive(Debug)]
pub struct RelativeBias {
    weight: Arc<Matrix>,
    max_distance: usize,
    /// Whether keys may come after queries: half of the buckets is for them.
    is_bidirectional: bool,
    /// The table of a frozen weight, as far as positions have been asked for.
    table: Mutex<Option<(usize, Var)>>,
}

impl RelativeBias {
    /// A bias with `weight` `[buckets, heads]`.
    pub fn new(weight: Arc<Matrix>, max_distance: usize, is_bidirectional: bool) -> Self {
        Self { weight, max_distance, is_bidirectional, table: Mutex::new(None) }
    }

    /// A table `[heads, distances]` for positions below `positions`, and the column of distance 0.
    ///
    /// # Errors
    /// Those of [`ops::position_bias()`].
    pub fn up_to(&self, tape: &mut Tape, positions: usize, device: &Device, dtype: DType) -> Result<(usize, Var)> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((offset, table)) = table.as_ref().filter(|(offset, _)| offset + 1 >= positions) {
            return Ok((*offset, table.clone()));
        }
        let offset = positions.next_power_of_two().max(128) - 1;
        let columns = 0..2 * offset + 1;
        let buckets: Vec<usize> = columns.map(|column| self.bucket(column as i64 - offset as i64)).collect();
        let found = ops::position_bias(tape, &self.weight, &buckets, device, dtype)?;
        if !found.is_tracked() {
            *table = Some((offset, found.clone()));
        }
        Ok((offset, found))
    }

    /// The bucket of a key that stands `distance` after its query.
    fn bucket(&self, distance: i64) -> usize {
        let all = self.weight.out_features();
        let (first, count, distance) = match self.is_bidirectional {
            true if distance > 0 => (all / 2, all / 2, distance),
            true => (0, all / 2, -distance),
            false => (0, all, (-distance).max(0)),
        };
        let (distance, exact) = (distance as usize, count / 2);
        if distance < exact {
            return first + distance;
        }
        let share = (distance as f64 / exact as f64).ln() / (self.max_distance as f64 / exact as f64).ln();
        first + (exact + (share * (count - exact) as f64) as usize).min(count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Orientation, StoredTensor};

    #[test]
    fn distances_fall_into_the_buckets_of_t5() {
        let weight = StoredTensor::from_values("bias", &[32, 1], vec![0.0; 32]).unwrap();
        let weight = Arc::new(Matrix::new(weight, Orientation::RowPerOutput).unwrap());
        let bias = |both| RelativeBias::new(Arc::clone(&weight), 128, both);
        let of = |both: bool, distances: &[i64]| distances.iter().map(|&d| bias(both).bucket(d)).collect::<Vec<_>>();
        // As Hugging Face's T5Attention._relative_position_bucket gives them.
        assert_eq!(of(true, &[0, -1, 1, -7, -8, -15, -16, -64, -127, -5000]), [0, 1, 17, 7, 8, 9, 10, 14, 15, 15]);
        assert_eq!(of(true, &[8, 63, 64, 90, 91, 5000]), [24, 29, 30, 30, 31, 31]);
        assert_eq!(of(false, &[5, 0, -1, -15, -16, -20, -113, -5000]), [0, 0, 1, 15, 16, 17, 31, 31]);
    }
}
