//! Mean and spread of a few numbers, such as one metric over several seeds.

use serde::Serialize;
use std::fmt;

/// Mean, standard deviation and number of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the population that the sample is of, estimated with n − 1; of one number there is none.
    pub sd: Option<f64>,
    /// How many numbers there are.
    pub n: usize,
}

impl Sample {
    /// The mean and spread of `values`; `None` where there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self { mean, sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()), n })
    }
}

impl fmt::Display for Sample {
    /// `0.8125 ± 0.0125`, or the one number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sd {
            Some(sd) => write!(f, "{:.4} ± {sd:.4}", self.mean),
            None => write!(f, "{:.4}", self.mean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_a_sample() {
        let sample = Sample::of(&[1.0, 2.0, 4.0]).unwrap();
        // Python: statistics.stdev([1, 2, 4]).
        assert!((sample.sd.unwrap() - 1.527_525_231_651_946_5).abs() < 1e-15);
        assert_eq!((sample.mean, sample.n), (7.0 / 3.0, 3));
        assert_eq!(sample.to_string(), "2.3333 ± 1.5275");
        assert_eq!(Sample::of(&[0.5]).unwrap().to_string(), "0.5000");
        assert_eq!((Sample::of(&[0.5]).unwrap().sd, Sample::of(&[])), (None, None));
    }
}
