//! The tokenizers that GGUF files describe, rebuilt.

use super::settings::Settings;
use super::spm::{self, Piece, Spm};
use super::{Engine, SpmTokenizer, contained};
use crate::error::Place;
use crate::weights::gguf::Metadata;
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NFC, Precompiled, Prepend, Replace, Sequence as Normalizers, Strip as StripSpaces};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer, tokenizer};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const EXTRA_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const SUFFIX: &str = "tokenizer.ggml.treat_whitespace_as_suffix";
const PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// What kind of token an entry of the vocabulary is, as the file numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

struct Vocabulary<'a> {
    path: &'a Path,
    tokens: Vec<&'a str>,
    kinds: Vec<Kind>,
}

/// The tokenizer `metadata` describes.
pub(super) fn build(metadata: &Metadata) -> Result<(Engine, Settings)> {
    match required(metadata, MODEL, metadata.str(MODEL)?)? {
        "gpt2" => byte_level(metadata),
        "llama" => sentence_piece(metadata),
        "t5" => unigram(metadata),
        other => Err(Error::input(Place::file(metadata.path()).of(MODEL), "gpt2, llama or t5", other)
            .hint("take the model in Hugging Face layout, with its tokenizer.json")),
    }
}

fn required<T>(metadata: &Metadata, key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::input(Place::file(metadata.path()).of(key), "this key", "none"))
}

fn wrong<T>(metadata: &Metadata, key: &str, expected: &str, got: impl Into<String>) -> Result<T> {
    Err(Error::input(Place::file(metadata.path()).of(key), expected, got))
}

fn byte_level(metadata: &Metadata) -> Result<(Engine, Settings)> {
    // llama.cpp writes no name, or "default", where nobody told it which; GPT-2's is what the format then means.
    let pre = metadata.str(PRE)?.unwrap_or("default");
    let vocabulary = vocabulary(metadata)?;
    let merges = merges(metadata)?;
    let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let Some((normalizer, splitter)) = splitter(pre, vocabulary.path)? else {
        let known = "default, gpt-2, smollm, qwen2, llama-bpe, llama3 or llama-v3";
        return wrong(metadata, PRE, known, pre)
            .map_err(|e| e.hint("take the model in Hugging Face layout, with its tokenizer.json"));
    };
    let ids: Vocab = (0..).zip(&vocabulary.tokens).map(|(id, token)| ((*token).to_owned(), id)).collect();
    let engine = contained(vocabulary.path, "a byte-level BPE vocabulary", || {
        let bpe = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(llama3).build()?;
        let mut engine = Tokenizer::new(bpe);
        engine.with_normalizer(normalizer);
        engine.with_pre_tokenizer(Some(splitter));
        engine.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
        engine.add_tokens(&vocabulary.added());
        Ok(Engine::Library(Box::new(engine)))
    })?;
    Ok((engine, settings(metadata, vocabulary.tokens.len(), llama3, false)?))
}

/// Normalizer and pre-tokenizer of a byte-level BPE by the name llama.cpp gives them.
fn splitter(name: &str, path: &Path) -> Result<Option<(Option<NormalizerWrapper>, PreTokenizerWrapper)>> {
    let bytes = |use_regex| ByteLevel::new(false, true, use_regex).into();
    // Contractions, words, runs of at most so many digits, punctuation, line ends, spaces.
    let words = |digits: &str| -> Result<PreTokenizerWrapper> {
        let pattern = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let split = contained(path, "a pattern", || {
            Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false)
        })?;
        Ok(Sequence::new(vec![split.into(), bytes(false)]).into())
    };
    Ok(Some(match name {
        "default" | "gpt-2" => (None, bytes(true)),
        "smollm" => (None, Sequence::new(vec![Digits::new(true).into(), bytes(true)]).into()),
        "qwen2" => (Some(NFC.into()), words(r"\p{N}")?),
        "llama-bpe" | "llama3" | "llama-v3" => (None, words(r"\p{N}{1,3}")?),
        _ => return Ok(None),
    }))
}

