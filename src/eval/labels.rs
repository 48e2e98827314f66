//! The labels that rows choose among.

use crate::data::{Dataset, Example, TextEncoder};
use crate::error::{Error, Place, Result};
use std::collections::BTreeMap;

/// The candidates of a ranking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    /// The same labels as they follow an input that ends in white space, without the separator.
    unspaced: Vec<Vec<u32>>,
}

impl Labels {
    /// The distinct targets of `dataset`, in the order of their texts (of their ids where rows have no text). With the
    /// `encoder` that the rows were made with, a text is one label wherever a row's input ends in white space and has
    /// the label without the separator; without it those would be two.
    ///
    /// # Errors
    /// [`Error::Input`] if there are fewer than two, so that there is nothing to choose.
    pub fn of(dataset: &Dataset, encoder: Option<&TextEncoder<'_>>) -> Result<Self> {
        if let Some(encoder) = encoder
            && let Ok(labels) = Self::encode(&dataset.labels(), encoder)
            && dataset.examples.iter().all(|example| labels.find(example).is_some())
        {
            return Ok(labels);
        }
        let mut distinct: BTreeMap<(String, &[u32]), ()> = BTreeMap::new();
        for example in &dataset.examples {
            distinct.insert((text_of(example), &example.target_ids), ());
        }
        let labels = distinct.into_keys().map(|(text, ids)| (text, ids.to_vec(), ids.to_vec())).collect();
        Self::checked(labels).map_err(|error| error.in_file(&dataset.path))
    }

    /// The given labels, as `encoder` puts them behind an input.
    ///
    /// # Errors
    /// [`Error::Input`] if there are fewer than two, one has no tokens, or two have the same.
    pub fn encode(texts: &[String], encoder: &TextEncoder<'_>) -> Result<Self> {
        let encoded =
            texts.iter().map(|text| Ok((text.clone(), encoder.target("input", text)?, encoder.target(" ", text)?)));
        Self::checked(encoded.collect::<Result<_>>()?)
    }

    fn checked(labels: Vec<(String, Vec<u32>, Vec<u32>)>) -> Result<Self> {
        let place = || Place::item("labels");
        if labels.len() < 2 {
            return Err(Error::input(place(), "at least two labels to choose from", labels.len().to_string())
                .hint("rows of several labels, or several labels given, make something to choose from"));
        }
        let mut all = Self::default();
        for (text, ids, unspaced) in labels {
            if let Some(other) = all.ids.iter().position(|other| *other == ids) {
                let got = format!("{:?} and {text:?} with the same tokens", all.texts[other]);
                return Err(Error::input(place(), "labels that differ in their tokens", got)
                    .hint("remove one, or spell it otherwise"));
            }
            all.texts.push(text);
            all.ids.push(ids);
            all.unspaced.push(unspaced);
        }
        Ok(all)
    }

    /// The labels as text.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The labels as token ids.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// The index of the example's target, and the labels as they follow its input.
    fn find(&self, example: &Example) -> Option<(usize, &[Vec<u32>])> {
        [&self.ids, &self.unspaced].into_iter().find_map(|spelling| {
            let truth = spelling.iter().position(|ids| *ids == example.target_ids)?;
            Some((truth, spelling.as_slice()))
        })
    }

    /// What is asked of one row.
    pub(super) fn row<'a>(&'a self, example: &'a Example) -> Result<Row<'a>> {
        let (truth, labels) = self.find(example).ok_or_else(|| {
            Error::input(Place::default(), "a target among the labels", format!("{:?}", text_of(example)))
                .on_line(example.line)
                .hint(format!("the labels are {}", self.texts.join(", ")))
        })?;
        Ok(Row { example, truth, labels })
    }
}

/// A row with the labels as they follow its input.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) example: &'a Example,
    pub(super) truth: usize,
    pub(super) labels: &'a [Vec<u32>],
}

impl Row<'_> {
    /// The labels that have rows of their own: the first token of each is read off the input's end.
    pub(super) fn longer(&self) -> impl Iterator<Item = &Vec<u32>> {
        self.labels.iter().filter(|ids| ids.len() > 1)
    }

    /// Its rows in the stream.
    pub(super) fn stream_rows(&self) -> usize {
        self.example.input_ids.len() + self.longer().map(|ids| ids.len() - 1).sum::<usize>()
    }

    /// The tokens of its longest label.
    pub(super) fn longest(&self) -> usize {
        self.labels.iter().map(Vec::len).max().unwrap_or(0)
    }
}

fn text_of(example: &Example) -> String {
    match &example.target_text {
        Some(text) => text.clone(),
        None => format!("{:?}", example.target_ids),
    }
}
