//! `softprompt sweep`: members against runs of their own, a member that diverges, going on, jobs for others, bad input.

mod common;

use common::bench::{Bench, letters, refused, run, text};
use common::{Golden, close};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Output;

/// Flags that `train` and `sweep` take alike.
fn flags<'a>(model: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec!["--json", "--quiet", "--model", model, "--output-dir", out, "--learning-rate", "0.05"];
    flags.extend(["--per-device-train-batch-size", "2", "--threads", "2"]);
    flags.extend(more);
    flags
}

fn command(bench: &Bench, command: &str, out: &str, more: &[&str]) -> Output {
    let (model, out) = (bench.at("model"), bench.at(out));
    run([&[command][..], &flags(&model, &out, more)].concat())
}

/// The first line of the output, which is the result.
fn result(output: &Output) -> Value {
    let stdout = text(&output.stdout);
    let line = stdout.lines().next().unwrap_or_else(|| panic!("no result: {}", text(&output.stderr)));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line} {}", text(&output.stderr)))
}

#[track_caller]
fn done(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    result(output)
}

/// Rows of ids: enough for several steps, of uneven length.
fn rows(bench: &Bench, name: &str, count: usize, seed: usize) {
    let row = |at: usize| {
        let length = 1 + (at * 7 + seed) % 9;
        let input: Vec<usize> = (0..length).map(|i| 2 + (at * 13 + i * 5 + seed) % 250).collect();
        format!("{}\n", json!({"input_ids": input, "target_ids": [2 + (at + seed) % 7]}))
    };
    bench.write(name, (0..count).map(row).collect::<String>());
}

fn prompt(dir: &Path, name: &str) -> Vec<f64> {
    Golden::read(&dir.join(name).join("prompt.safetensors")).numbers("prompt")
}

/// Lines of metrics.jsonl without what differs from run to run.
fn metrics(dir: &Path) -> Vec<Value> {
    let strip = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let map = value.as_object_mut().unwrap();
        map.retain(|key, _| !key.contains("time") && !key.contains("second"));
        value
    };
    fs::read_to_string(dir.join("metrics.jsonl")).unwrap().lines().map(strip).collect()
}

#[test]
fn members_are_the_runs_of_their_own_bit_for_bit() {
    let bench = Bench::new();
    rows(&bench, "a.jsonl", 11, 0);
    rows(&bench, "b.jsonl", 7, 3);
    let (a, b) = (bench.at("a.jsonl"), bench.at("b.jsonl"));
    let toml = format!(
        "max_steps = 9\neval_steps = 2\nsave_steps = 4\nlogging_steps = 1\nearly_stopping_patience = 2\n\
         max_grad_norm = 0.5\n\
         [sweep]\nnum_virtual_tokens = [2, 9]\n\
         [[sweep.paired]]\ntrain_file = {a:?}\neval_file = {b:?}\noptim = 'adamw'\ngradient_accumulation_steps = 1\nseed = 1\n\
         [[sweep.paired]]\ntrain_file = {b:?}\neval_file = {a:?}\noptim = 'adafactor'\ngradient_accumulation_steps = 3\nseed = 2\n"
    );
    bench.write("sweep.toml", toml);
    let config = bench.at("sweep.toml");
    let found = done(&command(&bench, "sweep", "out", &["--config", &config]));
    let members = found["members"].as_array().unwrap();
    assert_eq!(members.len(), 4);
    let mut steps = Vec::new();
    for member in members {
        let name = member["name"].as_str().unwrap();
        let overrides = member["overrides"].as_object().unwrap();
        let common = ["--max-steps", "9", "--eval-steps", "2", "--save-steps", "4", "--logging-steps", "1"];
        let mut own: Vec<String> = common.iter().map(|flag| flag.to_string()).collect();
        own.extend(["--early-stopping-patience", "2", "--max-grad-norm", "0.5"].map(str::to_owned));
        for (key, value) in overrides {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            own.extend([format!("--{}", key.replace('_', "-")), value]);
        }
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let alone = done(&command(&bench, "train", &format!("alone-{name}"), &own));
        for key in ["steps", "ended", "loss", "best", "prompt_sha256"] {
            assert_eq!(member[key], alone[key], "{name}: {key}");
        }
        let (dir, dir_alone) = (bench.path("out").join(name), bench.path(&format!("alone-{name}")));
        for which in ["initial", "best", "final"] {
            close(&format!("{name} {which}"), &prompt(&dir, which), &prompt(&dir_alone, which), 0.0);
        }
        assert_eq!(metrics(&dir), metrics(&dir_alone), "{name}");
        assert!(dir.join("run.toml").exists() && dir.join(format!("checkpoint-{}", member["steps"])).exists());
        steps.push(member["steps"].as_u64().unwrap());
    }
    assert!(members.iter().any(|member| member["ended"] == "early_stop"), "no member stopped early: {steps:?}");
    let written: Value = serde_json::from_slice(&fs::read(bench.path("out/sweep.json")).unwrap()).unwrap();
    assert_eq!(written, found);

    // However many go together, and on however many threads.
    for (out, more) in
        [("pairs", ["--group-size", "2"]), ("one", ["--group-size", "1"]), ("limit", ["--memory-limit", "600KB"])]
    {
        let again = done(&command(&bench, "sweep", out, &[&["--config", &config][..], &more].concat()));
        let hashes = |value: &Value| -> Vec<Value> {
            value["members"].as_array().unwrap().iter().map(|member| member["prompt_sha256"].clone()).collect()
        };
        assert_eq!(hashes(&again), hashes(&found), "{out}");
    }
    let (model, out) = (bench.at("model"), bench.at("thread"));
    let mut one_thread = flags(&model, &out, &["--config", &config]);
    let at = one_thread.iter().position(|flag| *flag == "--threads").unwrap();
    one_thread[at + 1] = "1";
    let again = done(&run([&["sweep"][..], &one_thread].concat()));
    assert_eq!(again["members"][3]["prompt_sha256"], found["members"][3]["prompt_sha256"]);
}

