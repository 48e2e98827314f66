//! Kernels with a bug planted in each, all of which must be caught, and the same kernels without, which must run clean.
//! `bugs/*.cu` are the kernels, `bugs/prebuilt/` what nvcc made of them, `bugs/build.sh` makes it again.

use half::bf16;
use ptxsim::{Kernel, Kind, Launch, Memory, Module, Options, Report, run};
use std::collections::BTreeSet;
use std::path::Path;

/// How a bug shows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Caught {
    /// the launch is stopped with a report of this kind
    Report(Kind),
    /// accesses that nothing orders: a race, a copy not waited for, or a read before the write, by which warp ran first
    Order,
    /// the result differs from the reference
    Wrong,
}
use Caught::{Order, Report as By, Wrong};

impl Caught {
    fn includes(self, other: Caught) -> bool {
        self == other || (self == Order && matches!(other, By(Kind::Race) | By(Kind::AsyncCopy) | By(Kind::Unwritten)))
    }
}

/// Every bug of `bugs/*.cu`: kernel, number, how it is caught.
const BUGS: &[(&str, u32, Caught)] = &[
    ("reduce", 1, Order),
    ("reduce", 2, By(Kind::Race)),
    ("reduce", 3, By(Kind::OutOfBounds)),
    ("reduce", 4, By(Kind::OutOfBounds)),
    ("reduce", 5, By(Kind::OutOfBounds)),
    ("reduce", 6, By(Kind::Misaligned)),
    ("reduce", 7, By(Kind::Divergence)),
    ("reduce", 8, By(Kind::Unwritten)),
    ("reduce", 9, By(Kind::Budget)),
    ("reduce", 10, By(Kind::Divergence)),
    ("reduce", 11, By(Kind::Divergence)),
    ("reduce", 12, By(Kind::Divergence)),
    ("reduce", 13, By(Kind::OutOfBounds)),
    ("reduce", 14, By(Kind::Trap)),
    ("reduce", 15, By(Kind::Race)),
    ("warp", 1, By(Kind::Race)),
    ("warp", 2, By(Kind::Race)),
    ("warp", 3, By(Kind::Race)),
    ("warp", 4, By(Kind::Race)),
    ("grid", 1, By(Kind::Race)),
    ("grid", 2, By(Kind::Race)),
    ("grid", 3, By(Kind::Race)),
    ("grid", 4, Wrong),
    ("grid", 5, By(Kind::Race)),
    ("grid", 6, By(Kind::Race)),
    ("copy", 1, By(Kind::AsyncCopy)),
    ("copy", 2, By(Kind::AsyncCopy)),
    ("copy", 3, Order),
    ("copy", 4, Order),
    ("copy", 5, By(Kind::AsyncCopy)),
    ("copy", 6, By(Kind::AsyncCopy)),
    ("copy", 7, By(Kind::Misaligned)),
    ("copy", 8, By(Kind::OutOfBounds)),
    ("gemm", 1, Wrong),
    ("gemm", 2, By(Kind::Race)),
    ("gemm", 3, By(Kind::Divergence)),
    ("gemm", 4, By(Kind::OutOfBounds)),
    ("gemm", 5, By(Kind::Race)),
    ("gemm", 6, By(Kind::Unwritten)),
];

/// A launch with its buffers.
struct Bench {
    module: Module,
    memory: Memory,
    params: Vec<u8>,
    launch: Launch,
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bugs"))
}

impl Bench {
    fn new(kernel: &str, bug: u32, blocks: u32, threads: u32) -> Bench {
        let path = folder().join(format!("prebuilt/{kernel}.{bug}.ptx"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let launch = Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 };
        Bench { module, memory: Memory::new(1 << 20), params: vec![], launch }
    }

    fn kernel(&self) -> &Kernel {
        self.module.kernels().next().expect("a kernel")
    }

    /// Adds a pointer parameter to fresh memory.
    fn fresh(&mut self, bytes: usize) -> u64 {
        let address = self.memory.allocate(bytes).expect("memory");
        self.params.extend(address.to_le_bytes());
        address
    }

    fn array(&mut self, values: &[f32]) -> u64 {
        let address = self.fresh(values.len() * 4);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.memory.write(address, &bytes).expect("in bounds");
        address
    }

    fn halves(&mut self, values: &[f32]) -> u64 {
        let address = self.fresh(values.len() * 2);
        let bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        self.memory.write(address, &bytes).expect("in bounds");
        address
    }

    fn int(&mut self, value: i32) {
        // ints follow pointers here, so there is no padding
        self.params.extend(value.to_le_bytes());
    }

    fn floats(&self, address: u64, n: usize) -> Vec<f32> {
        let mut bytes = vec![0; n * 4];
        self.memory.read(address, &mut bytes).unwrap_or_else(|e| panic!("{e}"));
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
    }

    fn run(&self, options: &Options) -> Result<(), Report> {
        run(self.kernel(), &self.launch, &self.params, &self.memory, options).map(drop)
    }
}

/// Small integers, so that sums are exact in any order.
fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| ((i * 31 + seed) * 7919 % 13) as f32 - 5.0).collect()
}

