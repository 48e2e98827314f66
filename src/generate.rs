//! Generation with a cache of keys and values. The prompt's are computed once and serve every call.
//!
//! The cache holds the prompt's rows, then a stretch of rows for each sequence of a batch; a step's segments name them. In
//! an encoder–decoder, whose prompt rows see the input, it holds the decoder's prompt rows for each sequence, and what the
//! decoder reads of the encoder's rows; the sequences begin behind the token that labels begin behind.

use crate::error::{Error, Place, Result};
use crate::layout::{CrossLayout, EncoderLayout, Input, Layout, Segment, Segments, Sequence};
use crate::models::{KeyValueCache, Model, Step};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::ops::Range;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the likeliest token.
    pub temperature: f64,
    /// Choose among so many of the likeliest; 0 for all.
    pub top_k: usize,
    /// Choose among the likeliest whose probabilities reach this sum; 1 for all.
    pub top_p: f64,
    /// A sequence's choices derive from this and from its own tokens, not from what else is in the batch.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token every time.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// # Errors
    /// [`Error::Config`] for a temperature below 0 or a `top_p` that is not in (0, 1].
    fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::config(Place::item("temperature"), "a number ≥ 0", self.temperature.to_string()));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::config(Place::item("top_p"), "a number > 0 and ≤ 1", self.top_p.to_string()));
        }
        Ok(())
    }
}

/// A model with a prompt, ready to continue texts.
#[derive(Debug)]
pub struct Generator<'a> {
    model: &'a Model,
    prompt: Tensor,
    prompt_rows: usize,
    prompt_cache: KeyValueCache,
    /// The logits after the prompt's last row, from which an empty input is continued.
    prompt_logits: Option<Vec<f64>>,
}

/// What an encoder reads, and who reads of it.
struct Encoded {
    encoder: EncoderLayout,
    /// A segment for each input: the rows of the encoder that its sequence reads.
    scored: Segments,
    /// The rows of the prompt tensor that stand on the decoder, a copy for each input.
    prompt_index: Vec<usize>,
}

impl Encoded {
    fn read_by(&self, input: usize) -> Vec<Range<usize>> {
        self.scored.as_slice().get(input).map(|segment| segment.context.clone()).unwrap_or_default()
    }
}

/// One sequence as it grows.
struct Growing {
    ids: Vec<u32>,
    new: Vec<u32>,
    /// The rows in the cache of the prompt in front of it.
    prompt: Range<usize>,
    /// The rows of the encoder that it reads.
    read: Vec<Range<usize>>,
    /// Its first row in the cache.
    first_row: usize,
    /// How many of its tokens are in the cache.
    cached: usize,
    random: ChaCha8Rng,
    is_done: bool,
}

impl Growing {
    fn pending(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.iter().chain(&self.new).skip(self.cached).copied()
    }

    fn len(&self) -> usize {
        self.ids.len() + self.new.len()
    }
}

impl<'a> Generator<'a> {
    /// Computes the keys and values of `prompt` `[P, d]`; P may be 0.
    ///
    /// # Errors
    /// [`Error::Input`] if the prompt does not fit the model.
    pub fn new(model: &'a Model, prompt: &Tensor) -> Result<Self> {
        let width = model.config().hidden_size;
        if prompt.cols() != width || prompt.dtype() != model.dtype() {
            let expected = format!("rows of width {width} in {}", model.dtype());
            return Err(Error::input(Place::item("prompt"), expected, prompt.describe()));
        }
        let is_causal = !model.config().is_encoder_decoder();
        let prompt_rows = if is_causal { prompt.rows() } else { model.prompt_place().on.split(prompt.rows())?.1 };
        let mut prompt_cache = model.new_cache(if is_causal { prompt_rows } else { 0 })?;
        let mut prompt_logits = None;
        if prompt_rows > 0 && is_causal {
            let end = Sequence { keep_last: true, score_end: true, ..Sequence::example(0, &[], 0) };
            let layout = Layout::causal(&[prompt_rows], &[end])?;
            let placement: Vec<usize> = (0..prompt_rows).collect();
            let logits = model.device().run(|| {
                let step = Step { cache: &mut prompt_cache, placement: &placement };
                let hidden = model.hidden(&mut Tape::new(), &Var::constant(prompt.clone()), &layout, Some(step))?;
                model.logits(&hidden)
            })?;
            prompt_logits = Some(logits.to_f64_vec()?);
        }
        Ok(Self { model, prompt: prompt.clone(), prompt_rows, prompt_cache, prompt_logits })
    }

