//! cudarc, as it is, over the stand-in cuBLASLt: products against a plain one in f64, and refusals.

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{self, cublasStatus_t};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, result};
use half::{bf16, f16};
use ptxsim::standin::{self, Library};
use std::ffi::c_void;
use std::sync::{Arc, Once};

const INVALID: Result<(), cublasStatus_t> = Err(cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE);
const UNSUPPORTED: Result<(), cublasStatus_t> = Err(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);

fn stream() -> Arc<CudaStream> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| drop(standin::install(&Library::ALL).unwrap()));
    let context = CudaContext::new(0).unwrap();
    // SAFETY: each test uses one stream.
    unsafe { context.disable_event_tracking() };
    context.new_stream().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    F32,
    F16,
    Bf16,
}
use Type::*;

impl Type {
    fn code(self) -> sys::cudaDataType {
        match self {
            F32 => sys::cudaDataType::CUDA_R_32F,
            F16 => sys::cudaDataType::CUDA_R_16F,
            Bf16 => sys::cudaDataType::CUDA_R_16BF,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            F32 => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
            F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_ne_bytes()).collect(),
            Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_ne_bytes()).collect(),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            F32 => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect(),
            F16 => bytes.chunks_exact(2).map(|b| f16::from_ne_bytes(b.try_into().unwrap()).to_f32()).collect(),
            Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_ne_bytes(b.try_into().unwrap()).to_f32()).collect(),
        }
    }

    /// The largest rounding error of a number near 1.
    fn epsilon(self) -> f64 {
        match self {
            F32 => f64::from(f32::EPSILON),
            F16 => 1.0 / 2048.0,
            Bf16 => 1.0 / 256.0,
        }
    }
}

/// A matrix, or a batch, as a layout describes it.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    kind: Type,
    rows: usize,
    cols: usize,
    leading: usize,
    row_major: bool,
    batches: usize,
    stride: usize,
}

impl Matrix {
    fn new(kind: Type, rows: usize, cols: usize) -> Matrix {
        Matrix { kind, rows, cols, leading: rows, row_major: false, batches: 1, stride: 0 }
    }

    fn in_rows(self) -> Matrix {
        Matrix { leading: self.cols, row_major: true, ..self }
    }

    fn padded(self, padding: usize) -> Matrix {
        Matrix { leading: self.leading + padding, ..self }
    }

    fn batch(self, batches: usize) -> Matrix {
        let matrix = self.leading * if self.row_major { self.rows } else { self.cols };
        Matrix { batches, stride: matrix + 3, ..self }
    }

    fn index(&self, batch: usize, row: usize, col: usize) -> usize {
        batch * self.stride + if self.row_major { row * self.leading + col } else { col * self.leading + row }
    }

    fn elements(&self) -> usize {
        self.index(self.batches - 1, self.rows - 1, self.cols - 1) + 1
    }

    /// Values in [-1, 1] where the matrix has elements, NaN between them.
    fn values(&self, seed: u32) -> Vec<f32> {
        let mut values = vec![f32::NAN; self.elements()];
        let mut state = seed;
        for batch in 0..self.batches {
            for row in 0..self.rows {
                for col in 0..self.cols {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    values[self.index(batch, row, col)] = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                }
            }
        }
        self.kind.decode(&self.kind.encode(&values))
    }

    fn layout(&self) -> Layout {
        let (rows, cols) = (self.rows as u64, self.cols as u64);
        let layout = Layout(lt::create_matrix_layout(self.kind.code(), rows, cols, self.leading as i64).unwrap());
        use sys::cublasLtMatrixLayoutAttribute_t::*;
        layout.set(CUBLASLT_MATRIX_LAYOUT_ORDER, self.row_major as i32);
        layout.set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, self.batches as i32);
        layout.set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, self.stride as i64);
        layout
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn set<T>(&self, attribute: sys::cublasLtMatrixLayoutAttribute_t, value: T) {
        let value: *const T = &value;
        // SAFETY: the value has its own size.
        unsafe { lt::set_matrix_layout_attribute(self.0, attribute, value.cast(), size_of::<T>()) }.unwrap();
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::destroy_matrix_layout(self.0) }.unwrap();
    }
}

/// A product; `bias` has a value for each row of D.
#[derive(Clone, Debug)]
struct Product {
    a: Matrix,
    b: Matrix,
    c: Matrix,
    d: Matrix,
    transpose: (bool, bool),
    alpha: f32,
    beta: f32,
    epilogue: sys::cublasLtEpilogue_t,
    compute: sys::cublasComputeType_t,
    workspace: usize,
    alignment: u32,
    /// Bytes that A starts after its allocation.
    shift: usize,
}

