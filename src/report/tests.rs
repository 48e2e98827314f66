use super::*;
use crate::inspect::Neighbour;
use std::fs;
use std::path::{Path, PathBuf};

const HOSTILE: &str = "</td><script>alert(1)</script>&\"'";

/// A run's directory with two lines of training and two evaluations.
fn run(dir: &Path, name: &str, more: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(&path).unwrap();
    let config = format!(
        "model = \"m\"\noutput_dir = {name:?}\ntrain_file = \"t.jsonl\"\neval_file = \"e.jsonl\"\n\
         metric_for_best_model = \"accuracy\"\n{more}\n"
    );
    fs::write(path.join("run.toml"), config).unwrap();
    let lines = [
        r#"{"step":10,"split":"train","time":100.0,"loss":2.5,"grad_norm":1}"#,
        r#"{"step":10,"split":"eval","time":101.0,"loss":2.0,"accuracy":0.75}"#,
        r#"{"step":20,"split":"train","time":102.0,"loss":1.5,"grad_norm":1}"#,
        r#"{"step":20,"split":"eval","time":103.5,"loss":1.75,"accuracy":0.5}"#,
    ];
    fs::write(path.join("metrics.jsonl"), lines.join("\n") + "\n").unwrap();
    path
}

#[test]
fn runs_are_found_read_and_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    for (name, rows) in [("sweep/P100", "100"), ("sweep/P20", "20"), ("sweep/P5/deep", "5")] {
        run(dir.path(), name, &format!("num_virtual_tokens = {rows}"));
    }
    let best = dir.path().join("sweep/P20/best");
    fs::create_dir_all(&best).unwrap();
    fs::copy(dir.path().join("sweep/P20/run.toml"), best.join("run.toml")).unwrap();
    let sweep = dir.path().join("sweep");
    let runs = find(&[sweep.clone(), sweep.join("P20")]).unwrap();
    let rows: Vec<usize> = runs.iter().map(|run| run.config.num_virtual_tokens).collect();
    assert_eq!(rows, [5, 20, 100], "by number, each once, none inside another");
    assert_eq!(varied(&runs), ["num_virtual_tokens"]);
    let found = &runs[0];
    assert_eq!(found.best(), Some(Best { metric: "accuracy", value: 0.75, step: 10 }));
    assert_eq!((found.steps(), found.last_loss(), found.seconds()), (20, Some(1.5), Some(3.5)));
    let table = table(&runs);
    assert_eq!(table.header, ["run", "num_virtual_tokens", "steps", "best", "last loss", "seconds"]);
    assert_eq!(table.rows[2][1..], ["100", "20", "accuracy 0.7500 (step 10)", "1.5000", "3.5"]);

    for (path, got) in [("nothing", "nothing there"), ("sweep/P5/deep/metrics.jsonl", "neither")] {
        let error = find(&[dir.path().join(path)]).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains(got), "{error}");
    }
}

#[test]
fn what_is_missing_is_said_and_what_is_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), "a", "");
    fs::remove_file(path.join("metrics.jsonl")).unwrap();
    let runs = find(std::slice::from_ref(&path)).unwrap();
    assert_eq!((runs[0].best(), runs[0].last_loss(), runs[0].seconds(), runs[0].steps()), (None, None, None, 0));
    assert_eq!(table(&runs).rows[0][1..], ["0", "–", "–", "–"]);
    let page = html("t", &runs, &[Err("no prompt".into())]);
    assert!(page.contains("No run has it.") && page.contains("no prompt"));

    fs::write(path.join("metrics.jsonl"), "{\"step\":1,\"split\":\"train\",\"time\":1,\"loss\":1}\nnonsense\n")
        .unwrap();
    let error = find(std::slice::from_ref(&path)).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl:2") && error.contains("nonsense"), "{error}");

    fs::write(path.join("run.toml"), "model = 3\n").unwrap();
    let error = find(&[path]).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("run.toml:1"), "{error}");
}

#[test]
fn hostile_names_stay_text() {
    let dir = tempfile::tempdir().unwrap();
    for (name, template) in [("a", HOSTILE), ("b", "x")] {
        run(dir.path(), name, &format!("separator = {}", toml::Value::from(template)));
    }
    let hostile = dir.path().join(HOSTILE.replace('/', "_"));
    fs::rename(dir.path().join("a"), &hostile).unwrap();
    let runs = find(&[hostile, dir.path().join("b")]).unwrap();
    let near = |token: &str| Neighbour {
        id: 7,
        token: Some(token.into()),
        is_special: false,
        is_unused: false,
        distance: 0.5,
    };
    let row = RowNeighbours { norm: 1.0, nearest: vec![near(HOSTILE), near("\u{202e}\u{0}")] };
    let page = html(HOSTILE, &runs, &[Ok(vec![row]), Err(HOSTILE.into())]);
    assert!(!page.contains("<script") && !page.contains("</td><s") && !page.contains('\u{0}'));
    assert!(!page.contains("href=") && !page.contains("src=") && page.contains("prefers-color-scheme:dark"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert_eq!(page.matches("<svg").count(), 3, "training loss, held-out accuracy, held-out loss");
    assert!(page.contains("norm</th>"));
}

#[test]
fn many_runs_make_plots_whose_colours_can_be_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..2 * LINES + 1 {
        run(dir.path(), &format!("s{seed}"), &format!("seed = {seed}"));
    }
    let runs = find(&[dir.path().to_path_buf()]).unwrap();
    let nearest: Vec<Nearest> = runs.iter().map(|_| Err("none".into())).collect();
    assert_eq!(html("t", &runs, &nearest).matches("<svg").count(), 9);
}
