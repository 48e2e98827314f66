//! Launches: `cuLaunchKernel` and its kin.
//!
//! A launch that the driver would refuse is refused with the driver's code, and a line on stderr that says why, which the
//! driver has not.

use crate::abi::{Handle, entry_points};
use crate::device;
use crate::driver::in_context;
use crate::error::{Error, Result};
use crate::module::Function;
use crate::stream::submit;
use crate::work::Work;
use ptxsim::{Kernel, Launch};
use std::ffi::{c_uint, c_void};
use std::sync::Arc;

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: Handle,
    attributes: *const LaunchAttribute,
    attribute_count: c_uint,
}

/// `CUlaunchAttribute`: a key, padded to 8 bytes, and a value of 64.
#[repr(C)]
pub struct LaunchAttribute {
    key: c_uint,
    _padding: c_uint,
    value: [u64; 8],
}

/// Attributes that change no result: priorities, cache hints, memory domains and the like. Not among them: clusters (4).
const HARMLESS_ATTRIBUTES: &[c_uint] = &[0, 1, 2, 3, 6, 8, 9, 10, 14, 15];

/// The keys of `extra`.
const BUFFER_POINTER: usize = 1;
const BUFFER_SIZE: usize = 2;

/// How a launch gives its arguments: `values` has a pointer for each parameter, or `extra` a buffer for all.
struct Arguments {
    values: *const *const u8,
    extra: *const usize,
}

impl Arguments {
    /// The parameter buffer.
    ///
    /// # Safety
    /// `values` has as many pointers as the kernel has parameters, each to a value of the parameter's size; `extra` ends
    /// with 0 and names a buffer of the size that it says.
    unsafe fn buffer(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut buffer = vec![0; kernel.param_bytes()];
        if buffer.is_empty() {
            return Ok(buffer);
        }
        match (self.values.is_null(), self.extra.is_null()) {
            (false, true) => {
                for (index, parameter) in kernel.params().iter().enumerate() {
                    // SAFETY: promised by the caller.
                    let value = unsafe { *self.values.add(index) };
                    if value.is_null() {
                        return refuse(
                            kernel,
                            format!("argument {index} is a null pointer; expected the address of a value"),
                        );
                    }
                    let (offset, size) = (parameter.offset, parameter.size);
                    // SAFETY: promised by the caller.
                    buffer[offset..offset + size].copy_from_slice(unsafe { std::slice::from_raw_parts(value, size) });
                }
                Ok(buffer)
            }
            (true, false) => {
                // SAFETY: promised by the caller.
                let given = unsafe { self.extra_buffer() }?;
                if given.len() != buffer.len() {
                    let (got, expected) = (given.len(), buffer.len());
                    return refuse(
                        kernel,
                        format!("its parameter buffer has {got} bytes, the kernel takes {expected}"),
                    );
                }
                Ok(given.to_vec())
            }
            (true, true) => refuse(kernel, format!("no arguments; the kernel takes {}", kernel.params().len())),
            (false, false) => {
                refuse(kernel, "arguments both as pointers and as a buffer; expected one of the two".into())
            }
        }
    }

    /// # Safety
    /// As for `buffer`.
    unsafe fn extra_buffer<'a>(&self) -> Result<&'a [u8]> {
        let (mut address, mut size) = (None, None);
        let mut at = self.extra;
        loop {
            // SAFETY: the list ends with 0, which stops the loop, and every other key has a value.
            let (key, value) = unsafe { (*at, if *at == 0 { 0 } else { *at.add(1) }) };
            match key {
                0 => break,
                BUFFER_POINTER => address = Some(value),
                // SAFETY: the value of this key points to a size.
                BUFFER_SIZE => size = Some(unsafe { *(value as *const usize) }),
                _ => return Err(Error::INVALID_VALUE),
            }
            // SAFETY: as above.
            at = unsafe { at.add(2) };
        }
        match (address, size) {
            (Some(address), Some(size)) if address != 0 => {
                // SAFETY: promised by the caller.
                Ok(unsafe { std::slice::from_raw_parts(address as *const u8, size) })
            }
            _ => Err(Error::INVALID_VALUE),
        }
    }
}

fn refuse<T>(kernel: &Kernel, why: String) -> Result<T> {
    eprintln!("ptxsim: launching {}: {why}", kernel.name());
    Err(Error::INVALID_VALUE)
}

