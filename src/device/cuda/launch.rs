//! Kernels and their launches: arguments are checked against the kernel's own signature before anything runs.

use super::CudaDevice;
use super::driver::error;
use super::stream::Command;
use crate::device::Buffer;
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use cudarc::driver::result::{self, function};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute_enum};
use std::ffi::CString;
use std::marker::PhantomData;

/// A parameter as the kernel's PTX declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Param {
    /// A device address, or a 64-bit count.
    Word64,
    /// `int`.
    Word32,
    /// `float`.
    Float32,
    /// `double`.
    Float64,
}

/// A kernel that has been loaded.
#[derive(Debug)]
pub(super) struct Function {
    name: &'static str,
    handle: CUfunction,
    params: Vec<Param>,
    static_shared: u32,
}

// SAFETY: the handle is an address that only the driver looks behind, from whatever thread has the context current.
unsafe impl Send for Function {}
// SAFETY: as above; the driver's functions may be called from several threads at once.
unsafe impl Sync for Function {}

/// The entry points of a PTX text with their parameters.
fn signatures(op: &str, ptx: &'static str) -> Result<Vec<(&'static str, Vec<Param>)>> {
    let wrong = |got: &str| Error::device(Place::item("cuda"), format!("kernels of {op} with plain parameters"), got);
    let mut found = Vec::new();
    for entry in ptx.split(".entry ").skip(1) {
        let name = &entry[..entry.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0)];
        let list = entry.split_once('(').and_then(|(_, rest)| rest.split_once(')')).ok_or_else(|| wrong(name))?.0;
        let params = list.split(".param ").skip(1).map(|param| match param.split_whitespace().next() {
            Some(".u64" | ".b64" | ".s64") => Ok(Param::Word64),
            Some(".u32" | ".b32" | ".s32") => Ok(Param::Word32),
            Some(".f32") => Ok(Param::Float32),
            Some(".f64") => Ok(Param::Float64),
            other => Err(wrong(other.unwrap_or("nothing"))),
        });
        found.push((name, params.collect::<Result<Vec<_>>>()?));
    }
    Ok(found)
}

