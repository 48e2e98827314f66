//! What a launch that went wrong says.

use crate::kernel::Location;

/// What kind of fault a report is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    /// Access outside of every allocation, shared or local memory.
    OutOfBounds,
    /// Access through a null pointer.
    NullPointer,
    /// Access to memory that was freed.
    FreedMemory,
    /// The address is not a multiple of the size of the access.
    Misaligned,
    /// A read of memory that nothing wrote.
    Unwritten,
    /// Two accesses to the same bytes, one of them a write, that nothing orders.
    Race,
    /// An access to the destination of an asynchronous copy that was not waited for.
    AsyncCopy,
    /// A barrier, shuffle, vote or matrix operation that not all its threads reach.
    Divergence,
    /// A launch that the device does not allow.
    Geometry,
    /// A parameter buffer of the wrong size.
    Parameters,
    /// More instructions than the budget: most likely an endless loop.
    Budget,
    /// `trap`, or a failed `assert`.
    Trap,
}

/// Why a launch was stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What kind of fault.
    pub kind: Kind,
    /// The kernel's name.
    pub kernel: String,
    /// The block, if it is about one.
    pub block: Option<[u32; 3]>,
    /// The thread in it, if it is about one.
    pub thread: Option<[u32; 3]>,
    /// The source line, if the PTX says.
    pub location: Option<Location>,
    /// The line in the PTX text; 0 if it is about no instruction.
    pub ptx_line: u32,
    /// What happened.
    pub message: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        let triple = |[x, y, z]: [u32; 3]| format!("({x},{y},{z})");
        if let Some(block) = self.block {
            write!(f, ", block {}", triple(block))?;
        }
        if let Some(thread) = self.thread {
            write!(f, ", thread {}", triple(thread))?;
        }
        match &self.location {
            Some(location) => write!(f, ", {location}")?,
            None if self.ptx_line > 0 => write!(f, ", PTX line {}", self.ptx_line)?,
            None => {}
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Report {}

/// A fault in a warp; the block adds names.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) lane: Option<u32>,
    /// the instruction, if it is not the one the warp is at
    pub(crate) pc: Option<u32>,
    pub(crate) message: String,
}

impl Fault {
    #[cold]
    pub(crate) fn new(kind: Kind, lane: Option<u32>, message: String) -> Box<Fault> {
        Box::new(Fault { kind, lane, pc: None, message })
    }
}
