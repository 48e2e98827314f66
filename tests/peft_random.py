"""Compares `softprompt gradient` with PEFT on random tiny models.

    cargo build --release
    python tests/peft_random.py --models 300            # needs what tests/golden/requirements.txt lists
    python tests/peft_random.py --models 300 --t5       # the T5 family, with prompts on either half and both masks

A seed gives each model's shape, weights, prompt and batch. PEFT's float64 is the truth: in float64 our loss and gradient
must agree with it to 1e-9 of the largest value; where a T5's prompt is not PEFT's, plain transformers is the truth. In float32 our error is compared with PEFT's own. Now and then PEFT's is
small by luck, most of all in models of a few numbers, so its error is the larger of those with its two ways to compute
attention, eager and sdpa, and at least one unit in the last place of the largest value. How often one of PEFT's two ways
is more than 4 times as far off as the other says how much luck there is.
"""
import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MT5Config, Qwen2Config, T5Config

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "golden"))
import make_golden_t5 as seq2seq  # noqa: E402
from make_golden import BF16, F16, F32, LLAMA3, all_float64, build, gpt2, llama, make_batch, write_model  # noqa: E402

ULP = torch.finfo(F32).eps


def draw(seed):
    """A model's config and stored type, and a batch's shape."""
    r = random.Random(seed)
    heads, layers, vocab = r.choice([1, 2, 3, 4]), r.randint(1, 5), r.choice([16, 33, 64, 200])
    rows, examples = r.choice([1, 1, 2, 5, 9, 20]), r.choice([1, 1, 2, 4, 7])
    lens = [r.randint(1, 12) for _ in range(examples)]
    labels = [r.randint(1, n) for n in lens]  # all of a row may be label: the prompt's last row predicts its start
    tied, dtype, kind = r.random() < 0.5, r.choice([F32, BF16, F16]), r.choice(["llama", "llama", "mistral", "qwen2", "gpt2", "gpt2"])
    sizes = dict(num_hidden_layers=layers, num_attention_heads=heads, vocab_size=vocab, tie_word_embeddings=tied)
    if kind == "gpt2":  # a norm of two numbers is their signs, without a gradient
        width = heads * r.choice([k for k in (2, 3, 4, 8, 16) if heads * k >= 4])
        config = gpt2(n_embd=width, n_layer=layers, n_head=heads, vocab_size=vocab, n_positions=64, tie_word_embeddings=tied,
                      n_inner=r.choice([None, 24, 40]), activation_function=r.choice(["gelu_new", "gelu", "relu"]))
    else:
        keys = r.choice([k for k in (1, 2, 3, 4) if heads % k == 0])
        head_dim = r.choice([2, 4, 6, 8, 16])
        width = heads * r.choice([k for k in (1, 2, 4, 8, 16, 20) if heads * k >= 4]) if kind == "llama" else heads * head_dim
        rope = r.choice([{}, dict(rope_theta=500000.0), dict(rope_type="linear", factor=4.0), LLAMA3]) if kind == "llama" else {}
        over = dict(sizes, hidden_size=width, intermediate_size=r.choice([8, 24, 40, 96]), num_key_value_heads=keys,
                    head_dim=head_dim, rms_norm_eps=r.choice([1e-5, 1e-6]), rope=rope)
        if kind == "llama":
            config = llama(**over, attention_bias=r.random() < 0.3, mlp_bias=r.random() < 0.3)
        elif kind == "mistral":
            config = llama(MistralConfig, **over, sliding_window=None)
        else:
            over.pop("head_dim")
            config = llama(Qwen2Config, **over)
    return config, dtype, rows, lens, labels


