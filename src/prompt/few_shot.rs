//! Few-shot prompt design: labelled examples written out in front of every row, the baseline of Lester et al. 2021.
//!
//! The examples are the same for all rows, so their embeddings stand where a prompt's rows stand: behind them once, however
//! many rows follow. What the model sees of a row is what it would see with the examples written in front of it.

use crate::data::{Dataset, EpochOrder, Example};
use crate::error::{Error, Place, Result};
use crate::layout::PromptPlace;
use crate::models::Model;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// How examples are chosen and written.
#[derive(Debug, Clone, Copy, Default)]
pub struct FewShotOptions<'a> {
    /// How many.
    pub examples: usize,
    /// What decides which of each class are taken, and their order.
    pub seed: u64,
    /// What stands behind every example.
    pub joiner: &'a [u32],
    /// The id that begins every input, which is to stand once in front of all.
    pub bos: Option<u32>,
    /// The id that ends targets, and an encoder's inputs, which is left out: the text goes on.
    pub eos: Option<u32>,
}

/// Examples as the model reads them in front of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FewShot {
    /// Input, separator, target and joiner of each example, one after another.
    pub ids: Vec<u32>,
    /// The examples' lines in their file, in the order in which they stand.
    pub lines: Vec<u64>,
    bos: Option<u32>,
}

impl FewShot {
    /// Chooses examples of `dataset` and writes them out. Classes, which are distinct targets, have as many examples as any
    /// other, or one more or fewer; one with too few leaves its place to the others. Of two numbers of examples with the same
    /// seed the smaller choice is part of the larger.
    ///
    /// # Errors
    /// [`Error::Config`] if there are fewer rows than examples wanted, or none are wanted.
    pub fn choose(dataset: &Dataset, options: &FewShotOptions<'_>) -> Result<Self> {
        let (wanted, rows) = (options.examples, dataset.examples.len());
        if wanted == 0 || wanted > rows {
            let expected = format!("1 to {rows} examples, the rows of {}", dataset.path.display());
            return Err(Error::config(Place::item("few_shot"), expected, wanted.to_string())
                .hint("ask for fewer, or give a file of more rows"));
        }
        let order = EpochOrder { seed: options.seed, shuffle: true };
        let mut classes: BTreeMap<(Option<&str>, &[u32]), Vec<usize>> = BTreeMap::new();
        for index in order.indices(0, rows) {
            let example = &dataset.examples[index];
            let class = match &example.target_text {
                Some(text) => (Some(text.as_str()), &[][..]),
                None => (None, example.target_ids.as_slice()),
            };
            classes.entry(class).or_default().push(index);
        }
        let classes: Vec<Vec<usize>> = classes.into_values().collect();
        let turns = order.indices(1, classes.len());
        let rounds = (0..rows).flat_map(|round| turns.iter().map(move |&class| (class, round)));
        let chosen: Vec<usize> =
            rounds.filter_map(|(class, round)| classes[class].get(round).copied()).take(wanted).collect();
        let shown = order.indices(2, wanted).into_iter().map(|place| &dataset.examples[chosen[place]]);

        let mut few = Self { ids: Vec::new(), lines: Vec::new(), bos: options.bos };
        let begins = shown.clone().any(|example| begins_with(example, options.bos));
        few.ids.extend(options.bos.filter(|_| begins));
        for example in shown {
            let without_end = |ids: &'_ [u32]| match options.eos {
                Some(eos) if ids.last() == Some(&eos) => ids.len() - 1,
                _ => ids.len(),
            };
            let input = &example.input_ids[usize::from(begins_with(example, options.bos))..];
            let (input, target) = (&input[..without_end(input)], &example.target_ids);
            let target = &target[..without_end(target)];
            few.ids.extend(input.iter().chain(target).chain(options.joiner));
            few.lines.push(example.line);
        }
        Ok(few)
    }

    /// What stands in front of every row: the rows of `prompt` `[P, d]`, then the examples' embeddings.
    ///
    /// # Errors
    /// [`Error::Config`] if that leaves no position of the model, or where an encoder–decoder's prompt does not stand where its
    /// inputs do; [`Error::Op`] for ids that the model does not have.
    pub fn in_front(&self, model: &Model, prompt: &Tensor) -> Result<Tensor> {
        if model.prompt_place() != PromptPlace::default() {
            let expected = "prompt_on = encoder and prompt_mask = full beside it";
            return Err(Error::config(Place::item("few_shot"), expected, "another")
                .hint("examples stand in front of the input, and are read with it"));
        }
        let (rows, limit) = (prompt.rows() + self.ids.len(), model.config().max_position_embeddings);
        if rows >= limit {
            let expected = format!("fewer than {limit} tokens of prompt and examples, the model's positions");
            return Err(Error::config(Place::item("few_shot"), expected, rows.to_string())
                .hint("ask for fewer examples, or take them from a file of shorter ones"));
        }
        let mut values = prompt.to_f64_vec()?;
        for &id in &self.ids {
            values.extend(model.embedding_row(id)?);
        }
        model.prompt_from(rows, &values)
    }

    /// Takes the beginning id off the rows: it stands in front of the examples.
    pub fn continue_with(&self, dataset: &mut Dataset) {
        for example in dataset.examples.iter_mut().filter(|example| begins_with(example, self.bos)) {
            example.input_ids.remove(0);
        }
    }
}

