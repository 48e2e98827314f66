"""Times a training step of softprompt, of PEFT and of plain torch on the same weights and rows, in turn.

    pip install -r benches/peers/requirements.txt
    cargo build --release
    python benches/peers/run.py                 # the whole table, about a quarter of an hour on two cores
    python benches/peers/run.py --only gpt2     # the rows whose name holds this
    python benches/peers/run.py --smoke         # tiny models: does it all run?

Before a row is timed, all sides must agree about its loss and its prompt's gradient. Each row's result is written when it is
done, and a row that is done is not run again: a run that was cut off goes on. README.md in benches/results says what
the files hold.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cases import CASES, SMOKE, Case, make_prompt, make_rows, read_tensor, tensor_bytes
from table import markdown

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LOSS_TOLERANCE, GRAD_TOLERANCE = 1e-4, 1e-3  # relative; of the gradient, of its norm
PACKAGES = ("torch", "transformers", "peft")
REST = 0.5  # seconds between turns, in which the last side's threads go to sleep


class Failed(Exception):
    """A row cannot be measured."""


def environment(threads: int) -> dict[str, str]:
    return os.environ | dict(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1",
                             TOKENIZERS_PARALLELISM="false")


class Worker:
    """A torch side in its own process, which is at rest unless it is asked."""

    def __init__(self, arguments: list, threads: int):
        self.name, self.errors = arguments[0], tempfile.TemporaryFile("w+")
        command = [sys.executable, str(HERE / "worker.py"), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                        env=environment(threads))

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or [f"exit code {code}" + (", out of memory?" if code == -9 else "")]
        raise Failed(f"{self.name}: {said[-1]}")

    def ask(self, line: str) -> dict:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Softprompt:
    """Our side: a fresh process each time."""

    def __init__(self, binary: Path, threads: int):
        self.binary, self.threads = binary, threads

    def run(self, *arguments) -> dict:
        command = [str(self.binary), *map(str, arguments), "--threads", str(self.threads), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(self.threads))
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
            raise Failed(f"softprompt {arguments[0]}: {' '.join(said) or f'exit code {done.returncode}'}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def bench(self, case: Case, folder: Path, steps: int, recompute: str = "none") -> dict:
        method = ["prompt", "--prompt", folder / "prompt.safetensors"] if case.trains_prompt else ["full"]
        return self.run("bench", folder / "model", "--data", folder / "rows.jsonl", "--method", *method,
                        "--recompute", recompute, "--warm-up", 1, "--steps", steps)

    def gradient(self, folder: Path, out: Path) -> dict:
        return self.run("gradient", "--model", folder / "model", "--prompt", folder / "prompt.safetensors",
                        "--data", folder / "rows.jsonl", "--out", out)


def check(what: str, found: float, expected: float, tolerance: float) -> None:
    if not abs(found - expected) <= tolerance * abs(expected):
        raise Failed(f"{what}: expected {expected:.8g} within {tolerance:g} of it, got {found:.8g}; nothing was timed")


def check_gradient(what: str, found: tuple[float, ...], expected: tuple[float, ...]) -> float:
    """The relative error in norm."""
    if len(found) != len(expected):
        raise Failed(f"{what}: expected a gradient of {len(expected)} numbers, got {len(found)}")
    error = math.dist(found, expected) / math.hypot(*expected)
    if not error <= GRAD_TOLERANCE:
        raise Failed(f"{what}: gradient differs from PEFT's by {error:.2g} of its norm, at most {GRAD_TOLERANCE:g}")
    return error


def our_memory(runs: list[dict], weights: int) -> dict:
    """The worst of several processes: what an allocator keeps between steps is not the same in all."""
    peaks = [told["peak_rss_bytes"] for told in runs]
    peak = None if None in peaks else max(peaks)
    return dict(peak_rss=peak, least_peak_rss=None if peak is None else min(peaks), above_weights=peak and peak - weights,
                device_above_weights=max(told["peak_above_weights_bytes"] for told in runs))


def torch_memory(ready: dict, peak: int) -> dict:
    if ready["resident"] is None:
        return dict(peak_rss=None, above_weights=None, above_start=None)
    return dict(peak_rss=peak, above_weights=peak - ready["weights"], above_start=peak - ready["resident"])


def measure(case: Case, folder: Path, ours: Softprompt, rounds: int, steps: int, say) -> dict:
    """One row of the table."""
    file = folder / "rows.jsonl"
    lengths = make_rows(case, file)
    if case.trains_prompt:
        make_prompt(case, folder / "prompt.safetensors")
    sides = case.sides
    weights = tensor_bytes(folder / "model" / "model.safetensors")
    result = dict(name=case.name, shape=case.shape, sizes=case.sizes(), method="prompt" if case.trains_prompt else "full",
                  prompt_rows=case.prompt_rows, examples=case.examples, tokens=case.tokens, batch_tokens=sum(lengths),
                  all_labels=case.all_labels, goal=case.goal, weights=weights, threads=ours.threads, load_before=os.getloadavg())
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(Worker([side, folder, ours.threads], ours.threads)) for side in sides}
        ready = {side: worker.answer() for side, worker in workers.items()}
        losses, gradients, memory = {}, {}, {}
        for side, worker in workers.items():
            # The first step is the warm-up and says the loss. The optimizer's state, which is large where all weights
            # are trained, is there from the second on.
            first = worker.ask(f"step {1 if case.trains_prompt else 2}")
            losses[side] = first["losses"][0]
            memory[side] = torch_memory(ready[side], first["peak"])
            say(f"{side} {first['seconds'][-1]:.2f} s, loss {losses[side]:.6f}")
            if case.trains_prompt:
                worker.ask(f"grad {folder / side}.safetensors")
                gradients[side] = read_tensor(folder / f"{side}.safetensors", "grad")
        if case.trains_prompt:
            out = folder / "ours.safetensors"
            out.unlink(missing_ok=True)
            losses["ours"] = ours.gradient(folder, out)["loss"]
            gradients["ours"] = read_tensor(out, "grad")
        else:
            losses["ours"] = ours.bench(case, folder, 1)["loss"]
        truth = sides[0]
        for side, loss in losses.items():
            check(f"{side}: loss, as {truth} has it", loss, losses[truth], LOSS_TOLERANCE)
        errors = {side: check_gradient(side, found, gradients[truth]) for side, found in gradients.items() if side != truth}
        result |= dict(losses=losses, gradient_errors=errors)

        seconds, details = {side: [] for side in [*sides, "ours"]}, []
        for number in range(rounds):
            turns = [sides[0], "ours", *sides[1:]]
            for side in turns if number % 2 == 0 else reversed(turns):
                time.sleep(REST)
                if side == "ours":
                    told = ours.bench(case, folder, steps)
                    details.append(told)
                    found, loss = told["median_seconds"], told["loss"]
                else:
                    # One step of PEFT's is as long as several of the others.
                    told = workers[side].ask(f"step {1 if side == 'peft' else steps}")
                    found, loss = statistics.median(told["seconds"]), told["losses"][-1]
                check(f"{side}: loss of the timed step", loss, losses[truth], LOSS_TOLERANCE)
                seconds[side].append(found)
            say(", ".join(f"{side} {seconds[side][-1]:.3f} s" for side in turns))
    memory["ours"] = our_memory(details, weights)
    for policy in case.recompute:
        told = ours.bench(case, folder, 1, policy)
        memory[f"ours, recompute {policy}"] = our_memory([told], weights) | dict(seconds=told["median_seconds"])
    middle = details[len(details) // 2]
    return result | dict(seconds=seconds, memory=memory, load_after=os.getloadavg(), phases=middle.get("phases"),
                         flops=middle.get("flops"), gflops_per_second=[told.get("gflops_per_second") for told in details],
                         gemm_ratio=[told.get("gemm_ratio") for told in details])


def machine(binary: Path) -> dict:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    try:
        ours = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{binary} does not run ({getattr(error, 'strerror', None) or error}): build it with cargo build --release, or name another with --softprompt")
    return dict(cpu=model[1] if model else platform.machine(), cores=len(os.sched_getaffinity(0)),
                memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), softprompt=ours,
                python=platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive = lambda text: max(1, int(text))  # noqa: E731
    parser.add_argument("--softprompt", type=Path, default=ROOT / "target" / "release" / "softprompt", metavar="BINARY")
    parser.add_argument("--threads", type=positive, default=2, help="of every side (default 2)")
    parser.add_argument("--rounds", type=positive, help="pairs of timings of each row (default 2 of slow rows, 4 of others)")
    parser.add_argument("--steps", type=positive, default=2, help="timed steps in a turn, PEFT's apart: it takes one (default 2)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="the rows whose name holds TEXT; may be given again")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default benches/results/<date>-<cpu>")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are made, and kept (default: a temporary folder)")
    parser.add_argument("--again", action="store_true", help="run rows that are done already")
    parser.add_argument("--smoke", action="store_true", help="tiny models, to see that everything runs; times mean nothing")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{sys.executable} has no {', '.join(missing)}: pip install -r benches/peers/requirements.txt")
    all_cases = SMOKE if args.smoke else CASES
    cases = [case for case in all_cases if not args.only or any(text in case.name for text in args.only)]
    if not cases:
        sys.exit(f"no row is named so; rows: {', '.join(case.name for case in all_cases)}")
    about = machine(args.softprompt)
    with contextlib.ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        slug = re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-")
        name = f"{datetime.date.today()}-{slug}"
        out = args.out or (work / "results" if args.smoke else ROOT / "benches" / "results" / name)
        out.mkdir(parents=True, exist_ok=True)
        failed = [case.name for case in cases if not attempt(case, args, work, out, about)]
        # In the table's order, with rows that other runs left here.
        done = [out / f"{case.name}.json" for case in all_cases]
        results = [json.loads(file.read_text()) for file in done if file.exists()]
        text = markdown(results)
        (out / "table.md").write_text(text)
        print(text)
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def attempt(case: Case, args: argparse.Namespace, work: Path, out: Path, about: dict) -> bool:
    """Measures a row and writes its result, unless that is done; tells whether it is."""
    file = out / f"{case.name}.json"
    if file.exists() and not args.again:
        print(f"{case.name}: done before", file=sys.stderr)
        return True
    say = lambda text: print(f"{case.name}: {text}", file=sys.stderr, flush=True)  # noqa: E731
    folder = work / case.shape
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / "made").exists():
            with Worker(["make", case.shape, folder / "model"], args.threads) as maker:
                maker.answer()
            (folder / "made").touch()
        ours = Softprompt(args.softprompt, args.threads)
        started = time.monotonic()
        result = measure(case, folder, ours, args.rounds or case.rounds, args.steps, say)
    except Failed as failure:
        say(str(failure))
        return False
    result |= dict(date=datetime.datetime.now().isoformat(timespec="seconds"), took=time.monotonic() - started, machine=about)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(file)
    return True


if __name__ == "__main__":
    sys.exit(main())
