//! One step's arithmetic: a batch's mean loss and the prompt's gradient. Any training loop can be the caller.

use crate::device::Kind;
use crate::error::{Error, Place, Result};
use crate::layout::{Input, Layout, PromptPlace, Sequence};
use crate::models::Model;
use crate::ops::CrossEntropy;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Examples that go through the model together: token ids, and where each one's label starts.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    examples: Vec<(Vec<u32>, usize)>,
    label_tokens: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an example: `input_ids`, which may be empty, followed by `target_ids`, the label.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty label.
    pub fn push(&mut self, input_ids: &[u32], target_ids: &[u32]) -> Result<()> {
        if target_ids.is_empty() {
            let place = Place::item(format!("example {}", self.examples.len()));
            return Err(Error::input(place, "a label of at least one token", "none"));
        }
        self.label_tokens += target_ids.len();
        self.examples.push(([input_ids, target_ids].concat(), input_ids.len()));
        Ok(())
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Label tokens of all examples: what the loss is a mean over.
    pub fn label_tokens(&self) -> usize {
        self.label_tokens
    }

    /// Tokens of all examples, labels included.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|(ids, _)| ids.len()).sum()
    }

    /// How the batch lies behind a prompt of `prompt_rows` rows.
    ///
    /// # Errors
    /// [`Error::Input`] for an example with an empty input if there is no prompt.
    pub fn layout(&self, prompt_rows: usize) -> Result<Layout> {
        let sequences: Vec<Sequence<'_>> =
            self.examples.iter().map(|(ids, first_label)| Sequence::example(0, ids, *first_label)).collect();
        if prompt_rows == 0
            && let Some(index) = self.examples.iter().position(|&(_, first_label)| first_label == 0)
        {
            let place = Place::item(format!("example {index}"));
            return Err(Error::input(place, "input tokens, as there is no prompt", "an empty input"));
        }
        Layout::causal(&[prompt_rows], &sequences)
    }

    /// How batches lie in the two streams of an encoder–decoder, each behind a prompt of its own: inputs on the encoder, and
    /// on the decoder `start`, the token that labels begin behind, and the labels.
    ///
    /// # Errors
    /// As [`Layout::encoder_decoder`].
    pub fn encoder_decoder_layout(
        batches: &[&Self],
        prompt_rows: &[usize],
        place: PromptPlace,
        start: u32,
    ) -> Result<Layout> {
        let examples = batches.iter().enumerate().flat_map(|(prompt, batch)| {
            batch.examples.iter().map(move |(ids, first_label)| (prompt, ids.split_at(*first_label)))
        });
        let (mut inputs, mut written) = (Vec::new(), Vec::new());
        for (prompt, (ids, labels)) in examples {
            inputs.push(Input { prompt, ids });
            written.push([&[start], labels].concat());
        }
        let sequences = written.iter().enumerate().map(|(index, ids)| Sequence::example(index, ids, 1));
        Layout::encoder_decoder(prompt_rows, place, &inputs, &sequences.collect::<Vec<_>>())
    }
}

/// A batch's loss.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Mean negative log-likelihood of the label tokens, in nats.
    pub mean: f64,
    /// The sum over the label tokens of each example.
    pub by_example: Vec<f64>,
    /// How many label tokens there were.
    pub label_tokens: usize,
}

/// A batch's loss and what the prompt should do about it.
#[derive(Debug, Clone)]
pub struct LossAndGrad {
    /// The loss.
    pub loss: Loss,
    /// The gradient of the mean loss by the prompt, `[P, d]`.
    pub grad: Tensor,
}

/// A batch's loss and what the weights should do about it.
#[derive(Debug, Clone)]
pub struct LossAndWeightGrads {
    /// The loss.
    pub loss: Loss,
    /// The gradient of the mean loss by each of [`Model::parameters`], in their order and shapes.
    pub grads: Vec<Tensor>,
}

/// A part of a step, in the order in which they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The batch is laid out.
    Layout,
    /// The loss is computed.
    Forward,
    /// So is the gradient.
    Backward,
}

