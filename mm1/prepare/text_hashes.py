"""Texts as they are compared: their words without case and punctuation, n-grams of them, MinHash, and operators.

Where a script has no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), a character counts as a word.
"""

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np

BANDS, HASHES_PER_BAND, NGRAM = 14, 8, 5
"""FineWeb's numbers (https://arxiv.org/abs/2406.17557, section 3.4)."""

HASHES = BANDS * HASHES_PER_BAND

_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_UNITS = re.compile(f"[{_WITHOUT_SPACES}]|[^{_WITHOUT_SPACES}]+")
_CHARACTER = re.compile(f"[{_WITHOUT_SPACES}]")
_OPERATORS = re.compile(r"[=+*/<>&|^%~]|!(?=[\w=(])|(?<![^\W_])-|-(?![^\W_])|(?<=\d)-(?=\d)")
_WORDS_PER_OPERATOR = 8  # prose has far more


def normalize_text(text: str) -> str:
    """The text as it is compared: without case, encoding of accents, punctuation and white space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def units(text: str) -> list[str]:
    """The words of a text, normalized; each character is one where words have no spaces."""
    words = [word for word in map(normalize_text, text.split()) if word]
    if text.isascii():
        return words
    return [unit for word in words for unit in ([word] if word.isascii() else _UNITS.findall(word))]


def is_character(unit: str) -> bool:
    """Whether a unit is a character of a script without spaces."""
    return _CHARACTER.match(unit) is not None


def ngram_hashes(text: str, size: int) -> np.ndarray:
    """The hashes of all n-grams of `size` units of the text; of the whole text if it is shorter."""
    words = units(text)
    ngrams = [" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))]
    digests = b"".join(hashlib.blake2b(ngram.encode(), digest_size=8).digest() for ngram in ngrams)
    return np.unique(np.frombuffer(digests, np.uint64))


def minhash(text: str) -> np.ndarray:
    """The MinHash of the text: the share of equal hashes of two texts estimates the share of n-grams that both have.

    Each hash is the high half of factor x n-gram + term, all modulo 2**64 with odd factors (multiply-shift;
    Dietzfelbinger et al. 1997, https://doi.org/10.1006/jagm.1997.0873).
    """
    factors, terms = _hash_functions()
    ngrams = ngram_hashes(text, NGRAM)
    smallest = np.full(len(terms), 2**32 - 1, np.uint64)
    for at in range(0, len(ngrams), 4096):
        block = ngrams[at : at + 4096, None]
        smallest = np.minimum(smallest, ((block * factors + terms) >> np.uint64(32)).min(axis=0))
    return smallest.astype(np.uint32)


def operators_hash(text: str) -> int:
    """The 64-bit hash of the operators of code or a formula, in order; 0 of a text that is neither.

    Words don't tell `a + b` from `a - b`.
    """
    operators = _OPERATORS.findall(text)
    if not operators or len(operators) * _WORDS_PER_OPERATOR < len(text.split()):
        return 0
    return int.from_bytes(hashlib.blake2b("".join(operators).encode(), digest_size=8).digest(), "little") | 1


@lru_cache(maxsize=1)
def _hash_functions() -> tuple[np.ndarray, np.ndarray]:
    """The odd factors and the terms of all hash functions."""
    random = np.random.default_rng(2406)
    factors, terms = random.integers(0, 2**63, (2, HASHES), dtype=np.uint64)
    return factors * np.uint64(2) + np.uint64(1), terms
