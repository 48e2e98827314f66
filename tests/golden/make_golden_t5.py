"""Regenerates the golden files of the T5 family: what PEFT and transformers compute, in float64, on tiny random models.

Usage: python make_golden_t5.py [--out DIR] [NAME ...]     (default: every model, into this folder)

As `make_golden.py`, whose float64 it shares. PEFT knows a prompt on the encoder alone; the cases with `prompt_on` or
`prompt_mask` are computed by plain transformers from embeddings that the prompt's rows were put in front of.

What transformers 5.23 does, read in its code and checked in `check_load`:
  - T5Config forgets `tie_word_embeddings`: it turns it into `scale_decoder_outputs` (true unless it was false), sets it
    true, and ties. A head of its own survives because `from_pretrained` does not tie what the file holds with different
    values. So the file decides whether there is a second table, and the config whether the head's input is multiplied by
    d_model^-0.5: by `scale_decoder_outputs` where it has that key, else by `tie_word_embeddings`.
  - What it saves therefore says `tie_word_embeddings: true` even of a model with a head of its own (`t5_silu`).
  - MT5 never scales, whatever its config says, and keeps its head in the same way.
  - `decoder_input_ids` are the labels, moved right behind `decoder_start_token_id`, with the pad id for -100.
"""
import argparse
import json
import math
import shutil
from pathlib import Path

import peft
import torch
import transformers
from make_golden import BF16, F16, F32, OPTIMIZER, STEPS, all_float64, difference_error, train
from peft import PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, MT5Config, T5Config
from transformers.modeling_outputs import BaseModelOutput

HEAD = "lm_head.weight"


