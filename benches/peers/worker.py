"""A torch side in a process of its own: it stays loaded, and waits at a pipe while the others are timed.

    python worker.py make SHAPE FOLDER          # writes a model
    python worker.py SIDE FOLDER THREADS        # SIDE: peft, shared or full; FOLDER: model/, rows.jsonl, prompt.safetensors

A side says on standard output, in JSON, that it is ready, and then answers lines on standard input: `step N` takes N
training steps, `grad FILE` writes the prompt's gradient of the last. Learning rates are 0, which is the same arithmetic and
makes all steps the same step, as `softprompt bench` has it.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path

from cases import make_model, read_rows

warnings.filterwarnings("ignore")


def memory(field: str) -> int:
    """This process's VmRSS or VmHWM in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def padded_batch(torch, rows):
    """As a collator makes it: padded on the right to the longest, labels −100 where nothing is to be learned."""
    width = max(len(inputs) + len(target) for inputs, target in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, (inputs, target) in enumerate(rows):
        end = len(inputs) + len(target)
        ids[at, :end], mask[at, :end] = torch.tensor(inputs + target), 1
        labels[at, len(inputs) : end] = torch.tensor(target)
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def padded_pairs(torch, rows):
    """The same for an encoder–decoder, where the label is a sequence of its own."""
    def padded(sequences, filler):
        parts = [torch.tensor(sequence) for sequence in sequences]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=filler)

    ids, labels = padded([inputs for inputs, _ in rows], 0), padded([target for _, target in rows], -100)
    return dict(input_ids=ids, attention_mask=padded([[1] * len(inputs) for inputs, _ in rows], 0), labels=labels)


class Side:
    """Loss, and what is trained."""

    def __init__(self, kind: str, folder: Path):
        import torch
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        seq2seq = AutoConfig.from_pretrained(folder / "model").is_encoder_decoder
        auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        model = auto.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
        model.config.use_cache = False
        rows = read_rows(folder / "rows.jsonl")
        make_batch = padded_pairs if seq2seq else padded_batch
        self.weights = list(model.parameters())
        if kind == "full":
            trained = self.weights
            model.train()
            batch = make_batch(torch, rows)
            self.loss = lambda: model(**batch).loss
        else:
            start = load_file(folder / "prompt.safetensors")["prompt_embeds"]
            model.requires_grad_(False)
            if kind == "peft":
                from peft import PromptTuningConfig, TaskType, get_peft_model

                task = TaskType.SEQ_2_SEQ_LM if seq2seq else TaskType.CAUSAL_LM
                # Of the two submodules that it would take for T5 PEFT uses the first.
                config = PromptTuningConfig(task_type=task, num_virtual_tokens=len(start), num_transformer_submodules=1)
                model = get_peft_model(model, config).train()
                self.prompt = model.prompt_encoder["default"].embedding.weight
                with torch.no_grad():
                    self.prompt.copy_(start)
                batch = make_batch(torch, rows)
                self.loss = lambda: model(**batch).loss
            else:
                from shared import SharedPrompt

                self.prompt = torch.nn.Parameter(start.clone())
                shared = SharedPrompt(model, rows, len(start))
                self.loss = lambda: shared.loss(self.prompt)
            trained = [self.prompt]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)

    def weight_bytes(self) -> int:
        # Reading them all also brings in what the file's mapping has not yet.
        assert all(bool(weight.sum().isfinite()) for weight in self.weights), "weights are not finite"
        return sum(weight.numel() * weight.element_size() for weight in self.weights)

    def step(self) -> tuple[float, float]:
        """Seconds and loss."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        return time.perf_counter() - start, value


def serve(kind: str, folder: Path, threads: int, answer) -> None:
    import torch

    torch.set_num_threads(threads)
    side = Side(kind, folder)
    weights = side.weight_bytes()
    try:  # from here on the peak is that of the steps, and not of loading
        Path("/proc/self/clear_refs").write_text("5")
        resident = memory("VmRSS")
    except OSError:
        resident = None  # no memory of its own can be told
    answer(dict(weights=weights, resident=resident))
    for line in sys.stdin:
        what, argument = line.split(maxsplit=1)
        if what == "step":
            steps = [side.step() for _ in range(int(argument))]
            answer(dict(seconds=[step[0] for step in steps], losses=[step[1] for step in steps], peak=memory("VmHWM")))
        else:
            from safetensors.torch import save_file

            save_file(dict(grad=side.prompt.grad.contiguous()), argument.strip())
            answer({})


def main() -> None:
    # Answers have the pipe to themselves: what libraries print goes to standard error.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(what: dict) -> None:
        print(json.dumps(what), file=pipe, flush=True)

    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind, *arguments = sys.argv[1:]
    if kind == "make":
        make_model(arguments[0], Path(arguments[1]))
        answer({})
    else:
        serve(kind, Path(arguments[0]), int(arguments[1]), answer)


if __name__ == "__main__":
    main()
