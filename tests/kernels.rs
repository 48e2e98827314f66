//! What the compiler made of the kernels: registers, memory accesses, tensor cores. Nothing is run here, and no compiler
//! is needed: the report of ptxas is embedded beside the PTX.

use std::collections::BTreeMap;
use std::path::Path;

mod generated {
    #![allow(dead_code, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
use generated::{BUILT, COMPILER, MODULES, PTXAS, SASS};

/// Registers of a multiprocessor, of either target.
const REGISTERS: u32 = 65536;

/// How many blocks of a kernel fit on a multiprocessor by registers, by the start and the end of its name: what its file
/// claims. The first line that fits counts. A kernel that makes the compiler see to it (`__launch_bounds__` with two
/// numbers) says so in its PTX instead.
const BLOCKS: &[(&str, &str, u32)] = &[
    ("activation_", "", 6),
    ("adafactor_", "", 8),
    ("adamw_", "", 6),
    ("add_", "", 8),
    ("attention_", "", 6),
    ("cast_", "", 8),
    ("columns_", "", 5),
    ("dequantise_", "", 8),
    ("embedding_", "", 8),
    ("gated_", "", 5),
    ("gradient_norm_", "", 8),
    ("layer_norm_", "", 5),
    ("loss_", "", 6),
    ("matmul_join_", "", 8),
    ("matmul_", "_small_bf16", 6),
    ("matmul_", "_small_f32", 5),
    ("matmul_", "", 2),
    ("position_bias_", "", 8),
    ("rms_norm_", "", 5),
    ("rope_", "", 5),
    ("rows_", "", 6),
    ("scale_", "", 8),
];

/// Kernels that do not wait for memory, or cannot move 16 bytes at a time: an optimizer's sums, one number of a row, small
/// tables, and products in f32, which are for checks and transpose as they read.
const SCALAR: &[(&str, &str)] = &[
    ("adafactor_", ""),
    ("gradient_norm_bf16", ""),
    ("gradient_norm_f32", ""),
    ("gradient_norm_finish_", ""),
    ("loss_nll", ""),
    ("loss_pick", ""),
    ("matmul_", "_f32"),
    ("matmul_join_", ""),
    ("position_bias_", ""),
];

/// Kernels that store single numbers: of a row, or of partial sums that are added by column.
const SCALAR_STORES: &[(&str, &str)] = &[
    ("attention_backward_bias_", ""),
    ("attention_delta_", ""),
    ("attention_reduce_", ""),
    ("layer_norm_moments_", ""),
    ("rms_norm_moments_", ""),
];

/// Kernels that copy to shared memory 16 bytes at a time, without registers in between, and store what a warp's lanes
/// have side by side, 64 or 128 bytes.
const ASYNCHRONOUS: &[(&str, &str)] = &[("matmul_", "_bf16")];

fn is_one_of(name: &str, list: &[(&str, &str)]) -> bool {
    list.iter().any(|(start, end)| name.starts_with(start) && name.ends_with(end))
}

#[derive(Debug, PartialEq, Eq)]
struct Usage {
    registers: u32,
    stack: u32,
    spills: u32,
}

/// What ptxas says of each kernel, by target and name.
fn usage() -> BTreeMap<(String, String), Usage> {
    let number = |words: &str, before: &str| -> u32 {
        let at = words.find(before).unwrap_or_else(|| panic!("no `{before}` in `{words}`"));
        words[..at].split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{words}"))
    };
    let mut found = BTreeMap::new();
    let (mut kernel, mut properties) = (None, "");
    for line in PTXAS.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let (name, target) = rest.split_once("' for '").unwrap();
            kernel = Some((target.trim_end_matches('\'').to_owned(), name.to_owned()));
        } else if line.contains("bytes stack frame") {
            properties = line;
        } else if line.contains(" registers")
            && let Some(kernel) = kernel.take()
        {
            let stack = number(properties, " bytes stack frame");
            let spills = number(properties, " bytes spill stores") + number(properties, " bytes spill loads");
            found.insert(kernel, Usage { registers: number(line, " registers"), stack, spills });
        }
    }
    found
}

/// Each kernel of a PTX text with its text.
fn entries(ptx: &str) -> Vec<(&str, &str)> {
    let name = |text: &str| text.find('(').unwrap_or(text.len());
    ptx.split(".visible .entry ").skip(1).map(|text| (text[..name(text)].trim(), text)).collect()
}

fn kernels() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    MODULES.iter().flat_map(|&(op, ptx)| entries(ptx).into_iter().map(move |(name, text)| (op, name, text)))
}

