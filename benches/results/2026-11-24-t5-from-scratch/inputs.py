#!/usr/bin/env python3
"""Does the decoder read the encoder? A model's loss on held-out pieces of 48 tokens with their own inputs, and with other pieces'.

    python inputs.py MODEL...      from the repository's root, after demo/t5.sh; needs torch and transformers
"""
import json
import sys

import torch
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration

END, FIRST, SECOND = 1, 3, 4  # </s>, <extra_id_0>, <extra_id_1>


def span_corruption(piece):
    source = piece[:15] + [FIRST] + piece[19:38] + [SECOND] + piece[41:] + [END]
    return source, [FIRST] + piece[15:19] + [SECOND] + piece[38:41] + [END]


def prefix_lm(piece):
    return piece[:24] + [END], piece[24:] + [END]


tokenizer = Tokenizer.from_file("demo/cache/t5/model/tokenizer.json")
ids = []
with open("demo/cache/t5/held-out.jsonl", encoding="utf-8") as f:
    for line in f:
        ids += tokenizer.encode(json.loads(line)["text"]).ids[:-1]
pieces = [ids[at:at + 48] for at in range(0, len(ids) - 48, 48)]
for path in sys.argv[1:]:
    model = T5ForConditionalGeneration.from_pretrained(path).eval()
    for objective in (span_corruption, prefix_lm):
        own, other = [], []
        for at in range(0, len(pieces) - 31, 32):
            rows = [objective(piece) for piece in pieces[at:at + 32]]
            inputs, targets = (torch.tensor(side) for side in zip(*rows))
            with torch.no_grad():
                own.append(model(input_ids=inputs, labels=targets).loss.item())
                other.append(model(input_ids=inputs.roll(16, 0), labels=targets).loss.item())
        print(f"{path} {objective.__name__}: {sum(own) / len(own):.3f}, with another's input {sum(other) / len(other):.3f}")
