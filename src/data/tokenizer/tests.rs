use super::*;
use crate::weights::gguf::build::Builder;
use std::fs;

const ODD_TEXTS: &[&str] = &[
    "",
    " ",
    "   ",
    "\n\n\t \r\n",
    "Hello, world! It's 2024, isn't it?",
    "  leading and trailing  ",
    "naïve café — “quotes” … ß ﬁ",
    "日本語のテキスト 한국어 العربية",
    "🏳️‍🌈 👩‍👩‍👧‍👦 é e\u{301}",
    "\u{0}\u{1}\u{7f}\u{feff}\u{fffd}",
    "<s> </s> <|endoftext|> <unk> <0x0A>",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "▁ ▁▁ Ġ Ċ",
];

fn opened(builder: &Builder) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, builder.bytes()).unwrap();
    let weights = Weights::open(&path)?;
    Tokenizer::open(&path, &weights).map(Option::unwrap)
}

/// The character GPT-2 writes for a byte.
fn visible(byte: u8) -> String {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = if plain(byte) { u32::from(byte) } else { 256 + (0..byte).filter(|&b| !plain(b)).count() as u32 };
    char::from_u32(code).unwrap().to_string()
}

/// All bytes, a few merges, two control tokens and one of the user's.
fn byte_level(pre: Option<&str>, merges: &[&str]) -> Builder {
    let mut tokens: Vec<String> = (0..=255).map(visible).collect();
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    let mut kinds = vec![1; tokens.len()];
    tokens.extend(["<|endoftext|>", "<|im_end|>", "<tool>"].map(str::to_owned));
    kinds.extend([3, 3, 4]);
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let last = tokens.len() as u32;
    let builder = Builder::new()
        .str("tokenizer.ggml.model", "gpt2")
        .strings("tokenizer.ggml.tokens", &tokens)
        .ints("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", merges)
        .u32("tokenizer.ggml.bos_token_id", last - 3)
        .u32("tokenizer.ggml.eos_token_id", last - 2);
    match pre {
        Some(pre) => builder.str("tokenizer.ggml.pre", pre),
        None => builder,
    }
}

const MERGES: &[&str] = &["h e", "l l", "he ll", "Ġ hell", "1 2", "12 3"];

fn words(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text).unwrap().into_iter().map(|id| tokenizer.token(id).unwrap()).collect()
}

#[test]
fn byte_level_bpe_by_pre_tokenizer() {
    let split = |pre| words(&opened(&byte_level(pre, MERGES)).unwrap(), "hell hell 1234");
    let rest = ["hell", "Ġhell", "Ġ"];
    assert_eq!(split(Some("smollm")), [&rest[..], &["1", "2", "3", "4"]].concat());
    assert_eq!(split(Some("qwen2")), [&rest[..], &["1", "2", "3", "4"]].concat());
    assert_eq!(split(Some("llama-bpe")), [&rest[..], &["123", "4"]].concat());
    assert_eq!(split(Some("gpt-2")), [&rest[..], &["123", "4"]].concat());
    assert_eq!(split(None), split(Some("gpt-2")));
    let error = opened(&byte_level(Some("deepseek-r1-qwen"), MERGES)).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.pre") && error.contains("got deepseek-r1-qwen"), "{error}");
}

#[test]
fn byte_level_text_comes_back() {
    for pre in ["smollm", "gpt-2", "llama-bpe"] {
        let tokenizer = opened(&byte_level(Some(pre), MERGES)).unwrap();
        for text in ODD_TEXTS {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), false).unwrap(), *text, "{pre}");
        }
    }
}