use sys::cublasLtEpilogue_t::*;

impl Product {
    fn new(kinds: (Type, Type), (m, n, k): (usize, usize, usize)) -> Product {
        let out = Matrix::new(kinds.1, m, n);
        Product {
            a: Matrix::new(kinds.0, m, k),
            b: Matrix::new(kinds.0, k, n),
            c: out,
            d: out,
            transpose: (false, false),
            alpha: 1.0,
            beta: 0.0,
            epilogue: CUBLASLT_EPILOGUE_DEFAULT,
            compute: sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            workspace: 1 << 16,
            alignment: 256,
            shift: 0,
        }
    }

    fn transposed(mut self, a: bool, b: bool) -> Product {
        let flip =
            |matrix: Matrix, flip| if flip { Matrix::new(matrix.kind, matrix.cols, matrix.rows) } else { matrix };
        (self.a, self.b) = (flip(self.a, a), flip(self.b, b));
        self.transpose = (a, b);
        self
    }

    fn each(mut self, change: impl Fn(Matrix) -> Matrix) -> Product {
        for matrix in [&mut self.a, &mut self.b, &mut self.c, &mut self.d] {
            *matrix = change(*matrix);
        }
        self
    }

    fn biased(&self) -> bool {
        self.epilogue as u32 & 4 != 0
    }

    /// The result, in f64.
    fn naive(&self, a: &[f32], b: &[f32], c: &[f32], bias: &[f32]) -> Vec<f64> {
        let (m, n) = (self.d.rows, self.d.cols);
        let k = if self.transpose.0 { self.a.rows } else { self.a.cols };
        let mut result = vec![f64::NAN; self.d.elements()];
        for batch in 0..self.d.batches {
            for i in 0..m {
                for j in 0..n {
                    let product = |p| {
                        let a = if self.transpose.0 { self.a.index(batch, p, i) } else { self.a.index(batch, i, p) };
                        let b_index =
                            if self.transpose.1 { self.b.index(batch, j, p) } else { self.b.index(batch, p, j) };
                        (a, b_index)
                    };
                    let sum: f64 = (0..k).map(product).map(|(x, y)| f64::from(a[x]) * f64::from(b[y])).sum();
                    let mut value = f64::from(self.alpha) * sum;
                    if self.beta != 0.0 {
                        value += f64::from(self.beta) * f64::from(c[self.c.index(batch, i, j)]);
                    }
                    if self.biased() {
                        value += f64::from(bias[i]);
                    }
                    value = match self.epilogue {
                        CUBLASLT_EPILOGUE_RELU | CUBLASLT_EPILOGUE_RELU_BIAS => value.max(0.0),
                        CUBLASLT_EPILOGUE_GELU | CUBLASLT_EPILOGUE_GELU_BIAS => {
                            let inner = (2.0 / std::f64::consts::PI).sqrt() * (value + 0.044715 * value.powi(3));
                            0.5 * value * (1.0 + inner.tanh())
                        }
                        _ => value,
                    };
                    result[self.d.index(batch, i, j)] = value;
                }
            }
        }
        result
    }

