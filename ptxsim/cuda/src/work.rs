//! What a stream does: run at once, or kept in a graph.

use crate::abi::Host;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::graph::Executable;
use crate::memory;
use crate::module::Function;
use ptxsim::Launch;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// One piece of work. Everything it needs was copied when it was submitted, but for host memory that it copies.
pub(crate) enum Work {
    Kernel {
        function: Arc<Function>,
        launch: Launch,
        parameters: Vec<u8>,
    },
    /// Writes `pattern` `count` times, one after the other.
    Fill {
        address: u64,
        pattern: Vec<u8>,
        count: usize,
    },
    ToDevice {
        to: u64,
        from: Host,
        bytes: usize,
    },
    ToHost {
        to: Host,
        from: u64,
        bytes: usize,
    },
    OnDevice {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// A function on the host.
    Call(Call),
    /// Work of another stand-in library.
    Foreign(Foreign),
    /// A graph, launched.
    Graph(Arc<Executable>),
}

/// `CUhostFn` and its argument.
pub(crate) struct Call {
    pub(crate) function: unsafe extern "C" fn(*mut c_void),
    pub(crate) argument: Host,
}

/// Work given by another library: `run` does it, as often as it is asked to, and `release` frees `data`.
pub(crate) struct Foreign {
    pub(crate) data: Host,
    pub(crate) run: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub(crate) release: unsafe extern "C" fn(*mut c_void),
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: `ptxsim_enqueue` was promised that `release` takes `data`, and this is the one time it does.
        unsafe { (self.release)(self.data.pointer()) }
    }
}

impl Work {
    pub(crate) fn run(&self, driver: &Driver) -> Result {
        match self {
            Work::Kernel { function, launch, parameters } => function.run(driver, launch, parameters),
            Work::Fill { address, pattern, count } => memory::fill(driver, *address, pattern, *count),
            Work::ToDevice { to, from, bytes } => {
                // SAFETY: whoever asks for a copy promises that the host memory stays as it is until the copy is done;
                // in a graph, that is memory from `cuMemHostAlloc` which is still allocated (`memory::check_pinned`).
                let bytes = unsafe { from.bytes(*bytes) }?;
                memory::write(driver, *to, bytes)
            }
            Work::ToHost { to, from, bytes } => {
                // SAFETY: as above, and nothing else touches the memory that is written.
                let bytes = unsafe { to.bytes_mut(*bytes) }?;
                memory::read(driver, *from, bytes)
            }
            Work::OnDevice { to, from, bytes } => memory::copy(driver, *to, *from, *bytes),
            Work::Call(call) => {
                // SAFETY: `cuLaunchHostFunc` was promised a function that takes this argument.
                unsafe { (call.function)(call.argument.pointer()) };
                Ok(())
            }
            Work::Foreign(work) => {
                // SAFETY: `ptxsim_enqueue` was promised a function that takes this data, and the data lives as long as
                // `work` does.
                match unsafe { (work.run)(work.data.pointer()) } {
                    0 => Ok(()),
                    code => Err(driver.fail(Error(code), "work of another library failed, as reported above")),
                }
            }
            Work::Graph(graph) => graph.nodes.iter().try_for_each(|work| work.run(driver)),
        }
    }
}
