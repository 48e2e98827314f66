//! Reading a model's tensors under the shapes its configuration promises.

use super::{ModelOptions, WeightStorage};
use crate::device::{Device, Kind};
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::nn::{Linear, Norm, Vector};
use crate::tensor::Tensor;
use crate::weights::{Matrix, Orientation, Parameter, ParameterPlace, StoredTensor, Weights};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

/// Where tensors come from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// An opened model.
    Files(&'a Weights),
    /// Made up on the spot: every name exists, in the shape asked for.
    Random {
        /// What the numbers derive from, together with the tensor's name.
        seed: u64,
    },
    /// As [`Origin::Random`], as a model begins that is to be trained: norms are 1 and biases 0.
    Fresh {
        /// As there.
        seed: u64,
        /// The standard deviation of a matrix by its name and shape.
        deviation: Deviation<'a>,
    },
}

/// A standard deviation by name and shape.
pub(super) type Deviation<'a> = &'a (dyn Fn(&str, &[usize]) -> f64 + Sync);

/// Reads tensors for one device and type, and counts the mapped bytes.
pub(super) struct Loader<'a> {
    origin: Origin<'a>,
    pub(super) device: &'a Device,
    options: ModelOptions,
    mapped_bytes: Cell<usize>,
    fingerprint: RefCell<Sha256>,
    parameters: RefCell<Vec<Arc<Parameter>>>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(origin: Origin<'a>, device: &'a Device, options: ModelOptions) -> Self {
        Self {
            origin,
            device,
            options,
            mapped_bytes: Cell::new(0),
            fingerprint: RefCell::default(),
            parameters: RefCell::default(),
        }
    }

    pub(super) fn dtype(&self) -> DType {
        self.options.dtype
    }

    pub(super) fn is_gguf(&self) -> bool {
        matches!(self.origin, Origin::Files(weights) if weights.gguf().is_some())
    }

    /// Whether tensors come from files, so that asking whether they are there has a meaning.
    pub(super) fn reads_files(&self) -> bool {
        matches!(self.origin, Origin::Files(_))
    }

    pub(super) fn mapped_bytes(&self) -> usize {
        self.mapped_bytes.get()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        // A tensor of a type that cannot be read is there: asking for it says so.
        matches!(self.origin, Origin::Files(weights) if weights.optional(name).map_or(true, |found| found.is_some()))
    }

    /// What the tensors read so far are, as a hash of their names, shapes, formats and samples of their bytes.
    pub(super) fn fingerprint(&self) -> String {
        self.fingerprint.borrow().clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The weights that are trained, in the order they were asked for.
    pub(super) fn into_parameters(self) -> Vec<Arc<Parameter>> {
        self.parameters.into_inner()
    }

    fn train(&self, place: ParameterPlace, value: Tensor) -> Arc<Parameter> {
        let mut parameters = self.parameters.borrow_mut();
        let parameter = Arc::new(Parameter::new(parameters.len(), place, value));
        parameters.push(Arc::clone(&parameter));
        parameter
    }

    fn note(&self, stored: &StoredTensor) {
        const SAMPLE: usize = 1024;
        let mut hash = self.fingerprint.borrow_mut();
        hash.update(format!("{} {:?} {}\n", stored.name(), stored.shape(), stored.format()));
        let bytes = stored.bytes();
        for start in [0, bytes.len() / 2, bytes.len().saturating_sub(SAMPLE)] {
            hash.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
        }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        let stored = match self.origin {
            Origin::Files(weights) => weights.get(name)?,
            Origin::Random { seed } => random(name, shape, seed, DEVIATION)?,
            Origin::Fresh { seed, deviation } => fresh(name, shape, seed, deviation)?,
        };
        if stored.shape() != shape {
            return Err(Error::input(
                Place::file(stored.path()).of(name),
                format!("shape {shape:?} by the configuration"),
                format!("{:?}", stored.shape()),
            ));
        }
        self.mapped_bytes.set(self.mapped_bytes.get() + stored.bytes().len());
        self.note(&stored);
        Ok(stored)
    }

    /// A matrix from `inputs` to `outputs` numbers.
    pub(super) fn matrix(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        orientation: Orientation,
    ) -> Result<Arc<Matrix>> {
        let shape = match orientation {
            Orientation::RowPerOutput => [outputs, inputs],
            Orientation::RowPerInput => [inputs, outputs],
        };
        Ok(Arc::new(self.hold(name, Matrix::new(self.get(name, &shape)?, orientation)?)?))
    }

    /// Makes a parameter of the matrix that is, or is part of, the tensor `name`, if weights are trained. Else widens it if
    /// that was asked for, and copies it to a GPU.
    pub(super) fn hold(&self, name: &str, mut matrix: Matrix) -> Result<Matrix> {
        if self.options.trainable {
            let value = matrix.to_tensor(self.device, self.options.dtype)?;
            let (rows, cols) = (matrix.stored_rows(), matrix.stored_cols());
            let place = ParameterPlace { name: name.to_string(), shape: matrix.stored_shape(), rows, cols };
            return Ok(Matrix::trained(self.train(place, value), matrix.orientation()));
        }
        if self.options.weights == WeightStorage::Widened {
            matrix.widen(self.device, self.options.dtype);
        }
        if let Device::Cuda(cuda) = self.device {
            matrix.on(cuda, self.options.dtype)?;
        }
        Ok(matrix)
    }

    /// A matrix that is not widened before it has been divided.
    pub(super) fn fused(&self, name: &str, outputs: usize, inputs: usize, orientation: Orientation) -> Result<Matrix> {
        let shape = match orientation {
            Orientation::RowPerOutput => [outputs, inputs],
            Orientation::RowPerInput => [inputs, outputs],
        };
        Matrix::new(self.get(name, &shape)?, orientation)
    }

    /// The numbers of a short tensor, as f64.
    pub(super) fn numbers(&self, name: &str, length: usize) -> Result<Vec<f64>> {
        let mut values = vec![0f64; length];
        self.get(name, &[length])?.widen(0, &mut values);
        Ok(values)
    }

    /// The numbers `range` of the vector `name`, all of which are `values`, in the working type.
    pub(super) fn part(&self, name: &str, values: &[f64], range: Range<usize>) -> Result<Vector> {
        let row = Tensor::from_f64(self.device, 1, range.len(), self.dtype(), &values[range.clone()], Kind::Weights)?;
        if self.options.trainable {
            let place = ParameterPlace { name: name.to_string(), shape: vec![values.len()], rows: 0..1, cols: range };
            return Ok(Vector::Trained(self.train(place, row)));
        }
        Ok(Vector::Frozen(row))
    }

    /// A vector of `length` numbers, as a row.
    pub(super) fn vector(&self, name: &str, length: usize) -> Result<Vector> {
        self.part(name, &self.numbers(name, length)?, 0..length)
    }

    /// `<prefix>.weight`, and `<prefix>.bias` if `has_bias`.
    pub(super) fn linear(
        &self,
        prefix: &str,
        outputs: usize,
        inputs: usize,
        orientation: Orientation,
        has_bias: bool,
    ) -> Result<Linear> {
        let weight = self.matrix(&format!("{prefix}.weight"), outputs, inputs, orientation)?;
        let bias = has_bias.then(|| self.vector(&format!("{prefix}.bias"), outputs)).transpose()?;
        Ok(Linear { weight, bias })
    }

    pub(super) fn rms_norm(&self, name: &str, length: usize, epsilon: f64) -> Result<Norm> {
        Ok(Norm::Rms { weight: self.vector(name, length)?, epsilon })
    }

    pub(super) fn layer_norm(&self, prefix: &str, length: usize, epsilon: f64) -> Result<Norm> {
        let weight = self.vector(&format!("{prefix}.weight"), length)?;
        Ok(Norm::Layer { weight, bias: self.vector(&format!("{prefix}.bias"), length)?, epsilon })
    }
}