impl CudaDevice {
    /// Loads the kernels of one PTX text.
    pub(super) fn load_module(&self, op: &str, ptx: &'static str) -> Result<Vec<Function>> {
        self.bind()?;
        let image = CString::new(ptx).map_err(|_| Error::device(Place::item("cuda"), "PTX without NULs", op))?;
        // SAFETY: the image is PTX text that ends with a NUL, and outlives the call.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|failed| error(&format!("load the kernels of {op}"), failed))?;
        self.keep_module(module);
        let mut functions = Vec::new();
        for (name, params) in signatures(op, ptx)? {
            let symbol = CString::new(name).unwrap_or_default();
            // SAFETY: the module was loaded just now and stays until the device goes.
            let handle = unsafe { result::module::get_function(module, symbol) }
                .map_err(|failed| error(&format!("find the kernel {name}"), failed))?;
            // SAFETY: the function is one of the module's.
            let static_shared = unsafe {
                function::get_function_attribute(handle, CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
            }
            .map_err(|failed| error(&format!("describe the kernel {name}"), failed))?;
            let static_shared = u32::try_from(static_shared).unwrap_or(0);
            functions.push(Function { name, handle, params, static_shared });
        }
        Ok(functions)
    }

    /// The kernel `name` for elements of `dtype`: `<name>_f32` or `<name>_bf16`, of the PTX of `op`.
    pub(crate) fn kernel(&self, op: &'static str, name: &str, dtype: DType) -> Result<Kernel<'_>> {
        self.kernel_named(op, &format!("{name}_{dtype}"))
    }

    /// The kernel of exactly this name, of the PTX of `op`.
    pub(crate) fn kernel_named(&self, op: &'static str, name: &str) -> Result<Kernel<'_>> {
        let function = self.functions(op)?.iter().find(|function| function.name == name);
        let function = function.ok_or_else(|| Error::op(op, format!("a kernel {name}"), "none of this name"))?;
        Ok(Kernel { device: self, function })
    }
}

/// How many blocks of how many threads, with how much shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    blocks: [u32; 3],
    threads: u32,
    shared: u32,
}

/// Blocks in y and z, at most (CUDA C++ Programming Guide, table of compute capabilities).
const MAX_BLOCKS_YZ: usize = 65_535;

impl Grid {
    /// A block of `threads` threads for each of `blocks`.
    pub(crate) fn new(blocks: usize, threads: u32) -> Self {
        Self::new_3d([blocks, 1, 1], threads)
    }

    /// Blocks in three dimensions.
    pub(crate) fn new_3d(blocks: [usize; 3], threads: u32) -> Self {
        // A size no launch can have stands for one that does not fit.
        let blocks = blocks.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        Self { blocks, threads, shared: 0 }
    }

    /// Enough blocks of `threads` threads for `items`, one thread an item.
    pub(crate) fn cover(items: usize, threads: u32) -> Self {
        Self::new(items.div_ceil(threads as usize), threads)
    }

    /// Blocks of 256 threads for `count` elements of `dtype`, 16 bytes a thread.
    pub(crate) fn elements(count: usize, dtype: DType) -> Self {
        Self::cover(count.div_ceil(16 / dtype.size()), 256)
    }

    /// The grid of kernels that reduce over rows (`kernels/norm.cuh`): a warp for a row of up to 1024 elements, a block
    /// of 256 threads for a longer one.
    pub(crate) fn rows(rows: usize, cols: usize) -> Self {
        Self::new(if cols <= 1024 { rows.div_ceil(8) } else { rows }, 256)
    }

    /// The same with `bytes` of dynamic shared memory.
    pub(crate) fn shared(self, bytes: usize) -> Self {
        Self { shared: u32::try_from(bytes).unwrap_or(u32::MAX), ..self }
    }
}

/// A matrix in a GPU's memory, as kernels are pointed to it.
pub(crate) trait Operand {
    /// Where its first element lies.
    fn address(&self) -> u64;
    /// Where its first element lies, to be written: memory that is shared is copied first.
    fn address_mut(&mut self) -> u64;
}

/// One argument of a launch. Lives as long as the borrow of the memory it points to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arg<'a> {
    value: u64,
    kind: Param,
    memory: PhantomData<&'a Buffer>,
}

impl<'a> Arg<'a> {
    fn word(value: u64, kind: Param) -> Self {
        Self { value, kind, memory: PhantomData }
    }

    /// The elements of a tensor, to be read: `const T*`.
    pub(crate) fn tensor(tensor: &'a impl Operand) -> Self {
        Self::word(tensor.address(), Param::Word64)
    }

    /// The elements of a tensor, to be written: `T*`. Memory that is shared is copied first.
    pub(crate) fn tensor_mut(tensor: &'a mut impl Operand) -> Self {
        Self::word(tensor.address_mut(), Param::Word64)
    }

    /// A buffer's bytes, to be read: `const unsigned char*`, or whatever the kernel takes them for.
    pub(crate) fn buffer(buffer: &'a Buffer) -> Self {
        Self::word(buffer.device_address(), Param::Word64)
    }

    /// A buffer's bytes, to be written.
    pub(crate) fn buffer_mut(buffer: &'a mut Buffer) -> Self {
        Self::word(buffer.device_address(), Param::Word64)
    }

    /// An address that the caller vouches for.
    pub(crate) fn address(address: u64) -> Self {
        Self::word(address, Param::Word64)
    }

    /// No memory: a null pointer, where the kernel allows one.
    pub(crate) fn null() -> Self {
        Self::word(0, Param::Word64)
    }

    /// `int`; what does not fit is caught by [`Kernel::run`].
    pub(crate) fn int(value: usize) -> Self {
        // Sizes are checked against 2³¹ at the launch: a value beyond it is kept as it is.
        Self::word(value as u64, Param::Word32)
    }

