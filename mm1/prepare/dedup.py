"""Finds copies: documents whose words and pictures are those of an earlier document.

Words are compared by MinHash with FineWeb's numbers (https://arxiv.org/abs/2406.17557, section 3.4): n-grams of 5
words, 112 hashes in 14 bands of 8, aimed at pairs with a similarity of 75 %, 77 % of which share a band; such a pair is
then checked on all its hashes. Pictures are compared by their fingerprints, and those that look alike a second time.
Documents are copies when their words are, and their pictures show the same: another caption of the same picture is no
copy, nor is the same caption of another picture.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mm1.prepare.filters.image_filters import Screened
from mm1.prepare.images import sha256
from mm1.prepare.second_look import DIFFERENCE, Detail, difference
from mm1.prepare.text_hashes import BANDS, HASHES, HASHES_PER_BAND, minhash, operators_hash

LOOK_ALIKE_BITS = 8
"""Two pictures look alike when their 64-bit fingerprints differ in at most this many bits.

Measured on the 5,900 captioned pictures: up to 8 bits the pairs are variants of one drawing (another colour, skin
tone, sex or ornament), and their number grows slowly, 1,400 to 2,100 per step of 2 bits; from 10 bits on it doubles
with every step, as pairs that have nothing in common (an LED and a man's face) come in, and 12 bits would chain a
quarter of all pictures into one group. Conversely, the same picture scaled to three quarters and encoded anew stays
within 8 bits in 98 % of cases.
"""

_ODD = np.uint64(0x9E3779B97F4A7C15)  # multiplying by an odd number loses nothing (Knuth, TAOCP 3, section 6.4)
_MOST_LOOKS = 8  # at the pictures of a document and of earlier ones: each takes some milliseconds
_DOCUMENTS_AT_ONCE = 2**16  # whose MinHashes are in memory together


Copies = Literal["none", "exact", "near"]
"""Which copies are removed: none, those with the same words and bytes of pictures, or also those that are nearly so."""


@dataclass(frozen=True, slots=True)
class CopyRules:
    """When a document counts as a copy of an earlier one.

    similarity   share of n-grams of words that both must have; below 0.7, few such pairs are found
    bits         of the pictures' 64-bit fingerprints that may differ at the first look
    difference   of the pictures where they differ most, at the second look
    """

    copies: Copies = "near"
    similarity: float = 0.75
    bits: int = 14
    difference: float = DIFFERENCE


@dataclass(frozen=True, slots=True)
class Hashes:
    """The hashes of some documents, in their order: 0.5 kB each, and 16 bytes per picture.

    exact         hash of the words and the pictures' bytes
    minhash       MinHash of the words, one row per document
    image_counts  number of pictures of each document
    images        hash of each picture's bytes, document after document
    fingerprints  perceptual hash of each picture
    keeps_text    whether each document's text stays where a picture of it is left out
    operators     hash of the operators of code, 0 for other texts
    """

    exact: np.ndarray
    minhash: np.ndarray
    image_counts: np.ndarray
    images: np.ndarray
    fingerprints: np.ndarray
    keeps_text: np.ndarray
    operators: np.ndarray

    @property
    def image_starts(self) -> np.ndarray:
        """Index of each document's first picture, and at the end the number of all pictures."""
        return np.concatenate([[0], np.cumsum(self.image_counts)])


_DTYPES = {
    "exact": np.uint64,
    "minhash": np.uint32,
    "image_counts": np.int64,
    "images": np.uint64,
    "fingerprints": np.uint64,
    "keeps_text": np.bool_,
    "operators": np.uint64,
}


def hash_documents(documents: Iterable[Screened]) -> Hashes:
    """The hashes of documents."""
    exact, minhashes, image_counts, images, keeps_text = [], [], [], [], []
    operators: list[int] = []
    fingerprints = [np.zeros(0, np.uint64)]
    for screened in documents:
        keeps_text.append(screened.keeps_text)
        operators.append(operators_hash(screened.document.text))
        text = screened.document.text
        image_hashes = [first_64_bits(sha256(image.data)) for image in screened.document.images]
        exact.append(first_64_bits(sha256(f"{' '.join(text.split())} {image_hashes}".encode())))
        minhashes.append(minhash(text))
        image_counts.append(len(image_hashes))
        images += image_hashes
        fingerprints.append(screened.fingerprints)
    return Hashes(
        np.array(exact, np.uint64),
        np.array(minhashes, np.uint32).reshape(-1, HASHES),
        np.array(image_counts, np.int64),
        np.array(images, np.uint64),
        np.concatenate(fingerprints),
        np.array(keeps_text, np.bool_),
        np.array(operators, np.uint64),
    )


class HashFiles:
    """Hashes that are appended to files of a folder, so that none of them stays in memory."""

    def __init__(self, folder: Path):
        self._files = {name: (folder / f"{name}.hashes").open("wb") for name in _DTYPES}

    def add(self, hashes: Hashes) -> None:
        """Appends the hashes of some documents."""
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(getattr(hashes, name), _DTYPES[name]).tobytes())

    def __enter__(self) -> "HashFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