#[test]
fn ptxas_has_seen_every_kernel_for_both_targets() {
    let (seen, mut expected) = (usage(), Vec::new());
    for target in ["sm_80", "sm_90"] {
        expected.extend(kernels().map(|(_, name, _)| (target.to_owned(), name.to_owned())));
    }
    expected.sort();
    assert!(!expected.is_empty(), "no kernels in this build");
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected, "kernels/prebuilt/ptxas.txt does not fit the PTX");
}

/// The number behind a directive of a kernel's head.
fn directive(text: &str, name: &str) -> Option<u32> {
    let (_, rest) = text.split_once('{')?.0.split_once(name)?;
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn nothing_spills_and_registers_leave_room_for_the_blocks_that_are_claimed() {
    let usage = usage();
    let mut wrong = Vec::new();
    for (_, name, text) in kernels() {
        let threads = directive(text, ".maxntid").unwrap_or_else(|| panic!("{name} does not say its largest block"));
        let listed = BLOCKS
            .iter()
            .find(|(start, end, _)| name.starts_with(start) && name.ends_with(end))
            .map(|(.., blocks)| *blocks);
        let blocks = directive(text, ".minnctapersm").or(listed);
        let blocks = blocks.unwrap_or_else(|| panic!("{name} claims no occupancy: add it to BLOCKS"));
        // Registers are given to warps in units of 8 a thread.
        let cap = REGISTERS / (threads * blocks) / 8 * 8;
        for target in ["sm_80", "sm_90"] {
            let used = &usage[&(target.to_owned(), name.to_owned())];
            if used.stack > 0 || used.spills > 0 || used.registers > cap {
                wrong.push(format!("{name} on {target}: {used:?}, at most {cap} registers"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_kernel_uses_local_memory() {
    for (_, name, text) in kernels() {
        for access in ["ld.local", "st.local", ".local "] {
            assert!(!text.contains(access), "{name} has {access}");
        }
    }
}

#[test]
fn memory_is_moved_in_16_byte_accesses() {
    let has = |text: &str, access: &str, width: &[&str]| {
        text.lines().any(|line| line.contains(access) && width.iter().any(|width| line.contains(width)))
    };
    const WORDS: &[&str] = &[".v4.f32", ".v4.u32", ".v4.b32"];
    for (_, name, text) in kernels().filter(|(_, name, _)| !is_one_of(name, SCALAR)) {
        if is_one_of(name, ASYNCHRONOUS) {
            assert!(has(text, "cp.async.cg.shared", &[", 16"]), "{name} copies no 16 bytes at a time");
            continue;
        }
        let stores = is_one_of(name, SCALAR_STORES) || has(text, "st.global", WORDS);
        assert!(stores, "{name} stores no 16 bytes at a time");
        let loads = name.starts_with("cast_fill")
            || has(text, "ld.global", WORDS)
            || has(text, "cp.async.cg.shared", &[", 16"]);
        assert!(loads, "{name} loads no 16 bytes at a time");
    }
}

#[test]
fn products_use_tensor_cores_in_bf16_and_not_in_f32() {
    let is_product = |name: &str| {
        name.starts_with("matmul_") && !name.starts_with("matmul_join")
            || name.contains("attention_") && name.contains("_d") && !name.contains("delta")
    };
    let mut count = 0;
    for (_, name, text) in kernels().filter(|(_, name, _)| is_product(name)) {
        let uses = text.contains("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
        assert_eq!(uses, name.ends_with("_bf16"), "{name}");
        count += 1;
    }
    assert!(count > 0, "no products in this build");
    assert!(MODULES.iter().all(|(_, ptx)| !ptx.contains(".tf32")), "f32 is for exact checks");
}

#[test]
fn the_ptx_is_for_every_machine() {
    for (op, ptx) in MODULES {
        assert!(ptx.starts_with(".version 7."), "{op} needs a newer driver: {}", ptx.lines().next().unwrap_or(""));
        assert!(ptx.contains(".target sm_80\n"), "{op} is not for sm_80");
        for line in ptx.lines().filter(|line| line.trim_start().starts_with(".file")) {
            let path = line.split('"').nth(1).unwrap_or("");
            assert!(
                path.starts_with("kernels/") || path.starts_with("cuda/"),
                "{op} names a file of one machine: {line}"
            );
        }
    }
}

#[test]
fn the_committed_ptx_is_what_the_pinned_compiler_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/prebuilt");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let pinned = read("compiler.txt");
    if !BUILT || COMPILER != pinned.trim() {
        let missing = format!("the kernels were not compiled here by {}", pinned.trim());
        let required = std::env::var("SOFTPROMPT_REQUIRE_NVCC").is_ok_and(|value| !value.is_empty() && value != "0");
        assert!(!required, "{missing}");
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let refresh = "refresh it: SOFTPROMPT_UPDATE_PREBUILT=1 cargo build";
    for (op, ptx) in MODULES {
        assert!(
            read(&format!("{op}.ptx")) == *ptx,
            "kernels/prebuilt/{op}.ptx is not what {op}.cu compiles to; {refresh}"
        );
    }
    assert!(read("sass.txt") == SASS, "kernels/prebuilt/sass.txt is not what nvdisasm lists; {refresh}");
    assert!(read("ptxas.txt") == PTXAS, "kernels/prebuilt/ptxas.txt is not what ptxas says; {refresh}");
    let committed = std::fs::read_dir(&folder).unwrap().filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "ptx"))
    });
    assert_eq!(committed.count(), MODULES.len(), "kernels/prebuilt has PTX of kernels that are gone; {refresh}");
}

/// How many instructions of each kind a kernel has on a target, by the columns of `kernels/prebuilt/sass.txt`.
struct Mix {
    name: &'static str,
    target: &'static str,
    counts: BTreeMap<&'static str, usize>,
}

impl Mix {
    fn of(&self, column: &str) -> usize {
        self.counts.get(column).copied().unwrap_or_else(|| panic!("sass.txt has no column {column}"))
    }
}

fn mixes() -> Vec<Mix> {
    let mut lines = SASS.lines().map(|line| line.split_whitespace());
    let columns: Vec<&str> = lines.next().expect("a header").skip(2).collect();
    let mix = |mut words: std::str::SplitWhitespace<'static>| {
        let (name, target) = (words.next().unwrap(), words.next().unwrap());
        let counts = columns.iter().copied().zip(words.map(|word| word.parse().unwrap())).collect();
        Mix { name, target, counts }
    };
    lines.map(mix).collect()
}

#[test]
fn the_instructions_of_every_kernel_are_counted() {
    let mut seen: Vec<_> = mixes().iter().map(|mix| (mix.target, mix.name)).collect();
    let mut expected: Vec<_> =
        ["sm_80", "sm_90"].into_iter().flat_map(|target| kernels().map(move |(_, name, _)| (target, name))).collect();
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected, "kernels/prebuilt/sass.txt does not fit the PTX");
    assert!(mixes().iter().all(|mix| mix.of("total") > 0));
}

/// A kernel that works on tiles of products, and is to use tensor cores in bf16.
fn is_tiled(name: &str) -> bool {
    let is_attention = name.starts_with("attention_") && name.contains("_d") && !name.starts_with("attention_delta");
    is_attention || name.starts_with("matmul_") && !name.starts_with("matmul_join")
}

#[test]
fn no_instruction_reaches_for_local_memory() {
    for mix in mixes() {
        assert_eq!(mix.of("ldl") + mix.of("stl"), 0, "{} on {}", mix.name, mix.target);
    }
}

#[test]
fn tiles_in_bf16_are_multiplied_on_tensor_cores_and_copied_asynchronously() {
    for mix in mixes().iter().filter(|mix| is_tiled(mix.name)) {
        let (Mix { name, target, .. }, is_bf16) = (mix, mix.name.ends_with("_bf16"));
        assert_eq!(mix.of("hmma") > 0, is_bf16, "{name} on {target}: tensor cores");
        assert!(is_bf16 || mix.of("ffma") > 0, "{name} on {target}: fused multiply-adds");
        if is_bf16 {
            assert!(mix.of("ldgsts") > 0, "{name} on {target} has no cp.async");
            assert!(mix.of("ldsm") > 0, "{name} on {target} has no ldmatrix");
        }
    }
}

#[test]
fn kernels_bound_by_memory_load_and_store_16_bytes_at_once() {
    for mix in mixes().iter().filter(|mix| !is_tiled(mix.name) && !is_one_of(mix.name, SCALAR)) {
        let Mix { name, target, .. } = mix;
        let loads = mix.of("ldg.128") + mix.of("ldgsts");
        assert!(loads > 0 || name.starts_with("cast_fill"), "{name} on {target} loads no 16 bytes at once");
        assert!(
            mix.of("stg.128") > 0 || is_one_of(name, SCALAR_STORES),
            "{name} on {target} stores no 16 bytes at once"
        );
    }
}