def draw_t5(seed):
    """The same of the T5 family, and where the prompt stands and what it sees."""
    r = random.Random(seed)
    rows, examples = r.choice([1, 1, 2, 5, 9, 20]), r.choice([1, 1, 2, 4, 7])
    lens, labels = [r.randint(1, 40) for _ in range(examples)], [r.randint(1, r.choice([3, 30])) for _ in range(examples)]
    kind, dtype, buckets = r.choice([T5Config, T5Config, MT5Config]), r.choice([F32, BF16, F16]), r.choice([4, 8, 16, 32])
    config = seq2seq.t5(
        kind, d_model=r.choice([8, 12, 16, 20]), d_kv=r.choice([2, 3, 4, 8, 16]), num_heads=r.randint(1, 4),
        d_ff=r.choice([8, 24, 40, 96]), num_layers=r.randint(1, 4), num_decoder_layers=r.randint(1, 4),
        vocab_size=r.choice([16, 33, 64, 200]), feed_forward_proj=r.choice(["relu", "gelu", "gated-gelu", "gated-gelu", "gated-silu"]),
        tie_word_embeddings=kind is T5Config and r.random() < 0.5, layer_norm_epsilon=r.choice([1e-5, 1e-6]),
        relative_attention_num_buckets=buckets, relative_attention_max_distance=r.choice([k for k in (9, 20, 64, 128) if k > buckets // 2]),
        decoder_start_token_id=r.choice([0, 0, 3]))
    how = r.choice(["encoder", "encoder", "decoder", "both"]), r.choice(["full", "full", "prompt_only"])
    return config, dtype, rows, lens, labels, how


def gradient(model, weight, batch):
    loss = model(**batch).loss
    loss.backward()
    return loss.detach().double(), weight.grad.double()


def reference(folder, seed, t5):
    """Makes the model and the batch, and writes what PEFT computes."""
    if t5:
        config, dtype, rows, lens, labels, how = draw_t5(seed)
        seq2seq.write_model(folder, config, dtype, None, {}, seed)
        rows *= 2 if how[0] == "both" else 1
        batch = seq2seq.make_batch(config.vocab_size, lens, labels, seed)
        made = lambda dtype: seq2seq.build(folder, prompt, *how, dtype)  # noqa: E731
    else:
        config, dtype, rows, lens, labels = draw(seed)
        how = None
        write_model(folder, config, dtype, None, None, seed, False)
        batch = make_batch(config.vocab_size, lens, labels, max(lens), seed, left=False)
        made = lambda dtype: build(folder, prompt, dtype)  # noqa: E731
    prompt = torch.randn((rows, config.hidden_size), generator=torch.Generator().manual_seed(seed)) * 0.4
    model, weight = made(torch.float64)
    with all_float64():
        loss, grad = gradient(model, weight, batch)
    errors = {}
    for attention in ("eager", "sdpa"):
        model, weight = made(F32)
        getattr(model, "base_model", model).set_attn_implementation(attention)
        loss32, grad32 = gradient(model, weight, batch)
        errors[attention] = [(loss32 - loss).abs().item(), (grad32 - grad).abs().max().item()]
    lines = []
    for ids, mask, wanted in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
        ids = ids[mask == 1].tolist()
        first = len(ids) if t5 else int((wanted != -100).nonzero()[0])
        lines.append(json.dumps(dict(input_ids=ids[:first], target_ids=wanted[wanted != -100].tolist())))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    save_file(dict(prompt_embeds=prompt), folder / "prompt.safetensors")
    save_file(dict(loss=loss.reshape(1), grad=grad), folder / "truth.safetensors")
    (folder / "peft.json").write_text(json.dumps(errors | dict(how=how)))


def ours(binary, folder, dtype, how):
    out = folder / f"{dtype}.safetensors"
    command = [binary, "gradient", "--model", folder, "--prompt", folder / "prompt.safetensors", "--data", folder / "rows.jsonl",
               "--out", out, "--dtype", dtype, "--force", "--quiet", "--threads", "1"]
    if how:
        command += ["--prompt-on", how[0], "--prompt-mask", how[1]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder}: {done.stderr}")
    found, truth = load_file(out), load_file(folder / "truth.safetensors")
    errors = [(found[name].double() - truth[name]).abs().max().item() for name in ("loss", "grad")]
    return errors, [truth[name].abs().max().item() for name in ("loss", "grad")]


def summary(values):
    values = sorted(values)
    at = lambda share: values[min(len(values) - 1, int(share * len(values)))]  # noqa: E731
    return (f"median {at(0.5):.2f}, 95 % {at(0.95):.2f}, 99 % {at(0.99):.2f}, largest {values[-1]:.2f}, "
            f"beyond 4: {sum(value > 4 for value in values)} of {len(values)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=TESTS.parent / "target" / "release" / "softprompt")
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--t5", action="store_true", help="encoder–decoders, not causal models")
    parser.add_argument("--work", type=Path, default=TESTS.parent / "target" / "peft_random", help="models made before are kept")
    args = parser.parse_args()
    found, wrong = {"loss": [], "gradient": []}, []
    for seed in range(args.seed, args.seed + args.models):
        folder = args.work / f"{'t5-' if args.t5 else ''}{seed}"
        if not (folder / "peft.json").exists():
            reference(folder, seed, args.t5)
        peft = json.loads((folder / "peft.json").read_text())
        errors64, sizes = ours(args.binary, folder, "f64", peft.get("how"))
        errors32, _ = ours(args.binary, folder, "f32", peft.get("how"))
        for at, what in enumerate(found):
            if not errors64[at] <= 1e-9 * sizes[at]:
                wrong.append(f"model {seed}, {what} in f64: relative error {errors64[at] / sizes[at]:.1e}")
            unit = ULP * sizes[at]
            found[what].append((errors32[at] / unit, peft["eager"][at] / unit, peft["sdpa"][at] / unit, seed))
    for what, errors in found.items():
        ratios = sorted(((us / max(eager, sdpa, 1), us, eager, sdpa, seed) for us, eager, sdpa, seed in errors), reverse=True)
        print(f"{what}, f32 error over PEFT's: {summary([ratio for ratio, *_ in ratios])}")
        print(f"    over PEFT's with eager alone: {summary([us / max(eager, 1) for us, eager, *_ in errors])}")
        print(f"    PEFT's sdpa over its eager:   {summary([sdpa / max(eager, 1) for _, eager, sdpa, _ in errors])}")
        for ratio, us, eager, sdpa, seed in ratios[:3]:
            print(f"    model {seed}: {ratio:.2f}; in units in the last place: ours {us:.1f}, eager {eager:.1f}, sdpa {sdpa:.1f}")
        beyond = sum(ratio > 4 for ratio, *_ in ratios)
        if beyond > max(1, args.models // 100):
            wrong.append(f"{what} in f32: {beyond} of {args.models} beyond 4 times PEFT's error")
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
