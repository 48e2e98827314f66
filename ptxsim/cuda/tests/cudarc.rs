//! cudarc, as it is, over the stand-in driver.
//!
//! A device that has failed stays so, and the environment is read once: what needs a process of its own is a test
//! marked `ignore`, run by another test as a child.

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, PinnedHostSlice, result};
use ptxsim::standin::{self, Library};
use std::ffi::{CString, c_void};
use std::process::Command;
use std::sync::{Arc, Once};

const PTX: &str = include_str!("kernels.ptx");

/// A context of the stand-in, with no tracking of events: all work is in one stream.
fn context() -> Arc<CudaContext> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // A child that is to find the library by itself has it in its path.
        if std::env::var_os("LD_LIBRARY_PATH").is_none_or(|path| !path.to_string_lossy().contains("ptxsim-cuda")) {
            standin::install(&[Library::Cuda]).unwrap();
        }
    });
    let context = CudaContext::new(0).unwrap();
    // SAFETY: each test uses one stream.
    unsafe { context.disable_event_tracking() };
    context
}

/// A module loaded from PTX text, and unloaded with the value.
struct Module(sys::CUmodule);

impl Module {
    fn load(text: &str) -> Result<Module, DriverError> {
        let text = CString::new(text).unwrap();
        // SAFETY: the text ends with a zero byte.
        unsafe { result::module::load_data(text.as_ptr().cast()) }.map(Module)
    }

    fn function(&self, name: &str) -> Result<sys::CUfunction, DriverError> {
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.0, CString::new(name).unwrap()) }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once. After a fault this fails, which is no matter.
        let _ = unsafe { result::module::unload(self.0) };
    }
}

/// Launches with arguments that live until the call is done.
fn launch(
    stream: &CudaStream,
    function: sys::CUfunction,
    (grid, block, shared): (u32, u32, u32),
    arguments: &mut [*mut c_void],
) -> Result<(), DriverError> {
    // SAFETY: every argument points to a value of its parameter's type.
    unsafe { result::launch_kernel(function, (grid, 1, 1), (block, 1, 1), shared, stream.cu_stream(), arguments) }
}

/// y = a x + y.
fn saxpy(
    stream: &CudaStream,
    module: &Module,
    mut a: f32,
    mut x: u64,
    mut y: u64,
    mut n: i32,
) -> Result<(), DriverError> {
    let function = module.function("saxpy")?;
    let mut arguments = [(&raw mut a).cast(), (&raw mut x).cast(), (&raw mut y).cast(), (&raw mut n).cast()];
    launch(stream, function, ((n as u32).div_ceil(128), 128, 0), &mut arguments)
}

/// Device memory that is freed with the value.
struct Buffer<'a>(u64, &'a CudaStream);

impl<'a> Buffer<'a> {
    fn new(stream: &'a CudaStream, bytes: usize) -> Buffer<'a> {
        // SAFETY: the stream's context is current.
        Buffer(unsafe { result::malloc_async(stream.cu_stream(), bytes) }.unwrap(), stream)
    }

    fn of<T>(stream: &'a CudaStream, values: &[T]) -> Buffer<'a> {
        let buffer = Buffer::new(stream, size_of_val(values));
        // SAFETY: the buffer has the bytes of `values`, which are copied before the call returns.
        unsafe { result::memcpy_htod_async(buffer.0, values, stream.cu_stream()) }.unwrap();
        buffer
    }

    fn read<T: Clone + Default>(&self, count: usize) -> Result<Vec<T>, DriverError> {
        let mut values = vec![T::default(); count];
        // SAFETY: the copy is checked, and done before the call returns.
        unsafe { result::memcpy_dtoh_async(&mut values, self.0, self.1.cu_stream()) }?;
        Ok(values)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        let _ = unsafe { result::free_async(self.0, self.1.cu_stream()) };
    }
}

fn code<T>(result: Result<T, DriverError>) -> CUresult {
    result.map(drop).map_or_else(|error| error.0, |()| CUresult::CUDA_SUCCESS)
}

#[test]
fn describes_the_device() {
    let context = context();
    assert_eq!(CudaContext::device_count().unwrap(), 1);
    assert_eq!(context.name().unwrap(), "ptxsim");
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    assert!(context.has_async_alloc());
    let attribute = |attribute| context.attribute(attribute).unwrap();
    assert_eq!(attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE), 32);
    assert_eq!(attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN), 163 << 10);
    let (free, total) = context.mem_get_info().unwrap();
    assert!(0 < free && free <= total && total == context.total_mem().unwrap());
    assert_eq!(code(CudaContext::new(1)), CUresult::CUDA_ERROR_INVALID_DEVICE);
    let error = DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(error.error_name().unwrap().to_str(), Ok("CUDA_ERROR_ILLEGAL_ADDRESS"));
    assert_eq!(error.error_string().unwrap().to_str(), Ok("an illegal memory access was encountered"));
}

