"""Writes `weight_grads.safetensors` beside the golden models: PyTorch's gradient of every weight, in float64.

Usage: python make_weight_grads.py [NAME ...]     (default: every small model; the models themselves are only read)

No prompt and no PEFT: the batch of the case `main`, every token but the first a label. Holds `loss` [1]; `grad.<name>` of
every parameter, tied ones once; `f32_error` [1], the largest difference of PyTorch's own float32 gradient from it; and for
a few models `after3.<name>`, the weights after 3 AdamW steps that do not decay biases and norms, as the HF Trainer's.
"""
import argparse
from pathlib import Path

import torch
from make_golden import F32, VARIANTS, all_float64, inverse_frequencies
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
STEPPED = ("llama_bias", "gpt2_gelu")
STEPS, RATE, DECAY = 3, 0.01, 0.1


def build(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager").to(dtype)
    for module in model.modules():
        if hasattr(module, "inv_freq") and dtype == torch.float64:
            module.inv_freq = inverse_frequencies(model.config)
    model.config.use_cache = False
    return model.train()


def gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.detach().clone() for name, p in model.named_parameters()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*VARIANTS, []])
    for name in parser.parse_args().names or VARIANTS:
        folder = HERE / name
        golden = load_file(folder / "golden.safetensors")
        ids, mask = golden["main.input_ids"], golden["main.attention_mask"]
        # The loss shifts: a label at t is predicted at t - 1, so the first is no label.
        batch = dict(input_ids=ids, attention_mask=mask, labels=torch.where(mask == 1, ids, -100))
        model = build(folder, torch.float64)  # outside: checkpoints load in float32
        with all_float64():
            loss, exact = gradients(model, batch)
        _, rounded = gradients(build(folder, F32), batch)
        error = max((rounded[n].double() - g).abs().max().item() for n, g in exact.items())
        tensors = {"loss": loss.reshape(1), "f32_error": torch.tensor([error], dtype=torch.float64)}
        tensors |= {f"grad.{n}": g for n, g in exact.items()}
        if name in STEPPED:
            groups = [dict(params=[p for p in model.parameters() if p.dim() > 1], weight_decay=DECAY),
                      dict(params=[p for p in model.parameters() if p.dim() == 1], weight_decay=0.0)]
            adamw = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
            with all_float64():
                for _ in range(STEPS):
                    gradients(model, batch)
                    adamw.step()
            tensors |= {f"after{STEPS}.{n}": p.detach().clone() for n, p in model.named_parameters()}
        assert all(t.dtype == torch.float64 for t in tensors.values())
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "weight_grads.safetensors")
        print(f"{name:18} loss {loss.item():.12f}  float32 within {error:.1e}")


if __name__ == "__main__":
    main()
