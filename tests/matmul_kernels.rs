//! `kernels/matmul.cu` by itself: layouts, strides, addresses and epilogues that no model of the tests reaches, against
//! sums in f64, with all of the interpreter's checks on.

use half::bf16;
use ptxsim::{Kernel, Launch, Memory, Module, Options, run};

const PTX: &str = include_str!("../kernels/prebuilt/matmul.ptx");

/// Elements as the kernels store them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    F32,
    Bf16,
}

impl Type {
    fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn round(self, x: f32) -> f32 {
        if self == Self::F32 { x } else { bf16::from_f32(x).to_f32() }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    fn values(self, bytes: &[u8]) -> Vec<f32> {
        let word = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        match self {
            Self::F32 => bytes.chunks(4).map(word).collect(),
            Self::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    shape: (usize, usize, usize),
    /// Elements between the rows of y, x and w that belong to neither: nothing has written them.
    gaps: [usize; 3],
    /// Elements before the first of x and w.
    offset: usize,
    bias: bool,
    accumulate: bool,
    activation: i32,
    alpha: f32,
    y_is_f32: bool,
    splits: usize,
}

/// One argument of a launch.
#[derive(Clone, Copy)]
enum Arg {
    Address(u64),
    Int(usize),
    Float(f32),
}

fn pack(kernel: &Kernel, args: &[Arg]) -> Vec<u8> {
    assert_eq!(kernel.params().len(), args.len(), "{}", kernel.name());
    let mut packed = vec![0; kernel.param_bytes()];
    for (param, arg) in kernel.params().iter().zip(args) {
        let bytes = match *arg {
            Arg::Address(address) => address.to_le_bytes().to_vec(),
            Arg::Int(value) => i32::try_from(value).unwrap().to_le_bytes().to_vec(),
            Arg::Float(value) => value.to_le_bytes().to_vec(),
        };
        assert_eq!(bytes.len(), param.size, "{}: {}", kernel.name(), param.name);
        packed[param.offset..][..bytes.len()].copy_from_slice(&bytes);
    }
    packed
}

/// A matrix whose rows lie `ld` elements apart, `offset` elements into an allocation of its own.
struct Matrix {
    allocation: u64,
    address: u64,
    rows: usize,
    cols: usize,
    ld: usize,
    dtype: Type,
}

impl Matrix {
    fn new(memory: &Memory, rows: usize, cols: usize, gap: usize, offset: usize, dtype: Type) -> Self {
        let ld = cols + gap;
        let allocation = memory.allocate((offset + (rows - 1) * ld + cols) * dtype.size()).unwrap();
        let address = allocation + (offset * dtype.size()) as u64;
        Self { allocation, address, rows, cols, ld, dtype }
    }

    fn row(&self, row: usize) -> u64 {
        self.address + (row * self.ld * self.dtype.size()) as u64
    }

    fn write(&self, memory: &Memory, values: &[f32]) {
        for (row, values) in values.chunks(self.cols).enumerate() {
            memory.write(self.row(row), &self.dtype.bytes(values)).unwrap();
        }
    }

    fn read(&self, memory: &Memory) -> Vec<f32> {
        let mut bytes = vec![0; self.cols * self.dtype.size()];
        let mut values = Vec::new();
        for row in 0..self.rows {
            memory.read(self.row(row), &mut bytes).unwrap();
            values.extend(self.dtype.values(&bytes));
        }
        values
    }
}

/// Numbers in (−1, 1) from a seed.
fn numbers(seed: u64, count: usize, dtype: Type) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        dtype.round((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

fn activate(x: f64, activation: i32) -> f64 {
    match activation {
        1 => x.max(0.0),
        2 => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
        3 => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh()),
        4 => x / (1.0 + (-x).exp()),
        _ => x,
    }
}

/// Runs a case and returns y with what it should be.
fn compute(
    module: &Module,
    layout: &str,
    tile: usize,
    dtype: Type,
    case: &Case,
    reverse: bool,
) -> (Vec<f32>, Vec<f64>) {
    let Case { shape: (m, n, k), gaps, offset, bias, accumulate, activation, alpha, y_is_f32, splits } = *case;
    let y_type = if y_is_f32 { Type::F32 } else { dtype };
    let (x_shape, w_shape) = match layout {
        "nt" => ((m, k), (n, k)),
        "nn" => ((m, k), (k, n)),
        _ => ((k, m), (k, n)),
    };
    let memory = Memory::new(1 << 28);
    let x = Matrix::new(&memory, x_shape.0, x_shape.1, gaps[1], offset, dtype);
    let w = Matrix::new(&memory, w_shape.0, w_shape.1, gaps[2], offset, dtype);
    let y = Matrix::new(&memory, m, n, gaps[0], 0, y_type);
    let b = Matrix::new(&memory, 1, n, 0, 0, dtype);
    let x_values = numbers(1, m * k, dtype);
    let w_values = numbers(2, n * k, dtype);
    let b_values = numbers(3, n, dtype);
    let before = numbers(4, m * n, y_type);
    x.write(&memory, &x_values);
    w.write(&memory, &w_values);
    b.write(&memory, &b_values);
    if accumulate {
        y.write(&memory, &before);
    }

    let suffix = if dtype == Type::F32 { "f32" } else { "bf16" };
    let (small, threads) = if tile == 64 { ("_small", 128) } else { ("", 256) };
    let launch = |name: &str, grid: [usize; 3], threads: u32, args: &[Arg]| {
        let kernel = module.kernel(name).unwrap_or_else(|| panic!("no kernel {name}"));
        let launch = Launch { grid: grid.map(|n| n as u32), block: [threads, 1, 1], dynamic_shared: 0 };
        let options = Options { checks: true, reverse, ..Options::default() };
        run(kernel, &launch, &pack(kernel, args), &memory, &options).unwrap_or_else(|report| panic!("{report}"));
    };
    let span = if splits == 1 { k } else { k.div_ceil(splits).next_multiple_of(32) };
    let splits = k.div_ceil(span);
    let parts = (splits > 1).then(|| Matrix::new(&memory, splits * m, n, 0, 0, Type::F32));
    let bias = Arg::Address(if bias { b.address } else { 0 });
    let end = [Arg::Int(accumulate.into()), Arg::Int(activation as usize)];
    let (target, its_bias, its_end) = match &parts {
        Some(parts) => (parts, Arg::Address(0), [Arg::Int(0), Arg::Int(0)]),
        None => (&y, bias, end),
    };
    let mut args = vec![Arg::Address(target.address), Arg::Address(x.address), Arg::Address(w.address), its_bias];
    args.extend([m, n, k, target.ld, x.ld, w.ld].map(Arg::Int));
    args.push(Arg::Float(alpha));
    args.extend(its_end);
    if dtype == Type::Bf16 {
        args.push(Arg::Int((target.dtype == Type::F32).into()));
    }
    args.push(Arg::Int(span));
    let grid = [m.div_ceil(tile), n.div_ceil(tile), splits];
    launch(&format!("matmul_{layout}{small}_{suffix}"), grid, threads, &args);
    if let Some(parts) = &parts {
        let mut args = vec![Arg::Address(y.address), Arg::Address(parts.address), bias];
        args.extend([m, n, y.ld].map(Arg::Int));
        args.extend(end);
        if dtype == Type::Bf16 {
            args.push(Arg::Int(y_is_f32.into()));
        }
        args.push(Arg::Int(splits));
        launch(&format!("matmul_join_{suffix}"), [(m * n).div_ceil(256), 1, 1], 256, &args);
    }

    let mut want = Vec::with_capacity(m * n);
    for row in 0..m {
        for col in 0..n {
            let term = |i: usize| {
                let x = if layout == "tn" { x_values[i * m + row] } else { x_values[row * k + i] };
                let w = if layout == "nt" { w_values[col * k + i] } else { w_values[i * n + col] };
                f64::from(x) * f64::from(w)
            };
            let sum = f64::from(alpha) * (0..k).map(term).sum::<f64>();
            let shift = if case.bias { f64::from(b_values[col]) } else { 0.0 };
            let added = if accumulate { f64::from(before[row * n + col]) } else { 0.0 };
            want.push(activate(sum + shift, activation) + added);
        }
    }
    let got = y.read(&memory);
    for matrix in [&x, &w, &y, &b] {
        memory.free(matrix.allocation).unwrap();
    }
    (got, want)
}

fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 1),
        (31, 33, 123),
        (33, 31, 8),
        (123, 200, 33),
        (200, 123, 64),
        (130, 300, 31),
        (1, 300, 200),
        (129, 1, 100),
        (128, 128, 96),
    ];
    let mut cases = Vec::new();
    for (i, shape) in shapes.into_iter().enumerate() {
        let plain = Case {
            shape,
            gaps: [0; 3],
            offset: 0,
            bias: false,
            accumulate: false,
            activation: 0,
            alpha: 1.0,
            y_is_f32: i % 2 == 0,
            splits: 1,
        };
        cases.push(plain);
        // Rows that start at multiples of 16 bytes though they are not as long, and rows that do not.
        let gaps = [3, 8usize.wrapping_sub(shape.2 % 8) % 8, 8];
        cases.push(Case { gaps, bias: i % 2 == 0, accumulate: i % 3 == 0, alpha: 0.5, ..plain });
        let activation = i as i32 % 5;
        let odd = Case { gaps: [1, 5, 3], offset: i % 3, bias: true, accumulate: true, activation, ..plain };
        cases.push(Case { y_is_f32: !plain.y_is_f32, ..odd });
        if shape.2 > 32 {
            cases.push(Case { splits: 2 + i % 3, gaps: [0, 2, 0], alpha: 2.0, ..odd });
        }
    }
    cases
}

fn check(layout: &str) {
    let module = Module::parse(PTX).unwrap();
    for (dtype, tile) in [(Type::F32, 64), (Type::F32, 128), (Type::Bf16, 64), (Type::Bf16, 128)] {
        for (i, case) in cases().into_iter().enumerate() {
            let (got, want) = compute(&module, layout, tile, dtype, &case, false);
            let size: f64 = want.iter().map(|x| x * x).sum();
            let error: f64 = got.iter().zip(&want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
            let allowed = if dtype == Type::Bf16 && !case.y_is_f32 { 1e-5 } else { 1e-10 };
            assert!(error <= allowed * size, "{layout} {dtype:?} {tile}: off by {:e}: {case:?}", error / size);
            if i % 5 == 0 {
                let (again, _) = compute(&module, layout, tile, dtype, &case, true);
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&again), "blocks in another order: {layout} {dtype:?} {tile} {case:?}");
            }
        }
    }
}

#[test]
fn products_with_a_row_per_output() {
    check("nt");
}

#[test]
fn products_with_a_row_per_input() {
    check("nn");
}

#[test]
fn products_with_a_transposed_left_side() {
    check("tn");
}
