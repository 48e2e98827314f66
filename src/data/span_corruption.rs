//! Span corruption, T5's pretraining (Raffel et al. 2020, §3.1.4): spans of a text are cut out, a sentinel stands for each,
//! and the target says what was in them.
//!
//! ```text
//! text      Thank you for inviting me to your party last week
//! input     Thank you <extra_id_0> me to your party <extra_id_1> </s>
//! target    <extra_id_0> for inviting <extra_id_1> last week </s>
//! ```

use super::example::{Dataset, Example, Skipped};
use super::hash::{Draws, extend, splitmix64};
use super::packed::{Texts, Token};
use super::{Encode, Template};
use crate::error::{Error, Place, Result};
use rayon::prelude::*;
use std::path::Path;

/// How texts become inputs and targets of an encoder–decoder: one after another, cut into pieces.
#[derive(Debug, Clone)]
pub struct PieceOptions {
    /// A row's text; without it the field `text`. A `.txt` file is a text as it is.
    pub template: Option<Template>,
    /// The most tokens of an input.
    pub max_length: usize,
    /// The most tokens of a target, where there is a limit.
    pub max_target_length: Option<usize>,
    /// Every id must be below it.
    pub vocab_size: usize,
    /// Examples made of each piece, each with random numbers of its own; an epoch has all of them.
    pub corruptions: usize,
    /// Decides the random numbers, with the piece's place in the file and the example's among those of the piece.
    pub seed: u64,
}

/// How much is cut out, and in spans of which length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanCorruption {
    /// The share of a piece's tokens that is cut out, between 0 and 1.
    pub noise_density: f64,
    /// The mean length of a span in tokens, at least 1.
    pub mean_noise_span_length: f64,
}

impl Default for SpanCorruption {
    /// T5's: 15 % in spans of 3 tokens.
    fn default() -> Self {
        Self { noise_density: 0.15, mean_noise_span_length: 3.0 }
    }
}

impl Dataset {
    /// Reads texts as [`Dataset::pack`] does, but with nothing between them, cuts them into pieces, and corrupts each as T5
    /// does: the number of tokens and of spans that are cut out follow from the piece's length alone, and all ways to divide
    /// it into so many spans, none of them empty and none beside another, are equally likely. A piece begins with text and
    /// ends with a span; it is as long as `max_length` and `max_target_length` allow. Input and target end with the
    /// tokenizer's end id, if it has one.
    ///
    /// Sentinels are the tokenizer's `<extra_id_0>`, `<extra_id_1>`, …, or, if it has none, the vocabulary's highest ids,
    /// downwards.
    ///
    /// # Errors
    /// Those of [`Dataset::pack`]; [`Error::Config`] where lengths are too short for a single span, or a piece needs more
    /// sentinels than there are; [`Error::Input`] for a text that holds a sentinel.
    pub fn corrupt_spans(
        path: impl AsRef<Path>,
        options: &PieceOptions,
        how: &SpanCorruption,
        tokenizer: &dyn Encode,
    ) -> Result<Self> {
        let path = path.as_ref();
        how.check()?;
        let stream = options.read(path, tokenizer)?;
        let end = tokenizer.eos_id();
        let length = how.piece_length(options, end.iter().len(), stream.len())?;
        let (_, spans) = how.counts(length);
        let sentinels = sentinels(spans, options.vocab_size, tokenizer)?;
        if let Some(token) = stream.iter().find(|token| sentinels.contains(&token.id)) {
            let place = Place::file(path).at_line(token.line);
            return Err(Error::input(
                place,
                "texts without the sentinels of span corruption",
                format!("id {}", token.id),
            )
            .hint("remove it from the text, or take a tokenizer with <extra_id_0> … of its own"));
        }
        Ok(options.examples(path, &stream, length, |piece, draws| how.corrupt(piece, &sentinels, end, draws)))
    }
}

impl PieceOptions {
    /// The tokens of all texts with nothing between them.
    pub(super) fn read(&self, path: &Path, tokenizer: &dyn Encode) -> Result<Vec<Token>> {
        let (template, vocab_size) = (self.template.as_ref(), self.vocab_size);
        Texts { template, vocab_size, are_marked: false }.read(path, tokenizer)
    }

    /// The examples of `stream` in pieces of `length` tokens, the last as long as it comes; one token alone is left out.
    pub(super) fn examples(
        &self,
        path: &Path,
        stream: &[Token],
        length: usize,
        make: impl Fn(&[u32], &mut Draws) -> (Vec<u32>, Vec<u32>) + Sync,
    ) -> Dataset {
        let pieces: Vec<&[Token]> = stream.chunks(length).filter(|piece| piece.len() > 1).collect();
        let seed = splitmix64(self.seed);
        let examples = (0..self.corruptions.max(1) * pieces.len()).into_par_iter().map(|index| {
            let (round, index) = (index / pieces.len(), index % pieces.len());
            let ids: Vec<u32> = pieces[index].iter().map(|token| token.id).collect();
            let mut draws = Draws::new(extend(extend(seed, index as u64), round as u64));
            let (input_ids, target_ids) = make(&ids, &mut draws);
            Example { input_ids, target_ids, line: pieces[index][0].line, target_text: None }
        });
        Dataset { path: path.to_path_buf(), examples: examples.collect(), skipped: Skipped::default() }
    }
}

