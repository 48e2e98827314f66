//! Runs joined into one page: what they differ in, how they went, what their prompts are near to.

mod runs;

pub use runs::{Best, Run, find, varied};

use crate::inspect::RowNeighbours;
use crate::plot::{Lines, Section, Series, Table, column, page};

/// Lines in one plot: as many as there are colours.
const LINES: usize = 7;

/// What the rows of a run's best prompt are near to, or why that is not known.
pub type Nearest = std::result::Result<Vec<RowNeighbours>, String>;

/// A cell of a number that may not be known.
fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

/// The runs, a row each: the keys in which they differ, steps, the best held-out metric, the last training loss, seconds.
pub fn table(runs: &[Run]) -> Table {
    let keys = varied(runs);
    let header = ["run"].into_iter().chain(keys.iter().copied()).chain(["steps", "best", "last loss", "seconds"]);
    let mut table = Table::new(header);
    for run in runs {
        let best = run
            .best()
            .map_or_else(|| "–".to_owned(), |best| format!("{} {:.4} (step {})", best.metric, best.value, best.step));
        let mut cells = vec![run.name()];
        cells.extend(keys.iter().map(|key| run.value(key)));
        cells.extend([run.steps().to_string(), best, cell(run.last_loss(), 4), cell(run.seconds(), 1)]);
        table.rows.push(cells);
    }
    table
}

/// The page of `runs`; `nearest` holds what the rows of each run's prompt are near to.
pub fn html(title: &str, runs: &[Run], nearest: &[Nearest]) -> String {
    let mut sections = vec![
        Section::Text(
            "Of the configuration only the keys in which the runs differ are shown. The best metric is that of the held-out \
             rows by which the run chose its best checkpoint. Seconds are those between the first and the last line of \
             metrics; runs that were trained in one pass share them."
                .to_owned(),
        ),
        table(runs).section(),
        Section::Heading("Training loss".to_owned()),
    ];
    sections.extend(curves(runs, "train", "loss", "mean loss of a label token, nats"));
    let mut metrics = vec!["loss"];
    metrics.extend(runs.iter().map(|run| run.config.metric_for_best_model.name()));
    metrics.sort_unstable();
    metrics.dedup();
    for metric in metrics {
        sections.push(Section::Heading(format!("Held-out {metric}")));
        sections.extend(curves(runs, "eval", metric, metric));
    }
    sections.push(Section::Heading("Nearest neighbours of the learned rows".to_owned()));
    sections.push(Section::Text(
        "For each row of the best prompt its norm and the tokens whose embeddings have the smallest cosine distance to it."
            .to_owned(),
    ));
    for (run, nearest) in runs.iter().zip(nearest) {
        sections.extend(neighbours(run, nearest));
    }
    page(title, &sections)
}

/// Plots of one metric, a line for each run that has it.
fn curves(runs: &[Run], split: &str, metric: &str, label: &str) -> Vec<Section> {
    let series: Vec<Series> = runs
        .iter()
        .map(|run| Series { name: run.name(), points: run.curve(split, metric), dashed: false })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return vec![Section::Text("No run has it.".to_owned())];
    }
    let plots = series.chunks(LINES).map(|series| {
        let lines = Lines {
            title: metric.to_owned(),
            x_label: "step".to_owned(),
            y_label: label.to_owned(),
            series: series.to_vec(),
        };
        Section::Picture(column(&[lines]))
    });
    plots.collect()
}

fn neighbours(run: &Run, nearest: &Nearest) -> Vec<Section> {
    let rows = match nearest {
        Ok(rows) => rows,
        Err(reason) => return vec![Section::Text(format!("{}: {reason}", run.name()))],
    };
    let most = rows.iter().map(|row| row.nearest.len()).max().unwrap_or(0);
    let header = ["row", "norm"].into_iter().map(str::to_owned).chain((1..=most).map(|place| place.to_string()));
    let mut table = Table::new(header);
    for (index, row) in rows.iter().enumerate() {
        let tokens = row.nearest.iter().map(|near| {
            let token = near.token.as_ref().map_or_else(|| near.id.to_string(), |text| format!("{text:?}"));
            format!("{token} {:.3}", near.distance)
        });
        table.rows.push([index.to_string(), format!("{:.3}", row.norm)].into_iter().chain(tokens).collect());
    }
    vec![Section::Text(run.name()), table.section()]
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
