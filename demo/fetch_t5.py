#!/usr/bin/env python3
"""Lay out what a small T5 1.1 is pretrained from in demo/cache/t5/: texts, a tokenizer, and a configuration.

Needs a Debian or Ubuntu machine (apt-get, dpkg-deb, libreadline8), Python 3.9, and the package `tokenizers`:

  python3 -m venv demo/cache/t5-venv
  demo/cache/t5-venv/bin/pip install tokenizers==0.23.3
  demo/cache/t5-venv/bin/python demo/fetch_t5.py

The texts are in the public domain, by the copyright files of their packages: the King James Bible (bible-kjv-text), the Jargon
File (dict-jargon) and The Devil's Dictionary (dict-devil). Beside them stand the glosses of the WordNet set's training rows
(demo/fetch.py; WordNet's licence). A text that holds a gloss of its dev or test rows is left out.

  cache/t5/train.jsonl     texts, rows {"text": ...}: chapters, entries' paragraphs, and each gloss REPEATS times
  cache/t5/held-out.jsonl  one text in 50, to measure losses on
  cache/t5/model/          tokenizer.json, tokenizer_config.json and config.json of the model to be
"""
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import fetch
from fetch import CACHE, WORDNET, digest, fail, sha256, write

T5 = CACHE / "t5"
PACKAGES = ["bible-kjv", "bible-kjv-text", "dict-jargon", "dict-devil"]
PIECES = 4096
SENTINELS = 32
REPEATS = 4  # of a gloss: there are 100 times as many words in the books
HELD_OUT = 50  # one text in so many
ABOUT = ("00-database", "data was distributed", "in the public domain", "ublic Domain Text")  # of a dictd file itself
FILES = {
    "train.jsonl": "374ae618d59c034428eab3e25d90740e5899a432548aac9ef78758f711f1a0ac",
    "held-out.jsonl": "8162e9a0a8459a91b6983062a3c41958331e542d4e2666e5c2f717256a05b4dd",
}

CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 192,
    "d_ff": 512,
    "d_kv": 32,
    "num_heads": 6,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def unpack(folder):
    """The packages' files under `folder`, by apt's and dpkg's own tools; nothing is installed."""
    for name in PACKAGES:
        for command in (["apt-get", "download", "-qq", name], ["sh", "-c", f"dpkg-deb -x {name}_*.deb ."]):
            try:
                run = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            except FileNotFoundError:
                fail(f"{command[0]} was not found", "run this on Debian or Ubuntu, and copy demo/cache/t5 from there")
            if run.returncode:
                fail(f"{name} could not be fetched", f"try `apt-get update`; it said:\n{run.stdout}")


def one_line(text):
    for fancy, plain in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("—", " -- "), ("…", "...")):
        text = text.replace(fancy, plain)
    return " ".join(text.replace("{", "").replace("}", "").split())


def bible(folder):
    """Its chapters. The package has them compressed in a form of its own, and the program that reads it."""
    command = [folder / "usr/bin/bible", "-p", folder / "usr/lib", "-f", "-l1000", "gen1:1-rev22:21"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    if run.returncode or "In the beginning" not in run.stdout:
        fail("the package's program `bible` did not run", f"install libreadline8; it said:\n{run.stderr}")
    chapters = {}
    for line in run.stdout.splitlines():
        chapter, _, verse = line.partition(":")
        chapters.setdefault(chapter, []).append(verse.partition(" ")[2])
    assert len(chapters) == 1189, len(chapters)
    return [one_line(" ".join(verses)) for verses in chapters.values()]


def dictionary(path):
    """The paragraphs of a dictd file that are prose, each with its headword if the file has that on a line of its own."""
    texts, head = [], ""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as f:
        for paragraph in re.split(r"\n\s*\n", f.read()):
            text = one_line(paragraph)
            if "�" in text or any(word in text for word in ABOUT):
                continue
            if not paragraph.startswith((" ", "\n")) and len(text) < 40:
                head = text
                continue
            letters = sum(c.isalpha() or c == " " for c in text)
            if len(text) >= 40 and letters > 0.9 * len(text):
                texts.append(f"{head}: {text}" if head else text)
                head = ""
    return texts


def words(text):
    return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower())) + " "