    /// `long long`, a count that may pass 2³¹.
    pub(crate) fn long(value: usize) -> Self {
        Self::word(value as u64, Param::Word64)
    }

    /// `float`.
    pub(crate) fn float(value: f64) -> Self {
        Self::word(u64::from((value as f32).to_bits()), Param::Float32)
    }

    /// `double`.
    pub(crate) fn double(value: f64) -> Self {
        Self::word(value.to_bits(), Param::Float64)
    }
}

/// A kernel ready to be launched on its device's stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel<'a> {
    device: &'a CudaDevice,
    function: &'a Function,
}

impl Kernel<'_> {
    /// Puts a launch into the device's stream. An empty grid launches nothing.
    ///
    /// # Errors
    /// [`Error::Op`] where arguments do not fit the kernel's signature or the grid is larger than CUDA allows;
    /// [`Error::Device`] where the driver refuses.
    ///
    /// # Safety
    /// With these arguments and this grid the kernel must stay within the memory they point to.
    pub(crate) unsafe fn run(self, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
        let Function { name, handle, params, static_shared } = self.function;
        let kinds: Vec<Param> = args.iter().map(|arg| arg.kind).collect();
        if kinds != *params {
            return Err(Error::op("launch", format!("{name} with {params:?}"), format!("{kinds:?}")));
        }
        let too_large = |arg: &&Arg<'_>| arg.kind == Param::Word32 && arg.value > u64::from(u32::MAX);
        if let Some(arg) = args.iter().find(too_large) {
            return Err(Error::op("launch", format!("{name} with sizes below 2^32"), arg.value.to_string()));
        }
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        if x > i32::MAX as u32 || y.max(z) as usize > MAX_BLOCKS_YZ {
            return Err(Error::op("launch", format!("{name} on a grid that CUDA allows"), format!("{grid:?}")));
        }
        self.device.bind()?;
        self.allow_shared(static_shared + grid.shared, grid.shared)?;
        let launch = Command::Launch {
            name,
            function: *handle as usize,
            blocks: grid.blocks,
            threads: grid.threads,
            shared: grid.shared,
            args: args.iter().map(|arg| arg.value).collect(),
        };
        // SAFETY: the arguments have the kinds and number that the kernel's PTX declares; the rest is the caller's.
        unsafe { self.device.put(launch) }
    }

    /// More than 48 KiB of shared memory must be asked for.
    fn allow_shared(self, total: u32, dynamic: u32) -> Result<()> {
        if total <= 48 * 1024 {
            return Ok(());
        }
        let limit = self.device.shared_limit();
        if total > limit {
            let expected = format!("{} within {limit} bytes of shared memory", self.function.name);
            return Err(Error::op("launch", expected, total.to_string()));
        }
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to a module that is loaded.
        unsafe { function::set_function_attribute(self.function.handle, attribute, dynamic.cast_signed()) }
            .map_err(|failed| error(&format!("give {} {dynamic} bytes of shared memory", self.function.name), failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read_from_the_ptx() {
        let ptx = ".visible .entry scale_f32(\n\t.param .u64 .ptr .align 1 scale_f32_param_0,\n\t.param .u32 scale_f32_param_1,\n\t.param .f32 scale_f32_param_2\n)\n{ ret; }\n.visible .entry none()\n{ ret; }";
        let found = signatures("scale", ptx).unwrap();
        assert_eq!(found[0], ("scale_f32", vec![Param::Word64, Param::Word32, Param::Float32]));
        assert_eq!(found[1], ("none", vec![]));
        assert!(signatures("bad", ".entry f(.param .align 8 .b8 f_param_0[16]) { }").is_err());
    }

    #[test]
    fn a_grid_covers_its_items() {
        assert_eq!(Grid::cover(257, 128).blocks, [3, 1, 1]);
        assert_eq!(Grid::cover(0, 128).blocks, [0, 1, 1]);
    }
}