def t5(kind=T5Config, **over):
    size = dict(d_model=16, d_kv=3, num_heads=4, d_ff=20, num_layers=2, num_decoder_layers=2, vocab_size=64, dropout_rate=0.0,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    return kind(**size | over)


SMALL = dict(d_kv=2, d_ff=12, vocab_size=48)  # their weights' gradients are stored too

# name -> (config, how the weights are stored, shard size, what config.json says otherwise; `...` drops a key).
MODELS = {
    # As the first checkpoints: no feed_forward_proj, no tie_word_embeddings, no num_decoder_layers; a table that nothing uses.
    "t5_v10": (t5(**SMALL, feed_forward_proj="relu", tie_word_embeddings=True), F32, None,
               dict(feed_forward_proj=..., tie_word_embeddings=..., num_decoder_layers=..., relative_attention_max_distance=...,
                    n_positions=512, output_past=True)),
    "t5_v11": (t5(**SMALL), F32, None, dict(tie_word_embeddings=False)),
    # As FLAN's: the shared table stored three times.
    "t5_flan": (t5(d_kv=4, num_heads=2, d_ff=28), BF16, None, dict(tie_word_embeddings=False, n_positions=512)),
    "mt5": (t5(MT5Config, d_kv=5, num_heads=2, d_ff=24, num_layers=3, num_decoder_layers=3), BF16, "8KB",
            dict(tie_word_embeddings=False)),
    "byt5": (t5(d_kv=4, num_heads=3, num_layers=3, num_decoder_layers=1, vocab_size=200), BF16, None,
             dict(tie_word_embeddings=False)),
    # Its config as transformers 5 writes it.
    "t5_silu": (t5(feed_forward_proj="gated-silu", d_kv=6, num_heads=2, layer_norm_epsilon=1e-5), F32, None, {}),
    "t5_buckets": (t5(relative_attention_num_buckets=16, relative_attention_max_distance=20, decoder_start_token_id=3), BF16, None,
                   dict(tie_word_embeddings=False)),
    "t5_f16": (t5(feed_forward_proj="relu", tie_word_embeddings=True, d_kv=4, num_decoder_layers=1), F16, None, {}),
}
FAMILIES = ("t5_v10", "t5_v11")  # with PEFT's adapters and the weights' gradients

# case -> (P, tokens of each input, of each label, seed, prompt_on, prompt_mask)
CASES = {
    "main": (5, [9, 4, 12, 7], [3, 1, 2, 5], 31, "encoder", "full"),
    "nopad": (5, [8, 8, 8], [2, 2, 2], 32, "encoder", "full"),
    "one_row": (1, [6], [2], 33, "encoder", "full"),  # P = 1, B = 1
    "long_prompt": (13, [3, 2], [1, 2], 34, "encoder", "full"),
    "short_input": (4, [1, 1, 3], [2, 1, 4], 35, "encoder", "full"),
    "long_labels": (5, [4, 2], [27, 11], 36, "encoder", "full"),
    "on_decoder": (5, [9, 4, 12, 7], [3, 1, 2, 5], 37, "decoder", "full"),
    "on_both": (4, [9, 4, 7], [3, 1, 5], 48, "both", "full"),
    "prompt_only": (5, [9, 4, 12, 7], [3, 1, 2, 5], 39, "encoder", "prompt_only"),
    "on_both_prompt_only": (4, [5, 1, 7], [2, 1, 4], 40, "both", "prompt_only"),
}
# Past the distance at which all buckets are the same.
LONG = {"main": [34, 21, 3, 28], "prompt_only": [34, 21, 3, 28], "on_decoder": [30, 4, 12, 7]}

WEIGHT_STEPS, WEIGHT_RATE, WEIGHT_DECAY = 3, 0.01, 0.1


def randomize(model, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            r = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                r = 1 + 0.1 * r
            elif "relative_attention_bias" in name:
                r = r * 0.5
            elif "embed_tokens" in name or "shared" in name:
                r = r * 0.2
            else:  # scores are not divided by a root, and the scaled head reads small rows
                scale = 1.2 / math.sqrt(p.shape[1])
                r = r * (scale / 2 if ".q." in name else scale)
            p.copy_(r.to(dtype).float())


def make_batch(vocab, lens, labels, seed):
    """Inputs and labels on the left of their rows; a label ends with the end id, 1."""
    g = torch.Generator().manual_seed(seed)
    shape = len(lens), max(lens)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    lab = torch.full((len(lens), max(labels)), -100)
    for b, (n, k) in enumerate(zip(lens, labels)):
        ids[b, :n], mask[b, :n] = torch.randint(2, vocab, (n,), generator=g), 1
        lab[b, :k] = torch.randint(2, vocab, (k,), generator=g)
        lab[b, k - 1] = 1
    return dict(input_ids=ids, attention_mask=mask, labels=lab)


class Prompted:
    """A model with the prompt's rows in front of the encoder's rows, the decoder's, or both (the encoder's rows first)."""

    def __init__(self, model, weight, prompt_on, prompt_mask):
        self.model, self.weight, self.prompt_only = model, weight, prompt_mask == "prompt_only"
        halves = weight.shape[0] // 2
        self.on = dict(encoder=(slice(None), slice(0, 0)), decoder=(slice(0, 0), slice(None)),
                       both=(slice(0, halves), slice(halves, None)))[prompt_on]

    def __call__(self, input_ids, attention_mask, labels):
        model, examples = self.model, len(input_ids)
        behind = [self.weight[rows].expand(examples, -1, -1) for rows in self.on]
        first, second = (rows.shape[1] for rows in behind)
        inputs = torch.cat([behind[0], model.shared(input_ids)], 1)
        mask = torch.cat([attention_mask.new_ones(examples, first), attention_mask], 1)
        seen = mask
        if self.prompt_only:  # [B, 1, rows, rows], added to the scores: a prompt's row sees the prompt's rows alone
            keys = mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1).clone()
            keys[:, :, :first, first:] = False
            seen = inputs.new_zeros(keys.shape).masked_fill(~keys, torch.finfo(inputs.dtype).min)
        encoded = model.encoder(inputs_embeds=inputs, attention_mask=seen).last_hidden_state
        outputs = torch.cat([behind[1], model.shared(model._shift_right(labels))], 1)
        targets = torch.cat([labels.new_full((examples, second), -100), labels], 1)
        out = model(encoder_outputs=BaseModelOutput(encoded), attention_mask=mask, decoder_inputs_embeds=outputs, labels=targets)
        out.logits = out.logits[:, second:]
        return out

    def set_attn_implementation(self, name):
        self.model.set_attn_implementation(name)


def load(folder, dtype):
    """Called outside `all_float64`, since checkpoints load in float32."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=F32, attn_implementation="eager")
    model.config.use_cache = False
    return model.to(dtype).train()


def build(folder, prompt, prompt_on, prompt_mask, dtype):
    """The model with `prompt` in place: PEFT's where it knows the case, else transformers'."""
    base = load(folder, dtype)
    if (prompt_on, prompt_mask) != ("encoder", "full"):
        base.requires_grad_(False)
        weight = torch.nn.Parameter(prompt.to(dtype, copy=True))
        return Prompted(base, weight, prompt_on, prompt_mask), weight
    model, weight = with_peft(base, prompt, 1)
    return model, weight


def with_peft(base, prompt, submodules):
    config = PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=len(prompt) // submodules,
                                num_transformer_submodules=submodules)
    model = get_peft_model(base, config).to(next(base.parameters()).dtype)
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(prompt)
    model.config.use_cache = False
    return model.train(), weight


def write_model(folder, config, dtype, shard, rewritten, seed):
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForSeq2SeqLM.from_config(config)
    if not getattr(config, "scale_decoder_outputs", False):  # a model made from a config is tied
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(config.vocab_size, config.d_model))
    randomize(model, seed, dtype)
    model.to(dtype).save_pretrained(folder, **dict(max_shard_size=shard) if shard else {})
    (folder / "generation_config.json").unlink(missing_ok=True)
    if shard:
        assert len(list(folder.glob("*.safetensors"))) > 1
    path = folder / "config.json"
    written = json.loads(path.read_text())
    if "tie_word_embeddings" in rewritten:
        written.pop("scale_decoder_outputs", None)  # older than that key
    written = {k: v for k, v in (written | rewritten).items() if v is not ...}
    path.write_text(json.dumps(written, indent=2, sort_keys=True))
    path = folder / "model.safetensors"
    if folder.name == "t5_flan":
        tensors = load_file(path)
        tensors |= {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in ("encoder", "decoder")}
        save_file(tensors, path, metadata={"format": "pt"})
    if folder.name == "t5_v10":
        tensors = load_file(path)
        shape = config.relative_attention_num_buckets, config.num_heads
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(shape)
        save_file(tensors, path, metadata={"format": "pt"})
    check_load(folder, config, model)


def check_load(folder, config, model):
    """The files mean the model that was made, and transformers takes the head and its scale as said above."""
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=F32)
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a.float(), b), name
    tied = loaded.shared.weight.data_ptr() == loaded.lm_head.weight.data_ptr()
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"] if index.exists() else load_file(folder / "model.safetensors")
    assert tied == (HEAD not in names)
    if config.model_type == "t5":
        assert loaded.config.scale_decoder_outputs == tied == config.scale_decoder_outputs
    else:
        assert not hasattr(loaded.config, "scale_decoder_outputs")
    for key in ("num_decoder_layers", "is_gated_act", "dense_act_fn", "relative_attention_max_distance", "decoder_start_token_id"):
        assert getattr(loaded.config, key) == getattr(config, key), key


def write_adapters(folder, prompt, batch, after64):
    """PEFT's own adapter directories after the steps: with its default of two submodules, and with one."""
    for submodules, name in ((2, "adapter_after5_f32"), (1, "adapter_one_submodule")):
        g = torch.Generator().manual_seed(7)
        unused = torch.randn(prompt.shape, generator=g) * 0.4
        rows = torch.cat([prompt, unused])[: submodules * len(prompt)]
        model, weight = with_peft(load(folder, F32), rows, submodules)
        _, grad, after, _ = train(model, weight, batch)
        assert (after[: len(prompt)].double() - after64).abs().max() < 1e-4
        if submodules == 2:  # the second half is trained by weight decay alone
            left = unused * (1 - OPTIMIZER["lr"] * OPTIMIZER["weight_decay"]) ** STEPS
            assert grad[len(prompt):].abs().max() == 0 and torch.allclose(after[len(prompt):], left, rtol=1e-6)
        model.peft_config["default"].base_model_name_or_path = folder.name
        model.save_pretrained(folder / name)
        (folder / name / "README.md").unlink(missing_ok=True)


def write_weight_gradients(folder, batch):
    """`weight_grads.safetensors`, as `make_weight_grads.py` has it: no prompt, and the labels are the case's own. AdamW
    decays neither norms nor `relative_attention_bias`, as the HF Trainer goes by names."""
    def gradients(model):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.detach(), {name: p.grad.detach().clone() for name, p in model.named_parameters()}

    exact, rounded = load(folder, torch.float64), load(folder, F32)
    with all_float64():
        loss, grads = gradients(exact)
        for name, p in exact.named_parameters():
            g = torch.Generator().manual_seed(6)
            d, start, sides = torch.randn(p.shape, generator=g, dtype=torch.float64), p.detach().clone(), []
            with torch.no_grad():
                for sign in (1, -1):
                    p.copy_(start + sign * 1e-6 * d)
                    sides.append(exact(**batch).loss.item())
                p.copy_(start)
            slope = (grads[name] * d).sum().item()
            error = abs((sides[0] - sides[1]) / 2e-6 - slope)
            assert error < 1e-7 * max(1, abs(slope)), (folder.name, name, error, slope)
    error = max((g.double() - grads[n]).abs().max().item() for n, g in gradients(rounded)[1].items())
    tensors = {"loss": loss.reshape(1), "f32_error": torch.tensor([error], dtype=torch.float64)}
    tensors |= {f"grad.{n}": g for n, g in grads.items()}
    decays = lambda name: "bias" not in name and "norm" not in name  # noqa: E731
    groups = [dict(params=[p for n, p in exact.named_parameters() if decays(n) == which], weight_decay=decay)
              for which, decay in ((True, WEIGHT_DECAY), (False, 0.0))]
    adamw = torch.optim.AdamW(groups, lr=WEIGHT_RATE, betas=(0.9, 0.999), eps=1e-8)
    with all_float64():
        for _ in range(WEIGHT_STEPS):
            gradients(exact)
            adamw.step()
    tensors |= {f"after{WEIGHT_STEPS}.{n}": p.detach().clone() for n, p in exact.named_parameters()}
    assert all(t.dtype == torch.float64 for t in tensors.values())
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "weight_grads.safetensors")
    print(f"{folder.name:12} {'all weights':20} loss {loss.item():.12f}  f32: grad {error:.1e}")


