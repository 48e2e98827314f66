//! The state behind the entry points: one device, its memory, and the tables that handles are looked up in.

use crate::abi::Handle;
use crate::error::{Error, Result};
use crate::graph::{Executable, Graph, GraphMemory};
use crate::memory::{Allocations, Pinned, Pool};
use crate::module::{Function, LoadedModule};
use crate::stream::{Capture, Event, Stream};
use crate::work::Work;
use ptxsim::{Memory, Options};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Device memory where `PTXSIM_MEMORY` says nothing.
const DEFAULT_MEMORY: u64 = 4 << 30;

/// The exit status of a process that leaked, with `PTXSIM_STRICT=1`.
const LEAK_STATUS: i32 = 86;

/// The one context there is.
pub(crate) const PRIMARY_CONTEXT: Handle = 0xc0da_0000_1000;

thread_local! {
    /// The context current on this thread, 0 for none.
    pub(crate) static CURRENT_CONTEXT: Cell<Handle> = const { Cell::new(0) };
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Everything the entry points share.
pub(crate) struct Driver {
    pub(crate) memory: Memory,
    pub(crate) options: Options,
    strict: bool,
    state: Mutex<State>,
    /// Held while work runs: the device does one thing at a time.
    running: Mutex<()>,
    /// The first error that left the device unusable; every later call returns it too, as with the driver.
    fault: AtomicI32,
    leaked: AtomicBool,
}

/// What handles and addresses stand for.
#[derive(Default)]
pub(crate) struct State {
    /// How often the primary context was retained and not yet released.
    pub(crate) context_users: usize,
    pub(crate) streams: Table<Stream>,
    pub(crate) events: Table<Event>,
    pub(crate) captures: HashMap<u64, Capture>,
    pub(crate) next_capture: u64,
    pub(crate) modules: Table<Arc<LoadedModule>>,
    pub(crate) functions: Table<Arc<Function>>,
    pub(crate) graphs: Table<Arc<Graph>>,
    pub(crate) executables: Table<Arc<Executable>>,
    pub(crate) graph_memory: HashMap<u64, Weak<GraphMemory>>,
    pub(crate) pools: Table<Pool>,
    pub(crate) default_pool: Pool,
    pub(crate) allocations: Allocations,
    pub(crate) pinned: BTreeMap<usize, Pinned>,
    pub(crate) limits: HashMap<i32, usize>,
}

/// Values behind handles. A handle is never used twice, so one that was destroyed is noticed.
pub(crate) struct Table<T>(HashMap<Handle, T>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(HashMap::new())
    }
}

impl<T> Table<T> {
    pub(crate) fn insert(&mut self, value: T) -> Handle {
        static NEXT: AtomicUsize = AtomicUsize::new(0xc0da_0001_0000);
        let handle = NEXT.fetch_add(16, Ordering::Relaxed);
        self.0.insert(handle, value);
        handle
    }

    pub(crate) fn get(&self, handle: Handle) -> Result<&T> {
        self.0.get(&handle).ok_or(Error::INVALID_HANDLE)
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Result<&mut T> {
        self.0.get_mut(&handle).ok_or(Error::INVALID_HANDLE)
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Result<T> {
        self.0.remove(&handle).ok_or(Error::INVALID_HANDLE)
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.0.retain(|_, value| keep(value));
    }

    /// The entry under a handle chosen by the caller, made where it is missing.
    pub(crate) fn entry(&mut self, handle: Handle, make: impl FnOnce() -> T) -> &mut T {
        self.0.entry(handle).or_insert_with(make)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.values_mut()
    }
}

/// Locks, whatever became of the thread that held the lock before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `cuInit`: reads the environment, once.
pub(crate) fn initialise() -> Result {
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let driver = Driver::from_environment().map_err(|message| {
        eprintln!("ptxsim: {message}");
        Error::INVALID_VALUE
    })?;
    if DRIVER.set(driver).is_ok() {
        at_exit(report_leaks_at_exit);
    }
    Ok(())
}

/// The driver, once `cuInit` was called.
pub(crate) fn initialised() -> Result<&'static Driver> {
    DRIVER.get().ok_or(Error::NOT_INITIALIZED)
}

/// The driver, for a call that needs a context: one must be current on this thread, alive, and without a fault.
pub(crate) fn in_context() -> Result<&'static Driver> {
    let driver = initialised()?;
    if CURRENT_CONTEXT.get() != PRIMARY_CONTEXT {
        return Err(Error::INVALID_CONTEXT);
    }
    if driver.state().context_users == 0 {
        return Err(Error::CONTEXT_IS_DESTROYED);
    }
    driver.check_fault()?;
    Ok(driver)
}

