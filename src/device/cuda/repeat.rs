//! Work that repeats, as CUDA graphs.
//!
//! A training step is some hundred short kernels; launching each costs about as much as many of them take. Steps of one
//! shape put the same commands into the stream with the same addresses, since the pool hands out the same blocks again.
//! So the commands of a [`CudaDevice::repeat`] scope are watched. Where they were the same as before, those of the next
//! scope are put off until its end, and launched as one graph if they are the same once more, or else one by one. What is
//! uploaded may differ: it goes through pinned memory of the graph's own.
//!
//! Nothing has to be declared alike, and nothing can be taken for alike that is not: commands are compared whole.

use super::stream::Command;
use super::{CudaDevice, driver};
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

/// Command lists remembered, each with its graph if it came again.
const REMEMBERED: usize = 4;
/// Fewer commands are not worth a graph.
const LEAST: usize = 8;
/// Alignment of each upload's place in pinned memory.
const ALIGNMENT: usize = 16;

/// What happens to commands at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// They are done.
    #[default]
    Passing,
    /// They are done, and kept to be compared.
    Watching,
    /// They are kept, to be done at the end of the scope.
    Deferring,
}

/// The state of a device's scope, and what it knows of earlier ones.
#[derive(Default)]
pub(super) struct Scope {
    mode: Mode,
    is_open: bool,
    commands: Vec<Command>,
    /// Contents of the uploads that were put off, in order.
    uploads: Vec<Box<[u8]>>,
    /// Memory to give to the driver when what was put off is done.
    frees: Vec<u64>,
    expects_repeat: bool,
    /// Most recently seen first.
    known: VecDeque<Known>,
}

struct Known {
    commands: Vec<Command>,
    graph: Option<Graph>,
    /// Whether making a graph of it failed.
    is_hopeless: bool,
}

/// A list of commands that the driver knows as one.
struct Graph {
    executable: sys::CUgraphExec,
    /// Pinned memory that uploads are copied from.
    staging: *mut u8,
    /// How often the host had waited when the graph was last launched.
    launched_at: Option<usize>,
}

// SAFETY: the handles are addresses that only the driver looks behind; the pinned memory is the graph's own, and is
// written under the scope's lock.
unsafe impl Send for Scope {}

impl Graph {
    /// # Safety
    /// The GPU must be past its last launch, and the context current.
    unsafe fn destroy(self) {
        // SAFETY: both are the graph's own, and are given back once.
        unsafe {
            let _ = result::graph::exec_destroy(self.executable);
            let _ = result::free_host(self.staging.cast());
        }
    }
}

impl Scope {
    /// Destroys all graphs, at the end of the device.
    ///
    /// # Safety
    /// The GPU must be past everything it was asked to do, and the context current.
    pub(super) unsafe fn destroy(&mut self) {
        for graph in self.known.drain(..).filter_map(|known| known.graph) {
            // SAFETY: the caller's word.
            unsafe { graph.destroy() };
        }
    }

    pub(super) fn is_deferring(&self) -> bool {
        self.mode == Mode::Deferring
    }

    pub(super) fn keep(&mut self, command: Command) {
        if self.mode != Mode::Passing {
            self.commands.push(command);
        }
    }

    pub(super) fn keep_upload(&mut self, command: Command, contents: &[u8]) {
        self.commands.push(command);
        self.uploads.push(contents.into());
    }

    /// Keeps memory until what was put off is done with it; `false` if nothing is put off.
    pub(super) fn keep_free(&mut self, address: u64) -> bool {
        if self.is_deferring() {
            self.frees.push(address);
        }
        self.is_deferring()
    }

    fn recall(&mut self, commands: &[Command]) -> Option<Known> {
        let found = self.known.iter().position(|known| known.commands == commands)?;
        self.known.remove(found)
    }
}

/// Closes the scope also where work unwinds.
struct Open<'a>(&'a CudaDevice);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // Only where the work unwound: there is an error on its way already.
        let _ = self.0.close();
    }
}

