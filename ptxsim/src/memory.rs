//! Device memory: allocations with red zones, marks for written bytes, and what was freed.

use crate::checks::Page;
use crate::module::Module;
use crate::report::Kind;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// Every allocation starts at a multiple of this and has this many bytes of red zone on either side.
pub const ALIGNMENT: usize = 256;
/// What fresh memory holds: NaN as a float, -1 as an integer.
const FRESH: u8 = 0xff;
/// Bytes that one page of race-check cells describes.
pub(crate) const PAGE: usize = 4096;
/// Freed memory is kept this long, so that an address does not soon mean something else.
const QUARANTINE_BYTES: usize = 64 << 20;
const QUARANTINE_COUNT: usize = 1024;

/// Why an access from the host side failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {bytes} bytes at {address:#x}: {why}")]
pub struct MemoryError {
    /// "read", "write", "free", ...
    pub what: &'static str,
    /// Its first address.
    pub address: u64,
    /// Its size.
    pub bytes: usize,
    /// What is wrong, with the nearest allocation.
    pub why: String,
}

/// How [`Memory::access`] uses the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// All bytes must have been written.
    Read,
    /// All bytes count as written from now on.
    Write,
    /// Both.
    ReadWrite,
}

/// One allocation. Its bytes are accessed through atomics and raw copies only, never through references.
pub(crate) struct Allocation {
    pub(crate) address: u64,
    pub(crate) bytes: usize,
    base: *mut u8,
    layout: Layout,
    /// one bit a byte
    written: Box<[AtomicU8]>,
    pub(crate) pages: Box<[Mutex<Page>]>,
}

// SAFETY: `base` is owned by this value alone, and what it points to is accessed with atomics, or by host-side calls
// whose caller orders them with launches, as on a GPU.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    pub(crate) fn new(bytes: usize) -> Option<Allocation> {
        let layout = Layout::from_size_align(bytes.checked_add(2 * ALIGNMENT)?, ALIGNMENT).ok()?;
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return None;
        }
        // SAFETY: `base` points to layout.size() bytes.
        unsafe { base.write_bytes(FRESH, layout.size()) };
        Some(Allocation {
            address: base as u64 + ALIGNMENT as u64,
            bytes,
            base,
            layout,
            written: (0..bytes.div_ceil(8)).map(|_| AtomicU8::new(0)).collect(),
            pages: (0..bytes.div_ceil(PAGE)).map(|_| Mutex::default()).collect(),
        })
    }

    pub(crate) fn contains(&self, address: u64, bytes: usize) -> bool {
        address >= self.address
            && address - self.address <= self.bytes as u64
            && bytes as u64 <= self.bytes as u64 - (address - self.address)
    }

    /// Are `bytes` (a power of two, at most 16) at `offset`, a multiple of it, all written?
    #[inline(always)]
    pub(crate) fn is_written(&self, offset: usize, bytes: usize) -> bool {
        let mark = |i: usize| self.written[i].load(Ordering::Relaxed);
        match bytes {
            16 => mark(offset / 8) & mark(offset / 8 + 1) == 0xff,
            8 => mark(offset / 8) == 0xff,
            n => {
                let mask = ((1u32 << n) - 1) as u8;
                mark(offset / 8) >> (offset % 8) & mask == mask
            }
        }
    }

    /// Marks `bytes` (a power of two, at most 16) at `offset`, a multiple of it.
    #[inline(always)]
    pub(crate) fn mark_written(&self, offset: usize, bytes: usize) {
        let (first, last, mask) = match bytes {
            16 => (offset / 8, offset / 8 + 1, 0xff),
            8 => (offset / 8, offset / 8, 0xff),
            n => (offset / 8, offset / 8, (((1u32 << n) - 1) as u8) << (offset % 8)),
        };
        for cell in &self.written[first..=last] {
            if cell.load(Ordering::Relaxed) & mask != mask {
                cell.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// Marks any range.
    pub(crate) fn mark_range(&self, offset: usize, bytes: usize) {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            if at.is_multiple_of(8) && end - at >= 8 {
                self.written[at / 8].store(0xff, Ordering::Relaxed);
                at += 8;
            } else {
                self.mark_written(at, 1);
                at += 1;
            }
        }
    }

    /// The first byte of a range that nothing wrote.
    pub(crate) fn first_unwritten(&self, offset: usize, bytes: usize) -> Option<usize> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            if at.is_multiple_of(8) && end - at >= 8 && self.is_written(at, 8) {
                at += 8;
            } else if self.is_written(at, 1) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base, self.layout) }
    }
}

