//! The driver library: whether it is there and complete, and its errors as ours.
//!
//! cudarc panics where the library or a symbol of it is missing, so both are looked for before its first call.

use crate::error::{Error, Place, Result};
use cudarc::driver::DriverError;
use cudarc::driver::sys::{self, CUresult};

/// Every driver function that this crate, or cudarc on its behalf, calls.
const SYMBOLS: [&str; 37] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemGetInfo_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuMemsetD32Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuMemFreeHost",
    "cuMemHostAlloc",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
];

/// Looks for the driver and everything needed of it.
pub(super) fn probe() -> Result<()> {
    let missing = |got: String| {
        Error::device(Place::item("cuda"), "NVIDIA's driver library (libcuda)", got)
            .hint("install NVIDIA's driver, or compute with --device cpu")
    };
    // SAFETY: loads a library by the names that only the driver has, and runs nothing of it but its initialisers.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing("no such library on this machine".into()));
    }
    for symbol in SYMBOLS {
        // SAFETY: the library is present; the symbol is looked up, not called.
        let found = unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol.as_bytes()).is_ok() };
        if !found {
            return Err(missing(format!("a library without {symbol}: an old driver")));
        }
    }
    Ok(())
}

/// Whether the driver is short of memory, which is the user's to mend and not a failure.
pub(super) fn is_out_of_memory(error: &DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// A refusal of the driver while it was asked to do `action`.
pub(super) fn error(action: &str, error: DriverError) -> Error {
    let name = error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into_owned());
    let hint = match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "take a smaller batch, or shorter examples or prompt",
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS => {
            "a kernel left its memory: please report it, with the command"
        }
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => {
            "see what nvidia-smi lists, or compute with --device cpu"
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            "the kernels need a GPU of compute capability 8.0 or later and a driver of CUDA 11.1 or later"
        }
        _ => "see the driver's log (dmesg) for the reason",
    };
    Error::device(Place::item("cuda"), format!("the driver to {action}"), name).hint(hint)
}
