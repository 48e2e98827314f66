//! Streams and events: `cuStream*`, `cuEvent*`, and how a stream's work is captured.
//!
//! Work runs when it is submitted, so streams never wait. While a stream is capturing, its work is kept instead, in the
//! order of the calls, which is an order that the dependencies between the capturing streams allow. Those dependencies
//! are followed with a vector clock, to refuse what the driver refuses: a capture that ends before the streams it forked
//! to have joined it again, and a dependency on work outside.

use crate::abi::{Handle, Out, entry_points};
use crate::driver::{Driver, State, in_context, initialised};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::work::{Call, Work};
use std::collections::{HashMap, HashSet};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;

/// `CU_STREAM_LEGACY`, also meant by the null stream.
pub(crate) const LEGACY_STREAM: Handle = 1;
/// `CU_STREAM_PER_THREAD`.
const PER_THREAD_STREAM: Handle = 2;

const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;

/// How far work got in each stream of a capture.
type Clock = HashMap<Handle, u64>;

#[derive(Default)]
pub(crate) struct Stream {
    /// Not created with `CU_STREAM_NON_BLOCKING`: the legacy stream waits for it, and it for the legacy stream.
    blocking: bool,
    capture: Option<u64>,
    /// What this stream's next work comes after, in its capture.
    clock: Clock,
}

pub(crate) struct Event {
    timing: bool,
    recorded: Option<Recorded>,
}

enum Recorded {
    At(Instant),
    InCapture(u64, Clock),
}

