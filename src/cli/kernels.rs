//! `softprompt doctor --kernels`: the account of the CUDA kernels, and of a training step of given shapes. It is worked
//! out, not measured, and needs no GPU.

use super::Terminal;
use crate::account::{self, GPUS, KernelFacts, Kind, LAUNCH_SECONDS, Launch, Limit, Processor};
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::models::ModelConfig;
use crate::step::Batch;
use serde_json::{Value, json};

/// The shapes of a step.
#[derive(Debug, clap::Args)]
pub(super) struct KernelArgs {
    /// Account for the CUDA kernels: registers, shared memory, occupancy, bytes and operations
    #[arg(long)]
    kernels: bool,
    /// With --kernels: account for a whole training step of a model of this shape
    #[arg(long, value_name = "SHAPE", value_parser = ModelConfig::NAMES, requires = "kernels")]
    config: Option<String>,
    /// With --config: rows of the prompt
    #[arg(long, value_name = "P", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1 << 20), requires = "config")]
    num_virtual_tokens: u32,
    /// With --config: prompts that go through the model together, each with examples of its own
    #[arg(long, value_name = "G", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 12), requires = "config")]
    prompts: u32,
    /// With --config: examples of the step, or of each prompt
    #[arg(long, value_name = "B", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20), requires = "config")]
    examples: u32,
    /// With --config: tokens of the longest example, of which the last is the label
    #[arg(long, value_name = "T", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20), requires = "config")]
    tokens: u32,
    /// With --config: tokens of the shortest example, the others evenly between; without it all are as long
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1 << 20), requires = "config")]
    min_tokens: Option<u32>,
}

impl KernelArgs {
    pub(super) fn is_asked_for(&self) -> bool {
        self.kernels
    }
}

/// Several prompts: seconds on each of the GPUs of their step together, and of the steps that they take one after the other;
/// by the roofline, and with no launch shorter than a launch takes.
#[derive(Clone, Copy)]
struct Prompts {
    together: [[f64; 2]; GPUS.len()],
    apart: [[f64; 2]; GPUS.len()],
}

/// A step of a shape, accounted for.
struct Step {
    title: String,
    examples: usize,
    prompts: Option<Prompts>,
    kinds: Vec<Kind>,
    graph_nodes: usize,
}

pub(super) fn run(args: &KernelArgs, dtype: &str, terminal: &Terminal) -> Result<()> {
    let dtype = DType::named(dtype).unwrap_or_default();
    let step = args.config.as_deref().map(|shape| step(args, shape, dtype)).transpose()?;
    let kernels = account::facts();
    let kinds = step.as_ref().map_or(&[][..], |step| &step.kinds);
    let mut value = json!({ "kernels": kernels.iter().map(|kernel| kernel_json(kernel, kinds)).collect::<Vec<_>>() });
    let mut text = kernel_table(&kernels, kinds);
    if let Some(step) = &step {
        value["step"] = step_json(step);
        text += &step_table(step);
    }
    terminal.result(&value, &text)
}

fn step(args: &KernelArgs, shape: &str, dtype: DType) -> Result<Step> {
    let config = ModelConfig::named(shape).ok_or_else(|| Error::op("doctor", "a shape of the list", shape))?;
    let (prompt, examples, longest) = (args.num_virtual_tokens as usize, args.examples as usize, args.tokens as usize);
    let shortest = args.min_tokens.map_or(longest, |tokens| tokens as usize);
    if shortest > longest {
        let expected = format!("at most --tokens, {longest}");
        return Err(Error::Usage(Box::new(crate::error::Problem {
            place: Place::item("--min-tokens"),
            expected,
            got: shortest.to_string(),
            hint: "give the longest example's tokens as --tokens".into(),
        })));
    }
    let mut batch = Batch::new();
    for example in 0..examples {
        let tokens = shortest + (longest - shortest) * example / (examples - 1).max(1);
        let ids = vec![0; tokens];
        batch.push(&ids[1..], &ids[..1])?;
    }
    let prompts = args.prompts as usize;
    let layout = Batch::layout_of_all(&vec![&batch; prompts], &vec![prompt; prompts])?;
    let launches = account::training_step(&config, &layout, dtype)?;
    let of_prompts = match prompts {
        1 => None,
        _ => {
            let one = account::training_step(&config, &batch.layout(prompt)?, dtype)?;
            let together = GPUS.map(|gpu| account::seconds(&gpu, &launches, dtype));
            let apart = GPUS.map(|gpu| account::seconds(&gpu, &one, dtype).map(|seconds| prompts as f64 * seconds));
            Some(Prompts { together, apart })
        }
    };
    let lengths = if shortest == longest { format!("{longest}") } else { format!("{shortest} to {longest}") };
    let of_each = if prompts > 1 { format!("{prompts} prompts of ") } else { String::new() };
    Ok(Step {
        title: format!(
            "A training step of {shape} in {dtype}: {of_each}P = {prompt}, B = {examples}, T = {lengths}; {} rows, {} scored",
            layout.rows(),
            layout.scored_rows.len()
        ),
        examples: examples * prompts,
        prompts: of_prompts,
        kinds: account::by_name(&launches, dtype),
        graph_nodes: launches.len(),
    })
}

