//! Text to ids, the same way for training rows and for the labels an evaluation ranks.

use super::Encode;
use super::example::ExampleOptions;
use crate::error::Place;
use crate::{Error, Result};

/// Turns an input and its target into ids that follow each other in one sequence.
///
/// The two are tokenised apart, because at inference the input stands alone; the separator between them belongs to the
/// target, because a byte-level BPE has a word's leading space in the word's token (`" cat"` is one token, `"cat"`
/// another). Where they are sequences of their own, as an encoder–decoder has them, each stands alone.
pub struct TextEncoder<'a> {
    tokenizer: &'a dyn Encode,
    separator: String,
    bos: Option<u32>,
    eos: Option<u32>,
    /// What the tokenizer puts behind an input that is a sequence of its own.
    input_end: Option<u32>,
    /// Whether input and target are sequences of their own.
    is_apart: bool,
    marks_starts: bool,
}

impl<'a> TextEncoder<'a> {
    /// Prepares `tokenizer` for `options`, of which the separator and `append_eos` matter here.
    ///
    /// # Errors
    /// [`Error::Config`] if `append_eos` is asked of a tokenizer without an end id; [`Error::Input`] if the tokenizer
    /// says that it begins texts with an id and has none; whatever the tokenizer itself refuses.
    pub fn new(tokenizer: &'a dyn Encode, options: &ExampleOptions) -> Result<Self> {
        let bos = if tokenizer.adds_bos() {
            Some(tokenizer.bos_id().ok_or_else(|| {
                Error::input(Place::item("tokenizer"), "a beginning id, as it asks for one before every text", "none")
            })?)
        } else {
            None
        };
        let eos = if options.append_eos {
            Some(tokenizer.eos_id().ok_or_else(|| {
                Error::config(Place::item("append_eos"), "a tokenizer with an end id", "one without")
                    .hint("set append_eos to false")
            })?)
        } else {
            None
        };
        let marks_starts = marks_starts(tokenizer)?;
        let is_apart = options.max_target_length.is_some();
        let input_end = tokenizer.eos_id().filter(|_| is_apart && tokenizer.adds_eos());
        Ok(Self { tokenizer, separator: options.separator.clone(), bos, eos, input_end, is_apart, marks_starts })
    }

    /// The ids of an input: the beginning id where the model has one, then the text's, and the end id of an input that is a
    /// sequence of its own. May be empty.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn input(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        if !text.is_empty() {
            ids.extend(self.tokenizer.encode(text)?);
        }
        ids.extend(self.input_end);
        Ok(ids)
    }

    /// Whether `input` begins every sequence with an id that is no part of its text.
    pub fn has_bos(&self) -> bool {
        self.bos.is_some()
    }

    /// The ids of `target` as it follows `input`, the separator and the end id (if asked for) among them.
    ///
    /// The separator is left out where the input ends or the target begins with white space. It is there for an empty
    /// input, so that a label has the same ids in every row.
    ///
    /// # Errors
    /// [`Error::Input`] for a target that is empty or gives no id; what the tokenizer refuses.
    pub fn target(&self, input: &str, target: &str) -> Result<Vec<u32>> {
        if target.is_empty() {
            return Err(Error::input(Place::default(), "a target of at least one token", "an empty text")
                .hint("give the row a label, or remove it"));
        }
        let spaced = self.is_apart || input.ends_with(char::is_whitespace) || target.starts_with(char::is_whitespace);
        let joined = if spaced { target.to_owned() } else { format!("{}{target}", self.separator) };
        let text = if self.is_apart { target } else { self.continuation(&joined) };
        let mut ids = self.tokenizer.encode(text)?;
        if ids.is_empty() {
            return Err(Error::input(
                Place::default(),
                "a target of at least one token",
                format!("none for {target:?}"),
            )
            .hint("the tokenizer drops this text: give the row another label, or remove it"));
        }
        ids.extend(self.eos);
        Ok(ids)
    }

    /// What to tokenise so that the ids are those `text` has behind other text.
    fn continuation<'t>(&self, text: &'t str) -> &'t str {
        match text.strip_prefix(' ') {
            Some(rest) if self.marks_starts && !rest.is_empty() => rest,
            _ => text,
        }
    }
}

