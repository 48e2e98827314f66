//! Texts for pretraining: all of them one after another, cut into examples of equal length, every token of which predicts
//! the next.

use super::example::{Dataset, Example, Skipped};
use super::records::RecordReader;
use super::{Encode, Template};
use crate::error::{Error, Place, Result};
use rayon::prelude::*;
use serde_json::Value;
use std::path::Path;

/// How texts become examples.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// A row's text; without it the field `text`. A `.txt` file is a text as it is.
    pub template: Option<Template>,
    /// Tokens of an example; only the last may have fewer.
    pub max_length: usize,
    /// Every id must be below it.
    pub vocab_size: usize,
}

/// A text, or a paragraph of one, and the line it begins on.
struct Piece {
    line: u64,
    text: String,
    begins: bool,
    ends: bool,
}

impl Dataset {
    /// Reads texts, a row each (`.jsonl`, `.csv`, `.tsv`) or one whole `.txt`, and packs their tokens into examples of
    /// `max_length` tokens, as causal models are pretrained (`run_clm` of transformers): the tokenizer's beginning id, if it
    /// asks for one, stands before each text and its end id, if there is one, behind. The first token of an example is its
    /// input, the others its target.
    ///
    /// # Errors
    /// [`Error::Input`] naming file and line for a row without the field, a text that cannot be tokenised, or a file with
    /// fewer than two tokens; [`Error::Config`] for a `max_length` below 2.
    pub fn pack(path: impl AsRef<Path>, options: &PackOptions, tokenizer: &dyn Encode) -> Result<Self> {
        let path = path.as_ref();
        let length = options.max_length;
        if length < 2 {
            return Err(Error::config(Place::item("max_length"), "at least 2 tokens", length.to_string()));
        }
        let texts = Texts { template: options.template.as_ref(), vocab_size: options.vocab_size, are_marked: true };
        let stream = texts.read(path, tokenizer)?;
        let examples: Vec<Example> = stream
            .chunks(length)
            .filter(|chunk| chunk.len() > 1)
            .map(|chunk| Example {
                input_ids: vec![chunk[0].id],
                target_ids: chunk[1..].iter().map(|token| token.id).collect(),
                line: chunk[0].line,
                target_text: None,
            })
            .collect();
        Ok(Self { path: path.to_path_buf(), examples, skipped: Skipped::default() })
    }
}

/// How a file's texts become one row of tokens.
pub(super) struct Texts<'a> {
    /// A row's text; without it the field `text`.
    pub(super) template: Option<&'a Template>,
    /// Every id must be below it.
    pub(super) vocab_size: usize,
    /// Whether texts begin and end with the tokenizer's ids for it.
    pub(super) are_marked: bool,
}

/// A token and the line of its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) line: u64,
    pub(super) id: u32,
}

impl Texts<'_> {
    /// The tokens of all texts, one text after another; at least two.
    pub(super) fn read(&self, path: &Path, tokenizer: &dyn Encode) -> Result<Vec<Token>> {
        let pieces = pieces(path, self.template)?;
        let encoded = pieces.par_iter().map(|piece| {
            let mut ids = tokenizer.encode(&piece.text)?;
            if self.are_marked && piece.begins && tokenizer.adds_bos() {
                ids.splice(0..0, tokenizer.bos_id());
            }
            if self.are_marked && piece.ends {
                ids.extend(tokenizer.eos_id());
            }
            match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
                Some(id) => {
                    Err(Error::input(Place::default(), format!("ids below {}", self.vocab_size), id.to_string())
                        .hint("the tokenizer belongs to another model"))
                }
                None => Ok(ids),
            }
        });
        // The earliest error is told, whatever the threads.
        let encoded: Vec<Result<Vec<u32>>> = encoded.collect();
        let mut stream = Vec::new();
        for (piece, encoded) in pieces.iter().zip(encoded) {
            let ids = encoded.map_err(|error| error.in_file(path).on_line(piece.line))?;
            stream.extend(ids.into_iter().map(|id| Token { line: piece.line, id }));
        }
        if stream.len() < 2 {
            return Err(Error::input(Place::file(path), "texts of at least two tokens", stream.len().to_string()));
        }
        Ok(stream)
    }
}

