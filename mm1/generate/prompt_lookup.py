"""What may come next, guessed from what stood there before: a text repeats its prompt, and itself.

The model reads guessed tokens in one pass and keeps those that it would have written one by one, so that only the time
changes (Saxena, Prompt Lookup Decoding, 2023, github.com/apoorvumang/prompt-lookup-decoding).
"""

from collections.abc import Mapping

import numpy as np

MOST = 7
"""Tokens guessed at once."""

CONTEXT = 3
"""Tokens at most by which an earlier place is found to be like the present one."""


def continued(content: np.ndarray, *, most: int) -> list[int]:
    """Up to `most` tokens that followed the latest of the places most like the last one, up to a picture.

    Where they run into the end, the text goes round.
    """
    ends = np.flatnonzero(content[:-1] == content[-1])
    if not len(ends) or most < 1:
        return []
    for back in range(1, CONTEXT):
        longer = ends[ends >= back]
        longer = longer[content[longer - back] == content[-1 - back]]
        if not len(longer):
            break
        ends = longer
    start = ends[-1] + 1
    found = content[start + np.arange(most) % (len(content) - start)]
    pictures = np.flatnonzero(found < 0)
    return found[: pictures[0] if len(pictures) else most].tolist()


class Guesses:
    """How often each row's guesses were right, and so how many tokens are worth guessing."""

    def __init__(self) -> None:
        self._right: dict[int, float] = {}  # share of each row's lately guessed tokens

    def next(self, contents: Mapping[int, np.ndarray], *, most: Mapping[int, int]) -> dict[int, list[int]]:
        """The guessed tokens of each row, at most so many: as many as promise the most tokens a second."""
        found = {row: continued(content, most=min(MOST, most[row])) for row, content in contents.items()}
        best, promised = 0, 0.0
        for length in range(max(map(len, found.values())) + 1):
            tokens = sum(self._expected(row, min(length, len(guessed))) for row, guessed in found.items())
            if (speed := tokens / _cost(len(found) * (1 + length))) > promised:
                best, promised = length, speed
        for row in found:  # what was wrong long ago says little
            self._right[row] = self._right.get(row, 0.5) + 0.05 * (0.5 - self._right.get(row, 0.5))
        return {row: guessed[:best] for row, guessed in found.items()}

    def learn(self, row: int, *, guessed: int, right: int) -> None:
        """`right` of the `guessed` tokens of a row were what the model wrote."""
        if guessed:
            self._right[row] = 0.6 * self._right[row] + 0.4 * right / guessed

    def _expected(self, row: int, length: int) -> float:
        right = self._right.get(row, 0.5)
        return sum(right**count for count in range(length + 1))


def _cost(places: int) -> float:
    """Time of a pass, in places: the weights are read once for all. A single place is a simpler product."""
    return 16 + places if places > 1 else 12
