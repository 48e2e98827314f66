//! What is known of each kernel without running it: what ptxas says, how it is launched, and how many of its warps a
//! multiprocessor holds by that.

use crate::device::kernels::{MODULES, PTXAS};
use crate::dtype::DType;
use crate::ops::attention::Heads;
use crate::ops::attention::cuda::Shape;

/// What a multiprocessor has (CUDA C++ Programming Guide, tables of compute capabilities).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// The target that ptxas knows it by.
    pub target: &'static str,
    /// Bytes of shared memory.
    pub shared: usize,
}

impl Processor {
    /// A100 and H100.
    pub const ALL: [Self; 2] =
        [Self { target: "sm_80", shared: 164 * 1024 }, Self { target: "sm_90", shared: 228 * 1024 }];

    const REGISTERS: usize = 65_536;
    const WARPS: usize = 64;
    const BLOCKS: usize = 32;
    /// Registers are given to warps in portions of so many, and to so many warps at a time.
    const REGISTER_UNIT: usize = 256;
    const WARP_UNIT: usize = 4;
    /// Shared memory is given in portions of so many bytes, and the system takes some for each block.
    const SHARED_UNIT: usize = 128;
    const RESERVED: usize = 1024;

    /// How many blocks of a kernel run on the multiprocessor at once, and what does not let one more in.
    pub fn occupancy(&self, registers: usize, shared: usize, threads: usize) -> Occupancy {
        let warps = threads.div_ceil(32).max(1);
        let of_warp = (registers * 32).next_multiple_of(Self::REGISTER_UNIT).max(Self::REGISTER_UNIT);
        let by_registers = Self::REGISTERS / of_warp / Self::WARP_UNIT * Self::WARP_UNIT / warps;
        let by_shared = self.shared / (shared + Self::RESERVED).next_multiple_of(Self::SHARED_UNIT);
        let limits = [
            (Self::WARPS / warps, "warps"),
            (by_registers, "registers"),
            (by_shared, "shared memory"),
            (Self::BLOCKS, "blocks"),
        ];
        // Of equal ones the first, so that a full multiprocessor is said to be full.
        let (blocks, limit) = limits.into_iter().min_by_key(|&(blocks, _)| blocks).unwrap_or((0, "warps"));
        Occupancy { blocks, warps: blocks * warps, limit }
    }
}

/// How full a multiprocessor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Blocks at once.
    pub blocks: usize,
    /// Their warps, of 64.
    pub warps: usize,
    /// What they run out of first.
    pub limit: &'static str,
}

/// A kernel, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelFacts {
    /// Its name.
    pub name: String,
    /// Threads of a block.
    pub threads: usize,
    /// Registers of a thread, on each of [`Processor::ALL`].
    pub registers: [usize; 2],
    /// Bytes of shared memory of a block that the code asks for, on each of them.
    pub static_shared: [usize; 2],
    /// Bytes that the launch asks for besides.
    pub dynamic_shared: usize,
    /// On each of them.
    pub occupancy: [Occupancy; 2],
    /// Bytes moved.
    pub bytes: &'static str,
    /// Operations.
    pub flops: &'static str,
}