fn sentence_piece(metadata: &Metadata) -> Result<(Engine, Settings)> {
    for key in [EXTRA_SPACES, SUFFIX] {
        if metadata.bool(key)? == Some(true) {
            return wrong(metadata, key, "false, as in Llama's tokenizers", "true");
        }
    }
    if metadata.array(CHARSMAP)?.is_some_and(|map| !map.is_empty()) {
        return wrong(metadata, CHARSMAP, "none, as in Llama's tokenizers", "one");
    }
    let prefix = metadata.bool(PREFIX)?.unwrap_or(true);
    let vocabulary = vocabulary(metadata)?;
    let pieces = pieces(metadata, &vocabulary)?;
    let engine = contained(vocabulary.path, "a SentencePiece vocabulary", || {
        let mut engine = SpmTokenizer::new(Spm::new(pieces));
        engine.with_normalizer(Some(spaces_to_marks(prefix)?));
        engine.with_decoder(Some(marks_to_spaces(prefix)?));
        engine.add_tokens(&vocabulary.added());
        Ok(Engine::Spm(Box::new(engine)))
    })?;
    Ok((engine, settings(metadata, vocabulary.tokens.len(), true, false)?))
}

/// SentencePiece's unigram model with T5's treatment of spaces.
fn unigram(metadata: &Metadata) -> Result<(Engine, Settings)> {
    if metadata.bool(SUFFIX)? == Some(true) {
        return wrong(metadata, SUFFIX, "false, as in T5's tokenizers", "true");
    }
    let is_tidy = metadata.bool(EXTRA_SPACES)?.unwrap_or(true);
    let scheme = match metadata.bool(PREFIX)?.unwrap_or(true) {
        true => PrependScheme::Always,
        false => PrependScheme::Never,
    };
    let charsmap = charsmap(metadata)?;
    let vocabulary = vocabulary(metadata)?;
    let scores = scores(metadata, vocabulary.tokens.len())?;
    let is = |kind| move |of: &Kind| *of == kind;
    let unknown = vocabulary.kinds.iter().position(is(Kind::Unknown));
    let falls_back = vocabulary.kinds.iter().any(is(Kind::Byte));
    let words = || vocabulary.kinds.iter().zip(&scores).filter(|(kind, _)| **kind == Kind::Normal);
    let lowest = words().map(|(_, &score)| f64::from(score)).fold(0.0, f64::min);
    let entry = |((&token, &kind), &score): ((&&str, &Kind), &f32)| {
        // What is unknown costs more than the lowest of all scores, which only words may have a say in.
        let score = if matches!(kind, Kind::Normal | Kind::UserDefined) { f64::from(score) } else { lowest };
        (token.to_owned(), score)
    };
    let entries = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(&scores).map(entry).collect();
    let engine = contained(vocabulary.path, "a SentencePiece vocabulary", || {
        let mut engine = Tokenizer::new(Unigram::from(entries, unknown, falls_back)?);
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if !charsmap.is_empty() {
            steps.push(Precompiled::from(&charsmap)?.into());
        }
        if is_tidy {
            steps.push(StripSpaces::new(true, true).into());
            steps.push(Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), " ")?.into());
        }
        engine.with_normalizer(Some(Normalizers::new(steps)));
        let marks = Metaspace::new('\u{2581}', scheme, true);
        engine.with_pre_tokenizer(Some(marks.clone()));
        engine.with_decoder(Some(marks));
        engine.add_tokens(&vocabulary.added());
        Ok(Engine::Library(Box::new(engine)))
    })?;
    Ok((engine, settings(metadata, vocabulary.tokens.len(), false, true)?))
}

/// The compiled rules by which SentencePiece replaces characters; none where the file has none.
fn charsmap(metadata: &Metadata) -> Result<Vec<u8>> {
    let Some(array) = metadata.array(CHARSMAP)? else { return Ok(Vec::new()) };
    let Some(numbers) = array.numbers().filter(|_| !array.is_empty()) else {
        return if array.is_empty() {
            Ok(Vec::new())
        } else {
            wrong(metadata, CHARSMAP, "bytes", format!("{array:?}"))
        };
    };
    // Bytes, or the signed ones that some writers make of them.
    let byte = |x: f64| match x as i64 {
        byte @ -128..=255 => Ok(byte as u8),
        other => wrong(metadata, CHARSMAP, "bytes", other.to_string()),
    };
    numbers.map(byte).collect()
}

fn spaces_to_marks(prefix: bool) -> tokenizer::Result<NormalizerWrapper> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        steps.push(Prepend::new(spm::SPACE.to_owned()).into());
    }
    steps.push(Replace::new(" ", spm::SPACE)?.into());
    Ok(Normalizers::new(steps).into())
}