impl Driver {
    fn from_environment() -> std::result::Result<Driver, String> {
        let flag = |name, default| match number(name)? {
            None => Ok(default),
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(other) => Err(format!("{name}: expected 0 or 1, got {other}")),
        };
        let mut options = Options { checks: flag("PTXSIM_CHECKS", true)?, ..Options::default() };
        options.reverse = flag("PTXSIM_REVERSE", false)?;
        if let Some(threads) = number("PTXSIM_THREADS")? {
            options.threads = (threads as usize).max(1);
        }
        if let Some(budget) = number("PTXSIM_BUDGET")? {
            options.budget = budget;
        }
        Ok(Driver {
            memory: Memory::new(number("PTXSIM_MEMORY")?.unwrap_or(DEFAULT_MEMORY) as usize),
            options,
            strict: flag("PTXSIM_STRICT", false)?,
            state: Mutex::default(),
            running: Mutex::default(),
            fault: AtomicI32::new(0),
            leaked: AtomicBool::new(false),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The fault that an earlier call left behind, if any.
    pub(crate) fn check_fault(&self) -> Result {
        match self.fault.load(Ordering::Acquire) {
            0 => Ok(()),
            code => Err(Error(code)),
        }
    }

    /// Reports an error that leaves the device unusable.
    pub(crate) fn fail(&self, error: Error, report: impl Display) -> Error {
        eprintln!("ptxsim: {report}");
        let _ = self.fault.compare_exchange(0, error.0, Ordering::AcqRel, Ordering::Acquire);
        error
    }

    /// Runs work now. The device does one thing at a time, and nothing once it has failed.
    pub(crate) fn execute(&self, work: &Work) -> Result {
        let _turn = lock(&self.running);
        self.check_fault()?;
        work.run(self)
    }

    /// Reports what is still allocated. After a fault nothing is: the calls that free memory fail from then on.
    fn report_leaks(&self, state: &State, when: &str) {
        if self.check_fault().is_err() {
            return;
        }
        let mut count = 0;
        for leak in state.allocations.describe().chain(state.pinned.values().map(Pinned::describe)) {
            count += 1;
            if count <= 10 {
                eprintln!("ptxsim: leaked {leak} ({when})");
            }
        }
        if count > 10 {
            eprintln!("ptxsim: leaked {count} allocations in all ({when})");
        }
        if count > 0 {
            self.leaked.store(true, Ordering::Release);
        }
    }

    /// Releases the primary context once. The last release reports leaks, and frees everything that the context held.
    pub(crate) fn release_context(&self) -> Result {
        let mut state = self.state();
        state.context_users = state.context_users.checked_sub(1).ok_or(Error::INVALID_CONTEXT)?;
        if state.context_users > 0 {
            return Ok(());
        }
        self.report_leaks(&state, "when the context was released");
        for address in state.allocations.addresses() {
            let _ = self.memory.free(address);
        }
        // Graphs and modules free what they own.
        *state = State::default();
        Ok(())
    }
}

/// The value of an environment variable that holds a number; unset and empty are none.
fn number(name: &str) -> std::result::Result<Option<u64>, String> {
    match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(format!("{name}: expected a whole number, got {text:?}")),
        },
    }
}

extern "C" fn report_leaks_at_exit() {
    let Some(driver) = DRIVER.get() else { return };
    driver.report_leaks(&driver.state(), "when the process ended");
    if driver.strict && driver.leaked.load(Ordering::Acquire) {
        // SAFETY: ends the process; handlers that have not run yet are skipped, as the caller asked for the status.
        unsafe { _exit(LEAK_STATUS) };
    }
}

fn at_exit(handler: extern "C" fn()) {
    // SAFETY: the handler is a function of this library, which is never unloaded (`build.rs`). A full table of handlers
    // costs the report at exit alone.
    unsafe { atexit(handler) };
}

unsafe extern "C" {
    fn atexit(handler: extern "C" fn()) -> i32;
    fn _exit(status: i32) -> !;
}
