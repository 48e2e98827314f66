//! `softprompt report`: runs joined into one page.

use super::options::ComputeArgs;
use super::{Terminal, printable, refuse_to_overwrite};
use crate::config::Method;
use crate::error::{Error, Result};
use crate::inspect::neighbours;
use crate::models::Model;
use crate::prompt::PromptFile;
use crate::report::{Nearest, Run, find, html, table, varied};
use crate::storage::{atomic_write, check_writable};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// Directories of runs, or ones that hold runs, as those of sweeps and experiments
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// The model in whose vocabulary to look for neighbours of the prompts' rows; without it each run's own
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Neighbours of each row; 0 leaves them out, and needs no model
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: u16,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &ReportArgs, terminal: &Terminal) -> Result<()> {
    refuse_to_overwrite(&args.out, args.force)?;
    let runs = find(&args.runs)?;
    check_writable(&args.out)?;
    let nearest = nearest(args, &runs, terminal)?;
    let title = format!("softprompt report: {} runs", runs.len());
    atomic_write(&args.out, html(&title, &runs, &nearest).as_bytes())?;
    let keys = varied(&runs);
    let of_runs: Vec<Value> = runs
        .iter()
        .zip(&nearest)
        .map(|(run, nearest)| {
            let varied: serde_json::Map<_, _> =
                keys.iter().map(|&key| (key.to_owned(), json!(run.value(key)))).collect();
            json!({
                "path": run.name(), "varied": varied, "steps": run.steps(), "best": run.best(),
                "last_loss": run.last_loss(), "seconds": run.seconds(), "neighbours": nearest.as_ref().ok(),
                "no_neighbours": nearest.as_ref().err(),
            })
        })
        .collect();
    let json = json!({"out": args.out.display().to_string(), "varied": keys, "runs": of_runs});
    terminal.result(&json, &format!("{}\nreport in {}", table(&runs).text(), printable(&args.out.to_string_lossy())))
}

/// What the rows of each run's best prompt are near to. A model that a run names and that is gone leaves its runs without; one
/// named on the command line must be there.
fn nearest(args: &ReportArgs, runs: &[Run], terminal: &Terminal) -> Result<Vec<Nearest>> {
    let mut opened: Option<(&Path, std::result::Result<Model, Error>)> = None;
    let mut found = Vec::with_capacity(runs.len());
    for run in runs {
        if args.top == 0 {
            found.push(Err("neighbours were left out".to_owned()));
            continue;
        }
        if run.config.method != Method::Prompt {
            found.push(Err("weights were trained, there is no prompt".to_owned()));
            continue;
        }
        let path = args.model.as_deref().unwrap_or(&run.config.model);
        if opened.as_ref().is_none_or(|(known, _)| *known != path) {
            // The one before goes first: two may not fit.
            drop(opened.take());
            terminal.note(&format!("neighbours in {}", path.display()));
            opened = Some((path, args.compute.open(path)));
        }
        let near = match opened.as_ref().map(|(_, model)| model) {
            Some(Ok(model)) => of_run(run, model, args.top.into()).map_err(|error| error.to_string()),
            Some(Err(error)) => Err(format!("the model could not be opened: {error}")),
            None => Err("no model".to_owned()),
        };
        found.push(near);
    }
    match opened {
        Some((_, Err(error))) if args.model.is_some() => Err(error),
        _ => Ok(found),
    }
}

fn of_run(run: &Run, model: &Model, top: usize) -> Result<Vec<crate::inspect::RowNeighbours>> {
    let path = ["best", "final"].map(|name| run.path.join(name)).into_iter().find(|path| path.exists());
    let prompt = PromptFile::read(path.unwrap_or_else(|| run.path.join("best")))?;
    prompt.expect_width(model.config().hidden_size, model.name())?;
    let values = prompt.values.to_vec::<f64>();
    Ok(model.device().run(|| neighbours(model, &values, top))?.0)
}
