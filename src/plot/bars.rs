//! Bars of stacked parts, lying one below the other so that their names can be read, over an axis that starts at 0.

use super::{Axis, WIDTH, colour, line, picture, put, text};

/// A bar.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bar {
    /// What it is called, to its left.
    pub name: String,
    /// The length of each part, in the order of [`StackedBars::parts`]. One that is not finite and positive takes no room.
    pub values: Vec<f64>,
    /// Whether it is drawn pale and thin, as what is only predicted is.
    pub pale: bool,
}

/// Bars of stacked parts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StackedBars {
    /// What is shown.
    pub title: String,
    /// What the axis counts, with its unit.
    pub unit: String,
    /// The names of the parts, in the legend's order.
    pub parts: Vec<String>,
    /// The bars, from the top.
    pub bars: Vec<Bar>,
}

const LEFT: f64 = 190.0;
const RIGHT: f64 = 84.0;
const TOP: f64 = 68.0;
const BELOW: f64 = 56.0;
const THICK: f64 = 22.0;
const THIN: f64 = 12.0;
const GAP: f64 = 8.0;
/// The most characters of a bar's name that fit beside it.
const LONGEST_NAME: usize = 26;

impl Bar {
    fn thickness(&self) -> f64 {
        if self.pale { THIN } else { THICK }
    }

    /// The parts' lengths, those that cannot be drawn as 0.
    fn lengths(&self) -> impl Iterator<Item = f64> {
        // Few parts of at most this length still have a finite sum.
        self.values.iter().map(|&value| if value.is_finite() { value.clamp(0.0, 1e300) } else { 0.0 })
    }
}

impl StackedBars {
    /// The bars as a self-contained SVG. Without any it is an empty plot that says so.
    pub fn svg(&self) -> String {
        let mut body = String::new();
        // A pale bar belongs to the one above it: there is no more than a line between them.
        let spaces = self.bars.iter().map(|bar| bar.thickness() + if bar.pale { 2.0 } else { GAP });
        let bottom = TOP + GAP + spaces.sum::<f64>().max(THICK);
        let right = WIDTH - RIGHT;
        let axis = Axis::of(self.bars.iter().map(|bar| bar.lengths().sum()), 6);
        let x_at = |value: f64| LEFT + axis.share(value) * (right - LEFT);
        text(&mut body, (16.0, 24.0), "ink title", "start", &self.title);
        self.legend(&mut body);
        for tick in axis.ticks() {
            line(&mut body, "grid", (x_at(tick), TOP), (x_at(tick), bottom));
            text(&mut body, (x_at(tick), bottom + 20.0), "faint", "middle", &axis.label(tick));
        }
        let mut y = TOP;
        for bar in &self.bars {
            y += if bar.pale { 2.0 } else { GAP };
            let (thickness, opacity) = (bar.thickness(), if bar.pale { 0.55 } else { 1.0 });
            let middle = y + thickness / 2.0 + 4.0;
            let class = if bar.pale { "faint" } else { "ink" };
            text(&mut body, (LEFT - 8.0, middle), class, "end", &short(&bar.name));
            let mut sum = 0.0;
            for (index, length) in bar.lengths().enumerate().filter(|&(_, length)| length > 0.0) {
                let (from, to) = (x_at(sum), x_at(sum + length));
                sum += length;
                let part = self.parts.get(index).map_or("", String::as_str);
                put(
                    &mut body,
                    format_args!(
                        "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{thickness:.1}\" fill=\"{}\" \
                         opacity=\"{opacity}\"><title>{}</title></rect>",
                        to - from,
                        colour(index),
                        super::escaped(&format!("{}, {part}: {}", bar.name, shown(length)))
                    ),
                );
            }
            text(&mut body, (x_at(sum) + 6.0, middle), class, "start", &shown(sum));
            y += thickness;
        }
        if self.bars.is_empty() {
            text(&mut body, ((LEFT + right) / 2.0, (TOP + bottom) / 2.0 + 4.0), "faint", "middle", "no bars");
        }
        line(&mut body, "axis", (LEFT, TOP), (LEFT, bottom));
        line(&mut body, "axis", (LEFT, bottom), (right, bottom));
        text(&mut body, ((LEFT + right) / 2.0, bottom + 42.0), "ink", "middle", &self.unit);
        picture(bottom + BELOW, &self.title, &body)
    }

