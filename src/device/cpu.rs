//! The CPU's memory: aligned buffers from a pool.
//!
//! Large blocks are maps of their own: what a step gives back to the system is then gone from the process at once. The
//! library's allocator was seen to hold twice the account's peak, as each of its arenas keeps what its threads freed.

use super::memory::{Kind, Ledger, OutOfMemory};
use super::pool::Pool;
use crate::error::{Error, Place, Result};
use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One cache line: the unit and the alignment of every buffer.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes from which on a block is a map of its own.
const MAPPED: usize = 1 << 20;

/// Memory from the system, zeroed when it is fresh.
enum Block {
    Allocated(Vec<Line>),
    Mapped(MmapMut),
}

impl Block {
    /// Fresh memory of so many lines, or nothing if the system has none to give.
    fn fresh(lines: usize) -> Option<Self> {
        let bytes = lines.checked_mul(size_of::<Line>())?;
        if bytes < MAPPED {
            return bytemuck::allocation::try_zeroed_vec(lines).ok().map(Self::Allocated);
        }
        let map = MmapMut::map_anon(bytes).ok()?;
        // A wish: where it is not granted, pages are small.
        #[cfg(target_os = "linux")]
        drop(map.advise(memmap2::Advice::HugePage));
        Some(Self::Mapped(map))
    }

    fn lines(&self) -> usize {
        self.bytes().len() / size_of::<Line>()
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Allocated(lines) => bytemuck::cast_slice(lines),
            Self::Mapped(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Allocated(lines) => bytemuck::cast_slice_mut(lines),
            Self::Mapped(map) => map,
        }
    }
}

/// The processor: a thread pool, a memory pool and its account.
#[derive(Clone)]
pub struct CpuDevice(Arc<Inner>);

struct Inner {
    threads: rayon::ThreadPool,
    ledger: Ledger,
    /// Buffers given back, by length in lines.
    pool: Mutex<Pool<Block>>,
}

impl std::fmt::Debug for CpuDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuDevice").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl CpuDevice {
    pub(super) fn new(threads: Option<usize>) -> Result<Self> {
        let mut builder = rayon::ThreadPoolBuilder::new().thread_name(|i| format!("softprompt-{i}"));
        if let Some(threads) = threads {
            builder = builder.num_threads(threads);
        }
        let threads = builder.build().map_err(|error| {
            Error::device(Place::item("cpu"), "worker threads to start", error.to_string())
                .hint("ask for fewer with --threads")
        })?;
        Ok(Self(Arc::new(Inner { threads, ledger: Ledger::default(), pool: Mutex::default() })))
    }

    pub(super) fn threads(&self) -> usize {
        self.0.threads.current_num_threads()
    }

    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.threads.install(work)
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn pool(&self) -> MutexGuard<'_, Pool<Block>> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn allocate(&self, bytes: usize, kind: Kind) -> CpuBuffer {
        let lines = bytes.div_ceil(size_of::<Line>());
        self.0.ledger.add(bytes, kind);
        let pooled = self.pool().take(lines).map(|(_, block)| block);
        let mut block =
            pooled.or_else(|| Block::fresh(lines)).unwrap_or_else(|| OutOfMemory::unwind(&self.0.ledger, bytes, kind));
        if cfg!(debug_assertions) {
            // All ones is a NaN in f32 and f64: what is read before it is written shows in the result.
            block.bytes_mut().fill(0xFF);
        }
        CpuBuffer { block, bytes, kind: AtomicU8::new(kind as u8), device: self.clone() }
    }

    fn give_back(&self, block: Block) {
        let room = self.0.ledger.room_in_pool() / size_of::<Line>();
        let evicted = self.pool().put(block.lines(), block, room);
        drop(evicted);
    }
}

/// Bytes of device memory, aligned to 64, returned to the device's pool when dropped.
pub struct CpuBuffer {
    block: Block,
    bytes: usize,
    kind: AtomicU8,
    device: CpuDevice,
}

impl CpuBuffer {
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

    /// The contents as elements of `T`; the length must be whole in them.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.block.bytes()[..self.bytes])
    }

    /// The contents as elements of `T`, to be written.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.block.bytes_mut()[..self.bytes])
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        self.device.0.ledger.remove(self.bytes, self.kind());
        let block = std::mem::replace(&mut self.block, Block::Allocated(Vec::new()));
        self.device.give_back(block);
    }
}

impl std::fmt::Debug for CpuBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuBuffer").field("bytes", &self.bytes).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Device;
    use super::*;

    #[test]
    fn bytes_are_counted_by_kind_and_given_back() {
        let device = Device::cpu(Some(1)).unwrap();
        let a = device.allocate(100, Kind::Weights);
        let b = device.allocate(1000, Kind::Workspace);
        b.retag(Kind::SavedActivations);
        let report = device.memory();
        assert_eq!(report.current(Kind::Weights), 100);
        assert_eq!(report.current(Kind::Workspace), 0);
        assert_eq!(report.current(Kind::SavedActivations), 1000);
        drop((a, b));
        assert_eq!(device.memory().current_total(), 0);
        assert_eq!(device.memory().peak_total(), 1100);
    }

    #[test]
    fn a_freed_buffer_is_used_again_and_the_pool_is_bounded() {
        let device = CpuDevice::new(Some(1)).unwrap();
        let first = device.allocate(64 * 100, Kind::Workspace);
        let address = first.as_slice::<u8>().as_ptr();
        drop(first);
        let again = device.allocate(64 * 90, Kind::Workspace);
        assert_eq!(again.as_slice::<u8>().as_ptr(), address);
        let other = device.allocate(64 * 10, Kind::Workspace);
        drop((again, other));
        assert!(device.pool().length() * 64 <= device.ledger().report().peak_total() + 64);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let device = Device::cpu(Some(1)).unwrap();
        let error = device.run(|| Ok(device.allocate(1 << 60, Kind::SavedActivations))).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("saved_activations"), "{error}");
        assert_eq!(device.memory().current_total(), 0);
        assert!(device.run(|| Ok(device.allocate(64, Kind::Workspace))).is_ok());
    }

    #[test]
    fn an_empty_buffer_is_a_buffer() {
        let device = Device::cpu(Some(1)).unwrap();
        let mut empty = device.allocate(0, Kind::Workspace);
        assert!(empty.as_slice::<f64>().is_empty());
        assert!(empty.as_mut_slice::<f32>().is_empty());
    }
}