#[test]
fn a_member_that_diverges_ends_alone_and_a_sweep_goes_on_where_it_stopped() {
    let bench = Bench::new();
    rows(&bench, "rows.jsonl", 9, 0);
    let rows = bench.at("rows.jsonl");
    let flags = ["--train-file", &rows, "--num-virtual-tokens", "3", "--save-steps", "2"];
    let (model, out) = (bench.at("model"), bench.at("out"));
    let sweep = |steps: &str, out: &str, more: &[&str]| {
        let mut all = vec!["sweep", "--json", "--quiet", "--model", &model, "--output-dir", out, "--max-steps", steps];
        all.extend(["--per-device-train-batch-size", "2", "--sweep", "learning_rate=0.1,1e38,0.3"]);
        all.extend(flags);
        all.extend(more);
        run(all)
    };
    let output = sweep("5", &out, &[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let found = result(&output);
    let members = found["members"].as_array().unwrap();
    let ended: Vec<&str> = members.iter().map(|member| member["ended"].as_str().unwrap()).collect();
    assert_eq!(ended, ["done", "diverged", "done"]);
    assert_eq!(members[1]["error"]["code"], 5);
    assert!(members[1]["error"]["message"].as_str().unwrap().contains("rows.jsonl"));
    let bad = members[1]["name"].as_str().unwrap();
    assert!(bench.path("out").join(bad).join("last_good/prompt.safetensors").exists());
    assert!(text(&output.stderr).contains("learning-rate"), "{}", text(&output.stderr));

    // The same two without the third, and one step further.
    let whole = bench.at("whole");
    let straight = result(&sweep("7", &whole, &[]));
    refused("not again", &sweep("7", &out, &[]), 3, &["--resume"]);
    let further = result(&sweep("7", &out, &["--resume", "true"]));
    for at in [0, 2] {
        assert_eq!(further["members"][at]["steps"], 7);
        assert_eq!(further["members"][at]["prompt_sha256"], straight["members"][at]["prompt_sha256"]);
    }
}

/// The jobs of a sweep with values that a shell, YAML or JSON could take for something else.
fn emitted(bench: &Bench, form: &str, more: &[&str]) -> String {
    let mut flags = vec!["sweep", "--output-dir", "out/My Sweep", "--train-file", "t.jsonl"];
    if !more.iter().any(|list| list.starts_with("model=")) {
        flags.extend(["--model", "m o'del"]);
    }
    flags.extend(["--template", "{text} $(id) \"x\"\n#SBATCH --y", "--emit", form]);
    flags.extend(more);
    let output = run(flags);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!bench.path("out").exists() && !Path::new("out/My Sweep").exists());
    text(&output.stdout)
}

#[test]
fn jobs_are_written_instead() {
    let bench = Bench::new();
    let lists = ["--sweep", "learning_rate=0.1,1e-5", "--sweep", "dtype=f32"];
    let slurm = emitted(&bench, "slurm", &lists);
    let job = |at: usize, name: &str, rate: &str| {
        format!(
            "{at}) # {name}\n  exec softprompt train '--model=m o'\\''del' '--output-dir=out/My Sweep/{name}' \
             --train-file=t.jsonl '--template={{text}} $(id) \"x\"\n#SBATCH --y' --learning-rate={rate} --dtype=f32\n  ;;\n"
        )
    };
    let want = format!(
        "#!/bin/bash\n#SBATCH --job-name=softprompt-my-sweep\n#SBATCH --array=0-1\n\
         # Other options, as for GPUs and time, go on the command line: sbatch --gres=gpu:1 --time=1:00:00 FILE\n\
         set -euo pipefail\n\ncase \"${{SLURM_ARRAY_TASK_ID:?run this with sbatch}}\" in\n{}{}\
         *)\n  echo \"no member $SLURM_ARRAY_TASK_ID\" >&2\n  exit 2\n  ;;\nesac\n",
        job(0, "learning_rate=0.1,dtype=f32", "0.1"),
        job(1, "learning_rate=1e-5,dtype=f32", "1e-5")
    );
    assert_eq!(slurm, want);

    let k8s = emitted(&bench, "k8s", &["--sweep", "seed=7", "--image", "registry.example/sp:1 #"]);
    let want = "---\napiVersion: batch/v1\nkind: Job\nmetadata:\n  name: \"softprompt-my-sweep-0\"\n  annotations:\n    \
                softprompt/member: \"seed=7\"\nspec:\n  backoffLimit: 0\n  template:\n    spec:\n      \
                restartPolicy: Never\n      containers:\n        - name: softprompt\n          \
                image: \"registry.example/sp:1 #\"\n          command: [\"softprompt\", \"train\"]\n          args:\n            \
                - \"--model=m o'del\"\n            - \"--output-dir=out/My Sweep/seed=7\"\n            \
                - \"--train-file=t.jsonl\"\n            \
                - \"--template={text} $$(id) \\\"x\\\"\\n#SBATCH --y\"\n            - \"--seed=7\"\n";
    assert_eq!(k8s, want);

    let jsonl = emitted(
        &bench,
        "jsonl",
        &["--zip", "--sweep", "model=a/x,b/x", "--sweep", "labels=[[\"p, q\",\"r\"],[\"s\",\"t\"]]"],
    );
    let lines: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["model=x", "model=x-2"]);
    assert_eq!(lines[1]["overrides"], json!({"model": "b/x", "labels": ["s", "t"]}));
    let template = "--template={text} $(id) \"x\"\n#SBATCH --y";
    let argv =
        ["softprompt", "train", "--model=a/x", "--output-dir=out/My Sweep/model=x", "--train-file=t.jsonl", template];
    assert_eq!(lines[0]["argv"], json!([&argv[..], &["--labels=[\"p, q\",\"r\"]"]].concat()));
}

