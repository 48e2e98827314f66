"""What is compared: shapes, batches, goals; and the files that every side reads."""

import json
import random
import struct
from dataclasses import dataclass
from pathlib import Path

SEED = 0
SHORTEST = 4  # of uneven rows


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    shape: str
    examples: int
    tokens: int  # of an example, label included; of the longest where they are uneven; an encoder–decoder's on both sides
    prompt_rows: int = 0  # 0: all weights are trained, without a prompt
    uneven: bool = False
    all_labels: bool = False  # every token but the first is a label; else the last alone, of an encoder–decoder the last two
    goal: float | None = None  # the peer's seconds over ours, at least
    rounds: int = 4  # pairs of timings; fewer where a step takes half a minute
    recompute: tuple[str, ...] = ()  # policies whose memory is measured besides

    @property
    def trains_prompt(self) -> bool:
        return self.prompt_rows > 0

    @property
    def is_seq2seq(self) -> bool:
        return self.shape in T5_SHAPES

    @property
    def sides(self) -> list[str]:
        """What is timed beside softprompt; the first is the truth. T5's prompt rows see the input, so none are shared."""
        if not self.trains_prompt:
            return ["full"]
        return ["peft"] if self.is_seq2seq else ["peft", "shared"]

    def sizes(self) -> str:
        tokens = f"uneven ≤ {self.tokens}" if self.uneven else str(self.tokens)
        return f"{self.prompt_rows}, {self.examples}, {tokens}" if self.trains_prompt else f"-, {self.examples}, {tokens}"


CASES = [
    Case("smollm2-100-32-32", "smollm2-135m", 32, 32, 100, goal=7.0, rounds=2, recompute=("mlp",)),
    Case("smollm2-100-32-uneven", "smollm2-135m", 32, 32, 100, uneven=True, goal=10.0, rounds=2),
    Case("smollm2-20-8-128", "smollm2-135m", 8, 128, 20, goal=2.0),
    Case("qwen2.5-100-8-32", "qwen2.5-0.5b", 8, 32, 100, goal=5.5, rounds=2),
    Case("gpt2-100-8-32", "gpt2", 8, 32, 100, goal=6.5),
    Case("smollm2-full-8-128", "smollm2-135m", 8, 128, all_labels=True, goal=1.0),
    Case("t5-base-100-32-32", "t5-base", 32, 32, 100, goal=1.2, rounds=2),
    Case("t5-base-100-32-uneven", "t5-base", 32, 128, 100, uneven=True, goal=1.6, rounds=2),
    Case("t5-small-100-32-32", "t5-small", 32, 32, 100),
    # The memory of full fine-tuning on the first row's batch.
    Case("smollm2-full-32-32", "smollm2-135m", 32, 32, rounds=1),
]

SMOKE = [
    Case("smoke-llama-prompt", "tiny-llama", 4, 8, 6, uneven=True, rounds=2, recompute=("mlp",)),
    Case("smoke-gpt2-prompt", "tiny-gpt2", 4, 8, 6, rounds=2),
    Case("smoke-t5-prompt", "tiny-t5", 4, 8, 6, uneven=True, rounds=2),
    Case("smoke-llama-full", "tiny-llama", 4, 8, all_labels=True, rounds=2),
]

# Arguments of transformers' configurations; those of the well-known models are as in their config.json.
LLAMA_SHAPES = {
    "smollm2-135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                         num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=1e5),
    "tiny-llama": dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2, vocab_size=256, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=1e4),
}
QWEN2_SHAPES = {
    "qwen2.5-0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                         num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6),
}
GPT2_SHAPES = {
    "gpt2": dict(n_embd=768, n_layer=12, n_head=12, n_positions=1024, vocab_size=50257),
    "tiny-gpt2": dict(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=256),
}
# ReLU and a tied head, as the first T5 has them: transformers' defaults.
T5_SHAPES = {
    "t5-base": dict(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128),
    "t5-small": dict(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128),
    "tiny-t5": dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=256),
}


def sizes_of(shape: str) -> tuple[int, int]:
    """Vocabulary and width."""
    config = (LLAMA_SHAPES | QWEN2_SHAPES | GPT2_SHAPES | T5_SHAPES)[shape]
    return config["vocab_size"], next(config[key] for key in ("hidden_size", "n_embd", "d_model") if key in config)


def make_model(shape: str, folder: Path) -> None:
    """Writes a Hugging Face directory: seeded random weights of that shape, in float32. Needs torch and transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, LlamaConfig, Qwen2Config, T5Config

    kind = AutoModelForCausalLM
    ids = dict(bos_token_id=0, eos_token_id=1, pad_token_id=None)
    if shape in GPT2_SHAPES:  # without dropout, so that losses can be compared
        config = GPT2Config(**GPT2_SHAPES[shape], **ids, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    elif shape in T5_SHAPES:
        config, kind = T5Config(**T5_SHAPES[shape], dropout_rate=0.0, decoder_start_token_id=0), AutoModelForSeq2SeqLM
    else:
        sizes = dict((LLAMA_SHAPES | QWEN2_SHAPES)[shape])
        rope = dict(rope_type="default", rope_theta=sizes.pop("rope_theta"))
        config = (Qwen2Config if shape in QWEN2_SHAPES else LlamaConfig)(**sizes, **ids, rope_parameters=rope, tie_word_embeddings=True)
    torch.manual_seed(SEED)
    kind.from_config(config, dtype=torch.float32).save_pretrained(folder, max_shard_size="100GB")


def make_rows(case: Case, file: Path) -> list[int]:
    """Writes the batch as JSON lines, and gives the examples' lengths in tokens."""
    vocabulary, _ = sizes_of(case.shape)
    draw = random.Random(SEED)
    lengths = [draw.randint(SHORTEST, case.tokens) if case.uneven else case.tokens for _ in range(case.examples)]
    with open(file, "w") as out:
        for length in lengths:
            ids = [draw.randrange(vocabulary) for _ in range(length)]
            first_label = 1 if case.all_labels else length - (2 if case.is_seq2seq else 1)
            out.write(json.dumps(dict(input_ids=ids[:first_label], target_ids=ids[first_label:])) + "\n")
    return lengths


def make_prompt(case: Case, file: Path) -> None:
    """Writes the prompt that every side starts from, `[P, d]`, as safetensors."""
    _, width = sizes_of(case.shape)
    draw, count = random.Random(SEED + 1), case.prompt_rows * width
    data = struct.pack(f"<{count}f", *(draw.gauss(0.0, 0.1) for _ in range(count)))
    about = {"prompt_embeds": dict(dtype="F32", shape=[case.prompt_rows, width], data_offsets=[0, len(data)])}
    header = json.dumps(about).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_rows(file: Path) -> list[tuple[list[int], list[int]]]:
    """Input and target ids of each row."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["input_ids"], row["target_ids"]) for row in rows]


def read_tensor(file: Path, name: str) -> tuple[float, ...]:
    """The numbers of a float tensor in a safetensors file."""
    content = file.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    entry = json.loads(content[8 : 8 + size])[name]
    start, end = entry["data_offsets"]
    code, width = {"F32": ("f", 4), "F64": ("d", 8)}[entry["dtype"]]
    return struct.unpack_from(f"<{(end - start) // width}{code}", content, 8 + size + start)


def tensor_bytes(file: Path) -> int:
    """The bytes of all tensors of a safetensors file."""
    with open(file, "rb") as content:
        (header,) = struct.unpack("<Q", content.read(8))
    return file.stat().st_size - 8 - header
