"""Checks that PEFT loads the adapters that softprompt writes, and uses every prompt row bit for bit.

    cargo test --test peft_interop          # writes the adapters, and runs this where PEFT is installed
    python tests/peft_interop.py DIR        # DIR/<golden model>/ as written by that test

Needs torch, transformers, peft and safetensors.
"""

import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"


def check(name: str, adapter: pathlib.Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    model.eval()
    rows = model.prompt_encoder["default"].embedding.weight.detach()
    reference = load_file(GOLDEN / name / "adapter_after5_f32" / "adapter_model.safetensors")["prompt_embeddings"]
    assert rows.dtype == torch.float32 and rows.shape == reference.shape, (rows.dtype, rows.shape)
    assert torch.equal(rows.view(torch.int32), reference.view(torch.int32)), f"{name}: rows differ"

    # The prompt must also be used: logits with ours and with PEFT's own adapter are the same.
    ids = torch.tensor([[5, 9, 14, 3]])
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(base, GOLDEN / name / "adapter_after5_f32").eval()(input_ids=ids).logits
    assert ours.shape[1] == rows.shape[0] + ids.shape[1], ours.shape
    assert torch.equal(ours, theirs), f"{name}: logits differ"
    print(f"{name}: {tuple(rows.shape)} rows bit for bit")


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    names = sorted(entry.name for entry in folder.iterdir())
    assert names, f"no adapters in {folder}"
    for name in names:
        check(name, folder / name)


if __name__ == "__main__":
    main()