#[test]
fn special_tokens_in_a_text_are_recognised_and_can_be_left_out() {
    let tokenizer = opened(&byte_level(Some("smollm"), MERGES)).unwrap();
    let (bos, eos) = (tokenizer.bos_id().unwrap(), tokenizer.eos_id().unwrap());
    assert_eq!(tokenizer.token(bos).unwrap(), "<|endoftext|>");
    assert!(tokenizer.is_special(bos) && tokenizer.is_special(eos) && !tokenizer.is_special(0));
    let ids = tokenizer.encode("hell<|im_end|><tool>").unwrap();
    assert_eq!(ids[1..], [eos, eos + 1]);
    assert!(!tokenizer.is_special(eos + 1));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hell<tool>");
    assert_eq!(tokenizer.vocab_size(), eos as usize + 2);
    assert_eq!(tokenizer.decode(&[1_000_000, ids[0]], false).unwrap(), "hell");
    assert!(tokenizer.token(1_000_000).is_none() && !tokenizer.adds_bos() && !tokenizer.adds_eos());
    assert!(opened(&byte_level(Some("llama-bpe"), MERGES)).unwrap().adds_bos());
    let told = byte_level(Some("smollm"), MERGES).bool("tokenizer.ggml.add_bos_token", true);
    assert!(opened(&told).unwrap().adds_bos());
}