#[cfg(unix)]
#[test]
fn a_job_does_what_the_member_would_have_done() {
    let bench = Bench::new();
    bench.write("model/tokenizer.json", letters().1);
    let lines = [("one", "odd"), ("two", "even"), ("three", "odd"), ("four", "even")];
    let lines = lines.map(|(text, label)| format!("{}\n", json!({"text": text, "label": label})));
    bench.write("it's text.jsonl", lines.concat());
    let (model, data, script) = (bench.at("model"), bench.at("it's text.jsonl"), bench.at("jobs.sh"));
    let sweep = |out: &str, more: &[&str]| {
        let mut all = vec!["sweep", "--json", "--quiet", "--model", &model, "--output-dir", out, "--max-steps", "2"];
        all.extend(["--template", "{text} is", "--target", "{label}", "--train-file", &data, "--threads", "2"]);
        all.extend(["--separator", "", "--prompt-tuning-init", "class_labels", "--labels", "[\"odd\",\"even\"]"]);
        all.extend(["--sweep", "num_virtual_tokens=4,6", "--sweep", "append_eos=false"]);
        all.extend(more);
        let output = run(all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output
    };
    let together = result(&sweep(&bench.at("together"), &[]));
    let told = result(&sweep(&bench.at("jobs"), &["--emit", "slurm", "--emit-file", &script]));
    assert_eq!(told["jobs"], 2);
    let folder = common::program().parent().unwrap().to_path_buf();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    for (at, member) in together["members"].as_array().unwrap().iter().enumerate() {
        let mut bash = std::process::Command::new("bash");
        bash.arg(&script).env("PATH", &path).env("SLURM_ARRAY_TASK_ID", at.to_string());
        let output = bash.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let name = member["name"].as_str().unwrap();
        let (a, b) = (bench.path("together").join(name), bench.path("jobs").join(name));
        close(name, &prompt(&a, "final"), &prompt(&b, "final"), 0.0);
    }
    refused(
        "jobs there",
        &run([
            "sweep",
            "--model",
            &model,
            "--output-dir",
            &bench.at("j"),
            "--train-file",
            &data,
            "--sweep",
            "seed=1",
            "--emit",
            "jsonl",
            "--emit-file",
            &script,
        ]),
        2,
        &["jobs.sh", "--force"],
    );
}

#[test]
fn what_cannot_be_swept_is_refused_and_nothing_is_written() {
    let bench = Bench::new();
    let (model, rows, out) = (bench.at("model"), bench.at("rows.jsonl"), bench.at("never"));
    let sweep = |more: &[&str]| {
        let mut all = vec!["sweep", "--output-dir", &out];
        let needed =
            [("model", "--model", &*model), ("train_file", "--train-file", &*rows), ("max_steps", "--max-steps", "1")];
        for (key, flag, value) in needed {
            if key == "max_steps" || !more.iter().any(|list| list.starts_with(&format!("{key}="))) {
                all.extend([flag, value]);
            }
        }
        all.extend(more);
        run(all)
    };
    let missing = bench.at("missing.jsonl");
    let file = format!("train_file={rows},{missing}");
    for (code, words, more) in [
        (3, &["sweep", "at least one key"][..], &[][..]),
        (3, &["learning_rate", "a number > 0", "\"x\""], &["--sweep", "learning_rate=0.1,x"]),
        (3, &["seed", "differ", "number 3"], &["--sweep", "seed=1,2,1"]),
        (3, &["unknown", "learning_rate"], &["--sweep", "lr=1,2"]),
        (2, &["--sweep seed", "no ="], &["--sweep", "seed"]),
        (3, &["device", "one pass", "--emit"], &["--sweep", "device=cpu,cuda"]),
        (3, &["dtype", "one pass", "--emit"], &["--sweep", "dtype=f32,f64"]),
        (3, &["model", "one pass", "--emit"], &["--sweep", "model=a,b"]),
        (3, &["output_dir", "directory of its own"], &["--sweep", "output_dir=a,b"]),
        (3, &["output_dir", "directory of its own"], &["--sweep", "output_dir=a,b", "--emit", "jsonl"]),
        (3, &["resume"], &["--sweep", "resume=true,false"]),
        (3, &["seed", "twice"], &["--sweep", "seed=1,2", "--sweep", "seed=3"]),
        (3, &["max_steps", "both"], &["--sweep", "max_steps=1,2"]),
        (2, &["--zip", "3"], &["--zip", "--sweep", "seed=1,2", "--sweep", "init_top_k=1,2,3"]),
        (2, &["--zip"], &["--zip"]),
        (3, &["labels", "list"], &["--sweep", "labels=a,b"]),
        (3, &["labels", "list"], &["--sweep", "labels=[[1,2]]"]),
        (3, &["JSON"], &["--sweep", "labels=[[\"a\""]),
        (3, &["seed"], &["--sweep", "seed="]),
        (3, &["prompt_tuning_init", "text"], &["--sweep", "prompt_tuning_init=random,text"]),
        (
            3,
            &["4096"],
            &[
                "--sweep",
                "seed=1,2,3,4,5,6,7,8,9",
                "--sweep",
                "init_top_k=1,2,3,4,5,6,7,8,9",
                "--sweep",
                "save_steps=1,2,3,4,5,6,7,8,9",
                "--sweep",
                "logging_steps=1,2,3,4,5,6,7,8,9",
            ],
        ),
        (3, &["num_virtual_tokens", "positions"], &["--sweep", "num_virtual_tokens=2,1000000"]),
        (4, &["missing.jsonl"], &["--sweep", &file]),
        (3, &["method", "--emit"], &["--method", "full", "--sweep", "seed=1,2"]),
        (3, &["resume", "true or false"], &["--resume", "there", "--sweep", "seed=1,2"]),
        (3, &["memory_limit", "at least"], &["--memory-limit", "10KB", "--sweep", "seed=1,2"]),
        (2, &["--emit"], &["--sweep", "seed=1", "--emit", "pbs"]),
        (2, &["--group-size"], &["--sweep", "seed=1", "--group-size", "0"]),
        (3, &["--template", "NUL"], &["--sweep", "template=[\"{a}\\u0000\"]", "--emit", "slurm"]),
    ] {
        refused(&format!("{more:?}"), &sweep(more), code, words);
        assert!(!Path::new(&out).exists(), "{more:?}: something was written");
    }
    for (toml, words) in [
        ("sweep = 1", &["a table"][..]),
        ("[sweep]\nseed = 1", &["sweep.seed", "array"]),
        ("[sweep]\nseeds = [1]", &["bad.toml:1", "sweep.seeds", "seed"]),
        ("[sweep]\nseed = []", &["sweep.seed", "at least one"]),
        ("[sweep]\nseed = [-1]", &["sweep.seed", "-1"]),
        ("[sweep]\npaired = [1]", &["sweep.paired, row 1", "table"]),
        ("[[sweep.paired]]\nseed = 1\n[[sweep.paired]]\ninit_top_k = 2", &["row 2", "seed", "nothing"]),
        ("[[sweep.paired]]\nseed = 1\n[[sweep.paired]]\nseed = 2\ninit_top_k = 2", &["row 2", "init_top_k"]),
        ("[[sweep.paired]]\nseed = 1\n[[sweep.paired]]\nseed = 1", &["differ"]),
        ("[[sweep.paired]]", &["at least one key"]),
    ] {
        bench.write("bad.toml", toml);
        refused(toml, &sweep(&["--config", &bench.at("bad.toml")]), 3, words);
        assert!(!Path::new(&out).exists(), "{toml}: something was written");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_sweep_goes_on_with_the_same_bits() {
    let bench = Bench::new();
    rows(&bench, "many.jsonl", 40, 1);
    let (model, data) = (bench.at("model"), bench.at("many.jsonl"));
    let arguments = |out: &str, more: &[&str]| -> Vec<String> {
        let mut all = vec!["sweep", "--json", "--model", &model, "--output-dir", out, "--train-file", &data];
        all.extend(["--sweep", "seed=1,2,3", "--max-steps", "400", "--logging-steps", "1", "--save-steps", "1000"]);
        all.extend(more);
        all.iter().map(|flag| flag.to_string()).collect()
    };
    let (out, whole) = (bench.at("out"), bench.at("whole"));
    let straight = done(&run(arguments(&whole, &[]).iter().map(String::as_str)));
    let mut child = std::process::Command::new(common::program())
        .args(arguments(&out, &[]))
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    // In the middle of it.
    lines.by_ref().map_while(Result::ok).find(|line| line.contains("step 20/")).unwrap();
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(said.iter().any(|line| line.contains("--resume true")), "{said:?}");
    let written: Value = serde_json::from_slice(&fs::read(bench.path("out/sweep.json")).unwrap()).unwrap();
    assert!(written["members"].as_array().unwrap().iter().all(|member| member["ended"] == "interrupted"));

    // A member of which nothing is there begins anew.
    fs::remove_dir_all(bench.path("out/seed=3")).unwrap();
    let found = done(&run(arguments(&out, &["--resume", "true"]).iter().map(String::as_str)));
    for at in 0..3 {
        assert_eq!(found["members"][at]["prompt_sha256"], straight["members"][at]["prompt_sha256"], "{at}");
        assert_eq!(found["members"][at]["steps"], 400);
    }
}
