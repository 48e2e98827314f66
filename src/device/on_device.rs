//! What a GPU needs of something that the host has: made when it is first asked for, and kept beside it.

use super::CudaDevice;
use crate::error::Result;
use std::sync::{Arc, Mutex, PoisonError};

/// A place for one derived value per GPU. Clones start empty.
pub(crate) struct OnDevice<T>(Mutex<Vec<(CudaDevice, Arc<T>)>>);

impl<T> OnDevice<T> {
    /// The value for `cuda`; `make` makes it the first time.
    ///
    /// # Errors
    /// What `make` reports.
    pub(crate) fn get(&self, cuda: &CudaDevice, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = values.iter().find(|(device, _)| device.is(cuda)) {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(make()?);
        values.push((cuda.clone(), Arc::clone(&value)));
        Ok(value)
    }
}

impl<T> Default for OnDevice<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Clone for OnDevice<T> {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<T> std::fmt::Debug for OnDevice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnDevice")
    }
}
