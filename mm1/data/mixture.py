"""Which source gives sequence n of the run: exact shares, changed at given sequences, as a function of n alone."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

LARGEST_DECK = 2000
"""The most sequences of a deck where shares count tokens."""

PRECISION = 0.005
"""How far (relative) a source may be from its token share with a deck of whole sequences, if so fine a deck exists."""


class Mixture:
    """The source of every sequence, dealt from decks.

    A deck has `shares[i]` sequences of source i, shuffled by (seed, deck, stage), so every deck has exactly the shares
    of the config. A stage begins a new deck at its first sequence and cuts the deck before it short; no sequence of
    any source is skipped or repeated.
    """

    def __init__(self, shares: Sequence[int], seed: int, *, changes: Sequence[tuple[int, Sequence[int]]] = ()):
        """`changes` gives the later stages in order: the first sequence of each, and its shares."""
        self.seed = seed
        self.stages = [[*shares], *([*later] for _, later in changes)]
        for stage in self.stages:
            if len(stage) != len(shares) or not stage or min(stage) < 0 or sum(stage) < 1:
                raise ValueError(f"shares must be whole numbers, 0 or more and one of them above 0, found {stage}")
        self.first_sequence = [0, *(number for number, _ in changes)]
        if any(later <= earlier for earlier, later in zip(self.first_sequence, self.first_sequence[1:], strict=False)):
            raise ValueError(f"stages must begin at later and later sequences, found {self.first_sequence}")
        self._before_stage = [np.zeros(len(shares), np.int64)]  # sequences of each source before each stage
        for stage_number, number in enumerate(self.first_sequence[1:]):
            self._before_stage.append(self._before(stage_number, number))

    def source(self, n: int) -> tuple[int, int]:
        """The source of sequence n of the run, and the number of that sequence within its source."""
        stage = bisect_right(self.first_sequence, n) - 1
        shares = self.stages[stage]
        deck, offset = divmod(n - self.first_sequence[stage], sum(shares))
        sources, before = _shuffle(self, stage, deck)
        source = int(sources[offset])
        return source, int(self._before_stage[stage][source]) + deck * shares[source] + int(before[offset])

    def _before(self, stage: int, n: int) -> np.ndarray:
        """How many sequences of each source come before sequence n, which is in `stage` or right after it."""
        shares = self.stages[stage]
        deck, offset = divmod(n - self.first_sequence[stage], sum(shares))
        sources, _ = _shuffle(self, stage, deck)
        dealt = np.bincount(sources[:offset], minlength=len(shares))
        return self._before_stage[stage] + deck * np.array(shares) + dealt


@lru_cache(maxsize=16)
def _shuffle(mixture: Mixture, stage: int, deck: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each sequence of a deck, and how many sequences of the same source come before it in the deck."""
    shares = mixture.stages[stage]
    if max(shares) == sum(shares):  # one source: nothing to shuffle
        return np.full(sum(shares), np.argmax(shares)), np.arange(sum(shares))
    random = np.random.default_rng((mixture.seed, 1, deck, stage))
    sources = random.permutation(np.repeat(np.arange(len(shares)), shares))
    before = np.empty_like(sources)
    before[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(share) for share in shares])
    return sources, before


def sequence_shares(token_shares: Sequence[int], trained_per_sequence: Sequence[float]) -> list[int]:
    """Shares in sequences that give these shares in trained tokens.

    `trained_per_sequence` is the mean number of trained tokens in a sequence of each source. The deck is the smallest
    in which no source is further than `PRECISION` from its share, else the nearest of up to `LARGEST_DECK` sequences.
    """
    trained, target = np.array(trained_per_sequence), np.array(token_shares) / sum(token_shares)
    used = target > 0
    sequences = target / trained / (target / trained).sum()
    best, least = used.astype(np.int64), np.inf
    for size in range(int(used.sum()), LARGEST_DECK + 1):
        deck = np.where(used, np.maximum(np.rint(sequences * size), 1), 0)
        tokens = deck * trained / (deck * trained).sum()
        furthest = float(np.abs(tokens[used] / target[used] - 1).max())
        if furthest < least:
            best, least = deck.astype(np.int64), furthest
        if least <= PRECISION:
            break
    return best.tolist()
