//! A stand-in for cuBLASLt, `libcublasLt.so`: the calls that a matrix product takes, computed on the CPU.
//!
//! Works with the stand-in driver (`ptxsim/cuda`) alone, whose memory it reads and writes: bounds, bytes that nothing
//! wrote and captured work are that library's business. Types f32, f16 and bf16 with f32 sums; column and row order;
//! transposes, batches, host scalars; epilogues with bias, ReLU and GELU (tanh). What it does not know it refuses, with
//! `CUBLAS_STATUS_NOT_SUPPORTED` and a line on stderr.
//!
//! # Stricter than the library
//!
//! - An algorithm is good for the very product that it was found for, and for addresses as aligned as the preference
//!   said: by default, to 256 bytes.
//! - The workspace that the heuristic asked for must be given, and loses what it holds.
//! - An epilogue needs D in column order.
//! - D must not overlap A, B or C, unless C and D are the same.
//! - No matrix is empty.
//!
//! # Safety
//!
//! Every entry point is `unsafe`, and asks for what cuBLASLt's documentation asks for: pointers on the host that are null
//! or valid, attribute values as long as they are said to be. Handles and device addresses may be anything.

#![allow(non_snake_case)]
#![allow(clippy::missing_safety_doc)] // said once, above

mod abi;
mod descriptor;
mod driver;
mod matmul;
mod problem;
mod product;
mod status;

pub use abi::Out;
pub use descriptor::*;
pub use matmul::*;
pub use status::*;

use abi::{Table, entry_points};
use std::ffi::c_int;

/// The version: cuBLAS 12.8.3, of CUDA 12.8.
const VERSION: [c_int; 3] = [12, 8, 3];

pub(crate) static HANDLES: Table<()> = Table::new(0xb1a5_3001_0000);

entry_points! {
    /// A handle; the context current on this thread must be usable.
    fn cublasLtCreate(handle: Out<usize>) {
        driver::driver()?.check_context()?;
        handle.set(HANDLES.insert(()))
    }

    /// Destroys a handle.
    fn cublasLtDestroy(handle: usize) {
        HANDLES.remove(handle)
    }

    /// Major (0), minor (1) or patch (2) version.
    fn cublasLtGetProperty(property: c_int, value: Out<c_int>) {
        let part = usize::try_from(property).ok().and_then(|index| VERSION.get(index));
        value.set(*part.ok_or(status::Status::INVALID_VALUE)?)
    }
}

/// The version as a number: 120803.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    let [major, minor, patch] = VERSION;
    (major * 10_000 + minor * 100 + patch) as usize
}

/// The CUDA version it belongs to.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetCudartVersion() -> usize {
    12080
}
