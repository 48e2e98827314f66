"""Regenerates the golden files: what PEFT computes, in float64, on tiny random models.

Usage: python make_golden.py [--out DIR] [NAME ...]     (default: every model, into this folder)

transformers casts to float32 inside norms, rotary tables and the loss even where the model is `.double()`, so the
float32 names are re-bound to float64 around a float64 run; central differences check that nothing was missed.
"""
import argparse
import contextlib
import json
import logging
import math
import shutil
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TO_FLOAT = torch.Tensor.float
OPTIMIZER = dict(lr=0.05, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01)
STEPS = 5
IDS = dict(bos_token_id=0, eos_token_id=1)


@contextlib.contextmanager
def all_float64():
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32 = torch.float = F32
        torch.Tensor.float = TO_FLOAT


def llama(kind=LlamaConfig, **over):
    size = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, **IDS)
    rope = dict(rope_type="default", rope_theta=10000.0) | over.pop("rope", {})
    return kind(**size | dict(rope_parameters=rope) | over)


def gpt2(**over):
    size = dict(n_embd=16, n_layer=2, n_head=4, n_positions=32, vocab_size=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2Config(**size | IDS | over)


WIDE = dict(hidden_size=64, intermediate_size=96, vocab_size=256, max_position_embeddings=128)

# The four that carry PEFT's own adapter too: name -> (config, how its weights are stored).
FAMILIES = {
    "llama": (llama(**WIDE, tie_word_embeddings=True, pad_token_id=None), F32),
    "llama_untied": (llama(**WIDE, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6, rope=dict(rope_theta=100000.0), pad_token_id=None), BF16),
    "qwen2": (llama(Qwen2Config, **WIDE, rms_norm_eps=1e-6, rope=dict(rope_theta=1000000.0), tie_word_embeddings=True), BF16),
    "gpt2": (gpt2(n_embd=64, n_positions=64, vocab_size=256), BF16),
}

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)

# What else these families' checkpoints hold: name -> (config, dtype, shard size, config.json as older checkpoints write it).
VARIANTS = {
    "mistral": (llama(MistralConfig, sliding_window=None, num_attention_heads=2, num_key_value_heads=1, head_dim=12), F32, None,
                dict(rope_theta=10000.0, sliding_window=None)),
    "llama_mha": (llama(num_key_value_heads=4, tie_word_embeddings=True), F16, None, dict(rope_theta=10000.0, rope_scaling=None, head_dim=...)),
    "llama_one_kv": (llama(num_key_value_heads=1, num_hidden_layers=3, vocab_size=96), BF16, None, {}),
    "llama_wide_heads": (llama(num_attention_heads=2, head_dim=10, rope=dict(rope_theta=500000.0)), F32, None, {}),
    "llama_rope_llama3": (llama(num_attention_heads=2, num_key_value_heads=1, rope=LLAMA3), BF16, None, dict(rope_theta=10000.0, rope_scaling=LLAMA3)),
    "llama_rope_linear": (llama(rope=dict(rope_type="linear", factor=4.0)), BF16, None,
                          dict(rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0))),
    "llama_bias": (llama(attention_bias=True, mlp_bias=True), BF16, None, {}),
    "llama_sharded": (llama(num_hidden_layers=3, tie_word_embeddings=True), BF16, "4KB", {}),
    "qwen2_untied": (llama(Qwen2Config, rms_norm_eps=1e-6, rope=dict(rope_theta=1000000.0)), F16, None,
                     dict(rope_theta=1000000.0, sliding_window=32768, use_sliding_window=False, max_window_layers=2, layer_types=...)),
    "qwen2_sharded": (llama(Qwen2Config, num_key_value_heads=4, tie_word_embeddings=True), BF16, "6KB", {}),
    "gpt2_gelu": (gpt2(activation_function="gelu", n_inner=40), F16, None, {}),
    "gpt2_untied": (gpt2(n_inner=24, n_layer=3, tie_word_embeddings=False), F32, "8KB", {}),
    "gpt2_hub": (gpt2(), F32, None, dict(tie_word_embeddings=..., n_ctx=32)),
}

