"""Keeps evaluation sets out of training data: finds documents that share words or pictures with one of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mm1.prepare.dedup import looks_like_any, ngram_hashes, normalize_text
from mm1.prepare.filters.image_filters import Screened

_SHORTEST_OVERLAP, _LONGEST_OVERLAP = 8, 13
"""Words of an n-gram that may not be shared: 13, or all of a shorter text, never fewer than 8.

GPT-3 has the same bounds, but sets one length for a whole set: that of its short examples, the 5th percentile
(https://arxiv.org/abs/2005.14165, appendix C).
"""


@dataclass(frozen=True, slots=True)
class Decontaminator:
    """What evaluation sets hold: hashes of n-grams by their number of words, and fingerprints of pictures."""

    ngrams: dict[int, frozenset[int]]
    fingerprints: np.ndarray

    def drop_reason(self, screened: Screened) -> str | None:
        """Why the document must not be trained on; None if it may."""
        if len(self.fingerprints) and any(looks_like_any(image, self.fingerprints) for image in screened.fingerprints):
            return "contaminated: shows a picture of an evaluation set"
        for size, hashes in self.ngrams.items():
            if hashes and not hashes.isdisjoint(ngram_hashes(screened.document.text, size).tolist()):
                return f"contaminated: shares {size} words with an evaluation set"
        return None


def index_evaluation_sets(documents: Iterable[Screened]) -> Decontaminator:
    """The index of some evaluation documents."""
    ngrams: dict[int, set[int]] = {}
    fingerprints = [np.zeros(0, np.uint64)]
    for screened in documents:
        fingerprints.append(screened.fingerprints)
        text = screened.document.text
        words = sum(bool(normalize_text(word)) for word in text.split())
        size = min(words, _LONGEST_OVERLAP)
        if size >= _SHORTEST_OVERLAP:
            ngrams.setdefault(size, set()).update(ngram_hashes(text, size).tolist())
    frozen = {size: frozenset(hashes) for size, hashes in sorted(ngrams.items())}
    return Decontaminator(frozen, np.unique(np.concatenate(fingerprints)))
