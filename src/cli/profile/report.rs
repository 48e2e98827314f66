//! What `softprompt profile` tells: as JSON, as a table, as a picture and as a page.

use crate::device::Kind;
use crate::dtype::DType;
use crate::models::Recompute;
use crate::plot::{Bar, Section, StackedBars, page};
use crate::profile::{Architecture, Measured, Method, Need};
use serde_json::{Map, Value, json};

/// Of which model and step.
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) parameters: u128,
    pub(super) device: String,
    pub(super) threads: usize,
    pub(super) dtype: DType,
    pub(super) prompt_rows: usize,
    pub(super) examples: usize,
    pub(super) tokens: usize,
}

/// A step that was to be taken.
pub(super) struct Row {
    pub(super) method: Method,
    pub(super) recompute: Recompute,
    /// Unless even its sizes are not known.
    pub(super) need: Option<Need>,
    pub(super) measured: Option<Measured>,
    /// Why it was not measured.
    pub(super) reason: Option<String>,
}

/// A step that was only predicted.
pub(super) struct Forecast {
    pub(super) method: Method,
    pub(super) recompute: Recompute,
    pub(super) need: Need,
    /// The largest batch on each device.
    pub(super) fits: Vec<usize>,
}

/// Predictions of one model.
pub(super) struct Predicted<'a> {
    pub(super) architecture: &'a Architecture,
    pub(super) devices: &'a [(String, u64)],
    pub(super) forecasts: &'a [Forecast],
}

/// A result in all its forms.
pub(super) struct Told {
    pub(super) json: Value,
    pub(super) text: String,
    pub(super) picture: StackedBars,
    title: String,
    notes: Vec<String>,
    table: Table,
}

impl Told {
    /// The page of a report.
    pub(super) fn page(&self) -> String {
        let table = Section::Table { header: self.table.header.clone(), rows: self.table.rows.clone() };
        let notes = self.notes.iter().map(|note| Section::Text(note.clone()));
        let sections: Vec<Section> = [Section::Picture(self.picture.svg()), table].into_iter().chain(notes).collect();
        page(&self.title, &sections)
    }
}

/// A table whose first two columns are names.
#[derive(Default)]
struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn text(&self) -> String {
        let all = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
                0 | 1 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        all().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A unit of memory.
#[derive(Clone, Copy)]
struct Unit {
    name: &'static str,
    bytes: f64,
}

impl Unit {
    /// One in which the largest of `totals` has at most five digits or so.
    fn of(totals: impl Iterator<Item = u64>) -> Self {
        match totals.max().unwrap_or(0) {
            most if most >= 16 << 30 => Self { name: "GiB", bytes: (1u64 << 30) as f64 },
            _ => Self { name: "MiB", bytes: (1 << 20) as f64 },
        }
    }

    fn share(self, bytes: u64) -> f64 {
        bytes as f64 / self.bytes
    }

    fn shown(self, bytes: u64) -> String {
        let share = self.share(bytes);
        if share > 0.0 && share < 0.1 { format!("{share:.3}") } else { format!("{share:.1}") }
    }
}

/// What is trained, in a word.
pub(super) fn method_name(method: Method) -> &'static str {
    match method {
        Method::Prompt => "prompt",
        Method::Full => "full",
    }
}

/// A kind's name in the head of a table.
fn heading(kind: Kind) -> &'static str {
    match kind {
        Kind::SavedActivations => "saved",
        other => other.name(),
    }
}

fn bar_name(method: Method, recompute: Recompute) -> String {
    format!("{}, {}", method_name(method), recompute.name())
}

fn by_kind(bytes: impl Fn(Kind) -> u64) -> Value {
    Kind::ALL.into_iter().map(|kind| (kind.name().to_owned(), json!(bytes(kind)))).collect::<Map<_, _>>().into()
}

/// A whole number with commas between thousands.
fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let from_the_end = |index: usize| digits.len() - index;
    let with_commas = digits.char_indices().flat_map(|(index, digit)| {
        let comma = (index > 0 && from_the_end(index).is_multiple_of(3)).then_some(',');
        comma.into_iter().chain([digit])
    });
    with_commas.collect()
}

