//! The attention kernels by themselves, in every head size they are compiled for and with what no op passes them yet: an
//! additive bias by relative position. Forward and backward against the formulas in f64, with all of the interpreter's
//! checks on, blocks in both orders.

use half::bf16;
use ptxsim::{Launch, Memory, Module, Options, run};
use softprompt::layout::{Layout, Segment, Segments, Sequence};

mod generated {
    #![allow(dead_code, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// What the plan finds under this name in the crate.
mod layout {
    pub(crate) use softprompt::layout::{Segment, Segments};
}
#[path = "../src/ops/attention/plan.rs"]
mod plan;

const TABLE_WIDTH: usize = 40;
const TABLE_OFFSET: usize = 15;

struct Case {
    segments: Segments,
    heads: (usize, usize),
    dim: usize,
    has_bias: bool,
    is_bf16: bool,
    /// Leading rows with gradient, of queries and of keys.
    gradient_rows: (usize, usize),
}

impl Case {
    fn group(&self) -> usize {
        self.heads.0 / self.heads.1
    }

    fn scale(&self) -> f64 {
        1.0 / (self.dim as f64).sqrt()
    }

    fn describe(&self) -> String {
        let Self { segments, heads, dim, has_bias, is_bf16, .. } = self;
        let (queries, keys) = (segments.query_rows(), segments.key_rows());
        format!("{queries} queries, {keys} keys, heads {heads:?} of {dim}, bias {has_bias}, bf16 {is_bf16}")
    }
}

struct Operands {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Vec<f64>,
    bias: Vec<f64>,
    query_positions: Vec<i32>,
    key_positions: Vec<i32>,
}

impl Operands {
    fn new(case: &Case) -> Self {
        let (queries, keys) = (case.segments.query_rows(), case.segments.key_rows());
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut numbers = |count: usize| -> Vec<f64> {
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Few bits: exact in bf16 too.
                (state >> 57) as f64 / 64.0 - 1.0
            };
            (0..count).map(|_| next()).collect()
        };
        Self {
            q: numbers(queries * case.heads.0 * case.dim),
            k: numbers(keys * case.heads.1 * case.dim),
            v: numbers(keys * case.heads.1 * case.dim),
            d_o: numbers(queries * case.heads.0 * case.dim),
            bias: numbers(case.heads.0 * TABLE_WIDTH),
            // Distances on both sides of the table's ends.
            query_positions: (0..queries as i32).map(|i| i * 3 % 50).collect(),
            key_positions: (0..keys as i32).map(|i| i * 7 % 60).collect(),
        }
    }
}

/// o, lse, dq, dk, dv by the formulas; `stored` is what becomes of a matrix between products.
fn expected(case: &Case, x: &Operands, stored: fn(f64) -> f64) -> [Vec<f64>; 5] {
    let (dim, heads, group) = (case.dim, case.heads, case.group());
    let mut o = vec![0.0; x.q.len()];
    let mut lse = vec![0.0; case.segments.query_rows() * heads.0];
    let [mut dq, mut dk, mut dv] = [x.q.len(), x.k.len(), x.v.len()].map(|len| vec![0.0; len]);
    for segment in case.segments.as_slice() {
        for query in segment.queries.clone() {
            let own = segment.own.start..segment.own.start + case.segments.visible()[query];
            let keys: Vec<usize> = segment.context.iter().cloned().flatten().chain(own).collect();
            for head in 0..heads.0 {
                let at = (query * heads.0 + head) * dim;
                let row = |key: usize| (key * heads.1 + head / group) * dim;
                let dot = |a: &[f64], b: &[f64], b_at: usize| -> f64 {
                    (0..dim).map(|i| a[at + i] * b[b_at + i]).sum::<f64>()
                };
                let score = |&key: &usize| {
                    let distance = x.key_positions[key] - x.query_positions[query] + TABLE_OFFSET as i32;
                    let bucket = distance.clamp(0, TABLE_WIDTH as i32 - 1) as usize;
                    let bias = if case.has_bias { x.bias[head * TABLE_WIDTH + bucket] } else { 0.0 };
                    stored(stored(case.scale() * stored(dot(&x.q, &x.k, row(key)))) + bias)
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
                lse[query * heads.0 + head] = sum;
                let p: Vec<f64> = scores.iter().map(|s| stored((s - sum).exp())).collect();
                let dp: Vec<f64> = keys.iter().map(|&key| stored(dot(&x.d_o, &x.v, row(key)))).collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for ((&key, p), dp) in keys.iter().zip(&p).zip(&dp) {
                    let ds = stored(case.scale() * stored(p * (dp - delta)));
                    for i in 0..dim {
                        o[at + i] += p * x.v[row(key) + i];
                        dq[at + i] += ds * x.k[row(key) + i];
                        dk[row(key) + i] += ds * x.q[at + i];
                        dv[row(key) + i] += p * x.d_o[at + i];
                    }
                }
            }
        }
    }
    dq.truncate(case.gradient_rows.0 * heads.0 * dim);
    [&mut dk, &mut dv].into_iter().for_each(|gradient| gradient.truncate(case.gradient_rows.1 * heads.1 * dim));
    let [o, dq, dk, dv] = [o, dq, dk, dv].map(|values| values.into_iter().map(stored).collect());
    [o, lse, dq, dk, dv]
}

/// Normalised squared error.
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
    difference / want.iter().map(|x| x * x).sum::<f64>()
}