/// Work being captured, from one stream or several.
pub(crate) struct Capture {
    origin: Handle,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Work>,
    /// Memory allocated so far, and whether it was freed again.
    pub(crate) memory: HashMap<u64, bool>,
    /// Work captured in each stream.
    progress: Clock,
    /// False once something was refused that the driver would invalidate the capture for.
    valid: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl State {
    fn resolve(&mut self, stream: Handle) -> Handle {
        let stream = if stream == 0 { LEGACY_STREAM } else { stream };
        if stream <= PER_THREAD_STREAM {
            self.streams.entry(stream, || Stream { blocking: true, ..Stream::default() });
        }
        stream
    }

    /// The capture that a stream takes part in, if it does; an invalid one is an error.
    pub(crate) fn active_capture(&mut self, stream: Handle) -> Result<Option<u64>> {
        let stream = self.resolve(stream);
        let capture = self.streams.get(stream)?.capture;
        match capture.and_then(|id| self.captures.get(&id)) {
            Some(capture) if !capture.valid => Err(Error::STREAM_CAPTURE_INVALIDATED),
            _ => Ok(capture),
        }
    }

    /// Refuses a call that waits for the device, or that the driver calls unsafe to make while work is captured: within
    /// reach of a capture, it fails and invalidates that capture.
    pub(crate) fn refuse_during_capture(&mut self) -> Result {
        let thread = std::thread::current().id();
        let mut refused = false;
        for capture in self.captures.values_mut() {
            if capture.mode == Mode::Global || (capture.mode == Mode::ThreadLocal && capture.thread == thread) {
                capture.valid = false;
                refused = true;
            }
        }
        if refused { Err(Error::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    fn invalidate(&mut self, capture: u64, error: Error) -> Error {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.valid = false;
        }
        error
    }

    /// Work in the legacy stream would come after that of a blocking stream, and before it.
    fn refuse_implicit_dependency(&mut self, stream: Handle) -> Result {
        let captures: HashSet<u64> =
            self.streams.values_mut().filter(|stream| stream.blocking).filter_map(|stream| stream.capture).collect();
        if stream != LEGACY_STREAM || captures.is_empty() {
            return Ok(());
        }
        for capture in captures {
            self.invalidate(capture, Error::STREAM_CAPTURE_IMPLICIT);
        }
        Err(Error::STREAM_CAPTURE_IMPLICIT)
    }

    /// Keeps work in a capture, if the stream is capturing; hands it back to be run if not.
    fn capture_or_return(&mut self, stream: Handle, work: Work) -> Result<Option<Work>> {
        let stream = self.resolve(stream);
        let Some(id) = self.active_capture(stream)? else {
            self.refuse_implicit_dependency(stream)?;
            return Ok(Some(work));
        };
        if let Work::ToDevice { from: host, bytes, .. } | Work::ToHost { to: host, bytes, .. } = &work
            && !self.is_pinned(*host, *bytes)
        {
            eprintln!(
                "ptxsim: a copy of {bytes} bytes was captured with host memory at {:#x} that is not pinned: the graph would \
                 use it whenever it is launched, whatever is there by then; take memory from cuMemHostAlloc, or copy \
                 outside the capture",
                host.address()
            );
            return Err(self.invalidate(id, Error::STREAM_CAPTURE_UNSUPPORTED));
        }
        let capture = self.captures.get_mut(&id).ok_or(Error::UNKNOWN)?;
        capture.nodes.push(work);
        let done = capture.progress.entry(stream).or_insert(0);
        *done += 1;
        let done = *done;
        self.streams.get_mut(stream)?.clock.insert(stream, done);
        Ok(None)
    }

    fn begin_capture(&mut self, stream: Handle, mode: c_int) -> Result {
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(Error::INVALID_VALUE),
        };
        let origin = self.resolve(stream);
        if origin == LEGACY_STREAM {
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        let stream = self.streams.get_mut(origin)?;
        if stream.capture.is_some() {
            return Err(Error::ILLEGAL_STATE);
        }
        let id = self.next_capture;
        self.next_capture += 1;
        stream.capture = Some(id);
        stream.clock.clear();
        self.captures.insert(
            id,
            Capture {
                origin,
                mode,
                thread: std::thread::current().id(),
                nodes: Vec::new(),
                memory: HashMap::new(),
                progress: Clock::new(),
                valid: true,
            },
        );
        Ok(())
    }

    /// Ends a capture, of all its streams, and hands back its work and memory.
    fn end_capture(&mut self, stream: Handle, driver: &'static Driver) -> Result<Arc<Graph>> {
        let stream = self.resolve(stream);
        let id = self.streams.get(stream)?.capture.ok_or(Error::ILLEGAL_STATE)?;
        let capture = self.captures.get(&id).ok_or(Error::UNKNOWN)?;
        if capture.origin != stream {
            return Err(self.invalidate(id, Error::STREAM_CAPTURE_UNMATCHED));
        }
        if capture.mode != Mode::Relaxed && capture.thread != std::thread::current().id() {
            return Err(self.invalidate(id, Error::STREAM_CAPTURE_WRONG_THREAD));
        }
        let capture = self.captures.remove(&id).ok_or(Error::UNKNOWN)?;
        let reached = std::mem::take(&mut self.streams.get_mut(stream)?.clock);
        for stream in self.streams.values_mut() {
            if stream.capture == Some(id) {
                stream.capture = None;
                stream.clock.clear();
            }
        }
        let joined = capture.progress.iter().all(|(stream, done)| reached.get(stream) == Some(done));
        // The memory goes with the graph, so it is given back here where there is no graph.
        let graph = Graph::new(driver, self, capture.nodes, capture.memory);
        if !capture.valid {
            return Err(Error::STREAM_CAPTURE_INVALIDATED);
        }
        if !joined {
            return Err(Error::STREAM_CAPTURE_UNJOINED);
        }
        Ok(graph)
    }

    fn record(&mut self, event: Handle, stream: Handle) -> Result {
        let stream = self.resolve(stream);
        let recorded = match self.active_capture(stream)? {
            Some(capture) => Recorded::InCapture(capture, self.streams.get(stream)?.clock.clone()),
            None => Recorded::At(Instant::now()),
        };
        self.events.get_mut(event)?.recorded = Some(recorded);
        Ok(())
    }

    /// Makes a stream wait for an event: nothing to do, but for what it means while work is captured.
    fn wait(&mut self, stream: Handle, event: Handle) -> Result {
        let stream = self.resolve(stream);
        let own = self.active_capture(stream)?;
        match (own, &self.events.get(event)?.recorded) {
            (_, None) | (None, Some(Recorded::At(_))) => Ok(()),
            (Some(own), Some(Recorded::At(_))) => {
                eprintln!(
                    "ptxsim: a capturing stream was made to wait for an event recorded outside the capture; record events \
                     of memory inside the capture alone (cudarc: disable_event_tracking)"
                );
                Err(self.invalidate(own, Error::STREAM_CAPTURE_ISOLATION))
            }
            (own, Some(Recorded::InCapture(other, clock))) => {
                let (other, clock) = (*other, clock.clone());
                if !self.captures.contains_key(&other) {
                    // The capture ended: the event stands for work in a graph, which nothing can wait for.
                    return Err(Error::CAPTURED_EVENT);
                }
                match own {
                    Some(own) if own != other => {
                        self.invalidate(other, Error::STREAM_CAPTURE_MERGE);
                        return Err(self.invalidate(own, Error::STREAM_CAPTURE_MERGE));
                    }
                    None if stream == LEGACY_STREAM => {
                        return Err(self.invalidate(other, Error::STREAM_CAPTURE_IMPLICIT));
                    }
                    _ => {}
                }
                let waiting = self.streams.get_mut(stream)?;
                waiting.capture = Some(other);
                for (stream, done) in clock {
                    let reached = waiting.clock.entry(stream).or_insert(0);
                    *reached = done.max(*reached);
                }
                Ok(())
            }
        }
    }

    /// Whether an event's work is done, which it is unless it is in a graph.
    fn check_done(&self, event: Handle) -> Result {
        match &self.events.get(event)?.recorded {
            Some(Recorded::InCapture(..)) => Err(Error::CAPTURED_EVENT),
            _ => Ok(()),
        }
    }

    /// When a timed event was recorded.
    fn time_of(&self, event: Handle) -> Result<Instant> {
        match self.events.get(event)? {
            Event { timing: true, recorded: Some(Recorded::At(time)) } => Ok(*time),
            Event { recorded: Some(Recorded::InCapture(..)), .. } => Err(Error::CAPTURED_EVENT),
            _ => Err(Error::INVALID_HANDLE),
        }
    }

    /// Waits for a stream: it has nothing left to do, unless it is capturing, when waiting is refused.
    fn wait_for_stream(&mut self, stream: Handle) -> Result {
        let stream = self.resolve(stream);
        match self.active_capture(stream)? {
            Some(capture) => Err(self.invalidate(capture, Error::STREAM_CAPTURE_UNSUPPORTED)),
            None => self.refuse_implicit_dependency(stream),
        }
    }

    /// Memory allocated by a stream that is capturing.
    pub(crate) fn captured_allocation(&mut self, capture: u64, address: u64) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.memory.insert(address, false);
        }
    }

    /// Memory freed by a stream that is capturing: it must have been allocated in the same capture.
    pub(crate) fn captured_free(&mut self, capture: u64, address: u64) -> Result {
        match self.captures.get_mut(&capture).and_then(|capture| capture.memory.get_mut(&address)) {
            _ if address == 0 => Ok(()),
            Some(freed) if !*freed => {
                *freed = true;
                Ok(())
            }
            _ => {
                eprintln!(
                    "ptxsim: cuMemFreeAsync: {address:#x} was not allocated in the capture that frees it; keep memory from \
                     outside until the capture has ended"
                );
                Err(self.invalidate(capture, Error::INVALID_VALUE))
            }
        }
    }
}

/// Runs work, or keeps it where the stream is capturing.
pub(crate) fn submit(stream: Handle, work: Work) -> Result {
    let driver = in_context()?;
    // The table is let go before the work runs: work of another library asks for memory by itself.
    let work = driver.state().capture_or_return(stream, work)?;
    match work {
        Some(work) => driver.execute(&work),
        None => Ok(()),
    }
}

fn create_stream(flags: c_uint) -> Result<Handle> {
    let driver = in_context()?;
    if flags & !NON_BLOCKING != 0 {
        return Err(Error::INVALID_VALUE);
    }
    Ok(driver.state().streams.insert(Stream { blocking: flags & NON_BLOCKING == 0, ..Stream::default() }))
}

entry_points! {
    /// A stream; flags 0 or `CU_STREAM_NON_BLOCKING`.
    fn cuStreamCreate(stream: Out<Handle>, flags: c_uint) {
        stream.set(create_stream(flags)?)
    }

    /// A stream; there is one priority.
    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: c_uint, _priority: c_int) {
        stream.set(create_stream(flags)?)
    }

