#!/usr/bin/env python3
"""Fetch sentences of four domains with their sentiment from a PyPI package into demo/cache/vader/.

Needs Python 3.9 and pip. The sentences and the means of 20 people's ratings, from -4 to 4, are those of Hutto and Gilbert
2014 (VADER), which the source distribution of vaderSentiment (MIT) carries.

  cache/vader/{movies,amazon,nyt,tweets}/{train,dev,test}.jsonl
      rows {"input": a sentence, "target": "positive" or "negative"}: those whose mean rating is 0.5 or more from 0
  cache/vader/LICENSE.txt

A text that comes twice is kept once; one that comes with both labels, or in two domains, is left out.
"""
import collections
import io
import json
import tarfile

from fetch import CACHE, digest, fail, fetch, key, run, sha256, write

VADER = CACHE / "vader"
SOURCE = "vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATINGS = VADER / "hutto_ICWSM_2014.tar.gz"
INSIDE = "vaderSentiment-3.3.2/"
FILES = [
    (RATINGS, SOURCE, [INSIDE + "additional_resources/" + RATINGS.name], "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"),
    (VADER / "LICENSE.txt", SOURCE, [INSIDE + "LICENSE.txt"], "74cfe41cdbf7f6925aeb4c18c148ec8db042540edb6739fd81069aa4e3c8b118"),
]

DOMAINS = {"movies": "movieReviewSnippets", "amazon": "amazonReviewSnippets", "nyt": "nytEditorialSnippets", "tweets": "tweets"}
CLEAR = 0.5  # how far from 0 a mean rating must be
TEST, DEV = 500, 200  # of each domain
SPLITS = {
    "movies/test": "7d94eb1202b966236eb0f16253be846b5448e2c03d60e0899150dda8ea2c0491",
    "movies/dev": "00cc13cb948b7fcb91981ff910f0c0b74be031ddf8ebb09f8d49e4f9f31b6a83",
    "movies/train": "bb11ac1dacd2552c69da4911df6d9a1ef803897cd42bb1bb573fd671c0fe5205",
    "amazon/test": "932d7d8dcdba4b93418f163dc69376d50b4767b9c84f8088542202a4ff5b1b67",
    "amazon/dev": "5d8368270c323c746611ef711b7f6c8241090db450a6db4cb7adf31ceaff34ec",
    "amazon/train": "a20dc51823984d5d21bf9de6f8c3bd74e60c2eca7ab887bd129485180486827d",
    "nyt/test": "5beed3ed8be0dcdd746fe921f4c6c7539a1165c4eaf3a69a1307aea053560e25",
    "nyt/dev": "ab1f8144eacb84739c0146480f7112be488b79f3f31d0443e20167db45b19c01",
    "nyt/train": "85af8b6758a5d91622b5c6278fc0a528f4090fa8d3397bb000dc9611376c183e",
    "tweets/test": "1a557e14bdc78be06a356f06ccec5d4b59935d2745a2c73d2c7773a510a52908",
    "tweets/dev": "7eec24f608e6711ad2a3bc50e087714ec6c6124550c3e771fb6ab28793d82ed5",
    "tweets/train": "a0c6b34d162ff8ca3d403a9764a1a84224221252e866abba9bbdef2b2e508b0a",
}


def sentences():
    """{domain: {key: (text, label)}} of the sentences that have one label and one domain."""
    found, domains = {}, collections.Counter()
    with tarfile.open(RATINGS) as archive:
        for domain, name in DOMAINS.items():
            member = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            texts, labels = {}, collections.defaultdict(set)
            for line in io.TextIOWrapper(member, encoding="utf-8", newline="\r\n"):
                _, rating, text = line.rstrip("\r\n").split("\t")
                text = " ".join(text.split())
                if text and abs(float(rating)) >= CLEAR:
                    texts.setdefault(key(text), text)
                    labels[key(text)].add("positive" if float(rating) > 0 else "negative")
            found[domain] = {k: (text, *labels[k]) for k, text in texts.items() if len(labels[k]) == 1}
            domains.update(found[domain].keys())
    return {domain: {k: row for k, row in rows.items() if domains[k] == 1} for domain, rows in found.items()}


def split():
    """A text's hash alone decides whether it is test, dev or train, and the order."""
    for domain, rows in sentences().items():
        keys = sorted(rows, key=digest)
        cuts = {"test": keys[:TEST], "dev": keys[TEST:TEST + DEV], "train": keys[TEST + DEV:]}
        for name, chosen in cuts.items():
            path = VADER / domain / f"{name}.jsonl"
            lines = [json.dumps({"input": rows[k][0], "target": rows[k][1]}, ensure_ascii=False) + "\n" for k in chosen]
            write(path, [line.encode() for line in lines])
            if (found := sha256(path)) != SPLITS[f"{domain}/{name}"]:
                fail(f"{domain}/{path.name} has SHA-256 {found}, not {SPLITS[f'{domain}/{name}']}", "results would not compare; please open an issue")
            count = collections.Counter(rows[k][1] for k in chosen)
            words = sum(len(rows[k][0].split()) for k in chosen) / len(chosen)
            print(f"{domain:6} {name:5} {len(chosen):5} rows, {words:.1f} words each: "
                  + ", ".join(f"{label} {n}" for label, n in sorted(count.items())))


if __name__ == "__main__":
    run(lambda: (fetch(FILES), split()))