    /// Computes it on the device, and compares.
    fn check(&self) {
        let stream = stream();
        let (a, b, c) = (self.a.values(1), self.b.values(2), self.c.values(3));
        let bias = Matrix::new(self.d.kind, self.d.rows, 1).values(4);
        let got = self.run(&stream, &a, &b, &c, &bias).unwrap_or_else(|error| panic!("{error:?}: {self:?}"));
        let expected = self.naive(&a, &b, &c, &bias);
        let k = self.a.rows.max(self.a.cols) as f64;
        let tolerance = k.sqrt() * 4.0 * F32.epsilon() + self.d.kind.epsilon();
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            if expected.is_nan() {
                assert_eq!(got.to_bits(), 7f32.to_bits(), "element {index} of D is none, and was written: {self:?}");
            } else {
                let error = (f64::from(*got) - expected).abs();
                assert!(error <= tolerance * expected.abs().max(1.0), "{index}: {got} for {expected} in {self:?}");
            }
        }
    }

    /// The status of a product that should be refused.
    fn refusal(&self) -> Result<(), cublasStatus_t> {
        let stream = stream();
        let values = |matrix: &Matrix| vec![0.5; matrix.elements().max(1 << 12)];
        let bias = vec![0.5; self.d.rows];
        self.run(&stream, &values(&self.a), &values(&self.b), &values(&self.c), &bias)
            .map(drop)
            .map_err(|error| error.0)
    }

    /// D, of 7s where it has no elements.
    fn run(&self, stream: &CudaStream, a: &[f32], b: &[f32], c: &[f32], bias: &[f32]) -> Result<Vec<f32>, CublasError> {
        let mut shifted = vec![0; self.shift];
        shifted.extend(self.a.kind.encode(a));
        let a = Buffer::of(stream, &shifted);
        let b = Buffer::of(stream, &self.b.kind.encode(b));
        let c = Buffer::of(stream, &self.c.kind.encode(c));
        let bias = Buffer::of(stream, &self.d.kind.encode(bias));
        let sevens = self.d.kind.encode(&vec![7.0; self.d.elements()]);
        let d = Buffer::of(stream, &sevens);
        let workspace = Buffer::of(stream, &vec![0; self.workspace.max(1)]);
        self.submit(stream, [a.0 + self.shift as u64, b.0, c.0, d.0], bias.0, workspace.0)?;
        Ok(self.d.kind.decode(&d.read(sevens.len())))
    }

    fn submit(
        &self,
        stream: &CudaStream,
        [a, b, c, d]: [u64; 4],
        bias: u64,
        workspace: u64,
    ) -> Result<(), CublasError> {
        let handle = Handle(lt::create_handle()?);
        let descriptor = Descriptor(lt::create_matmul_desc(self.compute, sys::cudaDataType::CUDA_R_32F)?);
        use sys::cublasLtMatmulDescAttributes_t::*;
        descriptor.set(CUBLASLT_MATMUL_DESC_TRANSA, self.transpose.0 as i32);
        descriptor.set(CUBLASLT_MATMUL_DESC_TRANSB, self.transpose.1 as i32);
        descriptor.set(CUBLASLT_MATMUL_DESC_EPILOGUE, self.epilogue);
        if self.biased() {
            descriptor.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
            descriptor.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, self.d.kind.code());
        }
        let preference = Preference(lt::create_matmul_pref()?);
        use sys::cublasLtMatmulPreferenceAttributes_t::*;
        preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, self.workspace);
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, self.alignment);
        let layouts = [self.a, self.b, self.c, self.d].map(|matrix| matrix.layout());
        let [a_layout, b_layout, c_layout, d_layout] = [0, 1, 2, 3].map(|index| layouts[index].0);
        // SAFETY: everything lives until the call is done.
        unsafe {
            let found = lt::get_matmul_algo_heuristic(
                handle.0,
                descriptor.0,
                a_layout,
                b_layout,
                c_layout,
                d_layout,
                preference.0,
            )?;
            let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
            lt::matmul(
                handle.0,
                descriptor.0,
                scalar(&self.alpha),
                scalar(&self.beta),
                a as *const c_void,
                a_layout,
                b as *const c_void,
                b_layout,
                c as *const c_void,
                c_layout,
                d as *mut c_void,
                d_layout,
                &found.algo,
                workspace as *mut c_void,
                self.workspace,
                stream.cu_stream().cast(),
            )
        }
    }
}

struct Handle(sys::cublasLtHandle_t);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::destroy_handle(self.0) }.unwrap();
    }
}

struct Descriptor(sys::cublasLtMatmulDesc_t);

impl Descriptor {
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) {
        let value: *const T = &value;
        // SAFETY: the value has its own size.
        unsafe { lt::set_matmul_desc_attribute(self.0, attribute, value.cast(), size_of::<T>()) }.unwrap();
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::destroy_matmul_desc(self.0) }.unwrap();
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) {
        let value: *const T = &value;
        // SAFETY: the value has its own size.
        unsafe { lt::set_matmul_pref_attribute(self.0, attribute, value.cast(), size_of::<T>()) }.unwrap();
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::destroy_matmul_pref(self.0) }.unwrap();
    }
}

struct Buffer<'a>(u64, &'a CudaStream);