    /// Destroys a stream that `cuStreamCreate` made.
    fn cuStreamDestroy_v2(stream: Handle) {
        let driver = in_context()?;
        let mut state = driver.state();
        if stream <= PER_THREAD_STREAM {
            return Err(Error::INVALID_HANDLE);
        }
        match state.streams.remove(stream)?.capture {
            Some(capture) => {
                state.invalidate(capture, Error::STREAM_CAPTURE_INVALIDATED);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Waits for a stream's work.
    fn cuStreamSynchronize(stream: Handle) {
        in_context()?.state().wait_for_stream(stream)
    }

    /// Whether a stream's work is done.
    fn cuStreamQuery(stream: Handle) {
        in_context()?.state().wait_for_stream(stream)
    }

    /// Makes a stream wait for an event.
    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) {
        let driver = in_context()?;
        if flags > 1 {
            return Err(Error::INVALID_VALUE);
        }
        driver.state().wait(stream, event)
    }

    /// Runs a function on the host after the stream's work so far. It must make no CUDA calls.
    fn cuLaunchHostFunc(stream: Handle, function: Option<unsafe extern "C" fn(*mut c_void)>, argument: crate::abi::Host) {
        let function = function.ok_or(Error::INVALID_VALUE)?;
        submit(stream, Work::Call(Call { function, argument }))
    }

    /// Starts to keep a stream's work, in place of running it.
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_int) {
        in_context()?.state().begin_capture(stream, mode)
    }

    /// Ends a capture and hands its work back as a graph; null where it fails.
    fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) {
        let driver = in_context()?;
        graph.set(0)?;
        let ended = driver.state().end_capture(stream, driver)?;
        let handle = driver.state().graphs.insert(ended);
        graph.set(handle)
    }

