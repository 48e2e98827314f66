//! Matrix products through cuBLASLt, if the machine has it.
//!
//! The library knows column-major matrices. A row-major `[rows, cols]` is a column-major `[cols, rows]` in the same
//! memory, so `y = op(x) op(w)` is computed as `yᵀ = op(w)ᵀ op(x)ᵀ`: the operands change places, and what is transposed
//! there is what is not here. The bias, one for each column of `y`, is then one for each row, as the library's epilogue
//! wants it.
//!
//! An algorithm is chosen once for a shape and kept with its descriptors, so the bits of a shape do not change during a
//! run. Partial sums are only ever added in f32, and f32 products never use TF32.
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use cudarc::cublaslt::{result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// The memory an algorithm may use at most: what NVIDIA recommends for Hopper.
const MAX_WORKSPACE: usize = 32 << 20;

/// What the operands of `y[m, n] = op(x) op(w)` are, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    /// `x[m, k] w[n, k]ᵀ`
    Nt,
    /// `x[m, k] w[k, n]`
    Nn,
    /// `x[k, m]ᵀ w[k, n]`
    Tn,
}

/// A matrix product without its pointers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    /// How `x` and `w` lie.
    pub(crate) layout: Layout,
    /// Rows of `y`.
    pub(crate) m: usize,
    /// Columns of `y`.
    pub(crate) n: usize,
    /// Terms of a sum.
    pub(crate) k: usize,
    /// From row to row of `y`, in elements.
    pub(crate) ldy: usize,
    /// From row to row of `x`, in elements.
    pub(crate) ldx: usize,
    /// From row to row of `w`, in elements.
    pub(crate) ldw: usize,
    /// The type of `x`, `w` and the bias.
    pub(crate) input: DType,
    /// The type of `y`.
    pub(crate) output: DType,
    /// Whether a bias is added to every row.
    pub(crate) bias: bool,
}

/// Addresses on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pointers {
    /// `m` rows of `n`.
    pub(crate) y: u64,
    /// `m` rows of `k`, or `k` rows of `m`.
    pub(crate) x: u64,
    /// `n` rows of `k`, or `k` rows of `n`.
    pub(crate) w: u64,
    /// `n` elements; 0 if there is no bias.
    pub(crate) bias: u64,
}

/// What an algorithm's choice depends on.
type Key = (Operation, [u32; 3]);

/// The library's handle and what it has chosen so far.
pub(crate) struct Blas {
    handle: sys::cublasLtHandle_t,
    plans: Mutex<HashMap<Key, Option<Plan>>>,
}

// SAFETY: a cuBLASLt handle may be used by several threads; the descriptors in `plans` are guarded by its lock.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// Descriptors and the algorithm for a key.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

/// What cudarc will look for; it panics where one is missing.
const SYMBOLS: [&str; 13] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtGetVersion",
];

