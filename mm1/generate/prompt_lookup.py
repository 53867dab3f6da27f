"""Draft tokens by prompt lookup: a text often repeats its prompt, or itself.

The model checks the drafts in one pass and keeps those that it would have written one by one, so only the time changes
(Saxena, Prompt Lookup Decoding, 2023, github.com/apoorvumang/prompt-lookup-decoding).
"""

from collections.abc import Mapping, Sequence

import numpy as np

MAX_DRAFT = 7
"""Draft tokens of one step at most."""

MAX_NGRAM = 3
"""Tokens compared at most, to find the earlier position that is most like the last one."""


def lookup(contents: Sequence[np.ndarray], *, most: Sequence[int]) -> list[list[int]]:
    """For each content the tokens after the latest earlier position with the longest match to its end.

    They are `most` or `MAX_DRAFT` at most and stop before an image. At the end of the content they continue with the
    first of them again. All contents are looked at in the same few operations: one by one, those of 32 rows took a
    tenth of a step of a small model.
    """
    length_B = np.array([len(content) for content in contents])
    content_BX = np.zeros((len(contents), length_B.max()), np.int64)
    for row, content in enumerate(contents):
        content_BX[row, : len(content)] = content
    row_B, position_X = np.arange(len(contents)), np.arange(content_BX.shape[1])
    matches_BX = position_X < length_B[:, None] - 1
    ngram_BX = np.zeros(content_BX.shape, np.int8)  # tokens up to each position that match those up to the end
    for back in range(MAX_NGRAM):
        before_B = content_BX[row_B, np.maximum(length_B - 1 - back, 0)]
        matches_BX[:, back:] &= content_BX[:, : content_BX.shape[1] - back] == before_B[:, None]
        matches_BX[:, :back] = False
        ngram_BX += matches_BX
    latest_B = content_BX.shape[1] - 1 - ngram_BX[:, ::-1].argmax(1)
    start_B1 = latest_B[:, None] + 1
    draft_BM = np.arange(MAX_DRAFT) % np.maximum(length_B[:, None] - start_B1, 1) + start_B1
    draft_BM = content_BX[row_B[:, None], np.minimum(draft_BM, content_BX.shape[1] - 1)]
    is_image_BM = draft_BM < 0
    count_B = np.where(is_image_BM.any(1), is_image_BM.argmax(1), MAX_DRAFT)
    count_B = np.where(ngram_BX.any(1), np.minimum(count_B, most), 0)
    return [draft[:count] for draft, count in zip(draft_BM.tolist(), count_B.tolist(), strict=True)]


class PromptLookup:
    """Draft tokens for many requests at once, as many as their acceptance rates make worthwhile."""

    def __init__(self) -> None:
        self._acceptance: dict[int, float] = {}  # of each request's recent drafts

    def propose(self, contents: Mapping[int, np.ndarray], *, most: Mapping[int, int]) -> dict[int, list[int]]:
        """The draft of each request, up to `most` tokens: of the length that promises the most tokens a second."""
        proposed = lookup(list(contents.values()), most=[most[number] for number in contents])
        drafts = dict(zip(contents, proposed, strict=True))
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
