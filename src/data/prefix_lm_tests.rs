//! Properties of prefixes and how they go on.

use super::super::span_corruption::tests::{Bytes, NAMED, file, options};
use super::*;
use std::collections::BTreeSet;

#[test]
fn prefix_and_continuation_are_the_text_again() {
    for tokens in [2, 3, 17, 200] {
        let (_dir, path, text) = file(tokens);
        for cut in [PrefixCut::Uniform, PrefixCut::Middle] {
            for (max_length, max_target_length) in [(2, None), (9, None), (9, Some(4)), (5, Some(30)), (64, Some(64))] {
                for end in [Some(1), None] {
                    let options = PieceOptions { max_target_length, ..options(max_length) };
                    let tokenizer = Bytes { end, sentinels: 0 };
                    let found = Dataset::cut_prefixes(&path, &options, cut, &tokenizer).unwrap();
                    let what = format!("{tokens} tokens, {cut:?}, {max_length}, {max_target_length:?}");
                    let mut again: Vec<u32> = Vec::new();
                    for example in &found.examples {
                        assert!(example.input_ids.len() <= max_length, "{what}");
                        assert!(example.target_ids.len() <= max_target_length.unwrap_or(max_length), "{what}");
                        for ids in [&example.input_ids, &example.target_ids] {
                            let ids = end.map_or(&ids[..], |end| ids.strip_suffix(&[end]).unwrap());
                            assert!(!ids.is_empty(), "{what}");
                            again.extend(ids);
                        }
                    }
                    assert!(again == text || again == text[..tokens - 1], "{what}");
                }
            }
        }
    }
}

#[test]
fn cuts_are_where_they_should_be_and_the_seed_decides() {
    let (_dir, path, _) = file(4000);
    let made = |seed, cut| {
        let options = PieceOptions { seed, corruptions: 2, ..options(21) };
        Dataset::cut_prefixes(&path, &options, cut, &NAMED).unwrap().examples
    };
    let uniform = made(3, PrefixCut::Uniform);
    let places: BTreeSet<usize> = uniform.iter().map(|example| example.input_ids.len()).collect();
    assert_eq!(places, (2..=21).collect());
    assert_eq!(uniform, made(3, PrefixCut::Uniform));
    assert_ne!(uniform, made(4, PrefixCut::Uniform));
    let halves = made(3, PrefixCut::Middle);
    assert_eq!(halves, made(4, PrefixCut::Middle));
    assert!(halves[..halves.len() / 2 - 1].iter().all(|example| example.input_ids.len() == 21));
}

#[test]
fn lengths_without_room_are_named() {
    let (_dir, path, _) = file(20);
    for (max_length, max_target_length, wanted) in [(1, None, "max_length"), (9, Some(1), "max_target_length")] {
        let options = PieceOptions { max_target_length, ..options(max_length) };
        let error = Dataset::cut_prefixes(&path, &options, PrefixCut::Uniform, &NAMED).unwrap_err().to_string();
        assert!(error.starts_with(wanted) && error.contains("beside the end id, got 1"), "{error}");
    }
}