    /// The parts' names in one row.
    fn legend(&self, body: &mut String) {
        let step = ((WIDTH - 32.0) / self.parts.len().max(1) as f64).min(150.0);
        for (index, part) in self.parts.iter().enumerate() {
            let x = 16.0 + step * index as f64;
            let colour = colour(index);
            put(body, format_args!("<rect x=\"{x:.1}\" y=\"41\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"));
            text(body, (x + 18.0, 51.0), "ink", "start", part);
        }
    }
}

/// A name in the room that it has.
fn short(name: &str) -> String {
    match name.chars().count() > LONGEST_NAME {
        true => name.chars().take(LONGEST_NAME - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

/// A length with three digits or so.
fn shown(length: f64) -> String {
    match length {
        0.0 => "0".to_owned(),
        _ if !(0.001..1e7).contains(&length) => format!("{length:.2e}"),
        _ => format!("{length:.*}", (2.0 - length.log10().floor()).clamp(0.0, 5.0) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_well_formed;
    use super::*;

    fn bars(values: &[f64]) -> StackedBars {
        let bar = |name: &str, pale| Bar { name: name.into(), values: values.to_vec(), pale };
        StackedBars {
            title: "peak <of> a step".into(),
            unit: "memory, MiB".into(),
            parts: vec!["weights".into(), "saved & more".into()],
            bars: vec![bar("prompt, none", false), bar("predicted", true)],
        }
    }

    #[test]
    fn parts_follow_one_another_and_their_sum_is_said() {
        let svg = bars(&[300.0, 100.0]).svg();
        assert_well_formed(&svg);
        for word in ["peak &lt;of&gt; a step", "memory, MiB", "weights", "saved &amp; more", "prompt, none", "400"] {
            assert!(svg.contains(&format!(">{word}</text>")), "{word}");
        }
        // Two parts of two bars, two squares of the legend, the paper.
        assert_eq!(svg.matches("<rect").count(), 7);
        // 400 is the end of the axis; the first part is three quarters of it, and there the second begins.
        let all = WIDTH - RIGHT - LEFT;
        assert!(svg.contains(&format!("x=\"{LEFT:.1}\" y=\"{:.1}\" width=\"{:.1}\"", TOP + GAP, 0.75 * all)), "{svg}");
        assert!(svg.contains(&format!("x=\"{:.1}\" y=\"{:.1}\"", LEFT + 0.75 * all, TOP + GAP)), "{svg}");
        assert!(svg.contains("prompt, none, saved &amp; more: 100"));
    }

    #[test]
    fn what_cannot_be_drawn_takes_no_room() {
        for values in [&[][..], &[0.0, 0.0], &[f64::NAN, -1.0], &[f64::INFINITY, f64::MAX], &[1e300; 9], &[5e-324]] {
            assert_well_formed(&bars(values).svg());
        }
        let empty = StackedBars::default().svg();
        assert_well_formed(&empty);
        assert!(empty.contains("no bars"));
        let long = Bar { name: "<&>".repeat(100), values: vec![1.0], pale: false };
        assert_well_formed(&StackedBars { bars: vec![long], ..StackedBars::default() }.svg());
    }

    #[test]
    fn lengths_are_shown_with_three_digits() {
        let all = [0.0, 0.0123, 1.5, 12.34, 512.3, 123_456.0, 1e9].map(shown);
        assert_eq!(all, ["0", "0.0123", "1.50", "12.3", "512", "123456", "1.00e9"]);
    }
}
