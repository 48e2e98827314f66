"""Does PEFT read what softprompt wrote, bit for bit, and compute the same loss with it?

Usage: python tests/peft_interop.py ADAPTER_DIR [--model DIR] [--case NAME] [--after] [--rows FILE]

ADAPTER_DIR is a PEFT adapter written by `softprompt export`. Its rows are compared with the prompt of a golden case
(or with --rows FILE), and the loss on that case with the golden loss. Needs tests/golden/requirements.txt.
Exit codes: 0 the same, 1 a difference, 2 usage.
"""
import argparse
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

GOLDEN = Path(__file__).resolve().parent / "golden"
LOSS_TOLERANCE = 1e-5


def fail(message):
    print(f"peft_interop: {message}", file=sys.stderr)
    sys.exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--model", type=Path, default=GOLDEN / "llama", help="a golden model's folder")
    parser.add_argument("--case", default="main")
    parser.add_argument("--after", action="store_true", help="the rows are the prompt after the golden case's 5 steps")
    parser.add_argument("--rows", type=Path, help="safetensors file whose one tensor the rows must equal")
    args = parser.parse_args()

    golden = load_file(args.model / "golden.safetensors")
    case = {k.removeprefix(args.case + "."): v for k, v in golden.items() if k.startswith(args.case + ".")}
    if not case:
        parser.error(f"{args.model} has no case {args.case}")
    if args.rows:
        (expected,) = load_file(args.rows).values()
    else:
        expected = case["prompt_after5_f32" if args.after else "prompt"]

    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, args.adapter).eval()
    rows = model.prompt_encoder["default"].embedding.weight.detach()
    if rows.shape != expected.shape or rows.dtype != expected.dtype:
        fail(f"the adapter holds {rows.dtype} {list(rows.shape)}, expected {expected.dtype} {list(expected.shape)}")
    differ = rows.view(torch.int32) != expected.view(torch.int32)  # bits, so that -0.0 and NaN count too
    if differ.any():
        row, column = differ.nonzero()[0].tolist()
        fail(f"{int(differ.sum())} values differ, the first at row {row}, column {column}: "
             f"{rows[row, column]:.9g}, expected {expected[row, column]:.9g}")

    if not args.rows:
        want = case["losses_f64"][-1 if args.after else 0].item()
        with torch.no_grad():
            loss = model(**{k: case[k] for k in ("input_ids", "attention_mask", "labels")}).loss.item()
        if not abs(loss - want) <= LOSS_TOLERANCE:
            fail(f"loss {loss:.9f}, golden {want:.9f}: apart by {abs(loss - want):.1e}, at most {LOSS_TOLERANCE:.0e} allowed")
        print(f"{rows.shape[0]} rows equal bit for bit; loss {loss:.9f}, golden {want:.9f}")
    else:
        print(f"{rows.shape[0]} rows equal bit for bit")


if __name__ == "__main__":
    main()
