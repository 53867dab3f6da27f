"""Keeps evaluation sets out of training data: finds documents that share words or pictures with one of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mm1.prepare.dedup import looks_like_any
from mm1.prepare.filters.image_filters import Screened
from mm1.prepare.text_hashes import is_character, ngram_hashes, units

_OVERLAPS = {"words": (8, 13), "characters": (10, 20)}
"""Words of an n-gram that may not be shared: 13, or all of a shorter text, never fewer than 8.

GPT-3 has the same bounds, but sets one length for a whole set: that of its short examples, the 5th percentile
(https://arxiv.org/abs/2005.14165, appendix C). Where words have no spaces, characters are counted: 20 of Chinese say
about what 13 words of English do.
"""


@dataclass(frozen=True, slots=True)
class Decontaminator:
    """What evaluation sets hold: hashes of n-grams by (number, `words` or `characters`), and pictures' fingerprints."""

    ngrams: dict[tuple[int, str], frozenset[int]]
    fingerprints: np.ndarray

    def drop_reason(self, screened: Screened) -> str | None:
        """Why the document must not be trained on; None if it may."""
        if len(self.fingerprints) and any(looks_like_any(image, self.fingerprints) for image in screened.fingerprints):
            return "contaminated: shows a picture of an evaluation set"
        for (size, what), hashes in self.ngrams.items():
            if hashes and not hashes.isdisjoint(ngram_hashes(screened.document.text, size).tolist()):
                return f"contaminated: shares {size} {what} with an evaluation set"
        return None


def index_evaluation_sets(documents: Iterable[Screened]) -> Decontaminator:
    """The index of some evaluation documents."""
    ngrams: dict[tuple[int, str], set[int]] = {}
    fingerprints = [np.zeros(0, np.uint64)]
    for screened in documents:
        fingerprints.append(screened.fingerprints)
        text = screened.document.text
        words = units(text)
        what = "characters" if 2 * sum(map(is_character, words)) > len(words) else "words"
        shortest, longest = _OVERLAPS[what]
        size = min(len(words), longest)
        if size >= shortest:
            ngrams.setdefault((size, what), set()).update(ngram_hashes(text, size).tolist())
    frozen = {size: frozenset(hashes) for size, hashes in sorted(ngrams.items())}
    return Decontaminator(frozen, np.unique(np.concatenate(fingerprints)))
