//! What is put into a GPU's stream, as data: it is done at once, or kept and compared, so that work that repeats is
//! launched as one graph.

use super::blas::{Operation, Pointers};
use super::{CudaDevice, count, driver};
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// One thing for the GPU to do, addresses and all. Two that are equal do the same with what is at these addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// A kernel, with its arguments' bits.
    Launch { name: &'static str, function: usize, blocks: [u32; 3], threads: u32, shared: u32, args: Vec<u64> },
    /// A matrix product by cuBLASLt, added to what is there or not.
    Multiply { operation: Operation, pointers: Pointers, adds: bool, workspace: u64 },
    /// A copy on the GPU.
    Copy { to: u64, from: u64, bytes: usize },
    /// Zeros.
    Clear { at: u64, bytes: usize },
    /// A 4-byte word, over and over.
    Fill { at: u64, word: u32, count: usize },
    /// A copy from the host, whose contents are kept apart: they may differ where all else repeats.
    Upload { to: u64, bytes: usize },
}

impl Command {
    /// The name it is counted under.
    fn name(&self) -> &'static str {
        match self {
            Self::Launch { name, .. } => name,
            Self::Multiply { .. } => count::PRODUCT,
            Self::Copy { .. } => count::COPY,
            Self::Clear { .. } | Self::Fill { .. } => count::FILL,
            Self::Upload { .. } => count::UPLOAD,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Copy { bytes, .. } | Self::Clear { bytes, .. } | Self::Upload { bytes, .. } => *bytes == 0,
            Self::Fill { count, .. } => *count == 0,
            Self::Launch { .. } | Self::Multiply { .. } => false,
        }
    }
}

impl CudaDevice {
    /// Puts `command` into the stream, or keeps it for later where work is being put off.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the driver or the library refuses.
    ///
    /// # Safety
    /// The command must stay within live memory of this device. Not for uploads: see [`CudaDevice::upload`].
    pub(super) unsafe fn put(&self, command: Command) -> Result<()> {
        if command.is_empty() {
            return Ok(());
        }
        self.count(command.name());
        let mut scope = self.scope();
        if scope.is_deferring() {
            scope.keep(command);
            return Ok(());
        }
        // SAFETY: the caller's word.
        unsafe { self.execute(&command, &[]) }?;
        scope.keep(command);
        Ok(())
    }

    /// Copies `contents` to the address `to`. They may be changed as soon as this returns.
    ///
    /// # Errors
    /// As [`CudaDevice::put`].
    ///
    /// # Safety
    /// The bytes from `to` on must be live memory of this device.
    pub(super) unsafe fn upload(&self, to: u64, contents: &[u8]) -> Result<()> {
        let command = Command::Upload { to, bytes: contents.len() };
        if command.is_empty() {
            return Ok(());
        }
        self.count(command.name());
        let mut scope = self.scope();
        if scope.is_deferring() {
            scope.keep_upload(command, contents);
            return Ok(());
        }
        // SAFETY: the caller's word. The host memory is pageable, so the driver has read it when it returns.
        unsafe { self.execute(&command, contents) }?;
        scope.keep(command);
        Ok(())
    }

    /// Multiplies matrices by cuBLASLt, with as much memory at `workspace` as it asks for.
    ///
    /// # Errors
    /// As [`CudaDevice::put`].
    ///
    /// # Safety
    /// As [`Blas::multiply`](super::blas::Blas::multiply).
    pub(crate) unsafe fn multiply(
        &self,
        operation: &Operation,
        pointers: Pointers,
        adds: bool,
        workspace: u64,
    ) -> Result<()> {
        // SAFETY: the caller's word.
        unsafe { self.put(Command::Multiply { operation: *operation, pointers, adds, workspace }) }
    }

    /// Does `command` now; `contents` is what an upload copies.
    ///
    /// # Safety
    /// As [`CudaDevice::put`]. In a stream that is being captured the contents must be pinned, and stay.
    pub(super) unsafe fn execute(&self, command: &Command, contents: &[u8]) -> Result<()> {
        self.bind()?;
        let stream = self.stream();
        // SAFETY: the caller answers for the memory; handles and stream live as long as the device.
        let (action, outcome) = unsafe {
            match command {
                Command::Launch { name, function, blocks: [x, y, z], threads, shared, args } => {
                    let mut args = args.clone();
                    // Little-endian: the low bytes of a word are the narrower value.
                    let mut pointers: Vec<*mut c_void> = args.iter_mut().map(|arg| (&raw mut *arg).cast()).collect();
                    let function = *function as sys::CUfunction;
                    let (grid, block) = ((*x, *y, *z), (*threads, 1, 1));
                    let outcome = result::launch_kernel(function, grid, block, *shared, stream, &mut pointers);
                    return outcome.map_err(|refused| driver::error(&format!("launch {name}"), refused));
                }
                Command::Multiply { operation, pointers, adds, workspace } => {
                    let beta = if *adds { 1.0 } else { 0.0 };
                    return match self.blas()? {
                        Some(blas) => blas.multiply(operation, *pointers, beta, *workspace, stream.cast()),
                        None => Ok(()),
                    };
                }
                Command::Copy { to, from, bytes } => {
                    ("copy on the GPU", result::memcpy_dtod_async(*to, *from, *bytes, stream))
                }
                Command::Clear { at, bytes } => ("clear memory", result::memset_d8_async(*at, 0, *bytes, stream)),
                Command::Fill { at, word, count } => {
                    ("fill memory", sys::cuMemsetD32Async(*at, *word, *count, stream).result())
                }
                Command::Upload { to, bytes } => {
                    debug_assert_eq!(*bytes, contents.len());
                    ("copy to the GPU", result::memcpy_htod_async(*to, contents, stream))
                }
            }
        };
        outcome.map_err(|refused| driver::error(action, refused))
    }
}
