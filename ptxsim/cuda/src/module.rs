//! Modules and their functions: `cuModule*`, `cuFunc*`, `cuOccupancy*`.

use crate::abi::{Handle, Host, Name, Out, entry_points};
use crate::device;
use crate::driver::{Driver, in_context, initialised, lock};
use crate::error::{Error, Result};
use ptxsim::{Kernel, Kind, Launch, Module};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// The newest PTX version that the driver takes: CUDA 12.8's.
const PTX_VERSION: (u32, u32) = (8, 7);

/// A module, as `cuModuleLoadData` left it.
pub(crate) struct LoadedModule {
    driver: &'static Driver,
    module: Module,
    /// Set by `cuModuleUnload`; graphs may still know its functions then.
    unloaded: AtomicBool,
    /// Handles given out: a function has one, so its attributes are shared.
    functions: Mutex<HashMap<String, Handle>>,
}

impl Drop for LoadedModule {
    fn drop(&mut self) {
        self.driver.memory.detach(&self.module);
    }
}

/// A kernel and its attributes.
pub(crate) struct Function {
    module: Arc<LoadedModule>,
    name: String,
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
    max_dynamic_shared: AtomicU32,
    /// `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`.
    carveout: AtomicI32,
}

impl Function {
    /// The kernel, unless its module was unloaded.
    pub(crate) fn kernel(&self) -> Result<&Kernel> {
        if self.module.unloaded.load(Ordering::Acquire) {
            return Err(Error::INVALID_HANDLE);
        }
        self.module.module.kernel(&self.name).ok_or(Error::INVALID_HANDLE)
    }

    pub(crate) fn max_dynamic_shared(&self) -> u32 {
        self.max_dynamic_shared.load(Ordering::Relaxed)
    }

    /// Runs the kernel; a report leaves the device unusable.
    pub(crate) fn run(&self, driver: &Driver, launch: &Launch, parameters: &[u8]) -> Result {
        let kernel = self.kernel()?;
        match ptxsim::run(kernel, launch, parameters, &driver.memory, &driver.options) {
            Ok(_) => Ok(()),
            Err(report) if matches!(report.kind, Kind::Geometry | Kind::Parameters) => {
                eprintln!("ptxsim: {report}");
                Err(Error::INVALID_VALUE)
            }
            Err(report) => Err(driver.fail(fault_code(report.kind), report)),
        }
    }

    fn attribute(&self, attribute: c_int) -> Result<c_int> {
        let kernel = self.kernel()?;
        Ok(match attribute {
            0 => kernel.max_threads() as c_int,
            1 => kernel.static_shared() as c_int,
            // Constant and local memory; registers, which PTX does not know.
            2..=4 => 0,
            5 | 6 => device::COMPUTE_CAPABILITY as c_int,
            7 => 0,
            8 => self.max_dynamic_shared() as c_int,
            9 => self.carveout.load(Ordering::Relaxed),
            10..=15 => 0,
            _ => return Err(Error::INVALID_VALUE),
        })
    }

    fn set_attribute(&self, attribute: c_int, value: c_int) -> Result {
        let kernel = self.kernel()?;
        match attribute {
            8 => {
                let limit = device::SHARED_PER_BLOCK_OPTIN.saturating_sub(kernel.static_shared() as u32);
                let bytes = u32::try_from(value).ok().filter(|bytes| *bytes <= limit).ok_or(Error::INVALID_VALUE)?;
                self.max_dynamic_shared.store(bytes, Ordering::Relaxed);
            }
            9 if (-1..=100).contains(&value) => self.carveout.store(value, Ordering::Relaxed),
            10..=15 => return Err(Error::NOT_SUPPORTED),
            _ => return Err(Error::INVALID_VALUE),
        }
        Ok(())
    }

    /// Blocks that fit a multiprocessor at once, by threads and shared memory: PTX does not know registers.
    fn blocks_per_multiprocessor(&self, threads: u32, dynamic_shared: usize) -> Result<u32> {
        let kernel = self.kernel()?;
        if threads == 0 {
            return Err(Error::INVALID_VALUE);
        }
        if threads > kernel.max_threads() || dynamic_shared > self.max_dynamic_shared() as usize {
            return Ok(0);
        }
        let warps = threads.div_ceil(device::WARP_SIZE);
        let by_threads = device::MAX_THREADS_PER_MULTIPROCESSOR / device::WARP_SIZE / warps;
        let shared = kernel.static_shared() as u32 + dynamic_shared as u32 + device::SHARED_RESERVED;
        let by_shared = device::SHARED_PER_MULTIPROCESSOR / shared;
        Ok(by_threads.min(by_shared).min(device::MAX_BLOCKS_PER_MULTIPROCESSOR))
    }
}

