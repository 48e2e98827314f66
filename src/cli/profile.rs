//! `softprompt profile`: the memory of a training step by what it is held for, measured and predicted.

mod report;

use super::options::ComputeArgs;
use super::{Terminal, printable, refuse_to_overwrite};
use crate::bench::check_positions;
use crate::device::{self, Device};
use crate::device::{parse_bytes, shown_bytes};
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::models::{Model, ModelConfig, ModelOptions, Recompute};
use crate::profile::{Architecture, Measured, Method, Need, Parameters, Plan, Setup, Stream, measure, predict};
use crate::storage;
use report::{Forecast, Predicted, Row, Subject, Told};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct ProfileArgs {
    /// A Hugging Face directory, a .gguf file, or a hub id found in the local cache; with --predict, a config.json will do
    #[arg(value_name = "MODEL", conflicts_with = "config")]
    model: Option<PathBuf>,
    /// Instead of MODEL: random weights of this shape
    #[arg(long, value_name = "SHAPE", value_parser = ModelConfig::NAMES)]
    config: Option<String>,
    /// Predict only, from the configuration: nothing is loaded, and no such device need be here
    #[arg(long)]
    predict: bool,
    /// With --predict: memory of devices, with commas between; without it 24GiB,40GiB,80GiB
    #[arg(long, value_name = "SIZE,SIZE,…", value_delimiter = ',', requires = "predict")]
    device_memory: Vec<String>,
    /// What is trained: a prompt in front of the frozen model, all of its weights, or each in turn
    #[arg(long, value_parser = ["prompt", "full", "all"], default_value = "all")]
    method: String,
    /// Rows of the prompt
    #[arg(long, value_name = "P", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    num_virtual_tokens: u32,
    /// Examples of a step, made up
    #[arg(long, value_name = "B", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    examples: u32,
    /// Tokens of an example, of which the last is the label
    #[arg(long, value_name = "T", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    tokens: u32,
    /// Where to compute: cpu, cuda (the first GPU) or cuda:N; without it cpu, with --predict cuda
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The type to compute in; without it f32 on a CPU and bf16 on a GPU
    #[arg(long, value_parser = ["f32", "f64", "bf16"])]
    dtype: Option<String>,
    /// CPU threads: each has scratch of its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    threads: Option<u16>,
    /// mapped reads frozen weights as the file stores them; widened keeps a copy in dtype
    #[arg(long, value_parser = ["mapped", "widened"], default_value = "mapped", conflicts_with = "predict")]
    weights: String,
    /// Write the result with its picture: an .html page, or the picture alone as .svg
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
}

/// Sizes of devices that are told of unless others are asked for.
const DEVICES: [&str; 3] = ["24GiB", "40GiB", "80GiB"];

pub(super) fn run(args: &ProfileArgs, terminal: &Terminal) -> Result<()> {
    let format = args.check()?;
    let told = if args.predict { forecast(args)? } else { profile(args, terminal)? };
    // The numbers first: they took longer to make than the report will to write.
    terminal.result(&told.json, &printable(&told.text))?;
    match (&args.report, format) {
        (Some(path), Some(Format::Svg)) => storage::atomic_write(path, told.picture.svg().as_bytes()),
        (Some(path), _) => storage::atomic_write(path, told.page().as_bytes()),
        (None, _) => Ok(()),
    }
}

/// What a report is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Html,
    Svg,
}