/// Hears of the end of each part of a step; on a GPU of when it has been asked for, not of when it is done.
pub(crate) type Watch<'a> = &'a mut (dyn FnMut(Part) + Send);

/// The end of a forward pass, on the device.
struct Scored {
    loss: Var,
    nll: Tensor,
    /// The example that each label token belongs to.
    example_of: Vec<usize>,
}

impl Scored {
    fn read(&self, batch: &Batch) -> Result<Loss> {
        let mut by_example = vec![0.0; batch.len()];
        for (&example, nll) in self.example_of.iter().zip(self.nll.to_f64_vec()?) {
            by_example[example] += nll;
        }
        let label_tokens = batch.label_tokens();
        let mean = by_example.iter().sum::<f64>() / label_tokens.max(1) as f64;
        Ok(Loss { mean, by_example, label_tokens })
    }
}

impl Model {
    /// The mean loss of `batch` behind `prompt` `[P, d]`. P may be 0: the model without a prompt.
    ///
    /// # Errors
    /// [`Error::Input`] if prompt or tokens do not fit the model, or there is nothing to predict a label from.
    pub fn loss(&self, prompt: &Tensor, batch: &Batch) -> Result<Loss> {
        let prompt = Var::constant(prompt.clone());
        let scored = self
            .device()
            .repeat(|| self.forward(&mut Tape::new(), &prompt, batch, batch.label_tokens(), &mut |_| ()))?;
        scored.read(batch)
    }