impl SpanCorruption {
    fn check(&self) -> Result<()> {
        let Self { noise_density: density, mean_noise_span_length: mean } = *self;
        if !(density > 0.0 && density < 1.0) {
            let expected = "a number between 0 and 1, both excluded";
            return Err(Error::config(Place::item("noise_density"), expected, density.to_string()));
        }
        if !(mean >= 1.0 && mean.is_finite()) {
            return Err(Error::config(Place::item("mean_noise_span_length"), "at least 1 token", mean.to_string()));
        }
        Ok(())
    }

    /// How many of a piece's `tokens`, at least 2, are cut out, and in how many spans.
    fn counts(&self, tokens: usize) -> (usize, usize) {
        let rounded = |x: f64| x.round_ties_even() as usize;
        let noise = rounded(tokens as f64 * self.noise_density).clamp(1, tokens - 1);
        let spans = rounded(noise as f64 / self.mean_noise_span_length).clamp(1, noise.min(tokens - noise));
        (noise, spans)
    }

    /// The longest piece whose input and target fit, of at most `tokens`; both have `ends` end ids. Neither gets shorter as
    /// a piece gets longer.
    fn piece_length(&self, options: &PieceOptions, ends: usize, tokens: usize) -> Result<usize> {
        let fits = |length: usize| {
            let (noise, spans) = self.counts(length);
            let (input, target) = (length - noise + spans + ends, noise + spans + ends);
            input <= options.max_length && options.max_target_length.is_none_or(|limit| target <= limit)
        };
        if !fits(2) {
            let (key, got) = match options.max_target_length {
                Some(limit) if limit < 2 + ends => ("max_target_length", limit),
                _ => ("max_length", options.max_length),
            };
            let expected = format!("at least {} tokens, for one sentinel beside a token", 2 + ends);
            return Err(Error::config(Place::item(key), expected, got.to_string()).hint(format!("raise {key}")));
        }
        Ok((3..=tokens).find(|&length| !fits(length)).map_or(tokens, |length| length - 1))
    }

    /// A piece's input and target.
    fn corrupt(&self, piece: &[u32], sentinels: &[u32], end: Option<u32>, draws: &mut Draws) -> (Vec<u32>, Vec<u32>) {
        let (noise, spans) = self.counts(piece.len());
        let (cut, kept) = (parts(noise, spans, draws), parts(piece.len() - noise, spans, draws));
        let (mut input, mut target, mut rest) = (Vec::new(), Vec::new(), piece);
        for ((cut, kept), &sentinel) in cut.into_iter().zip(kept).zip(sentinels) {
            input.extend(&rest[..kept]);
            input.push(sentinel);
            target.push(sentinel);
            target.extend(&rest[kept..kept + cut]);
            rest = &rest[kept + cut..];
        }
        input.extend(end);
        target.extend(end);
        (input, target)
    }
}

/// `total` as a sum of `count` numbers above 0, at most `total`; all such sums are equally likely.
fn parts(total: usize, count: usize, draws: &mut Draws) -> Vec<usize> {
    let (mut parts, mut length, mut borders) = (Vec::with_capacity(count), 1, count - 1);
    // Of the places between two items, `borders` are drawn; each of those left is one with the chance of all.
    for left in (1..total).rev() {
        if draws.below(left) < borders {
            parts.push(length);
            (length, borders) = (0, borders - 1);
        }
        length += 1;
    }
    parts.push(length);
    parts
}

fn sentinels(count: usize, vocab_size: usize, tokenizer: &dyn Encode) -> Result<Vec<u32>> {
    let named = |index: usize| tokenizer.token_id(&format!("<extra_id_{index}>"));
    let ids: Vec<u32> = (0..count).map_while(named).collect();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(Error::input(Place::item("tokenizer"), format!("sentinels below {vocab_size}"), id.to_string())
            .hint("the tokenizer belongs to another model"));
    }
    let there = if ids.is_empty() { vocab_size } else { ids.len() };
    if there < count {
        let expected = format!("pieces of at most {there} spans, the sentinels that there are");
        return Err(Error::config(Place::item("max_length"), expected, format!("pieces of {count}"))
            .hint("lower max_length or noise_density, or raise mean_noise_span_length"));
    }
    Ok(if ids.is_empty() { (0..count).map(|index| (vocab_size - 1 - index) as u32).collect() } else { ids })
}

#[cfg(test)]
#[path = "span_corruption_tests.rs"]
pub(super) mod tests;
