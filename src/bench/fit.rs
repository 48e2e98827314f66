//! A straight line through points.

/// `y = intercept + slope · x` by least squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// y at x = 0.
    pub intercept: f64,
    /// Change of y for each unit of x.
    pub slope: f64,
    /// The coefficient of determination R²: the share of y's variance that the line explains. 1 if y is constant.
    pub r_squared: f64,
}

impl Fit {
    /// The line through `points`; none if they have fewer than two distinct x, or are not finite.
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
        let sum = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|&(x, y)| of(x - x_mean, y - y_mean)).sum::<f64>();
        let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
        let slope = xy / xx;
        let unexplained = sum(&|x, y| (y - slope * x).powi(2));
        let r_squared = if yy == 0.0 { 1.0 } else { 1.0 - unexplained / yy };
        let fit = Self { intercept: y_mean - slope * x_mean, slope, r_squared };
        let is_finite = [fit.intercept, fit.slope, fit.r_squared].iter().all(|number| number.is_finite());
        (xx > 0.0 && is_finite).then_some(fit)
    }

    /// y at `x`.
    pub fn at(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_again() {
        let fit = Fit::of(&[(1.0, 5.0), (2.0, 7.0), (8.0, 19.0)]).unwrap();
        let want = Fit { intercept: 3.0, slope: 2.0, r_squared: 1.0 };
        for (got, want) in [fit.intercept, fit.slope, fit.r_squared].iter().zip([3.0, 2.0, 1.0]) {
            assert!((got - want).abs() < 1e-12, "{fit:?}");
        }
        assert!((fit.at(10.0) - want.at(10.0)).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_line_has_a_lower_share() {
        // Worked by hand: slope 0 through (−1, 1), (0, 0), (1, 1), so nothing of the variance is explained.
        let fit = Fit::of(&[(-1.0, 1.0), (0.0, 0.0), (1.0, 1.0)]).unwrap();
        assert!(fit.slope.abs() < 1e-12 && fit.r_squared.abs() < 1e-12 && (fit.intercept - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(Fit::of(&[(1.0, 4.0), (2.0, 4.0)]), Some(Fit { intercept: 4.0, slope: 0.0, r_squared: 1.0 }));
    }

    #[test]
    fn points_that_define_no_line_have_none() {
        for points in [
            &[][..],
            &[(1.0, 2.0)],
            &[(1.0, 2.0), (1.0, 3.0)],
            &[(1.0, f64::NAN), (2.0, 1.0)],
            &[(f64::INFINITY, 1.0); 2],
        ] {
            assert_eq!(Fit::of(points), None, "{points:?}");
        }
    }
}
