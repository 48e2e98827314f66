//! SentencePiece's BPE: of all neighbours that together are a piece, the pair with the highest score is joined, the
//! leftmost of equals, until no two are. What is then no piece falls back to its bytes.
//!
//! A list of ranked merges is not quite the same: where one piece can be made of two overlapping pairs ("a"+"aa" and
//! "aa"+"a"), SentencePiece takes the left one and a ranked list the one that ranks first.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Token, tokenizer};

/// The mark that stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// What an entry of the vocabulary is to the merging.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Piece {
    /// Can be a result, with this score.
    Word(f32),
    /// Can be on the way to a result, but is taken apart again if it is left over.
    Unused(f32),
    /// Stands for a byte.
    Byte(u8),
    /// Stands for what cannot be written otherwise.
    Unknown,
    /// Never comes out of a text.
    Other,
}

/// The byte that a token like `<0x0A>` stands for.
pub(super) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// SentencePiece's BPE over a vocabulary.
pub(super) struct Spm {
    ids: HashMap<String, u32>,
    pieces: Vec<(String, Piece)>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
}

/// A stretch of the text; a joined one has length 0 and is skipped.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that could be joined.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// Over `pieces`, whose positions are their ids.
    pub(super) fn new(pieces: Vec<(String, Piece)>) -> Self {
        let ids = (0..).zip(&pieces).map(|(id, (text, _))| (text.clone(), id)).collect();
        let mut bytes = [None; 256];
        let mut unknown = None;
        for (id, (_, piece)) in (0..).zip(&pieces) {
            match piece {
                Piece::Byte(byte) => bytes[usize::from(*byte)] = Some(id),
                Piece::Unknown => unknown = unknown.or(Some(id)),
                Piece::Word(_) | Piece::Unused(_) | Piece::Other => {}
            }
        }
        Self { ids, pieces, bytes, unknown }
    }

    fn piece(&self, text: &str) -> Option<(u32, Piece)> {
        let id = *self.ids.get(text)?;
        Some((id, self.pieces[id as usize].1))
    }

    /// `text` in stretches, each a piece or a single character; with them, how the unused pieces were joined.
    fn merge<'a>(&self, text: &'a str) -> (Vec<(usize, usize)>, HashMap<&'a str, usize>) {
        let mut symbols = characters(text);
        let mut heap = BinaryHeap::new();
        let mut joined = HashMap::new();
        for left in 0..symbols.len().saturating_sub(1) {
            self.consider(text, &symbols, left, left + 1, &mut heap, &mut joined);
        }
        while let Some(Pair { left, right, len, .. }) = heap.pop() {
            // A pair is stale once either side has been joined with another.
            if symbols[left].len == 0 || symbols[right].len == 0 || symbols[left].len + symbols[right].len != len {
                continue;
            }
            let next = symbols[right].next;
            symbols[left].len = len;
            symbols[left].next = next;
            symbols[right].len = 0;
            if let Some(next) = next {
                symbols[next].previous = Some(left);
                self.consider(text, &symbols, left, next, &mut heap, &mut joined);
            }
            if let Some(previous) = symbols[left].previous {
                self.consider(text, &symbols, previous, left, &mut heap, &mut joined);
            }
        }
        (symbols.iter().filter(|s| s.len > 0).map(|s| (s.start, s.len)).collect(), joined)
    }

    fn consider<'a>(
        &self,
        text: &'a str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        heap: &mut BinaryHeap<Pair>,
        joined: &mut HashMap<&'a str, usize>,
    ) {
        let len = symbols[left].len + symbols[right].len;
        let whole = &text[symbols[left].start..symbols[left].start + len];
        match self.piece(whole) {
            Some((_, Piece::Word(score))) => heap.push(Pair { score, left, right, len }),
            Some((_, Piece::Unused(score))) => {
                heap.push(Pair { score, left, right, len });
                joined.insert(whole, symbols[left].len);
            }
            _ => {}
        }
    }

    /// Writes the stretch of `text` at `start` as tokens.
    fn emit(
        &self,
        text: &str,
        (start, len): (usize, usize),
        joined: &HashMap<&str, usize>,
        tokens: &mut Vec<Token>,
    ) -> tokenizer::Result<()> {
        let mut stack = vec![(start, len)];
        while let Some((start, len)) = stack.pop() {
            let part = &text[start..start + len];
            match (self.piece(part), joined.get(part)) {
                (Some((id, Piece::Word(_))), _) => tokens.push(Token::new(id, part.to_owned(), (start, start + len))),
                (Some((_, Piece::Unused(_))), Some(&cut)) => {
                    stack.push((start + cut, len - cut));
                    stack.push((start, cut));
                }
                _ => self.emit_bytes(part, start, tokens)?,
            }
        }
        Ok(())
    }

    fn emit_bytes(&self, part: &str, start: usize, tokens: &mut Vec<Token>) -> tokenizer::Result<()> {
        let span = (start, start + part.len());
        let ids: Option<Vec<u32>> = part.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
        if let Some(ids) = ids {
            tokens.extend(ids.into_iter().map(|id| Token::new(id, self.pieces[id as usize].0.clone(), span)));
            return Ok(());
        }
        let Some(unknown) = self.unknown else {
            return Err(format!("no token for {part:?}, none for its bytes, and none for the unknown").into());
        };
        // A run of unknown characters is one unknown token.
        match tokens.last_mut() {
            Some(last) if last.id == unknown && last.offsets.1 == start => {
                last.offsets.1 = span.1;
            }
            _ => tokens.push(Token::new(unknown, self.pieces[unknown as usize].0.clone(), span)),
        }
        Ok(())
    }
}

fn characters(text: &str) -> Vec<Symbol> {
    let count = text.chars().count();
    let symbol = |(at, (start, c)): (usize, (usize, char))| Symbol {
        start,
        len: c.len_utf8(),
        previous: at.checked_sub(1),
        next: (at + 1 < count).then_some(at + 1),
    };
    text.char_indices().enumerate().map(symbol).collect()
}

impl Model for Spm {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizer::Result<Vec<Token>> {
        let (stretches, joined) = self.merge(sequence);
        let mut tokens = Vec::with_capacity(stretches.len());
        for stretch in stretches {
            self.emit(sequence, stretch, &joined, &mut tokens)?;
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.pieces.get(id as usize).map(|(text, _)| text.clone())
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.clone()
    }

    fn get_vocab_size(&self) -> usize {
        self.pieces.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizer::Result<Vec<PathBuf>> {
        Err("a tokenizer from a GGUF file is not saved".into())
    }

    /// Required by the trait; nothing here is ever trained.
    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