/// Runs a kernel; the result is whether its values are those of the reference.
fn attempt(kernel: &str, bug: u32, options: &Options) -> Result<bool, Report> {
    match kernel {
        "reduce" => {
            let (rows, cols) = (3, 100);
            let x = values(rows * cols, 1);
            let mut b = Bench::new(kernel, bug, rows as u32, 64);
            b.array(&x);
            let (y, z) = (b.fresh(rows * 4), b.fresh(rows * 4));
            b.int(cols as i32);
            b.run(options)?;
            let sums = |f: fn(f32) -> f32| x.chunks(cols).map(|r| r.iter().map(|&v| f(v)).sum()).collect::<Vec<f32>>();
            Ok(b.floats(y, rows) == sums(|v| v) && b.floats(z, rows) == sums(|v| v * v))
        }
        "warp" => {
            let x = values(4 * 1024, 2);
            let mut b = Bench::new(kernel, bug, 2, 64);
            b.array(&x);
            let y = b.fresh(x.len() * 4);
            b.run(options)?;
            // transposed twice
            Ok(b.floats(y, x.len()) == x)
        }
        "grid" => {
            let n = 300;
            let x = values(n, 3);
            let mut b = Bench::new(kernel, bug, 5, 64);
            b.array(&x);
            let y = b.fresh(n * 4);
            let count = b.fresh(4);
            b.memory.write(count, &[0; 4]).expect("in bounds");
            b.int(n as i32);
            b.run(options)?;
            let at = |i: usize| x.get(i).copied().unwrap_or(0.0);
            let sums: Vec<f32> = (0..n).map(|i| at(i.wrapping_sub(1)) + at(i) + at(i + 1)).collect();
            let mut total = [0; 4];
            b.memory.read(count, &mut total).expect("in bounds");
            let positive = sums.iter().filter(|&&s| s > 0.0).count();
            Ok(b.floats(y, n) == sums && u32::from_le_bytes(total) as usize == positive)
        }
        "copy" => {
            let n = 7;
            let x = values(n * 128, 4);
            let mut b = Bench::new(kernel, bug, 1, 128);
            b.array(&x);
            let y = b.fresh(128 * 4);
            b.int(n as i32);
            b.run(options)?;
            let sums: Vec<f32> = (0..128).map(|i| (0..n).map(|t| x[t * 128 + 127 - i]).sum()).collect();
            Ok(b.floats(y, 128) == sums)
        }
        "gemm" => {
            let k = 48;
            let (x, w) = (values(16 * k, 5), values(8 * k, 6));
            let mut b = Bench::new(kernel, bug, 1, 32);
            b.halves(&x);
            b.halves(&w);
            let c = b.fresh(16 * 8 * 4);
            b.int(k as i32);
            b.run(options)?;
            let dot = |i: usize| (0..k).map(|j| x[i / 8 * k + j] * w[i % 8 * k + j]).sum();
            Ok(b.floats(c, 128) == (0..128).map(dot).collect::<Vec<f32>>())
        }
        _ => panic!("no kernel {kernel}"),
    }
}

fn ways() -> impl Iterator<Item = Options> {
    let all = [(false, 1), (true, 1), (false, 2), (true, 2)];
    all.into_iter().map(|(reverse, threads)| Options { reverse, threads, budget: 100_000, ..Options::default() })
}