/// Bytes and operations of the average launch of a kernel in the step.
fn average<'a>(kernel: &KernelFacts, kinds: &'a [Kind]) -> Option<(&'a Kind, f64, f64)> {
    let kind = kinds.iter().find(|kind| kind.sum.name == kernel.name)?;
    Some((kind, kind.sum.bytes / kind.count as f64, kind.sum.flops / kind.count as f64))
}

fn kernel_table(kernels: &[KernelFacts], kinds: &[Kind]) -> String {
    let mut text = String::from(
        "Kernels: registers and shared memory by ptxas, threads as launched, resident warps of 64 and what limits them\n",
    );
    let head = ["regs", "shared", "warps", "limit"];
    text += &format!("{:<42}{:>8}", "kernel", "threads");
    for processor in Processor::ALL {
        text += &format!("  | {:<5}{:>6}{:>8}{:>6} {:<13}", processor.target, head[0], head[1], head[2], head[3]);
    }
    text += "  | bytes; FLOPs";
    text += if kinds.is_empty() { "\n" } else { " (of a launch of the step)\n" };
    for kernel in kernels {
        text += &format!("{:<42}{:>8}", kernel.name, kernel.threads);
        for at in 0..Processor::ALL.len() {
            let occupancy = kernel.occupancy[at];
            let shared = kernel.static_shared[at] + kernel.dynamic_shared;
            text +=
                &format!("  | {:>11}{shared:>8}{:>6} {:<13}", kernel.registers[at], occupancy.warps, occupancy.limit);
        }
        text += &format!("  | {}; {}", kernel.bytes, kernel.flops);
        if let Some((kind, bytes, flops)) = average(kernel, kinds) {
            text += &format!(" ({} × {:.3} MB; {:.4} GFLOP)", kind.count, bytes / 1e6, flops / 1e9);
        }
        text.push('\n');
    }
    text
}

fn kernel_json(kernel: &KernelFacts, kinds: &[Kind]) -> Value {
    let mut value = json!({
        "name": kernel.name,
        "threads": kernel.threads,
        "dynamic_shared": kernel.dynamic_shared,
        "bytes": kernel.bytes,
        "flops": kernel.flops,
    });
    for (at, processor) in Processor::ALL.iter().enumerate() {
        let occupancy = kernel.occupancy[at];
        value[processor.target] = json!({
            "registers": kernel.registers[at],
            "static_shared": kernel.static_shared[at],
            "blocks": occupancy.blocks,
            "warps": occupancy.warps,
            "limit": occupancy.limit,
        });
    }
    if let Some((kind, bytes, flops)) = average(kernel, kinds) {
        value["of_a_launch"] = json!({ "launches": kind.count, "bytes": bytes, "flops": flops });
    }
    value
}

/// A share of a step: all of it, its products with frozen matrices, attention, or what is bound by memory.
struct Share {
    name: &'static str,
    belongs: fn(&Launch) -> bool,
}

const SHARES: [Share; 3] = [
    Share { name: "products", belongs: |launch| launch.limit == Limit::Products && !is_attention(launch) },
    Share { name: "attention", belongs: is_attention },
    Share { name: "the rest", belongs: |launch| launch.limit != Limit::Products && !is_attention(launch) },
];

fn is_attention(launch: &Launch) -> bool {
    launch.name.starts_with("attention_")
}

impl Step {
    /// Seconds on the GPU of this number, of the launches that belong.
    fn seconds(&self, gpu: usize, belongs: impl Fn(&Launch) -> bool) -> f64 {
        self.kinds.iter().filter(|kind| belongs(&kind.sum)).map(|kind| kind.seconds[gpu]).sum()
    }

