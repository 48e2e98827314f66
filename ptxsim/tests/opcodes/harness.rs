//! Runs one instruction for many operands.

use half::{bf16, f16};
use ptxsim::{Launch, Memory, Module, Options, run};

/// An instruction with operands `%d`, `%a`, `%b`, `%c` and what it should give.
pub(crate) struct Form {
    pub(crate) text: &'static str,
    /// type of the result, then of the operands
    pub(crate) types: Vec<&'static str>,
    pub(crate) expected: Box<dyn Fn(&[u64]) -> u64>,
}

pub(crate) fn form(text: &'static str, types: &str, expected: impl Fn(&[u64]) -> u64 + 'static) -> Form {
    let types: Vec<String> = types.split(' ').map(String::from).collect();
    let types = types.into_iter().map(|t| &*t.leak()).collect();
    Form { text, types, expected: Box::new(expected) }
}

pub(crate) fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

pub(crate) fn b(x: f32) -> u64 {
    x.to_bits() as u64
}

pub(crate) fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn size(ty: &str) -> usize {
    match ty {
        "u8" | "s8" | "b8" => 1,
        "u16" | "s16" | "b16" | "f16" | "bf16" => 2,
        "u64" | "s64" | "b64" | "f64" => 8,
        _ => 4,
    }
}

/// A register type that holds a value of a type.
fn register(ty: &str) -> &'static str {
    match (ty, size(ty)) {
        ("pred", _) => "pred",
        ("f32", _) => "f32",
        ("f64", _) => "f64",
        (_, 1 | 2) => "b16",
        (_, 8) => "b64",
        _ => "b32",
    }
}

/// The type that loads and stores such a value.
fn stored(ty: &str) -> &str {
    match ty {
        "f16" | "bf16" => "b16",
        "f16x2" | "bf16x2" | "pred" | "tf32" => "b32",
        ty => ty,
    }
}

fn edges(ty: &str) -> Vec<u64> {
    let floats = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        0.75,
        3.0,
        1e-3,
        -7.3,
        100.7,
        65504.0,
        65520.0,
        2147483648.0,
        -2147483648.0,
        4294967296.0,
        1e10,
        -1e20,
        1e38,
        3e38,
        1e-38,
        -1e-40,
        1e-45,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    let short = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        3.0,
        -2.5,
        100.0,
        65504.0,
        1e-3,
        -6e-5,
        6e-8,
        1e-40,
        3e38,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    match ty {
        "f32" => floats.iter().map(|&x| b(x as f32)).collect(),
        "f64" => floats.iter().chain(&[1e300, -1e-310, 0.1, 9007199254740993.0]).map(|x| x.to_bits()).collect(),
        "f16" => short.iter().map(|&x| f16::from_f64(x).to_bits() as u64).collect(),
        "bf16" => short.iter().map(|&x| bf16::from_f64(x).to_bits() as u64).collect(),
        "f16x2" | "bf16x2" => {
            let one = edges(&ty[..ty.len() - 2]);
            (0..one.len()).map(|i| one[i] | one[(i * 7 + 3) % one.len()] << 16).collect()
        }
        "pred" => vec![0, 1],
        _ => {
            let bits = 8 * size(ty) as u32;
            let mask = u64::MAX >> (64 - bits);
            let mut all = vec![0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 100, 255];
            all.extend([
                mask,
                mask - 1,
                mask >> 1,
                (mask >> 1) + 1,
                (mask >> 1) + 2,
                0x1234_5678_9abc_def0 & mask,
                0x8765_4321_0fed_cba9 & mask,
            ]);
            all.retain(|x| x & !mask == 0);
            all
        }
    }
}

fn is_nan(ty: &str, x: u64) -> bool {
    match ty {
        "f32" => f(x).is_nan(),
        "f64" => d(x).is_nan(),
        "f16" => f16::from_bits(x as u16).is_nan(),
        "bf16" => bf16::from_bits(x as u16).is_nan(),
        _ => false,
    }
}

fn same(ty: &str, x: u64, y: u64) -> bool {
    if let Some(half) = ty.strip_suffix("x2") {
        return same(half, x & 0xffff, y & 0xffff) && same(half, x >> 16, y >> 16);
    }
    x == y || is_nan(ty, x) && is_nan(ty, y)
}

