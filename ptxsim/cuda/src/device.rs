//! The device and its context: `cuInit`, `cuDevice*`, `cuDevicePrimaryCtx*`, `cuCtx*`.
//!
//! There is one device: the interpreter, with the limits of compute capability 8.0.

use crate::abi::{Handle, Out, entry_points};
use crate::driver::{CURRENT_CONTEXT, PRIMARY_CONTEXT, in_context, initialise, initialised};
use crate::error::{Error, Result};
use std::ffi::{c_char, c_int, c_uint};

/// The driver's version: CUDA 12.8.
pub(crate) const VERSION: c_int = 12080;

/// What the device is called.
const NAME: &[u8] = b"ptxsim\0";

/// Compute capability, as major * 10 + minor.
pub(crate) const COMPUTE_CAPABILITY: u32 = 80;
pub(crate) const MULTIPROCESSORS: u32 = 108;
pub(crate) const WARP_SIZE: u32 = 32;
pub(crate) const MAX_THREADS_PER_BLOCK: u32 = 1024;
pub(crate) const MAX_THREADS_PER_MULTIPROCESSOR: u32 = 2048;
pub(crate) const MAX_BLOCKS_PER_MULTIPROCESSOR: u32 = 32;
pub(crate) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
pub(crate) const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
/// Shared memory of a block that did not ask for more, in bytes.
pub(crate) const SHARED_PER_BLOCK: u32 = 48 << 10;
/// What a block can ask for (`CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`).
pub(crate) const SHARED_PER_BLOCK_OPTIN: u32 = 163 << 10;
pub(crate) const SHARED_PER_MULTIPROCESSOR: u32 = 164 << 10;
/// What the system keeps of each block's share.
pub(crate) const SHARED_RESERVED: u32 = 1 << 10;

/// A `CUuuid`.
#[repr(C)]
pub struct Uuid([u8; 16]);

entry_points! {
    /// Starts the driver; reads the `PTXSIM_*` environment.
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        initialise()
    }

    /// The CUDA version the driver offers: 12.8.
    fn cuDriverGetVersion(version: Out<c_int>) {
        version.set(VERSION)
    }

    /// One device.
    fn cuDeviceGetCount(count: Out<c_int>) {
        initialised()?;
        count.set(1)
    }

    /// The device of an ordinal, which must be 0.
    fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) {
        check(ordinal)?;
        device.set(ordinal)
    }

    /// The device's name, cut to the caller's buffer.
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) {
        check(device)?;
        let length = usize::try_from(length).unwrap_or(0).min(NAME.len());
        if name.is_null() || length == 0 {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller promises `length` writable bytes, and no more of them than the name has are written.
        let name = unsafe { std::slice::from_raw_parts_mut(name.cast::<u8>(), length) };
        name.copy_from_slice(&NAME[..length]);
        name[length - 1] = 0;
        Ok(())
    }

    /// The same for every process: there is one device.
    fn cuDeviceGetUuid(uuid: Out<Uuid>, device: c_int) {
        check(device)?;
        uuid.set(Uuid(*b"ptxsim device  0"))
    }

    /// As `cuDeviceGetUuid`.
    fn cuDeviceGetUuid_v2(uuid: Out<Uuid>, device: c_int) {
        check(device)?;
        uuid.set(Uuid(*b"ptxsim device  0"))
    }

    /// Bytes of device memory in all (`PTXSIM_MEMORY`).
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) {
        check(device)?;
        bytes.set(initialised()?.memory.capacity())
    }

    /// An attribute of the device.
    fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) {
        check(device)?;
        value.set(attribute_value(attribute)?)
    }

    /// The major and the minor part of the compute capability.
    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: c_int) {
        check(device)?;
        major.set((COMPUTE_CAPABILITY / 10) as c_int)?;
        minor.set((COMPUTE_CAPABILITY % 10) as c_int)
    }

    /// Retains the one context there is.
    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: c_int) {
        check(device)?;
        let driver = initialised()?;
        driver.check_fault()?;
        driver.state().context_users += 1;
        context.set(PRIMARY_CONTEXT)
    }

    /// Releases the context; the last release destroys it, and reports what it still held.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        check(device)?;
        initialised()?.release_context()
    }

    /// Whether the context is retained by anyone; its flags are always 0.
    fn cuDevicePrimaryCtxGetState(device: c_int, flags: Out<c_uint>, active: Out<c_int>) {
        check(device)?;
        flags.set(0)?;
        active.set((initialised()?.state().context_users > 0) as c_int)
    }

    /// Makes a context, or none, current on this thread.
    fn cuCtxSetCurrent(context: Handle) {
        initialised()?;
        if context != 0 && context != PRIMARY_CONTEXT {
            return Err(Error::INVALID_CONTEXT);
        }
        CURRENT_CONTEXT.set(context);
        Ok(())
    }

    /// The context current on this thread, or null.
    fn cuCtxGetCurrent(context: Out<Handle>) {
        initialised()?;
        context.set(CURRENT_CONTEXT.get())
    }

    /// The device of the current context.
    fn cuCtxGetDevice(device: Out<c_int>) {
        in_context()?;
        device.set(0)
    }

    /// Waits for all work: it is done already, so this hands back the fault it left, if any.
    fn cuCtxSynchronize() {
        let driver = in_context()?;
        driver.state().refuse_during_capture()
    }

    /// Flags say how the host waits, which it never does here.
    fn cuCtxSetFlags(_flags: c_uint) {
        in_context().map(drop)
    }

    /// As many priorities as there are: one.
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        in_context()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(0);
        Ok(())
    }

    /// A limit, as set; the interpreter has no use for it.
    fn cuCtxGetLimit(value: Out<usize>, limit: c_int) {
        let driver = in_context()?;
        let initial = match limit {
            0 => 1024,
            1 => 1 << 20,
            2 => 8 << 20,
            _ => return Err(Error::UNSUPPORTED_LIMIT),
        };
        value.set(driver.state().limits.get(&limit).copied().unwrap_or(initial))
    }

    /// Sets the stack size (0), the size of `printf`'s buffer (1) or of the device's heap (2).
    fn cuCtxSetLimit(limit: c_int, value: usize) {
        let driver = in_context()?;
        if !(0..=2).contains(&limit) {
            return Err(Error::UNSUPPORTED_LIMIT);
        }
        driver.state().limits.insert(limit, value);
        Ok(())
    }

    /// No preference between shared memory and cache.
    fn cuCtxGetCacheConfig(config: Out<c_int>) {
        in_context()?;
        config.set(0)
    }

    /// A preference between shared memory and cache, which changes no result.
    fn cuCtxSetCacheConfig(_config: c_int) {
        in_context().map(drop)
    }

    /// Starts a profiler; there is none to start.
    fn cuProfilerStart() {
        in_context().map(drop)
    }

    /// Stops a profiler.
    fn cuProfilerStop() {
        in_context().map(drop)
    }
}

