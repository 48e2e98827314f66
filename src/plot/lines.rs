//! Lines through points, over two numbered axes that both start at 0.

use super::{Axis, WIDTH, colour, line, picture, put, text};

/// A line through points.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// What it is called in the legend.
    pub name: String,
    /// Its points, in the order in which they are joined. One that is not finite is left out, and the line with it.
    pub points: Vec<(f64, f64)>,
    /// Whether it is drawn dashed and without marks, as a fit is.
    pub dashed: bool,
}

/// A plot of lines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lines {
    /// What is shown.
    pub title: String,
    /// The horizontal quantity, with its unit.
    pub x_label: String,
    /// The vertical quantity, with its unit.
    pub y_label: String,
    /// The lines, in the legend's order.
    pub series: Vec<Series>,
}

const LEFT: f64 = 78.0;
const RIGHT: f64 = 24.0;
const LEGEND_ROW: f64 = 18.0;
const PLOT_HEIGHT: f64 = 280.0;
const BELOW: f64 = 56.0;

impl Lines {
    /// The plot as a self-contained SVG. Without any finite point it is an empty plot that says so.
    pub fn svg(&self) -> String {
        column(std::slice::from_ref(self))
    }

    fn top(&self) -> f64 {
        44.0 + LEGEND_ROW * self.series.len() as f64
    }

    fn height(&self) -> f64 {
        self.top() + PLOT_HEIGHT + BELOW
    }

    fn finite(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|series| &series.points).copied().filter(is_finite)
    }

    /// The elements of the plot, with its upper left corner at the origin.
    fn draw(&self) -> String {
        let mut body = String::new();
        let (top, bottom, right) = (self.top(), self.top() + PLOT_HEIGHT, WIDTH - RIGHT);
        let (across, up) = (Axis::of(self.finite().map(|point| point.0), 8), Axis::of(self.finite().map(|p| p.1), 6));
        let x_at = |x: f64| LEFT + across.share(x) * (right - LEFT);
        let y_at = |y: f64| bottom - up.share(y) * PLOT_HEIGHT;
        text(&mut body, (LEFT, 24.0), "ink title", "start", &self.title);
        for (index, series) in self.series.iter().enumerate() {
            let y = 44.0 + LEGEND_ROW * index as f64;
            stroke(&mut body, &[(LEFT, y - 4.0), (LEFT + 24.0, y - 4.0)], index, series.dashed);
            text(&mut body, (LEFT + 32.0, y), "ink", "start", &series.name);
        }
        for tick in up.ticks() {
            line(&mut body, "grid", (LEFT, y_at(tick)), (right, y_at(tick)));
            text(&mut body, (LEFT - 8.0, y_at(tick) + 4.0), "faint", "end", &up.label(tick));
        }
        for tick in across.ticks() {
            line(&mut body, "axis", (x_at(tick), bottom), (x_at(tick), bottom + 5.0));
            text(&mut body, (x_at(tick), bottom + 20.0), "faint", "middle", &across.label(tick));
        }
        line(&mut body, "axis", (LEFT, bottom), (right, bottom));
        line(&mut body, "axis", (LEFT, top), (LEFT, bottom));
        text(&mut body, ((LEFT + right) / 2.0, bottom + 42.0), "ink", "middle", &self.x_label);
        put(&mut body, format_args!("<g transform=\"translate(18,{:.1}) rotate(-90)\">", (top + bottom) / 2.0));
        text(&mut body, (0.0, 0.0), "ink", "middle", &self.y_label);
        put(&mut body, format_args!("</g>"));
        for (index, series) in self.series.iter().enumerate() {
            for part in series.points.split(|point| !is_finite(point)) {
                let points: Vec<(f64, f64)> = part.iter().map(|&(x, y)| (x_at(x), y_at(y))).collect();
                stroke(&mut body, &points, index, series.dashed);
                for (x, y) in points.iter().filter(|_| !series.dashed) {
                    put(
                        &mut body,
                        format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{}\"/>", colour(index)),
                    );
                }
            }
        }
        if self.finite().next().is_none() {
            text(&mut body, ((LEFT + right) / 2.0, (top + bottom) / 2.0), "faint", "middle", "no points");
        }
        body
    }
}

/// Plots below one another in one self-contained SVG: the same horizontal quantity in several units.
pub fn column(plots: &[Lines]) -> String {
    let (mut body, mut height) = (String::new(), 0.0);
    for plot in plots {
        put(&mut body, format_args!("<g transform=\"translate(0,{height:.1})\">"));
        body += &plot.draw();
        put(&mut body, format_args!("</g>"));
        height += plot.height();
    }
    picture(height, plots.first().map_or("", |plot| &plot.title), &body)
}

fn is_finite((x, y): &(f64, f64)) -> bool {
    x.is_finite() && y.is_finite()
}

/// A line through points in the picture's units, in the colour of series `index`.
fn stroke(body: &mut String, points: &[(f64, f64)], index: usize, dashed: bool) {
    if points.len() < 2 {
        return;
    }
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let (points, colour) = (points.join(" "), colour(index));
    let dashes = if dashed { " stroke-dasharray=\"6 4\"" } else { "" };
    put(
        body,
        format_args!("<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes} points=\"{points}\"/>"),
    );
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_well_formed;
    use super::*;

    fn plot(points: &[(f64, f64)]) -> Lines {
        let series = |name: &str, dashed| Series { name: name.into(), points: points.to_vec(), dashed };
        Lines {
            title: "a <plot> & \"more\"".into(),
            x_label: "B, examples".into(),
            y_label: "time, s".into(),
            series: vec![series("measured", false), series("fit", true)],
        }
    }

    #[test]
    fn a_plot_shows_its_points_and_its_names() {
        let svg = plot(&[(1.0, 0.5), (2.0, 1.0), (4.0, 2.0)]).svg();
        assert_well_formed(&svg);
        assert_eq!((svg.matches("<circle").count(), svg.matches("stroke-dasharray").count()), (3, 2));
        for word in ["a &lt;plot&gt; &amp; &quot;more&quot;", "B, examples", "time, s", "measured", "fit"] {
            assert!(svg.contains(&format!(">{word}</text>")), "{word}");
        }
        // The last point is at the end of both axes.
        assert!(svg.contains(&format!("cx=\"{:.1}\"", WIDTH - RIGHT)), "{svg}");
        assert!(!svg.contains("<script") && !svg.contains("http://www.w3.org/1999"), "{svg}");
    }

    #[test]
    fn points_that_are_not_finite_are_left_out_and_none_is_said() {
        let broken = plot(&[(1.0, 1.0), (2.0, 2.0), (f64::NAN, 1.0), (3.0, f64::INFINITY), (4.0, 1.0)]).svg();
        assert_well_formed(&broken);
        assert_eq!(broken.matches("<circle").count(), 3);
        for points in [&[][..], &[(f64::NAN, f64::NAN)]] {
            let svg = plot(points).svg();
            assert_well_formed(&svg);
            assert!(svg.contains("no points"));
        }
        for points in [&[(0.0, 0.0)][..], &[(1e300, -1e300), (-1e300, 1e300)], &[(5e-324, 1.0)]] {
            assert_well_formed(&plot(points).svg());
        }
    }

    #[test]
    fn a_column_holds_its_plots_below_one_another() {
        let one = plot(&[(1.0, 1.0)]);
        let svg = column(&[one.clone(), one.clone()]);
        assert_well_formed(&svg);
        assert!(svg.contains(&format!("translate(0,{:.1})", one.height())));
        assert!(svg.contains(&format!("viewBox=\"0 0 {WIDTH} {}\"", 2.0 * one.height())));
    }
}
