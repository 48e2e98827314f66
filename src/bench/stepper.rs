//! Whole training steps, one after the other, and how long each part of them takes.

use super::Rows;
use crate::device::Device;
use crate::error::{Error, Place, Result};
use crate::models::Model;
use crate::optim::{AdamWConfig, Optimizer, OptimizerConfig, WeightOptimizer};
use crate::step::{Batch, LossAndGrad, Part, Watch};
use crate::tensor::Tensor;
use std::time::Instant;

/// The rate of every step; see the module's documentation.
const LEARNING_RATE: f64 = 0.0;

/// What a step trains.
#[derive(Debug)]
pub enum Trained {
    /// Prompts `[P, d]` in front of a frozen model, which go through it together, each with the rows of its own.
    Prompts(Vec<Tensor>),
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
    Prompts(Vec<(Tensor, Optimizer)>),
    Weights(WeightOptimizer),
}

impl<'a> Stepper<'a> {
    pub(super) fn new(model: &'a Model, trained: Trained, rows: &'a Rows) -> Result<Self> {
        let config = OptimizerConfig::AdamW(AdamWConfig::default());
        let state = match trained {
            Trained::Prompts(prompts) => {
                let with_optimizer = |prompt| Ok((Optimizer::new(&config, &prompt)?, prompt));
                let all = prompts.into_iter().map(with_optimizer).collect::<Result<Vec<_>>>()?;
                State::Prompts(all.into_iter().map(|(optimizer, prompt)| (prompt, optimizer)).collect())
            }
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
            State::Prompts(all) => {
                let found = together(self.model, all, &batch, &mut watch)?;
                // The losses have been read since.
                watch(Part::Backward);
                update(all, &found)?;
                found.into_iter().map(|found| found.loss.mean).sum::<f64>() / all.len() as f64
            }
            State::Weights(optimizer) => {
                let found = self.model.loss_and_weight_grads_watched(&batch, all, Vec::new(), &mut watch)?;
                watch(Part::Backward);
                optimizer.step(found.grads, LEARNING_RATE, 1.0)?;
                found.loss.mean
            }
        };
        self.model.device().synchronize()?;
        lap(&mut phases.optimizer);
        Ok(Timed { seconds: start.elapsed().as_secs_f64(), phases, loss: finite(loss)? })
    }

    /// Seconds of the steps that the prompts take one after the other; none where there are fewer than two.
    pub(super) fn apart(&mut self) -> Result<Option<f64>> {
        let State::Prompts(all) = &mut self.state else { return Ok(None) };
        if all.len() < 2 {
            return Ok(None);
        }
        let start = Instant::now();
        for one in all.chunks_mut(1) {
            let batch = self.rows.batch()?;
            let found = together(self.model, one, &batch, &mut |_| ())?;
            update(one, &found)?;
        }
        self.model.device().synchronize()?;
        Ok(Some(start.elapsed().as_secs_f64()))
    }
}

/// Losses and gradients of prompts that go through the model together.
fn together(model: &Model, all: &[(Tensor, Optimizer)], batch: &Batch, watch: Watch<'_>) -> Result<Vec<LossAndGrad>> {
    let prompts: Vec<&Tensor> = all.iter().map(|(prompt, _)| prompt).collect();
    let (batches, label_tokens) = (vec![batch; all.len()], vec![batch.label_tokens(); all.len()]);
    model.losses_and_grads_watched(&prompts, &batches, &label_tokens, watch)
}

fn update(all: &mut [(Tensor, Optimizer)], found: &[LossAndGrad]) -> Result<()> {
    all.iter_mut()
        .zip(found)
        .try_for_each(|((prompt, optimizer), found)| optimizer.step(prompt, &found.grad, LEARNING_RATE))
}

fn finite(loss: f64) -> Result<f64> {
    if loss.is_finite() {
        return Ok(loss);
    }
    Err(Error::diverged(Place::item("loss"), "a finite loss", loss.to_string())
        .hint("prompt or weights hold values too large for --dtype"))
}