impl Blas {
    /// The library, unless the machine has none.
    ///
    /// # Errors
    /// [`Error::Device`] if it is there but cannot be used.
    pub(super) fn load() -> Result<Option<Self>> {
        // SAFETY: opening libcublasLt runs its initialisers, as linking to it would.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        for symbol in SYMBOLS {
            // SAFETY: the symbol is looked up, not called; all of them are functions.
            if unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err() {
                return Err(Error::device(Place::item("libcublasLt"), symbol, "a library without it")
                    .hint("install CUDA 12's libcublasLt, or set SOFTPROMPT_MATMUL=own"));
            }
        }
        let handle = result::create_handle().map_err(|error| failed("a handle", error))?;
        Ok(Some(Self { handle, plans: Mutex::default() }))
    }

    /// The library's version, as in 12.8.4.
    pub(super) fn version(&self) -> String {
        // SAFETY: the library is loaded and has the symbol.
        let version = unsafe { sys::cublasLtGetVersion() };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// The bytes of memory that the library wants for this product; nothing if it has no algorithm for it.
    ///
    /// # Errors
    /// [`Error::Device`] if the library fails.
    pub(crate) fn workspace(&self, operation: &Operation, pointers: Pointers) -> Result<Option<usize>> {
        if operation.k == 0 || (operation.bias && operation.input != operation.output) {
            return Ok(None); // the library takes no empty sum, and takes the bias to be of y's type
        }
        self.with_plan(operation, pointers, |plan| Ok(plan.map(|plan| plan.workspace)))
    }

    /// `y = op(x) op(w) + bias + beta · y`, on `stream`, with as much memory at `workspace` as [`Blas::workspace`] said.
    ///
    /// # Errors
    /// [`Error::Device`] if the library fails.
    ///
    /// # Safety
    /// The pointers name memory of the device as [`Operation`] describes it, `y` apart from the others, and `stream`
    /// is a stream of the device's context, which is current.
    pub(super) unsafe fn multiply(
        &self,
        operation: &Operation,
        pointers: Pointers,
        beta: f32,
        workspace: u64,
        stream: *mut c_void,
    ) -> Result<()> {
        let alpha = 1f32;
        self.with_plan(operation, pointers, |plan| {
            let Some(plan) = plan else {
                return Err(Error::op(
                    "matmul",
                    "a product that cuBLASLt has an algorithm for",
                    format!("{operation:?}"),
                ));
            };
            if operation.bias {
                use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                describe(plan.description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &pointers.bias /* const void* */)?;
            }
            // SAFETY: the descriptors live as long as the plan; alpha and beta are f32, as the description's scale type
            // says; the caller answers for the pointers and the stream.
            unsafe {
                result::matmul(
                    self.handle,
                    plan.description,
                    (&raw const alpha).cast(), // const float* alpha
                    (&raw const beta).cast(),  // const float* beta
                    pointers.w as *const c_void,
                    plan.a,
                    pointers.x as *const c_void,
                    plan.b,
                    pointers.y as *const c_void,
                    plan.d,
                    pointers.y as *mut c_void,
                    plan.d,
                    &raw const plan.algorithm,
                    workspace as *mut c_void,
                    plan.workspace, // size_t
                    stream.cast(),  // cudaStream_t
                )
            }
            .map_err(|error| failed(&format!("{operation:?}"), error))
        })
    }

    /// Runs `work` with what was chosen for a product, which is chosen the first time.
    fn with_plan<R>(
        &self,
        operation: &Operation,
        pointers: Pointers,
        work: impl FnOnce(Option<&Plan>) -> Result<R>,
    ) -> Result<R> {
        let alignment: [u32; 3] =
            [pointers.w, pointers.x, pointers.y].map(|pointer| 1 << pointer.trailing_zeros().min(8));
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry((*operation, alignment)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(Plan::choose(self.handle, operation, alignment)?)
            }
        };
        work(plan.as_ref())
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: the handle was created in `load` and is dropped once. An error leaves nothing to do.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    /// The library's first choice, or nothing if it has none for these types, strides and alignments.
    fn choose(handle: sys::cublasLtHandle_t, operation: &Operation, alignment: [u32; 3]) -> Result<Option<Self>> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
        let Operation { layout, m, n, k, ldy, ldx, ldw, input, output, bias } = *operation;
        let description =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)
                .map_err(|error| failed("a product's description", error))?;
        // Column-major, so rows and columns change places.
        let (w_shape, w_transposed) = if layout == Layout::Nt { ((k, n), true) } else { ((n, k), false) };
        let (x_shape, x_transposed) = if layout == Layout::Tn { ((m, k), true) } else { ((k, m), false) };
        let mut plan = Self {
            description,
            a: matrix(input, w_shape, ldw)?,
            b: matrix(input, x_shape, ldx)?,
            d: matrix(output, (n, m), ldy)?,
            // SAFETY: an algorithm is a block of integers, all zeros until the library fills it.
            algorithm: unsafe { std::mem::zeroed() },
            workspace: 0,
        };
        describe(
            description,
            Desc::CUBLASLT_MATMUL_DESC_TRANSA,
            &i32::from(w_transposed), /* cublasOperation_t */
        )?;
        describe(
            description,
            Desc::CUBLASLT_MATMUL_DESC_TRANSB,
            &i32::from(x_transposed), /* cublasOperation_t */
        )?;
        if bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            describe(description, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }

        let preference = Preference::new()?;
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &MAX_WORKSPACE /* size_t */)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction /* uint32_t */)?;
        let [a, b, d] = alignment;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a /* uint32_t */)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b /* uint32_t */)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &d /* uint32_t */)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d /* uint32_t */)?;
        // SAFETY: all descriptors were created above and not destroyed.
        let found = unsafe {
            result::get_matmul_algo_heuristic(handle, description, plan.a, plan.b, plan.d, plan.d, preference.0)
        };
        match found {
            Ok(found) => {
                plan.algorithm = found.algo;
                plan.workspace = found.workspaceSize;
                Ok(Some(plan))
            }
            Err(result::CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
            )) => Ok(None),
            Err(error) => Err(failed(&format!("an algorithm for {operation:?}"), error)),
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was created in `choose` and is destroyed once. An error leaves nothing to do.
        unsafe {
            for layout in [self.a, self.b, self.d] {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.description);
        }
    }
}

/// What an algorithm has to keep to; destroyed when it has been asked for.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        result::create_matmul_pref().map(Self).map_err(|error| failed("a preference", error))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the preference lives, and the value is as large as is said.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
        .map_err(|error| failed(&format!("{attribute:?}"), error))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new` and destroyed once. An error leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// A column-major matrix.
fn matrix(dtype: DType, (rows, cols): (usize, usize), ld: usize) -> Result<sys::cublasLtMatrixLayout_t> {
    let dtype = match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F64 => sys::cudaDataType_t::CUDA_R_64F,
    };
    result::create_matrix_layout(dtype, rows as u64, cols as u64, ld as i64)
        .map_err(|error| failed(&format!("a matrix [{rows}, {cols}]"), error))
}

fn describe<T>(
    description: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the description lives, and the value is as large as is said.
    unsafe {
        result::set_matmul_desc_attribute(description, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
    }
    .map_err(|error| failed(&format!("{attribute:?}"), error))
}

/// The library is asked for, and the machine has none.
pub(super) fn missing() -> Error {
    Error::device(Place::item("cublasLt"), "CUDA's libcublasLt", "no such library on this machine")
        .hint("install CUDA's runtime libraries, or set SOFTPROMPT_MATMUL=own")
}

fn failed(what: &str, error: result::CublasError) -> Error {
    Error::device(Place::item("cublasLt"), what, format!("{:?}", error.0))
        .hint("set SOFTPROMPT_MATMUL=own to do without the library")
}
