//! The two streams of an encoder–decoder: `[prompt rows][packed inputs]` for the encoder, and for the decoder the stream of
//! a causal model, whose rows also see the encoder's rows of their own input.
//!
//! An encoder sees its input in full, prompt rows too, so these differ from input to input: every input has a copy of its
//! prompt, and the copies stand first. Where prompt rows see each other only ([`PromptMask::PromptOnly`]), a prompt stands
//! once, as in a causal model. On the decoder, prompt rows see the input by cross-attention: a copy for every input.

use super::{Layout, Packing, Segment, Segments, Sequence};
use crate::error::{Error, Place, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which half of an encoder–decoder a prompt stands in front of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptOn {
    /// The encoder, as Lester et al. 2021 have it.
    #[default]
    Encoder,
    /// The decoder.
    Decoder,
    /// Both: the first half of the prompt's rows on the encoder, the second on the decoder.
    Both,
}

impl PromptOn {
    /// The half of that name: `encoder`, `decoder` or `both`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Encoder, Self::Decoder, Self::Both].into_iter().find(|half| half.name() == name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
            Self::Both => "both",
        }
    }

    /// Rows on the encoder and on the decoder of a prompt of `rows` rows.
    ///
    /// # Errors
    /// [`Error::Input`] for an odd number of rows that are to stand on both.
    pub fn split(self, rows: usize) -> Result<(usize, usize)> {
        match self {
            Self::Encoder => Ok((rows, 0)),
            Self::Decoder => Ok((0, rows)),
            Self::Both if rows.is_multiple_of(2) => Ok((rows / 2, rows / 2)),
            Self::Both => {
                let expected = "an even number of rows, as many on the encoder as on the decoder";
                Err(Error::input(Place::item("prompt"), expected, rows.to_string())
                    .hint("the prompt was tuned on one of them: give --prompt-on encoder or decoder"))
            }
        }
    }

    /// Rows of the prompt tensor that `num_virtual_tokens` makes.
    pub fn rows(self, num_virtual_tokens: usize) -> usize {
        if self == Self::Both { 2 * num_virtual_tokens } else { num_virtual_tokens }
    }
}

/// What an encoder's prompt rows see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptMask {
    /// Prompt and input, as everything in an encoder does.
    #[default]
    Full,
    /// The prompt alone. Its rows are then the same for every input and are computed once: an option of the paper's code.
    PromptOnly,
}

impl PromptMask {
    /// The mask of that name: `full` or `prompt_only`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Full, Self::PromptOnly].into_iter().find(|mask| mask.name() == name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::PromptOnly => "prompt_only",
        }
    }
}

/// How a prompt enters an encoder–decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PromptPlace {
    /// Which half it stands in front of.
    pub on: PromptOn,
    /// What its rows on the encoder see.
    pub mask: PromptMask,
}

/// What an encoder reads.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Which prompt it follows.
    pub prompt: usize,
    /// Its tokens.
    pub ids: &'a [u32],
}

/// The encoder's stream.
#[derive(Debug, Clone)]
pub struct EncoderLayout {
    /// The row of the prompt tensor that each of the first rows is.
    pub prompt_index: Vec<usize>,
    /// Token of each row after them.
    pub ids: Vec<u32>,
    /// Position of every row: prompt rows 0.., then the input counted on from them.
    pub positions: Vec<usize>,
    /// What attention sees.
    pub all: Segments,
}

/// Which rows of the encoder the rows of the decoder see.
#[derive(Debug, Clone)]
pub struct CrossLayout {
    /// Where every row of the decoder is a query.
    pub all: Segments,
    /// Where only scored rows are.
    pub scored: Segments,
}

/// The rows of one input in the encoder's stream.
struct Spans {
    prompt: Range<usize>,
    text: Range<usize>,
}

impl Spans {
    fn all(&self) -> Vec<Range<usize>> {
        [&self.prompt, &self.text].into_iter().filter(|span| !span.is_empty()).cloned().collect()
    }
}

