"""Fit the mini model's tokenizer: byte-level BPE in CLIP's form, on the words of the corpus.

--pictures FILE   the corpus that models.base.collect drew
--out DIR         a tokenizer that transformers' CLIPTokenizer reads
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from models.base.pictures import STYLE_WORDS, CorpusParams, captions, read_corpus
from stages.harness.params import Params, load_params
from stages.harness.paths import clear_errors, stage_paths

END_OF_WORD = "</w>"
SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
CAPTIONS_PER_PICTURE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParams(Params):
    """Section `tokenizer`."""

    vocab_size: int  # tokens, the two special ones included
    max_length: int  # tokens a caption may take, start and end included


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Learn the `count` most useful merges of CLIP's byte-level BPE, best first.

    Source: "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    pattern = CLIPTokenizer()  # an empty one, for its normalizer and its way to cut words
    learner.normalizer = pattern.backend_tokenizer.normalizer or normalizers.Lowercase()
    learner.pre_tokenizer = pattern.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + count,
        initial_alphabet=alphabet,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges][:count]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Number the tokens as CLIP does: bytes, bytes at a word's end, merges, special tokens.

    All 256 bytes are there in both forms, so that no text is unknown.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(symbol + END_OF_WORD for symbol in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    return {token: i for i, token in enumerate([*dict.fromkeys(tokens), *SPECIAL_TOKENS])}


def run(pictures: Path, out: Path, params: TokenizerParams, seed: int) -> None:
    """Fit the tokenizer to the captions that the models may see."""
    corpus = read_corpus(pictures, seed)
    rng = np.random.default_rng(seed)
    known = [p for p in corpus.pictures if p.concept not in corpus.heldout]
    texts = [
        captions(picture, rng, style=i % 2 == 0)
        for picture in known
        for i in range(CAPTIONS_PER_PICTURE)
    ] + list(STYLE_WORDS.values())
    count = params.vocab_size - 2 * 256 - len(SPECIAL_TOKENS)
    merges = learn_merges(texts, count)
    tokenizer = CLIPTokenizer(
        vocab=vocabulary(merges),
        merges=merges,  # type: ignore[arg-type]  # pairs are what it wants
        model_max_length=params.max_length,
    )
    tokenizer.save_pretrained(out)
    longest = max(len(tokenizer(text).input_ids) for text in texts)
    print(f"{len(tokenizer)} tokens; the longest of {len(texts)} captions takes {longest}")


if __name__ == "__main__":
    with clear_errors():
        pictures, out, params = stage_paths(__doc__, "pictures", "out")
        run(
            pictures,
            out,
            load_params("tokenizer", TokenizerParams, params),
            load_params("corpus", CorpusParams, params).seed,
        )
