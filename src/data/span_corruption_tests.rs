//! Properties of span corruption, over pieces of many lengths and shares of noise.

use super::*;
use std::collections::BTreeSet;

/// A token a byte, below 200; 1 ends a text, and the first `sentinels` have names, from 210 down.
pub(in crate::data) struct Bytes {
    pub(in crate::data) end: Option<u32>,
    pub(in crate::data) sentinels: u32,
}

impl Encode for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }
    fn eos_id(&self) -> Option<u32> {
        self.end
    }
    fn bos_id(&self) -> Option<u32> {
        Some(0)
    }
    fn adds_bos(&self) -> bool {
        true
    }
    fn token_id(&self, token: &str) -> Option<u32> {
        let index: u32 = token.strip_prefix("<extra_id_")?.strip_suffix('>')?.parse().ok()?;
        (index < self.sentinels).then(|| 210 - index)
    }
}

pub(in crate::data) const NAMED: Bytes = Bytes { end: Some(1), sentinels: 50 };

pub(in crate::data) fn options(max_length: usize) -> PieceOptions {
    PieceOptions { template: None, max_length, max_target_length: None, vocab_size: 256, corruptions: 1, seed: 3 }
}

/// `tokens` letters and digits, in a file of its own.
pub(in crate::data) fn file(tokens: usize) -> (tempfile::TempDir, std::path::PathBuf, Vec<u32>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let text: String = (0..tokens).map(|at| char::from(b'0' + (at * 7 % 64) as u8)).collect();
    std::fs::write(&path, &text).unwrap();
    (dir, path, text.bytes().map(u32::from).collect())
}

/// The text that an example was made of, if input and target fit together as they should.
fn reassembled(example: &Example, is_sentinel: impl Fn(u32) -> bool, end: Option<u32>) -> Vec<u32> {
    let without_end = |ids: &[u32]| match end {
        Some(end) => ids.strip_suffix(&[end]).unwrap().to_vec(),
        None => ids.to_vec(),
    };
    let (input, target) = (without_end(&example.input_ids), without_end(&example.target_ids));
    // The spans of the target, by their sentinel.
    let mut spans: Vec<(u32, Vec<u32>)> = Vec::new();
    for id in target {
        match spans.last_mut() {
            _ if is_sentinel(id) => spans.push((id, Vec::new())),
            Some((_, span)) => span.push(id),
            None => panic!("a target begins with a sentinel"),
        }
    }
    assert!(spans.iter().all(|(_, span)| !span.is_empty()), "an empty span");
    let mut spans = spans.into_iter();
    let mut text = Vec::new();
    let mut after_sentinel = true; // a piece begins with text
    for id in input {
        if is_sentinel(id) {
            assert!(!after_sentinel, "two sentinels side by side");
            let (named, span) = spans.next().unwrap();
            assert_eq!(named, id, "sentinels in another order");
            text.extend(span);
        } else {
            text.push(id);
        }
        after_sentinel = is_sentinel(id);
    }
    assert!(after_sentinel, "a piece ends with a span");
    assert_eq!(spans.next(), None);
    text
}

#[test]
fn input_and_target_are_the_text_again() {
    for tokens in [2, 3, 4, 5, 17, 100, 333] {
        let (_dir, path, text) = file(tokens);
        for max_length in [4, 5, 16, 64] {
            for (noise_density, mean_noise_span_length) in [(0.15, 3.0), (0.5, 1.0), (0.9, 2.5), (0.01, 3.0)] {
                for end in [Some(1), None] {
                    let how = SpanCorruption { noise_density, mean_noise_span_length };
                    let tokenizer = Bytes { end, sentinels: 50 };
                    let found = Dataset::corrupt_spans(&path, &options(max_length), &how, &tokenizer).unwrap();
                    let what = format!("{tokens} tokens, {max_length}, {how:?}");
                    let again: Vec<u32> = found
                        .examples
                        .iter()
                        .flat_map(|example| reassembled(example, |id| (161..=210).contains(&id), end))
                        .collect();
                    // One token that is left alone has nothing to be cut out of.
                    assert!(again == text || again == text[..tokens - 1], "{what}");
                    assert!(found.examples.iter().all(|example| example.input_ids.len() <= max_length), "{what}");
                    let longest = found.examples.iter().map(|example| example.input_ids.len()).max().unwrap();
                    let fills = tokens >= 4 * max_length && noise_density <= 0.5;
                    assert!(!fills || longest >= max_length - 1, "{what}: {longest}");
                }
            }
        }
    }
}

#[test]
fn the_share_of_noise_and_the_spans_are_t5s() {
    // T5's own numbers: inputs of 512 are made of pieces of 568 tokens, and their targets have 114.
    let how = SpanCorruption::default();
    let length = how.piece_length(&options(512), 1, 100_000).unwrap();
    let (noise, spans) = how.counts(length);
    assert_eq!((length, length - noise + spans + 1, noise + spans + 1), (568, 512, 114));
    assert_eq!(how.counts(2), (1, 1));

    let (_dir, path, text) = file(5000);
    let found = Dataset::corrupt_spans(&path, &options(60), &how, &NAMED).unwrap();
    let is_sentinel = |id: &&u32| (161..=210).contains(*id);
    let spans: usize = found.examples.iter().map(|e| e.target_ids.iter().filter(is_sentinel).count()).sum();
    let cut: usize = found.examples.iter().map(|e| e.target_ids.len() - 1).sum::<usize>() - spans;
    let (share, mean) = (cut as f64 / text.len() as f64, cut as f64 / spans as f64);
    assert!((share - 0.15).abs() < 0.01 && (mean - 3.0).abs() < 0.5, "{share}, {mean}");
    // Spans and the texts between them have many lengths, and lie anywhere.
    let first: BTreeSet<usize> =
        found.examples.iter().map(|e| e.input_ids.iter().position(|id| is_sentinel(&id)).unwrap()).collect();
    assert!(first.len() > 15, "{first:?}");
}

