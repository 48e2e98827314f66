//! Whole training steps, one after the other, and how long each part of them takes.

use super::Rows;
use crate::device::Device;
use crate::error::{Error, Place, Result};
use crate::models::Model;
use crate::optim::{AdamWConfig, Optimizer, OptimizerConfig, WeightOptimizer};
use crate::step::{Loss, Part};
use crate::tensor::Tensor;
use std::time::Instant;

/// The rate of every step; see the module's documentation.
const LEARNING_RATE: f64 = 0.0;

/// What a step trains.
#[derive(Debug)]
pub enum Trained {
    /// A prompt `[P, d]` in front of a frozen model.
    Prompt(Tensor),
    /// The weights of a model that was opened as [trainable](crate::ModelOptions::trainable); there is no prompt.
    Weights,
}

/// Seconds of the parts of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Phases {
    /// From rows of ids to the batch and its layout.
    pub data: f64,
    /// To the loss.
    pub forward: f64,
    /// To the gradient.
    pub backward: f64,
    /// To the updated prompt or weights.
    pub optimizer: f64,
}

impl Phases {
    /// The names and values, in the order of the step.
    pub fn named(&self) -> [(&'static str, f64); 4] {
        [("data", self.data), ("forward", self.forward), ("backward", self.backward), ("optimizer", self.optimizer)]
    }
}

/// One step.
pub(super) struct Timed {
    pub(super) seconds: f64,
    pub(super) phases: Phases,
    pub(super) loss: f64,
}

/// A model in training.
pub(super) struct Stepper<'a> {
    model: &'a Model,
    rows: &'a Rows,
    state: State,
}

enum State {
    Prompt { prompt: Tensor, optimizer: Optimizer },
    Weights(WeightOptimizer),
}

impl<'a> Stepper<'a> {
    pub(super) fn new(model: &'a Model, trained: Trained, rows: &'a Rows) -> Result<Self> {
        let config = OptimizerConfig::AdamW(AdamWConfig::default());
        let state = match trained {
            Trained::Prompt(prompt) => State::Prompt { optimizer: Optimizer::new(&config, &prompt)?, prompt },
            Trained::Weights => {
                let device: &Device = model.device();
                State::Weights(device.run(|| WeightOptimizer::new(&config, model.parameters()))?)
            }
        };
        Ok(Self { model, rows, state })
    }

    /// One step, from ids to the update; a GPU is waited for at its end.
    pub(super) fn step(&mut self) -> Result<Timed> {
        let mut phases = Phases::default();
        let start = Instant::now();
        let mut last = start;
        let mut lap = |seconds: &mut f64| {
            let now = Instant::now();
            *seconds += now.duration_since(last).as_secs_f64();
            last = now;
        };
        let batch = self.rows.batch()?;
        let all = batch.label_tokens();
        let mut watch = |part: Part| match part {
            Part::Layout => lap(&mut phases.data),
            Part::Forward => lap(&mut phases.forward),
            Part::Backward => lap(&mut phases.backward),
        };
        let loss = match &mut self.state {
            State::Prompt { prompt, optimizer } => {
                let found =
                    self.model.losses_and_grads_watched(&[prompt], &[&batch], &[all], &mut watch)?.swap_remove(0);
                // The loss has been read since.
                watch(Part::Backward);
                optimizer.step(prompt, &found.grad, LEARNING_RATE)?;
                found.loss
            }
            State::Weights(optimizer) => {
                let found = self.model.loss_and_weight_grads_watched(&batch, all, Vec::new(), &mut watch)?;
                watch(Part::Backward);
                optimizer.step(found.grads, LEARNING_RATE, 1.0)?;
                found.loss
            }
        };
        self.model.device().synchronize()?;
        lap(&mut phases.optimizer);
        Ok(Timed { seconds: start.elapsed().as_secs_f64(), phases, loss: finite(&loss)? })
    }
}

fn finite(loss: &Loss) -> Result<f64> {
    if loss.mean.is_finite() {
        return Ok(loss.mean);
    }
    Err(Error::diverged(Place::item("loss"), "a finite loss", loss.mean.to_string())
        .hint("prompt or weights hold values too large for --dtype"))
}
