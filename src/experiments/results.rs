//! What the runs of an experiment come to, as a table, a plot and JSON.

use crate::inspect::RowNeighbours;
use crate::metrics::Sample;
use crate::plot::{Bar, Lines, Series, StackedBars, Table};
use serde_json::{Value, json};

/// What an experiment gives: for a terminal and a Markdown file, for a browser, for programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// What the table's figures are.
    pub caption: String,
    /// The table.
    pub table: Table,
    /// The plot, an SVG.
    pub svg: String,
    /// Everything, the single figures too.
    pub json: Value,
}

/// The figures of an experiment: rows of what is compared, columns of what it is measured on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    /// The experiment's name.
    pub experiment: String,
    /// What is measured.
    pub metric: String,
    /// What the rows differ in.
    pub compared: String,
    /// What it is measured on.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// How far one row is above another, run by run; in the table and the JSON only.
    pub differences: Vec<Row>,
    /// Runs that came to nothing.
    pub failures: Vec<Failure>,
}

/// A row of figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// What tells it from the others.
    pub name: String,
    /// The same as a number, if it is one.
    pub x: Option<f64>,
    /// For each column the figures of all runs.
    pub values: Vec<Vec<f64>>,
}

impl Row {
    /// How far each run of this row is above the other row's run of the same place; `None` where they have not as many.
    pub fn minus(&self, other: &Self) -> Option<Self> {
        let are_pairs = self.values.len() == other.values.len()
            && self.values.iter().zip(&other.values).all(|(a, b)| a.len() == b.len());
        let minus = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a - b).collect();
        are_pairs.then(|| Self {
            name: format!("{} − {}", self.name, other.name),
            x: None,
            values: self.values.iter().zip(&other.values).map(minus).collect(),
        })
    }
}

/// A run that came to nothing.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Failure {
    /// Its directory.
    pub run: String,
    /// Why.
    pub error: String,
}

impl Results {
    /// Table, plot and JSON.
    pub fn output(&self) -> Output {
        let caption = format!("{}: {}, mean ± sd (n)", self.experiment, self.metric);
        Output { caption, table: self.table(), svg: self.svg(), json: self.json() }
    }

    fn table(&self) -> Table {
        let mut table = Table::new([&self.compared].into_iter().chain(&self.columns));
        for row in self.rows.iter().chain(&self.differences) {
            let cells = row.values.iter().map(|values| match Sample::of(values) {
                Some(sample) => format!("{sample} ({})", sample.n),
                None => "–".to_owned(),
            });
            table.rows.push([row.name.clone()].into_iter().chain(cells).collect());
        }
        table
    }

    /// Lines over rows that are numbers, bars of the others.
    fn svg(&self) -> String {
        let is_numeric = !self.rows.is_empty() && self.rows.iter().all(|row| row.x.is_some());
        if is_numeric { self.lines().svg() } else { self.bars().svg() }
    }

    fn title(&self) -> String {
        format!("{}: {}", self.experiment, self.metric)
    }

    /// For each column its mean, and dashed what is a standard deviation away from it.
    fn lines(&self) -> Lines {
        let mut series = Vec::new();
        for (index, column) in self.columns.iter().enumerate() {
            let points = |at: &dyn Fn(Sample) -> Option<f64>| -> Vec<(f64, f64)> {
                let found = self.rows.iter().filter_map(|row| {
                    let sample = row.values.get(index).and_then(|values| Sample::of(values))?;
                    Some((row.x?, at(sample)?))
                });
                found.collect()
            };
            series.push(Series { name: format!("{column}, mean"), points: points(&|s| Some(s.mean)), dashed: false });
            for (sign, name) in [(1.0, "mean + sd"), (-1.0, "mean − sd")] {
                let points = points(&|s| Some(s.mean + sign * s.sd?));
                if !points.is_empty() {
                    series.push(Series { name: format!("{column}, {name}"), points, dashed: true });
                }
            }
        }
        Lines { title: self.title(), x_label: self.compared.clone(), y_label: self.metric.clone(), series }
    }

    fn bars(&self) -> StackedBars {
        let mut bars = Vec::new();
        for row in &self.rows {
            for (column, values) in self.columns.iter().zip(&row.values) {
                let mean = Sample::of(values).map_or(0.0, |sample| sample.mean);
                let name = if self.columns.len() > 1 { format!("{}, {column}", row.name) } else { row.name.clone() };
                bars.push(Bar { name, values: vec![mean], pale: false });
            }
        }
        let unit = format!("mean {}", self.metric);
        StackedBars { title: self.title(), unit, parts: vec![self.metric.clone()], bars }
    }

    fn json(&self) -> Value {
        let shown = |row: &Row| {
            let measured: serde_json::Map<_, _> = self
                .columns
                .iter()
                .zip(&row.values)
                .map(|(column, values)| {
                    let sample = Sample::of(values);
                    let (mean, sd) = (sample.map(|sample| sample.mean), sample.and_then(|sample| sample.sd));
                    (column.clone(), json!({"mean": mean, "sd": sd, "n": values.len(), "values": values}))
                })
                .collect();
            json!({"name": row.name, "x": row.x, "measured": measured})
        };
        let all = |rows: &[Row]| rows.iter().map(shown).collect::<Vec<_>>();
        json!({
            "experiment": self.experiment, "metric": self.metric, "compared": self.compared,
            "rows": all(&self.rows), "differences": all(&self.differences), "failures": self.failures,
        })
    }
}