impl<'a> Buffer<'a> {
    fn of(stream: &'a CudaStream, bytes: &[u8]) -> Buffer<'a> {
        // SAFETY: as many bytes are copied as were allocated.
        unsafe {
            let address = result::malloc_async(stream.cu_stream(), bytes.len()).unwrap();
            result::memcpy_htod_async(address, bytes, stream.cu_stream()).unwrap();
            Buffer(address, stream)
        }
    }

    fn read(&self, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        // SAFETY: checked by the stand-in.
        unsafe { result::memcpy_dtoh_async(&mut read, self.0, self.1.cu_stream()) }.unwrap();
        read
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        unsafe { result::free_async(self.0, self.1.cu_stream()) }.unwrap();
    }
}

/// Small and odd, a full tile and more, and deeper than a block of k.
const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 1), (5, 7, 3), (16, 4, 8), (33, 18, 70), (70, 9, 600)];
const KINDS: [(Type, Type); 5] = [(F32, F32), (Bf16, Bf16), (Bf16, F32), (F16, F16), (F16, F32)];

#[test]
fn types_and_transposes() {
    for kinds in KINDS {
        for shape in SHAPES {
            for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
                Product::new(kinds, shape).transposed(a, b).check();
            }
        }
    }
}

#[test]
fn orders_and_leading_dimensions() {
    for bits in 0..16 {
        let row = |bit: u32, matrix: Matrix| if bits >> bit & 1 == 1 { matrix.in_rows() } else { matrix };
        for (a, b) in [(false, false), (true, true)] {
            let mut product = Product::new((F32, F32), (19, 6, 11)).transposed(a, b);
            product = Product {
                a: row(0, product.a).padded(1),
                b: row(1, product.b).padded(2),
                c: row(2, product.c).padded(3),
                d: row(3, product.d).padded(5),
                beta: 0.5,
                ..product
            };
            product.check();
        }
    }
}

#[test]
fn batches() {
    for (kinds, shape) in [((F32, F32), (6, 5, 9)), ((Bf16, F32), (20, 3, 17))] {
        let product = Product::new(kinds, shape).each(|matrix| matrix.padded(1).batch(4));
        product.check();
        // One B for all.
        Product { b: Matrix { stride: 0, ..product.b }, ..product }.check();
    }
}

#[test]
fn scalars() {
    for (alpha, beta) in [(0.5, 0.0), (-2.0, 1.0), (0.0, 3.0), (1.5, -0.25)] {
        Product { alpha, beta, ..Product::new((Bf16, F32), (18, 7, 40)) }.check();
    }
}

#[test]
fn epilogues() {
    let all = [
        CUBLASLT_EPILOGUE_RELU,
        CUBLASLT_EPILOGUE_GELU,
        CUBLASLT_EPILOGUE_BIAS,
        CUBLASLT_EPILOGUE_RELU_BIAS,
        CUBLASLT_EPILOGUE_GELU_BIAS,
    ];
    for kinds in KINDS {
        for epilogue in all {
            Product { epilogue, beta: 0.5, ..Product::new(kinds, (21, 10, 13)).transposed(true, false) }.check();
        }
    }
}

#[test]
fn tf32_rounds_and_f32_does_not() {
    let product = Product::new((F32, F32), (1, 1, 1));
    let stream = stream();
    let value = 1.0 + f32::EPSILON;
    let run = |product: &Product| product.run(&stream, &[value], &[1.0], &[0.0], &[]).unwrap_or_default();
    assert_eq!(run(&product), [value]);
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32;
    assert_eq!(run(&Product { compute, ..product }), [1.0]);
}

#[test]
fn the_same_bits_whatever_the_place() {
    // A row of a large product, which is computed by several threads, equals that row alone.
    let stream = stream();
    let (m, n, k) = (48, 90, 512);
    let large = Product::new((Bf16, F32), (m, n, k));
    let (a, b, c) = (large.a.values(5), large.b.values(6), large.c.values(7));
    let all = large.run(&stream, &a, &b, &c, &[0.0]).unwrap();
    let last = n - 1;
    let small = Product::new((Bf16, F32), (m, 1, k));
    let alone = small.run(&stream, &a, &b[last * k..], &c[last * m..], &[0.0]).unwrap();
    assert_eq!(all[last * m..], alone);
}

