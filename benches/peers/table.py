"""The results of rows as Markdown."""

from statistics import median

MIB = 1 << 20
# Of the memory above the weights at the first row: whose, at most what part of whose.
FIRST, FULL = "smollm2-100-32-32", "smollm2-full-32-32"
MEMORY_GOALS = [("ours", FIRST, "peft", 8), ("ours", FULL, "full", 4), ("ours, recompute mlp", FULL, "full", 10)]
NAMES = {"peft": "PEFT", "shared": "torch, shared prompt", "full": "torch, all weights", "ours": "softprompt"}


def ratios(result: dict, peer: str, us: str = "ours") -> list[float]:
    """Pair by pair, sorted."""
    return sorted(theirs / own for theirs, own in zip(result["seconds"][peer], result["seconds"][us], strict=True))


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    return [*lines, ""]


def verdict(value: float, goal: float | None) -> list[str]:
    if goal is None:
        return ["", ""]
    return [f"≥ {goal:g}", "met" if value >= goal else "missed"]


def seconds(result: dict, side: str) -> str:
    return f"{median(result['seconds'][side]):.3f}"


def times(results: list[dict]) -> list[str]:
    lines, prompt, full = [], [], []
    for result in results:
        start = [result["name"], result["sizes"]]
        if result["method"] == "prompt":
            found = ratios(result, "peft")
            shared = "shared" in result["seconds"]  # not of an encoder–decoder
            cells = [seconds(result, side) if side in result["seconds"] else "" for side in ("peft", "shared", "ours")]
            others = [spread(ratios(result, "peft", "shared")), spread(ratios(result, "shared"))] if shared else ["", ""]
            prompt.append([*start, *cells, spread(found), *verdict(median(found), result["goal"]), *others])
        else:
            found = ratios(result, "full")
            cells = [seconds(result, side) for side in ("full", "ours")]
            full.append([*start, *cells, spread(found), *verdict(median(found), result["goal"])])
    if prompt:
        lines += ["Prompt tuning, seconds of a step; ratios pair by pair: median (least to most).", ""]
        head = ["row", "P, B, T", "PEFT", "torch, shared prompt", "softprompt", "PEFT : softprompt", "goal", "",
                "PEFT : shared (the algorithm)", "shared : softprompt (the engine)"]
        lines += table(head, prompt)
    if full:
        lines += ["All weights trained, seconds of a step.", ""]
        lines += table(["row", "P, B, T", "torch", "softprompt", "torch : softprompt", "goal", ""], full)
    return lines


def above_weights(entry: dict) -> int | None:
    """Of the two ways to take torch's peak, the lower: from the second its own libraries are left out."""
    known = [entry[key] for key in ("above_weights", "above_start") if entry.get(key) is not None]
    return min(known, default=None)


def memory(results: list[dict]) -> list[str]:
    mib = lambda value: "" if value is None else f"{value / MIB:.0f}"  # noqa: E731
    rows = []
    for result in results:
        for side, entry in result["memory"].items():
            name = NAMES.get(side) or side.replace("ours", NAMES["ours"])
            cells = [mib(entry[key]) for key in ("peak_rss", "above_weights")]
            rows.append([result["name"], name, *cells, mib(entry.get("above_start")), mib(entry.get("device_above_weights"))])
    lines = ["Peak memory in MiB: the process's, resident; that without the weights' bytes; that without what was resident before",
             "the first step; and what softprompt's own account of its device has beside the weights.", ""]
    lines += table(["row", "side", "process", "above weights", "above start", "device, above weights"], rows)
    by_name = {result["name"]: result["memory"] for result in results}
    for us, row, peer, part in MEMORY_GOALS:
        own, theirs = by_name.get(FIRST, {}).get(us), by_name.get(row, {}).get(peer)
        own, theirs = own and above_weights(own), theirs and above_weights(theirs)
        if own and theirs:
            share = theirs / own
            lines.append(f"- {FIRST}: {us.replace('ours', 'softprompt')} takes 1/{share:.1f} of the memory of {NAMES[peer]} "
                         f"({row}) above the weights; goal at most 1/{part}: {'met' if share >= part else 'missed'}.")
    return [*lines, ""] if lines[-1] else lines


def losses(results: list[dict]) -> list[str]:
    rows = []
    for result in results:
        told = [f"{NAMES[side]} {loss:.6f}" for side, loss in result["losses"].items()]
        errors = [f"{NAMES[side]} {error:.1e}" for side, error in result["gradient_errors"].items()]
        gemm = [ratio for ratio in result["gemm_ratio"] if ratio is not None]
        rate = spread(sorted(gemm)) if gemm else ""
        rows.append([result["name"], ", ".join(told), ", ".join(errors), rate])
    lines = ["What was checked before: losses; the prompt gradient's relative error in norm, beside PEFT's. And the rate of",
             "softprompt's whole step over that of its matrix library at the same shapes.", ""]
    return lines + table(["row", "loss", "gradient", "of the library's rate"], rows)


def machines(results: list[dict]) -> list[str]:
    told = {}
    for result in results:
        about = result["machine"]
        versions = ", ".join(f"{name} {about[name]}" for name in ("softprompt", "peft", "transformers", "torch", "python"))
        text = f"{about['cpu']}, {about['cores']} cores, {about['memory'] / (1 << 30):.0f} GiB; {versions}; f32, {result['threads']} threads"
        told.setdefault(text, []).append(result)
    lines = []
    for text, group in told.items():
        dates = sorted(result["date"] for result in group)
        rows = "" if len(told) == 1 else f" ({', '.join(result['name'] for result in group)})"
        loads = [result["load_before"][0] for result in group]
        lines += [f"{text}. Run {dates[0]} to {dates[-1]}; load before the rows {min(loads):.1f} to {max(loads):.1f}.{rows}", ""]
    return lines


def markdown(results: list[dict]) -> str:
    """All tables; of no results, a line that says so."""
    if not results:
        return "No row was measured.\n"
    lines = ["# A training step beside PEFT's and torch's", "", *machines(results), *times(results), *memory(results), *losses(results)]
    return "\n".join(lines).rstrip() + "\n"
