//! What a run trains, with its optimizer: a prompt in front of a frozen model, or a model's weights.

use super::Training;
use super::output::Output;
use crate::checkpoint::Checkpoint;
use crate::config::Method;
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::optim::{Optimizer, WeightOptimizer, clip_factor, clip_grad_norm, grad_norm, is_finite};
use crate::step::{Batch, Loss};
use crate::tensor::Tensor;
use std::path::Path;

pub(super) enum Subject<'a> {
    Prompt { model: &'a Model, values: Tensor, optimizer: Optimizer },
    Weights { model: &'a Model, optimizer: WeightOptimizer },
}

/// The gradient of the examples of a step that have been seen.
pub(super) enum Gradient {
    Prompt(Tensor),
    Weights(Vec<Tensor>),
}

impl<'a> Subject<'a> {
    /// What `training` begins with.
    pub(super) fn new(training: &Training<'a>) -> Result<Self> {
        let (config, model) = (super::optimizer_of(training.config), training.model);
        if training.config.method != Method::Prompt {
            return Ok(Self::Weights { model, optimizer: WeightOptimizer::new(&config, model.parameters())? });
        }
        let values = model.prompt_from(training.config.prompt_rows(), &training.initial)?;
        let optimizer = Optimizer::new(&config, &values)?;
        Ok(Self::Prompt { model, values, optimizer })
    }

    /// The model that is trained, or that the prompt is for.
    pub(super) fn model(&self) -> &'a Model {
        match self {
            Self::Prompt { model, .. } | Self::Weights { model, .. } => model,
        }
    }

    /// What stands in front of the model: the prompt, or no rows.
    pub(super) fn prompt(&self) -> Result<Tensor> {
        match self {
            Self::Prompt { values, .. } => Ok(values.clone()),
            Self::Weights { model, .. } => model.prompt_from(0, &[]),
        }
    }

    /// Loss of `part` and its gradient on top of `earlier`, that of the step's parts before it.
    pub(super) fn gradient(
        &self,
        part: &Batch,
        all_label_tokens: usize,
        earlier: Option<Gradient>,
    ) -> Result<(Loss, Gradient)> {
        match self {
            Self::Prompt { model, values, .. } => {
                let found = model.loss_and_grad_of_part(values, part, all_label_tokens)?;
                Ok((found.loss, self.sum(found.grad, earlier)?))
            }
            Self::Weights { model, .. } => {
                let earlier = if let Some(Gradient::Weights(earlier)) = earlier { earlier } else { Vec::new() };
                let found = model.loss_and_weight_grads_of_part(part, all_label_tokens, earlier)?;
                Ok((found.loss, Gradient::Weights(found.grads)))
            }
        }
    }

    /// A prompt's gradient on top of `earlier`.
    pub(super) fn sum(&self, gradient: Tensor, earlier: Option<Gradient>) -> Result<Gradient> {
        let Some(Gradient::Prompt(mut sum)) = earlier else { return Ok(Gradient::Prompt(gradient)) };
        self.model().device().run(|| {
            sum.add_assign(&gradient)?;
            Ok(Gradient::Prompt(sum))
        })
    }

    /// The gradient's norm, and what is left to multiply it by so that its norm is at most `limit`.
    pub(super) fn clip(&self, gradient: &mut Gradient, limit: f64) -> Result<(f64, f64)> {
        self.model().device().run(|| match gradient {
            Gradient::Prompt(gradient) => Ok((clip_grad_norm(gradient, limit)?, 1.0)),
            Gradient::Weights(gradients) => {
                let norm = grad_norm(gradients)?;
                Ok((norm, clip_factor(norm, limit)))
            }
        })
    }

    /// One step against the gradient times `factor`. A prompt that is no longer finite is put back, and `false` returned;
    /// of weights the next loss tells.
    pub(super) fn step(&mut self, gradient: Gradient, learning_rate: f64, factor: f64) -> Result<bool> {
        match (self, gradient) {
            (Self::Prompt { model, values, optimizer }, Gradient::Prompt(gradient)) => {
                let before = values.clone();
                optimizer.step(values, &gradient, learning_rate)?;
                let is_finite = model.device().run(|| is_finite(values))?;
                if !is_finite {
                    *values = before;
                }
                Ok(is_finite)
            }
            (Self::Weights { optimizer, .. }, Gradient::Weights(gradients)) => {
                optimizer.step(gradients, learning_rate, factor)?;
                Ok(true)
            }
            _ => Err(Error::op("train", "the gradient of what is trained", "another")),
        }
    }

    /// Saves what is trained under `name` in the run's directory, and gives its hash.
    pub(super) fn save(&self, output: &Output, name: &str, step: u64) -> Result<String> {
        match self {
            Self::Prompt { values, .. } => output.save_prompt(name, values, step),
            Self::Weights { model, .. } => output.save_model(name, model),
        }
    }

    /// Saves `checkpoint`, which has everything but what is trained.
    pub(super) fn save_checkpoint(&self, output: &Output, mut checkpoint: Checkpoint) -> Result<std::path::PathBuf> {
        match self {
            Self::Prompt { values, optimizer, .. } => {
                checkpoint.prompt = Some(output.prompt(values, checkpoint.step)?);
                checkpoint.optimizer = optimizer.state()?;
                output.save(&checkpoint, |_| Ok(()))
            }
            Self::Weights { model, optimizer } => output.save(&checkpoint, |dir| {
                model.save_into(dir)?;
                super::moments::write(optimizer, model.parameters().len(), dir)
            }),
        }
    }

    /// Goes back to the state of a checkpoint, loaded from `dir`.
    pub(super) fn restore(&mut self, checkpoint: &Checkpoint, dir: &Path) -> Result<()> {
        match self {
            Self::Prompt { model, values, optimizer } => {
                let Some(prompt) = &checkpoint.prompt else { return Ok(()) };
                optimizer.load_state(&checkpoint.optimizer)?;
                let device = model.device();
                let read = || Tensor::from_values(device, prompt.rows, prompt.cols, &prompt.values, Kind::Optimizer);
                *values = device.run(read)?;
                Ok(())
            }
            Self::Weights { model, optimizer } => {
                model.restore(dir)?;
                super::moments::read(optimizer, model.parameters().len(), dir)
            }
        }
    }
}
