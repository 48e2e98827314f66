//! A CUDA GPU: its context, one stream in which everything happens in order, pooled memory with an account, and the
//! kernels of `kernels/*.cu`.
//!
//! Nothing waits for the GPU but what reads its memory. Memory that is dropped may be used again at once: what comes
//! later in the stream comes later in time.

mod blas;
mod buffer;
pub(crate) mod count;
mod driver;
mod launch;
mod repeat;
mod stream;

pub(crate) use blas::{Layout, Operation, Pointers};
pub(super) use buffer::CudaBuffer;
pub(crate) use launch::{Arg, Grid, Kernel, Operand};

use super::memory::{Kind, Ledger, OutOfMemory};
use super::pool::Pool;
use crate::error::{Error, Place, Result};
use blas::Blas;
use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUmodule, CUstream};
use repeat::Scope;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes that every allocation is a multiple of, and its alignment.
const GRANULE: usize = 256;

/// Bytes that the pool may keep beyond its share: small buffers take more than they ask for.
const POOL_SLACK: usize = 8 << 20;

/// What to open a GPU with.
#[derive(Debug, Clone, Copy)]
pub struct CudaOptions {
    /// Which of the machine's GPUs, counted from 0.
    pub ordinal: usize,
    /// Whether memory that is given back is kept for later. Without it every buffer comes from the driver, which is slow
    /// but shows the stand-in driver of the tests each read of memory that nothing wrote.
    pub pooled: bool,
    /// Whether steps that repeat are launched as CUDA graphs; only with a pool, which repeats their addresses.
    pub graphs: bool,
    /// What multiplies matrices.
    pub matmul: Matmul,
}

/// What multiplies matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Matmul {
    /// What `SOFTPROMPT_MATMUL` says (`own` or `cublaslt`), or else cuBLASLt where the machine has it.
    #[default]
    Auto,
    /// The kernels of `kernels/matmul.cu`.
    Own,
    /// cuBLASLt.
    CublasLt,
}

impl Default for CudaOptions {
    fn default() -> Self {
        let pooled = !cfg!(debug_assertions);
        Self { ordinal: 0, pooled, graphs: pooled, matmul: Matmul::Auto }
    }
}

/// What a GPU says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaProperties {
    /// Its name.
    pub name: String,
    /// Its compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// Its streaming multiprocessors.
    pub multiprocessors: i32,
    /// Shared memory that a block may ask for, in bytes.
    pub shared_per_block: u32,
    /// Its memory, in bytes.
    pub memory: usize,
    /// The CUDA version that the driver supports, as in 12080 for 12.8.
    pub driver_version: i32,
}

/// A GPU. Clones share it.
#[derive(Clone)]
pub struct CudaDevice(Arc<Inner>);

struct Inner {
    device: CUdevice,
    context: CUcontext,
    stream: CUstream,
    properties: CudaProperties,
    options: CudaOptions,
    ledger: Ledger,
    synchronizations: AtomicUsize,
    graph_launches: AtomicUsize,
    launched: count::Counts,
    /// What is put into the stream, watched for repetition.
    scope: Mutex<Scope>,
    /// Memory given back, by length in bytes.
    pool: Mutex<Pool<u64>>,
    /// What is waiting to be handed to the driver.
    modules: Mutex<Vec<CUmodule>>,
    functions: Vec<(&'static str, &'static str, OnceLock<Vec<launch::Function>>)>,
    /// cuBLASLt, looked for when it is first needed; nothing where matrices are multiplied by kernels.
    blas: OnceLock<Option<Blas>>,
}

// SAFETY: the handles are addresses that only the driver looks behind, and its functions may be called from any thread
// that has the context current, which `bind` sees to.
unsafe impl Send for Inner {}
// SAFETY: as above; what changes is behind locks.
unsafe impl Sync for Inner {}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaDevice").field("properties", &self.0.properties).finish_non_exhaustive()
    }
}

