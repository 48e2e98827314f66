//! The stand-in driver: memory and streams are its own, reached through functions that only it exports.

use crate::status::{Result, Status, refuse};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

type Access = unsafe extern "C" fn(u64, usize, c_int, *const c_char, *mut *mut u8) -> c_int;
type Enqueue = unsafe extern "C" fn(
    usize,
    unsafe extern "C" fn(*mut c_void) -> c_int,
    unsafe extern "C" fn(*mut c_void),
    *mut c_void,
) -> c_int;
type CheckContext = unsafe extern "C" fn() -> c_int;

/// `CUDA_ERROR_UNKNOWN`, for work that panicked.
const UNKNOWN: c_int = 999;

/// The driver's functions.
pub(crate) struct Driver {
    access: Access,
    enqueue: Enqueue,
    check_context: CheckContext,
}

/// The driver loaded in this process.
pub(crate) fn driver() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    match DRIVER.get_or_init(load) {
        Some(driver) => Ok(driver),
        None => refuse(
            Status::NOT_INITIALIZED,
            "the libcuda.so in this process is not ptxsim's; this library works with that one alone",
        ),
    }
}

#[cfg(target_os = "linux")]
fn load() -> Option<Driver> {
    use libloading::os::unix::{Library, RTLD_NOW};
    /// Only what is loaded already.
    const RTLD_NOLOAD: c_int = 4;
    // SAFETY: nothing is loaded, so no initialiser runs.
    let library = unsafe { Library::open(Some("libcuda.so"), RTLD_NOW | RTLD_NOLOAD) }.ok()?;
    // SAFETY: a library that exports these names is the stand-in, where they have these types (ptxsim/cuda, extension.rs).
    let driver = unsafe {
        Driver {
            access: *library.get(b"ptxsim_access\0").ok()?,
            enqueue: *library.get(b"ptxsim_enqueue\0").ok()?,
            check_context: *library.get(b"ptxsim_check_context\0").ok()?,
        }
    };
    // The functions must stay where they are.
    std::mem::forget(library);
    Some(driver)
}

#[cfg(not(target_os = "linux"))]
fn load() -> Option<Driver> {
    None
}

impl Driver {
    /// Whether a context is current on this thread, and without a fault.
    pub(crate) fn check_context(&self) -> Result {
        // SAFETY: takes nothing.
        match unsafe { (self.check_context)() } {
            0 => Ok(()),
            code => refuse(Status::NOT_INITIALIZED, format!("there is no usable CUDA context (CUresult {code})")),
        }
    }

    /// The host pointer to device memory to be read: all of it in one allocation, and written by something. The error is
    /// a `CUresult`, and was reported.
    pub(crate) fn readable(&self, address: u64, bytes: usize, what: &CStr) -> std::result::Result<*const u8, c_int> {
        self.reach(address, bytes, 0, what).map(|pointer| pointer.cast_const())
    }

    /// The host pointer to device memory to be written: all of it in one allocation. It counts as written from now on.
    pub(crate) fn writable(&self, address: u64, bytes: usize, what: &CStr) -> std::result::Result<*mut u8, c_int> {
        self.reach(address, bytes, 1, what)
    }

    fn reach(&self, address: u64, bytes: usize, write: c_int, what: &CStr) -> std::result::Result<*mut u8, c_int> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: `what` is a string and `pointer` a place for the result.
        match unsafe { (self.access)(address, bytes, write, what.as_ptr(), &mut pointer) } {
            0 => Ok(pointer),
            code => Err(code),
        }
    }

    /// Does the work in a stream: now, or whenever a graph that it was captured into is launched.
    pub(crate) fn enqueue<W: Work>(&self, stream: usize, work: W) -> Result {
        let data = Box::into_raw(Box::new(work)).cast();
        // SAFETY: `run` and `release` take the data of a `W`, and the driver calls `release` once.
        match unsafe { (self.enqueue)(stream, run::<W>, release::<W>, data) } {
            0 => Ok(()),
            code => refuse(Status::EXECUTION_FAILED, format!("the driver did not run the product (CUresult {code})")),
        }
    }
}

/// Work for a stream.
pub(crate) trait Work: Send + Sync {
    /// Does it; the error is a `CUresult`, and was reported.
    fn run(&self, driver: &Driver) -> std::result::Result<(), c_int>;
}

unsafe extern "C" fn run<W: Work>(data: *mut c_void) -> c_int {
    // SAFETY: the driver hands back what `enqueue` gave it, before it releases it.
    let work = unsafe { &*data.cast::<W>() };
    match driver().map(|driver| work.run(driver)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => UNKNOWN,
    }
}

unsafe extern "C" fn release<W: Work>(data: *mut c_void) {
    // SAFETY: the driver hands back what `enqueue` gave it, once.
    drop(unsafe { Box::from_raw(data.cast::<W>()) });
}
