"""Finds copies: documents whose words and pictures are those of an earlier document.

Words are compared by MinHash with FineWeb's numbers (https://arxiv.org/abs/2406.17557, section 3.4): n-grams of 5
words, 112 hashes in 14 bands of 8, aimed at pairs with a similarity of 75 %, 77 % of which share a band; such a pair is
then checked on all its hashes. Pictures are compared by their fingerprints. Documents are copies when their words are,
and their pictures look alike: another caption of the same picture is no copy, nor is the same caption of another
picture.
"""

import hashlib
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mm1.prepare.filters.image_filters import Screened
from mm1.prepare.images import sha256

LOOK_ALIKE_BITS = 8
"""Two pictures look alike when their 64-bit fingerprints differ in at most this many bits.

Measured on the 5,900 captioned pictures: up to 8 bits the pairs are variants of one drawing (another colour, skin
tone, sex or ornament), and their number grows slowly, 1,400 to 2,100 per step of 2 bits; from 10 bits on it doubles
with every step, as pairs that have nothing in common (an LED and a man's face) come in, and 12 bits would chain a
quarter of all pictures into one group. Conversely, the same picture scaled to three quarters and encoded anew stays
within 8 bits in 98 % of cases.
"""

_BANDS, _HASHES_PER_BAND, _NGRAM = 14, 8, 5
_HASHES = _BANDS * _HASHES_PER_BAND
_SIMILARITY = 0.75
_ODD = np.uint64(0x9E3779B97F4A7C15)  # multiplying by an odd number loses nothing (Knuth, TAOCP 3, section 6.4)
_DOCUMENTS_AT_ONCE = 2**16  # whose MinHashes are in memory together