impl CudaDevice {
    /// Runs `work`, which is likely to come again. Within another such scope it is just run.
    ///
    /// # Errors
    /// What `work` reports, and [`crate::Error::Device`] for what was put off and failed.
    pub(in crate::device) fn repeat<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        if !self.options().graphs || std::mem::replace(&mut self.scope().is_open, true) {
            return work();
        }
        {
            let mut scope = self.scope();
            scope.mode = if scope.expects_repeat { Mode::Deferring } else { Mode::Watching };
        }
        // The same free blocks are handed out in the same order.
        self.pool().sort();
        let open = Open(self);
        let outcome = work();
        std::mem::forget(open);
        let closed = self.close();
        let outcome = outcome?;
        closed.map(|()| outcome)
    }

    /// Does what was put off, so that the host can see its results.
    pub(super) fn flush(&self) -> Result<()> {
        let mut scope = self.scope();
        if scope.is_deferring() {
            scope.expects_repeat = false;
            let (commands, uploads) = take(&mut scope);
            let outcome = self.one_by_one(&commands, &uploads);
            self.free_kept(&mut scope)?;
            outcome?;
        }
        // What comes now is no longer comparable.
        scope.mode = Mode::Passing;
        scope.commands.clear();
        Ok(())
    }

    fn close(&self) -> Result<()> {
        let mut scope = self.scope();
        scope.is_open = false;
        let mode = std::mem::take(&mut scope.mode);
        let (commands, uploads) = take(&mut scope);
        if commands.len() < LEAST {
            let outcome = match mode {
                Mode::Deferring => self.one_by_one(&commands, &uploads),
                Mode::Passing | Mode::Watching => Ok(()),
            };
            return outcome.and(self.free_kept(&mut scope));
        }
        let known = scope.recall(&commands);
        scope.expects_repeat = known.is_some();
        let mut known = known.unwrap_or(Known { commands, graph: None, is_hopeless: false });
        let outcome = match mode {
            Mode::Deferring => self.as_graph(&mut known, &uploads, scope.expects_repeat),
            Mode::Passing | Mode::Watching => Ok(()),
        };
        scope.known.push_front(known);
        while scope.known.len() > REMEMBERED
            && let Some(mut oldest) = scope.known.pop_back()
        {
            self.forget(&mut oldest);
        }
        outcome.and(self.free_kept(&mut scope))
    }

    /// Does commands that were put off: as a graph if they came before.
    fn as_graph(&self, known: &mut Known, uploads: &[Box<[u8]>], came_before: bool) -> Result<()> {
        if came_before && known.graph.is_none() && !known.is_hopeless {
            known.graph = self.capture(&known.commands);
            known.is_hopeless = known.graph.is_none();
        }
        let Some(graph) = &mut known.graph else { return self.one_by_one(&known.commands, uploads) };
        let waits = self.synchronizations();
        if graph.launched_at == Some(waits) {
            // The launch before may still be reading what is about to be written.
            self.wait()?;
        }
        for (upload, start) in uploads.iter().zip(places(uploads.iter().map(|upload| upload.len()))) {
            // SAFETY: the staging memory was made for uploads of these lengths, and nothing reads it now.
            unsafe { std::ptr::copy_nonoverlapping(upload.as_ptr(), graph.staging.add(start), upload.len()) };
        }
        self.bind()?;
        // SAFETY: the graph was instantiated on this device; its commands stay within memory that whoever put them
        // off holds, as they would one by one.
        unsafe { result::graph::launch(graph.executable, self.stream()) }
            .map_err(|refused| driver::error("launch a graph", refused))?;
        graph.launched_at = Some(self.synchronizations());
        self.count_graph_launch();
        Ok(())
    }

    fn one_by_one(&self, commands: &[Command], uploads: &[Box<[u8]>]) -> Result<()> {
        let mut uploads = uploads.iter();
        commands.iter().try_for_each(|command| {
            let contents: &[u8] = match command {
                Command::Upload { .. } => uploads.next().map_or(&[], |contents| &**contents),
                _ => &[],
            };
            // SAFETY: whoever put the command off answers for its memory, which is given back only afterwards.
            unsafe { self.execute(command, contents) }
        })
    }

    /// The commands as a graph; nothing if the driver cannot make one of them.
    fn capture(&self, commands: &[Command]) -> Option<Graph> {
        let lengths = commands.iter().filter_map(|command| match command {
            Command::Upload { bytes, .. } => Some(*bytes),
            _ => None,
        });
        let lengths: Vec<usize> = lengths.collect();
        let starts: Vec<usize> = places(lengths.iter().copied()).collect();
        let total = starts.iter().zip(&lengths).map(|(start, length)| start + length).max().unwrap_or(0);
        self.bind().ok()?;
        // SAFETY: an allocation without flags; freed in `forget`.
        let staging: *mut u8 = unsafe { result::malloc_host(total.max(1), 0) }.ok()?.cast();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's, and nothing is put into it but by this thread, which holds the scope's
        // lock. The staging memory has a place for each upload.
        let executable = unsafe {
            let graph = result::stream::begin_capture(self.stream(), mode).ok().and_then(|()| {
                let mut places = starts.iter().zip(&lengths);
                let put = commands.iter().try_for_each(|command| {
                    let contents: &[u8] = match command {
                        Command::Upload { .. } => places
                            .next()
                            .map_or(&[], |(start, length)| std::slice::from_raw_parts(staging.add(*start), *length)),
                        _ => &[],
                    };
                    self.execute(command, contents)
                });
                let graph = result::stream::end_capture(self.stream()).ok()?;
                if put.is_err() {
                    let _ = result::graph::destroy(graph);
                    return None;
                }
                Some(graph)
            });
            graph.and_then(|graph| {
                let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).ok();
                let _ = result::graph::destroy(graph);
                executable
            })
        };
        match executable {
            Some(executable) => Some(Graph { executable, staging, launched_at: None }),
            None => {
                // SAFETY: allocated above, and no graph refers to it.
                let _ = unsafe { result::free_host(staging.cast()) };
                None
            }
        }
    }

    fn forget(&self, known: &mut Known) {
        if let Some(graph) = known.graph.take() {
            // What cannot be reported here shows at the next call.
            let _ = self.wait();
            // SAFETY: the GPU is past its last launch.
            unsafe { graph.destroy() };
        }
    }

    fn free_kept(&self, scope: &mut MutexGuard<'_, Scope>) -> Result<()> {
        std::mem::take(&mut scope.frees).into_iter().try_for_each(|address| self.free_now(address))
    }

    /// How many times a whole list of commands was launched as one graph.
    pub fn graph_launches(&self) -> usize {
        self.0.graph_launches.load(Ordering::Relaxed)
    }

    fn count_graph_launch(&self) {
        self.0.graph_launches.fetch_add(1, Ordering::Relaxed);
    }
}

fn take(scope: &mut Scope) -> (Vec<Command>, Vec<Box<[u8]>>) {
    (std::mem::take(&mut scope.commands), std::mem::take(&mut scope.uploads))
}

/// Where uploads of these lengths lie in pinned memory.
fn places(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    lengths.scan(0, |next, length| {
        let start = *next;
        *next = (start + length).next_multiple_of(ALIGNMENT);
        Some(start)
    })
}