#[test]
fn leading_dimensions_that_are_too_small_are_refused() {
    let product = Product::new((F32, F32), (8, 6, 4));
    let shrink = |matrix: Matrix| Matrix { leading: matrix.leading - 1, ..matrix };
    assert_eq!(Product { a: shrink(product.a), ..product.clone() }.refusal(), INVALID);
    assert_eq!(Product { b: shrink(product.b.in_rows()), ..product.clone() }.refusal(), INVALID);
    assert_eq!(Product { d: shrink(product.d), ..product.clone() }.refusal(), INVALID);
    assert_eq!(product.refusal(), Ok(()));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let product = Product::new((F32, F32), (8, 6, 4));
    assert_eq!(Product { b: Matrix::new(F32, 5, 6), ..product.clone() }.refusal(), INVALID);
    assert_eq!(Product { c: Matrix::new(F32, 6, 8), ..product.clone() }.refusal(), INVALID);
    assert_eq!(Product { a: product.a.batch(2), ..product.clone() }.refusal(), INVALID);
    let batch = product.clone().each(|matrix| matrix.batch(2));
    assert_eq!(Product { d: Matrix { stride: 4, ..batch.d }, ..batch }.refusal(), INVALID, "D overlaps itself");
}

#[test]
fn types_that_do_not_fit_are_refused() {
    let with = |a, b, c, d| {
        let mut product = Product::new((F32, F32), (8, 6, 4));
        (product.a.kind, product.b.kind, product.c.kind, product.d.kind) = (a, b, c, d);
        product.refusal()
    };
    assert_eq!(with(Bf16, F32, F32, F32), UNSUPPORTED);
    assert_eq!(with(F32, F32, Bf16, Bf16), UNSUPPORTED);
    assert_eq!(with(Bf16, Bf16, F32, Bf16), UNSUPPORTED);
    assert_eq!(with(Bf16, Bf16, F16, F16), UNSUPPORTED);
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_16F;
    assert_eq!(Product { compute, ..Product::new((F16, F16), (8, 6, 4)) }.refusal(), UNSUPPORTED);
}

#[test]
fn epilogues_that_are_not_known_are_refused() {
    let product = Product::new((F32, F32), (8, 6, 4));
    assert_eq!(Product { epilogue: CUBLASLT_EPILOGUE_GELU_AUX, ..product.clone() }.refusal(), UNSUPPORTED);
    let rows = Product { d: product.d.in_rows(), epilogue: CUBLASLT_EPILOGUE_BIAS, ..product };
    assert_eq!(rows.refusal(), UNSUPPORTED);
}

#[test]
fn alignment_is_what_was_promised() {
    let product = Product { shift: 16, ..Product::new((Bf16, Bf16), (8, 6, 4)) };
    assert_eq!(product.refusal(), INVALID);
    assert_eq!(Product { alignment: 16, ..product.clone() }.refusal(), Ok(()));
    assert_eq!(Product { alignment: 1, shift: 1, ..product }.refusal(), INVALID, "not even an element");
}

#[test]
fn algorithms_and_workspaces_are_for_one_product() {
    let stream = stream();
    let handle = Handle(lt::create_handle().unwrap());
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let descriptor = Descriptor(lt::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F).unwrap());
    let preference = Preference(lt::create_matmul_pref().unwrap());
    let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    preference.set(attribute, 1usize << 20);
    let square = |n| Matrix::new(F32, n, n).layout();
    let (small, large) = (square(4), square(8));
    let buffers: Vec<Buffer> = (0..4).map(|_| Buffer::of(&stream, &[0; 1 << 17])).collect();
    // SAFETY: everything lives until the calls are done.
    unsafe {
        let (s, l) = (small.0, large.0);
        let found = lt::get_matmul_algo_heuristic(handle.0, descriptor.0, s, s, s, s, preference.0).unwrap();
        assert!(found.workspaceSize > 0);
        let run = |layout, bytes| {
            let one = std::ptr::from_ref(&1f32).cast::<c_void>();
            let zero = std::ptr::from_ref(&0f32).cast::<c_void>();
            let at = |index: usize| buffers[index].0 as *mut c_void;
            let stream = stream.cu_stream().cast();
            let (a, b, d, workspace) = (at(0), at(1), at(2), at(3));
            let result = lt::matmul(
                handle.0,
                descriptor.0,
                one,
                zero,
                a,
                layout,
                b,
                layout,
                d,
                layout,
                d,
                layout,
                &found.algo,
                workspace,
                bytes,
                stream,
            );
            result.map_err(|error| error.0)
        };
        assert_eq!(run(s, found.workspaceSize), Ok(()));
        assert_eq!(run(s, found.workspaceSize - 1), INVALID);
        assert_eq!(run(l, found.workspaceSize), INVALID);
    }
}

