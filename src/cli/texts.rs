//! What a model is pretrained on: texts, turned into examples by the objective.

use crate::config::{Method, Objective, TrainConfig};
use crate::data::{Dataset, Encode, ExampleOptions, PackOptions, PieceOptions, PrefixCut, SpanCorruption};
use crate::error::{Error, Place, Result};
use crate::models::Model;
use std::path::Path;

/// How texts become examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Texts {
    /// Packed, for [`Objective::NextToken`].
    Packed,
    /// Cut into pieces, of each of which examples are made.
    Pieces {
        /// What is made of a piece.
        what: Piece,
        /// The most tokens of a target, where there is a limit.
        max_target_length: Option<usize>,
        /// How many examples are made of it.
        corruptions: usize,
        /// What decides the random numbers.
        seed: u64,
    },
}

/// What an encoder–decoder learns from a piece of text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Piece {
    /// What was cut out.
    Spans(SpanCorruption),
    /// How it goes on.
    Continuation(PrefixCut),
}

impl Texts {
    /// What `config` asks for, if it is to pretrain, and `model` can learn.
    pub(super) fn of(config: &TrainConfig, model: &Model) -> Result<Option<Self>> {
        if config.method != Method::Pretrain {
            return Ok(None);
        }
        // Unlike a label's, a target's length has no limit that nobody asked for.
        let (max_target_length, corruptions, seed) = (config.max_target_length, config.corruptions, config.seed);
        let pieces = |what| Self::Pieces { what, max_target_length, corruptions, seed };
        let texts = match config.objective {
            Objective::NextToken => Self::Packed,
            Objective::SpanCorruption => pieces(Piece::Spans(config.span_corruption())),
            Objective::PrefixLm => pieces(Piece::Continuation(config.prefix_cut)),
        };
        let is_encoder_decoder = model.config().is_encoder_decoder();
        if is_encoder_decoder == (texts == Self::Packed) {
            let (expected, kind) = match is_encoder_decoder {
                true => ("span_corruption or prefix_lm", "an encoder–decoder"),
                false => ("next_token", "a causal model"),
            };
            let what = format!("{expected}, as {} is {kind}", model.name());
            return Err(Error::config(Place::item("objective"), what, config.objective.name())
                .hint(format!("give --objective {expected}")));
        }
        Ok(Some(texts))
    }

    /// The same for held-out texts: one example of each piece.
    pub(super) fn held_out(self) -> Self {
        match self {
            Self::Packed => self,
            Self::Pieces { what, max_target_length, seed, .. } => {
                Self::Pieces { what, max_target_length, corruptions: 1, seed }
            }
        }
    }

    /// The examples of the texts in `path`.
    pub(super) fn load(&self, path: &Path, options: &ExampleOptions, tokenizer: &dyn Encode) -> Result<Dataset> {
        let (template, max_length, vocab_size) = (options.template.clone(), options.max_length, options.vocab_size);
        match *self {
            Self::Packed => Dataset::pack(path, &PackOptions { template, max_length, vocab_size }, tokenizer),
            Self::Pieces { what, max_target_length, corruptions, seed } => {
                let options = PieceOptions { template, max_length, max_target_length, vocab_size, corruptions, seed };
                match what {
                    Piece::Spans(how) => Dataset::corrupt_spans(path, &options, &how, tokenizer),
                    Piece::Continuation(cut) => Dataset::cut_prefixes(path, &options, cut, tokenizer),
                }
            }
        }
    }
}