# (P, tokens of each example, how many of them, from the end, are labels, width) and the seed.
FAMILY_CASES = {
    "main": (5, [12, 9, 6], [1, 2, 1], 12, 11),
    "all_text_labels": (5, [12, 9, 6], [12, 9, 6], 12, 13),
    "left_pad": (5, [12, 9, 6], [1, 2, 1], 12, 11),
    "nopad": (5, [10, 10, 10], [1, 2, 1], 10, 12),
}
VARIANT_CASES = {
    "main": (5, [9, 4, 2, 7], [1, 2, 1, 3], 9, 21),
    "label_first": (4, [1, 3, 2], [1, 1, 2], 3, 22),  # nothing before the label: the prompt's last row predicts it
    "one_row": (1, [6], [2], 6, 23),  # P = 1, B = 1
    "long_prompt": (13, [3, 2], [1, 1], 3, 24),  # P larger than any text
}


def randomize(model, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            r = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                r = r * 0.05 if name.endswith("bias") else 1 + 0.1 * r
            elif any(s in name for s in ("embed_tokens", "wte", "wpe")):
                r = r * 0.2
            else:  # GPT-2 stores its linears [in, out]
                fan_in = p.shape[0] if any(s in name for s in ("c_attn", "c_fc", "c_proj")) else p.shape[1]
                r = r * (1.2 / math.sqrt(fan_in))
            p.copy_(r.to(dtype).float())


def make_batch(vocab, lens, labels, width, seed, left):
    g = torch.Generator().manual_seed(seed)
    shape = len(lens), width
    ids, mask, lab = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for b, (n, k) in enumerate(zip(lens, labels)):
        x = torch.randint(2, vocab, (n,), generator=g)
        at = slice(width - n, width) if left else slice(0, n)
        ids[b, at], mask[b, at] = x, 1
        lab[b, at] = torch.where(torch.arange(n) < n - k, -100, x)
    return dict(input_ids=ids, attention_mask=mask, labels=lab)


def inverse_frequencies(config):
    """Rotary frequencies in float64, from their definition."""
    rope = config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    freq = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "linear":
        freq = freq / rope["factor"]
    elif rope["rope_type"] == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * freq / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        freq = keep * freq + (1 - keep) * freq / rope["factor"]
    return freq


def build(folder, prompt, dtype):
    """PEFT's model with `prompt` in place; called outside `all_float64`, since checkpoints load in float32."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager")
    config = base.config
    model = get_peft_model(base, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(prompt))).to(dtype)
    for module in model.modules():
        if hasattr(module, "inv_freq") and dtype == torch.float64:
            exact = inverse_frequencies(config)
            assert torch.allclose(exact, module.inv_freq.double(), rtol=1e-6, atol=0), "rotary frequencies"
            module.inv_freq = exact
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(prompt)
    model.config.use_cache = model.base_model.config.use_cache = False
    return model.train(), weight


def train(model, weight, batch):
    adamw = torch.optim.AdamW([weight], **OPTIMIZER | dict(betas=tuple(OPTIMIZER["betas"])))
    losses = []
    for step in range(STEPS):
        adamw.zero_grad()
        out = model(**batch)
        out.loss.backward()
        if step == 0:
            grad, logits = weight.grad.detach().clone(), out.logits.detach()
        losses.append(out.loss.detach().double())
        adamw.step()
    with torch.no_grad():
        losses.append(model(**batch).loss.double())
    return torch.stack(losses), grad, weight.detach().clone(), logits


def difference_error(model, weight, batch, grad):
    """The worst relative error of `grad` against central differences along four random directions."""
    g, e, worst = torch.Generator().manual_seed(5), 2e-6, 0.0
    with torch.no_grad():
        start = weight.clone()
        for _ in range(4):
            d = torch.randn(weight.shape, generator=g, dtype=torch.float64)
            sides = []
            for sign in (1, -1):
                weight.copy_(start + sign * e * d)
                sides.append(model(**batch).loss.item())
            slope = (grad * d).sum().item()
            worst = max(worst, abs((sides[0] - sides[1]) / (2 * e) - slope) / max(1e-12, abs(slope)))
    return worst


def write_model(folder, config, dtype, shard, legacy, seed, hub_gpt2):
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, seed, dtype)
    model.to(dtype).save_pretrained(folder, **dict(max_shard_size=shard) if shard else {})
    (folder / "generation_config.json").unlink(missing_ok=True)
    if shard:
        assert len(list(folder.glob("*.safetensors"))) > 1
    if legacy:  # `...` drops a key
        path = folder / "config.json"
        written = json.loads(path.read_text())
        written.pop("rope_parameters", None)
        written["torch_dtype"] = written.pop("dtype")
        written = {k: v for k, v in (written | legacy).items() if v is not ...}
        path.write_text(json.dumps(written, indent=2, sort_keys=True))
    if hub_gpt2:  # the first GPT-2 checkpoints: names without a prefix, causal masks stored as tensors
        path = folder / "model.safetensors"
        tensors = {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
        mask = torch.ones(config.n_positions, config.n_positions).tril()[None, None]
        tensors |= {f"h.{i}.attn.bias": mask.clone() for i in range(config.n_layer)}
        save_file(tensors, path, metadata={"format": "pt"})
    check_load(folder, config, model)


def check_load(folder, config, model):
    """A rewritten config.json and renamed tensors still mean the model that was made."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=F32)
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a.float(), b), name
    tied = loaded.get_input_embeddings().weight.data_ptr() == loaded.get_output_embeddings().weight.data_ptr()
    assert tied == config.tie_word_embeddings
    rope = getattr(config, "rope_parameters", None) or {}
    assert rope.items() <= (getattr(loaded.config, "rope_parameters", None) or {}).items()


