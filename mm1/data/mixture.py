"""Which source fills row n of the run: exact shares, changed at given rows, from a position alone."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

LARGEST_DECK = 2000
"""Rows of a deck at most, where shares count tokens."""

PRECISION = 0.005
"""How far from its token share a source may be by a deck of whole rows (relative), where a deck so fine exists."""


class Mixture:
    """Rows dealt from decks: a deck holds `shares[i]` cards of source i, shuffled by (seed, deck, stage).

    Every deck has exactly the shares asked for. A stage begins a new deck at its first row, and the
    deck before ends there, however many cards it has left; no row of any source is skipped or repeated.
    """

    def __init__(self, shares: Sequence[int], seed: int, *, changes: Sequence[tuple[int, Sequence[int]]] = ()):
        """`changes` gives further stages in order: the row where each begins, and its shares."""
        self.seed = seed
        self.stages = [[*shares], *([*later] for _, later in changes)]
        for stage in self.stages:
            if len(stage) != len(shares) or not stage or min(stage) < 0 or sum(stage) < 1:
                raise ValueError(f"shares must be whole numbers, 0 or more and one of them above 0, found {stage}")
        self.first_row = [0, *(row for row, _ in changes)]
        if any(later <= earlier for earlier, later in zip(self.first_row, self.first_row[1:], strict=False)):
            raise ValueError(f"stages must begin at later and later rows, found {self.first_row}")
        self._dealt = [np.zeros(len(shares), np.int64)]  # rows of each source before each stage
        for number, row in enumerate(self.first_row[1:]):
            self._dealt.append(self._before(number, row))

    def source(self, n: int) -> tuple[int, int]:
        """The source of row n of the run, and which of that source's rows it is."""
        stage = bisect_right(self.first_row, n) - 1
        shares = self.stages[stage]
        deck, place = divmod(n - self.first_row[stage], sum(shares))
        cards, before = _shuffle(self, stage, deck)
        source = int(cards[place])
        return source, int(self._dealt[stage][source]) + deck * shares[source] + int(before[place])

    def _before(self, stage: int, row: int) -> np.ndarray:
        """Rows of each source before a row of a stage."""
        shares = self.stages[stage]
        deck, place = divmod(row - self.first_row[stage], sum(shares))
        cards, _ = _shuffle(self, stage, deck)
        return self._dealt[stage] + deck * np.array(shares) + np.bincount(cards[:place], minlength=len(shares))


@lru_cache(maxsize=16)
def _shuffle(mixture: Mixture, stage: int, deck: int) -> tuple[np.ndarray, np.ndarray]:
    """The sources of a deck's cards, and how many cards of its source lie before each."""
    shares = mixture.stages[stage]
    random = np.random.default_rng((mixture.seed, 1, deck, stage))
    cards = random.permutation(np.repeat(np.arange(len(shares)), shares))
    before = np.empty_like(cards)
    before[np.argsort(cards, kind="stable")] = np.concatenate([np.arange(share) for share in shares])
    return cards, before


def row_shares(token_shares: Sequence[int], trained_per_row: Sequence[float]) -> list[int]:
    """Shares in rows that give these shares in trained tokens, from the mean trained tokens of each source's rows.

    The smallest deck in which no source is further than `PRECISION` from its share, else the nearest of up to
    `LARGEST_DECK` rows.
    """
    trained, asked = np.array(trained_per_row), np.array(token_shares) / sum(token_shares)
    used = asked > 0
    rows = asked / trained / (asked / trained).sum()
    best, least = used.astype(np.int64), np.inf
    for size in range(int(used.sum()), LARGEST_DECK + 1):
        deck = np.where(used, np.maximum(np.rint(rows * size), 1), 0)
        given = deck * trained / (deck * trained).sum()
        furthest = float(np.abs(given[used] / asked[used] - 1).max())
        if furthest < least:
            best, least = deck.astype(np.int64), furthest
        if least <= PRECISION:
            break
    return best.tolist()