    /// The mean loss of `batch` and its gradient by `prompt` `[P, d]`, P ≥ 1.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn loss_and_grad(&self, prompt: &Tensor, batch: &Batch) -> Result<LossAndGrad> {
        self.loss_and_grad_of_part(prompt, batch, batch.label_tokens())
    }

    /// Like [`Model::loss_and_grad`], for a batch that is part of a larger one with `all_label_tokens` label tokens: the
    /// gradients of the parts add up to that of the whole. The loss is still the part's own mean.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn loss_and_grad_of_part(
        &self,
        prompt: &Tensor,
        batch: &Batch,
        all_label_tokens: usize,
    ) -> Result<LossAndGrad> {
        self.loss_and_grad_watched(prompt, batch, all_label_tokens, &mut |_| ())
    }

    /// [`Model::loss_and_grad_of_part`] for those who want to know how long its parts take.
    pub(crate) fn loss_and_grad_watched(
        &self,
        prompt: &Tensor,
        batch: &Batch,
        all_label_tokens: usize,
        watch: Watch<'_>,
    ) -> Result<LossAndGrad> {
        if prompt.rows() == 0 {
            return Err(Error::input(Place::item("prompt"), "at least one row to train", "none"));
        }
        let mut tape = Tape::new();
        let leaf = tape.leaf(prompt.clone());
        let (scored, grad) = self.device().repeat(|| {
            let scored = self.forward(&mut tape, &leaf, batch, all_label_tokens, &mut *watch)?;
            let grad = tape.backward(&scored.loss, &leaf)?;
            watch(Part::Backward);
            Ok((scored, grad))
        })?;
        // A GPU is waited for here and nowhere before.
        Ok(LossAndGrad { loss: scored.read(batch)?, grad })
    }

    /// The mean loss of `batch` without a prompt, and its gradient by every parameter of a model that was opened as
    /// [trainable](crate::ModelOptions::trainable).
    ///
    /// # Errors
    /// [`Error::Input`] for a frozen model, or tokens that do not fit it.
    pub fn loss_and_weight_grads(&self, batch: &Batch) -> Result<LossAndWeightGrads> {
        self.loss_and_weight_grads_of_part(batch, batch.label_tokens(), Vec::new())
    }

    /// Like [`Model::loss_and_weight_grads`], for a batch that is part of a larger one with `all_label_tokens` label tokens:
    /// the gradients of the parts add up to that of the whole. `earlier` is what was found of the parts before, or empty;
    /// the gradient is added to it, in its memory.
    ///
    /// # Errors
    /// As [`Model::loss_and_weight_grads`].
    pub fn loss_and_weight_grads_of_part(
        &self,
        batch: &Batch,
        all_label_tokens: usize,
        earlier: Vec<Tensor>,
    ) -> Result<LossAndWeightGrads> {
        self.loss_and_weight_grads_watched(batch, all_label_tokens, earlier, &mut |_| ())
    }

    /// [`Model::loss_and_weight_grads_of_part`] for those who want to know how long its parts take.
    pub(crate) fn loss_and_weight_grads_watched(
        &self,
        batch: &Batch,
        all_label_tokens: usize,
        earlier: Vec<Tensor>,
        watch: Watch<'_>,
    ) -> Result<LossAndWeightGrads> {
        let parameters = self.parameters();
        if parameters.is_empty() {
            return Err(Error::input(Place::file(self.path()), "a model opened as trainable", "a frozen one"));
        }
        if !earlier.is_empty() && earlier.len() != parameters.len() {
            let expected = format!("{} gradients", parameters.len());
            return Err(Error::op("loss_and_weight_grads", expected, earlier.len().to_string()));
        }
        let mut tape = Tape::new();
        let prompt = Var::constant(self.prompt_from(0, &[])?);
        let (scored, grads) = self.device().repeat(|| {
            let scored = self.forward(&mut tape, &prompt, batch, all_label_tokens, &mut *watch)?;
            let mut found = tape.backward_to_parameters(&scored.loss, earlier.into_iter().enumerate().collect())?;
            let grads = parameters.iter().map(|parameter| {
                found.remove(&parameter.id()).unwrap_or_else(|| {
                    let value = parameter.value();
                    Tensor::zeros(self.device(), value.rows(), value.cols(), value.dtype(), Kind::Gradients)
                })
            });
            let grads = grads.collect();
            watch(Part::Backward);
            Ok((scored, grads))
        })?;
        Ok(LossAndWeightGrads { loss: scored.read(batch)?, grads })
    }

    fn forward(
        &self,
        tape: &mut Tape,
        prompt: &Var,
        batch: &Batch,
        divisor: usize,
        watch: Watch<'_>,
    ) -> Result<Scored> {
        let width = self.config().hidden_size;
        let value = prompt.tensor();
        if value.cols() != width || value.dtype() != self.prompt_dtype() {
            let expected = format!("rows of width {width} in {}", self.prompt_dtype());
            return Err(Error::input(Place::item("prompt"), expected, value.describe())
                .hint(format!("this prompt is not for {}", self.name())));
        }
        let layout = self.layout(&[batch], &[value.rows()])?;
        watch(Part::Layout);
        let scale = vec![1.0 / divisor.max(1) as f64; layout.labels.len()];
        let hidden = self.hidden(tape, prompt, &layout, None)?;
        let CrossEntropy { loss, nll } = self.cross_entropy(tape, &hidden, &layout, &scale)?;
        watch(Part::Forward);
        Ok(Scored { loss, nll, example_of: layout.sequence_of })
    }

    /// How batches lie in its stream, or streams, each behind a prompt of its own.
    ///
    /// # Errors
    /// [`Error::Input`] for an example with an empty input if there is no prompt in front of it.
    pub fn layout(&self, batches: &[&Batch], prompt_rows: &[usize]) -> Result<Layout> {
        match self.config().encoder_decoder {
            Some(more) => {
                let start = more.decoder_start_token_id;
                Batch::encoder_decoder_layout(batches, prompt_rows, self.prompt_place(), start)
            }
            None => batches[0].layout(prompt_rows[0]),
        }
    }

    /// A prompt `[rows, d]` for this model from values row after row, rounded to the model's type.
    ///
    /// # Errors
    /// [`Error::Input`] if there are not `rows × d` of them.
    pub fn prompt_from(&self, rows: usize, values: &[f64]) -> Result<Tensor> {
        let width = self.config().hidden_size;
        if values.len() != rows * width {
            let expected = format!("{rows} rows of width {width}");
            return Err(Error::input(Place::item("prompt"), expected, format!("{} values", values.len())));
        }
        self.device().run(|| Tensor::from_f64(self.device(), rows, width, self.prompt_dtype(), values, Kind::Optimizer))
    }
}
