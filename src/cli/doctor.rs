//! `softprompt doctor`: what this machine has, and how fast it is.

use super::Terminal;
use super::kernels::KernelArgs;
use super::options::ComputeArgs;
use crate::device::{CudaOptions, Device, Kind};
use crate::error::Result;
use crate::models::{Model, ModelConfig, ModelOptions};
use crate::step::Batch;
use crate::weights::locate::cache_directory;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// A model to try a small step on
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    kernels: KernelArgs,
}

pub(super) fn run(args: &DoctorArgs, terminal: &Terminal) -> Result<()> {
    if args.kernels.is_asked_for() {
        return super::kernels::run(&args.kernels, &args.compute.dtype, terminal);
    }
    let device = args.compute.device()?;
    let mut report = serde_json::Map::new();
    let mut add = |name: &str, value: Value| drop(report.insert(name.to_string(), value));
    add("version", json!(env!("CARGO_PKG_VERSION")));
    add("executable", json!(std::env::current_exe().ok().map(|path| path.display().to_string())));
    add("platform", json!(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)));
    add("cpu", json!(proc_line("/proc/cpuinfo", "model name")));
    add("memory_total", json!(proc_line("/proc/meminfo", "MemTotal")));
    add("memory_available", json!(proc_line("/proc/meminfo", "MemAvailable")));
    add("vector_extensions", json!(vector_extensions()));
    add_gpu(&mut add);
    add("threads", json!(device.threads()));
    add("gemm_gflops_f32", json!(gemm_rate(args)?.round()));
    add("memory_read_gb_per_s", json!(read_rate(&device)?.round()));
    let cache = cache_directory();
    let cached = cache.as_ref().map(|cache| models_in(cache)).unwrap_or_default();
    add("hub_cache", json!(cache.map(|cache| cache.display().to_string())));
    add("cached_models", json!(cached));
    let writable = tempfile_in_current_directory();
    add("current_directory_writable", json!(writable));
    if let Some(path) = &args.model {
        let start = Instant::now();
        let model = args.compute.open(path)?;
        add("model_open_seconds", json!(start.elapsed().as_secs_f64()));
        add("model", json!(model.name()));
        add("model_family", json!(model.config().family.name()));
        add("model_has_tokenizer", json!(model.tokenizer().is_some()));
        let start = Instant::now();
        let loss = small_step(&model)?;
        add("small_step_seconds", json!(start.elapsed().as_secs_f64()));
        add("small_step_loss", json!(loss));
        let memory = model.device().memory();
        for kind in Kind::ALL {
            add(&format!("small_step_peak_bytes_{}", kind.name()), json!(memory.at_peak(kind)));
        }
    }
    let text: Vec<String> = report.iter().map(|(name, value)| format!("{name:<36} {value}")).collect();
    terminal.result(&Value::Object(report), &text.join("\n"))
}

/// The first GPU, or why there is none to compute with.
fn add_gpu(add: &mut impl FnMut(&str, Value)) {
    let cuda = match Device::cuda(CudaOptions::default()) {
        Ok(Device::Cuda(cuda)) => cuda,
        Ok(Device::Cpu(_)) => return,
        Err(error) => {
            add("devices", json!(["cpu"]));
            return add("cuda", json!(error.to_string()));
        }
    };
    let properties = cuda.properties();
    let (major, minor) = properties.compute_capability;
    add("devices", json!(["cpu", "cuda"]));
    add("cuda", json!(properties.name));
    add("cuda_compute_capability", json!(format!("{major}.{minor}")));
    add("cuda_multiprocessors", json!(properties.multiprocessors));
    add("cuda_memory", json!(properties.memory));
    add("cuda_driver_version", json!(properties.driver_version));
    add("cuda_matmul", json!(cuda.matmul_name().unwrap_or_else(|error| error.to_string())));
}

fn vector_extensions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        [
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ]
        .into_iter()
        .filter_map(|(name, has)| has.then_some(name))
        .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        vec![std::env::consts::ARCH]
    }
}

/// The rate of a step on one layer of a 135M model's shape, about a second of it.
fn gemm_rate(args: &DoctorArgs) -> Result<f64> {
    let device = args.compute.device()?;
    let shape = ModelConfig::named("smollm2-135m").unwrap_or_else(|| unreachable!("a name of the list"));
    let config = ModelConfig { num_hidden_layers: 2, vocab_size: 1024, ..shape };
    let model = Model::random(config.clone(), 0, &device, ModelOptions::default())?;
    let batch = small_batch(32, 32)?;
    let prompt = model.prompt_from(100, &vec![0.01; 100 * config.hidden_size])?;
    let layout = batch.layout(100)?;
    let flops: f64 = crate::flops::frozen_products(&config, &layout).iter().map(crate::flops::Product::flops).sum();
    model.loss_and_grad(&prompt, &batch)?;
    let (start, mut steps) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(1) {
        model.loss_and_grad(&prompt, &batch)?;
        steps += 1;
    }
    Ok(flops * f64::from(steps) / start.elapsed().as_secs_f64() / 1e9)
}

/// How fast all threads together read memory that no cache holds.
fn read_rate(device: &Device) -> Result<f64> {
    const BYTES: usize = 256 << 20;
    let buffer = device.run(|| Ok(device.allocate(BYTES, Kind::Workspace)))?;
    let words = buffer.as_slice::<u64>();
    let sum = || {
        device.run(|| {
            Ok(words.par_chunks(1 << 16).map(|part| part.iter().fold(0, |a, b| a ^ b)).reduce(|| 0, |a, b| a ^ b))
        })
    };
    std::hint::black_box(sum()?);
    let (start, mut rounds) = (Instant::now(), 0);
    while rounds < 2 || start.elapsed() < Duration::from_millis(250) {
        std::hint::black_box(sum()?);
        rounds += 1;
    }
    Ok((BYTES * rounds) as f64 / start.elapsed().as_secs_f64() / 1e9)
}

/// The value of a line `name : value` of a file that Linux has.
fn proc_line(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn small_batch(examples: u32, length: u32) -> Result<Batch> {
    let mut batch = Batch::new();
    for example in 0..examples {
        let ids: Vec<u32> = (0..length).map(|at| 2 + (example + at) % 16).collect();
        batch.push(&ids[1..], &ids[..1])?;
    }
    Ok(batch)
}

fn small_step(model: &Model) -> Result<f64> {
    let width = model.config().hidden_size;
    let prompt = model.prompt_from(4, &vec![0.01; 4 * width])?;
    Ok(model.loss_and_grad(&prompt, &small_batch(2, 4)?)?.loss.mean)
}

fn models_in(cache: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.strip_prefix("models--").map(|name| name.replacen("--", "/", 1))
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn tempfile_in_current_directory() -> bool {
    let path = PathBuf::from(format!(".softprompt-doctor-{}", std::process::id()));
    let written = std::fs::write(&path, b"").is_ok();
    written && std::fs::remove_file(&path).is_ok()
}