impl ProfileArgs {
    /// Refuses what can be told from the flags and the disk alone.
    fn check(&self) -> Result<Option<Format>> {
        if self.model.is_none() && self.config.is_none() {
            return Err(Error::usage(Place::item("profile"), "MODEL or --config SHAPE", "neither")
                .hint(format!("shapes: {}", ModelConfig::NAMES.join(", "))));
        }
        let Some(path) = &self.report else { return Ok(None) };
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("html" | "htm") => Format::Html,
            Some("svg") => Format::Svg,
            _ => {
                return Err(Error::usage(
                    Place::item("--report"),
                    "a name in .html or .svg",
                    path.display().to_string(),
                )
                .hint("the name says what is written"));
            }
        };
        refuse_to_overwrite(path, self.force)?;
        storage::check_writable(path)?;
        Ok(Some(format))
    }

    /// Method and policy of each row. Weights have no row between all and nothing: a layer is what checkpointing means there.
    fn rows(&self) -> Vec<(Method, Recompute)> {
        let prompt = Recompute::ALL.map(|recompute| (Method::Prompt, recompute));
        let full = [Recompute::None, Recompute::Layer].map(|recompute| (Method::Full, recompute));
        let wanted = |&(method, _): &(Method, Recompute)| match self.method.as_str() {
            "prompt" => method == Method::Prompt,
            "full" => method == Method::Full,
            _ => true,
        };
        prompt.into_iter().chain(full).filter(wanted).collect()
    }

    fn device_name(&self) -> &str {
        self.device.as_deref().unwrap_or(if self.predict { "cuda" } else { "cpu" })
    }

    fn on_gpu(&self) -> bool {
        self.device_name() != "cpu"
    }

    fn dtype(&self) -> DType {
        let asked = self.dtype.as_deref().and_then(DType::named);
        asked.unwrap_or(if self.on_gpu() { DType::BF16 } else { DType::F32 })
    }

    fn sizes(&self) -> (usize, usize, usize) {
        (self.num_virtual_tokens as usize, self.examples as usize, self.tokens as usize)
    }

    fn compute(&self) -> ComputeArgs {
        ComputeArgs {
            device: self.device_name().to_owned(),
            dtype: self.dtype().to_string(),
            threads: self.threads,
            weights: self.weights.clone(),
            prompt_on: "encoder".to_owned(),
            prompt_mask: "full".to_owned(),
        }
    }

    fn name(&self) -> String {
        let model = self.model.as_ref().map(|path| path.to_string_lossy().into_owned());
        self.config.clone().or(model).unwrap_or_default()
    }

    /// A model as a row needs it, on a device of its own, so that no row finds what another left in its pool.
    fn open(&self, method: Method, recompute: Recompute) -> Result<Model> {
        let compute = self.compute();
        let device = compute.device()?;
        let options = ModelOptions { recompute, trainable: method == Method::Full, ..compute.options() };
        if let Some(shape) = &self.config {
            let config = ModelConfig::named(shape).ok_or_else(|| Error::op("profile", "a shape of the list", shape))?;
            return Model::random(config, 0, &device, options);
        }
        let path = self.model.clone().unwrap_or_default();
        Model::open(&path, &device, options).map_err(|error| advised(error, &path))
    }
}

/// A name of a shape where a path belongs is told.
fn advised(error: Error, path: &Path) -> Error {
    let name = path.to_string_lossy().into_owned();
    let is_shape = ModelConfig::NAMES.contains(&name.as_str()) && !path.exists();
    if is_shape { error.hint(format!("--config {name} is this shape")) } else { error }
}

/// Takes a step of each kind.
fn profile(args: &ProfileArgs, terminal: &Terminal) -> Result<Told> {
    let (prompt_rows, examples, tokens) = args.sizes();
    let mut rows: Vec<Row> = Vec::new();
    let (mut parameters, mut threads) = (0, 1);
    let mut refused = None;
    for (method, recompute) in args.rows() {
        let (need, measured) = match weigh(args, method, recompute) {
            Ok(found) => {
                (parameters, threads) = (found.parameters, found.threads);
                (Some(found.need), found.measured)
            }
            // Not every model can be trained whole everywhere, nor is there room for it; a prompt can be all the same.
            Err(error @ (Error::Config(_) | Error::Input(_) | Error::Device(_))) if !rows.is_empty() => {
                (None, Err(error))
            }
            Err(error) => return Err(error),
        };
        let reason = measured.as_ref().err().map(ToString::to_string);
        if let Some(reason) = &reason {
            let trained = report::method_name(method);
            terminal.note(&format!("{trained}, {}: not measured: {}", recompute.name(), printable(reason)));
        }
        let weighed = match measured {
            Ok(measured) => Some(measured),
            Err(error) if matches!(error, Error::Device(_)) || need.is_none() => {
                refused.get_or_insert(error);
                None
            }
            Err(error) => return Err(error),
        };
        rows.push(Row { method, recompute, need, measured: weighed, reason });
    }
    if let Some(error) = refused.filter(|_| rows.iter().all(|row| row.measured.is_none())) {
        return Err(error);
    }
    let device = args.device_name().to_owned();
    let (name, dtype) = (args.name(), args.dtype());
    let subject = Subject { name, parameters, device, threads, dtype, prompt_rows, examples, tokens };
    Ok(report::measured(&subject, &rows))
}

/// What is known of a row.
struct Found {
    need: Need,
    measured: Result<Measured>,
    parameters: u128,
    threads: usize,
}

