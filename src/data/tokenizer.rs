//! Text to token ids and back, with the vocabulary that came with the model.
//!
//! The work is done by the `tokenizers` crate. It panics on some broken files, so every call into it is contained and
//! a panic becomes an error that names the file. The panic's own message is still printed: silencing it would take
//! the process-wide panic hook, which belongs to the program and not to a library.

mod from_gguf;
mod settings;
mod spm;

use crate::error::Place;
use crate::weights::{Weights, gguf};
use crate::{Error, Result};
use settings::Settings;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl, tokenizer,
};

type SpmTokenizer =
    TokenizerImpl<spm::Spm, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A model's tokenizer. Cloning copies a reference.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    engine: Engine,
    vocab_size: usize,
    special: Vec<u32>,
    settings: Settings,
}

enum Engine {
    /// What the crate knows itself.
    Library(Box<tokenizers::Tokenizer>),
    /// SentencePiece's merging by score, which it does not.
    Spm(Box<SpmTokenizer>),
}

/// Runs `$body` with `$engine` bound to whichever tokenizer it is; the two have the same methods but not the same type.
macro_rules! with_engine {
    ($self:expr, $engine:ident => $body:expr) => {
        match $self {
            Engine::Library($engine) => $body,
            Engine::Spm($engine) => $body,
        }
    };
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Begin and end of sequence come from `tokenizer_config.json`, `generation_config.json`
    /// and `config.json` beside it, where they exist. Truncation and padding in the file are switched off.
    ///
    /// # Errors
    /// [`Error::Input`] if one of the files is broken or `path` does not exist; [`Error::Io`] if it cannot be read.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let engine = contained(path, "a tokenizer.json", || {
            let mut engine = tokenizers::Tokenizer::from_bytes(&bytes)?;
            engine.with_truncation(None)?;
            engine.with_padding(None);
            Ok(Engine::Library(Box::new(engine)))
        })?;
        let mut tokenizer = Self::new(path, engine, Settings::default())?;
        let settings = settings::beside(path, &tokenizer)?;
        // Nobody else has seen it yet.
        if let Some(inner) = Arc::get_mut(&mut tokenizer.inner) {
            inner.settings = settings;
        }
        Ok(tokenizer)
    }

    /// Builds the tokenizer that a GGUF file describes: byte-level BPE (`gpt2`) with the pre-tokenizers of GPT-2,
    /// SmolLM, Qwen2 and Llama 3, SentencePiece BPE (`llama`), or its unigram model as T5 has it (`t5`).
    ///
    /// # Errors
    /// [`Error::Input`] if the description is broken, or of a kind that would not be rebuilt exactly.
    pub fn from_gguf(metadata: &gguf::Metadata) -> Result<Self> {
        let (engine, settings) = from_gguf::build(metadata)?;
        Self::new(metadata.path(), engine, settings)
    }

    /// The tokenizer of an opened model: `tokenizer.json` in (or beside) `model_path`, or else the one in the GGUF
    /// file; `None` if there is neither.
    ///
    /// # Errors
    /// As [`Tokenizer::from_file`] and [`Tokenizer::from_gguf`].
    pub fn open(model_path: &Path, weights: &Weights) -> Result<Option<Self>> {
        // A GGUF file carries its own, whatever lies beside it.
        let file = match model_path.is_dir() {
            true => Some(model_path.join("tokenizer.json")),
            false if weights.gguf().is_none() => model_path.parent().map(|parent| parent.join("tokenizer.json")),
            false => None,
        };
        match (file, weights.gguf()) {
            (Some(file), _) if file.exists() => Self::from_file(&file).map(Some),
            (_, Some(metadata)) if metadata.get("tokenizer.ggml.model").is_some() => {
                Self::from_gguf(metadata).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What `tokenizer.json` and `tokenizer_config.json` would hold; nothing for SentencePiece's merging by score, which the
    /// first cannot describe.
    pub fn to_json(&self) -> Option<(String, serde_json::Value)> {
        let Engine::Library(engine) = &self.inner.engine else { return None };
        let text = engine.to_string(true).ok()?;
        let token = |id: Option<u32>| id.and_then(|id| self.token(id));
        let settings = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token(self.bos_id()),
            "eos_token": token(self.eos_id()), "add_bos_token": self.adds_bos(), "add_eos_token": self.adds_eos(),
        });
        Some((text, settings))
    }

    fn new(path: &Path, engine: Engine, settings: Settings) -> Result<Self> {
        let (vocab_size, special) = contained(path, "a vocabulary", || {
            let vocabulary: HashMap<String, u32> = with_engine!(&engine, e => e.get_vocab(true));
            let last = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
            let added = with_engine!(&engine, e => e.get_added_tokens_decoder());
            let mut special: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
            special.sort_unstable();
            Ok((last, special))
        })?;
        let inner = Inner { path: path.to_path_buf(), engine, vocab_size, special, settings };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The ids of `text`. Nothing is added before or after; special tokens written out in the text are recognised.
    ///
    /// # Errors
    /// [`Error::Input`] if the tokenizer fails on this text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_as(text, false)
    }

    fn encode_as(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        contained(&self.inner.path, "a tokenizer that can encode any text", || {
            let encoding = with_engine!(&self.inner.engine, e => e.encode_fast(text, add_special))?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// The text of `ids`, with bytes that are not UTF-8 replaced; special tokens left out if `skip_special`. Ids that
    /// have no token, such as padding rows of the embedding, are left out.
    ///
    /// # Errors
    /// [`Error::Input`] if the tokenizer fails on these ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        contained(
            &self.inner.path,
            "a tokenizer that can decode any ids",
            || with_engine!(&self.inner.engine, e => e.decode(ids, skip_special)),
        )
    }

    /// The token of `id` as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        let token = contained(&self.inner.path, "", || Ok(with_engine!(&self.inner.engine, e => e.id_to_token(id))));
        token.ok().flatten()
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        let id = contained(&self.inner.path, "", || Ok(with_engine!(&self.inner.engine, e => e.token_to_id(token))));
        id.ok().flatten()
    }

    /// One more than the largest id, added tokens included. The model's embedding must have at least so many rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Whether `id` is a special token, which `decode` can leave out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.binary_search(&id).is_ok()
    }

    /// The token that begins a sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.settings.bos
    }

    /// The token that ends a sequence.
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.settings.eos
    }

    /// Whether the model expects [`Tokenizer::bos_id`] before its input; `encode` does not add it.
    pub fn adds_bos(&self) -> bool {
        self.inner.settings.adds_bos && self.bos_id().is_some()
    }

    /// Whether the model expects [`Tokenizer::eos_id`] after its input, as T5 does; `encode` does not add it.
    pub fn adds_eos(&self) -> bool {
        self.inner.settings.adds_eos && self.eos_id().is_some()
    }

    /// The file the tokenizer was read from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {})", self.vocab_size(), self.inner.path.display())
    }
}

/// Runs `call`, turning its errors and panics into errors about the file at `path`.
fn contained<T>(path: &Path, expected: &str, call: impl FnOnce() -> tokenizer::Result<T>) -> Result<T> {
    let broken = |got: String| Error::input(Place::file(path), expected, got);
    // What a panic may leave half done is inside the crate, whose caches are only ever replaced whole.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| broken(e.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(broken(format!("one the tokenizers library fails on: {text}")))
        }
    }
}

#[cfg(test)]
#[path = "tokenizer/tests.rs"]
mod tests;
