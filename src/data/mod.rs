//! From a data file to batches of token ids.
//!
//! ```text
//! .jsonl .csv .tsv ─ RecordReader → Record ─ Template + TextEncoder → Example ─ Dataset::split, Batches → indices
//! the same, .txt ─── texts → tokens ─ Dataset::pack, corrupt_spans or cut_prefixes ┘
//! ```
//!
//! Every error names the file, the line and the field. Nothing here depends on the clock, on the number of threads
//! or on a library's random generator: the order of examples derives from (seed, epoch, index) and the held-out
//! split from (seed, content).

mod csv;
mod example;
mod hash;
mod json;
mod order;
mod packed;
mod prefix_lm;
mod records;
mod span_corruption;
mod split;
mod template;
mod text;
pub mod tokenizer;

pub use example::{Dataset, Example, ExampleOptions, OnLong, Skipped};
pub use order::{Batch, Batches, Cursor, EpochOrder};
pub use packed::PackOptions;
pub use prefix_lm::PrefixCut;
pub use records::{Record, RecordReader, read_records};
pub use span_corruption::{PieceOptions, SpanCorruption};
pub use template::Template;
pub use text::TextEncoder;

use crate::Result;

/// What the data pipeline needs of a tokenizer.
pub trait Encode: Sync {
    /// The ids of `text`, with no special token added at either end.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// The id that ends a text, if the model has one.
    fn eos_id(&self) -> Option<u32>;

    /// The id that begins a text, if the model has one.
    fn bos_id(&self) -> Option<u32>;

    /// Whether the model was trained with the beginning id in front of every text.
    fn adds_bos(&self) -> bool;

    /// The id of a token as the vocabulary writes it, if it is one.
    fn token_id(&self, _token: &str) -> Option<u32> {
        None
    }

    /// Whether its tokenizer puts the end id behind every text.
    fn adds_eos(&self) -> bool {
        false
    }
}

impl Encode for tokenizer::Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    fn eos_id(&self) -> Option<u32> {
        self.eos_id()
    }

    fn bos_id(&self) -> Option<u32> {
        self.bos_id()
    }

    fn adds_bos(&self) -> bool {
        self.adds_bos()
    }

    fn token_id(&self, token: &str) -> Option<u32> {
        self.id(token)
    }

    fn adds_eos(&self) -> bool {
        self.adds_eos()
    }
}