/// A SentencePiece vocabulary: `<unk>`, `<s>`, `</s>`, all bytes if asked for, then `pieces` with falling scores.
fn sentence_piece(bytes: bool, pieces: &[(&str, i32)]) -> Builder {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut kinds = vec![2, 3, 3];
    if bytes {
        tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
        kinds.extend([6; 256]);
    }
    let first = tokens.len();
    tokens.extend(pieces.iter().map(|(piece, _)| (*piece).to_owned()));
    kinds.extend(pieces.iter().map(|(_, kind)| kind));
    let scores: Vec<f32> =
        (0..tokens.len()).map(|id| if id < first { 0.0 } else { first as f32 - id as f32 }).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    Builder::new()
        .str("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .ints("tokenizer.ggml.token_type", &kinds)
        .floats("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

const PIECES: &[(&str, i32)] =
    &[("aa", 1), ("▁aa", 1), ("aaa", 1), ("bc", 5), ("bcd", 1), ("▁", 1), ("a", 1), ("b", 1), ("c", 1), ("d", 1)];

#[test]
fn pieces_join_by_score_and_then_from_the_left() {
    let tokenizer = opened(&sentence_piece(true, PIECES)).unwrap();
    assert_eq!(words(&tokenizer, "aaaa"), ["▁aa", "aa"]);
    assert_eq!(words(&tokenizer, "daaa"), ["▁", "d", "aaa"]);
    // An unused piece leads on to others, but is taken apart where it is left over.
    assert_eq!(words(&tokenizer, "bcd"), ["▁", "bcd"]);
    assert_eq!(words(&tokenizer, "bcb"), ["▁", "b", "c", "b"]);
    assert_eq!(words(&tokenizer, "é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(words(&tokenizer, "a</s>a"), ["▁", "a", "</s>", "▁", "a"]);
    assert!(tokenizer.adds_bos() && tokenizer.encode("").unwrap().is_empty());
}

#[test]
fn sentence_piece_text_comes_back() {
    let tokenizer = opened(&sentence_piece(true, PIECES)).unwrap();
    // Special tokens swallow the space mark after them, and the mark itself is a space to SentencePiece.
    for text in ODD_TEXTS.iter().filter(|text| !text.contains(['▁', '<'])) {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), false).unwrap(), *text);
    }
}

#[test]
fn without_bytes_the_unknown_stands_in_or_it_is_an_error() {
    let tokenizer = opened(&sentence_piece(false, PIECES)).unwrap();
    assert_eq!(words(&tokenizer, "aaéß"), ["▁aa", "<unk>"]);
    let none = Builder::new()
        .str("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &["a"])
        .floats("tokenizer.ggml.scores", &[0.0]);
    assert!(opened(&none).unwrap().encode("b").is_err());
}

#[test]
fn broken_descriptions_are_refused_by_key() {
    let base = || Builder::new().str("tokenizer.ggml.model", "gpt2");
    let tokens = || base().strings("tokenizer.ggml.tokens", &["a", "b"]);
    for (builder, says) in [
        (Builder::new().str("tokenizer.ggml.model", "bert"), "got bert"),
        (base(), "tokenizer.ggml.tokens"),
        (base().u32("tokenizer.ggml.tokens", 1), "an array"),
        (base().ints("tokenizer.ggml.tokens", &[1]), "strings"),
        (base().strings("tokenizer.ggml.tokens", &["a", "a"]), "each token once"),
        (tokens(), "tokenizer.ggml.merges"),
        (tokens().ints("tokenizer.ggml.token_type", &[1]), "2 integers"),
        (tokens().ints("tokenizer.ggml.token_type", &[1, 9]), "types from 1 to 6"),
        (tokens().strings("tokenizer.ggml.merges", &["ab"]), "two tokens"),
        (tokens().strings("tokenizer.ggml.merges", &["a z"]), "vocabulary"),
        (tokens().strings("tokenizer.ggml.merges", &[]).u32("tokenizer.ggml.bos_token_id", 2), "below 2"),
        (sentence_piece(true, PIECES).bool("tokenizer.ggml.remove_extra_whitespaces", true), "whitespaces"),
        (tokens().str("tokenizer.ggml.pre", "x"), "tokenizer.ggml"),
    ] {
        let error = opened(&builder).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains(says), "{error}");
    }
}

/// A `tokenizer.json` over a few words, with `more` fields.
fn json(more: &str) -> String {
    format!(
        r#"{{"version":"1.0","added_tokens":[
            {{"id":3,"content":"</s>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}},
            {{"id":4,"content":"<s>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}}],
            "pre_tokenizer":{{"type":"WhitespaceSplit"}},{more}
            "model":{{"type":"WordLevel","vocab":{{"<unk>":0,"a":1,"b":2,"</s>":3,"<s>":4}},"unk_token":"<unk>"}}}}"#
    )
}

const BOTH: &str = r#""post_processor":{"type":"TemplateProcessing",
    "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}],
    "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
    "special_tokens":{"<s>":{"id":"<s>","ids":[4],"tokens":["<s>"]},"</s>":{"id":"</s>","ids":[3],"tokens":["</s>"]}}},"#;

fn from_json(more: &str, beside: &[(&str, &str)]) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, json(more)).unwrap();
    beside.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    Tokenizer::from_file(&path)
}

#[test]
fn begin_and_end_come_from_the_post_processor_and_the_files_beside() {
    let plain = from_json("", &[]).unwrap();
    assert_eq!((plain.bos_id(), plain.eos_id(), plain.adds_bos(), plain.adds_eos()), (None, None, false, false));
    let both = from_json(BOTH, &[]).unwrap();
    assert_eq!((both.bos_id(), both.eos_id(), both.adds_bos(), both.adds_eos()), (Some(4), Some(3), true, true));
    assert_eq!(both.encode("a b").unwrap(), [1, 2]);
    let told =
        from_json(BOTH, &[("tokenizer_config.json", r#"{"add_bos_token":false,"bos_token":{"content":"<s>"}}"#)]);
    assert!(!told.unwrap().adds_bos());
    let numbered = from_json("", &[("config.json", r#"{"eos_token_id":[3,1],"bos_token_id":4}"#)]).unwrap();
    assert_eq!((numbered.bos_id(), numbered.eos_id()), (Some(4), Some(3)));
    let error = from_json("", &[("config.json", "{")]).unwrap_err();
    assert!(error.to_string().contains("config.json: expected JSON"), "{error}");
}

#[test]
fn truncation_and_padding_in_the_file_do_not_cut_the_text() {
    let more = r#""truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},
        "padding":{"strategy":{"Fixed":8},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"x"},"#;
    assert_eq!(from_json(more, &[]).unwrap().encode("a b a b").unwrap(), [1, 2, 1, 2]);
}

#[test]
fn a_tokenizer_as_t5s_says_what_transformers_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/t5_tokenizer");
    let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id(), tokenizer.bos_id()), (48, Some(1), None));
    assert!(tokenizer.adds_eos() && !tokenizer.adds_bos());
    for index in 0..10 {
        assert_eq!(tokenizer.id(&format!("<extra_id_{index}>")), Some(47 - index));
    }
    let texts: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("texts.json")).unwrap()).unwrap();
    let texts = texts.as_array().unwrap();
    assert!(texts.len() >= 12);
    for row in texts {
        let text = row["text"].as_str().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(serde_json::json!(ids), row["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), row["decoded"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), row["without_special"], "{text:?}");
    }
}

#[test]
fn broken_files_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    assert_eq!(Tokenizer::from_file(&path).unwrap_err().exit_code(), 4);
    let whole = json(BOTH);
    for text in ["", "{}", "null", "[1]", &"[".repeat(10_000), &whole[..whole.len() / 2]] {
        fs::write(&path, text).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn a_panic_in_the_library_is_an_error() {
    let error = contained::<()>(Path::new("t.json"), "a tokenizer", || panic!("oh {}", "no")).unwrap_err();
    assert!(error.to_string().starts_with("t.json: expected a tokenizer") && error.to_string().contains("oh no"));
}

#[test]
fn it_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    shared(&from_json("", &[]).unwrap());
}

/// SentencePiece's model in `tests/golden/spm_unigram.json`, as llama.cpp writes T5's.
fn golden_unigram() -> (serde_json::Value, Builder) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/spm_unigram.json");
    let golden: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let pieces = golden["pieces"].as_array().unwrap();
    let tokens: Vec<&str> = pieces.iter().map(|piece| piece[0].as_str().unwrap()).collect();
    let scores: Vec<f32> = pieces.iter().map(|piece| piece[1].as_f64().unwrap() as f32).collect();
    let kinds: Vec<i32> = pieces.iter().map(|piece| piece[2].as_i64().unwrap() as i32).collect();
    let builder = Builder::new()
        .str("tokenizer.ggml.model", "t5")
        .strings("tokenizer.ggml.tokens", &tokens)
        .floats("tokenizer.ggml.scores", &scores)
        .ints("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.eos_token_id", 1);
    (golden, builder)
}

/// The compiled rules of the golden model, as unsigned or as signed bytes.
fn rules(golden: &serde_json::Value, is_signed: bool) -> Vec<i32> {
    let hex = golden["charsmap"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes = (0..hex.len()).step_by(2).map(byte);
    bytes.map(|byte| if is_signed { i32::from(byte as i8) } else { i32::from(byte) }).collect()
}

#[test]
fn a_unigram_model_in_gguf_gives_sentence_pieces_ids() {
    let (golden, builder) = golden_unigram();
    for is_signed in [false, true] {
        let rules = rules(&golden, is_signed);
        let tokenizer = opened(&builder.clone().ints("tokenizer.ggml.precompiled_charsmap", &rules)).unwrap();
        assert!(tokenizer.adds_eos() && !tokenizer.adds_bos());
        for case in golden["texts"].as_array().unwrap() {
            let (text, want) = (case[0].as_str().unwrap(), &case[1]);
            assert_eq!(serde_json::json!(tokenizer.encode(text).unwrap()), *want, "{text:?}");
        }
        // As transformers has it, and SentencePiece does not: no space of its own before a sentinel, ends are recognised.
        assert_eq!(words(&tokenizer, "<extra_id_0> times"), ["<extra_id_0>", "▁t", "i", "m", "e", "s"]);
        assert_eq!(words(&tokenizer, "is <extra_id_1></s>"), ["▁i", "s", "<extra_id_1>", "</s>"]);
        let ids = tokenizer.encode("two rows are near").unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "two rows are near");
        for text in ODD_TEXTS {
            tokenizer.encode(text).unwrap();
        }
    }
    // Without rules a wide letter is unknown, and with spaces as they are every one is a mark.
    let plain = opened(&builder.clone().bool("tokenizer.ggml.remove_extra_whitespaces", false)).unwrap();
    assert_eq!(words(&plain, "\u{ff21}  is"), ["▁", "<unk>", "▁", "▁i", "s"]);
    let bare = opened(&builder.clone().bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(words(&bare, "is is"), ["i", "s", "▁i", "s"]);

    for (broken, word) in [
        (builder.clone().ints("tokenizer.ggml.precompiled_charsmap", &[1, 2, 3]), "SentencePiece"),
        (builder.clone().ints("tokenizer.ggml.precompiled_charsmap", &[300]), "300"),
        (builder.clone().strings("tokenizer.ggml.precompiled_charsmap", &["a"]), "bytes"),
        (builder.bool("tokenizer.ggml.treat_whitespace_as_suffix", true), "false"),
    ] {
        let error = opened(&broken).err().unwrap();
        assert!(error.exit_code() == 4 && error.to_string().contains(word), "{word}: {error}");
    }
}
