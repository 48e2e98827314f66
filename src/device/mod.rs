//! Where tensors live and ops run.
//!
//! Every buffer of the crate is allocated here, under a [`Kind`], so that [`Device::memory`] can say at any moment how
//! many bytes are held for what, and what the peak was.

mod cpu;
mod memory;

pub use cpu::Buffer;
pub use memory::{Kind, MemoryReport};

use crate::error::{Error, Place, Result};
use cpu::{CpuDevice, OutOfMemory};

/// A device: the memory it owns and the threads that work on it. Clones share both.
#[derive(Debug, Clone)]
pub enum Device {
    /// The processor, with a thread pool of its own.
    Cpu(CpuDevice),
}

impl Device {
    /// The CPU with `threads` worker threads; `None` takes one per core, or what `RAYON_NUM_THREADS` says.
    ///
    /// The number of threads changes the speed, never a bit of a result.
    ///
    /// # Errors
    /// [`Error::Device`] if the threads cannot be started.
    pub fn cpu(threads: Option<usize>) -> Result<Self> {
        Ok(Self::Cpu(CpuDevice::new(threads)?))
    }

    /// The device called `name` (`cpu`).
    ///
    /// # Errors
    /// [`Error::Config`] for a name that no device has; [`Error::Device`] for one that is not in this build.
    pub fn named(name: &str, threads: Option<usize>) -> Result<Self> {
        match name {
            "cpu" => Self::cpu(threads),
            "cuda" => Err(Error::device(Place::item("device"), "cpu", "cuda, which is not in this version")
                .hint("leave --device out, or give cpu")),
            other => Err(Error::config(Place::item("device"), "cpu", format!("{other:?}"))
                .hint("this version computes on the CPU only")),
        }
    }

    /// The name that [`Device::named`] takes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
        }
    }

    /// How many threads work for this device.
    pub fn threads(&self) -> usize {
        match self {
            Self::Cpu(cpu) => cpu.threads(),
        }
    }

    /// Runs `work` on the device's own threads. Ops called outside use the process-wide pool, with the same results, but
    /// panic where memory runs out.
    ///
    /// # Errors
    /// What `work` reports, and [`Error::Device`] if the device has too little memory for it.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let outcome = match self {
            Self::Cpu(cpu) => std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cpu.run(work))),
        };
        outcome.unwrap_or_else(|payload| match payload.downcast::<OutOfMemory>() {
            Ok(short) => Err(short.into_error(self.name())),
            Err(other) => std::panic::resume_unwind(other),
        })
    }

    /// A buffer of `bytes` bytes for `kind`. What it holds at first is unspecified: in debug builds NaNs.
    pub fn allocate(&self, bytes: usize, kind: Kind) -> Buffer {
        match self {
            Self::Cpu(cpu) => cpu.allocate(bytes, kind),
        }
    }

    /// Counts `bytes` that are not allocated here but used by the device, as a mapped weight file is.
    pub fn count_external(&self, bytes: usize, kind: Kind) {
        match self {
            Self::Cpu(cpu) => cpu.ledger().add(bytes, kind),
        }
    }

    /// Takes back what [`Device::count_external`] counted.
    pub fn uncount_external(&self, bytes: usize, kind: Kind) {
        match self {
            Self::Cpu(cpu) => cpu.ledger().remove(bytes, kind),
        }
    }

    /// Bytes held now and at the peak, by kind.
    pub fn memory(&self) -> MemoryReport {
        match self {
            Self::Cpu(cpu) => cpu.ledger().report(),
        }
    }

    /// Starts a new peak from what is held now.
    pub fn reset_peak(&self) {
        match self {
            Self::Cpu(cpu) => cpu.ledger().reset_peak(),
        }
    }
}

impl OutOfMemory {
    fn into_error(self, device: &'static str) -> Error {
        let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
        let expected = format!("{} MiB more for {}", mebibytes(self.bytes), self.kind.name());
        let got = format!("no memory, with {} MiB held", mebibytes(self.held));
        Error::device(Place::item(device), expected, got).hint("take a smaller batch, or shorter examples or prompt")
    }
}
