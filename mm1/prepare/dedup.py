"""Copies and contamination: which documents say and show what an earlier one, or an evaluation set, does.

Words are compared by MinHash with FineWeb's numbers (https://arxiv.org/abs/2406.17557, section 3.4): runs of 5 words,
112 hashes in 14 bands of 8, aimed at pairs that are 75 % alike, 77 % of which share a band; such a pair is then checked
on all its hashes. Pictures are compared by their fingerprints. Documents are copies when their words are, and their
pictures look alike: another caption of the same picture is no copy, nor is the same caption of another picture.
"""

import hashlib
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mm1.prepare.filters.image_filters import Seen
from mm1.prepare.images import sha256

LOOK_ALIKE = 8
"""Two pictures look alike when their 64-bit fingerprints differ in at most this many bits.

Measured on the 5,900 captioned pictures: up to 8 bits the pairs are variants of one drawing (another colour, skin
tone, sex or ornament), and their number grows slowly, 1,400 to 2,100 per step of 2 bits; from 10 bits on it doubles
with every step, as pairs that have nothing in common (an LED and a man's face) come in, and 12 bits would chain a
quarter of all pictures into one group. From the other side: the same picture scaled to three quarters and encoded anew
stays within 8 bits in 98 % of cases.
"""


_BANDS, _ROWS, _RUN = 14, 8, 5
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing (Knuth, TAOCP 3, section 6.4)
_AT_ONCE = 2**16  # documents whose signatures are looked at together
_ALIKE = 0.75
_OVERLAP = range(8, 14)
"""Words of a run that an evaluation set shares: 13, or all of a shorter text, never fewer than 8.

GPT-3 bounds its runs the same way, but sets one length for a whole set: that of its short examples, the 5th percentile
(https://arxiv.org/abs/2005.14165, appendix C).
"""


_TYPES = {"exact": np.uint64, "words": np.uint32, "pictures": np.int64, "bytes": np.uint64, "looks": np.uint64}


def same_words(caption: str) -> str:
    """The caption as compared: case, accents' encoding, punctuation and white space don't count."""
    text = unicodedata.normalize("NFKC", caption).casefold()
    return "".join(character for character in text if character.isalnum())