impl CudaDevice {
    pub(super) fn new(options: CudaOptions) -> Result<Self> {
        let options = CudaOptions { graphs: options.graphs && options.pooled, ..options };
        driver::probe()?;
        let failed = |action: &'static str| move |refused| driver::error(action, refused);
        result::init().map_err(failed("start"))?;
        let count = result::device::get_count().map_err(failed("count its GPUs"))?;
        let ordinal = i32::try_from(options.ordinal).ok().filter(|&ordinal| ordinal < count).ok_or_else(|| {
            Error::device(
                Place::item("cuda"),
                format!("a GPU of number {}", options.ordinal),
                format!("{count} of them"),
            )
            .hint("see what nvidia-smi lists, or compute with --device cpu")
        })?;
        let device = result::device::get(ordinal).map_err(failed("open the GPU"))?;
        let properties = properties(device)?;
        if properties.compute_capability < (8, 0) {
            let (major, minor) = properties.compute_capability;
            return Err(Error::device(
                Place::item("cuda"),
                "a GPU of compute capability 8.0 or later",
                format!("{} with {major}.{minor}", properties.name),
            )
            .hint("take another GPU, or compute with --device cpu"));
        }
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("make a context"))?;
        // SAFETY: the context was retained just now.
        unsafe { result::ctx::set_current(context) }.map_err(failed("use its context"))?;
        let stream = result::stream::create(StreamKind::NonBlocking).map_err(failed("make a stream"));
        let stream = match stream {
            Ok(stream) => stream,
            Err(refused) => {
                // SAFETY: retained above, and nothing else uses it.
                let _ = unsafe { result::primary_ctx::release(device) };
                return Err(refused);
            }
        };
        let functions = super::kernels::MODULES.iter().map(|&(op, ptx)| (op, ptx, OnceLock::new())).collect();
        Ok(Self(Arc::new(Inner {
            device,
            context,
            stream,
            properties,
            options,
            ledger: Ledger::default(),
            synchronizations: AtomicUsize::new(0),
            graph_launches: AtomicUsize::new(0),
            launched: count::Counts::default(),
            scope: Mutex::default(),
            pool: Mutex::default(),
            modules: Mutex::default(),
            functions,
            blas: OnceLock::new(),
        })))
    }

    /// What the GPU says of itself.
    pub fn properties(&self) -> &CudaProperties {
        &self.0.properties
    }

    /// How often the host has waited for the GPU.
    pub fn synchronizations(&self) -> usize {
        self.0.synchronizations.load(Ordering::Relaxed)
    }

    /// Whether both are the same device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Waits until everything asked for so far is done.
    ///
    /// # Errors
    /// [`Error::Device`] for what went wrong in any of it.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronizations.fetch_add(1, Ordering::Relaxed);
        self.flush()?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as the device.
        unsafe { result::stream::synchronize(self.0.stream) }.map_err(|refused| driver::error("finish", refused))
    }

    /// cuBLASLt, if it is what multiplies matrices.
    ///
    /// # Errors
    /// [`Error::Config`] for a `SOFTPROMPT_MATMUL` that names nothing; [`Error::Device`] where the library is asked for
    /// and missing, or there and broken.
    pub(crate) fn blas(&self) -> Result<Option<&Blas>> {
        if self.0.blas.get().is_none() {
            self.bind()?;
            // Two threads may look at once; one of the handles is kept.
            let _ = self.0.blas.set(match self.0.options.matmul.resolve()? {
                Matmul::Own => None,
                Matmul::Auto => Blas::load()?,
                Matmul::CublasLt => Some(Blas::load()?.ok_or_else(blas::missing)?),
            });
        }
        Ok(self.0.blas.get().and_then(Option::as_ref))
    }

    /// What multiplies matrices, for people.
    ///
    /// # Errors
    /// As where matrices are first multiplied: a library that is asked for and missing, or broken.
    pub fn matmul_name(&self) -> Result<String> {
        Ok(match self.blas()? {
            Some(blas) => format!("cuBLASLt {}", blas.version()),
            None => "own kernels".into(),
        })
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    pub(crate) fn stream(&self) -> CUstream {
        self.0.stream
    }

    fn shared_limit(&self) -> u32 {
        self.0.properties.shared_per_block
    }

    fn options(&self) -> CudaOptions {
        self.0.options
    }

    fn scope(&self) -> MutexGuard<'_, Scope> {
        self.0.scope.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> MutexGuard<'_, Pool<u64>> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the context current on this thread.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained as long as the device lives.
        unsafe { result::ctx::set_current(self.0.context) }.map_err(|refused| driver::error("use its context", refused))
    }

    fn keep_module(&self, module: CUmodule) {
        self.0.modules.lock().unwrap_or_else(PoisonError::into_inner).push(module);
    }

    /// The kernels of `op`, loaded when they are first asked for.
    fn functions(&self, op: &'static str) -> Result<&[launch::Function]> {
        let found = self.0.functions.iter().find(|(name, ..)| *name == op);
        let (_, ptx, functions) =
            found.ok_or_else(|| Error::op("launch", format!("kernels for {op}"), "none in this build"))?;
        if functions.get().is_none() {
            // Two threads may load a module at once; one of them is kept, and the other's goes with the device.
            let _ = functions.set(self.load_module(op, ptx)?);
        }
        Ok(functions.get().map_or(&[], Vec::as_slice))
    }

    /// Unwinds to [`super::Device::run`] where memory runs out or the driver fails.
    pub(super) fn allocate(&self, bytes: usize, kind: Kind) -> CudaBuffer {
        let length = bytes.next_multiple_of(GRANULE);
        self.0.ledger.add(bytes, kind);
        let pooled = self.pool().take(length);
        let (length, address) = match pooled {
            Some(block) => block,
            None if bytes == 0 => (0, 0),
            None => (length, self.allocate_fresh(length, bytes, kind)),
        };
        CudaBuffer { address, length, bytes, kind: AtomicU8::new(kind as u8), device: self.clone() }
    }

    fn allocate_fresh(&self, length: usize, bytes: usize, kind: Kind) -> u64 {
        let try_once = || {
            // SAFETY: the stream lives as long as the device, and all uses of the memory are in it.
            unsafe { result::malloc_async(self.0.stream, length) }
        };
        let outcome = self.bind().and_then(|()| match try_once() {
            Err(refused) if driver::is_out_of_memory(&refused) => {
                // What the pool keeps may be what is missing.
                self.flush()?;
                let kept = self.pool().drain();
                kept.into_iter().try_for_each(|address| self.free_now(address))?;
                self.wait()?;
                match try_once() {
                    Err(refused) if driver::is_out_of_memory(&refused) => Ok(None),
                    other => other.map(Some).map_err(|refused| driver::error("allocate", refused)),
                }
            }
            other => other.map(Some).map_err(|refused| driver::error("allocate", refused)),
        });
        match outcome {
            Ok(Some(address)) => address,
            Ok(None) => OutOfMemory::unwind(&self.0.ledger, bytes, kind),
            Err(failed) => {
                self.0.ledger.remove(bytes, kind);
                super::unwind(failed)
            }
        }
    }

    fn free(&self, address: u64) -> Result<()> {
        if self.scope().keep_free(address) { Ok(()) } else { self.free_now(address) }
    }

    fn free_now(&self, address: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: the address came from this stream's allocator, and no buffer holds it.
        unsafe { result::free_async(address, self.0.stream) }.map_err(|refused| driver::error("free memory", refused))
    }

    fn give_back(&self, length: usize, address: u64) {
        if length == 0 {
            return;
        }
        // Held and pooled together never exceed twice the peak. Blocks of sizes that do not fit one another all stay, so
        // that a step that repeats finds the same ones; where memory runs out the pool is emptied.
        let report = self.0.ledger.report();
        let room = 2 * report.peak_total() + POOL_SLACK - report.current_total();
        for address in self.pool().put(length, address, if self.0.options.pooled { room } else { 0 }) {
            // A drop cannot report; a driver that fails here fails at the next call that can.
            let _ = self.free(address);
        }
    }
}