/// The standard deviation of most models' matrices as they begin.
pub(super) const DEVIATION: f64 = 0.02;

/// Numbers as a freshly initialised model has them: matrices normal, norms near 1, biases near 0.
fn random(name: &str, shape: &[usize], seed: u64, deviation: f64) -> Result<StoredTensor> {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(name);
    let mut generator = ChaCha8Rng::from_seed(hasher.finalize().into());
    let centre = centre(name, shape);
    // The sum of twelve uniform numbers has deviation 1, is as good as normal here, and the same on every platform.
    let mut normal = || (0..3).map(|_| spread(generator.next_u64())).sum::<f32>();
    let deviation = deviation as f32;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| centre + deviation * normal()).collect();
    StoredTensor::from_values(name, shape, values)
}

/// Numbers as training begins with them: those of [`random`] for matrices, 1 for norms, 0 for biases.
fn fresh(name: &str, shape: &[usize], seed: u64, deviation: Deviation<'_>) -> Result<StoredTensor> {
    match *shape {
        [length] => StoredTensor::from_values(name, shape, vec![centre(name, shape); length]),
        _ => random(name, shape, seed, deviation(name, shape)),
    }
}

fn centre(name: &str, shape: &[usize]) -> f32 {
    if shape.len() == 1 && !name.ends_with("bias") { 1.0 } else { 0.0 }
}

/// The sum of four uniform numbers in [-1/2, 1/2), one of each 16 bits.
fn spread(bits: u64) -> f32 {
    (0..4).map(|part| (bits >> (16 * part) & 0xFFFF) as f32 / 65_536.0 - 0.5).sum()
}
