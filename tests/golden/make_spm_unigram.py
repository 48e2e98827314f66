"""Writes `spm_unigram.json`: a small SentencePiece unigram model as T5 has one, and the ids that it gives to some texts.

Usage: python make_spm_unigram.py      (sentencepiece)

The model is trained on the sentences below. Its normalisation is a few rules of its own in place of NFKC's hundreds of
kilobytes, in SentencePiece's compiled form (`charsmap`, hex), with T5's treatment of spaces.
"""
import io
import json
import tempfile
from pathlib import Path

import sentencepiece

HERE = Path(__file__).resolve().parent
SENTENCES = [
    "a prompt of a few rows stands in front of the input", "the rows are the only thing that is trained",
    "frozen weights have no gradient", "the encoder reads the input and the decoder writes the target",
    "two times three is six", "what is learned is near to no word", "a finer unit is a byte", "Angstrom is a unit of length",
] * 4
# Code points in hex: what is replaced, and by what. Space for the two other kinds of it, letters for wide ones and ligatures,
# one letter for one with a mark behind it.
RULES = ["A0\t20", "9\t20", "FF21\t41", "FB01\t66 69", "41 30A\tC5", "AD\t"]
SENTINELS = [f"<extra_id_{i}>" for i in range(3)]
TEXTS = [
    "", " ", "a prompt", "  two  rows ", "the\u00a0rows\tare", "\uff21 \ufb01ner unit", "A\u030angstrom", "so\u00adft", "xyz!", "日本 rows",
    "three\nrows", "a" * 40,
]


def fields(message):
    """Numbers and values of a protocol buffer's fields; those of fixed size are skipped."""
    stream = io.BytesIO(message)

    def varint():
        value = shift = 0
        while True:
            byte = stream.read(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while stream.tell() < len(message):
        tag = varint()
        kind = tag & 7
        yield tag >> 3, varint() if kind == 0 else stream.read({1: 8, 5: 4}.get(kind) or varint())


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "rules.tsv").write_text("".join(rule + "\n" for rule in RULES))
        trained = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=trained, model_type="unigram", vocab_size=60, pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, user_defined_symbols=SENTINELS, normalization_rule_tsv=str(folder / "rules.tsv"),
            num_threads=1, minloglevel=2)
    proto = trained.getvalue()
    spec = dict(fields(dict(fields(proto))[3]))
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    kinds = {2: processor.is_unknown, 3: processor.is_control, 5: processor.is_unused, 6: processor.is_byte}
    pieces = []
    for i in range(processor.vocab_size()):
        piece = processor.id_to_piece(i)
        kind = 4 if piece in SENTINELS else next((kind for kind, holds in kinds.items() if holds(i)), 1)
        pieces.append([piece, processor.get_score(i), kind])
    texts = [[text, processor.encode(text), processor.encode_as_pieces(text)] for text in TEXTS]
    for text, ids, words in texts:
        print(repr(text), words)
    written = {"pieces": pieces, "charsmap": spec[2].hex(), "texts": [[text, ids] for text, ids, _ in texts]}
    (HERE / "spm_unigram.json").write_text(json.dumps(written, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
