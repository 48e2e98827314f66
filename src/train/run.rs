//! One run: its examples, what it makes of a step's gradient, its evaluations and checkpoints. State changes only at the
//! end of a step, so that a checkpoint is always of a whole number of steps. Who finds the gradient is in `lockstep`.

use super::output::{Output, to_resume};
use super::subject::{Gradient, Subject};
use super::{Ended, Observer, StepReport, Summary, Training};
use crate::checkpoint::{Best, Checkpoint, Fingerprints};
use crate::config::Method;
use crate::data::{Batches, Cursor, EpochOrder};
use crate::error::{Error, Place, Result};
use crate::optim::Schedule;
use crate::step::{Batch, Loss};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Rows named in an error, at most.
const NAMED_ROWS: usize = 32;

/// A training in progress.
pub(super) struct Run<'a> {
    training: Training<'a>,
    output: Output,
    fingerprints: Fingerprints,
    schedule: Schedule,
    total_steps: u64,
    steps_per_epoch: u64,
    state: State<'a>,
    batches: Batches,
}

/// What a checkpoint holds.
struct State<'a> {
    step: u64,
    /// Where the next step's examples begin.
    cursor: Cursor,
    subject: Subject<'a>,
    best: Option<Best>,
    evals_without_gain: u64,
    window: Window,
    last_loss: Option<f64>,
}

/// Loss since the last line of metrics.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Window {
    nll: f64,
    label_tokens: usize,
}

/// A step on its way: its examples, and what was found of those of its parts that have been through the model.
pub(super) struct Step {
    /// What goes through the model at a time.
    pub(super) parts: Vec<Batch>,
    pub(super) label_tokens: usize,
    /// Rows of the data, for errors.
    indices: Vec<usize>,
    tokens: usize,
    nll: f64,
    pub(super) gradient: Option<Gradient>,
    start: Instant,
}

impl Step {
    /// Takes what was found of the next part: its loss, and the gradient of all parts up to it.
    pub(super) fn add(&mut self, loss: &Loss, gradient: Gradient) {
        self.nll += loss.by_example.iter().sum::<f64>();
        self.gradient = Some(gradient);
    }
}

impl<'a> Run<'a> {
    /// `may_begin`: a run that is to go on, of which there is no checkpoint, begins anew.
    pub(super) fn start(training: Training<'a>, may_begin: bool) -> Result<Self> {
        let config = training.config;
        if training.train.examples.is_empty() {
            return Err(Error::input(Place::file(&training.train.path), "at least one row to train on", "none"));
        }
        let resumed = to_resume(&training, may_begin)?;
        let output = Output::open(&training, resumed.as_ref().map(|(checkpoint, _)| checkpoint.step))?;
        let is_prompt = config.method == Method::Prompt;
        let mut subject = Subject::new(&training)?;
        let state = match resumed {
            Some((checkpoint, dir)) => {
                subject.restore(&checkpoint, &dir)?;
                let wrong = |error: serde_json::Error| {
                    Error::input(Place::item("state.json"), "a state that this version wrote", error.to_string())
                };
                let best = if is_prompt {
                    output.put_best(checkpoint.best.as_ref().and_then(|best| best.prompt.as_ref()))?;
                    checkpoint.best
                } else {
                    output.known_best(checkpoint.best)
                };
                State {
                    step: checkpoint.step,
                    cursor: serde_json::from_value(checkpoint.cursor).map_err(wrong)?,
                    subject,
                    best,
                    evals_without_gain: checkpoint.evals_without_gain,
                    window: serde_json::from_value(checkpoint.history).map_err(wrong)?,
                    last_loss: None,
                }
            }
            None => {
                if is_prompt {
                    subject.save(&output, "initial", 0)?;
                }
                State {
                    step: 0,
                    cursor: Cursor::default(),
                    subject,
                    best: None,
                    evals_without_gain: 0,
                    window: Window::default(),
                    last_loss: None,
                }
            }
        };
        let order = EpochOrder { seed: config.seed, shuffle: true };
        let (length, size) = (training.train.examples.len(), config.per_device_train_batch_size);
        let batches = Batches::new(order, length, size, false, state.cursor)?;
        let steps_per_epoch = batches.batches_per_epoch().div_ceil(config.gradient_accumulation_steps) as u64;
        let by_epochs = (config.num_train_epochs * steps_per_epoch as f64).ceil().max(1.0) as u64;
        let total_steps = config.max_steps.unwrap_or(by_epochs);
        let schedule = training.schedule(total_steps);
        let fingerprints = training.fingerprints()?;
        Ok(Self { training, output, fingerprints, schedule, total_steps, steps_per_epoch, state, batches })
    }

