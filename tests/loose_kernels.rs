//! Kernels that no model of this version launches yet, by themselves: a packed product's heads taken apart and rotated,
//! and the gradients of an encoder's copies of a prompt added up. With all of the interpreter's checks on, blocks in both
//! orders, against the formulas in f64.

use half::bf16;
use ptxsim::{Launch, Memory, Module, Options, run};

mod generated {
    #![allow(dead_code, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    F32,
    Bf16,
}

impl Type {
    const BOTH: [Self; 2] = [Self::F32, Self::Bf16];

    fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn suffix(self) -> &'static str {
        if self == Self::F32 { "f32" } else { "bf16" }
    }

    fn rounded(self, x: f64) -> f64 {
        if self == Self::F32 { f64::from(x as f32) } else { bf16::from_f64(x).to_f64() }
    }

    fn bytes(self, values: &[f64]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
        }
    }

    fn values(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::F32 => bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
            Self::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        }
    }

    /// Threads for `elements`, each with 16 bytes or, where rows cannot be cut so, one element.
    fn threads(self, elements: usize, is_wide: bool) -> usize {
        if is_wide { elements.div_ceil(16 / self.size()) } else { elements }
    }
}

/// Numbers in about [-2, 2], as `ty` stores them.
fn numbers(ty: Type, count: usize, seed: usize) -> Vec<f64> {
    (0..count).map(|i| ty.rounded(((i * 7919 + seed * 104_729) % 2003) as f64 / 500.0 - 2.0)).collect()
}

enum Arg<'a> {
    In(Type, &'a [f64]),
    Indices(&'a [usize]),
    Out(Type, usize),
    Int(usize),
    Long(usize),
}

/// Runs a kernel with blocks of 256 threads and gives its outputs: the same bits whichever block comes first.
fn launch(op: &str, name: &str, threads: usize, args: &[Arg<'_>]) -> Vec<Vec<f64>> {
    let ptx = generated::MODULES.iter().find(|(module, _)| *module == op).unwrap().1;
    let module = Module::parse(ptx).unwrap();
    let kernel = module.kernel(name).unwrap_or_else(|| panic!("no kernel {name}"));
    let once = |reverse| {
        let memory = Memory::new(1 << 24);
        let (mut params, mut outputs) = (vec![0; kernel.param_bytes()], Vec::new());
        let upload = |bytes: &[u8]| {
            let address = memory.allocate(bytes.len()).unwrap();
            memory.write(address, bytes).unwrap();
            address.to_le_bytes().to_vec()
        };
        assert_eq!(kernel.params().len(), args.len());
        for (param, arg) in kernel.params().iter().zip(args) {
            let word = match arg {
                Arg::In(ty, values) => upload(&ty.bytes(values)),
                Arg::Indices(values) => {
                    upload(&values.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect::<Vec<_>>())
                }
                Arg::Out(ty, count) => {
                    let address = memory.allocate(count * ty.size()).unwrap();
                    outputs.push((*ty, address, count * ty.size()));
                    address.to_le_bytes().to_vec()
                }
                Arg::Int(value) => (*value as i32).to_le_bytes().to_vec(),
                Arg::Long(value) => value.to_le_bytes().to_vec(),
            };
            assert_eq!(word.len(), param.size, "{name}: {}", param.name);
            params[param.offset..][..word.len()].copy_from_slice(&word);
        }
        let shape = Launch { grid: [threads.div_ceil(256) as u32, 1, 1], block: [256, 1, 1], dynamic_shared: 0 };
        let options = Options { reverse, ..Options::default() };
        run(kernel, &shape, &params, &memory, &options).unwrap_or_else(|report| panic!("{report}"));
        let read = |(ty, address, bytes): (Type, u64, usize)| {
            let mut values = vec![0; bytes];
            memory.read(address, &mut values).unwrap();
            ty.values(&values)
        };
        outputs.into_iter().map(read).collect::<Vec<_>>()
    };
    let outputs = once(false);
    assert_eq!(outputs, once(true), "{name}: blocks in another order give other bits");
    outputs
}

fn close(ty: Type, got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    // Sums of a few numbers of up to 2: half a unit in the last place of the result, and f32's along the way.
    let unit = if ty == Type::F32 { 2f64.powi(-22) } else { 2f64.powi(-8) };
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= unit * want.abs() + 4e-6, "{what}, {index}: {got} for {want}");
    }
}

/// Heads of a packed row, and how they turn.
struct Heads {
    query: usize,
    key: usize,
    half: usize,
    neighbours: bool,
    positions: Vec<usize>,
    cos: Vec<f64>,
    sin: Vec<f64>,
}

const POSITIONS: usize = 17;