def load_hashes(folders: Sequence[Path], minhash_file: Path) -> Hashes:
    """The hashes of all documents, folder after folder: 16 bytes of each are in memory, and 16 of each picture.

    The MinHashes, by far the largest, are collected in `minhash_file` and read from there as they are needed.
    """
    with minhash_file.open("wb") as file:
        for folder in folders:
            with (folder / "minhash.hashes").open("rb") as source:
                shutil.copyfileobj(source, file)
    in_memory = {
        name: np.concatenate([np.zeros(0, dtype), *(np.fromfile(f / f"{name}.hashes", dtype) for f in folders)])
        for name, dtype in _DTYPES.items()
        if name != "minhash"
    }
    size = minhash_file.stat().st_size // (4 * HASHES)
    minhashes = np.memmap(minhash_file, np.uint32, "r", shape=(size, HASHES)) if size else np.zeros((0, HASHES))
    return Hashes(minhash=minhashes, **in_memory)


def first_64_bits(digest: str) -> int:
    """The first 64 bits of a hash in hexadecimal."""
    return int(digest[:16], 16)


@dataclass(frozen=True, slots=True)
class FoundCopies:
    """The positions of documents that repeat an earlier one: in every word and byte, or nearly."""

    exact: np.ndarray
    near: np.ndarray


DetailsOf = Callable[[int], Sequence[Detail | None]]
"""Position of a document -> its pictures for the second look; None for one that cannot be decoded."""


def find_copies(hashes: Hashes, rules: CopyRules = CopyRules(), *, details_of: DetailsOf) -> FoundCopies:
    """The documents that repeat an earlier one."""
    count = len(hashes.exact)
    exact, near = np.zeros(count, bool), np.zeros(count, bool)
    if rules.copies != "none":
        _, first, group = np.unique(hashes.exact, return_index=True, return_inverse=True)
        exact = first[group] != np.arange(count)
    if rules.copies == "near":
        starts = hashes.image_starts
        alike = (
            pair for pair in _candidates(hashes, np.flatnonzero(~exact)) if _look_alike(hashes, starts, rules, *pair)
        )
        pairs = np.unique(np.fromiter(alike, np.dtype((np.int64, 2))).reshape(-1, 2), axis=0)
        for earlier, later in _fewest(pairs, hashes).tolist():
            if not near[later]:
                shows_none = hashes.image_counts[later] == 0
                near[later] = shows_none or _show_the_same(details_of, rules, earlier, later)
    return FoundCopies(np.flatnonzero(exact), np.flatnonzero(near))


def _fewest(pairs: np.ndarray, hashes: Hashes) -> np.ndarray:
    """Of the pairs (earlier, later) the `_MOST_LOOKS` of each later document whose first pictures are most alike."""
    shown = hashes.image_counts[pairs[:, 1]] > 0
    bits = np.zeros(len(pairs), np.int64)
    first, second = (hashes.fingerprints[hashes.image_starts[pairs[shown, side]]] for side in (0, 1))
    bits[shown] = np.bitwise_count(first ^ second)
    order = np.lexsort((bits, pairs[:, 1]))
    later = pairs[order, 1]
    begins = np.searchsorted(later, later)
    return pairs[np.sort(order[np.arange(len(order)) - begins < _MOST_LOOKS])]


