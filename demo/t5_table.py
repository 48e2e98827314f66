#!/usr/bin/env python3
"""What demo/t5.sh found, from the folder of its runs: tables on stdout, and rows in results.json there."""
import collections
import json
import statistics
import sys
from pathlib import Path

out = Path(sys.argv[1])


def read(path):
    return json.loads(path.read_text()) if path.is_file() else None


def held_out_loss(run):
    """That of a run's last evaluation."""
    path = out / run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    losses = [line["loss"] for line in lines if line["split"] == "eval"]
    return losses[-1] if losses else None


def tested(result):
    """A test's accuracy, and its loss in nats a token of the right label."""
    return {"accuracy": result["accuracy"], "loss": result["loss"]}


def prompts(name):
    """A row for each prompt; those of the learning rate with the best mean accuracy on the dev rows are the chosen ones."""
    sweep, test = read(out / f"prompt-{name}" / "sweep.json"), read(out / f"prompt-{name}.test.json")
    if not (sweep and test):
        return []
    # One prompt alone has its numbers at the top.
    results = {Path(one["path"]).parent.name: one for one in test.get("prompts", [])}
    by_rate = collections.defaultdict(list)
    for member in sweep["members"]:
        if member.get("best"):
            given = member["overrides"]
            by_rate[given.get("learning_rate")].append(
                {"run": "prompt", "on": name, "learning_rate": given.get("learning_rate"), "seed": given.get("seed"),
                 "dev": member["best"]["value"], "step": member["best"]["step"],
                 **tested(results.get(member["name"], test))})
    best = max(by_rate, key=lambda rate: statistics.mean(row["dev"] for row in by_rate[rate]))
    return [row | {"chosen": rate == best} for rate, rows in by_rate.items() for row in rows]


def full(name):
    rows = []
    for path in sorted(out.glob(f"full-{name}-*.test.json")):
        run = path.name.removesuffix(".test.json")
        best = read(out / run / "best" / "best.json")
        rows.append({"run": "full", "on": name, "seed": int(run.rsplit("-", 1)[1]), "dev": best["value"],
                     "step": best["step"], **tested(read(path))})
    return rows


def zero_shot(name):
    test = read(out / f"zero-shot-{name}.test.json")
    return [{"run": "zero-shot", "on": name, **tested(test)}] if test else []


def cell(rows, metric, factor=1.0, digits=1):
    values = [factor * row[metric] for row in rows]
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "–"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(title, columns, lines):
    print(f"{title}\n\n| model | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, cells in lines:
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


NAMES = {"span": "span corruption", "sentinel": "span corruption, labels behind a sentinel", "adapted": "LM-adapted",
         "decoder-span": "span corruption, prompt on the decoder", "decoder-adapted": "LM-adapted, prompt on the decoder",
         "fresh": "fresh weights"}
OBJECTIVES = ["span_corruption", "prefix_lm"]

everything, lines = [], []
for base in ("span", "adapted"):
    losses = [held_out_loss(f"loss-{base}-{objective}") for objective in OBJECTIVES]
    everything += [{"run": "pretrain", "on": base, "objective": o, "loss": loss} for o, loss in zip(OBJECTIVES, losses)]
    lines.append((NAMES[base], ["–" if loss is None else f"{loss:.3f}" for loss in losses]))
table("Loss on held-out texts, nats a token:", ["span corruption", "prefix LM"], lines)

found = {name: (zero_shot(name), [row for row in prompts(name) if row["chosen"]], full(name)) for name in NAMES}
everything += [row for name in NAMES for row in zero_shot(name) + prompts(name) + full(name)]
columns = ["zero-shot", "prompt tuning", "full fine-tuning"]
accuracies = [(NAMES[name], [cell(rows, "accuracy", 100) for rows in kinds]) for name, kinds in found.items()]
table("Accuracy on the test rows, % (mean ± sd over seeds):", columns, accuracies)
losses = [(NAMES[name], [cell(rows, "loss", 1, 2) for rows in kinds]) for name, kinds in found.items()]
table("Loss of the right label on them, nats a token:", columns, losses)
(out / "results.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in everything) + "\n]\n")