/// Of kernels by the start of their name and a part of it: threads of a block, bytes and operations. The first that fits
/// counts. In the formulas `s` is the size of an element, `n` a number of elements, `r` and `c` rows and columns, `q` and
/// `k` query and key rows, `Hq` and `Hk` their heads, of `D` elements each, and `pairs` the queries with a key they see.
const LAUNCHES: &[(&str, &str, usize, &str, &str)] = &[
    ("activation_", "_forward", 256, "2 n s", "20 n"),
    ("activation_", "_backward", 256, "3 n s", "20 n"),
    ("adafactor_moment", "", 256, "12 n", "8 n"),
    ("adafactor_apply", "", 256, "16 n", "6 n"),
    ("adafactor_rows", "", 256, "4 n", "3 n"),
    ("adafactor_cols", "", 256, "4 n", "3 n"),
    ("adafactor_factors", "", 256, "8 (r + c)", "3 (r + c)"),
    ("adafactor_factored_apply", "", 256, "12 n", "7 n"),
    ("adafactor_factored", "", 256, "4 n", "4 n"),
    ("adamw", "", 256, "28 n", "14 n"),
    ("add_scale", "", 256, "2 n s", "n"),
    ("add_", "", 256, "3 n s", "n"),
    ("attention_delta", "", 256, "2 q Hq D s + 4 q Hq (+ q Hq D in bf16)", "2 q Hq D"),
    ("attention_reduce", "", 256, "8 slots tile Hk D + 2 k Hk D s", "2 slots tile Hk D"),
    ("attention_forward", "", 128, "2 (q Hq + k Hk) D s + 4 q Hq (+ q Hq D in bf16)", "4 pairs Hq D"),
    ("attention_backward_queries", "", 128, "(3 q Hq + 2 k Hk) D s + 8 q Hq", "6 pairs Hq D"),
    ("attention_backward_bias", "", 128, "(2 q Hq + 2 k Hk) D s + 8 q Hq + 4 parts Hq columns", "4 pairs Hq D"),
    ("attention_backward_keys", "", 128, "(2 q Hq + 4 k Hk) D s + 8 q Hq + 8 slots tile Hk D", "8 pairs Hq D"),
    ("cast_fill", "", 256, "n s", "0"),
    ("cast_", "", 256, "6 n", "0"),
    ("columns_sum", "", 256, "r c s (2 r c s with x) + 4 parts c for each sum", "r c (5 r c with x)"),
    ("columns_join", "", 256, "4 parts c + c s", "parts c"),
    ("dequantise_", "", 256, "n (bytes of a block / its length + s)", "2 n"),
    ("embedding_forward", "", 128, "2 r c s, 3 r c s with positions", "0"),
    ("embedding_scatter", "", 128, "(r + 2 targets) c s", "r c"),
    ("gated_", "_forward", 256, "3 n s", "20 n"),
    ("gated_", "_backward", 256, "5 n s", "20 n"),
    ("gradient_norm_finish", "", 256, "8 partial sums", "partial sums"),
    ("gradient_norm_clip", "", 256, "8 n", "n"),
    ("gradient_norm", "", 256, "n s", "2 n"),
    ("layer_norm_add_forward", "", 256, "4 n s", "9 n"),
    ("layer_norm_forward", "", 256, "2 n s", "8 n"),
    ("layer_norm_backward", "", 256, "3 n s, 4 n s if added", "14 n"),
    ("layer_norm_moments", "", 256, "n s", "5 n"),
    ("loss_chunk", "", 256, "r tokens (4 + s)", "20 r tokens"),
    ("loss_softmax", "", 256, "r tokens (4 + s)", "40 r tokens"),
    ("loss_pick", "", 256, "16 n", "0"),
    ("loss_label_rows", "", 256, "2 r c s", "0"),
    ("loss_finish", "", 256, "r c (4 + 2 s)", "3 r c"),
    ("loss_nll", "", 256, "28 r", "20 r"),
    ("loss_scale", "", 256, "2 n s", "n"),
    ("matmul_join", "", 256, "4 parts m n + m n s", "parts m n"),
    ("matmul_", "_small_", 128, "(m k + n k + m n) s", "2 m n k"),
    ("matmul_", "", 256, "(m k + n k + m n) s", "2 m n k"),
    ("position_bias_forward", "", 256, "(4 + s) Hq columns", "0"),
    ("position_bias_backward", "", 256, "4 Hq columns + s Hq buckets", "Hq columns"),
    ("rms_norm_add_forward", "", 256, "4 n s", "5 n"),
    ("rms_norm_forward", "", 256, "2 n s", "4 n"),
    ("rms_norm_backward", "", 256, "3 n s, 4 n s if added", "9 n"),
    ("rms_norm_moments", "", 256, "n s", "2 n"),
    ("rope_", "", 256, "2 n s", "3 n"),
    ("rows_forward", "", 256, "2 r c s", "0"),
    ("scale_", "", 256, "2 n s", "n"),
    ("rows_backward", "", 256, "(r + limit) c s", "r c"),
];

/// What ptxas says of a kernel on a target: registers and bytes of shared memory.
fn usage(target: &str, name: &str) -> Option<(usize, usize)> {
    let header = format!("Compiling entry function '{name}' for '{target}'");
    let line = PTXAS.lines().skip_while(|line| !line.ends_with(&header)).find(|line| line.contains(" registers"))?;
    let before = |unit: &str| {
        let part = line.split(',').find(|part| part.trim_end().ends_with(unit))?;
        part.split_whitespace().find_map(|word| word.parse().ok())
    };
    Some((before(" registers")?, before(" bytes smem").unwrap_or(0)))
}

