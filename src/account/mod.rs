//! An account of a training step on a GPU, on paper: what is launched, how much is computed and moved, and how long that
//! takes at least by the roofline, where a launch takes as long as the slower of its arithmetic and its memory traffic.
//!
//! The list of launches is made by the models' own order of ops and the tape's own rules, on shapes alone; a test holds
//! it against what a step really launches. Bytes are those that have to move if every launch reads its operands from
//! memory once and writes its results once: caches can do better, and nothing can do better without them.

mod kernels;
mod ops;
mod trace;

pub use kernels::{KernelFacts, Occupancy, Processor, facts};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::models::{Family, ModelConfig};
use ops::{Indices, LAYER_NORM, RMS_NORM, Seen};
use trace::{Trace, Var};

/// What a launch's arithmetic runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Matrix products: the tensor cores in bf16, the ordinary ones in f32.
    Products,
    /// The ordinary cores, in f32.
    Cores,
    /// The link to the host.
    Host,
}

/// Something that a step puts into the GPU's stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// A kernel's name, or `cublasLtMatmul`, `upload`, `download`, `copy`, `fill`.
    pub name: String,
    /// What it computes on.
    pub limit: Limit,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes moved, at least.
    pub bytes: f64,
}

/// A GPU by its data sheet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Operations a second of products in bf16, without sparsity.
    pub bf16: f64,
    /// Operations a second in f32, without TF32.
    pub f32: f64,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
}

/// The GPUs that the account is made for.
pub const GPUS: [Gpu; 2] = [
    Gpu { name: "A100-SXM-80GB", bf16: 312e12, f32: 19.5e12, bandwidth: 2039e9 },
    Gpu { name: "H100-SXM", bf16: 989e12, f32: 67e12, bandwidth: 3350e9 },
];

/// What launching a kernel costs when the GPU waits for it, in seconds.
pub const LAUNCH_SECONDS: f64 = 3e-6;

impl Gpu {
    /// Seconds that `launch` takes at least, where products are of `dtype`. None for traffic with the host, which is
    /// small and overlaps.
    pub fn seconds(&self, launch: &Launch, dtype: DType) -> f64 {
        let peak = if launch.limit == Limit::Products && dtype == DType::BF16 { self.bf16 } else { self.f32 };
        match launch.limit {
            Limit::Host => 0.0,
            _ => (launch.flops / peak).max(launch.bytes / self.bandwidth),
        }
    }
}

/// Seconds that `launches` take at least on `gpu`, one after the other: by the roofline alone, and where none takes less than
/// [`LAUNCH_SECONDS`], which decides where a step is made of many small launches.
pub fn seconds(gpu: &Gpu, launches: &[Launch], dtype: DType) -> [f64; 2] {
    let at_least = |least: f64| {
        let seconds = |launch: &Launch| match launch.limit {
            Limit::Host => 0.0,
            _ => gpu.seconds(launch, dtype).max(least),
        };
        launches.iter().map(seconds).sum()
    };
    [at_least(0.0), at_least(LAUNCH_SECONDS)]
}

/// Launches of one name, added up.
#[derive(Debug, Clone, PartialEq)]
pub struct Kind {
    /// The first of them, with the operations and bytes of all.
    pub sum: Launch,
    /// How many.
    pub count: usize,
    /// Seconds on each of [`GPUS`].
    pub seconds: [f64; GPUS.len()],
}

/// Adds up launches by name, those that take longest on the first GPU first.
pub fn by_name(launches: &[Launch], dtype: DType) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for launch in launches {
        let seconds = GPUS.map(|gpu| gpu.seconds(launch, dtype));
        match kinds.iter_mut().find(|kind| kind.sum.name == launch.name) {
            Some(kind) => {
                kind.count += 1;
                kind.sum.flops += launch.flops;
                kind.sum.bytes += launch.bytes;
                kind.seconds.iter_mut().zip(seconds).for_each(|(sum, seconds)| *sum += seconds);
            }
            None => kinds.push(Kind { sum: launch.clone(), count: 1, seconds }),
        }
    }
    kinds.sort_by(|a, b| b.seconds[0].total_cmp(&a.seconds[0]));
    kinds
}

/// What a training step of all prompts of `layout` launches: a pass, and each prompt's own AdamW.
///
/// # Errors
/// As [`step`].
pub fn training_step(config: &ModelConfig, layout: &Layout, dtype: DType) -> Result<Vec<Launch>> {
    let mut launches = step(config, layout, dtype)?;
    for &rows in &layout.prompt_rows {
        launches.extend(optimizer(rows, config.hidden_size));
    }
    Ok(launches)
}