/// The driver, if `device` is the one device.
pub(crate) fn check(device: c_int) -> Result {
    initialised()?;
    if device == 0 { Ok(()) } else { Err(Error::INVALID_DEVICE) }
}

/// `CUdevice_attribute`: an A100's figures where they matter to a launch, 0 for what the stand-in has not.
fn attribute_value(attribute: c_int) -> Result<c_int> {
    let value = match attribute {
        1 => MAX_THREADS_PER_BLOCK,
        2..=4 => MAX_BLOCK[attribute as usize - 2],
        5..=7 => MAX_GRID[attribute as usize - 5],
        8 => SHARED_PER_BLOCK,
        9 => 64 << 10, // constant memory
        10 => WARP_SIZE,
        11 => i32::MAX as u32,  // largest pitch
        12 | 82 => 64 << 10,    // registers of a block, of a multiprocessor
        13 => 1_410_000,        // clock, kHz
        14 => 512,              // alignment of textures
        15 | 41 | 78 | 95 => 1, // overlap, unified addresses, priorities, cooperative launch
        16 => MULTIPROCESSORS,
        31 => 1,         // concurrent kernels
        36 => 1_215_000, // memory clock, kHz
        37 => 5120,      // width of the memory bus, bits
        38 => 40 << 20,  // level 2 cache
        39 => MAX_THREADS_PER_MULTIPROCESSOR,
        40 => 3, // copy engines
        75 => COMPUTE_CAPABILITY / 10,
        76 => COMPUTE_CAPABILITY % 10,
        79 | 80 => 1, // level 1 cache for global and local memory
        81 => SHARED_PER_MULTIPROCESSOR,
        87 => 2, // single- to double-precision speed
        97 => SHARED_PER_BLOCK_OPTIN,
        106 => MAX_BLOCKS_PER_MULTIPROCESSOR,
        111 => SHARED_RESERVED,
        115 => 1, // memory pools
        17..=143 => 0,
        _ => return Err(Error::INVALID_VALUE),
    };
    Ok(value as c_int)
}
