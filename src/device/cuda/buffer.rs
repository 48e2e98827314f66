//! A buffer in a GPU's memory.

use super::stream::Command;
use super::{CudaDevice, count, driver};
use crate::device::Kind;
use crate::error::{Error, Result};
use cudarc::driver::result;
use std::sync::atomic::{AtomicU8, Ordering};

/// Bytes of a GPU's memory, aligned to 256, returned to the device's pool when dropped.
pub struct CudaBuffer {
    pub(super) address: u64,
    /// Bytes taken of the device.
    pub(super) length: usize,
    /// Bytes asked for.
    pub(super) bytes: usize,
    pub(super) kind: AtomicU8,
    pub(super) device: CudaDevice,
}

impl CudaBuffer {
    /// The bytes asked for.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What the buffer is held for.
    pub fn kind(&self) -> Kind {
        Kind::from_index(self.kind.load(Ordering::Relaxed))
    }

    /// Counts the buffer under another kind from now on.
    pub fn retag(&self, kind: Kind) {
        let before = Kind::from_index(self.kind.swap(kind as u8, Ordering::Relaxed));
        self.device.0.ledger.retag(self.bytes, before, kind);
    }

    pub(in crate::device) fn address(&self) -> u64 {
        self.address
    }

    /// Copies `bytes` into the buffer from byte `start` on. They may be changed as soon as this returns.
    pub(in crate::device) fn upload_at(&mut self, start: usize, bytes: &[u8]) -> Result<()> {
        self.check("upload", start, bytes.len())?;
        // SAFETY: the range was checked.
        unsafe { self.device.upload(self.address + start as u64, bytes) }
    }

    /// Copies the first bytes of the buffer out, when everything asked for before is done.
    pub(in crate::device) fn download(&self, bytes: &mut [u8]) -> Result<()> {
        self.check("download", 0, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.flush()?;
        self.device.bind()?;
        self.device.count(count::DOWNLOAD);
        // SAFETY: the range was checked, and the stream is waited for before `bytes` is given up.
        unsafe { result::memcpy_dtoh_async(bytes, self.address, self.device.stream()) }
            .map_err(|refused| driver::error("copy from the GPU", refused))?;
        self.device.synchronize()
    }

    /// Copies `length` bytes of `from`, starting at `start`, to `to` on.
    pub(in crate::device) fn copy_from(&mut self, to: usize, from: &Self, start: usize, length: usize) -> Result<()> {
        self.check("copy", to, length)?;
        from.check("copy", start, length)?;
        if !self.device.is(&from.device) {
            return Err(Error::op("copy", "buffers of one GPU", "buffers of two"));
        }
        let (to, from) = (self.address + to as u64, from.address + start as u64);
        // SAFETY: both ranges were checked, and lie in different buffers.
        unsafe { self.device.put(Command::Copy { to, from, bytes: length }) }
    }

    /// Sets every byte to 0.
    pub(in crate::device) fn clear(&mut self) -> Result<()> {
        // SAFETY: the buffer's own bytes.
        unsafe { self.device.put(Command::Clear { at: self.address, bytes: self.bytes }) }
    }

    /// Sets every 4-byte word to `word`.
    pub(in crate::device) fn fill_words(&mut self, word: u32) -> Result<()> {
        // SAFETY: the buffer's own bytes, of which there are whole words.
        unsafe { self.device.put(Command::Fill { at: self.address, word, count: self.bytes / 4 }) }
    }

    fn check(&self, action: &'static str, start: usize, length: usize) -> Result<()> {
        if start.checked_add(length).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::op(action, format!("a range within {} bytes", self.bytes), format!("{length} from {start}")))
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.device.0.ledger.remove(self.bytes, self.kind());
        self.device.give_back(self.length, self.address);
    }
}

impl std::fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaBuffer").field("bytes", &self.bytes).field("kind", &self.kind()).finish_non_exhaustive()
    }
}
