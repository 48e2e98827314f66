//! What the compiler made of the kernels: registers, memory accesses, tensor cores. Nothing is run here, and no compiler
//! is needed: the report of ptxas is embedded beside the PTX.

use std::collections::BTreeMap;
use std::path::Path;

mod generated {
    #![allow(dead_code, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
use generated::{BUILT, COMPILER, MODULES, PTXAS};

/// Registers a thread may use, by op: with the block size, what gives the occupancy that the kernel's file claims. An SM
/// has 65536: 48 a thread leave room for 1280 threads of kernels that wait for memory most of the time.
const REGISTERS: &[(&str, u32)] = &[
    ("activation", 40),
    ("add", 40),
    ("cast", 40),
    ("dequantise", 40),
    ("embedding", 40),
    ("gated", 48),
    ("layer_norm", 48),
    ("optimizer", 48),
    ("rms_norm", 48),
    ("rope", 48),
    ("rows", 40),
];

/// Kernels that move so little that 16-byte accesses do not matter: an optimizer's sums over rows, columns and blocks.
const SCALAR: &[&str] = &["gradient_norm", "adafactor"];

/// Ops whose bf16 kernels use tensor cores.
const TENSOR_CORES: &[&str] = &["attention", "gemm", "loss"];

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

#[test]
fn nothing_spills_and_registers_stay_within_the_cap() {
    let usage = usage();
    let mut wrong = Vec::new();
    for (op, name, _) in kernels() {
        let cap = REGISTERS.iter().find(|(capped, _)| *capped == op).map(|(_, cap)| *cap);
        let cap = cap.unwrap_or_else(|| panic!("{op} has no cap: add one to REGISTERS"));
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
    for (op, name, text) in kernels().filter(|(op, ..)| !TENSOR_CORES.contains(op)) {
        if SCALAR.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let wide = |access: &str| {
            let is_access = |line: &&str| line.trim_start().trim_start_matches("@%p").contains(access);
            text.lines()
                .filter(is_access)
                .any(|line| line.contains(".v4.f32") || line.contains(".v4.u32") || line.contains(".v4.b32"))
        };
        assert!(wide("st.global"), "{name} of {op} stores no 16 bytes at a time");
        assert!(wide("ld.global") || name.starts_with("cast_fill"), "{name} of {op} loads no 16 bytes at a time");
    }
}

#[test]
fn products_in_bf16_use_tensor_cores() {
    for &op in TENSOR_CORES {
        let Some((_, ptx)) = MODULES.iter().find(|(module, _)| *module == op) else { continue };
        assert!(ptx.contains("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"), "{op} has no mma");
    }
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
    assert!(read("ptxas.txt") == PTXAS, "kernels/prebuilt/ptxas.txt is not what ptxas says; {refresh}");
    let committed = std::fs::read_dir(&folder).unwrap().filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "ptx"))
    });
    assert_eq!(committed.count(), MODULES.len(), "kernels/prebuilt has PTX of kernels that are gone; {refresh}");
}
