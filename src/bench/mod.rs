//! A training step, timed: by its parts, against the rate of this machine's matrix library at the same shapes in the same
//! run, with the memory it takes; and how both grow with the sizes of the step.
//!
//! The step is that of [`crate::train`]: batch, layout, forward, backward, AdamW. It is taken at learning rate 0, which is
//! the same arithmetic and leaves the weights as they are, so that all steps of a run are the same step.

mod checks;
mod fit;
mod library;
mod rows;
mod run;
mod stepper;
mod sweep;

pub use checks::{check_memory, check_positions};
pub use fit::Fit;
pub use library::Library;
pub use rows::Rows;
pub use run::{Measurement, Options, measure};
pub use stepper::{Phases, Trained};
pub use sweep::{Point, Swept, fits, picture};

/// The median; of an even number of values the mean of the two in the middle. NaN of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length.is_multiple_of(2) => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