impl Heads {
    fn new((query, key): (usize, usize), half: usize, neighbours: bool, rows: usize) -> Self {
        let positions = (0..rows).map(|row| (row * 5 + 3) % POSITIONS).collect();
        let [cos, sin] = [8, 9].map(|seed| numbers(Type::F32, POSITIONS * half, seed));
        Self { query, key, half, neighbours, positions, cos, sin }
    }

    fn all(&self) -> usize {
        self.query + 2 * self.key
    }

    fn turn(&self, head: &mut [f64], row: usize, direction: f64) {
        for pair in 0..self.half {
            let (a, b) = if self.neighbours { (2 * pair, 2 * pair + 1) } else { (pair, pair + self.half) };
            let at = self.positions[row] * self.half + pair;
            let (cos, sin) = (self.cos[at], direction * self.sin[at]);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }

    /// The tail of the argument list.
    fn args(&self) -> Vec<Arg<'_>> {
        let mut args =
            vec![Arg::In(Type::F32, &self.cos), Arg::In(Type::F32, &self.sin), Arg::Indices(&self.positions)];
        let sizes = [self.positions.len(), self.query, self.key, self.half, usize::from(self.neighbours)];
        args.extend(sizes.map(Arg::Int));
        args
    }
}

#[test]
fn packed_heads_are_taken_apart_rotated_and_put_back() {
    for ty in Type::BOTH {
        for (heads, half, rows) in [((1, 1), 1, 1), ((3, 1), 4, 31), ((4, 2), 8, 33), ((9, 3), 32, 5), ((2, 2), 33, 3)]
        {
            for neighbours in [false, true] {
                let heads = Heads::new(heads, half, neighbours, rows);
                let (dim, what) =
                    (2 * half, format!("{ty:?} {heads:?} {half} {rows} {neighbours}", heads = heads.all()));
                let threads = ty.threads(rows * heads.all() * half, half.is_multiple_of(16 / ty.size()));
                let sizes = [heads.query, heads.key, heads.key].map(|count| rows * count * dim);

                let packed = numbers(ty, rows * heads.all() * dim, 1);
                let mut want = [Vec::new(), Vec::new(), Vec::new()];
                for (index, head) in packed.chunks_exact(dim).enumerate() {
                    let (row, head_index, mut head) = (index / heads.all(), index % heads.all(), head.to_vec());
                    let part =
                        usize::from(head_index >= heads.query) + usize::from(head_index >= heads.query + heads.key);
                    if part < 2 {
                        heads.turn(&mut head, row, 1.0);
                    }
                    want[part].extend(head);
                }
                let mut args = vec![Arg::In(ty, &packed)];
                args.extend(sizes.map(|size| Arg::Out(ty, size)));
                args.extend(heads.args());
                let got = launch("rope", &format!("rope_split_forward_{}", ty.suffix()), threads, &args);
                got.iter().zip(&want).for_each(|(got, want)| close(ty, got, want, &what));

                let parts = [0, 1, 2].map(|part| numbers(ty, sizes[part], 2 + part));
                let mut want = Vec::new();
                let mut heads_of = parts.each_ref().map(|part| part.chunks_exact(dim));
                for row in 0..rows {
                    for (part, count) in [heads.query, heads.key, heads.key].into_iter().enumerate() {
                        for _ in 0..count {
                            let mut head = heads_of[part].next().unwrap().to_vec();
                            if part < 2 {
                                heads.turn(&mut head, row, -1.0);
                            }
                            want.extend(head);
                        }
                    }
                }
                let mut args: Vec<Arg<'_>> = parts.iter().map(|part| Arg::In(ty, part)).collect();
                args.push(Arg::Out(ty, packed.len()));
                args.extend(heads.args());
                let got = launch("rope", &format!("rope_split_backward_{}", ty.suffix()), threads, &args);
                close(ty, &got[0], &want, &what);
            }
        }
    }
}

#[test]
fn the_gradients_of_a_prompts_copies_are_added_in_order() {
    for (ty, to, suffix) in
        [(Type::F32, Type::F32, "f32"), (Type::Bf16, Type::Bf16, "bf16"), (Type::Bf16, Type::F32, "bf16_f32")]
    {
        for (copies, count) in [(1, 1), (3, 5 * 31), (4, 7 * 64), (2, 3 * 123), (5, 2056)] {
            let dy = numbers(ty, copies * count, 1);
            let want: Vec<f64> = (0..count).map(|i| (0..copies).map(|copy| dy[copy * count + i]).sum()).collect();
            let args = [Arg::In(ty, &dy), Arg::Out(to, count), Arg::Int(copies), Arg::Long(count)];
            let name = format!("embedding_backward_{suffix}");
            let got = launch("embedding", &name, ty.threads(count, true), &args);
            close(to, &got[0], &want, &format!("{name}, {copies} copies of {count}"));
        }
    }
}
