//! The stream's layout: which rows stand where, and which keys each query sees.
//!
//! A stream is `[prompt rows][rows of example 1][rows of example 2]…`, packed without padding. An example's last label
//! token is not a row: nothing reads its output. Prompt rows stand once, however many examples follow.
//!
//! Attention is described by [`Segment`]s: some query rows that see a few spans of keys in full (the *context*: the
//! prompt, an input shared by several continuations, a cache) and then a number of keys of their *own* span. A causal
//! model's prompt is a segment without context; an example is a segment whose context is its prompt; queries trimmed to
//! label rows are a segment with fewer queries; several prompts are several contexts.

mod encoder_decoder;

pub use encoder_decoder::{CrossLayout, EncoderLayout, Input, PromptMask, PromptOn, PromptPlace};

use crate::error::{Error, Result};
use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Query rows that see the same keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the query tensor.
    pub queries: Range<usize>,
    /// Rows of the key tensor that every query of the segment sees, in the order they are added up.
    pub context: Vec<Range<usize>>,
    /// Rows of the key tensor of which query `i` sees the first [`Segments::visible`]`[i]`.
    pub own: Range<usize>,
}

/// The segments of one attention, checked: query ranges follow one another without a gap, own spans do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments {
    segments: Vec<Segment>,
    visible: Vec<usize>,
    key_rows: usize,
    derived: Derived,
}

/// What an op makes of segments once, to be used in every layer. It is no part of their value.
#[derive(Clone, Default)]
struct Derived(Arc<OnceLock<Arc<dyn Any + Send + Sync>>>);

impl PartialEq for Derived {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Derived {}

impl std::fmt::Debug for Derived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Derived")
    }
}

impl Segments {
    /// Checks and keeps `segments` over `key_rows` keys, where query `i` sees `visible[i]` keys of its own span.
    ///
    /// # Errors
    /// [`Error::Op`] if a range is out of bounds, queries have gaps, own spans overlap or are out of order, or a query
    /// sees more keys than its span has, or none at all.
    pub fn new(segments: Vec<Segment>, visible: Vec<usize>, key_rows: usize) -> Result<Self> {
        let wrong = |what: &str, segment: &Segment| Err(Error::op("attention", what, format!("{segment:?}")));
        let (mut next_query, mut own_end) = (0, 0);
        for segment in &segments {
            let Segment { queries, context, own } = segment;
            if queries.start != next_query || queries.end < queries.start || queries.end > visible.len() {
                return wrong("query ranges that follow one another", segment);
            }
            next_query = queries.end;
            if own.end < own.start || own.end > key_rows {
                return wrong(&format!("an own span within {key_rows} keys"), segment);
            }
            if !own.is_empty() {
                if own.start < own_end {
                    return wrong("own spans in order, without overlap", segment);
                }
                own_end = own.end;
            }
            if context.iter().any(|span| span.end < span.start || span.end > key_rows) {
                return wrong(&format!("context spans within {key_rows} keys"), segment);
            }
            let in_context: usize = context.iter().map(|span| span.len()).sum();
            if visible[queries.clone()].iter().any(|&seen| seen > own.len() || seen + in_context == 0) {
                return wrong("every query to see at least one key and no more than there are", segment);
            }
        }
        if next_query != visible.len() {
            return Err(Error::op(
                "attention",
                format!("segments for {} queries", visible.len()),
                next_query.to_string(),
            ));
        }
        Ok(Self { segments, visible, key_rows, derived: Derived::default() })
    }

    /// What `make` makes of the segments, made the first time it is asked for. All callers must ask for the same type; one
    /// that asks for another gets a value of its own.
    ///
    /// # Errors
    /// What `make` reports.
    pub(crate) fn derive<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if let Some(value) = self.derived.0.get() {
            return match Arc::clone(value).downcast() {
                Ok(value) => Ok(value),
                Err(_) => Ok(Arc::new(make()?)),
            };
        }
        let value = Arc::new(make()?);
        // Of two threads that make it at once one is kept; they are equal.
        let _ = self.derived.0.set(Arc::clone(&value) as Arc<dyn Any + Send + Sync>);
        Ok(value)
    }

    /// The segments, in the order of their queries.
    pub fn as_slice(&self) -> &[Segment] {
        &self.segments
    }

    /// Pairs of a query and a key that it sees.
    pub fn pairs(&self) -> usize {
        let of_segment = |segment: &Segment| {
            let context: usize = segment.context.iter().map(|span| span.len()).sum();
            let own: usize = self.visible[segment.queries.clone()].iter().sum();
            segment.queries.len() * context + own
        };
        self.segments.iter().map(of_segment).sum()
    }

    /// How many keys of its own span each query row sees.
    pub fn visible(&self) -> &[usize] {
        &self.visible
    }

    /// The number of query rows.
    pub fn query_rows(&self) -> usize {
        self.visible.len()
    }

    /// The number of key rows.
    pub fn key_rows(&self) -> usize {
        self.key_rows
    }
}

