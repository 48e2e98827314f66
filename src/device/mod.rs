//! Where tensors live and ops run.
//!
//! Every buffer of the crate is allocated here, under a [`Kind`], so that [`Device::memory`] can say at any moment how
//! many bytes are held for what, and what the peak was.

mod buffer;
mod bytes;
mod cpu;
#[allow(unsafe_code, reason = "the driver's interface")]
mod cuda;
pub(crate) mod kernels;
mod memory;
mod on_device;
mod pool;
mod resident;

pub use buffer::Buffer;
pub use bytes::{parse_bytes, shown_bytes};
pub use cpu::CpuDevice;
pub(crate) use cuda::count::{COPY, DOWNLOAD, FILL, PRODUCT, UPLOAD};
pub(crate) use cuda::{Arg, Grid, Kernel, Layout, Operand, Operation, Pointers};
pub use cuda::{CudaDevice, CudaOptions, CudaProperties, Matmul};
pub use memory::{Kind, MemoryReport};
pub(crate) use on_device::OnDevice;
pub use resident::{available_memory, peak_rss, reset_peak_rss};

use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use memory::{Ledger, OutOfMemory};

/// A device: the memory it owns and what works on it. Clones share both.
#[derive(Debug, Clone)]
pub enum Device {
    /// The processor, with a thread pool of its own.
    Cpu(CpuDevice),
    /// A GPU.
    Cuda(CudaDevice),
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

    /// A GPU.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no driver, no such GPU, or it is too old.
    pub fn cuda(options: CudaOptions) -> Result<Self> {
        Ok(Self::Cuda(CudaDevice::new(options)?))
    }

    /// The device called `name`: `cpu`, `cuda` (the first GPU), or `cuda:1` and so on.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that no device has; [`Error::Device`] for one that cannot be had.
    pub fn named(name: &str, threads: Option<usize>) -> Result<Self> {
        match (name, gpu_named(name)) {
            ("cpu", _) => Self::cpu(threads),
            (_, Some(ordinal)) => Self::cuda(CudaOptions { ordinal, ..CudaOptions::default() }),
            _ => Err(Error::config(Place::item("device"), "cpu, cuda or cuda:N", format!("{name:?}"))
                .hint("cuda:1 is the machine's second GPU")),
        }
    }

    /// Whether [`Device::named`] knows the name, whether or not the machine has the device.
    pub fn is_name(name: &str) -> bool {
        name == "cpu" || gpu_named(name).is_some()
    }

    /// The kind of device, as [`Device::named`] takes it: `cpu` or `cuda`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// Whether tensors of `dtype` can live here: f32 and f64 on a CPU, f32 and bf16 on a GPU.
    pub fn computes_in(&self, dtype: DType) -> bool {
        match self {
            Self::Cpu(_) => dtype != DType::BF16,
            Self::Cuda(_) => dtype != DType::F64,
        }
    }

    /// How many of this machine's threads work for this device.
    pub fn threads(&self) -> usize {
        match self {
            Self::Cpu(cpu) => cpu.threads(),
            Self::Cuda(_) => 1,
        }
    }

    /// Runs `work` on the device's own threads. Ops called outside use the process-wide pool, with the same results, but
    /// panic where memory runs out or a GPU fails.
    ///
    /// # Errors
    /// What `work` reports, and [`Error::Device`] if the device has too little memory for it, or fails.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match self {
            Self::Cpu(cpu) => cpu.run(work),
            Self::Cuda(_) => work(),
        }));
        outcome.unwrap_or_else(|payload| match payload.downcast::<OutOfMemory>() {
            Ok(short) => Err(short.into_error(self.name())),
            Err(other) => match other.downcast::<Error>() {
                Ok(error) => Err(*error),
                Err(other) => std::panic::resume_unwind(other),
            },
        })
    }

    /// [`Device::run`] for work that is likely to come again in the same shape, as a training step is: a GPU is then asked
    /// for all of it at once. `work` should not read from the device.
    ///
    /// # Errors
    /// As [`Device::run`].
    pub fn repeat<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        self.run(|| match self {
            Self::Cpu(_) => work(),
            Self::Cuda(cuda) => cuda.repeat(work),
        })
    }

    /// A buffer of `bytes` bytes for `kind`. What it holds at first is unspecified: on a CPU in debug builds NaNs.
    pub fn allocate(&self, bytes: usize, kind: Kind) -> Buffer {
        match self {
            Self::Cpu(cpu) => Buffer::Cpu(cpu.allocate(bytes, kind)),
            Self::Cuda(cuda) => Buffer::Cuda(cuda.allocate(bytes, kind)),
        }
    }

    fn ledger(&self) -> &Ledger {
        match self {
            Self::Cpu(cpu) => cpu.ledger(),
            Self::Cuda(cuda) => cuda.ledger(),
        }
    }

    /// Counts `bytes` that are not allocated here but used by the device, as a mapped weight file is.
    pub fn count_external(&self, bytes: usize, kind: Kind) {
        self.ledger().add(bytes, kind);
    }

    /// Takes back what [`Device::count_external`] counted.
    pub fn uncount_external(&self, bytes: usize, kind: Kind) {
        self.ledger().remove(bytes, kind);
    }

    /// Bytes held now and at the peak, by kind.
    pub fn memory(&self) -> MemoryReport {
        self.ledger().report()
    }

    /// Starts a new peak from what is held now.
    pub fn reset_peak(&self) {
        self.ledger().reset_peak();
    }

    /// Waits until everything asked for so far is done.
    ///
    /// # Errors
    /// [`Error::Device`] for what went wrong in any of it.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.synchronize(),
        }
    }
}

/// The number of the GPU called `cuda` or `cuda:N`.
fn gpu_named(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("cuda")?;
    if rest.is_empty() { Some(0) } else { rest.strip_prefix(':')?.parse().ok() }
}

/// Unwinds to [`Device::run`], which returns the error: for the few places, copies of tensors and buffers that come and
/// go, where threading a result through would cost more clarity than the rare failure of a GPU is worth.
pub(crate) fn unwind(error: Error) -> ! {
    std::panic::resume_unwind(Box::new(error))
}
