"""Writes `t5_tokenizer/`: a tokenizer as T5's, of 48 tokens, so that every golden T5 model can use it.

Usage: python make_t5_tokenizer.py      (tokenizers and transformers)

A Unigram model trained on the words below, with Metaspace, `</s>` behind every text, and ten sentinels whose ids go down
from the highest, as T5's do. T5's own normalizer is a table of SentencePiece's; NFKC and single blanks stand in for it.
`texts.json` holds what transformers makes of some texts: ids without and with special tokens, and the text decoded.
"""
import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).resolve().parent / "t5_tokenizer"
SENTINELS = 10
SIZE = 48
WORDS = """the cat sat on a mat and the dog ran to the old red barn where five quick foxes jump over lazy brown hens
good movie bad movie great story boring plot the acting was good the ending was bad never again positive negative
what kind of thing is it an animal a plant a person a place water wood stone fire light night day year week zoo""".split()
TEXTS = ["the cat sat", "", " ", "  good   movie ", "bad", "thing: animal?", "a<extra_id_0>b", "the <extra_id_0> sat <extra_id_1>.",
         "The Cat", "naïve café", "x</s>y", "line\none\ttab", "ﬁve ½", "日本", "<extra_id_10>", "zebra quiz"]


def build():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    marks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=SIZE - SENTINELS, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
                                      show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS[at:at + 6]) for at in range(0, len(WORDS), 3)], trainer)
    assert tokenizer.get_vocab_size() == SIZE - SENTINELS
    names = [f"<extra_id_{index}>" for index in reversed(range(SENTINELS))]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"],
                                                             special_tokens=[("</s>", tokenizer.token_to_id("</s>"))])
    return tokenizer


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    build().save(str(FOLDER / "tokenizer.json"))
    names = [f"<extra_id_{index}>" for index in range(SENTINELS)]
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                    extra_special_tokens=names, model_max_length=512, clean_up_tokenization_spaces=False)
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    assert len(tokenizer) == SIZE and (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert [tokenizer.convert_tokens_to_ids(name) for name in names] == list(range(SIZE - 1, SIZE - 1 - SENTINELS, -1))
    texts = []
    for text in TEXTS:
        ids, marked = tokenizer(text, add_special_tokens=False).input_ids, tokenizer(text).input_ids
        assert marked == ids + [1]
        texts.append(dict(text=text, ids=ids, decoded=tokenizer.decode(ids), without_special=tokenizer.decode(ids, skip_special_tokens=True)))
        print(repr(text), [tokenizer.convert_ids_to_tokens(id) for id in ids], repr(texts[-1]["decoded"]))
    (FOLDER / "texts.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
