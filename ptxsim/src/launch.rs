//! Launching a kernel: checks, and its blocks spread over threads.

use crate::block::Block;
use crate::kernel::Kernel;
use crate::memory::Memory;
use crate::report::{Kind, Report};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Shared memory of a block at most, static and dynamic: 163 KiB, as on sm_80.
pub const MAX_SHARED: usize = 163 << 10;
/// Shared memory of a block at most, unless the kernel's attribute asks for more.
pub const DEFAULT_SHARED: usize = 48 << 10;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
}

impl Launch {
    pub(crate) fn threads(&self) -> usize {
        self.block.iter().map(|&n| n as usize).product()
    }

    fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| n as u64).product()
    }

    pub(crate) fn block_index(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(|n| n as u64);
        [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
    }
}

/// How to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Check for unwritten memory and races. Bounds, alignment and divergence are always checked.
    pub checks: bool,
    /// Run blocks, and warps in a block, last first.
    pub reverse: bool,
    /// Threads of this machine to spread blocks over; 0: all.
    pub threads: usize,
    /// Instructions of warps that a launch may execute.
    pub budget: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { checks: true, reverse: false, threads: 0, budget: 1 << 33 }
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks run.
    pub blocks: u64,
    /// Instructions of warps.
    pub instructions: u64,
    /// Instructions times active threads.
    pub thread_instructions: u64,
    /// Matrix operations of warps.
    pub mma: u64,
    /// Barriers of blocks.
    pub barriers: u64,
    /// Bytes that threads read from global memory, caches and coalescing aside.
    pub global_read: u64,
    /// Bytes that threads wrote to global memory.
    pub global_written: u64,
}

impl Stats {
    fn add(&mut self, other: &Stats) {
        self.blocks += other.blocks;
        self.instructions += other.instructions;
        self.thread_instructions += other.thread_instructions;
        self.mma += other.mma;
        self.barriers += other.barriers;
        self.global_read += other.global_read;
        self.global_written += other.global_written;
    }
}

/// What the workers of a launch share.
pub(crate) struct Progress {
    pub(crate) budget: u64,
    spent: AtomicU64,
    next: AtomicU64,
    failed: AtomicBool,
    /// the report of the first failed block in running order
    report: Mutex<Option<(u64, Box<Report>)>>,
}

impl Progress {
    pub(crate) fn spend(&self, instructions: u64) -> bool {
        self.spent.fetch_add(instructions, Ordering::Relaxed) + instructions <= self.budget
    }
}

/// Runs a kernel to its end.
///
/// # Errors
/// The first fault found; memory then holds whatever was written before.
pub fn run(
    kernel: &Kernel,
    launch: &Launch,
    params: &[u8],
    memory: &Memory,
    options: &Options,
) -> Result<Stats, Report> {
    check(kernel, launch, params)?;
    static LAUNCHES: AtomicU32 = AtomicU32::new(1);
    let launch_id = LAUNCHES.fetch_add(1, Ordering::Relaxed);
    if !options.checks {
        memory.stop_marking();
    }
    let mut allocations = memory.snapshot();
    if !kernel.globals.allocations.is_empty() {
        allocations.extend(kernel.globals.allocations.iter().cloned());
        allocations.sort_by_key(|a| a.address);
    }
    let progress = Progress {
        budget: options.budget,
        spent: AtomicU64::new(0),
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        report: Mutex::new(None),
    };
    let blocks = launch.blocks();
    let total = Mutex::new(Stats::default());
    let work = || {
        let mut block = Block::new(kernel, launch, params, memory, &allocations, &progress, options.checks, launch_id);
        loop {
            let turn = progress.next.fetch_add(1, Ordering::Relaxed);
            if turn >= blocks || progress.failed.load(Ordering::Relaxed) {
                break;
            }
            let index = if options.reverse { blocks - 1 - turn } else { turn };
            if let Err(report) = block.run(index, options.reverse) {
                progress.failed.store(true, Ordering::Relaxed);
                let mut first = progress.report.lock().unwrap_or_else(|e| e.into_inner());
                if first.as_ref().is_none_or(|(at, _)| turn < *at) {
                    *first = Some((turn, report));
                }
                break;
            }
        }
        total.lock().unwrap_or_else(|e| e.into_inner()).add(&block.env.stats);
    };
    let machine = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if options.threads == 0 { machine() } else { options.threads };
    let threads = threads.min(blocks as usize).max(1);
    if threads == 1 {
        work();
    } else {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    }
    match progress.report.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, report)) => Err(*report),
        None => Ok(total.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

/// What the driver would refuse.
fn check(kernel: &Kernel, launch: &Launch, params: &[u8]) -> Result<(), Report> {
    let refuse = |kind, message: String| {
        Err(Report {
            kind,
            kernel: kernel.name.clone(),
            block: None,
            thread: None,
            location: None,
            ptx_line: 0,
            message,
        })
    };
    let (grid, block) = (launch.grid, launch.block);
    if grid.contains(&0) || block.contains(&0) {
        return refuse(Kind::Geometry, format!("grid {grid:?} of blocks {block:?}: no extent may be 0"));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return refuse(Kind::Geometry, format!("grid {grid:?}: at most [2147483647, 65535, 65535]"));
    }
    let threads: u64 = block.iter().map(|&n| n as u64).product();
    if threads > 1024 || block[2] > 64 {
        return refuse(Kind::Geometry, format!("block {block:?} has {threads} threads: at most 1024, and 64 along z"));
    }
    if threads > kernel.max_threads() as u64 {
        return refuse(
            Kind::Geometry,
            format!("block of {threads} threads: the kernel's __launch_bounds__ allow {}", kernel.max_threads()),
        );
    }
    if let Some(required) = kernel.required_threads
        && required != block
    {
        return refuse(Kind::Geometry, format!("block {block:?}: the kernel requires {required:?}"));
    }
    let shared = kernel.static_shared as u64 + launch.dynamic_shared as u64;
    if shared > MAX_SHARED as u64 {
        return refuse(
            Kind::Geometry,
            format!(
                "{} bytes of static and {} of dynamic shared memory: a block may have {MAX_SHARED}",
                kernel.static_shared, launch.dynamic_shared
            ),
        );
    }
    if params.len() != kernel.param_bytes {
        return refuse(
            Kind::Parameters,
            format!("{} bytes of parameters, the kernel takes {}", params.len(), kernel.param_bytes),
        );
    }
    // the index of a block plus one is kept in 32 bits, of which the last value means several
    if launch.blocks() >= u32::MAX as u64 - 1 {
        return refuse(Kind::Geometry, format!("grid {grid:?}: more blocks than this interpreter numbers"));
    }
    Ok(())
}
