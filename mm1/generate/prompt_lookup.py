"""Draft tokens by prompt lookup: a text often repeats its prompt, or itself.

The model checks the drafts in one pass and keeps those that it would have written one by one, so only the time changes
(Saxena, Prompt Lookup Decoding, 2023, github.com/apoorvumang/prompt-lookup-decoding).
"""

from collections.abc import Mapping

import numpy as np

MAX_DRAFT = 7
"""Draft tokens of one step at most."""

MAX_NGRAM = 3
"""Tokens compared at most, to find the earlier position that is most like the last one."""


def lookup(content: np.ndarray, *, most: int) -> list[int]:
    """The tokens, `most` at most, after the latest earlier position with the longest match to the end of `content`.

    They stop before an image. At the end of `content` they continue with the first of them again.
    """
    ends = np.flatnonzero(content[:-1] == content[-1])
    if not len(ends) or most < 1:
        return []
    for back in range(1, MAX_NGRAM):
        longer = ends[ends >= back]
        longer = longer[content[longer - back] == content[-1 - back]]
        if not len(longer):
            break
        ends = longer
    start = ends[-1] + 1
    draft = content[start + np.arange(most) % (len(content) - start)]
    images = np.flatnonzero(draft < 0)
    return draft[: images[0] if len(images) else most].tolist()


class PromptLookup:
    """Draft tokens for many requests at once, as many as their acceptance rates make worthwhile."""

    def __init__(self) -> None:
        self._acceptance: dict[int, float] = {}  # of each request's recent drafts

    def propose(self, contents: Mapping[int, np.ndarray], *, most: Mapping[int, int]) -> dict[int, list[int]]:
        """The draft of each request, up to `most` tokens: of the length that promises the most tokens a second."""
        drafts = {number: lookup(content, most=min(MAX_DRAFT, most[number])) for number, content in contents.items()}
        best = self._best_length(drafts)
        for number in drafts:  # an old rejection counts less with every step
            acceptance = self._acceptance.get(number, 0.5)
            self._acceptance[number] = acceptance + 0.05 * (0.5 - acceptance)
        return {number: draft[:best] for number, draft in drafts.items()}

    def learn(self, number: int, *, drafted: int, accepted: int) -> None:
        """Record that the model wrote `accepted` of the request's `drafted` tokens."""
        if drafted:
            self._acceptance[number] = 0.6 * self._acceptance[number] + 0.4 * accepted / drafted

    def forget(self, number: int) -> None:
        """Drop what is recorded of a request that has ended."""
        self._acceptance.pop(number, None)

    def _best_length(self, drafts: Mapping[int, list[int]]) -> int:
        """The length that all drafts are cut to, for the most expected tokens a second."""
        acceptance_N = np.array([self._acceptance.get(number, 0.5) for number in drafts])
        draft_N = np.array([len(draft) for draft in drafts.values()])
        length_L = np.arange(draft_N.max() + 1)
        # token number L of a draft is kept if the model agrees with all before it and with it
        kept_LN = np.where(length_L[:, None] <= draft_N, acceptance_N ** length_L[:, None], 0.0)
        tokens_L = kept_LN.sum(1).cumsum()
        return int(np.argmax(tokens_L / [_cost(len(drafts) * (1 + length)) for length in length_L.tolist()]))


def _cost(positions: int) -> float:
    """The time of a pass, in positions: weights are read once for all of them. One position is a simpler product."""
    return 16 + positions if positions > 1 else 12
