"""The text: Python's standard library, in a byte-pair vocabulary learned from it, and what counting alone predicts."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HELD_OUT = ("statistics.py", "textwrap.py", "typing.py")  # prose, doctests and dense code
Tokens = NDArray[np.int64]


def read_modules(*, held_out: bool) -> bytes:
    """Return the joined source of the top-level modules, in order of name; built ones (_sysconfigdata) are left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in folder.glob("*.py") if not p.name.startswith("_sysconfigdata"))
    return b"".join(path.read_bytes() for path in paths if (path.name in HELD_OUT) == held_out)


def merge_pair(tokens: Tokens, pair: tuple[int, int], new: int) -> Tokens:
    """Replace each occurrence of a pair of neighbours by one new token, from the left; `aaa` holds one pair `aa`."""
    (at,) = np.nonzero((tokens[:-1] == pair[0]) & (tokens[1:] == pair[1]))
    run_start = np.maximum.accumulate(np.where(np.diff(at, prepend=-2) > 1, at, 0))
    at = at[(at - run_start) % 2 == 0]
    tokens = tokens.copy()
    tokens[at] = new
    return np.delete(tokens, at + 1)


def learn_vocabulary(text: bytes, size: int) -> tuple[Tokens, list[tuple[int, int]]]:
    """Return the text in byte pairs, and the merges: the most frequent pair becomes a token until there are `size`."""
    tokens, merges = np.frombuffer(text, np.uint8).astype(np.int64), []
    for new in range(256, size):
        commonest = int(np.bincount(tokens[:-1] * size + tokens[1:]).argmax())
        merges.append(divmod(commonest, size))
        tokens = merge_pair(tokens, merges[-1], new)
    return tokens, merges


def encode(text: bytes, merges: list[tuple[int, int]]) -> Tokens:
    """Return the text in a learned vocabulary."""
    tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    for new, pair in enumerate(merges, start=256):
        tokens = merge_pair(tokens, pair, new)
    return tokens


def count_baselines(train: Tokens, held_out: Tokens, size: int) -> tuple[float, float]:
    """Return the nats per held-out token of a unigram and of a bigram model (smoothed by the unigram) of the text."""
    unigram = (np.bincount(train, minlength=size) + 1) / (len(train) + size)
    pairs = np.bincount(train[:-1] * size + train[1:], minlength=size * size).reshape(size, size)
    bigram = (pairs + 2 * unigram) / (pairs.sum(1, keepdims=True) + 2)
    before, after = held_out[:-1], held_out[1:]
    return -float(np.log(unigram[after]).mean()), -float(np.log(bigram[before, after]).mean())