#[test]
fn all_sums_are_equally_likely() {
    let mut times = std::collections::BTreeMap::<Vec<usize>, usize>::new();
    let mut draws = Draws::new(5);
    for _ in 0..6000 {
        let found = parts(5, 3, &mut draws);
        assert!(found.iter().sum::<usize>() == 5 && found.iter().all(|&part| part > 0));
        *times.entry(found).or_default() += 1;
    }
    assert_eq!(times.len(), 6); // the places of 2 borders among 4
    assert!(times.values().all(|times| (850..1150).contains(times)), "{times:?}");
    assert_eq!(parts(4, 4, &mut draws), [1; 4]);
    assert_eq!(parts(7, 1, &mut draws), [7]);
}

#[test]
fn the_seed_decides_whatever_the_threads_and_each_corruption_is_another() {
    let (_dir, path, _) = file(500);
    let made = |seed, corruptions, threads| {
        let options = PieceOptions { seed, corruptions, ..options(40) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let how = SpanCorruption::default();
        pool.install(|| Dataset::corrupt_spans(&path, &options, &how, &NAMED).unwrap().examples)
    };
    let (one, three) = (made(3, 1, 2), made(3, 3, 1));
    assert_eq!(three, made(3, 3, 2));
    assert_ne!(one, made(4, 1, 2));
    assert_eq!(three[..one.len()], one);
    assert_eq!(three.len(), 3 * one.len());
    for at in 0..one.len() - 1 {
        let texts: BTreeSet<_> = (0..3).map(|round| &three[at + round * one.len()].input_ids).collect();
        assert_eq!(texts.len(), 3, "piece {at}");
    }
}

#[test]
fn without_names_the_highest_ids_are_sentinels() {
    let (_dir, path, text) = file(64);
    let tokenizer = Bytes { end: Some(1), sentinels: 0 };
    let found = Dataset::corrupt_spans(&path, &options(32), &SpanCorruption::default(), &tokenizer).unwrap();
    assert_eq!(found.examples[0].target_ids[0], 255);
    assert_eq!(reassembled(&found.examples[0], |id| id > 200, Some(1)), text[..found.examples[0].tokens() - 6]);
}

#[test]
fn a_limit_on_targets_shortens_pieces() {
    let (_dir, path, _) = file(500);
    let how = SpanCorruption { noise_density: 0.5, mean_noise_span_length: 3.0 };
    let options = PieceOptions { max_target_length: Some(12), ..options(100) };
    let found = Dataset::corrupt_spans(&path, &options, &how, &NAMED).unwrap();
    let longest = found.examples.iter().map(|example| example.target_ids.len()).max().unwrap();
    assert_eq!(longest, 12);
}

#[test]
fn what_cannot_be_corrupted_is_named() {
    let (dir, path, _) = file(500);
    let refused = |options: &PieceOptions, how: &SpanCorruption, tokenizer: &Bytes| {
        Dataset::corrupt_spans(&path, options, how, tokenizer).unwrap_err().to_string()
    };
    let how = SpanCorruption::default();
    let few = Bytes { end: Some(1), sentinels: 3 };
    for (error, wanted) in [
        (refused(&options(2), &how, &NAMED), "max_length: expected at least 3 tokens"),
        (refused(&PieceOptions { max_target_length: Some(2), ..options(9) }, &how, &NAMED), "max_target_length"),
        (refused(&options(200), &how, &few), "at most 3 spans, the sentinels that there are, got pieces of 11"),
        (refused(&options(9), &SpanCorruption { noise_density: 1.0, ..how }, &NAMED), "noise_density"),
        (
            refused(&options(9), &SpanCorruption { mean_noise_span_length: 0.5, ..how }, &NAMED),
            "mean_noise_span_length",
        ),
        (refused(&PieceOptions { vocab_size: 200, ..options(9) }, &how, &NAMED), "sentinels below 200, got 210"),
    ] {
        assert!(error.contains(wanted), "{error}");
    }
    let path = dir.path().join("b.jsonl");
    std::fs::write(&path, "{\"text\": \"good\"}\n{\"text\": \"b\u{d2}d\"}\n").unwrap();
    // The bytes of that letter are 195 and 146; the vocabulary's highest id is taken as a sentinel.
    let none = Bytes { end: Some(1), sentinels: 0 };
    let options = PieceOptions { vocab_size: 196, ..options(9) };
    let error = Dataset::corrupt_spans(&path, &options, &how, &none).unwrap_err().to_string();
    assert!(error.contains("b.jsonl:2") && error.contains("sentinels") && error.contains("195"), "{error}");
}
