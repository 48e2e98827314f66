//! Products: `cublasLtMatmulAlgoGetHeuristic` and `cublasLtMatmul`.

use crate::abi::{Out, entry_points};
use crate::descriptor::{DESCRIPTORS, LAYOUTS, PREFERENCES, Type};
use crate::driver::{Driver, Work, driver};
use crate::problem::{Activation, Operand, Problem};
use crate::product::{TILE_COLS, TILE_ROWS, pack, product};
use crate::status::{Result, Status, refuse};
use half::{bf16, f16};
use std::ffi::{CStr, c_int};

/// The first word of an algorithm.
const MAGIC: u64 = u64::from_le_bytes(*b"ptxsim\0\0");
/// The workspace that the algorithm asks for, where it is let: so that one too small, or in use, is noticed.
const WORKSPACE: u64 = 64 << 10;
/// What a workspace's address is a multiple of.
const WORKSPACE_ALIGNMENT: u64 = 16;

/// `cublasLtMatmulAlgo_t`: the problem it is for, and what was promised when it was asked for.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Algorithm {
    magic: u64,
    fingerprint: u64,
    workspace: u64,
    alignment: [u32; 4],
    _reserved: [u64; 3],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub struct HeuristicResult {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    _reserved: [c_int; 4],
}

/// A product, with addresses: what a stream does.
struct Product {
    problem: Problem,
    alpha: f32,
    beta: f32,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    bias: u64,
    /// Address and size.
    workspace: (u64, usize),
}

fn problem(descriptor: usize, layouts: [usize; 4]) -> Result<(Problem, u64)> {
    let descriptor = DESCRIPTORS.get(descriptor)?;
    let [a, b, c, d] = layouts.map(|layout| LAYOUTS.get(layout));
    Ok((Problem::new(&descriptor, &a?, &b?, &c?, &d?)?, descriptor.bias))
}

entry_points! {
    /// The one algorithm there is, if the product is supported.
    fn cublasLtMatmulAlgoGetHeuristic(
        handle: usize,
        descriptor: usize,
        a: usize,
        b: usize,
        c: usize,
        d: usize,
        preference: usize,
        wanted: c_int,
        result: Out<HeuristicResult>,
        found: Out<c_int>,
    ) {
        found.set(0)?;
        crate::HANDLES.get(handle)?;
        let preference = PREFERENCES.get(preference)?;
        if wanted < 1 {
            return Err(Status::INVALID_VALUE);
        }
        let (problem, _) = problem(descriptor, [a, b, c, d])?;
        let workspace = preference.workspace.min(WORKSPACE);
        let algorithm = Algorithm {
            magic: MAGIC,
            fingerprint: problem.fingerprint(),
            workspace,
            alignment: preference.alignment,
            _reserved: [0; 3],
        };
        result.set(HeuristicResult {
            algorithm,
            workspace: workspace as usize,
            state: 0,
            waves: 1.0,
            _reserved: [0; 4],
        })?;
        found.set(1)
    }

    /// Computes a product in a stream. Scalars are on the host, and read now.
    fn cublasLtMatmul(
        handle: usize,
        descriptor: usize,
        alpha: *const f32,
        a: u64,
        a_layout: usize,
        b: u64,
        b_layout: usize,
        beta: *const f32,
        c: u64,
        c_layout: usize,
        d: u64,
        d_layout: usize,
        algorithm: *const Algorithm,
        workspace: u64,
        workspace_bytes: usize,
        stream: usize,
    ) {
        crate::HANDLES.get(handle)?;
        let (problem, bias) = problem(descriptor, [a_layout, b_layout, c_layout, d_layout])?;
        // SAFETY: the caller promises null or a host scalar of the scale type, which is f32.
        let scalar = |pointer: *const f32| unsafe { pointer.as_ref() }.copied().ok_or(Status::INVALID_VALUE);
        let mut work = Product {
            alpha: scalar(alpha)?,
            beta: scalar(beta)?,
            problem,
            a,
            b,
            c,
            d,
            bias,
            workspace: (0, 0),
        };
        // SAFETY: the caller promises null or an algorithm.
        if let Some(algorithm) = unsafe { algorithm.as_ref() } {
            algorithm.check(&work)?;
            work.workspace = algorithm.workspace(workspace, workspace_bytes)?;
        }
        work.check()?;
        driver()?.enqueue(stream, work)
    }
}

