//! Memory: `cuMem*`, `cuMemcpy*`, `cuMemset*`, pools and pinned host memory.
//!
//! Copies and fills are work on a stream; the calls without a stream use the legacy stream. All are done when the call
//! returns, or kept in a graph while the stream is capturing.

use crate::abi::{Handle, Host, Out, entry_points};
use crate::device;
use crate::driver::{Driver, State, in_context, initialised};
use crate::error::{Error, Result};
use crate::stream::{LEGACY_STREAM, submit};
use crate::work::Work;
use ptxsim::MemoryError;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};

/// The default pool's handle.
const DEFAULT_POOL: Handle = 0xc0da_0000_2000;

/// The device memory that is allocated, and by what.
#[derive(Default)]
pub(crate) struct Allocations {
    live: BTreeMap<u64, Allocation>,
    count: u64,
    used: u64,
    peak: u64,
}

struct Allocation {
    bytes: usize,
    /// 1 for the first allocation of the context, and so on: what a leak is looked up by.
    number: u64,
    by: &'static str,
}

impl Allocations {
    fn insert(&mut self, address: u64, bytes: usize, by: &'static str) {
        self.count += 1;
        self.used += bytes as u64;
        self.peak = self.peak.max(self.used);
        self.live.insert(address, Allocation { bytes, number: self.count, by });
    }

    fn remove(&mut self, address: u64) -> Option<usize> {
        let bytes = self.live.remove(&address)?.bytes;
        self.used -= bytes as u64;
        Some(bytes)
    }

    /// The allocation that an address lies in.
    fn around(&self, address: u64) -> Option<(u64, usize)> {
        let (start, allocation) = self.live.range(..=address).next_back()?;
        (address < start + allocation.bytes as u64).then_some((*start, allocation.bytes))
    }

    /// Where the allocations are.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.live.keys().copied()
    }

    /// A line for each allocation.
    pub(crate) fn describe(&self) -> impl Iterator<Item = String> + '_ {
        self.live.iter().map(|(address, Allocation { bytes, number, by })| {
            format!("{bytes} bytes of device memory at {address:#x}, allocation {number} of the context, by {by}")
        })
    }
}

/// Host memory from `cuMemHostAlloc`.
pub(crate) struct Pinned {
    address: usize,
    layout: Layout,
}

impl Pinned {
    fn new(bytes: usize) -> Result<Pinned> {
        let layout = Layout::from_size_align(bytes, 4096).map_err(|_| Error::OUT_OF_MEMORY)?;
        // SAFETY: callers refuse 0 bytes, so the layout has a size.
        let address = unsafe { std::alloc::alloc_zeroed(layout) } as usize;
        if address == 0 { Err(Error::OUT_OF_MEMORY) } else { Ok(Pinned { address, layout }) }
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} bytes of pinned host memory at {:#x}, by cuMemHostAlloc", self.layout.size(), self.address)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.address as *mut u8, self.layout) };
    }
}

/// A memory pool. All draw on the same memory: a pool is no more than its attributes.
#[derive(Clone, Copy)]
pub(crate) struct Pool {
    reuse: [c_int; 3],
    release_threshold: u64,
}

impl Default for Pool {
    fn default() -> Self {
        Pool { reuse: [1; 3], release_threshold: 0 }
    }
}

impl State {
    fn pool(&mut self, handle: Handle) -> Result<&mut Pool> {
        if handle == DEFAULT_POOL { Ok(&mut self.default_pool) } else { self.pools.get_mut(handle) }
    }

    /// Whether host memory is pinned, all of it. A copy kept in a graph needs that: the driver would take any address,
    /// and read it when the graph is launched, whatever lies there by then.
    pub(crate) fn is_pinned(&self, host: Host, bytes: usize) -> bool {
        let address = host.address();
        self.pinned.range(..=address).next_back().is_some_and(|(start, pinned)| {
            address.checked_add(bytes).is_some_and(|end| end <= start + pinned.layout.size())
        })
    }
}

fn allocate(driver: &Driver, state: &mut State, bytes: usize, by: &'static str) -> Result<u64> {
    let address = driver.memory.allocate(bytes).ok_or(Error::OUT_OF_MEMORY)?;
    state.allocations.insert(address, bytes, by);
    Ok(address)
}