    /// What is trained, for whoever finds its gradient.
    pub(super) fn subject(&self) -> &Subject<'a> {
        &self.state.subject
    }

    /// Why there is no further step, if there is none.
    pub(super) fn ended(&self) -> Option<Ended> {
        let patience = self.training.config.early_stopping_patience;
        if patience.is_some_and(|patience| self.state.evals_without_gain >= patience) {
            return Some(Ended::EarlyStop);
        }
        (self.state.step >= self.total_steps).then_some(Ended::Done)
    }

    /// The next step: the batches up to the accumulation's count or the epoch's end.
    pub(super) fn next(&mut self) -> Result<Step> {
        let start = Instant::now();
        let mut step = Step {
            parts: Vec::new(),
            label_tokens: 0,
            indices: Vec::new(),
            tokens: 0,
            nll: 0.0,
            gradient: None,
            start,
        };
        while step.parts.len() < self.training.config.gradient_accumulation_steps {
            let next = self.batches.next_batch();
            let mut part = Batch::new();
            for &index in next.indices {
                let example = &self.training.train.examples[index];
                part.push(&example.input_ids, &example.target_ids)
                    .map_err(|error| error.in_file(&self.training.train.path).on_line(example.line))?;
                step.indices.push(index);
            }
            step.label_tokens += part.label_tokens();
            step.tokens += part.tokens();
            step.parts.push(part);
            if next.ends_epoch {
                break;
            }
        }
        Ok(step)
    }

    /// Takes a step whose parts have all been through the model; evaluates and saves where that is due.
    pub(super) fn take(&mut self, step: Step, observer: &mut dyn Observer) -> Result<()> {
        self.update(step, observer)?;
        if self.evaluation_is_due() {
            self.evaluate(observer)?;
        }
        if self.ended().is_none() && self.state.step.is_multiple_of(self.training.config.save_steps) {
            self.save(observer)?;
        }
        Ok(())
    }

    /// The end of a run that has no further step.
    pub(super) fn finish(self, ended: Ended, observer: &mut dyn Observer) -> Result<Summary> {
        self.save(observer)?;
        let hash = self.state.subject.save(&self.output, "final", self.state.step)?;
        if self.state.best.is_none() {
            self.state.subject.save(&self.output, "best", self.state.step)?;
        }
        let path = |name| match self.training.config.method {
            Method::Prompt => self.output.prompt_path(name),
            Method::Full | Method::Pretrain => self.output.model_path(name),
        };
        Ok(Summary {
            steps: self.state.step,
            ended,
            last_loss: self.state.last_loss,
            best_path: path("best"),
            final_path: path("final"),
            best: self.state.best,
            final_hash: hash,
        })
    }

    /// One optimizer step.
    fn update(&mut self, mut step: Step, observer: &mut dyn Observer) -> Result<()> {
        let loss = step.nll / step.label_tokens as f64;
        let mut gradient = step.gradient.take().ok_or_else(|| Error::op("train", "examples in a step", "none"))?;
        let config = self.training.config;
        let limit = if config.max_grad_norm > 0.0 { config.max_grad_norm } else { f64::INFINITY };
        let (grad_norm, factor) = self.state.subject.clip(&mut gradient, limit)?;
        // A norm is finite exactly if every element is: squares are added in f64.
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(self.diverged("loss and gradient", loss, &step));
        }
        let learning_rate = self.schedule.at(self.state.step);
        if !self.state.subject.step(gradient, learning_rate, factor)? {
            return Err(self.diverged("prompt after the step", loss, &step));
        }

        self.state.step += 1;
        self.state.cursor = self.batches.cursor();
        self.state.window.nll += step.nll;
        self.state.window.label_tokens += step.label_tokens;
        self.state.last_loss = Some(loss);
        let report = StepReport {
            step: self.state.step,
            total_steps: self.total_steps,
            epoch: self.state.step as f64 / self.steps_per_epoch as f64,
            loss,
            grad_norm,
            learning_rate,
            examples: step.indices.len(),
            tokens: step.tokens,
            seconds: step.start.elapsed().as_secs_f64(),
        };
        self.log_step(&report)?;
        observer.step(&report);
        Ok(())
    }

    fn log_step(&mut self, report: &StepReport) -> Result<()> {
        if !report.step.is_multiple_of(self.training.config.logging_steps) && report.step != self.total_steps {
            return Ok(());
        }
        let window = std::mem::take(&mut self.state.window);
        let metrics = [
            ("loss", window.nll / window.label_tokens.max(1) as f64),
            ("grad_norm", report.grad_norm),
            ("learning_rate", report.learning_rate),
            ("epoch", report.epoch),
        ];
        self.output.log(report.step, "train", &metrics)
    }

    fn evaluation_is_due(&self) -> bool {
        let every = self.training.config.eval_steps.unwrap_or(self.steps_per_epoch);
        let step = self.state.step;
        self.training.evaluate.is_some() && (step.is_multiple_of(every) || step == self.total_steps)
    }

    /// Evaluates, and keeps the best prompt.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let prompt = self.state.subject.prompt()?;
        let config = self.training.config;
        let Some(evaluate) = &mut self.training.evaluate else { return Ok(()) };
        let metrics = evaluate(&prompt)?;
        let named: Vec<(&str, f64)> = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.output.log(self.state.step, "eval", &named)?;
        let wanted = config.metric_for_best_model.name();
        let &(_, value) = named
            .iter()
            .find(|(name, _)| *name == wanted)
            .ok_or_else(|| Error::config(Place::item("metric_for_best_model"), "a metric that is evaluated", wanted))?;
        let greater = config.metric_for_best_model.greater_is_better();
        let is_best = self.state.best.as_ref().is_none_or(|best| match greater {
            true => value > best.value,
            false => value < best.value,
        });
        if is_best {
            let step = self.state.step;
            let kept = (config.method == Method::Prompt).then(|| self.output.prompt(&prompt, step)).transpose()?;
            let best = Best { metric: wanted.to_string(), value, step, prompt: kept };
            match &best.prompt {
                Some(prompt) => self.output.put_best(Some(prompt))?,
                None => self.output.put_best_model(self.training.model, &best)?,
            }
            self.state.best = Some(best);
            self.state.evals_without_gain = 0;
        } else {
            self.state.evals_without_gain += 1;
        }
        observer.evaluated(self.state.step, &metrics, is_best);
        Ok(())
    }

    /// Saves a checkpoint of the steps that were taken.
    pub(super) fn save(&self, observer: &mut dyn Observer) -> Result<()> {
        let state = &self.state;
        let json = |value: serde_json::Result<serde_json::Value>| {
            value.map_err(|error| Error::op("checkpoint", "a state that JSON can hold", error.to_string()))
        };
        let checkpoint = Checkpoint {
            step: state.step,
            cursor: json(serde_json::to_value(state.cursor))?,
            prompt: None,
            optimizer: Vec::new(),
            best: state.best.clone(),
            evals_without_gain: state.evals_without_gain,
            history: json(serde_json::to_value(state.window))?,
            fingerprints: self.fingerprints.clone(),
        };
        observer.saved(&state.subject.save_checkpoint(&self.output, checkpoint)?);
        Ok(())
    }

    /// Keeps the last good prompt or model and says what was in the step that went wrong.
    fn diverged(&self, what: &str, loss: f64, step: &Step) -> Error {
        let (word, path) = match self.training.config.method {
            Method::Prompt => ("prompt", self.output.prompt_path("last_good")),
            Method::Full | Method::Pretrain => ("model", self.output.model_path("last_good")),
        };
        let kept = match self.state.subject.save(&self.output, "last_good", self.state.step) {
            Ok(_) => format!("the last good {word} is in {}", path.display()),
            Err(error) => format!("the last good {word} could not be saved: {error}"),
        };
        let dataset = self.training.train;
        let mut lines: Vec<u64> = step.indices.iter().map(|&index| dataset.examples[index].line).collect();
        lines.sort_unstable();
        let rest = lines.len().saturating_sub(NAMED_ROWS);
        let named: Vec<String> = lines.iter().take(NAMED_ROWS).map(u64::to_string).collect();
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        let got = format!("loss {loss} in step {} on lines {}{more}", self.state.step + 1, named.join(", "));
        Error::diverged(Place::file(&dataset.path), format!("a finite {what}"), got)
            .hint(format!("lower --learning-rate or set --max-grad-norm; {kept}"))
    }
}