#[derive(Default)]
struct Inner {
    used: usize,
    live: BTreeMap<u64, Arc<Allocation>>,
    /// variables of modules
    attached: BTreeMap<u64, Arc<Allocation>>,
    /// address and size of what was freed, the newest last
    freed: VecDeque<(u64, usize)>,
    quarantine: VecDeque<Arc<Allocation>>,
    quarantined: usize,
}

/// Device memory. An address is a host address, so no other memory is mistaken for it.
pub struct Memory {
    capacity: usize,
    /// a kernel ran without checks, so what was written is not known any more
    unmarked: AtomicBool,
    inner: RwLock<Inner>,
}

impl Memory {
    /// Memory that allocates up to `capacity` bytes.
    pub fn new(capacity: usize) -> Memory {
        Memory { capacity, unmarked: AtomicBool::new(false), inner: RwLock::default() }
    }

    fn read_inner(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write_inner(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Allocates; `None` if the capacity does not allow it. The bytes count as not written.
    pub fn allocate(&self, bytes: usize) -> Option<u64> {
        let mut inner = self.write_inner();
        if bytes > self.capacity.checked_sub(inner.used)? {
            return None;
        }
        let allocation = Arc::new(Allocation::new(bytes)?);
        inner.used += bytes;
        let address = allocation.address;
        inner.live.insert(address, allocation);
        Some(address)
    }

    /// Frees an allocation. Its address is not used again soon, so that later accesses are recognised.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut inner = self.write_inner();
        let Some(allocation) = inner.live.remove(&address) else {
            let why = inner.describe(address).1;
            return Err(MemoryError { what: "free", address, bytes: 0, why });
        };
        inner.used -= allocation.bytes;
        inner.freed.push_back((address, allocation.bytes));
        if inner.freed.len() > 16 * QUARANTINE_COUNT {
            inner.freed.pop_front();
        }
        inner.quarantined += allocation.bytes;
        inner.quarantine.push_back(allocation);
        while inner.quarantined > QUARANTINE_BYTES || inner.quarantine.len() > QUARANTINE_COUNT {
            let Some(old) = inner.quarantine.pop_front() else { break };
            inner.quarantined -= old.bytes;
        }
        Ok(())
    }

    /// Lets the calls below reach a module's variables too. They do not count as used.
    pub fn attach(&self, module: &Module) {
        let variables = module.variables().iter().map(|variable| (variable.address, variable.clone()));
        self.write_inner().attached.extend(variables);
    }

    /// Undoes [`Memory::attach`].
    pub fn detach(&self, module: &Module) {
        let mut inner = self.write_inner();
        for variable in module.variables() {
            inner.attached.remove(&variable.address);
        }
    }

    /// Bytes allocated now.
    pub fn used(&self) -> usize {
        self.read_inner().used
    }

    /// Bytes that may be allocated in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Address and size of each allocation, by address.
    pub fn live(&self) -> Vec<(u64, usize)> {
        self.read_inner().live.values().map(|a| (a.address, a.bytes)).collect()
    }

    /// The allocation that holds an address: its start and size.
    pub fn find(&self, address: u64) -> Option<(u64, usize)> {
        self.read_inner().find(address, 0).map(|a| (a.address, a.bytes))
    }

    /// Copies from the host; the bytes count as written.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let to = self.access(address, from.len(), Access::Write)?;
        // SAFETY: `access` checked that `from.len()` bytes lie in an allocation.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies to the host. Reading bytes that nothing wrote is an error, unless a kernel ran without checks.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.access(address, to.len(), Access::Read)?;
        // SAFETY: `access` checked that `to.len()` bytes lie in an allocation.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, to.len()) };
        Ok(())
    }

    /// Sets `bytes` bytes; they count as written.
    pub fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<(), MemoryError> {
        let to = self.access(address, bytes, Access::Write)?;
        // SAFETY: `access` checked that `bytes` bytes lie in an allocation.
        unsafe { to.write_bytes(value, bytes) };
        Ok(())
    }