/// Predicts a step and takes it.
fn weigh(args: &ProfileArgs, method: Method, recompute: Recompute) -> Result<Found> {
    let (prompt_rows, examples, tokens) = args.sizes();
    let in_front = if method == Method::Prompt { prompt_rows } else { 0 };
    let stream = Stream::even(in_front, examples, tokens, 1);
    // A shape's sizes are known before its weights are made.
    if let Some(config) = args.config.as_deref().and_then(ModelConfig::named) {
        check_positions(&config, in_front, tokens)?;
        let parameters = Parameters::of(&config).total;
        let setup = Setup { method, dtype: args.dtype(), on_gpu: args.on_gpu(), ..Setup::new(config, 1) };
        let need = Need::of(&predict(&setup, &stream, recompute));
        if let Err(error) = check_room(args, &need) {
            return Ok(Found { need, measured: Err(error), parameters, threads: 1 });
        }
    }
    let model = args.open(method, recompute)?;
    check_positions(model.config(), in_front, tokens)?;
    let need = Need::of(&predict(&Setup::of(&model), &stream, recompute));
    let measured = check_room(args, &need).and_then(|()| measure(&model, prompt_rows, examples, tokens));
    let parameters = Parameters::of(model.config()).total;
    Ok(Found { need, measured, parameters, threads: model.device().threads() })
}

/// Refuses what the system has no room for: such a process is ended rather than told. A GPU says itself that it is full.
fn check_room(args: &ProfileArgs, need: &Need) -> Result<()> {
    let Some(available) = device::available_memory().filter(|_| !args.on_gpu()) else { return Ok(()) };
    if need.total() <= available as u64 {
        return Ok(());
    }
    let expected = format!("{}, as predicted", shown_bytes(need.total()));
    Err(Error::device(Place::item("cpu"), expected, format!("{} available", shown_bytes(available as u64)))
        .hint("take fewer or shorter examples, or --predict, which needs no memory"))
}

/// Predicts from a configuration alone.
fn forecast(args: &ProfileArgs) -> Result<Told> {
    let (prompt_rows, examples, tokens) = args.sizes();
    let name = args.device_name();
    if !Device::is_name(name) {
        return Err(Error::config(Place::item("device"), "cpu, cuda or cuda:N", format!("{name:?}"))
            .hint("with --predict no such device need be here"));
    }
    let (on_gpu, dtype) = (args.on_gpu(), args.dtype());
    if dtype == (if on_gpu { DType::F64 } else { DType::BF16 }) {
        let expected = if on_gpu { "f32 or bf16 on cuda" } else { "f32 or f64 on cpu" };
        return Err(
            Error::config(Place::item("dtype"), expected, dtype.to_string()).hint("give another --dtype or --device")
        );
    }
    let devices = devices(&args.device_memory)?;
    let (architecture, stored_bits) = match (&args.config, &args.model) {
        (Some(shape), _) => {
            let config = ModelConfig::named(shape).ok_or_else(|| Error::op("profile", "a shape of the list", shape))?;
            (Architecture(config), None)
        }
        (None, Some(path)) => Architecture::read(path).map_err(|error| advised(error, path))?,
        (None, None) => return Err(Error::op("profile", "a model", "none")),
    };
    let threads = args
        .threads
        .map_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from);
    let plan = Plan {
        method: Method::Prompt,
        recompute: Recompute::None,
        on_gpu,
        dtype,
        stored_bits: stored_bits.unwrap_or((8 * dtype.size()) as f64),
        threads: if on_gpu { 1 } else { threads },
        prompt_rows,
        examples,
        tokens,
    };
    let mut forecasts = Vec::new();
    for (method, recompute) in args.rows() {
        check_positions(&architecture.0, if method == Method::Prompt { prompt_rows } else { 0 }, tokens)?;
        let plan = Plan { method, recompute, ..plan };
        let fits = devices.iter().map(|&(_, bytes)| architecture.largest_batch(&plan, bytes)).collect();
        forecasts.push(Forecast { method, recompute, need: architecture.need(&plan), fits });
    }
    let subject = Subject {
        name: args.name(),
        parameters: architecture.parameters(),
        device: name.to_owned(),
        threads: plan.threads,
        dtype,
        prompt_rows,
        examples,
        tokens,
    };
    Ok(report::predicted(
        &subject,
        &Predicted { architecture: &architecture, devices: &devices, forecasts: &forecasts },
    ))
}

/// Sizes of devices as they were written, and in bytes.
fn devices(asked: &[String]) -> Result<Vec<(String, u64)>> {
    let asked: Vec<String> = if asked.is_empty() { DEVICES.map(str::to_owned).to_vec() } else { asked.to_vec() };
    let parsed = asked.into_iter().map(|text| match parse_bytes(&text) {
        Some(bytes) => Ok((text.trim().to_owned(), bytes)),
        None => Err(Error::usage(Place::item("--device-memory"), "sizes as in 24GiB,80GB", format!("{text:?}"))
            .hint("units are B, kB, MB, GB, TB and KiB, MiB, GiB, TiB")),
    });
    parsed.collect()
}