@dataclass(frozen=True, slots=True)
class Prints:
    """What is remembered of some documents, in their order: 0.5 kB each, and 16 bytes a picture.

    exact      the hash of words and pictures' bytes
    words      the MinHash signature, one line a document
    pictures   how many pictures each has
    bytes      the hash of each picture's bytes, document after document
    looks      the fingerprint of each picture
    """

    exact: np.ndarray
    words: np.ndarray
    pictures: np.ndarray
    bytes: np.ndarray
    looks: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Where each document's pictures begin, and where the last one's end."""
        return np.concatenate([[0], np.cumsum(self.pictures)])


def prints_of(documents: Iterable[Seen]) -> Prints:
    """The prints of documents."""
    exact, words, pictures, data, looks = [], [], [], [], [np.zeros(0, np.uint64)]
    for seen in documents:
        hashes = [number(sha256(image.data)) for image in seen.document.images]
        exact.append(number(sha256(f"{same_words(seen.document.text)} {hashes}".encode())))
        words.append(signature(seen.document.text))
        pictures.append(len(hashes))
        data += hashes
        looks.append(seen.looks)
    return Prints(
        np.array(exact, np.uint64),
        np.array(words, np.uint32).reshape(-1, _BANDS * _ROWS),
        np.array(pictures, np.int64),
        np.array(data, np.uint64),
        np.concatenate(looks),
    )


class PrintsFile:
    """Prints that are added to files of a folder, so that nothing of them stays in memory."""

    def __init__(self, folder: Path):
        self._files = {name: (folder / f"{name}.prints").open("wb") for name in _TYPES}

    def add(self, prints: Prints) -> None:
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(getattr(prints, name), _TYPES[name]).tobytes())

    def __enter__(self) -> "PrintsFile":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


def joined(folders: Sequence[Path], words: Path) -> Prints:
    """The prints of all documents, folder after folder: 16 bytes of each in memory, and 16 of each picture.

    Signatures, the bulk of them, go to the file `words` and are read from there when they are looked at.
    """
    with words.open("wb") as file:
        for folder in folders:
            with (folder / "words.prints").open("rb") as part:
                shutil.copyfileobj(part, file)
    whole = {
        name: np.concatenate([np.zeros(0, kind), *(np.fromfile(f / f"{name}.prints", kind) for f in folders)])
        for name, kind in _TYPES.items()
        if name != "words"
    }
    size = words.stat().st_size // (4 * _BANDS * _ROWS)
    signatures = np.memmap(words, np.uint32, "r", shape=(size, _BANDS * _ROWS)) if size else np.zeros((0, 112))
    return Prints(words=signatures, **whole)


def number(digest: str) -> int:
    """The first 64 bits of a hash in hexadecimal."""
    return int(digest[:16], 16)


def runs(text: str, size: int) -> np.ndarray:
    """The hash of every run of `size` words of the text; of the whole text where it is shorter."""
    words = [word for word in (same_words(part) for part in text.split()) if word]
    grams = [" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))]
    digests = b"".join(hashlib.blake2b(gram.encode(), digest_size=8).digest() for gram in grams)
    return np.unique(np.frombuffer(digests, np.uint64))


def signature(text: str) -> np.ndarray:
    """The text's MinHash: equal places of two signatures estimate the share of runs that both texts have.

    Each hash is the high half of factor x run + term, all modulo 2**64 with odd factors (multiply-shift; Dietzfelbinger
    et al. 1997, https://doi.org/10.1006/jagm.1997.0873).
    """
    factors, terms = _hashes()
    found = runs(text, _RUN)
    least = np.full(len(terms), 2**32 - 1, np.uint64)
    for at in range(0, len(found), 4096):
        block = found[at : at + 4096, None]
        least = np.minimum(least, ((block * factors + terms) >> np.uint64(32)).min(axis=0))
    return least.astype(np.uint32)


@lru_cache(maxsize=1)
def _hashes() -> tuple[np.ndarray, np.ndarray]:
    """The odd factors and the terms of all hashes."""
    chance = np.random.default_rng(2406)
    factors, terms = chance.integers(0, 2**63, (2, _BANDS * _ROWS), dtype=np.uint64)
    return factors * np.uint64(2) + np.uint64(1), terms


@dataclass(frozen=True, slots=True)
class Copies:
    """Which documents (by position) repeat an earlier one: in every word and byte, or nearly."""

    exact: np.ndarray
    near: np.ndarray


def copies(prints: Prints) -> Copies:
    """The documents that an earlier one makes superfluous."""
    _, first, group = np.unique(prints.exact, return_index=True, return_inverse=True)
    exact = first[group] != np.arange(len(prints.exact))
    near = np.zeros(len(exact), bool)
    starts = prints.first
    for one, other in _candidates(prints.words, np.flatnonzero(~exact)):
        if not near[other] and _alike(prints, starts, one, other):
            near[other] = True
    return Copies(np.flatnonzero(exact), np.flatnonzero(near))


def _candidates(words: np.ndarray, among: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) that share a band: with the first of its group, and with the one before.

    A band is known by a 64-bit hash of it; two bands of one hash are no harm, as pairs are checked.
    """
    for band in range(_BANDS):
        keys = np.zeros(len(among), np.uint64)
        for at in range(0, len(among), _AT_ONCE):
            here = slice(at, at + _AT_ONCE)
            for column in words[among[here], band * _ROWS : (band + 1) * _ROWS].T:
                keys[here] = (keys[here] ^ column) * _MIX
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        begins = np.concatenate([[True], ranked[1:] != ranked[:-1]])
        first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        for place in np.flatnonzero(~begins):
            later = int(among[order[place]])
            yield int(among[order[first[place]]]), later
            if place - 1 > first[place]:
                yield int(among[order[place - 1]]), later


def _alike(prints: Prints, starts: np.ndarray, one: int, other: int) -> bool:
    if (prints.words[one] == prints.words[other]).mean() < _ALIKE:
        return False
    these = prints.looks[starts[one] : starts[one + 1]]
    those = prints.looks[starts[other] : starts[other + 1]]
    if not len(those):
        return True  # the later one shows nothing of its own
    return bool(len(these)) and all(_near(look, these) for look in those)


def _near(look: np.uint64, looks: np.ndarray) -> bool:
    return bool((np.bitwise_count(looks ^ look) <= LOOK_ALIKE).any())


def repeated_pictures(prints: Prints, most: int) -> np.ndarray:
    """The hashes of pictures that stand in more than `most` documents: logos, icons, headers."""
    owner = np.repeat(np.arange(len(prints.pictures)), prints.pictures)
    order = np.lexsort((owner, prints.bytes))
    data, owner = prints.bytes[order], owner[order]
    once = np.ones(len(data), bool)  # a picture counts once a document
    once[1:] = (data[1:] != data[:-1]) | (owner[1:] != owner[:-1])
    found, count = np.unique(data[once], return_counts=True)
    return found[count > most]


@dataclass(frozen=True, slots=True)
class Guard:
    """What evaluation sets hold: runs of words by their length, and pictures' fingerprints."""

    runs: dict[int, frozenset[int]]
    looks: np.ndarray

    def fault(self, seen: Seen) -> str | None:
        """Why the document must not be trained on; nothing where it may."""
        if len(self.looks) and any(_near(look, self.looks) for look in seen.looks):
            return "contaminated: shows a picture of an evaluation set"
        for size, known in self.runs.items():
            if known and not known.isdisjoint(runs(seen.document.text, size).tolist()):
                return f"contaminated: shares {size} words with an evaluation set"
        return None


def guard_of(documents: Iterable[Seen]) -> Guard:
    """The guard against some evaluation documents."""
    known: dict[int, set[int]] = {}
    looks = [np.zeros(0, np.uint64)]
    for seen in documents:
        looks.append(seen.looks)
        text = seen.document.text
        words = sum(bool(same_words(word)) for word in text.split())
        size = min(words, _OVERLAP[-1])
        if size >= _OVERLAP[0]:
            known.setdefault(size, set()).update(runs(text, size).tolist())
    return Guard({size: frozenset(found) for size, found in sorted(known.items())}, np.unique(np.concatenate(looks)))