def without(held, texts):
    """`texts` without those that hold one of the `held` ones, whatever the case and the punctuation."""
    everything = "\n".join(map(words, texts))
    there = [gloss for gloss in map(words, held) if gloss in everything]
    return [text for text in texts if not any(gloss in words(text) for gloss in there)]


def rows(name):
    with open(WORDNET / f"{name}.jsonl", encoding="utf-8") as f:
        return [json.loads(line)["text"] for line in f]


def lay_out_texts():
    held = rows("dev") + rows("test")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpack-") as folder:
        folder = Path(folder)
        unpack(folder)
        books = {
            "bible-kjv-text": bible(folder),
            "dict-jargon": dictionary(folder / "usr/share/dictd/jargon.dict.dz"),
            "dict-devil": dictionary(folder / "usr/share/dictd/devil.dict.dz"),
            "wordnet": [gloss + "." for gloss in rows("train")],
        }
    train, held_out = [], []
    for name, texts in books.items():
        kept = without(held, texts)
        apart = [text for text in kept if int(digest(text)[:8], 16) % HELD_OUT == 0]
        rest = [text for text in kept if int(digest(text)[:8], 16) % HELD_OUT]
        train += rest * (REPEATS if name == "wordnet" else 1)
        held_out += apart
        print(f"{name:15} {len(rest):6} texts, {sum(len(text.split()) for text in rest):7} words; {len(apart)} held out, "
              f"{len(texts) - len(kept)} left out for a gloss of the dev or test rows")
    # Nothing of what is measured later may have been read before.
    everything = "\n".join(map(words, train + held_out))
    assert not [gloss for gloss in held if words(gloss) in everything]
    for name, texts in (("train.jsonl", train), ("held-out.jsonl", held_out)):
        write(T5 / name, [(json.dumps({"text": text}, ensure_ascii=False) + "\n").encode() for text in texts])
    return train


def lay_out_model(texts):
    # One thread. The pieces are the same each time; their scores differ by up to 3e-4, as the trainer adds them up in an order of
    # its own, and so may their ids: a model of one such tokenizer is not for another.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    except ImportError:
        fail("the Python package `tokenizers` was not found", "this file's beginning says how to make a venv with it")
    special = ["<pad>", "</s>", "<unk>"] + [f"<extra_id_{i}>" for i in range(SENTINELS)]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=PIECES, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))])
    assert [tokenizer.token_to_id(token) for token in special] == list(range(len(special)))
    model = T5 / "model"
    config = CONFIG | {"vocab_size": -(-tokenizer.get_vocab_size() // 128) * 128}
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write(model / "config.json", [json.dumps(config, indent=2).encode() + b"\n"])
    write(model / "tokenizer_config.json", [json.dumps(settings, indent=2).encode() + b"\n"])
    write(model / "tokenizer.json", [tokenizer.to_str(pretty=True).encode() + b"\n"])
    print(f"tokenizer       {tokenizer.get_vocab_size()} pieces")


def check():
    for name, wanted in FILES.items():
        if (found := sha256(T5 / name)) != wanted:
            print(f"note: {name} has SHA-256 {found}, not {wanted}: results will not be those kept in benches/results",
                  file=sys.stderr)


def work():
    if (T5 / "model/tokenizer.json").is_file() and all(
            (T5 / name).is_file() and sha256(T5 / name) == wanted for name, wanted in FILES.items()):
        return
    fetch.fetch(fetch.FILES[1:])  # WordNet alone, without the other demo's model
    fetch.split()
    lay_out_model(lay_out_texts())
    check()


if __name__ == "__main__":
    fetch.run(work)