impl Matmul {
    /// Settles `Auto` by the environment, if that says something.
    fn resolve(self) -> Result<Self> {
        const VARIABLE: &str = "SOFTPROMPT_MATMUL";
        match (self, std::env::var(VARIABLE).ok().as_deref()) {
            (Self::Auto, Some("own")) => Ok(Self::Own),
            (Self::Auto, Some("cublaslt")) => Ok(Self::CublasLt),
            (Self::Auto, Some(other)) => {
                Err(Error::config(Place::item(VARIABLE), "own or cublaslt", format!("{other:?}"))
                    .hint("unset it to use cuBLASLt where the machine has it"))
            }
            _ => Ok(self),
        }
    }
}

fn properties(device: CUdevice) -> Result<CudaProperties> {
    let failed = |refused| driver::error("describe the GPU", refused);
    // SAFETY: the device is one that the driver gave.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(failed);
    let mut driver_version = 0;
    // SAFETY: writes one integer.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut driver_version) }.result().map_err(failed)?;
    let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    Ok(CudaProperties {
        name: result::device::get_name(device).map_err(failed)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: u32::try_from(shared).unwrap_or(0),
        // SAFETY: the device is one that the driver gave.
        memory: unsafe { result::device::total_mem(device) }.map_err(failed)?,
        driver_version,
    })
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A drop cannot report. The context must be current to give back what belongs to it.
        // SAFETY: context, stream, modules and pooled memory are this device's own, and nothing else holds them: a
        // buffer holds the device.
        unsafe {
            if result::ctx::set_current(self.context).is_ok() {
                self.blas.take();
                for address in self.pool.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
                    let _ = result::free_async(address, self.stream);
                }
                let _ = result::stream::synchronize(self.stream);
                self.scope.get_mut().unwrap_or_else(PoisonError::into_inner).destroy();
                for module in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
                    let _ = result::module::unload(module);
                }
                let _ = result::stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