    /// Copies within device memory. Bytes that nothing wrote stay so; that is no error until something uses them.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), MemoryError> {
        let inner = self.read_inner();
        let find = |what, address| {
            inner.find(address, bytes).ok_or_else(|| MemoryError {
                what,
                address,
                bytes,
                why: inner.describe(address).1,
            })
        };
        let (source, target) = (find("copy from device memory", from)?, find("copy to device memory", to)?);
        // SAFETY: both ranges were found inside allocations; `copy` allows overlap.
        unsafe { (to as *mut u8).copy_from(from as *const u8, bytes) };
        let (source_offset, offset) = ((from - source.address) as usize, (to - target.address) as usize);
        for i in 0..bytes {
            if source.is_written(source_offset + i, 1) {
                target.mark_written(offset + i, 1);
            }
        }
        Ok(())
    }

    /// Checks that `bytes` bytes lie in one allocation, checks or sets the marks of written bytes, and gives the host
    /// pointer to them: for code that computes on device memory outside of a kernel.
    pub fn access(&self, address: u64, bytes: usize, access: Access) -> Result<*mut u8, MemoryError> {
        let inner = self.read_inner();
        let what = if access == Access::Read { "read" } else { "write" };
        let Some(allocation) = inner.find(address, bytes) else {
            let why = inner.describe(address).1;
            return Err(MemoryError { what, address, bytes, why });
        };
        let offset = (address - allocation.address) as usize;
        if access != Access::Write
            && self.is_marked()
            && let Some(first) = allocation.first_unwritten(offset, bytes)
        {
            let why = format!(
                "nothing wrote byte {first} of the allocation of {} bytes at {:#x}",
                allocation.bytes, allocation.address
            );
            return Err(MemoryError { what: "read", address, bytes, why });
        }
        if access != Access::Read {
            allocation.mark_range(offset, bytes);
        }
        Ok(address as *mut u8)
    }

    /// From now on, host-side reads of unwritten bytes are no error: a kernel runs without marking what it writes.
    pub(crate) fn stop_marking(&self) {
        self.unmarked.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_marked(&self) -> bool {
        !self.unmarked.load(Ordering::Relaxed)
    }

    /// The allocations as they are now, by address.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Allocation>> {
        self.read_inner().live.values().cloned().collect()
    }

    /// Says what is at an address that is no valid one.
    pub(crate) fn describe(&self, address: u64) -> (Kind, String) {
        self.read_inner().describe(address)
    }
}

impl Inner {
    fn find(&self, address: u64, bytes: usize) -> Option<&Arc<Allocation>> {
        [&self.live, &self.attached].into_iter().find_map(|allocations| {
            let (_, allocation) = allocations.range(..=address).next_back()?;
            allocation.contains(address, bytes).then_some(allocation)
        })
    }

    fn describe(&self, address: u64) -> (Kind, String) {
        if address < 4096 {
            return (Kind::NullPointer, "a null pointer".into());
        }
        let below = self.live.range(..=address).next_back().map(|(_, a)| a);
        if let Some(a) = below
            && address - a.address < a.bytes as u64
        {
            let at = address - a.address;
            return (
                Kind::OutOfBounds,
                format!("from byte {at} of the allocation of {} bytes at {:#x}", a.bytes, a.address),
            );
        }
        if let Some((start, bytes)) =
            self.freed.iter().rev().find(|(start, bytes)| address >= *start && address - start < *bytes as u64)
        {
            let at = address - start;
            return (Kind::FreedMemory, format!("byte {at} of a freed allocation of {bytes} bytes at {start:#x}"));
        }
        let above = self.live.range(address..).next().map(|(_, a)| a);
        let after = below.map(|a| (address - a.address - a.bytes as u64, a, "after the end"));
        let before = above.map(|a| (a.address - address, a, "before the start"));
        let text = match [after, before].into_iter().flatten().min_by_key(|(distance, ..)| *distance) {
            Some((distance, a, side)) => {
                format!("{distance} bytes {side} of the allocation of {} bytes at {:#x}", a.bytes, a.address)
            }
            None => "there is no allocation".into(),
        };
        (Kind::OutOfBounds, text)
    }
}