fn pieces(path: &Path, template: Option<&Template>) -> Result<Vec<Piece>> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
        // By paragraphs, which can be tokenised in parallel.
        let mut line = 1;
        let mut pieces: Vec<Piece> = Vec::new();
        for paragraph in text.split_inclusive("\n\n") {
            pieces.push(Piece { line, text: paragraph.to_string(), begins: pieces.is_empty(), ends: false });
            line += paragraph.matches('\n').count() as u64;
        }
        if let Some(last) = pieces.last_mut() {
            last.ends = true;
        }
        return Ok(pieces);
    }
    let mut pieces = Vec::new();
    for record in RecordReader::open(path)? {
        let record = record?;
        let text = match template {
            Some(template) => template.render(&record).map_err(|error| error.in_file(path).on_line(record.line))?,
            None => match record.fields.get("text") {
                Some(Value::String(text)) => text.clone(),
                other => {
                    let got = other.map_or_else(|| "none".to_string(), Value::to_string);
                    let place = Place::file(path).at_line(record.line).of("text");
                    return Err(Error::input(place, "a field text that is a string", got)
                        .hint("name the fields with --template, as in \"{title} {body}\""));
                }
            },
        };
        pieces.push(Piece { line: record.line, text, begins: true, ends: true });
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token a byte; 0 begins and 1 ends a text.
    struct Bytes;

    impl Encode for Bytes {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            Ok(text.bytes().map(u32::from).collect())
        }
        fn eos_id(&self) -> Option<u32> {
            Some(1)
        }
        fn bos_id(&self) -> Option<u32> {
            Some(0)
        }
        fn adds_bos(&self) -> bool {
            true
        }
    }

    fn pack(name: &str, text: &str, max_length: usize) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Dataset::pack(&path, &PackOptions { template: None, max_length, vocab_size: 128 }, &Bytes)
    }

    #[test]
    fn every_token_of_every_text_is_there_once_and_in_order() {
        let rows = "{\"text\": \"abc\"}\n{\"text\": \"\"}\n{\"text\": \"de\"}\n";
        let found = pack("a.jsonl", rows, 4).unwrap();
        let ids: Vec<Vec<u32>> = found.examples.iter().map(|e| [&e.input_ids[..], &e.target_ids].concat()).collect();
        assert_eq!(ids, [vec![0, 97, 98, 99], vec![1, 0, 1, 0], vec![100, 101, 1]]);
        assert_eq!(found.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [1, 1, 3]);
        assert!(found.examples.iter().all(|example| example.input_ids.len() == 1));
        // One token alone predicts nothing.
        assert_eq!(pack("a.jsonl", rows, 5).unwrap().examples.len(), 2);

        let text = pack("a.TXT", "ab\n\nc\nd\n\ne", 100).unwrap();
        let ids: Vec<u32> = [&text.examples[0].input_ids[..], &text.examples[0].target_ids].concat();
        assert_eq!(ids, [0, 97, 98, 10, 10, 99, 10, 100, 10, 10, 101, 1]);
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        for (name, text, length, wanted) in [
            ("a.jsonl", "{\"text\": \"ok\"}\n{\"body\": \"x\"}\n", 8, "a.jsonl:2"),
            ("a.jsonl", "{\"text\": 3}\n", 8, "a field text that is a string, got 3"),
            ("a.jsonl", "{\"text\": \"é\"}\n", 8, "ids below 128, got 195"),
            ("a.jsonl", "{\"text\": \"ok\"}\n", 1, "at least 2 tokens"),
            ("a.txt", "", 8, "texts of at least two tokens, got 0"),
        ] {
            let error = pack(name, text, length).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