/// An allocation ordered in a stream; of 0 bytes it is the null address. While the stream is capturing, the memory
/// belongs to the graph.
fn allocate_on_stream(bytes: usize, stream: Handle, by: &'static str) -> Result<u64> {
    let driver = in_context()?;
    let mut state = driver.state();
    let capture = state.active_capture(stream)?;
    match capture {
        _ if bytes == 0 => Ok(0),
        None => allocate(driver, &mut state, bytes, by),
        Some(capture) => {
            let address = driver.memory.allocate(bytes).ok_or(Error::OUT_OF_MEMORY)?;
            state.captured_allocation(capture, address);
            Ok(address)
        }
    }
}

fn free(driver: &Driver, state: &mut State, address: u64, by: &str) -> Result {
    if address == 0 {
        return Ok(());
    }
    if state.free_graph_memory(address)? {
        return Ok(());
    }
    let Some(_) = state.allocations.remove(address) else {
        eprintln!("ptxsim: {by}: {address:#x} is not the start of a live allocation; freed twice, or never allocated?");
        return Err(Error::INVALID_VALUE);
    };
    driver.memory.free(address).map_err(|error| driver.fail(Error::ILLEGAL_ADDRESS, format!("{by}: {error}")))
}

/// A copy's error. Addresses that are no memory are an invalid argument, as the driver has it; bytes that nothing wrote
/// are what the stand-in is there to find, and leave the device unusable, as a kernel's read of them does.
fn refuse(driver: &Driver, error: MemoryError) -> Error {
    if is_memory(driver, error.address, error.bytes) {
        return driver.fail(Error::ILLEGAL_ADDRESS, error);
    }
    eprintln!("ptxsim: {error}");
    Error::INVALID_VALUE
}

pub(crate) fn write(driver: &Driver, to: u64, bytes: &[u8]) -> Result {
    if bytes.is_empty() {
        return Ok(());
    }
    driver.memory.write(to, bytes).map_err(|error| refuse(driver, error))
}

/// Writes a pattern `count` times.
pub(crate) fn fill(driver: &Driver, address: u64, pattern: &[u8], count: usize) -> Result {
    match pattern {
        [byte] if count > 0 => driver.memory.fill(address, *byte, count).map_err(|error| refuse(driver, error)),
        _ => write(driver, address, &pattern.repeat(count)),
    }
}

/// Reading bytes that nothing wrote is an error, unless checks are off.
pub(crate) fn read(driver: &Driver, from: u64, to: &mut [u8]) -> Result {
    if to.is_empty() {
        return Ok(());
    }
    match driver.memory.read(from, to) {
        Err(_) if !driver.options.checks && is_memory(driver, from, to.len()) => {
            // SAFETY: the bytes lie in an allocation, and `to` is host memory, which no allocation is.
            unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from as *const u8, to.len()) };
            Ok(())
        }
        result => result.map_err(|error| refuse(driver, error)),
    }
}

/// Bytes that nothing wrote may be copied, and stay so.
pub(crate) fn copy(driver: &Driver, to: u64, from: u64, bytes: usize) -> Result {
    if bytes == 0 {
        return Ok(());
    }
    driver.memory.copy(to, from, bytes).map_err(|error| refuse(driver, error))
}

/// Whether all bytes lie in one allocation.
pub(crate) fn is_memory(driver: &Driver, address: u64, bytes: usize) -> bool {
    driver.memory.find(address).is_some_and(|(start, size)| address - start + bytes as u64 <= size as u64)
}

/// The work of a call without a stream, which cannot be captured.
fn submit_synchronous(work: Work) -> Result {
    in_context()?.state().refuse_during_capture()?;
    submit(LEGACY_STREAM, work)
}

/// A fill with an element of 1, 2 or 4 bytes, to which the address must be aligned.
fn fill_work(address: u64, pattern: &[u8], count: usize) -> Result<Work> {
    if !address.is_multiple_of(pattern.len() as u64) {
        return Err(Error::INVALID_VALUE);
    }
    Ok(Work::Fill { address, pattern: pattern.to_vec(), count })
}

