//! The optimizer's state of a whole model in a checkpoint: one tensor at a time, as there may be little memory to spare.

use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::optim::WeightOptimizer;
use crate::values::Values;
use crate::weights::Weights;
use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};
use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;

const FILE: &str = "optimizer.safetensors";

/// A tensor of the state on its way to the file.
struct Moment<'a> {
    optimizer: &'a WeightOptimizer,
    id: usize,
    index: usize,
    dtype: DType,
    shape: [usize; 1],
    failed: &'a RefCell<Option<Error>>,
}

impl View for Moment<'_> {
    fn dtype(&self) -> Dtype {
        if self.dtype == DType::F64 { Dtype::F64 } else { Dtype::F32 }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.optimizer.state_of(self.id) {
            Ok(mut state) => Cow::Owned(state.swap_remove(self.index).1.to_le_bytes()),
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.shape[0] * self.dtype.size()
    }
}

/// Writes the state of `count` weights to `dir`.
pub(super) fn write(optimizer: &WeightOptimizer, count: usize, dir: &Path) -> Result<()> {
    let failed = RefCell::new(None);
    let mut moments = Vec::new();
    for id in 0..count {
        for (index, (name, values)) in optimizer.state_of(id)?.iter().enumerate() {
            let (dtype, shape) = (values.dtype(), [values.len()]);
            moments.push((format!("{id}.{name}"), Moment { optimizer, id, index, dtype, shape, failed: &failed }));
        }
    }
    let path = dir.join(FILE);
    serialize_to_file(moments, None, &path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => Error::io(&path, "write", error),
        other => Error::op("checkpoint", "tensors that safetensors can hold", other.to_string()),
    })?;
    failed.into_inner().map_or(Ok(()), Err)
}

/// Reads the state of `count` weights from `dir`.
pub(super) fn read(optimizer: &mut WeightOptimizer, count: usize, dir: &Path) -> Result<()> {
    let path = dir.join(FILE);
    let stored = Weights::open(&path)?;
    for id in 0..count {
        let state = optimizer.state_of(id)?.into_iter().map(|(name, now)| {
            let tensor = stored.get(&format!("{id}.{name}"))?;
            if tensor.len() != now.len() {
                let place = Place::file(&path).of(format!("{id}.{name}"));
                return Err(Error::input(place, format!("{} numbers", now.len()), tensor.len().to_string()));
            }
            let values = match now.dtype() {
                DType::F64 => {
                    let mut values = vec![0f64; now.len()];
                    tensor.widen(0, &mut values);
                    Values::F64(values)
                }
                _ => {
                    let mut values = vec![0f32; now.len()];
                    tensor.widen(0, &mut values);
                    Values::F32(values)
                }
            };
            Ok((name, values))
        });
        let state = state.collect::<Result<Vec<_>>>()?;
        optimizer.load_state_of(id, state).map_err(|error| error.in_file(&path))?;
    }
    Ok(())
}