/// A run of tokens that continues a context, with what is scored in it.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Which prompt it follows.
    pub prompt: usize,
    /// The sequence it continues, as an index of an earlier one without a parent of its own.
    pub parent: Option<usize>,
    /// Its tokens.
    pub ids: &'a [u32],
    /// Where its label tokens start in `ids`; all tokens from there are labels. `ids.len()` scores nothing.
    pub first_label: usize,
    /// Whether the last token is a row too although nothing in the sequence follows it: something continues it, or its
    /// end is scored.
    pub keep_last: bool,
    /// Whether what follows the last token is scored, without a label: after the sequence's labels, if it has any.
    pub score_end: bool,
}

impl<'a> Sequence<'a> {
    /// An example behind prompt `prompt`: input tokens, then label tokens from `first_label` on.
    pub fn example(prompt: usize, ids: &'a [u32], first_label: usize) -> Self {
        Self { prompt, parent: None, ids, first_label, keep_last: false, score_end: false }
    }
}

/// A causal stream: rows, positions, labels and what attention sees, in every layer and in the last. With it goes, in an
/// encoder–decoder, the encoder's stream.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Rows of each prompt, one prompt after another at the start of the stream.
    pub prompt_rows: Vec<usize>,
    /// The row of the prompt tensor that each of these is; none where they are all of them, in order.
    pub prompt_index: Option<Vec<usize>>,
    /// Token of each row after the prompts.
    pub ids: Vec<u32>,
    /// Position of every row of the stream: prompt rows 0.., then text counted on from its prompt.
    pub positions: Vec<usize>,
    /// What attention sees where every row is a query.
    pub all: Segments,
    /// What attention sees where only scored rows are queries.
    pub scored: Segments,
    /// The stream rows whose logits are scored, in the order of the sequences. A row may be scored more than once.
    pub scored_rows: Vec<usize>,
    /// The token that each scored row should predict; shorter than `scored_rows` if ends are scored without a label.
    pub labels: Vec<u32>,
    /// The sequence that each scored row belongs to.
    pub sequence_of: Vec<usize>,
    /// What an encoder reads beside it.
    pub encoder: Option<EncoderLayout>,
    /// What its rows see of the encoder's.
    pub cross: Option<CrossLayout>,
}

impl Layout {
    /// Packs `sequences` behind prompts of the given numbers of rows.
    ///
    /// # Errors
    /// [`Error::Op`] for a prompt or parent that does not exist, or a label with no row before it to predict it from.
    pub fn causal(prompt_rows: &[usize], sequences: &[Sequence<'_>]) -> Result<Self> {
        let mut pack = Packing::new(prompt_rows);
        for (index, sequence) in sequences.iter().enumerate() {
            pack.add(index, sequence)?;
        }
        pack.finish()
    }

    /// The rows of all prompts.
    pub fn total_prompt_rows(&self) -> usize {
        self.prompt_rows.iter().sum()
    }

    /// The rows of the stream.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }
}

struct Packing {
    layout: Layout,
    prompt_spans: Vec<Range<usize>>,
    /// Rows and end position of each sequence so far, and its prompt and parent.
    placed: Vec<Placed>,
    all: (Vec<Segment>, Vec<usize>),
    scored: (Vec<Segment>, Vec<usize>),
}

struct Placed {
    rows: Range<usize>,
    next_position: usize,
    prompt: usize,
    is_root: bool,
}

impl Packing {
    fn new(prompt_rows: &[usize]) -> Self {
        let mut pack = Self {
            layout: Layout { prompt_rows: prompt_rows.to_vec(), ..Layout::default() },
            prompt_spans: Vec::new(),
            placed: Vec::new(),
            all: Default::default(),
            scored: Default::default(),
        };
        let mut start = 0;
        for &rows in prompt_rows {
            let span = start..start + rows;
            start = span.end;
            pack.layout.positions.extend(0..rows);
            pack.all.0.push(Segment { queries: span.clone(), context: Vec::new(), own: span.clone() });
            pack.all.1.extend(1..=rows);
            pack.prompt_spans.push(span);
        }
        pack
    }