fn begins_with(example: &Example, bos: Option<u32>) -> bool {
    bos.is_some() && example.input_ids.first().copied() == bos
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Skipped;

    fn dataset(rows: &[(&[u32], &[u32])]) -> Dataset {
        let example = |(index, (input, target)): (usize, &(&[u32], &[u32]))| Example {
            input_ids: input.to_vec(),
            target_ids: target.to_vec(),
            line: index as u64 + 1,
            target_text: None,
        };
        Dataset {
            path: "rows.jsonl".into(),
            examples: rows.iter().enumerate().map(example).collect(),
            skipped: Skipped::default(),
        }
    }

    fn of(data: &Dataset, examples: usize, seed: u64) -> FewShot {
        FewShot::choose(data, &FewShotOptions { examples, seed, ..FewShotOptions::default() }).unwrap()
    }

    /// Two rows of class 7, ten of class 8, three of class 9.
    fn classes() -> Dataset {
        let targets = [7, 7].into_iter().chain([8; 10]).chain([9; 3]);
        let rows: Vec<(Vec<u32>, Vec<u32>)> =
            targets.enumerate().map(|(index, target)| (vec![100 + index as u32], vec![target])).collect();
        dataset(&rows.iter().map(|(input, target)| (&input[..], &target[..])).collect::<Vec<_>>())
    }

    #[test]
    fn classes_have_equal_shares_as_far_as_they_reach() {
        let data = classes();
        for seed in 0..20 {
            let counts = |few: &FewShot| [7, 8, 9].map(|target| few.ids.iter().filter(|&&id| id == target).count());
            assert_eq!(counts(&of(&data, 3, seed)), [1, 1, 1]);
            assert_eq!(counts(&of(&data, 6, seed)), [2, 2, 2]);
            assert_eq!(counts(&of(&data, 9, seed)), [2, 4, 3]);
            assert_eq!(counts(&of(&data, 15, seed)), [2, 10, 3]);
            let (few, more) = (of(&data, 4, seed), of(&data, 5, seed));
            assert!(few.lines.iter().all(|line| more.lines.contains(line)));
        }
        assert_eq!(of(&data, 5, 3), of(&data, 5, 3));
        assert_ne!(of(&data, 5, 3).lines, of(&data, 5, 4).lines);
        // Which classes have one more is a matter of the seed too.
        let singles: std::collections::BTreeSet<u32> = (0..20).map(|seed| of(&data, 1, seed).ids[1]).collect();
        assert_eq!(singles.len(), 3);
    }

    #[test]
    fn examples_are_written_out_with_one_beginning_and_no_ends() {
        let mut data = dataset(&[(&[1, 10], &[7, 2]), (&[1, 11], &[7, 2])]);
        let options = FewShotOptions { examples: 2, joiner: &[3, 3], bos: Some(1), eos: Some(2), ..Default::default() };
        let few = FewShot::choose(&data, &options).unwrap();
        assert!(few.ids == [1, 10, 7, 3, 3, 11, 7, 3, 3] || few.ids == [1, 11, 7, 3, 3, 10, 7, 3, 3], "{few:?}");
        few.continue_with(&mut data);
        assert_eq!(data.examples[0].input_ids, [10]);
        assert_eq!(data.examples[0].target_ids, [7, 2]);
    }

    #[test]
    fn more_examples_than_rows_are_refused() {
        for examples in [0, 16] {
            let options = FewShotOptions { examples, ..FewShotOptions::default() };
            let error = FewShot::choose(&classes(), &options).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains("1 to 15 examples"), "{error}");
        }
    }
}
