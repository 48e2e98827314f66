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
        Self::layout_of_all(&[self], &[prompt_rows])
    }

    /// How several batches lie in one stream, each behind a prompt of its own: all prompts, then the batches in their order.
    ///
    /// # Errors
    /// As [`Batch::layout`]; [`Error::Op`] if there are not as many of both.
    pub fn layout_of_all(batches: &[&Self], prompt_rows: &[usize]) -> Result<Layout> {
        if batches.len() != prompt_rows.len() {
            let expected = format!("a prompt for each of {} batches", batches.len());
            return Err(Error::op("layout", expected, prompt_rows.len().to_string()));
        }
        let mut sequences = Vec::new();
        for (prompt, (batch, &rows)) in batches.iter().zip(prompt_rows).enumerate() {
            if rows == 0
                && let Some(index) = batch.examples.iter().position(|&(_, first_label)| first_label == 0)
            {
                let place = Place::item(format!("example {index}"));
                return Err(Error::input(place, "input tokens, as there is no prompt", "an empty input"));
            }
            let examples = batch.examples.iter();
            sequences.extend(examples.map(|(ids, first_label)| Sequence::example(prompt, ids, *first_label)));
        }
        Layout::causal(prompt_rows, &sequences)
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
    /// The loss of each of the batches that went through the model together.
    fn read(&self, batches: &[&Batch]) -> Result<Vec<Loss>> {
        let mut by_example = vec![0.0; batches.iter().map(|batch| batch.len()).sum()];
        for (&example, nll) in self.example_of.iter().zip(self.nll.to_f64_vec()?) {
            by_example[example] += nll;
        }
        let mut by_example = by_example.into_iter();
        let of_batch = |batch: &&Batch| {
            let by_example: Vec<f64> = by_example.by_ref().take(batch.len()).collect();
            let label_tokens = batch.label_tokens();
            let mean = by_example.iter().sum::<f64>() / label_tokens.max(1) as f64;
            Loss { mean, by_example, label_tokens }
        };
        Ok(batches.iter().map(of_batch).collect())
    }

    fn read_one(&self, batch: &Batch) -> Result<Loss> {
        let mut losses = self.read(&[batch])?;
        Ok(losses.swap_remove(0))
    }
}

/// Prompts and their batches on the way through the model: `prompt` holds all of their rows, one prompt after the other.
struct Pass<'a> {
    prompt: &'a Var,
    prompt_rows: &'a [usize],
    batches: &'a [&'a Batch],
    /// What each batch's loss is divided by.
    divisors: &'a [usize],
}

impl Pass<'_> {
    /// What each label counts in the loss.
    fn scales(&self) -> Vec<f64> {
        let of_batch = |(batch, &divisor): (&&Batch, &usize)| {
            std::iter::repeat_n(1.0 / divisor.max(1) as f64, batch.label_tokens())
        };
        self.batches.iter().zip(self.divisors).flat_map(of_batch).collect()
    }
}

impl Model {
    /// The mean loss of `batch` behind `prompt` `[P, d]`. P may be 0: the model without a prompt.
    ///
    /// # Errors
    /// [`Error::Input`] if prompt or tokens do not fit the model, or there is nothing to predict a label from.
    pub fn loss(&self, prompt: &Tensor, batch: &Batch) -> Result<Loss> {
        self.check_prompt(prompt)?;
        let pass = Pass {
            prompt: &Var::constant(prompt.clone()),
            prompt_rows: &[prompt.rows()],
            batches: &[batch],
            divisors: &[batch.label_tokens()],
        };
        let scored = self.device().repeat(|| self.forward(&mut Tape::new(), &pass, &mut |_| ()))?;
        scored.read_one(batch)
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
        let mut found = self.losses_and_grads(&[prompt], &[batch], &[all_label_tokens])?;
        Ok(found.swap_remove(0))
    }