entry_points! {
    /// Free and total bytes.
    fn cuMemGetInfo_v2(available: Out<usize>, total: Out<usize>) {
        let memory = &in_context()?.memory;
        available.set(memory.capacity() - memory.used())?;
        total.set(memory.capacity())
    }

    /// Allocates; 0 bytes are an invalid argument.
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        let driver = in_context()?;
        let mut state = driver.state();
        state.refuse_during_capture()?;
        if bytes == 0 {
            return Err(Error::INVALID_VALUE);
        }
        address.set(allocate(driver, &mut state, bytes, "cuMemAlloc")?)
    }

    /// Frees; null is no error.
    fn cuMemFree_v2(address: u64) {
        let driver = in_context()?;
        let mut state = driver.state();
        state.refuse_during_capture()?;
        free(driver, &mut state, address, "cuMemFree")
    }

    /// Allocates in a stream; 0 bytes are the null address.
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: Handle) {
        address.set(allocate_on_stream(bytes, stream, "cuMemAllocAsync")?)
    }

    /// Allocates in a stream, from a pool.
    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: Handle, stream: Handle) {
        in_context()?.state().pool(pool)?;
        address.set(allocate_on_stream(bytes, stream, "cuMemAllocFromPoolAsync")?)
    }

    /// Frees in a stream. While that is capturing, only memory allocated in the same capture can be freed.
    fn cuMemFreeAsync(address: u64, stream: Handle) {
        let driver = in_context()?;
        let mut state = driver.state();
        match state.active_capture(stream)? {
            None => free(driver, &mut state, address, "cuMemFreeAsync"),
            Some(capture) => state.captured_free(capture, address),
        }
    }

    /// Start and size of the allocation that an address lies in.
    fn cuMemGetAddressRange_v2(start: Out<u64>, bytes: Out<usize>, address: u64) {
        let found = in_context()?.state().allocations.around(address).ok_or(Error::NOT_FOUND)?;
        start.set_if_wanted(found.0);
        bytes.set_if_wanted(found.1);
        Ok(())
    }

    /// The pool that `cuMemAllocAsync` draws on.
    fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: c_int) {
        device::check(device)?;
        pool.set(DEFAULT_POOL)
    }

    /// As `cuDeviceGetDefaultMemPool`.
    fn cuDeviceGetMemPool(pool: Out<Handle>, device: c_int) {
        device::check(device)?;
        pool.set(DEFAULT_POOL)
    }

    /// Chooses a pool for `cuMemAllocAsync`, which makes no difference.
    fn cuDeviceSetMemPool(device: c_int, pool: Handle) {
        device::check(device)?;
        initialised()?.state().pool(pool).map(drop)
    }

    /// A pool of its own. Its properties, a place and a kind of sharing, make no difference.
    fn cuMemPoolCreate(pool: Out<Handle>, properties: *const c_void) {
        let driver = initialised()?;
        if properties.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        pool.set(driver.state().pools.insert(Pool::default()))
    }

    /// Destroys a pool that `cuMemPoolCreate` made.
    fn cuMemPoolDestroy(pool: Handle) {
        initialised()?.state().pools.remove(pool).map(drop)
    }

    /// Gives unused memory back; none is ever kept.
    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        initialised()?.state().pool(pool).map(drop)
    }

    /// Three switches (`int`), the release threshold, and how much memory is or was used (`cuuint64_t`).
    fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, value: Host) {
        let driver = initialised()?;
        let mut state = driver.state();
        let settings = *state.pool(pool)?;
        let (used, peak) = (state.allocations.used, state.allocations.peak);
        let number = match attribute {
            1..=3 => {
                // SAFETY: the caller promises an `int` for these attributes.
                let value = unsafe { value.bytes_mut(size_of::<c_int>()) }?;
                value.copy_from_slice(&settings.reuse[attribute as usize - 1].to_ne_bytes());
                return Ok(());
            }
            4 => settings.release_threshold,
            5 | 7 => used,
            6 | 8 => peak,
            _ => return Err(Error::INVALID_VALUE),
        };
        // SAFETY: the caller promises a `cuuint64_t` for these attributes.
        unsafe { value.bytes_mut(size_of::<u64>()) }?.copy_from_slice(&number.to_ne_bytes());
        Ok(())
    }

    /// As above. A high-water mark can be set to 0 alone, which starts it anew.
    fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: Host) {
        let driver = initialised()?;
        let mut state = driver.state();
        let settings = state.pool(pool)?;
        let size = if attribute <= 3 { size_of::<c_int>() } else { size_of::<u64>() };
        // SAFETY: the caller promises an `int` for the first three attributes, a `cuuint64_t` for the others.
        let bytes = unsafe { value.bytes(size) }?;
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        let number = u64::from_le_bytes(wide);
        match attribute {
            1..=3 => settings.reuse[attribute as usize - 1] = number as c_int,
            4 => settings.release_threshold = number,
            6 | 8 if number == 0 => state.allocations.peak = state.allocations.used,
            _ => return Err(Error::INVALID_VALUE),
        }
        Ok(())
    }

    /// Host memory that the device could reach directly: the only kind that a copy in a graph may name.
    fn cuMemHostAlloc(address: Out<Host>, bytes: usize, _flags: c_uint) {
        let driver = in_context()?;
        let mut state = driver.state();
        state.refuse_during_capture()?;
        if bytes == 0 {
            return Err(Error::INVALID_VALUE);
        }
        let pinned = Pinned::new(bytes)?;
        address.set(Host::at(pinned.address))?;
        state.pinned.insert(pinned.address, pinned);
        Ok(())
    }

    /// As `cuMemHostAlloc`, with no flags.
    fn cuMemAllocHost_v2(address: Out<Host>, bytes: usize) {
        // SAFETY: the caller's promises are those that `cuMemHostAlloc` asks for.
        let code = unsafe { cuMemHostAlloc(address, bytes, 0) };
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }

    /// Frees what the calls above allocated.
    fn cuMemFreeHost(address: Host) {
        in_context()?.state().pinned.remove(&address.address()).map(drop).ok_or(Error::INVALID_VALUE)
    }

    /// Host to device.
    fn cuMemcpyHtoD_v2(to: u64, from: Host, bytes: usize) {
        submit_synchronous(Work::ToDevice { to, from, bytes })
    }

    /// Host to device, in a stream.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: Host, bytes: usize, stream: Handle) {
        submit(stream, Work::ToDevice { to, from, bytes })
    }

    /// Device to host.
    fn cuMemcpyDtoH_v2(to: Host, from: u64, bytes: usize) {
        submit_synchronous(Work::ToHost { to, from, bytes })
    }

    /// Device to host, in a stream.
    fn cuMemcpyDtoHAsync_v2(to: Host, from: u64, bytes: usize, stream: Handle) {
        submit(stream, Work::ToHost { to, from, bytes })
    }

    /// Device to device.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        submit_synchronous(Work::OnDevice { to, from, bytes })
    }

    /// Device to device, in a stream.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        submit(stream, Work::OnDevice { to, from, bytes })
    }

    /// Between contexts, of which there is one.
    fn cuMemcpyPeerAsync(to: u64, _to_context: Handle, from: u64, _from_context: Handle, bytes: usize, stream: Handle) {
        submit(stream, Work::OnDevice { to, from, bytes })
    }

    /// Sets bytes.
    fn cuMemsetD8_v2(address: u64, value: u8, count: usize) {
        submit_synchronous(fill_work(address, &[value], count)?)
    }

    /// Sets 16-bit elements.
    fn cuMemsetD16_v2(address: u64, value: u16, count: usize) {
        submit_synchronous(fill_work(address, &value.to_ne_bytes(), count)?)
    }

    /// Sets 32-bit elements.
    fn cuMemsetD32_v2(address: u64, value: u32, count: usize) {
        submit_synchronous(fill_work(address, &value.to_ne_bytes(), count)?)
    }

    /// Sets bytes, in a stream.
    fn cuMemsetD8Async(address: u64, value: u8, count: usize, stream: Handle) {
        submit(stream, fill_work(address, &[value], count)?)
    }

    /// Sets 16-bit elements, in a stream.
    fn cuMemsetD16Async(address: u64, value: u16, count: usize, stream: Handle) {
        submit(stream, fill_work(address, &value.to_ne_bytes(), count)?)
    }

    /// Sets 32-bit elements, in a stream.
    fn cuMemsetD32Async(address: u64, value: u32, count: usize, stream: Handle) {
        submit(stream, fill_work(address, &value.to_ne_bytes(), count)?)
    }
}