    fn flops(&self) -> f64 {
        self.kinds.iter().map(|kind| kind.sum.flops).sum()
    }

    fn bytes(&self) -> f64 {
        self.kinds.iter().filter(|kind| kind.sum.limit != Limit::Host).map(|kind| kind.sum.bytes).sum()
    }

    fn launch_seconds(&self) -> f64 {
        self.graph_nodes as f64 * LAUNCH_SECONDS
    }
}

fn step_table(step: &Step) -> String {
    let mut text = format!("\n{}\n{:<42}{:>7}{:>10}{:>10}", step.title, "launch", "count", "GFLOP", "MB");
    for gpu in GPUS {
        text += &format!("{:>18}", format!("{} µs", gpu.name));
    }
    text.push('\n');
    for kind in &step.kinds {
        let Launch { name, flops, bytes, .. } = &kind.sum;
        text += &format!("{name:<42}{:>7}{:>10.3}{:>10.3}", kind.count, flops / 1e9, bytes / 1e6);
        kind.seconds.iter().for_each(|seconds| text += &format!("{:>18.2}", seconds * 1e6));
        text.push('\n');
    }
    text += &format!("{:<42}{:>7}{:>10.3}{:>10.3}", "all", step.graph_nodes, step.flops() / 1e9, step.bytes() / 1e6);
    for at in 0..GPUS.len() {
        text += &format!("{:>18.2}", step.seconds(at, |_| true) * 1e6);
    }
    text.push('\n');
    for (at, gpu) in GPUS.iter().enumerate() {
        let total = step.seconds(at, |_| true);
        let shares = SHARES
            .iter()
            .map(|share| format!("{} {:.1} %", share.name, 100.0 * step.seconds(at, share.belongs) / total));
        let shares = shares.collect::<Vec<_>>().join(", ");
        text += &format!(
            "{}: at least {:.3} ms a step, at most {:.0} examples/s; {shares}\n",
            gpu.name,
            total * 1e3,
            step.examples as f64 / total
        );
        if let Some(Prompts { together, apart }) = step.prompts {
            let [gain, launched] = [0, 1].map(|how| apart[at][how] / together[at][how]);
            text += &format!(
                "{}: a step of each prompt by itself takes {gain:.2} times as long, {:.3} ms; if no launch takes less than \
                 3 µs, {launched:.2} times, {:.3} ms for {:.3} ms\n",
                gpu.name,
                apart[at][0] * 1e3,
                apart[at][1] * 1e3,
                together[at][1] * 1e3
            );
        }
    }
    text += &format!(
        "Launched one by one, at 3 µs each, {} launches take {:.3} ms of the host: what a CUDA graph saves.\n",
        step.graph_nodes,
        step.launch_seconds() * 1e3
    );
    text + "A launch is taken to read and write memory once for each operand and to reach the data sheet's peak. Operands \
            that stay in the L2 cache make it faster; small products, which do not fill the GPU, slower.\n"
}

fn step_json(step: &Step) -> Value {
    let launches = step.kinds.iter().map(|kind| {
        let Launch { name, flops, bytes, .. } = &kind.sum;
        let mut value = json!({ "name": name, "count": kind.count, "flops": flops, "bytes": bytes });
        GPUS.iter().zip(kind.seconds).for_each(|(gpu, seconds)| value[gpu.name] = json!(seconds));
        value
    });
    let gpus = GPUS.iter().enumerate().map(|(at, gpu)| {
        let total = step.seconds(at, |_| true);
        let mut value = json!({
            "name": gpu.name,
            "seconds": total,
            "examples_per_second": step.examples as f64 / total,
        });
        if let Some(Prompts { together, apart }) = step.prompts {
            let named = |how: usize| {
                json!({"seconds": together[at][how], "seconds_apart": apart[at][how], "gain": apart[at][how] / together[at][how]})
            };
            value["prompts"] = json!({"roofline": named(0), "with_launches": named(1)});
        }
        SHARES.iter().for_each(|share| value[share.name] = json!(step.seconds(at, share.belongs) / total));
        value
    });
    json!({
        "title": step.title,
        "launches": launches.collect::<Vec<_>>(),
        "count": step.graph_nodes,
        "flops": step.flops(),
        "bytes": step.bytes(),
        "gpus": gpus.collect::<Vec<_>>(),
        "launch_seconds": step.launch_seconds(),
    })
}
