//! Results against f64, the same bits whatever the order of blocks and the number of threads, and a parser that never
//! panics.

use half::bf16;
use ptxsim::{Launch, Memory, Module, Options, Stats, run};

fn ptx(name: &str) -> String {
    let path = format!("{}/tests/bugs/prebuilt/{name}.0.ptx", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Numbers in [-1, 1).
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn ways() -> impl Iterator<Item = Options> {
    let all = [(false, 1), (true, 1), (false, 2), (true, 2), (false, 3)];
    let checked = all.into_iter().map(|(reverse, threads)| Options { reverse, threads, ..Options::default() });
    checked.flat_map(|o| [o, Options { checks: false, ..o }])
}

/// Runs a kernel of pointers and one int; gives the bytes of the last pointer's memory.
fn launch(
    name: &str,
    grid: u32,
    block: u32,
    inputs: &[Vec<u8>],
    outputs: &[usize],
    n: i32,
    o: &Options,
) -> (Vec<u8>, Stats) {
    let module = Module::parse(&ptx(name)).expect("valid PTX");
    let kernel = module.kernels().next().expect("a kernel");
    let memory = Memory::new(1 << 24);
    let mut params = vec![];
    for input in inputs {
        let at = memory.allocate(input.len()).expect("memory");
        memory.write(at, input).expect("in bounds");
        params.extend(at.to_le_bytes());
    }
    let mut last = 0;
    for &bytes in outputs {
        last = memory.allocate(bytes).expect("memory");
        params.extend(last.to_le_bytes());
    }
    params.extend(n.to_le_bytes());
    let shape = Launch { grid: [grid, 1, 1], block: [block, 1, 1], dynamic_shared: 0 };
    let stats = run(kernel, &shape, &params, &memory, o).unwrap_or_else(|report| panic!("{report}"));
    let mut out = vec![0; *outputs.last().expect("an output")];
    memory.read(last, &mut out).expect("all written");
    (out, stats)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

#[test]
fn row_sums() {
    let (rows, cols) = (37, 1000);
    let x = random(rows * cols, 1);
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut first: Option<(Vec<u8>, Stats)> = None;
    for options in ways() {
        let result = launch(
            "reduce",
            rows as u32,
            256,
            std::slice::from_ref(&bytes),
            &[rows * 4, rows * 4],
            cols as i32,
            &options,
        );
        for (row, sum) in x.chunks(cols).zip(floats(&result.0)) {
            let exact: f64 = row.iter().map(|&v| (v as f64).powi(2)).sum();
            assert!((sum as f64 - exact).abs() < 1e-6 * exact, "{sum} {exact}");
        }
        match &first {
            None => first = Some(result),
            Some(first) => assert_eq!(*first, result, "{options:?}"),
        }
    }
    let (_, stats) = first.expect("ran");
    assert_eq!(stats.global_read, (rows * cols * 4) as u64);
    assert_eq!(stats.global_written, (rows * 8) as u64);
    assert_eq!((stats.blocks, stats.mma, stats.barriers), (rows as u64, 0, 3 * rows as u64));
}

#[test]
fn matrix_product() {
    let k = 512;
    let halves = |n, seed| random(n, seed).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (halves(16 * k, 2), halves(8 * k, 3));
    let bytes = |x: &[bf16]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut first: Option<(Vec<u8>, Stats)> = None;
    for options in ways() {
        let result = launch("gemm", 1, 32, &[bytes(&a), bytes(&b)], &[512], k as i32, &options);
        for (i, &c) in floats(&result.0).iter().enumerate() {
            let terms = (0..k).map(|j| a[i / 8 * k + j].to_f64() * b[i % 8 * k + j].to_f64());
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
            assert!((c as f64 - exact).abs() < 1e-6 * size, "element {i}: {c} {exact}");
        }
        match &first {
            None => first = Some(result),
            Some(first) => assert_eq!(*first, result, "{options:?}"),
        }
    }
    assert_eq!(first.expect("ran").1.mma, 32);
}

/// Text with something wrong is an error or still a module, never a panic.
#[test]
fn damaged_text_is_no_panic() {
    let text = ptx("reduce") + &ptx("gemm");
    let tokens: Vec<&str> = text.split_inclusive([' ', '\t', '\n', ',', ';', '[', ']', '{', '}']).collect();
    let mut state = 7u64;
    let mut pick = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut accepted = 0;
    for _ in 0..1500 {
        let mut damaged = tokens.clone();
        for _ in 0..1 + pick(3) {
            let (at, from) = (pick(damaged.len()), pick(damaged.len()));
            match pick(3) {
                0 => drop(damaged.remove(at)),
                1 => damaged.insert(at, damaged[from]),
                _ => damaged[at] = damaged[from],
            }
        }
        accepted += Module::parse(&damaged.concat()).is_ok() as usize;
    }
    assert!(accepted < 1500);
    for cut in (0..text.len()).step_by(97).filter(|&at| text.is_char_boundary(at)) {
        let _ = Module::parse(&text[..cut]);
    }
}
