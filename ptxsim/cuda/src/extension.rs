//! What other stand-in libraries of this project call: access to device memory, and work of their own in a stream.

use crate::abi::{Handle, Host, Out, entry_points};
use crate::driver::{in_context, initialised};
use crate::error::Error;
use crate::memory;
use crate::stream::submit;
use crate::work::{Foreign, Work};
use ptxsim::Access;
use std::ffi::{c_int, c_void};

entry_points! {
    /// Checks that `bytes` bytes lie in one allocation, and were written (`write` 0) or count as written from now on
    /// (`write` 1); hands back where they are on the host. An error is reported on stderr, with `what` for a name.
    fn ptxsim_access(address: u64, bytes: usize, write: c_int, what: crate::abi::Name, pointer: Out<Host>) {
        let driver = initialised()?;
        let access = if write != 0 { Access::Write } else { Access::Read };
        match driver.memory.access(address, bytes, access) {
            Ok(found) => pointer.set(Host::at(found as usize)),
            Err(_) if write == 0 && !driver.options.checks && memory::is_memory(driver, address, bytes) => {
                pointer.set(Host::at(address as usize))
            }
            Err(error) => {
                eprintln!("ptxsim: {}: {error}", what.text().unwrap_or("?"));
                Err(Error::ILLEGAL_ADDRESS)
            }
        }
    }

    /// Puts work into a stream: `run(data)` is called now, or, while the stream is capturing, whenever the graph is
    /// launched. It returns a `CUresult`, and an error leaves the device unusable. `release(data)` is called once, when
    /// the work will not be asked for again, also where this call fails.
    fn ptxsim_enqueue(
        stream: Handle,
        run: unsafe extern "C" fn(*mut c_void) -> c_int,
        release: unsafe extern "C" fn(*mut c_void),
        data: Host,
    ) {
        let work = Work::Foreign(Foreign { data, run, release });
        in_context()?;
        submit(stream, work)
    }

    /// Whether a call can be made that needs a context: one is current on this thread, and without a fault.
    fn ptxsim_check_context() {
        in_context().map(drop)
    }
}