    fn add(&mut self, index: usize, sequence: &Sequence<'_>) -> Result<()> {
        let prompt = self.prompt_spans.get(sequence.prompt).cloned().ok_or_else(|| {
            Error::op("layout", format!("a prompt below {}", self.prompt_spans.len()), sequence.prompt.to_string())
        })?;
        let mut context = vec![prompt.clone()];
        let mut before = (prompt.len(), prompt.end.checked_sub(1).filter(|_| !prompt.is_empty()));
        if let Some(parent) = sequence.parent {
            let parent = self
                .placed
                .get(parent)
                .filter(|parent| parent.is_root && parent.prompt == sequence.prompt)
                .ok_or_else(|| {
                    Error::op("layout", "an earlier root sequence of the same prompt", parent.to_string())
                })?;
            if !parent.rows.is_empty() {
                context.push(parent.rows.clone());
                before = (parent.next_position, Some(parent.rows.end - 1));
            }
        }
        context.retain(|span| !span.is_empty());
        let (first_position, row_before) = before;

        let kept = if sequence.keep_last { sequence.ids.len() } else { sequence.ids.len().saturating_sub(1) };
        let start = self.layout.positions.len();
        let rows = start..start + kept;
        self.layout.ids.extend(&sequence.ids[..kept]);
        self.layout.positions.extend(first_position..first_position + kept);
        self.all.0.push(Segment { queries: rows.clone(), context: context.clone(), own: rows.clone() });
        self.all.1.extend(1..=kept);

        let first_scored = self.layout.scored_rows.len();
        for (offset, &label) in sequence.ids.iter().enumerate().skip(sequence.first_label) {
            // The label at `offset` is predicted by the row before it; the first one may be predicted by the context,
            // which the query then sees in full, with none of its own keys.
            let row = match offset.checked_sub(1) {
                Some(previous) => Some(start + previous),
                None => row_before,
            };
            let row = row.ok_or_else(|| {
                Error::op("layout", "a prompt or a token before the first label", "a label with nothing before it")
            })?;
            self.layout.scored_rows.push(row);
            self.layout.labels.push(label);
            self.layout.sequence_of.push(index);
            self.scored.1.push(offset);
        }
        if sequence.score_end {
            let row = if kept > 0 { Some(start + kept - 1) } else { row_before };
            let row = row
                .filter(|_| kept == sequence.ids.len())
                .ok_or_else(|| Error::op("layout", "a kept last token, or a prompt, to score the end of", "none"))?;
            self.layout.scored_rows.push(row);
            self.layout.sequence_of.push(index);
            self.scored.1.push(kept);
        }
        let queries = first_scored..self.layout.scored_rows.len();
        self.scored.0.push(Segment { queries, context, own: rows.clone() });
        self.placed.push(Placed {
            rows,
            next_position: first_position + kept,
            prompt: sequence.prompt,
            is_root: sequence.parent.is_none(),
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Layout> {
        let rows = self.layout.rows();
        self.layout.all = Segments::new(self.all.0, self.all.1, rows)?;
        self.layout.scored = Segments::new(self.scored.0, self.scored.1, rows)?;
        Ok(self.layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(ids: &[u32], first_label: usize) -> Sequence<'_> {
        Sequence::example(0, ids, first_label)
    }

    #[test]
    fn a_packed_stream_has_no_padding_and_no_last_label() {
        let layout = Layout::causal(&[3], &[plain(&[10, 11, 12], 2), plain(&[20, 21], 0)]).unwrap();
        assert_eq!(layout.ids, [10, 11, 20]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 4, 3]);
        assert_eq!(layout.scored_rows, [4, 2, 5]);
        assert_eq!(layout.labels, [12, 20, 21]);
        assert_eq!(layout.scored.visible(), [2, 0, 1]);
        assert_eq!(layout.all.visible(), [1, 2, 3, 1, 2, 1]);
        assert_eq!(layout.all.as_slice()[1].context, vec![0..3]);
        assert_eq!(layout.all.as_slice()[2].own, 5..6);
    }

    #[test]
    fn continuations_share_the_rows_they_continue() {
        let input = Sequence { keep_last: true, ..plain(&[7, 8], 2) };
        let option = |ids| Sequence { parent: Some(0), ..plain(ids, 0) };
        let layout = Layout::causal(&[2], &[input, option(&[5]), option(&[6, 9])]).unwrap();
        assert_eq!(layout.ids, [7, 8, 6]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 4]);
        assert_eq!(layout.scored_rows, [3, 3, 4]);
        assert_eq!(layout.scored.as_slice()[2].context, vec![0..2, 2..4]);
        assert_eq!(layout.scored.as_slice()[2].own, 4..5);
        assert_eq!(layout.scored.visible(), [0, 0, 1]);
    }

    #[test]
    fn an_end_is_scored_once_for_all_that_may_follow() {
        let input = Sequence { keep_last: true, score_end: true, ..plain(&[7, 8], 2) };
        let option = |ids| Sequence { parent: Some(0), ..plain(ids, 1) };
        let layout = Layout::causal(&[2], &[input, option(&[5]), option(&[6, 9])]).unwrap();
        assert_eq!(layout.scored_rows, [3, 4]);
        assert_eq!(layout.sequence_of, [0, 2]);
        assert_eq!(layout.scored.visible(), [2, 1]);
        assert_eq!(layout.labels, [9]);
        let empty = Sequence { keep_last: true, score_end: true, ..plain(&[], 0) };
        assert_eq!(Layout::causal(&[2], &[empty]).unwrap().scored_rows, [1]);
        assert!(Layout::causal(&[0], &[empty]).is_err());
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        assert!(Layout::causal(&[0], &[plain(&[1], 0)]).is_err());
        assert!(Layout::causal(&[2], &[Sequence { prompt: 1, ..plain(&[1], 0) }]).is_err());
        assert!(Layout::causal(&[2], &[Sequence { parent: Some(0), ..plain(&[1], 0) }]).is_err());
        assert!(Layout::causal(&[0], &[plain(&[1, 2], 1)]).is_ok());
        let overlapping = vec![
            Segment { queries: 0..1, context: vec![], own: 0..2 },
            Segment { queries: 1..2, context: vec![], own: 1..3 },
        ];
        assert!(Segments::new(overlapping, vec![1, 1], 3).is_err());
    }
}