impl Algorithm {
    /// Refuses a product that the algorithm was not found for.
    fn check(&self, work: &Product) -> Result {
        if self.magic != MAGIC || self.fingerprint != work.problem.fingerprint() {
            return refuse(
                Status::INVALID_VALUE,
                "the algorithm was found for another product; ask the heuristic again",
            );
        }
        let addresses = [work.a, work.b, work.c, work.d];
        for ((address, alignment), name) in addresses.into_iter().zip(self.alignment).zip(["A", "B", "C", "D"]) {
            if address % u64::from(alignment) != 0 {
                let why = format!(
                    "{name} is at {address:#x}; the heuristic was told that it is a multiple of {alignment} \
                     (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{name}_BYTES)"
                );
                return refuse(Status::INVALID_VALUE, why);
            }
        }
        Ok(())
    }

    /// The workspace, where one is needed.
    fn workspace(&self, address: u64, bytes: usize) -> Result<(u64, usize)> {
        if (bytes as u64) < self.workspace {
            let why = format!("a workspace of {bytes} bytes; the algorithm asks for {}", self.workspace);
            return refuse(Status::INVALID_VALUE, why);
        }
        if self.workspace > 0 && (address == 0 || !address.is_multiple_of(WORKSPACE_ALIGNMENT)) {
            let why = format!("a workspace at {address:#x}; expected a multiple of {WORKSPACE_ALIGNMENT}, not null");
            return refuse(Status::INVALID_VALUE, why);
        }
        Ok((address, self.workspace as usize))
    }
}

impl Product {
    /// Refuses addresses that are null, not aligned to an element, or where D overlaps what is read.
    fn check(&self) -> Result {
        let Problem { a, b, c, d, bias, .. } = &self.problem;
        let mut named =
            vec![("A", self.a, a.kind), ("B", self.b, b.kind), ("C", self.c, c.kind), ("D", self.d, d.kind)];
        named.extend(bias.map(|bias| ("the bias", self.bias, bias.kind)));
        for (name, address, kind) in named {
            if address == 0 || !address.is_multiple_of(kind.size() as u64) {
                let why = format!("{name} is at {address:#x}; expected a multiple of {}, not null", kind.size());
                return refuse(Status::INVALID_VALUE, why);
            }
        }
        let in_place = self.c == self.d && c == d;
        for (name, operand, address) in [("A", a, self.a), ("B", b, self.b), ("C", c, self.c)] {
            if !(name == "C" && (in_place || self.beta == 0.0)) && d.overlaps(self.d, operand, address) {
                let why = format!("D overlaps {name}; expected separate memory, or C and D the same matrix");
                return refuse(Status::INVALID_VALUE, why);
            }
        }
        Ok(())
    }

    fn element(&self, operand: &Operand, address: u64) -> impl Fn(usize, usize) -> f32 + '_ {
        let Operand { kind, strides: (row_stride, col_stride), .. } = *operand;
        let round = if self.problem.tf32 { to_tf32 } else { |value| value };
        // SAFETY: `run` checked that all elements of the operand can be read.
        move |row, col| round(unsafe { load(kind, address, row * row_stride + col * col_stride) })
    }
}

