//! What is put into a GPU's stream, counted by name: kernels under their own, the rest under what it does.

use super::CudaDevice;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A product that the library computes.
pub(crate) const PRODUCT: &str = "cublasLtMatmul";
/// A copy from host to GPU.
pub(crate) const UPLOAD: &str = "upload";
/// A copy from GPU to host.
pub(crate) const DOWNLOAD: &str = "download";
/// A copy on the GPU.
pub(crate) const COPY: &str = "copy";
/// Memory set to one value.
pub(crate) const FILL: &str = "fill";

/// How often what was launched.
#[derive(Default)]
pub(super) struct Counts(Mutex<BTreeMap<&'static str, usize>>);

impl Counts {
    /// One more `name`.
    pub(super) fn add(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
}

impl CudaDevice {
    /// What has been put into the stream so far, and how often: kernels by name, products of the library as
    /// `cublasLtMatmul`, and `upload`, `download`, `copy` and `fill`.
    pub fn launches(&self) -> BTreeMap<&'static str, usize> {
        self.0.launched.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a launch.
    pub(crate) fn count(&self, name: &'static str) {
        self.0.launched.add(name);
    }
}