#[derive(Clone, Copy)]
enum Arg {
    Address(u64),
    Int(usize),
    Float(f64),
}
use Arg::{Address, Float, Int};

struct Gpu {
    memory: Memory,
    modules: Vec<Module>,
    is_bf16: bool,
    reverse: bool,
}

impl Gpu {
    fn new(size: usize, is_bf16: bool, reverse: bool) -> Self {
        let names = ["attention".to_owned(), format!("attention_d{size}")];
        let parse = |name: &String| {
            let ptx = generated::MODULES.iter().find(|(op, _)| op == name).unwrap_or_else(|| panic!("no {name}")).1;
            Module::parse(ptx).unwrap()
        };
        Self { memory: Memory::new(1 << 28), modules: names.iter().map(parse).collect(), is_bf16, reverse }
    }

    fn suffix(&self) -> &'static str {
        if self.is_bf16 { "bf16" } else { "f32" }
    }

    fn element(&self) -> usize {
        if self.is_bf16 { 2 } else { 4 }
    }

    fn new_bytes(&self, bytes: usize) -> u64 {
        self.memory.allocate(bytes.max(1)).unwrap()
    }

    fn new_elements(&self, count: usize) -> u64 {
        self.new_bytes(count * self.element())
    }

    fn upload(&self, bytes: &[u8]) -> u64 {
        let address = self.new_bytes(bytes.len());
        self.memory.write(address, bytes).unwrap();
        address
    }

    fn ints(&self, values: &[i32]) -> u64 {
        self.upload(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    }

    fn floats(&self, values: &[f64]) -> u64 {
        self.upload(&values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect::<Vec<_>>())
    }

    fn elements(&self, values: &[f64]) -> u64 {
        if self.is_bf16 {
            self.upload(&values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect::<Vec<_>>())
        } else {
            self.floats(values)
        }
    }

    fn read(&self, address: u64, count: usize, is_bf16: bool) -> Vec<f64> {
        let mut bytes = vec![0; count * if is_bf16 { 2 } else { 4 }];
        self.memory.read(address, &mut bytes).unwrap();
        match is_bf16 {
            true => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
            false => bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        }
    }

    fn launch(&self, name: &str, grid: [usize; 3], threads: u32, shared: usize, args: &[Arg]) {
        if grid.contains(&0) {
            return;
        }
        let name = format!("attention_{name}_{}", self.suffix());
        let kernel = self.modules.iter().find_map(|module| module.kernel(&name)).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(kernel.params().len(), args.len(), "{name}");
        let mut params = vec![0; kernel.param_bytes()];
        for (param, arg) in kernel.params().iter().zip(args) {
            let word = match *arg {
                Address(address) => address.to_le_bytes().to_vec(),
                Int(value) => (value as i32).to_le_bytes().to_vec(),
                Float(value) => (value as f32).to_le_bytes().to_vec(),
            };
            assert_eq!(word.len(), param.size, "{name}: {}", param.name);
            params[param.offset..][..word.len()].copy_from_slice(&word);
        }
        // What every GPU from sm_80 on has.
        assert!(shared <= 99 * 1024, "{name} asks for {shared} bytes of shared memory");
        let launch =
            Launch { grid: grid.map(|count| count as u32), block: [threads, 1, 1], dynamic_shared: shared as u32 };
        let options = Options { reverse: self.reverse, ..Options::default() };
        run(kernel, &launch, &params, &self.memory, &options).unwrap_or_else(|report| panic!("{report}"));
    }
}

