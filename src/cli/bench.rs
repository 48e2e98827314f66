//! `softprompt bench`: how long a training step takes, of what it consists, and what memory it needs.

mod report;

use super::options::{ComputeArgs, encoder, longest, prompt_for};
use super::{Terminal, printable, refuse_to_overwrite};
use crate::bench::{
    Measurement, Options, Point, Rows, Swept, Trained, check_memory, check_positions, measure, picture,
};
use crate::data::{Dataset, ExampleOptions};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::models::{Model, ModelConfig, ModelOptions, Recompute};
use crate::prompt::{Init, PromptFile, initial_prompt};
use crate::storage;
use std::path::PathBuf;

/// Rows of a prompt that nothing was said about.
const PROMPT_ROWS: usize = 100;

/// Random prompts are drawn from −RANGE to RANGE.
const RANGE: f64 = 0.1;

#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    /// A Hugging Face directory, a .gguf file, or a hub id found in the local cache
    #[arg(value_name = "MODEL", conflicts_with = "config")]
    model: Option<PathBuf>,
    /// Instead of MODEL: random weights of this shape
    #[arg(long, value_name = "SHAPE", value_parser = ModelConfig::NAMES)]
    config: Option<String>,
    /// What is trained: a prompt in front of the frozen model, or all of its weights
    #[arg(long, value_parser = ["prompt", "full"], default_value = "prompt")]
    method: String,
    /// Rows of the prompt; without it 100, or those of --prompt
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    num_virtual_tokens: Option<u32>,
    /// Prompts that go through the model together, each with examples of its own; the steps that they take one after the
    /// other are timed beside it
    #[arg(long, value_name = "G", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 12))]
    prompts: u32,
    /// Examples of a step, made up; with --prompts those of each
    #[arg(long, value_name = "B", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    examples: u32,
    /// Tokens of an example, of which the last is the label
    #[arg(long, value_name = "T", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    tokens: u32,
    /// Examples of uneven length: drawn evenly from 4 to T tokens, from this seed
    #[arg(long, value_name = "SEED")]
    uneven: Option<u64>,
    /// Instead of made-up examples: all rows of this .jsonl, .csv or .tsv file, in order, are the batch
    #[arg(long, value_name = "FILE", conflicts_with_all = ["examples", "tokens", "uneven"])]
    data: Option<PathBuf>,
    /// The prompt: a .safetensors or .npy file, a PEFT adapter, a run or a checkpoint; without it random
    #[arg(long, value_name = "PATH")]
    prompt: Option<PathBuf>,
    /// What is computed again in the backward pass rather than kept
    #[arg(long, value_parser = ["none", "mlp", "layer"], default_value = "none")]
    recompute: String,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Steps before those that are timed; without it 1, or 3 on a GPU
    #[arg(long, value_name = "N")]
    warm_up: Option<u16>,
    /// Steps that are timed; without it 5, or 20 on a GPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: Option<u16>,
    /// Measure at several values of one size; the matrix library is left out
    #[arg(long, value_parser = ["examples", "num-virtual-tokens", "tokens"], requires = "values")]
    sweep: Option<String>,
    /// The values of --sweep, with commas between
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 20), requires = "sweep")]
    values: Vec<u32>,
    /// Draw the sweep: an .svg file
    #[arg(long, value_name = "FILE", requires = "sweep")]
    plot: Option<PathBuf>,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
}

/// The sizes of a step.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    prompt_rows: usize,
    examples: usize,
    tokens: usize,
}

/// What is measured: the flags, and what can be told of them without a model.
struct Plan<'a> {
    args: &'a BenchArgs,
    sizes: Sizes,
    swept: Option<Swept>,
}

