//! Which recompute policy fits into so much memory, and how many examples do.

use super::moments::{Prediction, predict};
use super::sizes::{Method, Setup, Stream};
use crate::device::shown_bytes;
use crate::error::{Error, Place, Result};
use crate::models::Recompute;

/// The most examples that are considered.
const MOST_EXAMPLES: usize = 1 << 20;

/// A policy and what it is predicted to need.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The policy.
    pub recompute: Recompute,
    /// The memory of a step with it.
    pub prediction: Prediction,
}

/// The cheapest policy, of [`Recompute::ALL`] in their order, with which a step on `examples` examples of `tokens` tokens,
/// `labels` of them predicted, behind `prompt_rows` rows fits into `limit` bytes.
///
/// # Errors
/// [`Error::Config`] where none does, saying how much the smallest needs and how many examples would fit.
pub fn choose(
    setup: &Setup,
    prompt_rows: usize,
    examples: usize,
    tokens: usize,
    labels: usize,
    limit: u64,
) -> Result<Choice> {
    let stream = Stream::even(prompt_rows, examples, tokens, labels);
    let choices = Recompute::ALL.map(|recompute| Choice { recompute, prediction: predict(setup, &stream, recompute) });
    let smallest = choices.iter().map(|choice| choice.prediction.total()).min().unwrap_or(0);
    if let Some(choice) = choices.into_iter().find(|choice| choice.prediction.total() <= limit) {
        return Ok(choice);
    }
    let expected = format!("at least {} for a batch of {examples}", shown_bytes(smallest));
    let error = Error::config(Place::item("memory_limit"), expected, shown_bytes(limit));
    let most = |recompute| largest_batch(setup, prompt_rows, tokens, labels, recompute, limit);
    let best = Recompute::ALL.map(|recompute| (most(recompute), recompute));
    let best = best.into_iter().max_by_key(|&(fits, recompute)| (fits, std::cmp::Reverse(recompute as usize)));
    Err(match best {
        Some((fits, recompute)) if fits > 0 => {
            error.hint(format!("a batch of {fits} fits, with --recompute {}", recompute.name()))
        }
        _ => {
            let shorter = match setup.method {
                Method::Prompt => "shorter examples, fewer prompt rows or a larger limit",
                Method::Full => "shorter examples, a larger limit or --method prompt",
            };
            error.hint(format!("not even one example of {tokens} tokens fits: take {shorter}"))
        }
    })
}

/// The most examples of a step that fits into `limit` bytes, up to a million or so; 0 if not even one does.
pub fn largest_batch(
    setup: &Setup,
    prompt_rows: usize,
    tokens: usize,
    labels: usize,
    recompute: Recompute,
    limit: u64,
) -> usize {
    let need = |examples| predict(setup, &Stream::even(prompt_rows, examples, tokens, labels), recompute).total();
    most_that_fit(|examples| need(examples) <= limit)
}

/// The most examples that `fits` takes, which takes any fewer too; 0 if not even one.
pub(super) fn most_that_fit(fits: impl Fn(usize) -> bool) -> usize {
    if !fits(1) {
        return 0;
    }
    let (mut least, mut most) = (1, 2);
    while most <= MOST_EXAMPLES && fits(most) {
        (least, most) = (most, 2 * most);
    }
    while least + 1 < most {
        let middle = least.midpoint(most);
        if fits(middle) { least = middle } else { most = middle }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ModelConfig;

    fn setup() -> Setup {
        Setup::new(ModelConfig::named("smollm2-135m").unwrap(), 2)
    }

    #[test]
    fn the_cheapest_policy_that_fits_is_chosen() {
        let setup = setup();
        let need = |recompute| predict(&setup, &Stream::even(100, 32, 32, 1), recompute).total();
        let [none, mlp, layer] = Recompute::ALL.map(need);
        assert!(none > mlp && mlp > layer, "{none} {mlp} {layer}");
        let chosen = |limit| choose(&setup, 100, 32, 32, 1, limit).map(|choice| choice.recompute);
        assert_eq!(chosen(u64::MAX).unwrap(), Recompute::None);
        assert_eq!(chosen(none).unwrap(), Recompute::None);
        assert_eq!(chosen(none - 1).unwrap(), Recompute::Mlp);
        assert_eq!(chosen(mlp - 1).unwrap(), Recompute::Layer);
        let refused = chosen(layer - 1).unwrap_err();
        assert_eq!(refused.exit_code(), 3);
        let said = refused.to_string();
        assert!(said.contains("for a batch of 32") && said.contains("a batch of 3"), "{said}");
        let hopeless = chosen(1 << 20).unwrap_err().to_string();
        assert!(hopeless.contains("not even one example"), "{hopeless}");
    }

    #[test]
    fn the_largest_batch_fits_and_one_more_does_not() {
        let setup = setup();
        for recompute in Recompute::ALL {
            let limit = 2 << 30;
            let most = largest_batch(&setup, 100, 32, 1, recompute, limit);
            let need = |examples| predict(&setup, &Stream::even(100, examples, 32, 1), recompute).total();
            assert!(need(most) <= limit && need(most + 1) > limit, "{most}");
        }
        assert_eq!(largest_batch(&setup, 100, 32, 1, Recompute::None, 1 << 20), 0);
    }
}