def make(out, name, config, dtype, shard, rewritten, seeds):
    folder = out / name
    write_model(folder, config, dtype, shard, rewritten, seeds[0])
    tensors, notes = {}, {}
    for case, (rows, lens, labels, seed, prompt_on, prompt_mask) in CASES.items():
        lens = LONG.get(case, lens) if name == "t5_buckets" else lens
        how = prompt_on, prompt_mask
        g = torch.Generator().manual_seed(seeds[1] + seed)
        prompt = torch.randn((rows * (2 if prompt_on == "both" else 1), config.d_model), generator=g) * 0.4
        batch = make_batch(config.vocab_size, lens, labels, seed)
        model, weight = build(folder, prompt, *how, torch.float64)
        with all_float64():
            loss64, grad64, after64, logits = train(model, weight, batch)
            with torch.no_grad():
                weight.copy_(prompt)
            fd = difference_error(model, weight, batch, grad64)
            if how == ("encoder", "full"):  # the two ways of computing agree
                other, own = Prompted(model.base_model, weight, *how), model(**batch).loss
                assert abs(other(**batch).loss - own) < 1e-12
        assert grad64.dtype == logits.dtype == loss64.dtype == torch.float64 and fd < 1e-6, (name, case, fd)
        model, weight = build(folder, prompt, *how, F32)
        loss32, grad32, after32, _ = train(model, weight, batch)
        new = dict(**batch, prompt=prompt, losses_f64=loss64, loss_f32=loss64[0].float().reshape(1), grad_f64=grad64,
                   grad_f32=grad64.float(), prompt_after5_f64=after64, prompt_after5_f32=after64.float())
        if case == "main":
            new["label_logits_f64"] = logits[batch["labels"] != -100]
        tensors |= {f"{case}.{k}": v.contiguous() for k, v in new.items()}
        notes[case] = dict(
            P=rows, B=len(lens), prompt_on=prompt_on, prompt_mask=prompt_mask, loss=loss64.tolist(),
            label_tokens=int((batch["labels"] != -100).sum()), fd_rel_err=fd, grad_max_abs=grad64.abs().max().item(),
            f32_peft_loss_abs_diff=(loss32[0] - loss64[0]).abs().item(),
            f32_peft_grad_max_abs_diff=(grad32.double() - grad64).abs().max().item(),
            f32_peft_prompt_after5_max_abs_diff=(after32.double() - after64).abs().max().item())
        if name in FAMILIES and case == "main":
            write_adapters(folder, prompt, batch, after64)
            write_weight_gradients(folder, batch)
        print(f"{name:12} {case:20} loss {loss64[0]:.12f} -> {loss64[-1]:.6f}  fd {fd:.1e}  "
              f"f32: loss {notes[case]['f32_peft_loss_abs_diff']:.1e} grad {notes[case]['f32_peft_grad_max_abs_diff']:.1e}")
    save_file(tensors, folder / "golden.safetensors")
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    meta = dict(P=notes["main"]["P"], B=notes["main"]["B"], seq2seq=True, weights_dtype=str(dtype), optimizer="AdamW",
                **OPTIMIZER, steps=STEPS, attn="eager", dropout=0, versions=versions, cases=notes)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*MODELS, []])
    args = parser.parse_args()
    for i, (name, (config, dtype, shard, rewritten)) in enumerate(MODELS.items()):
        if not args.names or name in args.names:
            make(args.out, name, config, dtype, shard, rewritten, (300 + i, 1100 + i))


if __name__ == "__main__":
    main()