pub(super) fn run(args: &BenchArgs, terminal: &Terminal) -> Result<()> {
    args.check()?;
    let plan = Plan { args, sizes: args.sizes()?, swept: args.sweep.as_deref().and_then(Swept::named) };
    let device = args.compute.device()?;
    let (shape, model) = plan.open(&device)?;
    let subject = report::Subject { shape: &shape, method: &args.method, model: &model };
    let Some(swept) = plan.swept else {
        let measured = plan.measure(&model, plan.sizes, true)?;
        let text = report::one_text(&subject, &measured);
        return terminal.result(&report::one_json(&subject, &measured), &printable(&text));
    };
    let mut points = Vec::new();
    for &value in &args.values {
        let measured = plan.measure(&model, plan.sizes_at(swept, value), false)?;
        terminal.note(&format!("{} {value}: {:.4} s", swept.name(), measured.median_seconds()));
        points.push(Point { value: value as usize, measured });
    }
    let plot = args.plot.as_deref();
    let json = report::sweep_json(&subject, swept, &points, plot);
    // The numbers first: they took longer to make than the picture will to write.
    terminal.result(&json, &printable(&report::sweep_text(&subject, swept, &points, plot)))?;
    plot.map_or(Ok(()), |path| storage::atomic_write(path, picture(&shape, swept, &points).as_bytes()))
}

impl BenchArgs {
    fn trains_weights(&self) -> bool {
        self.method == "full"
    }

    /// Refuses what can be told from the flags and the disk alone.
    fn check(&self) -> Result<()> {
        if self.model.is_none() && self.config.is_none() {
            return Err(Error::usage(Place::item("bench"), "MODEL or --config SHAPE", "neither")
                .hint(format!("shapes: {}", ModelConfig::NAMES.join(", "))));
        }
        let refused = |flag: &str, why: &str| {
            Err(Error::usage(Place::item(flag), format!("no {flag} {why}"), "one").hint(format!("leave out {flag}")))
        };
        if self.trains_weights() {
            if self.prompt.is_some() || self.num_virtual_tokens.is_some() {
                let flag = if self.prompt.is_some() { "--prompt" } else { "--num-virtual-tokens" };
                return refused(flag, "with --method full, which trains the model without a prompt");
            }
            if self.prompts > 1 {
                return refused("--prompts", "with --method full, which trains the model without a prompt");
            }
            if self.compute.weights != "mapped" {
                return refused("--weights", "with --method full, which holds every weight in --dtype");
            }
        }
        let sized_by = match self.sweep.as_deref() {
            Some("num-virtual-tokens") if self.trains_weights() => {
                return refused("--sweep num-virtual-tokens", "with --method full, which has no prompt");
            }
            Some("num-virtual-tokens") => self.prompt.as_ref().map(|_| "--prompt"),
            Some(_) => self.data.as_ref().map(|_| "--data"),
            None => None,
        };
        if let Some(flag) = sized_by {
            return refused(flag, "with this --sweep, which it has the size of");
        }
        let mut distinct = self.values.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if self.sweep.is_some() && (distinct.len() < 2 || distinct.len() < self.values.len()) {
            let got = format!("{} of {} that differ", distinct.len(), self.values.len());
            return Err(Error::usage(Place::item("--values"), "at least two values, all different", got)
                .hint("as in --values 1,2,4,8"));
        }
        if let Some(plot) = &self.plot {
            refuse_to_overwrite(plot, self.force)?;
            storage::check_writable(plot)?;
        }
        Ok(())
    }

    /// The sizes asked for, or those of the files.
    fn sizes(&self) -> Result<Sizes> {
        let asked = self.num_virtual_tokens.map(|rows| rows as usize);
        let prompt_rows = match &self.prompt {
            _ if self.trains_weights() => 0,
            None => asked.unwrap_or(PROMPT_ROWS),
            Some(path) => {
                let rows = PromptFile::read(path)?.rows;
                if let Some(asked) = asked.filter(|&asked| asked != rows) {
                    let expected = format!("{rows}, the rows of {}", path.display());
                    return Err(Error::usage(Place::item("--num-virtual-tokens"), expected, asked.to_string())
                        .hint("leave it out: a prompt file has its own"));
                }
                rows
            }
        };
        Ok(Sizes { prompt_rows, examples: self.examples as usize, tokens: self.tokens as usize })
    }
}