/// Bytes of shared memory that a launch asks for: only attention's tiles do.
fn dynamic_shared(name: &str) -> usize {
    let Some((pass, rest)) = name.strip_prefix("attention_").and_then(|name| name.split_once("_d")) else { return 0 };
    let Some((Ok(dim), Some(dtype))) = rest.split_once('_').map(|(dim, dtype)| (dim.parse(), DType::named(dtype)))
    else {
        return 0;
    };
    let heads = Heads { queries: 1, keys: 1, dim, scale: 1.0 };
    let bytes = |shape: Shape| match pass {
        "forward" => shape.forward_shared(),
        "backward_bias" => shape.bias_shared(),
        _ => shape.backward_shared(),
    };
    Shape::new(heads, dtype).map_or(0, bytes)
}

/// Every kernel of this build, by name. One of which nothing is known here is left out; a test sees that there is none.
pub fn facts() -> Vec<KernelFacts> {
    let names = MODULES.iter().flat_map(|(_, ptx)| {
        let entries = ptx.split(".visible .entry ").skip(1);
        entries.map(|entry| entry[..entry.find('(').unwrap_or(entry.len())].trim())
    });
    let mut facts: Vec<KernelFacts> = names.filter_map(known).collect();
    facts.sort_by(|a, b| a.name.cmp(&b.name));
    facts
}

fn known(name: &str) -> Option<KernelFacts> {
    let fits = |&&(start, part, ..): &&(&str, &str, usize, &str, &str)| name.starts_with(start) && name.contains(part);
    let &(_, _, threads, bytes, flops) = LAUNCHES.iter().find(fits)?;
    let [(registers_80, shared_80), (registers_90, shared_90)] =
        [usage(Processor::ALL[0].target, name)?, usage(Processor::ALL[1].target, name)?];
    let (registers, static_shared) = ([registers_80, registers_90], [shared_80, shared_90]);
    let dynamic_shared = dynamic_shared(name);
    let occupancy =
        [0, 1].map(|at| Processor::ALL[at].occupancy(registers[at], static_shared[at] + dynamic_shared, threads));
    Some(KernelFacts { name: name.into(), threads, registers, static_shared, dynamic_shared, occupancy, bytes, flops })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_is_what_the_documented_rules_give() {
        let [a100, h100] = Processor::ALL;
        let full = Occupancy { blocks: 8, warps: 64, limit: "warps" };
        assert_eq!(a100.occupancy(32, 0, 256), full);
        // 33 registers a thread are 1280 for a warp: 51 warps, given by fours, so 6 blocks of 8.
        assert_eq!(a100.occupancy(33, 0, 256), Occupancy { blocks: 6, warps: 48, limit: "registers" });
        assert_eq!(a100.occupancy(128, 48 * 1024, 256), Occupancy { blocks: 2, warps: 16, limit: "registers" });
        assert_eq!(a100.occupancy(255, 0, 128), Occupancy { blocks: 2, warps: 8, limit: "registers" });
        // 56 KiB and 1 KiB reserved: two in 164 KiB, and four, not three, in 228.
        assert_eq!(a100.occupancy(64, 56 * 1024, 128), Occupancy { blocks: 2, warps: 8, limit: "shared memory" });
        assert_eq!(h100.occupancy(64, 56 * 1024, 128).blocks, 4);
        assert_eq!(h100.occupancy(16, 0, 32), Occupancy { blocks: 32, warps: 32, limit: "blocks" });
    }

    #[test]
    fn every_kernel_is_in_the_account() {
        let known: Vec<String> = facts().into_iter().map(|kernel| kernel.name).collect();
        let all: usize = MODULES.iter().map(|(_, ptx)| ptx.matches(".visible .entry ").count()).sum();
        assert!(all > 100 && known.len() == all, "{} of {all} kernels are known: add to LAUNCHES", known.len());
    }

    #[test]
    fn kernels_fit_where_they_are_launched() {
        for kernel in facts() {
            for occupancy in kernel.occupancy {
                assert!(occupancy.blocks >= 1, "{kernel:?}");
            }
        }
    }
}
