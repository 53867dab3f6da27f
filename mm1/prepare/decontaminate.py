"""Keeps evaluation sets out of training data: finds documents that share words or pictures with one of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mm1.data.store import Store, write_store
from mm1.document import Document
from mm1.prepare.dedup import CopyRules
from mm1.prepare.filters.image_filters import Screened
from mm1.prepare.images import sha256
from mm1.prepare.second_look import Detail, detail, difference
from mm1.prepare.text_hashes import is_character, ngram_hashes, units

_OVERLAPS = {"words": (8, 13), "characters": (10, 20)}
"""Words of an n-gram that may not be shared: 13, or all of a shorter text, never fewer than 8.

GPT-3 has the same bounds, but sets one length for a whole set: that of its short examples, the 5th percentile
(https://arxiv.org/abs/2005.14165, appendix C). Where words have no spaces, characters are counted: 20 of Chinese say
about what 13 words of English do.
"""

_MOST_LOOKS = 16  # at pictures of evaluation sets, for each picture of a document: each takes some milliseconds
_DETAILS_IN_MEMORY = 64  # of these pictures, up to 256 kB each


@dataclass(frozen=True, slots=True)
class Decontaminator:
    """What evaluation sets hold: hashes of n-grams by (number, `words` or `characters`), and pictures, each once.

    fingerprints  of the pictures
    pictures      the store that has them in this order, a picture in each document
    rules         when two pictures show the same
    """

    ngrams: dict[tuple[int, str], frozenset[int]]
    fingerprints: np.ndarray
    pictures: Path
    rules: CopyRules

    def drop_reason(self, screened: Screened) -> str | None:
        """Why the document must not be trained on; None if it may."""
        if len(self.fingerprints) and self._shows_one(screened):
            return "contaminated: shows a picture of an evaluation set"
        for (size, what), hashes in self.ngrams.items():
            if hashes and not hashes.isdisjoint(ngram_hashes(screened.document.text, size).tolist()):
                return f"contaminated: shares {size} {what} with an evaluation set"
        return None

    def _shows_one(self, screened: Screened) -> bool:
        """Whether the document shows a picture of an evaluation set, at both looks."""
        for image, fingerprint in zip(screened.document.images, screened.fingerprints, strict=True):
            bits = np.bitwise_count(self.fingerprints ^ fingerprint)
            alike = np.flatnonzero(bits <= self.rules.bits)
            alike = alike[np.argsort(bits[alike], kind="stable")[:_MOST_LOOKS]]
            own = detail(image.data) if len(alike) else None
            others = (_detail_of(self.pictures, position) for position in alike.tolist())
            if own and any(other and difference(own, other) <= self.rules.difference for other in others):
                return True
        return False


@lru_cache(maxsize=1)
def _opened(pictures: Path) -> Store:
    return Store(pictures)


@lru_cache(maxsize=_DETAILS_IN_MEMORY)
def _detail_of(pictures: Path, position: int) -> Detail | None:
    (document,) = _opened(pictures).take([position])
    return detail(document.images[0].data)


def index_evaluation_sets(
    documents: Iterable[Screened], pictures: Path, *, rules: CopyRules = CopyRules()
) -> Decontaminator:
    """The index of some evaluation documents, whose pictures are written to a new store, `pictures`."""
    ngrams: dict[tuple[int, str], set[int]] = {}
    fingerprints: list[np.uint64] = []

    def shown() -> Iterator[Document]:
        seen: set[str] = set()
        for screened in documents:
            _add_ngrams(ngrams, screened.document.text)
            for image, fingerprint in zip(screened.document.images, screened.fingerprints, strict=True):
                name = sha256(image.data)
                if name not in seen:
                    seen.add(name)
                    fingerprints.append(fingerprint)
                    yield Document((image,), id=name)

    write_store(shown(), pictures)
    frozen = {size: frozenset(hashes) for size, hashes in sorted(ngrams.items())}
    return Decontaminator(frozen, np.array(fingerprints, np.uint64), pictures, rules)


def _add_ngrams(ngrams: dict[tuple[int, str], set[int]], text: str) -> None:
    words = units(text)
    what = "characters" if 2 * sum(map(is_character, words)) > len(words) else "words"
    shortest, longest = _OVERLAPS[what]
    size = min(len(words), longest)
    if size >= shortest:
        ngrams.setdefault((size, what), set()).update(ngram_hashes(text, size).tolist())