    /// Whether a stream is capturing (1), was and failed (2), or is not (0).
    fn cuStreamIsCapturing(stream: Handle, capturing: Out<c_int>) {
        let driver = in_context()?;
        let mut state = driver.state();
        let status = match state.active_capture(stream) {
            Ok(None) => 0,
            Ok(Some(_)) => 1,
            Err(Error::STREAM_CAPTURE_INVALIDATED) => 2,
            Err(error) => return Err(error),
        };
        capturing.set(status)
    }

    /// An event; of its flags, only whether it keeps time makes a difference.
    fn cuEventCreate(event: Out<Handle>, flags: c_uint) {
        let driver = in_context()?;
        if flags > 7 {
            return Err(Error::INVALID_VALUE);
        }
        event.set(driver.state().events.insert(Event { timing: flags & DISABLE_TIMING == 0, recorded: None }))
    }

    /// Destroys an event.
    fn cuEventDestroy_v2(event: Handle) {
        in_context()?.state().events.remove(event).map(drop)
    }

    /// Records what a stream has done so far.
    fn cuEventRecord(event: Handle, stream: Handle) {
        in_context()?.state().record(event, stream)
    }

    /// Waits for an event.
    fn cuEventSynchronize(event: Handle) {
        in_context()?.state().check_done(event)
    }

    /// Whether an event's work is done.
    fn cuEventQuery(event: Handle) {
        let driver = initialised()?;
        driver.check_fault()?;
        driver.state().check_done(event)
    }

    /// Milliseconds between two events, on the host's clock: what the interpreter took.
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        let driver = initialised()?;
        driver.check_fault()?;
        let state = driver.state();
        let (start, end) = (state.time_of(start)?, state.time_of(end)?);
        // Events may be given in either order.
        let forward = end.saturating_duration_since(start).as_secs_f64();
        let backward = start.saturating_duration_since(end).as_secs_f64();
        milliseconds.set(((forward - backward) * 1e3) as f32)
    }

    /// As `cuEventElapsedTime`.
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        // SAFETY: the caller's promises are those that `cuEventElapsedTime` asks for.
        let code = unsafe { cuEventElapsedTime(milliseconds, start, end) };
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }
}
