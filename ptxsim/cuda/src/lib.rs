//! A stand-in for the CUDA driver, `libcuda.so`: its entry points, with kernels run by the [`ptxsim`] interpreter on the
//! CPU.
//!
//! Programs load it as they load NVIDIA's, by name ([`ptxsim::standin`] sees to that), and call it as they call NVIDIA's.
//! What they do wrong is refused with the driver's codes; what a GPU would not tell is reported on stderr, in lines that
//! start with `ptxsim:`, and leaves the device unusable (`CUDA_ERROR_ILLEGAL_ADDRESS` or a fitting code, from every call
//! after it). A program that passes here can still be wrong in what only a GPU shows: its speed, its memory model, and
//! work that overlaps, as all work here is done when the call that asks for it returns.
//!
//! # Stricter than the driver
//!
//! - Memory that nothing wrote must not be read, not even by a copy to the host.
//! - A copy captured into a graph must use pinned host memory, which must still be there when the graph is launched.
//! - Handles are looked up, so one that was destroyed is refused.
//! - Memory that is still allocated when the context is released, or when the process ends, is reported.
//!
//! # Environment
//!
//! | variable | meaning |
//! | --- | --- |
//! | `PTXSIM_MEMORY` | bytes of device memory; 4 GiB by default |
//! | `PTXSIM_CHECKS` | 0 turns checks of races and of unwritten memory off |
//! | `PTXSIM_REVERSE` | 1 runs blocks and warps last first |
//! | `PTXSIM_THREADS` | CPU threads that blocks are spread over |
//! | `PTXSIM_BUDGET` | instructions that a launch may take |
//! | `PTXSIM_STRICT` | 1 makes a process that leaked end with status 86 |
//!
//! # Safety
//!
//! Every entry point is `unsafe`, and asks for what the CUDA driver API's documentation asks for: pointers that are null
//! or valid, host memory that lasts until a copy is done, arguments that fit a kernel. Handles may be anything.

#![allow(non_snake_case)]
#![allow(clippy::missing_safety_doc)] // said once, above

mod abi;
mod device;
mod driver;
mod error;
mod extension;
mod graph;
mod launch;
mod memory;
mod module;
mod stream;
mod work;

pub use abi::{Host, Name, Out};
pub use device::*;
pub use error::*;
pub use extension::*;
pub use graph::*;
pub use launch::*;
pub use memory::*;
pub use module::*;
pub use stream::*;