    /// Continues each of `inputs`, or writes behind it where it is read by an encoder, by up to `max_new_tokens` tokens; `stop` is asked after each token whether the
    /// sequence's new tokens end it, as an end token or a stop text does. A sequence also ends at the model's last
    /// position.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty input where there is no prompt, or tokens that the model does not have;
    /// [`Error::Config`] for sampling values out of range; [`Error::Diverged`] for logits that are not finite.
    pub fn generate(
        &self,
        inputs: &[&[u32]],
        max_new_tokens: usize,
        sampling: Sampling,
        stop: &mut dyn FnMut(&[u32]) -> bool,
    ) -> Result<Vec<Vec<u32>>> {
        sampling.check()?;
        let limit = self.model.config().max_position_embeddings.saturating_sub(self.prompt_rows);
        let encoded = self.encoder_layout(inputs)?;
        let copies = if encoded.is_some() { inputs.len() } else { 1 };
        let mut row = copies * self.prompt_rows;
        let mut sequences = Vec::with_capacity(inputs.len());
        for (index, &input) in inputs.iter().enumerate() {
            let place = || Place::item(format!("input {index}"));
            let (ids, prompt, read) = match &encoded {
                Some((start, layout)) => {
                    let prompt = index * self.prompt_rows..(index + 1) * self.prompt_rows;
                    (start.as_slice(), prompt, layout.read_by(index))
                }
                None => (input, 0..self.prompt_rows, Vec::new()),
            };
            if ids.is_empty() && self.prompt_rows == 0 {
                return Err(Error::input(place(), "at least one token, as there is no prompt", "none")
                    .hint("give a text, or a prompt"));
            }
            if ids.len() > limit {
                return Err(Error::input(place(), format!("at most {limit} tokens"), ids.len().to_string())
                    .hint("prompt and text share the model's positions: shorten the text"));
            }
            sequences.push(Growing {
                ids: ids.to_vec(),
                new: Vec::new(),
                prompt,
                read,
                first_row: row,
                cached: 0,
                random: stream_of(sampling.seed, input),
                is_done: max_new_tokens == 0 || ids.len() == limit,
            });
            row += (ids.len() + max_new_tokens).min(limit);
        }
        let mut cache = self.model.new_cache(row)?;
        match &encoded {
            Some((_, layout)) => self.encode(&mut cache, layout, &sequences)?,
            None => cache.copy_prefix(&self.prompt_cache, self.prompt_rows)?,
        }

        let mut grow = |sequence: &mut Growing, logits: &[f64]| {
            if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
                return Err(Error::diverged(Place::item("logits"), "finite numbers", bad.to_string())
                    .hint("prompt or weights hold values too large for the type computed in"));
            }
            sequence.cached = sequence.len();
            sequence.new.push(choose(logits, sampling, &mut sequence.random));
            sequence.is_done = stop(&sequence.new) || sequence.new.len() == max_new_tokens || sequence.len() >= limit;
            Ok(())
        };
        if let Some(logits) = &self.prompt_logits {
            let mut empty = sequences.iter_mut().filter(|sequence| !sequence.is_done && sequence.len() == 0);
            empty.try_for_each(|sequence| grow(sequence, logits))?;
        }
        loop {
            let mut active: Vec<&mut Growing> = sequences.iter_mut().filter(|sequence| !sequence.is_done).collect();
            if active.is_empty() {
                break;
            }
            let logits = self.step(&mut cache, &active)?;
            let rows = logits.to_f64_vec()?;
            for (sequence, row) in active.iter_mut().zip(rows.chunks_exact(logits.cols().max(1))) {
                grow(sequence, row)?;
            }
        }
        Ok(sequences.into_iter().map(|sequence| sequence.new).collect())
    }

    /// What an encoder reads of `inputs` behind the prompt, and the token that the decoder begins behind; none of a causal
    /// model.
    fn encoder_layout(&self, inputs: &[&[u32]]) -> Result<Option<([u32; 1], Encoded)>> {
        let Some(more) = self.model.config().encoder_decoder else { return Ok(None) };
        let start = [more.decoder_start_token_id];
        let inputs: Vec<Input<'_>> = inputs.iter().map(|&ids| Input { prompt: 0, ids }).collect();
        let first = |index| Sequence { keep_last: true, score_end: true, ..Sequence::example(index, &start, 1) };
        let sequences: Vec<Sequence<'_>> = (0..inputs.len()).map(first).collect();
        let place = self.model.prompt_place();
        let layout = Layout::encoder_decoder(&[self.prompt.rows()], place, &inputs, &sequences)?;
        let (Some(encoder), Some(cross)) = (layout.encoder, layout.cross) else { return Ok(None) };
        let prompt_index = layout.prompt_index.unwrap_or_default();
        Ok(Some((start, Encoded { encoder, scored: cross.scored, prompt_index })))
    }

    /// Fills the cache with what the decoder reads of the encoder, and with its prompt rows for each of `sequences`.
    fn encode(&self, cache: &mut KeyValueCache, encoded: &Encoded, sequences: &[Growing]) -> Result<()> {
        self.model.encode_into(cache, &self.prompt, &encoded.encoder)?;
        if self.prompt_rows == 0 {
            return Ok(());
        }
        let of_prompt = |sequence: &Growing| {
            let rows = sequence.prompt.clone();
            Segment { queries: rows.clone(), context: Vec::new(), own: rows }
        };
        let rows = sequences.len() * self.prompt_rows;
        let visible = (0..rows).map(|row| row % self.prompt_rows + 1).collect();
        let read = sequences.iter().map(|sequence| (sequence.prompt.clone(), &sequence.read)).collect();
        let none = |keys| Segments::new(Vec::new(), Vec::new(), keys);
        let layout = Layout {
            prompt_rows: vec![self.prompt_rows; sequences.len()],
            prompt_index: Some(encoded.prompt_index.clone()),
            positions: (0..rows).map(|row| row % self.prompt_rows).collect(),
            all: Segments::new(sequences.iter().map(of_prompt).collect(), visible, cache.rows())?,
            scored: none(cache.rows())?,
            cross: Some(CrossLayout { all: reading(read, cache.encoded_rows())?, scored: none(cache.encoded_rows())? }),
            ..Layout::default()
        };
        let placement: Vec<usize> = (0..rows).collect();
        self.model.device().run(|| {
            let prompt = Var::constant(self.prompt.clone());
            self.model.hidden(&mut Tape::new(), &prompt, &layout, Some(Step { cache, placement: &placement }))?;
            Ok(())
        })
    }

    /// Runs the tokens that are not in the cache yet and gives the logits after each sequence's last.
    fn step(&self, cache: &mut KeyValueCache, active: &[&mut Growing]) -> Result<Tensor> {
        let mut layout = Layout::default();
        let (mut placement, mut all, mut scored) = (Vec::new(), (Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        let mut read = (Vec::new(), Vec::new());
        for (index, sequence) in active.iter().enumerate() {
            let first = layout.ids.len();
            layout.ids.extend(sequence.pending());
            let count = layout.ids.len() - first;
            let from = sequence.first_row + sequence.cached;
            placement.extend(from..from + count);
            layout.positions.extend((0..count).map(|at| self.prompt_rows + sequence.cached + at));
            let context: Vec<_> = [sequence.prompt.clone(), sequence.first_row..from]
                .into_iter()
                .filter(|span| !span.is_empty())
                .collect();
            let segment = |queries| Segment { queries, context: context.clone(), own: from..from + count };
            all.0.push(segment(first..first + count));
            all.1.extend(1..=count);
            scored.0.push(segment(index..index + 1));
            scored.1.push(count);
            layout.scored_rows.push(first + count - 1);
            read.0.push((first..first + count, &sequence.read));
            read.1.push((index..index + 1, &sequence.read));
        }
        layout.all = Segments::new(all.0, all.1, cache.rows())?;
        layout.scored = Segments::new(scored.0, scored.1, cache.rows())?;
        if cache.encoded_rows() > 0 {
            let (all, scored) = (reading(read.0, cache.encoded_rows())?, reading(read.1, cache.encoded_rows())?);
            layout.cross = Some(CrossLayout { all, scored });
        }
        let none = self.model.prompt_from(0, &[])?;
        self.model.device().run(|| {
            let step = Step { cache, placement: &placement };
            let hidden = self.model.hidden(&mut Tape::new(), &Var::constant(none), &layout, Some(step))?;
            self.model.logits(&hidden)
        })
    }
}

/// Query rows that see the encoder's rows beside them in full.
fn reading(queries: Vec<(Range<usize>, &Vec<Range<usize>>)>, key_rows: usize) -> Result<Segments> {
    let rows = queries.last().map_or(0, |(rows, _)| rows.end);
    let segment = |(queries, context): (Range<usize>, &Vec<Range<usize>>)| Segment {
        queries,
        context: context.clone(),
        own: 0..0,
    };
    Segments::new(queries.into_iter().map(segment).collect(), vec![0; rows], key_rows)
}

/// Random numbers that depend on the seed and the sequence alone.
fn stream_of(seed: u64, ids: &[u32]) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // FNV-1a: the same input continues alike in any batch.
    let stream =
        ids.iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, &id| (hash ^ u64::from(id)).wrapping_mul(0x0100_0000_01B3));
    random.set_stream(stream);
    random
}

/// A token by its logits; of equals the first.
fn choose(logits: &[f64], sampling: Sampling, random: &mut ChaCha8Rng) -> u32 {
    let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
    if sampling.temperature == 0.0 {
        return best as u32;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let weights: Vec<f64> =
        order.iter().map(|&id| ((logits[id] - logits[best]) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0;
    let mut sum = 0.0;
    while kept < weights.len() && sum < sampling.top_p * total {
        sum += weights[kept];
        kept += 1;
    }
    let mut point = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sum;
    for (&id, weight) in order[..kept].iter().zip(&weights) {
        point -= weight;
        if point < 0.0 {
            return id as u32;
        }
    }
    order[kept.saturating_sub(1)] as u32
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