impl Work for Product {
    fn run(&self, driver: &Driver) -> std::result::Result<(), c_int> {
        let Problem { m, n, k, batches, a, b, c, d, bias, activation, .. } = self.problem;
        let read = |operand: &Operand, address, what: &CStr| {
            operand.runs(address).try_for_each(|(start, bytes)| driver.readable(start, bytes, what).map(drop))
        };
        read(&a, self.a, c"cublasLtMatmul: A")?;
        read(&b, self.b, c"cublasLtMatmul: B")?;
        if self.beta != 0.0 {
            read(&c, self.c, c"cublasLtMatmul: C")?;
        }
        if let Some(bias) = bias {
            for batch in 0..batches {
                let start = self.bias + (batch * bias.batch_stride * bias.kind.size()) as u64;
                driver.readable(start, m * bias.kind.size(), c"cublasLtMatmul: bias")?;
            }
        }
        let (address, bytes) = self.workspace;
        if bytes > 0 {
            let workspace = driver.writable(address, bytes, c"cublasLtMatmul: workspace")?;
            // What is there is lost, as it is on a GPU.
            // SAFETY: the driver said that these bytes can be written.
            unsafe { workspace.write_bytes(0xff, bytes) };
        }
        for (start, bytes) in d.runs(self.d) {
            driver.writable(start, bytes, c"cublasLtMatmul: D")?;
        }
        for batch in 0..batches {
            let at = |operand: &Operand, address| address + (batch * operand.batch_stride * operand.kind.size()) as u64;
            let (a_element, b_element) = (self.element(&a, at(&a, self.a)), self.element(&b, at(&b, self.b)));
            let packed_a = pack(m, k, TILE_ROWS, a_element);
            let packed_b = pack(n, k, TILE_COLS, |col, step| b_element(step, col));
            let sums = product(m, n, k, &packed_a, &packed_b);
            let (c_address, d_address) = (at(&c, self.c), at(&d, self.d));
            for (index, sum) in sums.into_iter().enumerate() {
                let (row, col) = (index % m, index / m);
                let mut value = self.alpha * sum;
                if self.beta != 0.0 {
                    // SAFETY: all elements of C can be read, as checked above.
                    value += self.beta * unsafe { load(c.kind, c_address, row * c.strides.0 + col * c.strides.1) };
                }
                if let Some(bias) = bias {
                    // SAFETY: `m` elements for each matrix can be read, as checked above.
                    value += unsafe { load(bias.kind, self.bias, batch * bias.batch_stride + row) };
                }
                let value = match activation {
                    Activation::None => value,
                    Activation::Relu => value.max(0.0),
                    Activation::Gelu => gelu(value),
                };
                // SAFETY: all elements of D can be written, as checked above.
                unsafe { store(d.kind, d_address, row * d.strides.0 + col * d.strides.1, value) };
            }
        }
        Ok(())
    }
}

/// # Safety
/// The element can be read.
unsafe fn load(kind: Type, address: u64, index: usize) -> f32 {
    // SAFETY: promised by the caller; addresses are aligned to the element (`Product::check`).
    unsafe {
        match kind {
            Type::F32 => *(address as *const f32).add(index),
            Type::F16 => (*(address as *const f16).add(index)).to_f32(),
            Type::Bf16 => (*(address as *const bf16).add(index)).to_f32(),
        }
    }
}

/// # Safety
/// The element can be written.
unsafe fn store(kind: Type, address: u64, index: usize, value: f32) {
    // SAFETY: promised by the caller; addresses are aligned to the element (`Product::check`).
    unsafe {
        match kind {
            Type::F32 => *(address as *mut f32).add(index) = value,
            Type::F16 => *(address as *mut f16).add(index) = f16::from_f32(value),
            Type::Bf16 => *(address as *mut bf16).add(index) = bf16::from_f32(value),
        }
    }
}

/// The nearest number with a mantissa of 10 bits; of two, the one away from 0.
fn to_tf32(value: f32) -> f32 {
    if value.is_finite() { f32::from_bits(value.to_bits().wrapping_add(0x1000) & !0x1fff) } else { value }
}

/// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).
fn gelu(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}
