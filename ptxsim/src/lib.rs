//! Runs the PTX that nvcc writes for CUDA kernels on the CPU, instruction by instruction, and reports what a GPU would
//! not: out-of-bounds and misaligned access, reads of memory nothing wrote, races, missing barriers and asynchronous
//! waits, divergent barriers and shuffles, endless loops.
//!
//! ```
//! use ptxsim::{Launch, Memory, Module, Options, run};
//!
//! let module = Module::parse(
//!     ".version 7.1
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry twice(.param .u64 x) {
//!          .reg .b32 %r<3>; .reg .b64 %rd<4>; .reg .f32 %f<3>;
//!          ld.param.u64 %rd1, [x];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 4;
//!          add.s64 %rd3, %rd1, %rd2;
//!          ld.global.f32 %f1, [%rd3];
//!          add.f32 %f2, %f1, %f1;
//!          st.global.f32 [%rd3], %f2;
//!          ret;
//!      }",
//! )
//! .unwrap();
//! let memory = Memory::new(1 << 20);
//! let x = memory.allocate(8).unwrap();
//! memory.write(x, &[1f32.to_le_bytes(), 2f32.to_le_bytes()].concat()).unwrap();
//! let kernel = module.kernel("twice").unwrap();
//! let launch = |threads| Launch { grid: [1, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 };
//! run(kernel, &launch(2), &x.to_le_bytes(), &memory, &Options::default()).unwrap();
//! let mut y = [0; 8];
//! memory.read(x, &mut y).unwrap();
//! assert_eq!(y[..4], 2f32.to_le_bytes());
//!
//! // one thread too many
//! let report = run(kernel, &launch(3), &x.to_le_bytes(), &memory, &Options::default()).unwrap_err();
//! assert_eq!(report.kind, ptxsim::Kind::OutOfBounds);
//! ```

mod block;
mod checks;
mod decode;
mod exec;
mod isa;
mod kernel;
mod launch;
mod lex;
mod memory;
mod module;
mod parse;
mod report;
pub mod standin;
mod warp;

pub use decode::OPCODES;
pub use isa::Type;
pub use kernel::{Kernel, Location, Param};
pub use launch::{DEFAULT_SHARED, Launch, MAX_SHARED, Options, Stats, run};
pub use memory::{ALIGNMENT, Access, Memory, MemoryError};
pub use module::{Module, ParseError};
pub use report::{Kind, Report};