def _candidates(hashes: Hashes, among: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) whose words share a band: each document with the first of its group, and with the one
    before it. Of documents with the same words and with pictures, also those whose first fingerprints stand side by
    side, in order from several bits on.

    Bands are compared by a 64-bit hash; a collision does no harm, as pairs are checked.
    """
    all_keys = np.zeros(len(among), np.uint64)
    for band in range(BANDS):
        keys = _band_keys(hashes.minhash, among, band)
        all_keys = (all_keys ^ keys) * _ODD
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        begins = np.concatenate([[True], ranked[1:] != ranked[:-1]])
        first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        for rank in np.flatnonzero(~begins):
            later = int(among[order[rank]])
            yield int(among[order[first[rank]]]), later
            if rank - 1 > first[rank]:
                yield int(among[order[rank - 1]]), later
    shown = np.flatnonzero(hashes.image_counts[among] > 0)
    among, all_keys = among[shown], all_keys[shown]
    fingerprints = hashes.fingerprints[hashes.image_starts[among]] if len(among) else hashes.fingerprints[:0]
    for turn in range(0, 64, 8):
        turned = (fingerprints << np.uint64(turn)) | (fingerprints >> np.uint64((64 - turn) % 64))
        order = np.lexsort((turned, all_keys))
        for rank in np.flatnonzero(all_keys[order[1:]] == all_keys[order[:-1]]):
            one, other = int(among[order[rank]]), int(among[order[rank + 1]])
            yield min(one, other), max(one, other)


def _band_keys(minhashes: np.ndarray, among: np.ndarray, band: int) -> np.ndarray:
    columns = slice(band * HASHES_PER_BAND, (band + 1) * HASHES_PER_BAND)
    keys = np.zeros(len(among), np.uint64)
    for at in range(0, len(among), _DOCUMENTS_AT_ONCE):
        block = slice(at, at + _DOCUMENTS_AT_ONCE)
        for column in minhashes[among[block], columns].T:
            keys[block] = (keys[block] ^ column) * _ODD
    return keys


def _look_alike(hashes: Hashes, starts: np.ndarray, rules: CopyRules, earlier: int, later: int) -> bool:
    """Whether the words of both are nearly the same, and the earlier document shows all pictures of the later one, at
    the first look.
    """
    if (hashes.minhash[earlier] == hashes.minhash[later]).mean() < rules.similarity:
        return False
    operators = hashes.operators[earlier], hashes.operators[later]
    if all(operators) and operators[0] != operators[1]:
        return False
    shown_earlier = hashes.fingerprints[starts[earlier] : starts[earlier + 1]]
    shown_later = hashes.fingerprints[starts[later] : starts[later + 1]]
    if not len(shown_later):
        return True
    return bool(len(shown_earlier)) and all(
        looks_like_any(image, shown_earlier, bits=rules.bits) for image in shown_later
    )


def _show_the_same(details_of: DetailsOf, rules: CopyRules, earlier: int, later: int) -> bool:
    """Whether the earlier document shows all pictures of the later one, at the second look."""
    before = details_of(earlier)
    return all(
        any(one and other and difference(one, other) <= rules.difference for one in before)
        for other in details_of(later)
    )


def looks_like_any(fingerprint: np.uint64, fingerprints: np.ndarray, *, bits: int) -> bool:
    """Whether a picture looks like one of some pictures."""
    return bool((np.bitwise_count(fingerprints ^ fingerprint) <= bits).any())


def repeated_images(hashes: Hashes, most: int) -> np.ndarray:
    """The hashes of the pictures that are in more than `most` documents: logos, icons, headers."""
    owner = np.repeat(np.arange(len(hashes.image_counts)), hashes.image_counts)
    order = np.lexsort((owner, hashes.images))
    images, owner = hashes.images[order], owner[order]
    first_use = np.ones(len(images), bool)  # a picture counts once per document
    first_use[1:] = (images[1:] != images[:-1]) | (owner[1:] != owner[:-1])
    distinct, uses = np.unique(images[first_use], return_counts=True)
    return distinct[uses > most]