/// What the driver checks before it launches.
fn check(function: &Function, kernel: &Kernel, launch: &Launch) -> Result {
    let Launch { grid, block, dynamic_shared } = launch;
    let within =
        |size: &[u32; 3], limit: [u32; 3]| size.iter().zip(limit).all(|(size, limit)| (1..=limit).contains(size));
    if !within(grid, device::MAX_GRID) {
        return refuse(kernel, format!("grid {grid:?}; expected 1 to {:?} blocks", device::MAX_GRID));
    }
    let threads = block.iter().map(|extent| u64::from(*extent)).product::<u64>();
    let limit = kernel.max_threads();
    if !within(block, device::MAX_BLOCK) || threads > u64::from(limit) {
        let most = device::MAX_BLOCK;
        return refuse(kernel, format!("block {block:?}; expected 1 to {most:?} threads, and at most {limit} in all"));
    }
    let most = function.max_dynamic_shared();
    if *dynamic_shared > most {
        let why = format!(
            "{dynamic_shared} bytes of dynamic shared memory, where {most} are allowed; set \
             CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, up to {} less the {} bytes of static shared memory",
            device::SHARED_PER_BLOCK_OPTIN,
            kernel.static_shared()
        );
        return refuse(kernel, why);
    }
    Ok(())
}

/// # Safety
/// As for `Arguments::buffer`, of the kernel behind `function`.
unsafe fn launch(function: Handle, launch: Launch, stream: Handle, arguments: Arguments) -> Result {
    let driver = in_context()?;
    let function: Arc<Function> = driver.state().functions.get(function)?.clone();
    let kernel = function.kernel()?;
    check(&function, kernel, &launch)?;
    // SAFETY: promised by the caller.
    let parameters = unsafe { arguments.buffer(kernel) }?;
    submit(stream, Work::Kernel { function: function.clone(), launch, parameters })
}

entry_points! {
    /// Launches a kernel. `arguments` has a pointer for each parameter: their number cannot be checked here.
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: Handle,
        arguments: *const *const u8,
        extra: *const usize,
    ) {
        let config = Launch {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared: shared_bytes,
        };
        // SAFETY: the caller promises arguments that fit the kernel.
        unsafe { launch(function, config, stream, Arguments { values: arguments, extra }) }
    }

    /// As `cuLaunchKernel`, with a configuration that may have attributes.
    fn cuLaunchKernelEx(
        config: *const LaunchConfig,
        function: Handle,
        arguments: *const *const u8,
        extra: *const usize,
    ) {
        // SAFETY: the caller promises null or a configuration.
        let config = unsafe { config.as_ref() }.ok_or(Error::INVALID_VALUE)?;
        if config.attribute_count > 0 {
            if config.attributes.is_null() {
                return Err(Error::INVALID_VALUE);
            }
            // SAFETY: the configuration has that many attributes.
            let attributes = unsafe { std::slice::from_raw_parts(config.attributes, config.attribute_count as usize) };
            if let Some(attribute) = attributes.iter().find(|attribute| !HARMLESS_ATTRIBUTES.contains(&attribute.key)) {
                eprintln!("ptxsim: cuLaunchKernelEx: launch attribute {} is not supported", attribute.key);
                return Err(Error::NOT_SUPPORTED);
            }
        }
        let launch_config = Launch { grid: config.grid, block: config.block, dynamic_shared: config.shared_bytes };
        // SAFETY: the caller promises arguments that fit the kernel.
        unsafe { launch(function, launch_config, config.stream, Arguments { values: arguments, extra }) }
    }

    /// Blocks that wait for each other: the interpreter runs a block to its end, so it cannot.
    fn cuLaunchCooperativeKernel(
        _function: Handle,
        _grid_x: c_uint,
        _grid_y: c_uint,
        _grid_z: c_uint,
        _block_x: c_uint,
        _block_y: c_uint,
        _block_z: c_uint,
        _shared_bytes: c_uint,
        _stream: Handle,
        _arguments: *const *const c_void,
    ) {
        in_context()?;
        eprintln!("ptxsim: cuLaunchCooperativeKernel is not supported: blocks run one after the other");
        Err(Error::NOT_SUPPORTED)
    }
}