    /// Several prompts `[P, d]` in one pass, each with a batch of its own and the label tokens of the larger one that the
    /// batch is part of: every weight is read once for all of them. Each result is that of [`Model::loss_and_grad_of_part`],
    /// within rounding; on a CPU whose matrix library adds up in order (x86-64 with AVX2 and FMA), bit for bit, if the pass
    /// has at most 1040 label tokens.
    ///
    /// # Errors
    /// As [`Model::loss`]; [`Error::Op`] if there are not as many of all three, or none.
    pub fn losses_and_grads(
        &self,
        prompts: &[&Tensor],
        batches: &[&Batch],
        all_label_tokens: &[usize],
    ) -> Result<Vec<LossAndGrad>> {
        self.losses_and_grads_watched(prompts, batches, all_label_tokens, &mut |_| ())
    }

    /// [`Model::losses_and_grads`] for those who want to know how long its parts take.
    pub(crate) fn losses_and_grads_watched(
        &self,
        prompts: &[&Tensor],
        batches: &[&Batch],
        all_label_tokens: &[usize],
        watch: Watch<'_>,
    ) -> Result<Vec<LossAndGrad>> {
        let count = prompts.len();
        if count == 0 || (batches.len(), all_label_tokens.len()) != (count, count) {
            let got = format!("{}, {} and {}", count, batches.len(), all_label_tokens.len());
            return Err(Error::op("losses_and_grads", "as many prompts as batches and counts, at least 1", got));
        }
        for prompt in prompts {
            if prompt.rows() == 0 {
                return Err(Error::input(Place::item("prompt"), "at least one row to train", "none"));
            }
            self.check_prompt(prompt)?;
        }
        let prompt_rows: Vec<usize> = prompts.iter().map(|prompt| prompt.rows()).collect();
        let mut tape = Tape::new();
        let leaf = tape.leaf(self.device().run(|| Tensor::stacked(prompts, Kind::Workspace))?);
        let pass = Pass { prompt: &leaf, prompt_rows: &prompt_rows, batches, divisors: all_label_tokens };
        let (scored, grad) = self.device().repeat(|| {
            let scored = self.forward(&mut tape, &pass, &mut *watch)?;
            let grad = tape.backward(&scored.loss, &leaf)?;
            watch(Part::Backward);
            Ok((scored, grad))
        })?;
        let grads = self.device().run(|| grad.unstacked(&prompt_rows, Kind::Gradients))?;
        // A GPU is waited for here and nowhere before.
        let losses = scored.read(batches)?;
        Ok(losses.into_iter().zip(grads).map(|(loss, grad)| LossAndGrad { loss, grad }).collect())
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
        let pass = Pass { prompt: &prompt, prompt_rows: &[0], batches: &[batch], divisors: &[all_label_tokens] };
        let (scored, grads) = self.device().repeat(|| {
            let scored = self.forward(&mut tape, &pass, &mut *watch)?;
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
        Ok(LossAndWeightGrads { loss: scored.read_one(batch)?, grads })
    }

    fn check_prompt(&self, prompt: &Tensor) -> Result<()> {
        let width = self.config().hidden_size;
        if prompt.cols() != width || prompt.dtype() != self.prompt_dtype() {
            let expected = format!("rows of width {width} in {}", self.prompt_dtype());
            return Err(Error::input(Place::item("prompt"), expected, prompt.describe())
                .hint(format!("this prompt is not for {}", self.name())));
        }
        Ok(())
    }

    fn forward(&self, tape: &mut Tape, pass: &Pass<'_>, watch: Watch<'_>) -> Result<Scored> {
        let layout = self.layout(pass.batches, pass.prompt_rows)?;
        watch(Part::Layout);
        let hidden = self.hidden(tape, pass.prompt, &layout, None)?;
        let CrossEntropy { loss, nll } = self.cross_entropy(tape, &hidden, &layout, &pass.scales())?;
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
            None => Batch::layout_of_all(batches, prompt_rows),
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
