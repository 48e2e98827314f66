//! Steps of one size, measured.

use super::stepper::{Phases, Stepper, Timed, Trained};
use super::{Library, Rows, check_memory, library, median};
use crate::device::{self, Device, Kind, MemoryReport};
use crate::error::{Error, Place, Result};
use crate::flops::{Product, attention_flops, frozen_products, trained_products};
use crate::layout::Layout;
use crate::models::Model;
use crate::tensor::Tensor;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Steps before those that are timed: tables are made in them, and a GPU's commands become a graph.
    pub warm_up: usize,
    /// Steps that are timed; at least 1.
    pub steps: usize,
    /// Whether the library's rate is measured after every timed step. It never is on a GPU.
    pub library: bool,
}

/// What was measured of a step.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// Prompts that go through the model together; 0 where weights are trained.
    pub prompts: usize,
    /// Rows of a prompt; 0 where weights are trained.
    pub prompt_rows: usize,
    /// Examples of the step, those of all prompts.
    pub examples: usize,
    /// Tokens of the longest, label included.
    pub longest: usize,
    /// Tokens of all examples, labels included, prompt rows not.
    pub tokens: usize,
    /// Tokens that are predicted.
    pub label_tokens: usize,
    /// Rows of the stream: prompt and packed examples.
    pub stream_rows: usize,
    /// The layout of the batch.
    pub layout: Layout,
    /// Seconds of each timed step, from ids to the update.
    pub seconds: Vec<f64>,
    /// The median of each part; none on a GPU, where parts are asked for long before they are done.
    pub phases: Option<Phases>,
    /// The mean loss.
    pub loss: f64,
    /// Floating-point operations that a step needs: products with weights, and attention.
    pub flops: f64,
    /// Of several prompts, the seconds of the steps that they take one after the other, measured beside each timed step.
    pub apart: Vec<f64>,
    /// The library beside it, if it was measured.
    pub library: Option<Library>,
    /// What the device held in the timed steps.
    pub memory: MemoryReport,
    /// The most that the process held, from the first warm-up step to the end of the first timed one; none where the system
    /// does not say.
    pub peak_rss: Option<usize>,
}

impl Measurement {
    /// The median of a step's seconds.
    pub fn median_seconds(&self) -> f64 {
        median(self.seconds.iter().copied())
    }

    /// Examples per second, by the median.
    pub fn examples_per_second(&self) -> f64 {
        self.examples as f64 / self.median_seconds()
    }

    /// Tokens of examples per second, by the median.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.median_seconds()
    }

    /// Floating-point operations per second, by the median.
    pub fn flops_per_second(&self) -> f64 {
        self.flops / self.median_seconds()
    }

    /// How much faster one step of several prompts is than a step of each: the median of all rounds, the least, the most.
    pub fn gain(&self) -> Option<[f64; 3]> {
        let gains: Vec<f64> = self.apart.iter().zip(&self.seconds).map(|(apart, together)| apart / together).collect();
        let ends = gains.iter().fold((f64::INFINITY, 0f64), |(least, most), &gain| (least.min(gain), most.max(gain)));
        (!gains.is_empty()).then(|| [median(gains.iter().copied()), ends.0, ends.1])
    }

    /// Bytes at the peak beside the weights.
    pub fn peak_above_weights(&self) -> usize {
        self.memory.peak_total() - self.memory.at_peak(Kind::Weights)
    }
}

/// Measures steps on `rows`.
///
/// # Errors
/// [`Error::Config`] for no steps; [`Error::Input`] for rows that do not fit the model, or weights that are frozen;
/// [`Error::Device`] where memory runs out, or is seen to be too little before; [`Error::Diverged`] for a loss that is not
/// finite.
pub fn measure(model: &Model, trained: Trained, rows: &Rows, options: Options) -> Result<Measurement> {
    if options.steps == 0 {
        return Err(Error::config(Place::item("steps"), "at least 1", "0"));
    }
    let (device, config) = (model.device(), model.config());
    let (prompts, prompt_rows, count): (usize, usize, fn(&_, &_) -> Vec<Product>) = match &trained {
        Trained::Prompts(prompts) => (prompts.len(), prompts.first().map_or(0, Tensor::rows), frozen_products),
        Trained::Weights => (0, 0, trained_products),
    };
    let streams = prompts.max(1);
    let recompute = model.recompute();
    // Gradients and the optimizer's moments; the weights themselves are there.
    let copies = if matches!(trained, Trained::Weights) { 3 } else { 0 };
    // In an encoder each example has prompt rows of its own.
    let in_front = if config.is_encoder_decoder() { prompt_rows.saturating_mul(rows.len()) } else { prompt_rows };
    let stream_rows = in_front.saturating_add(rows.stream_rows()).saturating_mul(streams);
    check_memory(config, device, model.dtype(), recompute, stream_rows, copies)?;
    let batch = rows.batch()?;
    let layout = model.layout(&vec![&batch; streams], &vec![prompt_rows; streams])?;
    let products = count(config, &layout);
    let of_products: f64 = products.iter().map(Product::flops).sum();
    let flops = of_products + attention_flops(config, &layout);

    let has_peak = device::reset_peak_rss();
    let mut peak_rss = None;
    let mut stepper = Stepper::new(model, trained, rows)?;
    for _ in 0..options.warm_up {
        stepper.step()?;
    }
    device.reset_peak();
    let on_cpu = matches!(device, Device::Cpu(_));
    let (mut steps, mut rounds): (Vec<Timed>, Vec<(f64, f64)>) = (Vec::new(), Vec::new());
    let (mut apart, mut memory) = (Vec::new(), device.memory());
    for _ in 0..options.steps {
        let timed = stepper.step()?;
        if steps.is_empty() && has_peak {
            // Before the library's matrices are made.
            peak_rss = device::peak_rss();
        }
        memory = device.memory();
        apart.extend(stepper.apart()?);
        if options.library && on_cpu {
            let library = library::seconds(device, model.dtype(), &products)?;
            rounds.push((flops / timed.seconds, of_products / library));
        }
        steps.push(timed);
    }
    let of = |part: fn(&Phases) -> f64| median(steps.iter().map(|step| part(&step.phases)));
    Ok(Measurement {
        prompts,
        prompt_rows,
        examples: rows.len() * streams,
        longest: rows.longest(),
        tokens: batch.tokens() * streams,
        label_tokens: batch.label_tokens() * streams,
        stream_rows: layout.rows(),
        layout,
        seconds: steps.iter().map(|step| step.seconds).collect(),
        phases: on_cpu.then(|| Phases {
            data: of(|phases| phases.data),
            forward: of(|phases| phases.forward),
            backward: of(|phases| phases.backward),
            optimizer: of(|phases| phases.optimizer),
        }),
        loss: steps[0].loss,
        flops,
        apart,
        library: Library::of(rounds),
        memory,
        peak_rss,
    })
}