impl Plan<'_> {
    fn sizes_at(&self, swept: Swept, value: u32) -> Sizes {
        let value = value as usize;
        match swept {
            Swept::Examples => Sizes { examples: value, ..self.sizes },
            Swept::NumVirtualTokens => Sizes { prompt_rows: value, ..self.sizes },
            Swept::Tokens => Sizes { tokens: value, ..self.sizes },
        }
    }

    /// Refuses sizes that a model of `config` cannot have, before the first of them is measured.
    fn check_sizes(&self, config: &ModelConfig, device: &Device) -> Result<()> {
        let dtype = DType::named(&self.args.compute.dtype).unwrap_or_default();
        let recompute = Recompute::named(&self.args.recompute).unwrap_or_default();
        // Made-up weights are not there yet.
        let copies = match (self.args.config.is_some(), self.args.trains_weights()) {
            (true, true) => 4,
            (false, true) => 3,
            (is_made, false) => usize::from(is_made),
        };
        let all: Vec<Sizes> = match self.swept {
            Some(swept) => self.args.values.iter().map(|&value| self.sizes_at(swept, value)).collect(),
            None => vec![self.sizes],
        };
        for sizes in all {
            if self.args.data.is_some() {
                // Rows of a file say themselves where they are too long.
                check_positions(config, sizes.prompt_rows, 1)?;
            } else {
                check_positions(config, sizes.prompt_rows, sizes.tokens)?;
                let rows = Rows::made(config.vocab_size, sizes.examples, sizes.tokens, self.args.uneven)?;
                let stream_rows = (sizes.prompt_rows + rows.stream_rows()).saturating_mul(self.args.prompts as usize);
                check_memory(config, device, dtype, recompute, stream_rows, copies)?;
            }
        }
        Ok(())
    }

    /// The model, and what its shape is called.
    fn open(&self, device: &Device) -> Result<(String, Model)> {
        let args = self.args;
        let options = ModelOptions {
            recompute: Recompute::named(&args.recompute).unwrap_or_default(),
            trainable: args.trains_weights(),
            ..args.compute.options()
        };
        if let Some(shape) = &args.config {
            let config = ModelConfig::named(shape).ok_or_else(|| Error::op("bench", "a shape of the list", shape))?;
            self.check_sizes(&config, device)?;
            return Ok((shape.clone(), Model::random(config, 0, device, options)?));
        }
        let path = args.model.clone().unwrap_or_default();
        let name = path.to_string_lossy().into_owned();
        let model = Model::open(&path, device, options).map_err(|error| {
            let is_shape = ModelConfig::NAMES.contains(&name.as_str()) && !path.exists();
            if is_shape { error.hint(format!("--config {name} takes random weights of this shape")) } else { error }
        })?;
        self.check_sizes(model.config(), device)?;
        Ok((name, model))
    }

    fn measure(&self, model: &Model, sizes: Sizes, library: bool) -> Result<Measurement> {
        let args = self.args;
        let trained = if args.trains_weights() {
            Trained::Weights
        } else {
            let prompt = |seed: u64| {
                if args.prompt.is_some() {
                    return prompt_for(model, args.prompt.as_ref());
                }
                let values = initial_prompt(model, sizes.prompt_rows, Init::Uniform { range: RANGE }, seed)?;
                model.prompt_from(sizes.prompt_rows, &values)
            };
            Trained::Prompts((0..u64::from(args.prompts)).map(prompt).collect::<Result<_>>()?)
        };
        let rows = self.rows(model, sizes)?;
        let on_gpu = matches!(model.device(), Device::Cuda(_));
        let (warm_up, steps) = if on_gpu { (3, 20) } else { (1, 5) };
        let options = Options {
            warm_up: usize::from(args.warm_up.unwrap_or(warm_up)),
            steps: usize::from(args.steps.unwrap_or(steps)),
            library,
        };
        let measured = measure(model, trained, &rows, options);
        measured.map_err(|error| match &args.data {
            Some(path) if matches!(error, Error::Input(_)) => {
                error.in_file(path).or_hint("give every row input_ids, or train a prompt that stands in front of them")
            }
            _ => error,
        })
    }

    fn rows(&self, model: &Model, sizes: Sizes) -> Result<Rows> {
        let vocab_size = model.config().vocab_size;
        let Some(path) = &self.args.data else {
            return Rows::made(vocab_size, sizes.examples, sizes.tokens, self.args.uneven);
        };
        let max_length = longest(model, sizes.prompt_rows, None);
        let options = ExampleOptions { max_length, vocab_size, ..ExampleOptions::default() };
        Ok(Rows::of(&Dataset::load(path, &options, encoder(model))?))
    }
}