fn marks_to_spaces(prefix: bool) -> tokenizer::Result<DecoderWrapper> {
    let mut steps: Vec<DecoderWrapper> =
        vec![Replace::new(spm::SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    Ok(Decoders::new(steps).into())
}

/// The score of each token, none of them NaN.
fn scores(metadata: &Metadata, count: usize) -> Result<Vec<f32>> {
    let scores = required(metadata, SCORES, metadata.array(SCORES)?)?;
    let scores: Vec<f32> = match scores.numbers().filter(|_| scores.len() == count) {
        Some(numbers) => numbers.map(|x| x as f32).collect(),
        None => return wrong(metadata, SCORES, &format!("{count} numbers, one a token"), format!("{scores:?}")),
    };
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return wrong(metadata, SCORES, "numbers", format!("NaN for token {id}"));
    }
    Ok(scores)
}

fn pieces(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Vec<(String, Piece)>> {
    let scores = scores(metadata, vocabulary.tokens.len())?;
    let piece = |((&token, &kind), score): ((&&str, &Kind), f32)| {
        let piece = match kind {
            Kind::Normal | Kind::UserDefined => Piece::Word(score),
            Kind::Unused => Piece::Unused(score),
            Kind::Byte => spm::byte(token).map_or(Piece::Other, Piece::Byte),
            Kind::Unknown => Piece::Unknown,
            Kind::Control => Piece::Other,
        };
        (token.to_owned(), piece)
    };
    Ok(vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(scores).map(piece).collect())
}

impl Vocabulary<'_> {
    /// The tokens that are recognised before anything is split or normalised.
    fn added(&self) -> Vec<AddedToken> {
        let added = |(token, kind): (&&str, &Kind)| match kind {
            _ if token.is_empty() => None,
            Kind::Control | Kind::Unknown => Some(AddedToken::from(*token, true)),
            Kind::UserDefined => Some(AddedToken::from(*token, false).normalized(false)),
            Kind::Normal | Kind::Unused | Kind::Byte => None,
        };
        self.tokens.iter().zip(&self.kinds).filter_map(added).collect()
    }
}

fn vocabulary(metadata: &Metadata) -> Result<Vocabulary<'_>> {
    let array = required(metadata, TOKENS, metadata.array(TOKENS)?)?;
    let Some(tokens) = array.strings().filter(|_| u32::try_from(array.len()).is_ok() && !array.is_empty()) else {
        return wrong(metadata, TOKENS, "an array of strings", format!("{array:?}"));
    };
    let tokens: Vec<&str> = tokens.collect();
    let mut first = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = first.insert(token, id) {
            return wrong(metadata, TOKENS, "each token once", format!("{token:?} as {other} and {id}"));
        }
    }
    let kinds = kinds(metadata, tokens.len())?;
    Ok(Vocabulary { path: metadata.path(), tokens, kinds })
}

fn kinds(metadata: &Metadata, count: usize) -> Result<Vec<Kind>> {
    let Some(array) = metadata.array(TYPES)? else { return Ok(vec![Kind::Normal; count]) };
    let Some(numbers) = array.numbers().filter(|_| array.len() == count) else {
        return wrong(metadata, TYPES, &format!("{count} integers, one a token"), format!("{array:?}"));
    };
    let kind = |number: f64| {
        Ok(match number as i64 {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            other => return wrong(metadata, TYPES, "types from 1 to 6", other.to_string()),
        })
    };
    numbers.map(kind).collect()
}

fn merges(metadata: &Metadata) -> Result<Vec<(String, String)>> {
    let array = required(metadata, MERGES, metadata.array(MERGES)?)?;
    let Some(lines) = array.strings() else {
        return wrong(metadata, MERGES, "an array of strings", format!("{array:?}"));
    };
    let pair = |line: &str| match line.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => wrong(metadata, MERGES, "two tokens with a space between", format!("{line:.80?}")),
    };
    lines.map(pair).collect()
}

/// Begin and end, and whether they are added where the file does not say.
fn settings(metadata: &Metadata, count: usize, adds_bos: bool, adds_eos: bool) -> Result<Settings> {
    let id = |role: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        match metadata.u64(&key)? {
            Some(id) if id < count as u64 => Ok(Some(id as u32)),
            Some(id) => wrong(metadata, &key, &format!("an id below {count}"), id.to_string()),
            None => Ok(None),
        }
    };
    Ok(Settings {
        bos: id("bos")?,
        eos: id("eos")?,
        adds_bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos),
        adds_eos: metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(adds_eos),
    })
}