/// What a forward and backward pass over `layout` launches, in order, with weights held in `dtype`, after the step that
/// makes the tables that stay. Several prompts are put together before it, and their gradients taken apart after it.
///
/// # Errors
/// [`Error::Config`] for a type that GPUs do not compute in; [`Error::Op`] for heads that the kernels do not know.
pub fn step(config: &ModelConfig, layout: &Layout, dtype: DType) -> Result<Vec<Launch>> {
    if dtype == DType::F64 {
        let place = crate::error::Place::item("dtype");
        return Err(Error::config(place, "f32 or bf16 on a GPU", dtype.to_string()).hint("give another --dtype"));
    }
    let mut trace = Trace::new(dtype);
    trace.copy_each(&layout.prompt_rows, config.hidden_size);
    let prompt = trace.leaf(layout.total_prompt_rows(), config.hidden_size);
    let prompt = ops::cast(&mut trace, prompt);
    let hidden = match config.family {
        Family::Llama | Family::Mistral | Family::Qwen2 => llama(&mut trace, prompt, config, layout)?,
        Family::Gpt2 => gpt2(&mut trace, prompt, config, layout)?,
        Family::T5 | Family::Mt5 => {
            let place = crate::error::Place::item("model");
            return Err(Error::config(place, "a causal model to account for", config.family.name()));
        }
    };
    let loss = ops::cross_entropy(&mut trace, hidden, config.vocab_size);
    trace.backward(loss);
    trace.copy_each(&layout.prompt_rows, config.hidden_size);
    trace.download(layout.labels.len() * size_of::<f32>());
    Ok(trace.launches)
}

/// What a training step launches after that to move a prompt `[rows, cols]` by AdamW.
pub fn optimizer(rows: usize, cols: usize) -> Vec<Launch> {
    let mut trace = Trace::new(DType::F32);
    ops::adamw(&mut trace, rows, cols);
    trace.launches
}

/// As `models/llama.rs`.
fn llama(trace: &mut Trace, prompt: Var, config: &ModelConfig, layout: &Layout) -> Result<Var> {
    let heads = config.heads();
    let (queries, keys) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let positions = Indices::new(layout.positions.clone());
    let scored = Indices::new(layout.scored_rows.clone());
    let scored_positions = Indices::new(layout.scored_rows.iter().map(|&row| layout.positions[row]).collect());
    let (all, trimmed) = (Seen::new(&layout.all), Seen::new(&layout.scored));

    let mut x = ops::embedding(trace, prompt, layout.ids.len(), false);
    let mut normed = RMS_NORM.forward(trace, x);
    for layer in 0..config.num_hidden_layers {
        let key = ops::linear(trace, normed, keys);
        let key = ops::rope(trace, key, &positions);
        let value = ops::linear(trace, normed, keys);
        let (asking, positions, segments) = if layer + 1 == config.num_hidden_layers {
            x = ops::rows(trace, x, &scored);
            (ops::rows(trace, normed, &scored), &scored_positions, &trimmed)
        } else {
            (normed, &positions, &all)
        };
        let query = ops::linear(trace, asking, queries);
        let query = ops::rope(trace, query, positions);
        let attended = ops::attention(trace, query, key, value, heads, segments)?;
        let attended = ops::linear(trace, attended, config.hidden_size);
        (x, normed) = RMS_NORM.after_add(trace, x, attended);
        let gate = ops::linear(trace, normed, config.intermediate_size);
        let up = ops::linear(trace, normed, config.intermediate_size);
        let inner = ops::gated(trace, gate, up, config.activation.kernel_name());
        let out = ops::linear(trace, inner, config.hidden_size);
        (x, normed) = RMS_NORM.after_add(trace, x, out);
    }
    Ok(normed)
}

/// As `models/gpt2.rs`.
fn gpt2(trace: &mut Trace, prompt: Var, config: &ModelConfig, layout: &Layout) -> Result<Var> {
    let (heads, width) = (config.heads(), config.hidden_size);
    let scored = Indices::new(layout.scored_rows.clone());
    let (all, trimmed) = (Seen::new(&layout.all), Seen::new(&layout.scored));

    let mut x = ops::embedding(trace, prompt, layout.ids.len(), true);
    let mut normed = LAYER_NORM.forward(trace, x);
    for layer in 0..config.num_hidden_layers {
        let key = ops::linear(trace, normed, width);
        let value = ops::linear(trace, normed, width);
        let (asking, segments) = if layer + 1 == config.num_hidden_layers {
            x = ops::rows(trace, x, &scored);
            (ops::rows(trace, normed, &scored), &trimmed)
        } else {
            (normed, &all)
        };
        let query = ops::linear(trace, asking, width);
        let attended = ops::attention(trace, query, key, value, heads, segments)?;
        let attended = ops::linear(trace, attended, width);
        (x, normed) = LAYER_NORM.after_add(trace, x, attended);
        let up = ops::linear(trace, normed, config.intermediate_size);
        let inner = ops::activation(trace, up, config.activation.kernel_name());
        let out = ops::linear(trace, inner, width);
        (x, normed) = LAYER_NORM.after_add(trace, x, out);
    }
    Ok(normed)
}