/// o, lse, dq, dk, dv by the kernels.
fn computed(case: &Case, x: &Operands, reverse: bool) -> [Vec<f64>; 5] {
    let size = [32, 64, 96, 128, 256].into_iter().find(|&size| case.dim <= size).unwrap();
    let gpu = Gpu::new(size, case.is_bf16, reverse);
    let (dim, (query_heads, key_heads), group) = (case.dim, case.heads, case.group());
    let (queries, query_width, width) = (case.segments.query_rows(), query_heads * dim, key_heads * dim);
    let (query_rows, key_rows) = case.gradient_rows;
    // As kernels/attention_d*.cu say.
    let is_wide = size == 256;
    let (tile, buffers) = if case.is_bf16 { (64, 2) } else { (32, 1) };
    let (forward_rows, backward_rows) = match (case.is_bf16, is_wide) {
        (_, true) => (if case.is_bf16 { 32 } else { 16 }, 16),
        (true, false) => (if size <= 64 { 64 } else { 32 }, 32),
        (false, false) => (32, 32),
    };
    let row = size * gpu.element() + 16;

    let query_plan = plan::QueryPlan::new(&case.segments, group, tile);
    let lists = [query_plan.tiles.as_flattened(), query_plan.spans.as_flattened(), query_plan.limits.as_flattened()];
    let [tiles, spans, limits] = lists.map(|list| Address(gpu.ints(list)));
    let mut bias = [Address(0), Address(0), Address(0), Int(0), Int(0)];
    if case.has_bias {
        let positions = [&x.query_positions, &x.key_positions].map(|positions| Address(gpu.ints(positions)));
        bias = [Address(gpu.floats(&x.bias)), positions[0], positions[1], Int(TABLE_WIDTH), Int(TABLE_OFFSET)];
    }
    let sizes = [Int(key_heads), Int(group), Int(dim), Float(case.scale())];

    let [q, k, v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(|values| Address(gpu.elements(values)));
    let (o, lse) = (gpu.new_elements(queries * query_width), gpu.new_bytes(queries * query_heads * 4));
    let low = Address(if case.is_bf16 { gpu.new_bytes(queries * query_width) } else { 0 });
    let args = [q, k, v, Address(o), low, Address(lse), tiles, spans, limits];
    let args = [&args[..], &bias, &sizes].concat();
    let shared = (tile + 2 * buffers * forward_rows) * row;
    gpu.launch(&format!("forward_d{size}"), [query_plan.tiles.len(), key_heads, 1], 128, shared, &args);

    let delta = gpu.new_bytes(queries * query_heads * 4);
    let args = [Address(o), low, d_o, Address(delta), Int(queries * query_heads), Int(dim)];
    gpu.launch("delta", [(queries * query_heads * 8).div_ceil(256), 1, 1], 256, 0, &args);

    let inputs = [q, k, v, d_o, Address(lse), Address(delta)];
    let dq = gpu.new_elements(query_rows * query_width);
    let args = [&inputs[..], &[Address(dq), tiles, spans, limits], &bias, &[Int(query_rows)], &sizes].concat();
    let shared = 2 * (tile + buffers * backward_rows) * row;
    let count = query_plan.tiles_before(query_rows, group);
    gpu.launch(&format!("backward_queries_d{size}"), [count, key_heads, 1], 128, shared, &args);

    let key_plan = plan::KeyPlan::new(&case.segments, group, key_heads, tile, queries, key_rows);
    let lists = [key_plan.tasks.as_flattened(), key_plan.visits.as_flattened(), key_plan.sums.as_flattened()];
    let [tasks, visits, sums] = lists.map(|list| Address(gpu.ints(list)));
    let gradients = [(); 2].map(|()| gpu.new_elements(key_rows * width));
    let partial = [(); 2].map(|()| gpu.new_bytes(key_plan.slots * tile * width * 4));
    let outputs = [gradients[0], gradients[1], partial[0], partial[1]].map(Address);
    let args = [&inputs[..], &outputs, &[tasks, visits, limits], &bias, &sizes].concat();
    let parts = if case.is_bf16 && is_wide { 2 } else { 1 };
    gpu.launch(&format!("backward_keys_d{size}"), [key_plan.tasks.len(), key_heads, parts], 128, shared, &args);
    let args = [outputs[2], outputs[3], outputs[0], outputs[1], sums, Int(tile), Int(width)];
    let blocks = (tile * width).div_ceil(256 * 16 / gpu.element());
    gpu.launch("reduce", [key_plan.sums.len(), blocks, 2], 256, 0, &args);

    let elements = |address, rows: usize, cols: usize| gpu.read(address, rows * cols, case.is_bf16);
    [
        elements(o, queries, query_width),
        gpu.read(lse, queries * query_heads, false),
        elements(dq, query_rows, query_width),
        elements(gradients[0], key_rows, width),
        elements(gradients[1], key_rows, width),
    ]
}

/// A prompt shared by examples of these lengths.
fn causal(prompt: usize, examples: &[usize]) -> Segments {
    let ids = [0; 200];
    // An example's last token is no row.
    let sequences: Vec<_> = examples.iter().map(|&rows| Sequence::example(0, &ids[..rows + 1], 1)).collect();
    Layout::causal(&[prompt], &sequences).unwrap().all
}

/// An encoder's rows: everyone sees the example and its copy of the prompt.
fn full(prompt: usize, rows: usize) -> Segments {
    let (copy, example) = (0..prompt, prompt..prompt + rows);
    let segments = vec![
        Segment { queries: copy.clone(), context: vec![example.clone()], own: copy.clone() },
        Segment { queries: example.clone(), context: vec![copy], own: example },
    ];
    let visible = [vec![prompt; prompt], vec![rows; rows]].concat();
    Segments::new(segments, visible, prompt + rows).unwrap()
}

fn check(heads: (usize, usize), dim: usize) {
    let many: Vec<usize> = (0..30).map(|i| 1 + i % 3).collect();
    for (segments, is_first_layer) in [(causal(9, &[70, 1, 3]), false), (causal(5, &many), true), (full(5, 41), false)]
    {
        for has_bias in [false, true] {
            for is_bf16 in [false, true] {
                let segments = segments.clone();
                let gradient_rows = if is_first_layer { (5, 5) } else { (segments.query_rows(), segments.key_rows()) };
                let case = Case { segments, heads, dim, has_bias, is_bf16, gradient_rows };
                let x = Operands::new(&case);
                let got = computed(&case, &x, false);
                assert!(got == computed(&case, &x, true), "{}: other bits in another order", case.describe());
                let want = expected(&case, &x, |x| x);
                let plain = expected(&case, &x, |x| bf16::from_f64(x).to_f64());
                for (i, name) in ["o", "lse", "dq", "dk", "dv"].into_iter().enumerate() {
                    let off = error(&got[i], &want[i]);
                    // In bf16, where numbers cancel: twice the error of bf16 op by op, so four times its square.
                    let most = if is_bf16 { (4.0 * error(&plain[i], &want[i])).max(1e-5) } else { 1e-10 };
                    assert!(off <= most, "{name} off by {off:e} where {most:e} is allowed: {}", case.describe());
                }
            }
        }
    }
}

#[test]
fn heads_of_up_to_32() {
    check((6, 2), 20);
    check((4, 1), 32);
}

#[test]
fn heads_of_up_to_64() {
    check((2, 1), 64);
    check((1, 1), 33);
}

#[test]
fn heads_of_up_to_96() {
    check((2, 2), 80);
}

#[test]
fn heads_of_up_to_128() {
    check((3, 1), 128);
}

#[test]
fn heads_of_up_to_256() {
    check((2, 1), 256);
    check((1, 1), 250);
}

#[test]
fn more_heads_than_a_tile_has_queries() {
    check((71, 1), 8);
}