#[test]
fn copies_and_fills() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let numbers: Vec<u32> = (0..1000).collect();
    let mut on_device = stream.clone_htod(&numbers).unwrap();
    let copy = stream.clone_dtod(&on_device).unwrap();
    stream.memset_zeros(&mut on_device).unwrap();
    assert_eq!(stream.clone_dtoh(&on_device).unwrap(), [0; 1000]);
    assert_eq!(stream.clone_dtoh(&copy.slice(10..20)).unwrap(), numbers[10..20]);
    let buffer = Buffer::new(&stream, 16);
    // SAFETY: 4 elements of 4 bytes.
    unsafe { sys::cuMemsetD32Async(buffer.0, 0x0102_0304, 4, stream.cu_stream()) }.result().unwrap();
    assert_eq!(buffer.read::<u32>(4).unwrap(), [0x0102_0304; 4]);
    // Addresses that are no memory are refused, and nothing else is wrong afterwards.
    assert_eq!(code(buffer.read::<u32>(5)), CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: refused, as nothing is allocated there.
    let freed = unsafe { result::free_async(buffer.0 + 4, stream.cu_stream()) };
    assert_eq!(code(freed), CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: no bytes.
    assert_eq!(unsafe { result::malloc_async(stream.cu_stream(), 0) }.unwrap(), 0);
    // SAFETY: refused.
    assert_eq!(code(unsafe { result::malloc_sync(0) }), CUresult::CUDA_ERROR_INVALID_VALUE);
    context.synchronize().unwrap();
}

#[test]
fn launches_kernels_of_a_module() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = Module::load(PTX).unwrap();
    let x = Buffer::of(&stream, &(0..1000).map(|i| i as f32).collect::<Vec<_>>());
    let y = Buffer::of(&stream, &[1f32; 1000]);
    saxpy(&stream, &module, 2.0, x.0, y.0, 1000).unwrap();
    let values: Vec<f32> = y.read(1000).unwrap();
    assert!(values.iter().enumerate().all(|(i, value)| *value == 2.0 * i as f32 + 1.0));
    assert_eq!(code(module.function("absent")), CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn describes_parameters() {
    let _context = context();
    let module = Module::load(PTX).unwrap();
    let function = module.function("saxpy").unwrap();
    let parameter = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is one of a loaded module.
        unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut size) }.result().map(|()| (offset, size))
    };
    assert_eq!([0, 1, 2, 3].map(|index| parameter(index).unwrap()), [(0, 4), (8, 8), (16, 8), (24, 4)]);
    assert_eq!(code(parameter(4)), CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn reaches_variables_of_a_module() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = Module::load(PTX).unwrap();
    // SAFETY: the module is loaded.
    let get = |name| unsafe { result::module::get_global(module.0, CString::new(name).unwrap()) };
    let (table, bytes) = get("table").unwrap();
    assert_eq!(bytes, 16);
    assert_eq!(code(get("absent")), CUresult::CUDA_ERROR_NOT_FOUND);
    // SAFETY: the table has 4 elements.
    unsafe { result::memcpy_htod_async(table, &[1f32, 2.0, 3.0, 4.0], stream.cu_stream()) }.unwrap();
    let y = Buffer::new(&stream, 8 * 4);
    let (mut address, mut n) = (y.0, 8i32);
    let mut arguments = [(&raw mut address).cast(), (&raw mut n).cast()];
    launch(&stream, module.function("look_up").unwrap(), (1, 32, 0), &mut arguments).unwrap();
    assert_eq!(y.read::<f32>(8).unwrap(), [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn refuses_wrong_launches() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = Module::load(PTX).unwrap();
    let function = module.function("reverse").unwrap();
    let y = Buffer::of(&stream, &(0..256).collect::<Vec<i32>>());
    let run = |grid, block, shared| {
        let mut address = y.0;
        code(launch(&stream, function, (grid, block, shared), &mut [(&raw mut address).cast()]))
    };
    assert_eq!(run(0, 32, 128), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(run(1, 0, 128), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(run(1, 512, 2048), CUresult::CUDA_ERROR_INVALID_VALUE, "more threads than __launch_bounds__ says");
    assert_eq!(run(1, 256, 49 << 10), CUresult::CUDA_ERROR_INVALID_VALUE, "more shared memory than asked for");
    let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is one of a loaded module.
    let set = |bytes| code(unsafe { result::function::set_function_attribute(function, limit, bytes) });
    assert_eq!(set(164 << 10), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(set(64 << 10), CUresult::CUDA_SUCCESS);
    assert_eq!(run(1, 256, 49 << 10), CUresult::CUDA_SUCCESS);
    assert_eq!(y.read::<i32>(256).unwrap(), (0..256).rev().collect::<Vec<_>>());
    let null = std::ptr::null_mut();
    assert_eq!(code(launch(&stream, function, (1, 32, 128), &mut [null])), CUresult::CUDA_ERROR_INVALID_VALUE);
    let no_function = 0x1234 as sys::CUfunction;
    assert_eq!(code(launch(&stream, no_function, (1, 32, 0), &mut [])), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn refuses_modules_for_other_devices() {
    let _context = context();
    let load = |from: &str, to: &str| {
        assert!(PTX.contains(from));
        code(Module::load(&PTX.replace(from, to)))
    };
    assert_eq!(load(".version 7.1", ".version 9.9"), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert_eq!(load(".target sm_80", ".target sm_90"), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(load("fma.rn.f32", "frobnicate.f32"), CUresult::CUDA_ERROR_INVALID_PTX);
    assert_eq!(code(Module::load("no PTX")), CUresult::CUDA_ERROR_INVALID_PTX);
}

#[test]
fn logs_what_is_wrong_with_a_module() {
    let _context = context();
    let text = CString::new(PTX.replace("fma.rn.f32", "frobnicate.f32")).unwrap();
    let mut log = [0u8; 512];
    let mut keys = [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: two options, and a log of the size that they say.
    let status = unsafe {
        sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, keys.as_mut_ptr(), values.as_mut_ptr())
    };
    assert_eq!(status, CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(String::from_utf8_lossy(&log).contains("frobnicate"));
}

#[test]
fn times_with_events() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timed).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let end = stream.record_event(timed).unwrap();
    assert!((20.0..20_000.0).contains(&start.elapsed_ms(&end).unwrap()));
    assert!(end.try_is_complete().unwrap());
    let untimed = stream.record_event(None).unwrap();
    assert_eq!(code(start.elapsed_ms(&untimed)), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn captures_and_replays_a_graph() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = Module::load(PTX).unwrap();
    let x = Buffer::of(&stream, &[1f32; 300]);
    let y = Buffer::of(&stream, &[0f32; 300]);
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert_eq!(stream.capture_status().unwrap(), sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let scratch = Buffer::new(&stream, 300 * 4);
    // SAFETY: 300 elements each.
    unsafe { result::memcpy_dtod_async(scratch.0, x.0, 300 * 4, stream.cu_stream()) }.unwrap();
    saxpy(&stream, &module, 2.0, scratch.0, y.0, 300).unwrap();
    drop(scratch);
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(y.read::<f32>(300).unwrap(), [0.0; 300], "captured work must not run");
    let mut nodes = 0;
    // SAFETY: asks for the number of nodes alone.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes) }.result().unwrap();
    assert_eq!(nodes, 2);
    graph.upload().unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(y.read::<f32>(300).unwrap(), [4.0; 300]);
    // New contents under the same addresses.
    // SAFETY: 300 elements.
    unsafe { result::memcpy_htod_async(x.0, &[10f32; 300], stream.cu_stream()) }.unwrap();
    graph.launch().unwrap();
    assert_eq!(y.read::<f32>(300).unwrap(), [24.0; 300]);
}

#[test]
fn captures_copies_of_pinned_memory_alone() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let buffer = Buffer::of(&stream, &[0u8; 8]);
    // SAFETY: written before it is used.
    let mut pinned: PinnedHostSlice<u8> = unsafe { context.alloc_pinned(8) }.unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(&[1; 8]);
    let source = pinned.as_ptr().unwrap();
    let begin = || stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    begin();
    // SAFETY: 8 bytes of pinned memory.
    unsafe { sys::cuMemcpyHtoDAsync_v2(buffer.0, source.cast(), 8, stream.cu_stream()) }.result().unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(&[2; 8]);
    graph.launch().unwrap();
    assert_eq!(buffer.read::<u8>(8).unwrap(), [2; 8], "the graph reads what is there when it is launched");
    drop(pinned);
    assert_eq!(code(graph.launch()), CUresult::CUDA_ERROR_INVALID_VALUE);
    begin();
    // SAFETY: refused.
    let pageable = unsafe { result::memcpy_htod_async(buffer.0, &[3u8; 8], stream.cu_stream()) };
    assert_eq!(code(pageable), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let ended = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(drop);
    assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn refuses_what_a_capture_does_not_allow() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let outside = Buffer::new(&stream, 8);
    let before = stream.record_event(None).unwrap();
    let refused = |call: &dyn Fn() -> CUresult| {
        // Relaxed, so that tests in other threads go on; what is checked here depends on the stream alone.
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
        let status = call();
        let ended = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(drop);
        assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        status
    };
    assert_eq!(refused(&|| code(stream.synchronize())), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(refused(&|| code(stream.wait(&before))), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    // SAFETY: refused.
    let free = || code(unsafe { result::free_async(outside.0, stream.cu_stream()) });
    assert_eq!(refused(&free), CUresult::CUDA_ERROR_INVALID_VALUE);
    let own = stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    own.unwrap();
    // SAFETY: refused.
    let allocated = code(unsafe { result::malloc_sync(8) });
    assert_eq!(allocated, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "in the thread that captures");
    let ended = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(drop);
    assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    let legacy = context.default_stream();
    let begun = legacy.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
    assert_eq!(code(begun), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

#[test]
fn captures_streams_that_fork_and_join() {
    let context = context();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let buffer = Buffer::new(&stream, 8);
    let capture = |join: bool| {
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
        other.join(&stream).unwrap();
        // SAFETY: 8 bytes.
        unsafe { result::memset_d8_async(buffer.0, 5, 8, other.cu_stream()) }.unwrap();
        if join {
            stream.join(&other).unwrap();
        }
        stream.end_capture(sys::CUgraphInstantiate_flags(0))
    };
    assert_eq!(code(capture(false).map(drop)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    capture(true).unwrap().unwrap().launch().unwrap();
    assert_eq!(buffer.read::<u8>(8).unwrap(), [5; 8]);
}

#[test]
fn keeps_memory_that_a_graph_leaves_allocated() {
    let context = context();
    let stream = context.new_stream().unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    let kept = Buffer::new(&stream, 8);
    // SAFETY: 8 bytes.
    unsafe { result::memset_d8_async(kept.0, 6, 8, stream.cu_stream()) }.unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.launch().unwrap();
    assert_eq!(kept.read::<u8>(8).unwrap(), [6; 8]);
    assert_eq!(code(graph.launch()), CUresult::CUDA_ERROR_INVALID_VALUE, "its memory is still allocated");
    drop(kept);
    graph.launch().unwrap();
}

#[test]
fn needs_a_context_on_the_thread() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let result = std::thread::scope(|scope| {
        // SAFETY: refused.
        let allocate = || code(unsafe { result::malloc_async(stream.cu_stream(), 8) });
        scope.spawn(allocate).join().unwrap()
    });
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_CONTEXT);
}

/// Runs a test of this file in a process of its own: its exit status, and what it wrote to stderr.
fn child(test: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--include-ignored", "--nocapture", test]).envs(environment.iter().copied());
    let output = command.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("running 1 test"), "there is no test {test}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[ignore = "run by the test of the same name without child_"]
fn child_reports_faults_until_the_end() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let module = Module::load(PTX).unwrap();
    let x = Buffer::of(&stream, &[1f32; 100]);
    let y = Buffer::of(&stream, &[1f32; 100]);
    let first = code(saxpy(&stream, &module, 2.0, x.0, y.0, 101).and_then(|()| stream.synchronize()));
    assert_eq!(first, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(code(saxpy(&stream, &module, 2.0, x.0, y.0, 100)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(code(y.read::<f32>(100)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(code(context.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn reports_faults_until_the_end() {
    let (status, report) = child("child_reports_faults_until_the_end", &[("PTXSIM_STRICT", "1")]);
    assert_eq!(status, Some(0), "{report}");
    for part in ["ptxsim:", "saxpy", "kernels.cu:7"] {
        assert!(report.contains(part), "no {part:?} in {report}");
    }
    assert!(!report.contains("leaked"), "{report}");
}

#[test]
#[ignore = "run by the test of the same name without child_"]
fn child_refuses_reads_of_unwritten_memory() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let checks = std::env::var("PTXSIM_CHECKS").is_ok_and(|checks| checks == "0");
    let buffer = Buffer::new(&stream, 16);
    let expected = if checks { CUresult::CUDA_SUCCESS } else { CUresult::CUDA_ERROR_ILLEGAL_ADDRESS };
    assert_eq!(code(buffer.read::<u8>(16)), expected);
}

#[test]
fn refuses_reads_of_unwritten_memory() {
    let (status, report) = child("child_refuses_reads_of_unwritten_memory", &[]);
    assert!(status == Some(0) && report.contains("nothing wrote"), "{report}");
    let (status, report) = child("child_refuses_reads_of_unwritten_memory", &[("PTXSIM_CHECKS", "0")]);
    assert_eq!(status, Some(0), "{report}");
}

#[test]
#[ignore = "run by the test of the same name without child_"]
fn child_runs_out_of_memory() {
    let context = context();
    let stream = context.new_stream().unwrap();
    assert_eq!(context.mem_get_info().unwrap(), (1 << 20, 1 << 20));
    let half = Buffer::new(&stream, 512 << 10);
    // SAFETY: refused.
    let more = code(unsafe { result::malloc_async(stream.cu_stream(), (512 << 10) + 1) });
    assert_eq!(more, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(half);
    // The device is as good as before.
    assert_eq!(Buffer::of(&stream, &[1u8; 1 << 20]).read::<u8>(1).unwrap(), [1]);
}

#[test]
fn runs_out_of_memory() {
    let (status, report) = child("child_runs_out_of_memory", &[("PTXSIM_MEMORY", "1048576")]);
    assert_eq!(status, Some(0), "{report}");
}

#[test]
#[ignore = "run by the test of the same name without child_"]
fn child_reports_leaks() {
    let context = context();
    let stream = context.new_stream().unwrap();
    std::mem::forget(Buffer::new(&stream, 1234));
    if std::env::var_os("KEEP_CONTEXT").is_some() {
        std::mem::forget(context);
    }
}

#[test]
fn reports_leaks() {
    let line = "ptxsim: leaked 1234 bytes of device memory";
    let (status, report) = child("child_reports_leaks", &[]);
    assert!(status == Some(0) && report.contains(line) && report.contains("released"), "{report}");
    let (status, report) = child("child_reports_leaks", &[("PTXSIM_STRICT", "1")]);
    assert!(status == Some(86) && report.contains(line), "{report}");
    let (status, report) = child("child_reports_leaks", &[("PTXSIM_STRICT", "1"), ("KEEP_CONTEXT", "1")]);
    assert!(status == Some(86) && report.contains(line) && report.contains("ended"), "{report}");
}

#[test]
fn children_find_the_library_by_name() {
    let (variable, path) = standin::environment_for_children(&[Library::Cuda]).unwrap();
    let (status, report) = child("describes_the_device", &[(variable, path.to_str().unwrap())]);
    assert_eq!(status, Some(0), "{report}");
}

#[test]
fn refuses_an_environment_it_cannot_read() {
    let (status, report) = child("child_runs_out_of_memory", &[("PTXSIM_MEMORY", "lots")]);
    assert!(status != Some(0) && report.contains("ptxsim: PTXSIM_MEMORY: expected a whole number"), "{report}");
}