/// Whether the tokenizer marks the start of every text as if a space stood before it, as SentencePiece models do. Then
/// the ids of `" cat"` behind other text are those of `"cat"` alone, and tokenising `" cat"` gives a space too many.
fn marks_starts(tokenizer: &dyn Encode) -> Result<bool> {
    let front = tokenizer.encode("b")?;
    let both = tokenizer.encode("b a")?;
    let Some(behind) = both.strip_prefix(front.as_slice()) else { return Ok(false) };
    Ok(!behind.is_empty() && behind == tokenizer.encode("a")? && behind != tokenizer.encode(" a")?)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Tokenizers small enough to know every id: a token is a character, or a space with the character behind it
    /// (1000 + the character), or `▁` marks.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Kind {
        /// `" x"` is one token, as in GPT-2.
        Bytes,
        /// Every text begins as if a space stood before it, as in Llama.
        Marks,
        /// Every character is a token, spaces too.
        Chars,
    }

    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Toy {
        pub(crate) kind: Kind,
        pub(crate) bos: Option<u32>,
        pub(crate) adds_bos: bool,
        pub(crate) eos: Option<u32>,
    }

    pub(crate) const TOY: Toy = Toy { kind: Kind::Bytes, bos: None, adds_bos: false, eos: Some(2) };

    impl Encode for Toy {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            if text.contains('\u{7}') {
                return Err(Error::input(Place::default(), "text", "a bell"));
            }
            let marked = if self.kind == Kind::Marks { format!(" {text}") } else { text.to_owned() };
            let mut ids = Vec::new();
            let mut space = false;
            for c in marked.chars().filter(|&c| c != '\u{8}') {
                match (c, self.kind) {
                    (' ', Kind::Bytes | Kind::Marks) => {
                        ids.extend(space.then_some(32));
                        space = true;
                    }
                    _ => ids.push(c as u32 + if std::mem::take(&mut space) { 1000 } else { 0 }),
                }
            }
            ids.extend(space.then_some(32));
            Ok(ids)
        }
        fn eos_id(&self) -> Option<u32> {
            self.eos
        }
        fn bos_id(&self) -> Option<u32> {
            self.bos
        }
        fn adds_bos(&self) -> bool {
            self.adds_bos
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Kind, TOY, Toy};
    use super::*;

    fn encoder(toy: &Toy) -> TextEncoder<'_> {
        TextEncoder::new(toy, &ExampleOptions::default()).unwrap()
    }

    #[test]
    fn the_separator_belongs_to_the_target() {
        let encoder = encoder(&TOY);
        assert_eq!(encoder.input("ab").unwrap(), [97, 98]);
        assert_eq!(encoder.target("ab", "c").unwrap(), [1099]);
        assert_eq!(encoder.target("", "c").unwrap(), [1099], "the same for an empty input");
        assert_eq!(encoder.target("ab ", "c").unwrap(), [99], "the input ends with a space");
        assert_eq!(encoder.target("ab\n", "c").unwrap(), [99], "the input ends with a line break");
        assert_eq!(encoder.target("ab", "\nc").unwrap(), [10, 99], "the target begins with a line break");
        let options = ExampleOptions { separator: "=>".into(), ..Default::default() };
        let encoder = TextEncoder::new(&TOY, &options).unwrap();
        assert_eq!(encoder.target("ab", "c").unwrap(), [61, 62, 99]);
    }

    #[test]
    fn one_space_only_where_the_tokenizer_marks_starts() {
        let marks = Toy { kind: Kind::Marks, ..TOY };
        assert!(marks_starts(&marks).unwrap());
        let encoder = encoder(&marks);
        assert_eq!(encoder.target("ab", "c").unwrap(), [1099]);
        assert_eq!(encoder.target("ab", "\nc").unwrap(), marks.encode("\nc").unwrap());
        for kind in [Kind::Bytes, Kind::Chars] {
            assert!(!marks_starts(&Toy { kind, ..TOY }).unwrap(), "{kind:?}");
        }
        let chars = Toy { kind: Kind::Chars, ..TOY };
        assert_eq!(self::encoder(&chars).target("ab", "c").unwrap(), [32, 99]);
    }

    #[test]
    fn beginning_and_end_ids() {
        let toy = Toy { bos: Some(1), adds_bos: true, ..TOY };
        let options = ExampleOptions { append_eos: true, ..Default::default() };
        let encoder = TextEncoder::new(&toy, &options).unwrap();
        assert!(encoder.has_bos());
        assert_eq!(encoder.input("a").unwrap(), [1, 97]);
        assert_eq!(encoder.input("").unwrap(), [1]);
        assert_eq!(encoder.target("a", "b").unwrap(), [1098, 2]);
        let silent = Toy { bos: Some(1), ..TOY };
        assert_eq!(self::encoder(&silent).input("a").unwrap(), [97], "an id it has but does not add");
    }

    #[test]
    fn ids_that_are_asked_for_and_not_there_are_refused() {
        let options = ExampleOptions { append_eos: true, ..Default::default() };
        let error = TextEncoder::new(&Toy { eos: None, ..TOY }, &options).err().unwrap();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("append_eos"), "{error}");
        let error = TextEncoder::new(&Toy { adds_bos: true, ..TOY }, &Default::default()).err().unwrap();
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn a_target_without_a_token_is_refused() {
        assert!(encoder(&TOY).target("a", "").unwrap_err().to_string().contains("an empty text"));
        let options = ExampleOptions { separator: String::new(), append_eos: true, ..Default::default() };
        let encoder = TextEncoder::new(&TOY, &options).unwrap();
        let error = encoder.target("a", "\u{8}").unwrap_err().to_string();
        assert!(error.contains("a target of at least one token, got none"), "{error}");
    }
}
