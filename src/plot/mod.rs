//! Pictures of numbers: plain functions from data to a self-contained SVG. No script, no font of their own, readable on
//! light and on dark paper; every text that comes from outside is escaped.

mod bars;
mod lines;
mod page;
mod table;

pub use bars::{Bar, StackedBars};
pub use lines::{Lines, Series, column};
pub use page::{Section, page};
pub use table::Table;

/// Width of every picture, in SVG units.
const WIDTH: f64 = 760.0;

/// Colours of series and parts, in their order (Okabe and Ito's, which colour-blind readers can tell apart).
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a8a8a"];

/// The colour of series or part `index`; they repeat.
fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// A whole picture of `height` around `body`. Classes: `ink` for text, `faint` for text of less weight, `grid` for lines of
/// the grid, `axis` for the axes.
fn picture(height: f64, title: &str, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"softprompt-plot\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"{title}\">\n<style>\
         .softprompt-plot{{font:13px system-ui,-apple-system,'Segoe UI',sans-serif}}\
         .softprompt-plot .paper{{fill:#ffffff}}.softprompt-plot .ink{{fill:#1f2328}}\
         .softprompt-plot .faint{{fill:#59636e}}.softprompt-plot .grid{{stroke:#d8dee4;stroke-width:1}}\
         .softprompt-plot .axis{{stroke:#59636e;stroke-width:1}}.softprompt-plot .title{{font-size:15px;font-weight:600}}\
         @media (prefers-color-scheme:dark){{.softprompt-plot .paper{{fill:#0d1117}}\
         .softprompt-plot .ink{{fill:#e6edf3}}.softprompt-plot .faint{{fill:#9198a1}}\
         .softprompt-plot .grid{{stroke:#2a313a}}.softprompt-plot .axis{{stroke:#9198a1}}}}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n{body}</svg>\n",
        title = escaped(title)
    )
}

/// A line of text at a point, escaped. `anchor` is `start`, `middle` or `end`.
fn text(body: &mut String, (x, y): (f64, f64), class: &str, anchor: &str, content: &str) {
    let content = escaped(content);
    put(
        body,
        format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>"),
    );
}

/// A straight line of a class.
fn line(body: &mut String, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    put(body, format_args!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"));
}

/// Adds an element on a line of its own.
fn put(body: &mut String, element: std::fmt::Arguments<'_>) {
    *body += &format!("{element}\n");
}

/// The most characters of a text that are shown in a picture.
const LONGEST: usize = 120;

/// `text` as it may stand in a picture.
fn escaped(text: &str) -> String {
    escape(text, LONGEST)
}

/// `text` as it may stand in XML, between tags and in attributes: special characters escaped, those that XML forbids
/// replaced, what is longer than `longest` characters cut.
fn escape(text: &str, longest: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(4 * longest));
    for (index, c) in text.chars().enumerate() {
        if index == longest {
            safe.push('…');
            break;
        }
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// An axis from `low` to `high` in steps of 1, 2 or 5 times a power of ten.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// An axis that holds 0 and all of `values`, with about `count` steps. Values must be finite.
    fn of(values: impl Iterator<Item = f64>, count: usize) -> Self {
        let (low, high) = values.fold((0f64, 0f64), |(low, high), value| (low.min(value), high.max(value)));
        let span = high / 2.0 - low / 2.0;
        // Nothing to tell apart, or too little for f64: the axis is still one.
        if span.is_nan() || span <= f64::MIN_POSITIVE * 1e16 || span > f64::MAX / 8.0 {
            let step = 1f64.max(high.abs().max(low.abs()));
            return Self { low: low.min(0.0), high: high.max(step), step };
        }
        let rough = span / count as f64 * 2.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough);
        let step = step.unwrap_or(10.0 * power);
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    /// Where the grid's lines are.
    fn ticks(self) -> impl Iterator<Item = f64> {
        let first = (self.low / self.step).round() as i64;
        let last = (self.high / self.step).round() as i64;
        (first..=last).map(move |tick| tick as f64 * self.step)
    }

    /// How far along the axis `value` is, from 0 to 1.
    fn share(self, value: f64) -> f64 {
        (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0)
    }

    /// `value`, one of the ticks, with as many digits as the steps need.
    fn label(self, value: f64) -> String {
        let digits = -self.step.log10().floor();
        match value {
            0.0 => "0".to_owned(),
            _ if !(-7.0..=4.0).contains(&digits) => format!("{value:.1e}"),
            _ => format!("{value:.*}", digits.max(0.0) as usize),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Fails unless tags are balanced, attributes are quoted, and nothing but known entities is escaped.
    pub(crate) fn assert_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            assert!(!rest[..start].contains('>'), "a stray > in {}", &rest[..start]);
            let end = rest[start..].find('>').map(|end| start + end).expect("an open tag");
            let tag = &rest[start + 1..end];
            assert!(!tag.contains('<') && tag.matches('"').count().is_multiple_of(2), "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        for part in svg.split('&').skip(1) {
            let entities = ["amp;", "lt;", "gt;", "quot;", "#39;"];
            assert!(entities.iter().any(|entity| part.starts_with(entity)), "&{part}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn texts_cannot_leave_their_place() {
        assert_eq!(escaped("a<b> & \"c\" 'd'\u{1b}"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;\u{fffd}");
        assert_eq!(escaped(&"x".repeat(1000)).chars().count(), LONGEST + 1);
    }

    #[test]
    fn axes_have_round_steps_and_hold_zero_and_every_value() {
        let axis = Axis::of([3.0, 17.3].into_iter(), 6);
        assert_eq!(axis, Axis { low: 0.0, high: 20.0, step: 5.0 });
        assert_eq!(axis.ticks().map(|tick| axis.label(tick)).collect::<Vec<_>>(), ["0", "5", "10", "15", "20"]);
        let small = Axis::of([0.000_31].into_iter(), 5);
        assert_eq!(small.ticks().map(|tick| small.label(tick)).last().unwrap(), "0.0004");
        for values in [&[][..], &[0.0], &[-4.0, 2.0], &[1e300, -1e300], &[f64::MAX], &[5e-324], &[1e-300], &[7.0; 3]] {
            let axis = Axis::of(values.iter().copied(), 6);
            assert!(axis.ticks().count() >= 2 && axis.ticks().count() <= 16, "{values:?} {axis:?}");
            for &value in values {
                assert!((-1e-9..=1.0 + 1e-9).contains(&axis.share(value)), "{values:?} {axis:?}");
            }
        }
    }
}