/// Runs a form for all combinations of edge values.
pub(crate) fn check(form: &Form) {
    let (result, operands) = form.types.split_first().expect("a result type");
    let sets: Vec<Vec<u64>> = operands.iter().map(|ty| edges(ty)).collect();
    let mut count: usize = sets.iter().map(Vec::len).product();
    // combinations of four operands are thinned out
    let stride = if count > 20_000 { 7 } else { 1 };
    count /= stride;
    let tuple = |i: usize| {
        let mut rest = i * stride;
        sets.iter()
            .map(|set| {
                let x = set[rest % set.len()];
                rest /= set.len();
                x
            })
            .collect::<Vec<u64>>()
    };
    let names = ["a", "b", "c", "e"];
    let mut ptx = String::from(
        ".version 7.1\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u32 n)\n{\n",
    );
    ptx += &format!(".reg .{} %d;\n.reg .b64 %at<9>;\n.reg .b32 %i<9>;\n.reg .pred %p<9>;\n", register(result));
    ptx += "ld.param.u64 %at0, [p];\nld.param.u32 %i1, [n];\n";
    ptx += "mov.u32 %i2, %ctaid.x;\nmov.u32 %i3, %ntid.x;\nmov.u32 %i4, %tid.x;\nmad.lo.s32 %i5, %i2, %i3, %i4;\n";
    ptx += "setp.ge.u32 %p0, %i5, %i1;\n@%p0 bra DONE;\n";
    ptx += &format!("mad.wide.u32 %at1, %i5, {}, %at0;\n", 8 * (operands.len() + 1));
    for (k, ty) in operands.iter().enumerate() {
        let name = names[k];
        ptx += &format!(".reg .{} %{name};\n", register(ty));
        if *ty == "pred" {
            ptx += &format!("ld.global.u32 %i6, [%at1+{}];\nsetp.ne.u32 %{name}, %i6, 0;\n", 8 * k);
        } else {
            ptx += &format!("ld.global.{} %{name}, [%at1+{}];\n", stored(ty), 8 * k);
        }
    }
    ptx += form.text;
    ptx += "\n";
    let at = 8 * operands.len();
    if *result == "pred" {
        ptx += &format!("selp.u32 %i7, 1, 0, %d;\nst.global.u32 [%at1+{at}], %i7;\n");
    } else {
        ptx += &format!("st.global.{} [%at1+{at}], %d;\n", stored(result));
    }
    ptx += "DONE:\nret;\n}\n";
    let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{}: {e}\n{ptx}", form.text));
    let memory = Memory::new(1 << 30);
    let row = operands.len() + 1;
    let mut image = vec![0u64; count * row];
    for i in 0..count {
        image[i * row..i * row + operands.len()].copy_from_slice(&tuple(i));
    }
    let bytes: Vec<u8> = image.iter().flat_map(|x| x.to_le_bytes()).collect();
    let address = memory.allocate(bytes.len()).expect("memory");
    memory.write(address, &bytes).expect("in bounds");
    let params = [&address.to_le_bytes()[..], &(count as u32).to_le_bytes()].concat();
    let launch = Launch { grid: [count.div_ceil(128) as u32, 1, 1], block: [128, 1, 1], dynamic_shared: 0 };
    let options = Options { threads: 1, ..Options::default() };
    run(module.kernel("k").expect("k"), &launch, &params, &memory, &options)
        .unwrap_or_else(|e| panic!("{}: {e}", form.text));
    let mut out = vec![0; bytes.len()];
    memory.read(address, &mut out).expect("in bounds");
    let mask = u64::MAX >> (64 - 8 * size(result));
    for i in 0..count {
        let at = (i * row + operands.len()) * 8;
        let got = u64::from_le_bytes(out[at..at + 8].try_into().expect("eight bytes"));
        let operands = tuple(i);
        let expected = (form.expected)(&operands) & mask;
        assert!(
            same(result, got & mask, expected),
            "{} of {operands:#x?} ({:?}): got {got:#x}, expected {expected:#x}",
            form.text,
            operands.iter().map(|&x| f(x)).collect::<Vec<_>>()
        );
    }
}

/// Runs a whole kernel body with registers `%r`, `%rd`, `%f`, `%p`, `%rs`, `%h` (f64). Parameters are `x` and `y`,
/// pointers to the input and the output; `%rd0`, `%rd1` hold them, `%r0` the thread, `%rd2` the address of `y[thread]`.
pub(crate) struct Body<'a> {
    pub(crate) text: &'a str,
    /// module-level declarations
    pub(crate) module: &'a str,
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) dynamic_shared: u32,
}

impl<'a> Body<'a> {
    pub(crate) fn new(text: &'a str, threads: u32) -> Body<'a> {
        Body { text, module: "", blocks: 1, threads, dynamic_shared: 0 }
    }

    /// The output words after a run; those that nothing wrote are 0.
    pub(crate) fn run(&self, input: &[u32], words: usize) -> Result<Vec<u32>, ptxsim::Report> {
        let ptx = format!(
            ".version 7.1\n.target sm_80\n.address_size 64\n{}\n.visible .entry k(.param .u64 x, .param .u64 y)\n{{\n\
             .reg .b32 %r<60>;\n.reg .b64 %rd<60>;\n.reg .f32 %f<60>;\n.reg .f64 %h<20>;\n.reg .pred %p<20>;\n.reg .b16 %rs<40>;\n\
             ld.param.u64 %rd0, [x];\nld.param.u64 %rd1, [y];\nmov.u32 %r0, %tid.x;\nmad.wide.u32 %rd2, %r0, 4, %rd1;\n{}\n}}\n",
            self.module, self.text
        );
        let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
        let memory = Memory::new(1 << 24);
        let bytes: Vec<u8> = input.iter().flat_map(|x| x.to_le_bytes()).collect();
        let x = memory.allocate(bytes.len()).expect("memory");
        memory.write(x, &bytes).expect("in bounds");
        let y = memory.allocate(words * 4).expect("memory");
        memory.fill(y, 0, words * 4).expect("in bounds");
        let params = [x.to_le_bytes(), y.to_le_bytes()].concat();
        let launch =
            Launch { grid: [self.blocks, 1, 1], block: [self.threads, 1, 1], dynamic_shared: self.dynamic_shared };
        let options = Options { threads: 1, budget: 1 << 20, ..Options::default() };
        run(module.kernel("k").expect("k"), &launch, &params, &memory, &options)?;
        let mut out = vec![0; words * 4];
        memory.read(y, &mut out).expect("in bounds");
        Ok(out.chunks(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect())
    }

    /// The same, where a report is a failure.
    pub(crate) fn words(&self, input: &[u32], words: usize) -> Vec<u32> {
        self.run(input, words).unwrap_or_else(|e| panic!("{e}\n{}", self.text))
    }
}
