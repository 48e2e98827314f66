//! Which tokens begin and end a sequence, and whether they are expected: from the files beside a `tokenizer.json`.

use super::Tokenizer;
use crate::error::Place;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Begin and end of sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) adds_bos: bool,
    pub(super) adds_eos: bool,
}

/// What the files beside the `tokenizer.json` at `path`, and its own post-processor, say.
pub(super) fn beside(path: &Path, tokenizer: &Tokenizer) -> Result<Settings> {
    let read = |name| read(&path.with_file_name(name));
    let (config, generation, model) =
        (read("tokenizer_config.json")?, read("generation_config.json")?, read("config.json")?);
    let id = |role: &str| {
        named(&config, &format!("{role}_token"), tokenizer)
            .or_else(|| numbered(&generation, &format!("{role}_token_id")))
            .or_else(|| numbered(&model, &format!("{role}_token_id")))
            // A configuration may name an id the vocabulary does not have; it would be looked up in the embedding.
            .filter(|&id| tokenizer.token(id).is_some())
    };
    let (mut bos, mut eos) = (id("bos"), id("eos"));
    let (before, after) = added(tokenizer)?;
    // BERT and its kin name neither, and yet have them.
    bos = bos.or(before.first().copied());
    eos = eos.or(after.last().copied());
    let switch = |key: &str, processed: bool| config[key].as_bool().unwrap_or(processed);
    Ok(Settings {
        bos,
        eos,
        adds_bos: switch("add_bos_token", bos.is_some_and(|id| before.contains(&id))),
        adds_eos: switch("add_eos_token", eos.is_some_and(|id| after.contains(&id))),
    })
}

/// The JSON object in `path`, or null if there is no such file.
fn read(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(&text).map_err(|e| Error::input(Place::file(path), "JSON", e.to_string()))
}

/// The id of a token given by name: as a string, or as an object with its content.
fn named(config: &Value, key: &str, tokenizer: &Tokenizer) -> Option<u32> {
    let token = &config[key];
    tokenizer.id(token.as_str().or_else(|| token["content"].as_str())?)
}

/// The id given as a number, or the first of a list of them.
fn numbered(config: &Value, key: &str) -> Option<u32> {
    let id = &config[key];
    id.as_u64().or_else(|| id[0].as_u64()).and_then(|id| u32::try_from(id).ok())
}

/// What the post-processor puts before and after a text.
fn added(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let (plain, full) = (tokenizer.encode_as("a", false)?, tokenizer.encode_as("a", true)?);
    if plain.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let at = full.windows(plain.len()).position(|window| window == plain);
    Ok(at.map_or_else(Default::default, |at| (full[..at].to_vec(), full[at + plain.len()..].to_vec())))
}