/// What a GPU would say to this fault, where it noticed.
fn fault_code(kind: Kind) -> Error {
    match kind {
        Kind::Misaligned => Error::MISALIGNED_ADDRESS,
        Kind::Budget => Error::LAUNCH_TIMEOUT,
        Kind::Race | Kind::AsyncCopy | Kind::Divergence | Kind::Trap => Error::LAUNCH_FAILED,
        _ => Error::ILLEGAL_ADDRESS,
    }
}

/// A refused module: the code, and what the compiler's log says.
struct Refusal(Error, String);

/// Parses PTX, after the checks that the driver makes before it compiles.
fn load(driver: &'static Driver, text: &str) -> std::result::Result<LoadedModule, Refusal> {
    let directive = |name| {
        let line = text.lines().map(str::trim_start).find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.split("//").next().unwrap_or_default().trim())
            .ok_or_else(|| Refusal(Error::INVALID_PTX, format!("the PTX has no {name} line")))
    };
    let version = directive(".version")?;
    let numbers = version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match numbers {
        Some(numbers) if numbers <= PTX_VERSION => {}
        Some(_) => {
            let (major, minor) = PTX_VERSION;
            let text =
                format!("the PTX has .version {version}, newer than {major}.{minor}, the newest that is supported");
            return Err(Refusal(Error::UNSUPPORTED_PTX_VERSION, text));
        }
        None => {
            return Err(Refusal(Error::INVALID_PTX, format!("the PTX has .version {version:?}, which is no version")));
        }
    }
    let target = directive(".target")?.split(',').next().unwrap_or_default().trim();
    let digits = target.strip_prefix("sm_").unwrap_or_default();
    // sm_90a and the like run on that one architecture; this device has compute capability 8.0.
    match digits.parse::<u32>() {
        Ok(capability) if capability <= device::COMPUTE_CAPABILITY => {}
        _ => {
            let text = format!("the PTX is for {target}, and the device is of sm_{}", device::COMPUTE_CAPABILITY);
            return Err(Refusal(Error::NO_BINARY_FOR_GPU, text));
        }
    }
    let module = Module::parse(text).map_err(|error| Refusal(Error::INVALID_PTX, error.to_string()))?;
    driver.memory.attach(&module);
    Ok(LoadedModule { driver, module, unloaded: AtomicBool::new(false), functions: Mutex::default() })
}

/// The text of an image: PTX that ends with a zero byte. Compiled code is for other devices.
fn image_text<'a>(image: *const c_char) -> std::result::Result<&'a str, Refusal> {
    if image.is_null() {
        return Err(Refusal(Error::INVALID_VALUE, "the module's image is null".into()));
    }
    // SAFETY: the caller promises an image: PTX up to a zero byte, or a cubin or fat binary, which start with four bytes
    // that are not zero and no PTX.
    let bytes = unsafe { CStr::from_ptr(image) }.to_bytes();
    if bytes.starts_with(b"\x7fELF") || bytes.starts_with(&0xba55_ed50_u32.to_le_bytes()) {
        return Err(Refusal(Error::NO_BINARY_FOR_GPU, "the module is compiled code; the stand-in runs PTX".into()));
    }
    std::str::from_utf8(bytes).map_err(|_| Refusal(Error::INVALID_IMAGE, "the module's image is no text".into()))
}

fn load_image(image: *const c_char) -> std::result::Result<Handle, Refusal> {
    let driver = in_context().map_err(|error| Refusal(error, "there is no context to load a module in".into()))?;
    let module = load(driver, image_text(image)?)?;
    let handle = driver.state().modules.insert(Arc::new(module));
    Ok(handle)
}

impl Refusal {
    fn report(self) -> Error {
        eprintln!("ptxsim: loading a module: {}", self.1);
        self.0
    }
}

/// Options of `cuModuleLoadDataEx`: two arrays of the same length.
struct Options {
    keys: *const c_int,
    values: *mut Host,
    count: usize,
}

impl Options {
    /// Writes a log into the buffer that the options name, cut to its size, and the length it has then.
    ///
    /// # Safety
    /// The arrays have `count` elements; buffers are as long as the options say.
    unsafe fn log(&self, buffer_key: c_int, size_key: c_int, text: &str) {
        if self.count == 0 || self.keys.is_null() || self.values.is_null() {
            return;
        }
        // SAFETY: promised by the caller.
        let keys = unsafe { std::slice::from_raw_parts(self.keys, self.count) };
        // SAFETY: promised by the caller.
        let values = unsafe { std::slice::from_raw_parts_mut(self.values, self.count) };
        let place = |key| keys.iter().position(|other| *other == key);
        let (Some(buffer), Some(size)) = (place(buffer_key), place(size_key)) else { return };
        let capacity = values[size].address() as u32 as usize;
        let length = text.len().min(capacity.saturating_sub(1));
        // SAFETY: promised by the caller.
        if let Ok(bytes) = unsafe { values[buffer].bytes_mut(capacity) }
            && capacity > 0
        {
            bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
            bytes[length] = 0;
        }
        values[size] = Host::at(length);
    }
}

