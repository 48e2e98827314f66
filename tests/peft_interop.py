"""Checks that PEFT loads the adapters that softprompt writes, and uses every prompt row bit for bit.

    cargo test --test peft_interop          # writes the adapters, and runs this where PEFT is installed
    python tests/peft_interop.py DIR        # DIR/<golden model>/ as written by that test

Needs torch, transformers, peft and safetensors.
"""

import json
import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"


def load(name: str, adapter: pathlib.Path) -> PeftModel:
    seq2seq = json.loads((GOLDEN / name / "meta.json").read_text())["seq2seq"]
    kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    return PeftModel.from_pretrained(kind.from_pretrained(GOLDEN / name, dtype=torch.float32), adapter).eval()


def check(name: str, adapter: pathlib.Path) -> None:
    reference = GOLDEN / name / "adapter_after5_f32"
    ours, theirs = load(name, adapter), load(name, reference)
    rows = ours.prompt_encoder["default"].embedding.weight.detach()
    # Of an encoder-decoder PEFT keeps 2P rows and uses P.
    wanted = load_file(reference / "adapter_model.safetensors")["prompt_embeddings"][: ours.active_peft_config.num_virtual_tokens]
    assert rows.dtype == torch.float32 and rows.shape == wanted.shape, (rows.dtype, rows.shape)
    assert torch.equal(rows.view(torch.int32), wanted.view(torch.int32)), f"{name}: rows differ"
    assert ours.active_peft_config.task_type == theirs.active_peft_config.task_type, ours.active_peft_config.task_type

    # The prompt must also be used: logits with ours and with PEFT's own adapter are the same, and the loss is the golden one.
    golden = load_file(GOLDEN / name / "golden.safetensors")
    batch = {key: golden[f"main.{key}"] for key in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        found, expected = ours(**batch), theirs(**batch)
    assert torch.equal(found.logits, expected.logits), f"{name}: logits differ"
    # Another run of PEFT's than the golden one, in float32.
    loss, after = found.loss.item(), golden["main.losses_f64"][-1].item()
    assert abs(loss - after) < 1e-5, f"{name}: loss {loss}, expected {after}"
    print(f"{name}: {tuple(rows.shape)} rows bit for bit, loss {loss:.6f}")


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    names = sorted(entry.name for entry in folder.iterdir())
    assert names, f"no adapters in {folder}"
    for name in names:
        check(name, folder / name)


if __name__ == "__main__":
    main()