def make(out, name, config, dtype, cases, seeds, shard=None, legacy=None, adapter=False):
    folder = out / name
    write_model(folder, config, dtype, shard, legacy, seeds[0], name == "gpt2_hub")
    tensors, notes = {}, {}
    for case, (rows, lens, labels, width, seed) in cases.items():
        g = torch.Generator().manual_seed(seeds[1])
        prompt = torch.randn((rows, config.hidden_size), generator=g) * 0.4
        batch = make_batch(config.vocab_size, lens, labels, width, seed, left=case == "left_pad")
        model, weight = build(folder, prompt, torch.float64)
        with all_float64():
            loss64, grad64, after64, logits = train(model, weight, batch)
            with torch.no_grad():
                weight.copy_(prompt)
            fd = difference_error(model, weight, batch, grad64)
        assert grad64.dtype == logits.dtype == loss64.dtype == torch.float64 and fd < 1e-6, (name, case, fd)
        model, weight = build(folder, prompt, F32)
        loss32, grad32, after32, _ = train(model, weight, batch)
        where = (batch["labels"] != -100).nonzero().tolist()
        new = dict(**batch, prompt=prompt, losses_f64=loss64, loss_f32=loss64[0].float().reshape(1), grad_f64=grad64,
                   grad_f32=grad64.float(), prompt_after5_f64=after64, prompt_after5_f32=after64.float())
        if case == "main":  # a label at t is predicted by row P+t-1
            new["label_logits_f64"] = torch.stack([logits[b, rows + t - 1] for b, t in where])
        tensors |= {f"{case}.{k}": v.contiguous() for k, v in new.items()}
        notes[case] = dict(
            P=rows, B=len(lens), loss=loss64.tolist(), label_tokens=len(where), fd_rel_err=fd, grad_max_abs=grad64.abs().max().item(),
            f32_peft_loss_abs_diff=(loss32[0] - loss64[0]).abs().item(),
            f32_peft_grad_max_abs_diff=(grad32.double() - grad64).abs().max().item(),
            f32_peft_prompt_after5_max_abs_diff=(after32.double() - after64).abs().max().item())
        if adapter and case == "main":
            model.peft_config["default"].base_model_name_or_path = name
            model.save_pretrained(folder / "adapter_after5_f32")
            (folder / "adapter_after5_f32" / "README.md").unlink(missing_ok=True)
        print(f"{name:18} {case:16} loss {loss64[0]:.12f} -> {loss64[-1]:.6f}  fd {fd:.1e}  "
              f"f32: loss {notes[case]['f32_peft_loss_abs_diff']:.1e} grad {notes[case]['f32_peft_grad_max_abs_diff']:.1e}")
    save_file(tensors, folder / "golden.safetensors")
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    meta = dict(P=notes["main"]["P"], B=notes["main"]["B"], seq2seq=False, weights_dtype=str(dtype), optimizer="AdamW",
                **OPTIMIZER, steps=STEPS, attn="eager", dropout=0, versions=versions, cases=notes)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*FAMILIES, *VARIANTS, []])
    args = parser.parse_args()
    for i, (name, (config, dtype)) in enumerate(FAMILIES.items()):
        if not args.names or name in args.names:
            make(args.out, name, config, dtype, FAMILY_CASES, (100 + i, 900 + i), adapter=True)
    for i, (name, (config, dtype, shard, legacy)) in enumerate(VARIANTS.items()):
        if not args.names or name in args.names:
            make(args.out, name, config, dtype, VARIANT_CASES, (200 + i, 1000 + i), shard, legacy)


if __name__ == "__main__":
    main()