impl Subject {
    fn json(&self) -> Map<String, Value> {
        let about = json!({
            "model": self.name, "device": self.device, "threads": self.threads, "dtype": self.dtype.to_string(),
            "num_virtual_tokens": self.prompt_rows, "examples": self.examples, "tokens": self.tokens,
            // Beyond 64 bits JSON has no whole numbers that every reader keeps.
            "parameters": u64::try_from(self.parameters).unwrap_or(u64::MAX),
        });
        match about {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn title(&self) -> String {
        let threads = match (self.device.as_str(), self.threads) {
            ("cpu", 1) => ", 1 thread".to_owned(),
            ("cpu", threads) => format!(", {threads} threads"),
            _ => String::new(),
        };
        let parameters = match self.parameters {
            0 => String::new(),
            parameters => format!(", {} parameters", grouped(parameters)),
        };
        format!("{}{parameters}; {} on {}{threads}", self.name, self.dtype, self.device)
    }

    fn sizes(&self) -> String {
        format!("P = {}, B = {}, T = {}", self.prompt_rows, self.examples, self.tokens)
    }
}

fn names_and_kinds() -> Vec<String> {
    let names = ["trained".to_owned(), "recompute".to_owned()];
    names.into_iter().chain(Kind::ALL.into_iter().map(|kind| heading(kind).to_owned())).collect()
}

fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

fn parts() -> Vec<String> {
    Kind::ALL.into_iter().map(|kind| heading(kind).to_owned()).collect()
}

/// Measurements beside predictions.
pub(super) fn measured(subject: &Subject, rows: &[Row]) -> Told {
    let totals = rows.iter().flat_map(|row| {
        let measured = row.measured.as_ref().map(|found| found.memory.peak_total() as u64);
        measured.into_iter().chain(row.need.as_ref().map(Need::total))
    });
    let unit = Unit::of(totals);
    let mut table = Table { header: names_and_kinds(), rows: Vec::new() };
    table.header.extend(strings(["peak", "predicted", "error", "process"]));
    let mut bars = Vec::new();
    let mut told = Vec::new();
    for row in rows {
        let name = bar_name(row.method, row.recompute);
        let bytes = |kind| row.measured.as_ref().map(|found| found.memory.at_peak(kind) as u64);
        let total = row.measured.as_ref().map(|found| found.memory.peak_total() as u64);
        let error =
            row.need.as_ref().zip(total).map(|(need, total)| 100.0 * (need.total() as f64 / total as f64 - 1.0));
        let process = row.measured.as_ref().and_then(|found| found.peak_rss);
        let shown = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| unit.shown(bytes));
        let mut cells = strings([method_name(row.method), row.recompute.name()]);
        cells.extend(Kind::ALL.map(|kind| shown(bytes(kind))));
        cells.extend([shown(total), shown(row.need.as_ref().map(Need::total))]);
        // Without a minus in front of nothing.
        let rounded = error.map(|error| (10.0 * error).round() / 10.0 + 0.0);
        cells.push(rounded.map_or_else(|| "-".to_owned(), |error| format!("{error:+.1} %")));
        cells.push(shown(process.map(|bytes| bytes as u64)));
        table.rows.push(cells);
        if row.measured.is_some() {
            let values = Kind::ALL.map(|kind| unit.share(bytes(kind).unwrap_or(0))).to_vec();
            bars.push(Bar { name: name.clone(), values, pale: false });
        }
        if let Some(need) = &row.need {
            let values = Kind::ALL.map(|kind| unit.share(need.bytes(kind))).to_vec();
            let name = if row.measured.is_some() { "predicted".to_owned() } else { format!("{name}, predicted") };
            bars.push(Bar { name, values, pale: true });
        }
        told.push(json!({
            "method": method_name(row.method),
            "recompute": row.recompute.name(),
            "measured": row.measured.as_ref().map(|found| json!({
                "peak_bytes": by_kind(|kind| found.memory.at_peak(kind) as u64),
                "peak_total_bytes": found.memory.peak_total(),
                "most_bytes": by_kind(|kind| found.memory.peak(kind) as u64),
                "peak_rss_bytes": found.peak_rss,
            })),
            "not_measured": row.reason,
            "predicted": row.need.as_ref().map(need_json),
            "error_percent": error,
        }));
    }
    let mut json = subject.json();
    json.insert("methods".into(), told.into());
    let title = subject.title();
    let sizes = subject.sizes();
    let mut notes = vec![
        format!(
            "One training step at {sizes}, in {}: what the device held at its peak, by what it was held for.",
            unit.name
        ),
        "predicted is from the configuration alone; process is the most that was resident of the whole program.".into(),
    ];
    let missing = rows.iter().filter_map(|row| Some((bar_name(row.method, row.recompute), row.reason.as_ref()?)));
    notes.extend(missing.map(|(name, reason)| format!("{name}: not measured: {reason}")));
    Told {
        json: json.into(),
        text: format!("{title}\n{}\n\n{}\n\n{}", notes[0], table.text(), notes[1..].join("\n")),
        picture: StackedBars {
            title: format!("Memory of a training step, {}, {sizes}", subject.name),
            unit: format!("bytes at the peak, {}", unit.name),
            parts: parts(),
            bars,
        },
        title,
        notes,
        table,
    }
}

fn need_json(need: &Need) -> Value {
    json!({
        "peak_bytes": by_kind(|kind| need.bytes(kind)),
        "peak_total_bytes": need.total(),
        "moment": need.moment,
    })
}

/// Predictions alone.
pub(super) fn predicted(subject: &Subject, about: &Predicted<'_>) -> Told {
    let unit = Unit::of(about.forecasts.iter().map(|forecast| forecast.need.total()));
    let mut table = Table { header: names_and_kinds(), rows: Vec::new() };
    table.header.push("peak".into());
    table.header.extend(about.devices.iter().map(|(name, _)| name.clone()));
    let mut bars = Vec::new();
    let mut told = Vec::new();
    for forecast in about.forecasts {
        let Forecast { method, recompute, need, fits } = forecast;
        let mut cells = strings([method_name(*method), recompute.name()]);
        cells.extend(Kind::ALL.map(|kind| unit.shown(need.bytes(kind))));
        cells.push(unit.shown(need.total()));
        cells.extend(fits.iter().map(|&fits| if fits == 0 { "no".to_owned() } else { format!("B = {fits}") }));
        table.rows.push(cells);
        let values = Kind::ALL.map(|kind| unit.share(need.bytes(kind))).to_vec();
        bars.push(Bar { name: bar_name(*method, *recompute), values, pale: false });
        let devices = about.devices.iter().zip(fits).map(|((name, bytes), &fits)| {
            json!({"device_memory": name, "device_memory_bytes": bytes, "largest_batch": (fits > 0).then_some(fits)})
        });
        told.push(json!({
            "method": method_name(*method),
            "recompute": recompute.name(),
            "predicted": need_json(need),
            "fits": devices.collect::<Value>(),
        }));
    }
    let mut json = subject.json();
    json.insert("family".into(), about.architecture.family().into());
    json.insert("methods".into(), told.into());
    let title = subject.title();
    let sizes = subject.sizes();
    let notes = [
        format!("One training step at {sizes}, in {}, predicted from the configuration.", unit.name),
        format!(
            "Beside the peak, for each device: the largest batch at P = {} and T = {} that fits, or no. A GPU's driver \
             takes some of its memory for itself, and cuBLASLt up to 32 MiB for a product, which is not counted.",
            subject.prompt_rows, subject.tokens
        ),
    ];
    Told {
        json: json.into(),
        text: format!("{title}\n{}\n\n{}\n\n{}", notes[0], table.text(), notes[1..].join("\n")),
        picture: StackedBars {
            title: format!("Predicted memory of a training step, {}, {sizes}", subject.name),
            unit: format!("bytes at the peak, {}", unit.name),
            parts: parts(),
            bars,
        },
        title,
        notes: notes.into(),
        table,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let all = [0, 12, 999, 1000, 124_439_808, 70_553_706_496].map(grouped);
        assert_eq!(all, ["0", "12", "999", "1,000", "124,439,808", "70,553,706,496"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = Table { header: strings(["a", "b", "c"]), rows: vec![strings(["long", "x", "12345"])] };
        assert_eq!(table.text(), "a     b      c\nlong  x  12345");
    }

    #[test]
    fn units_follow_the_largest() {
        assert_eq!(Unit::of([1u64 << 30, 2].into_iter()).name, "MiB");
        assert_eq!(Unit::of([200u64 << 30, 2].into_iter()).name, "GiB");
        let unit = Unit::of(std::iter::empty());
        assert_eq!([0u64, 10_000, 3 << 20].map(|bytes| unit.shown(bytes)), ["0.0", "0.010", "3.0"]);
    }
}
