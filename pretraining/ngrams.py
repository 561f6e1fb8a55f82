"""What a language model must beat: unigram and trigram models of the same tokens, and how much text is shared."""

from __future__ import annotations

import numpy as np

DISCOUNT = 0.75  # the usual value (Ney, Essen and Kneser 1994); not tuned


class Trigram:
    """Interpolated trigram model with absolute discounting over `vocabulary` token ids.

    p(w | u v) = max(c(u v w) - d, 0) / c(u v) + d * n(u v) / c(u v) * p(w | v), with n(u v) the
    number of different tokens seen after u v; the same again for p(w | v); p(w) counts every token
    once more than it was seen.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        ids = tokens.astype(np.int64)
        counts = np.bincount(ids, minlength=vocabulary) + 1
        self.unigram = counts / counts.sum()
        self.levels = [self._level(ids, order) for order in (2, 3)]

    def _level(self, ids: np.ndarray, order: int) -> tuple[np.ndarray, ...]:
        grams, seen = np.unique(self._keys(ids, order), return_counts=True)
        contexts, first = np.unique(grams // self.vocabulary, return_index=True)
        total = np.add.reduceat(seen, first)
        followers = np.diff(np.append(first, len(grams)))
        return grams, seen, contexts, total, followers

    def _keys(self, ids: np.ndarray, order: int) -> np.ndarray:
        """One number for every run of `order` tokens; its last token is the remainder by the vocabulary."""
        keys = ids[order - 1 :].copy()
        for back in range(1, order):
            keys += ids[order - 1 - back : len(ids) - back] * self.vocabulary**back
        return keys

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """p(token | the two before it) for every token of `ids` from the third on."""
        ids = ids.astype(np.int64)
        p = self.unigram[ids]
        for order, (grams, seen, contexts, total, followers) in zip((2, 3), self.levels):
            keys = self._keys(ids, order)
            p = p[1:]
            count = lookup(grams, seen, keys)
            context_count = lookup(contexts, total, keys // self.vocabulary)
            known = context_count > 0
            divisor = np.maximum(context_count, 1)
            backed = DISCOUNT * lookup(contexts, followers, keys // self.vocabulary) / divisor * p
            p = np.where(known, np.maximum(count - DISCOUNT, 0) / divisor + backed, p)
        return p


def lookup(keys: np.ndarray, values: np.ndarray | int, wanted: np.ndarray) -> np.ndarray:
    """The value of every wanted number among the sorted `keys`, 0 where it is none of them."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, np.broadcast_to(values, keys.shape)[place], 0)


def windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit hash of every run of `length` tokens."""
    ids = tokens.astype(np.uint64) + np.uint64(1)
    count = max(0, len(ids) - length + 1)
    keys = np.zeros(count, dtype=np.uint64)
    for i in range(length):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + ids[i : i + count]
        keys ^= keys >> np.uint64(29)
    return keys