fn function(handle: Handle) -> Result<Arc<Function>> {
    Ok(initialised()?.state().functions.get(handle)?.clone())
}

entry_points! {
    /// Loads PTX that ends with a zero byte.
    fn cuModuleLoadData(module: Out<Handle>, image: *const c_char) {
        module.set(load_image(image).map_err(Refusal::report)?)
    }

    /// As `cuModuleLoadData`. Of the options, the logs are filled; the others change no result.
    fn cuModuleLoadDataEx(
        module: Out<Handle>,
        image: *const c_char,
        count: c_uint,
        keys: *const c_int,
        values: *mut Host,
    ) {
        let options = Options { keys, values, count: count as usize };
        let loaded = load_image(image);
        let text = loaded.as_ref().err().map_or("", |refusal| &refusal.1);
        // SAFETY: the caller promises arrays of `count` options, and buffers as long as those say.
        unsafe {
            options.log(3, 4, "");
            options.log(5, 6, text);
        }
        module.set(loaded.map_err(Refusal::report)?)
    }

    /// Loads PTX from a file.
    fn cuModuleLoad(module: Out<Handle>, path: Name) {
        let driver = in_context()?;
        let text = std::fs::read_to_string(path.text()?).map_err(|_| Error::FILE_NOT_FOUND)?;
        let loaded = load(driver, text.trim_end_matches('\0')).map_err(Refusal::report)?;
        let handle = driver.state().modules.insert(Arc::new(loaded));
        module.set(handle)
    }

    /// Unloads a module: its functions are gone with it.
    fn cuModuleUnload(module: Handle) {
        let driver = in_context()?;
        let mut state = driver.state();
        let module = state.modules.remove(module)?;
        module.unloaded.store(true, Ordering::Release);
        state.functions.retain(|function| !Arc::ptr_eq(&function.module, &module));
        Ok(())
    }

    /// A kernel of a module, by name.
    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Name) {
        let driver = initialised()?;
        driver.check_fault()?;
        let mut state = driver.state();
        let module = state.modules.get(module)?.clone();
        let name = name.text()?;
        let kernel = module.module.kernel(name).ok_or(Error::NOT_FOUND)?;
        let mut known = lock(&module.functions);
        if let Some(handle) = known.get(name) {
            return function.set(*handle);
        }
        let shared = device::SHARED_PER_BLOCK.saturating_sub(kernel.static_shared() as u32);
        let handle = state.functions.insert(Arc::new(Function {
            module: module.clone(),
            name: name.to_string(),
            max_dynamic_shared: AtomicU32::new(shared),
            carveout: AtomicI32::new(-1),
        }));
        known.insert(name.to_string(), handle);
        function.set(handle)
    }

    /// How many kernels a module has.
    fn cuModuleGetFunctionCount(count: Out<c_uint>, module: Handle) {
        let module = initialised()?.state().modules.get(module)?.clone();
        count.set(module.module.kernels().count() as c_uint)
    }

    /// Where a `__device__` or `__constant__` variable is, and its size.
    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Name) {
        let module = initialised()?.state().modules.get(module)?.clone();
        let found = module.module.global(name.text()?).ok_or(Error::NOT_FOUND)?;
        address.set_if_wanted(found.0);
        bytes.set_if_wanted(found.1);
        Ok(())
    }

    /// An attribute of a function.
    fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, handle: Handle) {
        value.set(function(handle)?.attribute(attribute)?)
    }

    /// Sets how much dynamic shared memory launches may ask for, or the preferred share of it.
    fn cuFuncSetAttribute(handle: Handle, attribute: c_int, value: c_int) {
        function(handle)?.set_attribute(attribute, value)
    }

    /// A preference between shared memory and cache, which changes no result.
    fn cuFuncSetCacheConfig(handle: Handle, _config: c_int) {
        function(handle).map(drop)
    }

    /// Where a parameter lies in the parameter buffer, and its size; an index past the last is an invalid argument.
    fn cuFuncGetParamInfo(handle: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let function = function(handle)?;
        let parameter = function.kernel()?.params().get(index).ok_or(Error::INVALID_VALUE)?;
        offset.set(parameter.offset)?;
        size.set_if_wanted(parameter.size);
        Ok(())
    }

    /// Blocks of a size that fit a multiprocessor at once. Registers are left out: PTX does not know them.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<c_int>, handle: Handle, threads: c_int, shared: usize) {
        let threads = u32::try_from(threads).map_err(|_| Error::INVALID_VALUE)?;
        blocks.set(function(handle)?.blocks_per_multiprocessor(threads, shared)? as c_int)
    }

    /// As above; the flags are about caches.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<c_int>,
        handle: Handle,
        threads: c_int,
        shared: usize,
        _flags: c_uint,
    ) {
        let threads = u32::try_from(threads).map_err(|_| Error::INVALID_VALUE)?;
        blocks.set(function(handle)?.blocks_per_multiprocessor(threads, shared)? as c_int)
    }
}