/// The rows of a metric along the steps of several runs: one for each step at which all of them have it.
pub fn curve_of(curves: &[Vec<(f64, f64)>]) -> Vec<Row> {
    let Some(first) = curves.first() else { return Vec::new() };
    let at = |curve: &[(f64, f64)], step: f64| curve.iter().find(|point| point.0 == step).map(|point| point.1);
    let rows = first.iter().filter_map(|&(step, _)| {
        let values = curves.iter().map(|curve| at(curve, step)).collect::<Option<Vec<_>>>()?;
        Some(Row { name: step.to_string(), x: Some(step), values: vec![values] })
    });
    rows.collect()
}

/// What the rows of several prompts are near to: a row each, and the distance of the nearest in the plot.
pub fn neighbours(prompts: &[(String, Vec<RowNeighbours>)], failures: &[Failure]) -> Output {
    let most = prompts.iter().flat_map(|(_, rows)| rows).map(|row| row.nearest.len()).max().unwrap_or(0);
    let header = ["run", "row", "norm"].into_iter().map(str::to_owned);
    let mut table = Table::new(header.chain((1..=most).map(|place| format!("nearest {place}"))));
    for (name, rows) in prompts {
        for (index, row) in rows.iter().enumerate() {
            let near = row.nearest.iter().map(|near| {
                let token = near.token.as_ref().map_or_else(|| near.id.to_string(), |text| format!("{text:?}"));
                format!("{token} {:.3}", near.distance)
            });
            let cells = [name.clone(), index.to_string(), format!("{:.3}", row.norm)];
            table.rows.push(cells.into_iter().chain(near).collect());
        }
    }
    let series = prompts.iter().map(|(name, rows)| Series {
        name: name.clone(),
        points: rows
            .iter()
            .enumerate()
            .filter_map(|(index, row)| Some((index as f64, row.nearest.first()?.distance)))
            .collect(),
        dashed: false,
    });
    let lines = Lines {
        title: "distance of each row to the nearest token".to_owned(),
        x_label: "row of the prompt".to_owned(),
        y_label: "cosine distance".to_owned(),
        series: series.collect(),
    };
    let runs: Vec<Value> = prompts.iter().map(|(name, rows)| json!({"run": name, "rows": rows})).collect();
    let json = json!({"experiment": "neighbours", "runs": runs, "failures": failures});
    let caption = "neighbours: the nearest tokens of each row, with their cosine distance".to_owned();
    Output { caption, table, svg: lines.svg(), json }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(xs: [Option<f64>; 2]) -> Results {
        let row = |name: &str, x, values: &[f64]| Row { name: name.into(), x, values: vec![values.to_vec(), vec![]] };
        Results {
            experiment: "length".into(),
            metric: "accuracy".into(),
            compared: "<P>".into(),
            columns: vec!["held-out".into(), "amazon".into()],
            rows: vec![row("1", xs[0], &[0.5, 0.7]), row("20", xs[1], &[0.75])],
            failures: vec![Failure { run: "out/P1".into(), error: "diverged".into() }],
            ..Results::default()
        }
    }

    #[test]
    fn figures_have_mean_spread_and_number() {
        let output = results([Some(1.0), Some(20.0)]).output();
        assert_eq!(output.caption, "length: accuracy, mean ± sd (n)");
        assert_eq!(output.table.header, ["<P>", "held-out", "amazon"]);
        assert_eq!(output.table.rows[0], ["1", "0.6000 ± 0.1414 (2)", "–"]);
        assert_eq!(output.table.rows[1], ["20", "0.7500 (1)", "–"]);
        let held_out = &output.json["rows"][0]["measured"]["held-out"];
        assert_eq!((&held_out["n"], &held_out["values"]), (&json!(2), &json!([0.5, 0.7])));
        assert_eq!(
            output.json["rows"][1]["measured"]["amazon"],
            json!({"mean": null, "sd": null, "n": 0, "values": []})
        );
        assert_eq!(output.json["failures"][0]["error"], "diverged");
        assert!(output.svg.contains("held-out, mean − sd") && output.svg.contains("&lt;P&gt;"));
    }

    #[test]
    fn runs_are_told_apart_pair_by_pair() {
        let row = |name: &str, values: [&[f64]; 2]| Row {
            name: name.into(),
            x: None,
            values: values.map(<[f64]>::to_vec).into(),
        };
        let (prompt, full) = (row("prompt", [&[0.5, 0.75], &[1.0]]), row("full", [&[0.25, 1.0], &[0.5]]));
        let difference = prompt.minus(&full).unwrap();
        assert_eq!(difference, row("prompt − full", [&[0.25, -0.25], &[0.5]]));
        assert_eq!(prompt.minus(&row("full", [&[0.25], &[0.5]])), None);
        let results = Results { differences: vec![difference], ..results([None, None]) };
        let output = results.output();
        assert_eq!(output.table.rows[2], ["prompt − full", "0.0000 ± 0.3536 (2)", "0.5000 (1)"]);
        assert_eq!(output.json["differences"][0]["measured"]["amazon"]["values"], json!([0.5]));
    }

    #[test]
    fn rows_that_are_no_numbers_are_bars() {
        let output = results([None, Some(20.0)]).output();
        assert!(output.svg.contains("20, held-out") && !output.svg.contains("<polyline"));
        assert!(Results::default().output().svg.contains("no bars"));
    }

    #[test]
    fn a_curve_has_the_steps_that_all_runs_have() {
        let rows = curve_of(&[vec![(10.0, 0.1), (20.0, 0.2), (30.0, 0.3)], vec![(10.0, 0.3), (20.0, 0.4)]]);
        let found: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.values[0].clone())).collect();
        assert_eq!(found, [("10", vec![0.1, 0.3]), ("20", vec![0.2, 0.4])]);
        assert!(curve_of(&[]).is_empty());
    }
}