def normalize_text(text: str) -> str:
    """The text as it is compared: without case, encoding of accents, punctuation and white space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


@dataclass(frozen=True, slots=True)
class Hashes:
    """The hashes of some documents, in their order: 0.5 kB each, and 16 bytes per picture.

    exact         hash of the words and the pictures' bytes
    minhash       MinHash of the words, one row per document
    image_counts  number of pictures of each document
    images        hash of each picture's bytes, document after document
    fingerprints  perceptual hash of each picture
    keeps_text    whether each document's text stays where a picture of it is left out
    """

    exact: np.ndarray
    minhash: np.ndarray
    image_counts: np.ndarray
    images: np.ndarray
    fingerprints: np.ndarray
    keeps_text: np.ndarray

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
}


def hash_documents(documents: Iterable[Screened]) -> Hashes:
    """The hashes of documents."""
    exact, minhashes, image_counts, images, keeps_text = [], [], [], [], []
    fingerprints = [np.zeros(0, np.uint64)]
    for screened in documents:
        keeps_text.append(screened.keeps_text)
        text = screened.document.text
        image_hashes = [first_64_bits(sha256(image.data)) for image in screened.document.images]
        exact.append(first_64_bits(sha256(f"{normalize_text(text)} {image_hashes}".encode())))
        minhashes.append(minhash(text))
        image_counts.append(len(image_hashes))
        images += image_hashes
        fingerprints.append(screened.fingerprints)
    return Hashes(
        np.array(exact, np.uint64),
        np.array(minhashes, np.uint32).reshape(-1, _HASHES),
        np.array(image_counts, np.int64),
        np.array(images, np.uint64),
        np.concatenate(fingerprints),
        np.array(keeps_text, np.bool_),
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
    size = minhash_file.stat().st_size // (4 * _HASHES)
    minhashes = np.memmap(minhash_file, np.uint32, "r", shape=(size, _HASHES)) if size else np.zeros((0, _HASHES))
    return Hashes(minhash=minhashes, **in_memory)


def first_64_bits(digest: str) -> int:
    """The first 64 bits of a hash in hexadecimal."""
    return int(digest[:16], 16)


def ngram_hashes(text: str, size: int) -> np.ndarray:
    """The hashes of all n-grams of `size` words of the text; of the whole text if it is shorter."""
    words = [word for word in map(normalize_text, text.split()) if word]
    ngrams = [" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))]
    digests = b"".join(hashlib.blake2b(ngram.encode(), digest_size=8).digest() for ngram in ngrams)
    return np.unique(np.frombuffer(digests, np.uint64))


def minhash(text: str) -> np.ndarray:
    """The MinHash of the text: the share of equal hashes of two texts estimates the share of n-grams that both have.

    Each hash is the high half of factor x n-gram + term, all modulo 2**64 with odd factors (multiply-shift;
    Dietzfelbinger et al. 1997, https://doi.org/10.1006/jagm.1997.0873).
    """
    factors, terms = _hash_functions()
    ngrams = ngram_hashes(text, _NGRAM)
    smallest = np.full(len(terms), 2**32 - 1, np.uint64)
    for at in range(0, len(ngrams), 4096):
        block = ngrams[at : at + 4096, None]
        smallest = np.minimum(smallest, ((block * factors + terms) >> np.uint64(32)).min(axis=0))
    return smallest.astype(np.uint32)


@lru_cache(maxsize=1)
def _hash_functions() -> tuple[np.ndarray, np.ndarray]:
    """The odd factors and the terms of all hash functions."""
    random = np.random.default_rng(2406)
    factors, terms = random.integers(0, 2**63, (2, _HASHES), dtype=np.uint64)
    return factors * np.uint64(2) + np.uint64(1), terms


@dataclass(frozen=True, slots=True)
class Copies:
    """The positions of documents that repeat an earlier one: in every word and byte, or nearly."""

    exact: np.ndarray
    near: np.ndarray


def find_copies(hashes: Hashes) -> Copies:
    """The documents that repeat an earlier one."""
    _, first, group = np.unique(hashes.exact, return_index=True, return_inverse=True)
    exact = first[group] != np.arange(len(hashes.exact))
    near = np.zeros(len(exact), bool)
    starts = hashes.image_starts
    for earlier, later in _candidates(hashes.minhash, np.flatnonzero(~exact)):
        if not near[later] and _are_copies(hashes, starts, earlier, later):
            near[later] = True
    return Copies(np.flatnonzero(exact), np.flatnonzero(near))


def _candidates(minhashes: np.ndarray, among: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) that share a band: each document with the first of its group, and with the one before it.

    Bands are compared by a 64-bit hash; a collision does no harm, as pairs are checked.
    """
    for band in range(_BANDS):
        columns = slice(band * _HASHES_PER_BAND, (band + 1) * _HASHES_PER_BAND)
        keys = np.zeros(len(among), np.uint64)
        for at in range(0, len(among), _DOCUMENTS_AT_ONCE):
            block = slice(at, at + _DOCUMENTS_AT_ONCE)
            for column in minhashes[among[block], columns].T:
                keys[block] = (keys[block] ^ column) * _ODD
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        begins = np.concatenate([[True], ranked[1:] != ranked[:-1]])
        first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        for rank in np.flatnonzero(~begins):
            later = int(among[order[rank]])
            yield int(among[order[first[rank]]]), later
            if rank - 1 > first[rank]:
                yield int(among[order[rank - 1]]), later


def _are_copies(hashes: Hashes, starts: np.ndarray, earlier: int, later: int) -> bool:
    """Whether the words of both are nearly the same, and the earlier document shows all pictures of the later one."""
    if (hashes.minhash[earlier] == hashes.minhash[later]).mean() < _SIMILARITY:
        return False
    shown_earlier = hashes.fingerprints[starts[earlier] : starts[earlier + 1]]
    shown_later = hashes.fingerprints[starts[later] : starts[later + 1]]
    if not len(shown_later):
        return True
    return bool(len(shown_earlier)) and all(looks_like_any(image, shown_earlier) for image in shown_later)


def looks_like_any(fingerprint: np.uint64, fingerprints: np.ndarray) -> bool:
    """Whether a picture looks like one of some pictures."""
    return bool((np.bitwise_count(fingerprints ^ fingerprint) <= LOOK_ALIKE_BITS).any())


def repeated_images(hashes: Hashes, most: int) -> np.ndarray:
    """The hashes of the pictures that are in more than `most` documents: logos, icons, headers."""
    owner = np.repeat(np.arange(len(hashes.image_counts)), hashes.image_counts)
    order = np.lexsort((owner, hashes.images))
    images, owner = hashes.images[order], owner[order]
    first_use = np.ones(len(images), bool)  # a picture counts once per document
    first_use[1:] = (images[1:] != images[:-1]) | (owner[1:] != owner[:-1])
    distinct, uses = np.unique(images[first_use], return_counts=True)
    return distinct[uses > most]