#[test]
fn d_must_not_overlap_what_is_read() {
    let stream = stream();
    let product = Product::new((F32, F32), (4, 4, 4));
    let (memory, other) = (Buffer::of(&stream, &[0; 1 << 10]), Buffer::of(&stream, &[0; 1 << 10]));
    let workspace = Buffer::of(&stream, &[0; 1 << 16]);
    let submit = |product: &Product, addresses: [u64; 4]| {
        product.submit(&stream, addresses, 0, workspace.0).map_err(|error| error.0)
    };
    assert_eq!(submit(&product, [memory.0, other.0, memory.0, memory.0]), INVALID, "D is A");
    let in_place = Product { beta: 1.0, ..product.clone() };
    assert_eq!(submit(&in_place, [other.0, other.0, memory.0, memory.0]), Ok(()), "C is D");
    // Two blocks of columns of one matrix of rows: neighbours, with no element in common.
    let block = |matrix: Matrix| Matrix { leading: 8, ..matrix };
    let blocks = Product { alignment: 16, a: block(product.a.in_rows()), d: block(product.d.in_rows()), ..product };
    assert_eq!(submit(&blocks, [memory.0 + 16, other.0, other.0, memory.0]), Ok(()));
}

#[test]
fn products_are_captured() {
    let stream = stream();
    let product = Product { workspace: 0, beta: 1.0, ..Product::new((F32, F32), (2, 2, 2)) };
    let identity = Buffer::of(&stream, &F32.encode(&[1.0, 0.0, 0.0, 1.0]));
    let b = Buffer::of(&stream, &F32.encode(&[1.0, 2.0, 3.0, 4.0]));
    let d = Buffer::of(&stream, &F32.encode(&[0.0; 4]));
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    product.submit(&stream, [identity.0, b.0, d.0, d.0], 0, 0).unwrap();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(F32.decode(&d.read(16)), [0.0; 4], "captured work must not run");
    for factor in [1.0, 2.0, 3.0] {
        graph.launch().unwrap();
        assert_eq!(F32.decode(&d.read(16)), [1.0, 2.0, 3.0, 4.0].map(|value: f32| value * factor));
    }
}

#[test]
fn names_its_version_and_statuses() {
    drop(stream());
    // SAFETY: the names are strings that are never freed.
    unsafe {
        assert_eq!(sys::cublasLtGetVersion(), 120_803);
        let name = std::ffi::CStr::from_ptr(sys::cublasLtGetStatusName(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        assert_eq!(name.to_str(), Ok("CUBLAS_STATUS_NOT_SUPPORTED"));
    }
}

/// Runs an ignored test of this file in a process of its own, as it leaves the device unusable: what it wrote to stderr.
fn child(test: &str) -> String {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", "--ignored", "--nocapture", test]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("running 1 test"), "there is no test {test}");
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{report}");
    report
}

/// A product with a buffer that is too short, or of which a column was not written.
fn fails(bytes: usize, written: usize) {
    let stream = stream();
    let product = Product { workspace: 0, ..Product::new((F32, F32), (4, 4, 4)) };
    let whole = Buffer::of(&stream, &[0; 64]);
    // SAFETY: no more is written than was allocated.
    let part = unsafe {
        let address = result::malloc_async(stream.cu_stream(), bytes).unwrap();
        result::memset_d8_async(address, 0, written, stream.cu_stream()).unwrap();
        address
    };
    let result = product.submit(&stream, [whole.0, part, whole.0, whole.0], 0, 0);
    assert_eq!(result.map_err(|error| error.0), INVALID, "D is A");
    let d = Buffer::of(&stream, &[0; 64]);
    let result = product.submit(&stream, [whole.0, part, d.0, d.0], 0, 0);
    assert_eq!(result.map_err(|error| error.0), Err(cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED));
    assert!(stream.synchronize().is_err(), "the device has failed");
    // What cannot be freed any more is forgotten.
    std::mem::forget((whole, d));
}

#[test]
#[ignore = "run by out_of_bounds_is_reported"]
fn child_out_of_bounds() {
    fails(60, 60);
}

#[test]
fn out_of_bounds_is_reported() {
    let report = child("child_out_of_bounds");
    assert!(report.contains("ptxsim: cublasLtMatmul: B: "), "{report}");
}

#[test]
#[ignore = "run by unwritten_memory_is_reported"]
fn child_unwritten_memory() {
    fails(64, 48);
}

#[test]
fn unwritten_memory_is_reported() {
    let report = child("child_unwritten_memory");
    assert!(report.contains("ptxsim: cublasLtMatmul: B: ") && report.contains("nothing wrote"), "{report}");
}