#[test]
fn every_planted_bug_is_caught() {
    let mut missed = vec![];
    for &(kernel, bug, expected) in BUGS {
        for options in ways() {
            let caught = match attempt(kernel, bug, &options) {
                Err(report) => {
                    println!("{kernel} {bug}: {report}");
                    Some(By(report.kind))
                }
                Ok(false) => Some(Wrong),
                Ok(true) => None,
            };
            if !caught.is_some_and(|c| expected.includes(c)) {
                missed.push(format!("{kernel} {bug} {options:?}: expected {expected:?}, got {caught:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    assert!(BUGS.len() >= 20);
}

#[test]
fn kernels_without_a_bug_run_clean() {
    for kernel in ["reduce", "warp", "grid", "copy", "gemm"] {
        for options in ways() {
            match attempt(kernel, 0, &options) {
                Ok(right) => assert!(right, "{kernel}: wrong values with {options:?}"),
                Err(report) => panic!("{report} with {options:?}"),
            }
        }
    }
}

#[test]
fn every_bug_in_the_sources_is_listed() {
    let mut planted = BTreeSet::new();
    for entry in std::fs::read_dir(folder()).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "cu") {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            for line in std::fs::read_to_string(&path).expect("a source").lines() {
                if let Some((number, _)) = line.strip_prefix("// BUG ").and_then(|rest| rest.split_once(':')) {
                    planted.insert((name.clone(), number.parse::<u32>().expect("a number")));
                }
            }
        }
    }
    let listed: BTreeSet<_> = BUGS.iter().map(|&(kernel, bug, _)| (kernel.to_string(), bug)).collect();
    assert_eq!(planted, listed);
    let prebuilt = std::fs::read_dir(folder().join("prebuilt")).expect("the folder").count();
    assert_eq!(prebuilt, listed.len() + 5, "run tests/bugs/build.sh");
}

/// A launch of `reduce` with something wrong on the host's side.
fn host(change: impl FnOnce(&mut Bench)) -> Report {
    let mut b = Bench::new("reduce", 0, 2, 64);
    b.array(&values(200, 1));
    b.fresh(8);
    b.fresh(8);
    b.int(100);
    change(&mut b);
    b.run(&Options { threads: 1, ..Options::default() }).expect_err("it should be caught")
}

fn pointer(b: &Bench, index: usize) -> u64 {
    u64::from_le_bytes(b.params[index * 8..index * 8 + 8].try_into().expect("eight bytes"))
}

fn set_pointer(b: &mut Bench, index: usize, to: u64) {
    b.params[index * 8..index * 8 + 8].copy_from_slice(&to.to_le_bytes());
}

#[test]
fn wrong_launches_are_caught() {
    let r = host(|b| set_pointer(b, 0, 0));
    assert_eq!(r.kind, Kind::NullPointer, "{r}");
    let r = host(|b| b.memory.free(pointer(b, 0)).expect("allocated"));
    assert_eq!(r.kind, Kind::FreedMemory, "{r}");
    assert!(r.message.contains("a freed allocation of 800 bytes"), "{r}");
    let r = host(|b| {
        let fresh = b.memory.allocate(800).expect("memory");
        set_pointer(b, 0, fresh);
    });
    assert_eq!(r.kind, Kind::Unwritten, "{r}");
    let r = host(|b| b.params.truncate(24));
    assert_eq!(r.kind, Kind::Parameters, "{r}");
    let r = host(|b| b.params.extend([0; 4]));
    assert_eq!(r.kind, Kind::Parameters, "{r}");
    // pointer and size swapped
    let r = host(|b| b.params.rotate_right(4));
    assert!(matches!(r.kind, Kind::OutOfBounds | Kind::NullPointer | Kind::Misaligned), "{r}");
    let r = host(|b| b.launch.block = [2048, 1, 1]);
    assert_eq!(r.kind, Kind::Geometry, "{r}");
    let r = host(|b| b.launch.block = [64, 0, 1]);
    assert_eq!(r.kind, Kind::Geometry, "{r}");
    let r = host(|b| b.launch.grid = [1, 65536, 1]);
    assert_eq!(r.kind, Kind::Geometry, "{r}");
    let r = host(|b| b.launch.dynamic_shared = 163 << 10);
    assert_eq!(r.kind, Kind::Geometry, "{r}");
    // a block for every row and one more
    let r = host(|b| b.launch.grid = [3, 1, 1]);
    assert_eq!(r.kind, Kind::OutOfBounds, "{r}");
}

#[test]
fn leaks_and_double_frees_are_seen() {
    let memory = Memory::new(1000);
    let a = memory.allocate(600).expect("memory");
    assert!(memory.allocate(600).is_none(), "beyond the capacity");
    let b = memory.allocate(400).expect("memory");
    assert_eq!(memory.used(), 1000);
    memory.free(a).expect("allocated");
    assert_eq!(memory.live(), [(b, 400)]);
    let error = memory.free(a).expect_err("freed before");
    assert!(error.to_string().contains("freed allocation of 600 bytes"), "{error}");
    assert!(memory.free(b + 4).is_err());
    assert!(memory.write(b, &[0; 401]).is_err());
    assert!(memory.read(b, &mut [0; 4]).is_err(), "nothing wrote it");
}

#[test]
fn a_report_names_everything() {
    let report = attempt("reduce", 4, &Options { threads: 1, ..Options::default() }).expect_err("out of bounds");
    let text = report.to_string();
    for part in ["kernel reduce", "block (2,0,0)", "thread (0,0,0)", "reduce.cu:", "0 bytes after the end", "12 bytes"]
    {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
    // a line of a device function, and the line of the kernel that it was inlined at
    let report = attempt("reduce", 1, &Options { threads: 1, ..Options::default() }).expect_err("a race");
    let location = report.location.clone().expect("a location");
    assert_eq!(location.file, "reduce.cu");
    assert!(location.outer.is_some(), "{report}");
}