impl Layout {
    /// Packs `inputs` for the encoder and `sequences` for the decoder, with prompts of `prompt_rows` rows each, one after
    /// another in one tensor. A sequence's `prompt` is the number of the input that it belongs to.
    ///
    /// # Errors
    /// [`Error::Op`] for a prompt, input or parent that does not exist, or a label with no row before it to predict it from;
    /// [`Error::Input`] for an input without rows, or a prompt that cannot stand on both halves.
    pub fn encoder_decoder(
        prompt_rows: &[usize],
        place: PromptPlace,
        inputs: &[Input<'_>],
        sequences: &[Sequence<'_>],
    ) -> Result<Self> {
        let mut prompts = Vec::with_capacity(prompt_rows.len());
        let mut start = 0;
        for &rows in prompt_rows {
            let (encoder, decoder) = place.on.split(rows)?;
            prompts.push((start..start + encoder, start + encoder..start + encoder + decoder));
            start += rows;
        }
        let of_input = inputs.iter().map(|input| {
            let found = prompts.get(input.prompt);
            found.ok_or_else(|| {
                Error::op("layout", format!("a prompt below {}", prompts.len()), input.prompt.to_string())
            })
        });
        let of_input = of_input.collect::<Result<Vec<_>>>()?;

        let encoder_prompts: Vec<Range<usize>> = match place.mask {
            PromptMask::Full => of_input.iter().map(|(encoder, _)| encoder.clone()).collect(),
            PromptMask::PromptOnly => prompts.iter().map(|(encoder, _)| encoder.clone()).collect(),
        };
        let (encoder, spans) = encoder(&encoder_prompts, place.mask, inputs)?;

        let decoder_rows: Vec<usize> = of_input.iter().map(|(_, decoder)| decoder.len()).collect();
        let mut pack = Packing::new(&decoder_rows);
        for (index, sequence) in sequences.iter().enumerate() {
            pack.add(index, sequence)?;
        }
        let mut layout = pack.finish()?;
        layout.prompt_index = Some(of_input.iter().flat_map(|(_, decoder)| decoder.clone()).collect());
        let of_segment = (0..inputs.len()).chain(sequences.iter().map(|sequence| sequence.prompt));
        let rows = encoder.positions.len();
        layout.cross = Some(CrossLayout {
            all: cross(&layout.all, of_segment, &spans, rows)?,
            scored: cross(&layout.scored, sequences.iter().map(|sequence| sequence.prompt), &spans, rows)?,
        });
        layout.encoder = Some(encoder);
        Ok(layout)
    }
}

/// The encoder's stream, and the rows of each input in it. `prompts` are the rows of the prompt tensor that stand first: a
/// copy for each input, or each prompt once.
fn encoder(prompts: &[Range<usize>], mask: PromptMask, inputs: &[Input<'_>]) -> Result<(EncoderLayout, Vec<Spans>)> {
    let mut positions: Vec<usize> = Vec::new();
    let mut copies = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        copies.push(positions.len()..positions.len() + prompt.len());
        positions.extend(0..prompt.len());
    }
    let mut ids = Vec::new();
    let mut spans = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.iter().enumerate() {
        let copy = copies[if mask == PromptMask::Full { index } else { input.prompt }].clone();
        let text = positions.len()..positions.len() + input.ids.len();
        if copy.is_empty() && text.is_empty() {
            let place = Place::item(format!("example {index}"));
            return Err(Error::input(place, "input tokens, as there is no prompt on the encoder", "an empty input"));
        }
        positions.extend(copy.len()..copy.len() + text.len());
        ids.extend(input.ids);
        spans.push(Spans { prompt: copy, text });
    }
    let mut segments = Vec::with_capacity(copies.len() + spans.len());
    for (index, copy) in copies.iter().enumerate() {
        let context = match mask {
            PromptMask::Full => Some(spans[index].text.clone()).filter(|text| !text.is_empty()).into_iter().collect(),
            PromptMask::PromptOnly => Vec::new(),
        };
        segments.push(Segment { queries: copy.clone(), context, own: copy.clone() });
    }
    for Spans { prompt, text } in &spans {
        let context = Some(prompt.clone()).filter(|prompt| !prompt.is_empty()).into_iter().collect();
        segments.push(Segment { queries: text.clone(), context, own: text.clone() });
    }
    let visible = segments.iter().flat_map(|segment| std::iter::repeat_n(segment.own.len(), segment.queries.len()));
    let visible = visible.collect();
    let all = Segments::new(segments, visible, positions.len())?;
    let prompt_index = prompts.iter().flat_map(Clone::clone).collect();
    Ok((EncoderLayout { prompt_index, ids, positions, all }, spans))
}

/// The queries of `segments`, which see the encoder's rows of their input in full. `of_segment` says whose they are.
fn cross(
    segments: &Segments,
    of_segment: impl Iterator<Item = usize>,
    spans: &[Spans],
    key_rows: usize,
) -> Result<Segments> {
    let segments = segments.as_slice().iter().zip(of_segment).map(|(segment, input)| Segment {
        queries: segment.queries.clone(),
        context: spans.get(input).map(Spans::all).unwrap_or_default(),
        own: 0..0,
    });
    let segments: Vec<Segment> = segments.collect();
    let queries = segments.last().map_or(0, |segment| segment.queries.end);
    Segments::new(segments, vec![0; queries], key_rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: PromptPlace = PromptPlace { on: PromptOn::Both, mask: PromptMask::Full };

    fn inputs() -> [Input<'static>; 2] {
        [Input { prompt: 1, ids: &[10, 11] }, Input { prompt: 0, ids: &[12] }]
    }

    fn sequences() -> [Sequence<'static>; 2] {
        [Sequence::example(0, &[0, 20, 21], 1), Sequence::example(1, &[0, 22], 1)]
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "a context may have one span")]
    fn every_input_has_a_copy_of_its_prompt_and_sees_it_and_itself_in_full() {
        let layout = Layout::encoder_decoder(&[2, 4], BOTH, &inputs(), &sequences()).unwrap();
        let encoder = layout.encoder.unwrap();
        // Prompt 0 is rows 0..2 of the tensor, prompt 1 rows 2..6; half of each stands on the encoder.
        assert_eq!(encoder.prompt_index, [2, 3, 0]);
        assert_eq!(layout.prompt_index.unwrap(), [4, 5, 1]);
        assert_eq!(encoder.ids, [10, 11, 12]);
        assert_eq!(encoder.positions, [0, 1, 0, 2, 3, 1]);
        let seen = |segments: &Segments, index: usize| {
            let Segment { queries, context, own } = segments.as_slice()[index].clone();
            (queries, context, own)
        };
        assert_eq!(seen(&encoder.all, 0), (0..2, vec![3..5], 0..2));
        assert_eq!(seen(&encoder.all, 1), (2..3, vec![5..6], 2..3));
        assert_eq!(seen(&encoder.all, 2), (3..5, vec![0..2], 3..5));
        assert_eq!(encoder.all.visible(), [2, 2, 1, 2, 2, 1]);
        assert_eq!(layout.ids, [0, 20, 0]);
        assert_eq!(layout.positions, [0, 1, 0, 2, 3, 1]);
        assert_eq!(layout.labels, [20, 21, 22]);
        assert_eq!(layout.scored_rows, [3, 4, 5]);
        let cross = layout.cross.unwrap();
        assert_eq!(seen(&cross.all, 0), (0..2, vec![0..2, 3..5], 0..0));
        assert_eq!(seen(&cross.all, 3), (5..6, vec![2..3, 5..6], 0..0));
        assert_eq!(seen(&cross.scored, 0), (0..2, vec![0..2, 3..5], 0..0));
    }

    #[test]
    fn prompt_rows_that_see_no_input_stand_once() {
        let place = PromptPlace { on: PromptOn::Encoder, mask: PromptMask::PromptOnly };
        let layout = Layout::encoder_decoder(&[2, 3], place, &inputs(), &sequences()).unwrap();
        let encoder = layout.encoder.unwrap();
        assert_eq!(encoder.prompt_index, [0, 1, 2, 3, 4]);
        assert_eq!(encoder.positions, [0, 1, 0, 1, 2, 3, 4, 2]);
        assert!(encoder.all.as_slice()[0].context.is_empty());
        assert_eq!(encoder.all.as_slice()[2].context, vec![2..5]);
        assert_eq!(layout.cross.unwrap().scored.as_slice()[1].context, vec![0..2, 7..8]);
        assert!(layout.prompt_index.unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        let refused = |prompts: &[usize], inputs: &[Input<'_>], place| {
            Layout::encoder_decoder(prompts, place, inputs, &sequences()).unwrap_err().to_string()
        };
        assert!(refused(&[3, 3], &inputs(), BOTH).contains("even number of rows"));
        assert!(refused(&[2], &inputs(), BOTH).contains("a prompt below 1"));
        let empty = [Input { prompt: 0, ids: &[] }; 2];
        let on_decoder = PromptPlace { on: PromptOn::Decoder, mask: PromptMask::Full };
        assert!(refused(&[2], &empty, on_decoder).contains("no prompt on the encoder"));
    }
}
