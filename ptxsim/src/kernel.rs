//! A kernel ready to run.

use crate::isa::{Instr, Special, Type};
use crate::module::Globals;
use std::sync::Arc;

/// A kernel parameter as the PTX declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name in the PTX.
    pub name: String,
    /// Where it starts in the parameter buffer.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
    /// Its type; for a struct the type of its elements, `b8`.
    pub ty: Type,
}

/// A line of the kernel's source, and of the kernel itself if that line was inlined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Location {
    /// File name; empty if the PTX has no line information.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// File and line that the first was inlined into.
    pub outer: Option<(String, u32)>,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        match &self.outer {
            Some((file, line)) => write!(f, " (inlined at {file}:{line})"),
            None => Ok(()),
        }
    }
}

/// A `.entry` function, decoded.
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) static_shared: usize,
    /// bytes of local memory of each thread
    pub(crate) local: usize,
    pub(crate) code: Vec<Instr>,
    pub(crate) lists: Vec<u32>,
    /// registers of each file
    pub(crate) words: u32,
    pub(crate) longs: u32,
    pub(crate) preds: u32,
    /// (register, value)
    pub(crate) word_constants: Vec<(u32, u32)>,
    pub(crate) long_constants: Vec<(u32, u64)>,
    pub(crate) specials: Vec<(u32, Special)>,
    pub(crate) locations: Vec<Location>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) globals: Arc<Globals>,
}

impl Kernel {
    /// Its name in the PTX.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of the parameter buffer.
    pub fn param_bytes(&self) -> usize {
        self.param_bytes
    }

    /// Bytes of shared memory of its `__shared__` variables.
    pub fn static_shared(&self) -> usize {
        self.static_shared
    }

    /// Bytes of local memory of each thread, as the PTX declares it (ptxas may need none of it, or more).
    pub fn local_bytes(&self) -> usize {
        self.local
    }

    /// Threads of a block at most: 1024 or what `__launch_bounds__` says.
    pub fn max_threads(&self) -> u32 {
        self.max_threads.or(self.required_threads).map_or(1024, |t| t.iter().product::<u32>().min(1024))
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Kernel({}, {} instructions)", self.name, self.code.len())
    }
}
