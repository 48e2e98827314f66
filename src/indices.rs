//! Lists of rows or positions that ops take: host numbers, with copies for GPUs made when they are first needed.

use crate::device::{Buffer, CudaDevice, Device, Kind, OnDevice};
use crate::error::{Error, Result};
use std::ops::Deref;
use std::sync::Arc;

/// A list of indices. Clones share it.
#[derive(Debug, Clone)]
pub struct Indices(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    values: Vec<usize>,
    on_device: OnDevice<Buffer>,
}

impl Indices {
    /// The list in the memory of `cuda`, as `int`.
    pub(crate) fn on(&self, cuda: &CudaDevice) -> Result<Arc<Buffer>> {
        self.0.on_device.get(cuda, || upload(cuda, &self.0.values))
    }
}

/// Numbers as `int` in the memory of `cuda`.
///
/// # Errors
/// [`Error::Op`] for one of 2³¹ or more.
pub(crate) fn upload(cuda: &CudaDevice, values: &[usize]) -> Result<Buffer> {
    let narrow = |&value: &usize| {
        i32::try_from(value).map_err(|_| Error::op("indices", "numbers below 2^31", value.to_string()))
    };
    let values = values.iter().map(narrow).collect::<Result<Vec<i32>>>()?;
    let mut buffer = Device::Cuda(cuda.clone()).allocate(size_of_val(values.as_slice()), Kind::Workspace);
    buffer.upload(bytemuck::cast_slice(&values))?;
    Ok(buffer)
}

impl From<Vec<usize>> for Indices {
    fn from(values: Vec<usize>) -> Self {
        Self(Arc::new(Inner { values, on_device: OnDevice::default() }))
    }
}

impl FromIterator<usize> for Indices {
    fn from_iter<I: IntoIterator<Item = usize>>(values: I) -> Self {
        Self::from(values.into_iter().collect::<Vec<_>>())
    }
}

impl From<&[usize]> for Indices {
    fn from(values: &[usize]) -> Self {
        Self::from(values.to_vec())
    }
}

impl Deref for Indices {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.0.values
    }
}
