//! Prefix language modelling, with which Lester et al. 2021 adapt T5 to prompts: a text's beginning is the input, and how it
//! goes on is the target.

use super::Encode;
use super::example::Dataset;
use super::span_corruption::PieceOptions;
use crate::error::{Error, Place, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Where a piece of text is cut into input and target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefixCut {
    /// At any place with the same chance, as T5's code does it.
    #[default]
    Uniform,
    /// In the middle.
    Middle,
}

impl Dataset {
    /// Reads texts as [`Dataset::pack`] does, but with nothing between them, cuts them into pieces as long as `max_length`
    /// and `max_target_length` allow wherever a piece is cut, and makes the part before the cut the input and the part behind
    /// it the target; neither is empty. Both end with the tokenizer's end id, if it has one.
    ///
    /// # Errors
    /// Those of [`Dataset::pack`]; [`Error::Config`] for lengths with no room for a token.
    pub fn cut_prefixes(
        path: impl AsRef<Path>,
        options: &PieceOptions,
        cut: PrefixCut,
        tokenizer: &dyn Encode,
    ) -> Result<Self> {
        let path = path.as_ref();
        let end = tokenizer.eos_id();
        let room = |key: &str, length: usize| match length.checked_sub(end.iter().len()) {
            Some(room) if room > 0 => Ok(room),
            _ => {
                let expected = "at least one token beside the end id";
                Err(Error::config(Place::item(key), expected, length.to_string()).hint(format!("raise {key}")))
            }
        };
        let input = room("max_length", options.max_length)?;
        // Without a limit of its own a target is no longer than an input may be.
        let target = options.max_target_length.map_or(Ok(input), |length| room("max_target_length", length))?;
        let length = match cut {
            PrefixCut::Uniform => input + 1,
            PrefixCut::Middle => (2 * input + 1).min(2 * target),
        };
        let stream = options.read(path, tokenizer)?;
        Ok(options.examples(path, &stream, length, |piece, draws| {
            let at = match cut {
                PrefixCut::Uniform => {
                    let first = piece.len().saturating_sub(target).max(1);
                    first + draws.below(piece.len() - first)
                }
                PrefixCut::Middle => piece.len() / 2,
            };
            let with_end = |ids: &[u32]| ids.iter().copied().chain(end).collect();
            (with_end(&piece[..at]), with_end(&piece[at..]))
        }))
    }
}

#[cfg(test)]
#[path = "prefix_lm_tests.rs"]
mod tests;
