"""Which source fills row n of the run: exact shares, from a position alone."""

from functools import lru_cache

import numpy as np


class Mixture:
    """Rows dealt from decks: deck d holds `shares[i]` cards of source i, shuffled by (seed, d).

    Every aligned window of `deck` rows therefore has exactly the shares asked for.
    """

    def __init__(self, shares: list[int], seed: int):
        if not shares or min(shares) < 1:
            raise ValueError(f"shares must be whole numbers of at least 1, found {shares}")
        self.shares = shares
        self.deck = sum(shares)
        self.cards = np.repeat(np.arange(len(shares)), shares)
        self.seed = seed

    def source(self, n: int) -> tuple[int, int]:
        """The source of row n of the run, and which of that source's rows it is."""
        deck, place = divmod(n, self.deck)
        cards = _shuffle(self, deck)
        source = int(cards[place])
        return source, deck * self.shares[source] + int((cards[:place] == source).sum())


@lru_cache(maxsize=16)
def _shuffle(mixture: Mixture, deck: int) -> np.ndarray:
    return np.random.default_rng((mixture.seed, 1, deck)).permutation(mixture.cards)
