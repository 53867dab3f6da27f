"""Prefix sharing: a key/value cache whose rows serve one prompt after another and remember what they hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm1.generate.decode_step import DecodeStep, step_for
from mm1.generate.prefix_index import MIN_SHARED, PrefixIndex, block_keys
from mm1.generate.prompt import Features, Prompt, embed_from
from mm1.generate.prompt_content import PromptContent, common_prefix
from mm1.generate.threads import threads_for
from mm1.model.cache import Cache, Segment
from mm1.model.mllm import MLLM


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first positions of many prompts, computed once: their content, keys and values."""

    content: np.ndarray
    segment: Segment

    def part(self, start: int, stop: int) -> "Prefix":
        """The positions [start, stop), in memory of their own."""
        segment = self.segment
        keys, values = (tuple(x_KPW[:, start:stop].clone() for x_KPW in x) for x in (segment.keys, segment.values))
        return Prefix(self.content[start:stop], Segment(keys, values))


@torch.inference_mode()
def prefill(
    model: MLLM, prompt: Prompt, *, features: Features, prefixes: Sequence[Prefix] = ()
) -> tuple[Segment, torch.Tensor]:
    """Keys and values of the prompt's positions after `prefixes`, and the logits [V] of its last position."""
    start = sum(prefix.segment.length for prefix in prefixes)
    x_1TD = embed_from(model, [prompt], [start], features=features)
    positions = x_1TD.shape[1]
    shared = [prefix.segment for prefix in prefixes]
    cache = Cache.empty(model.decoder.config, rows=1, length=positions, like=x_1TD, shared=shared)
    position_1T = torch.arange(start, start + positions, device=x_1TD.device)[None]
    hidden_1TD = model.decoder(x_1TD, position_1T, cache=cache)
    return cache.segment(), model.decoder.logits(hidden_1TD[0, -1]).float()


def prefill_prefix(model: MLLM, whole: PromptContent, *, length: int, features: Features) -> Prefix:
    """The first `length` positions of a prompt."""
    segment, _ = prefill(model, whole.prompt.part(0, length, model.config), features=features)
    return Prefix(whole.content[:length], segment)


class PrefixCache:
    """A cache of `rows` rows with `positions` each, after the positions of `prefix`, which all rows share.

    `admit` puts prompts into free rows, `step` continues all rows in use, `release` frees one. A row is in use by an
    owner, a number that the caller selects. A free row remembers what it held: a prompt that begins with what any row
    holds, free or in use, takes over its keys and values, without a copy if that row is free, and no part of an image.
    Otherwise a prompt takes the free row that was unused for longest. Rows of another salt are not looked at.
    """

    def __init__(
        self,
        model: MLLM,
        *,
        rows: int,
        positions: int,
        features: Features | None = None,
        prefix: Prefix | None = None,
        decode: DecodeStep | None = None,
    ):
        self.model, self.rows, self.positions = model, rows, positions
        self.features = features or Features(model)
        self.decode = decode or step_for(model)
        self.prefix = prefix
        weight = model.decoder.embedding.weight
        self.device = weight.device
        shared = [prefix.segment] if prefix else []
        self.cache = Cache.empty(model.decoder.config, rows=rows, length=positions, like=weight, shared=shared)
        self.owners: list[int | None] = [None] * rows
        self.computed = 0  # positions that went through the decoder
        self.reused: list[int] = []  # positions of each prompt of the last `admit` that did not
        self._content = np.zeros((rows, positions), np.int64)
        self._length = np.zeros(rows, np.int64)  # positions that each row holds
        self._last_used = np.zeros(rows, np.int64)
        self._salt = np.zeros(rows, np.int64)
        self._index = PrefixIndex(rows)  # of the shared prefix with what follows it in each row
        self._clock = 0

    @property
    def prefix_length(self) -> int:
        """Positions that all rows share."""
        return len(self.prefix.content) if self.prefix else 0

    @property
    def free(self) -> int:
        """Rows that a prompt could take."""
        return self.owners.count(None)

    @torch.inference_mode()
    def fit(self, length: int, *, prefix_length: int) -> None:
        """Make room for prompts of `length` positions that have only the first `prefix_length` of the prefix in common.

        Every row then holds the rest of the prefix itself. Nothing else changes for the rows in use, nor for what free
        rows remember.
        """
        if prefix_length < min(self.prefix_length, MIN_SHARED):
            prefix_length = 0
        moved = self.prefix_length - prefix_length
        positions = max(length - prefix_length, moved + self.positions)
        if positions == self.positions:
            return
        rest, contents = None, np.zeros((self.rows, positions), np.int64)
        if self.prefix is not None and moved:
            rest = self.prefix.part(prefix_length, self.prefix_length)
            self.prefix = self.prefix.part(0, prefix_length) if prefix_length else None
            contents[:, :moved] = rest.content
        contents[:, moved : moved + self.positions] = self._content
        self._content, self.positions = contents, positions
        self._length += moved
        self.decode.forget()
        old, self.cache = self.cache, Cache((), ())
        layers = [list(old.keys), list(old.values)]
        del old  # so that each layer's memory is free when its copy is complete
        for side, first in zip(layers, (rest.segment.keys, rest.segment.values) if rest else ((), ()), strict=True):
            for layer in range(len(side)):
                side[layer] = _widened(side[layer], positions, first[layer] if moved else None)
        shared = (self.prefix.segment,) if self.prefix else ()
        self.cache = Cache(tuple(layers[0]), tuple(layers[1]), shared)
        for row in range(self.rows):
            self._remember(row)

    @property
    def usage(self) -> float:
        """The share of the positions of all rows that those in use hold."""
        used = sum(int(length) for owner, length in zip(self.owners, self._length, strict=True) if owner is not None)
        return used / (self.rows * self.positions)

    def cached(self, prompt: PromptContent) -> int:
        """How many first positions of a prompt don't have to be computed."""
        return self.prefix_length + self._nearest(prompt.content[self.prefix_length :], prompt.block_keys)[1]

    def contents(self, owner: int) -> np.ndarray:
        """What the owner's row holds, the shared prefix first."""
        return self._held(self.owners.index(owner))

    def _held(self, row: int) -> np.ndarray:
        own = self._content[row, : self._length[row]]
        return np.concatenate((self.prefix.content, own)) if self.prefix else own

    @torch.inference_mode()
    def admit(
        self, prompts: Sequence[PromptContent], owners: Sequence[int], *, outputs: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Hidden states [A, D] of each prompt's last `outputs` positions (by default the last one), concatenated.

        Raises:
            ValueError: too few free rows, too long a prompt, or one that doesn't begin with the prefix.
        """
        outputs = outputs or [1] * len(prompts)
        longest = max(map(len, prompts)) - self.prefix_length
        if self.free < len(prompts) or longest > self.positions:
            raise ValueError(
                f"{len(prompts)} prompts of up to {longest} tokens don't fit into a cache with {self.free} free rows "
                f"of {self.positions} positions; make it larger or admit fewer"
            )
        if self.prefix and any(common_prefix(one.content, self.prefix.content) < self.prefix_length for one in prompts):
            raise ValueError(f"a prompt doesn't begin with the {self.prefix_length} positions that all rows share")
        starts, rows = [], []
        for prompt, owner, last in zip(prompts, owners, outputs, strict=True):
            row, start = self._take_row(prompt, owner, last=last)
            starts.append(start)
            rows.append(row)
        self.reused = [self.prefix_length + start for start in starts]
        hidden_BTD = self._compute([one.prompt for one in prompts], starts, rows)
        for prompt, row in zip(prompts, rows, strict=True):
            own = prompt.content[self.prefix_length :]
            self._content[row, : len(own)] = own
            self._length[row] = len(own)
            self._index.put(row, prompt.block_keys)
        news = [len(prompt) - self.prefix_length - start for prompt, start in zip(prompts, starts, strict=True)]
        self.computed += sum(news)
        picked = [(row, index) for row, new in enumerate(news) for index in range(new - outputs[row], new)]
        row_A, index_A = torch.tensor(picked, device=self.device).unbind(1)
        return hidden_BTD[row_A, index_A]

    def _take_row(self, prompt: PromptContent, owner: int, *, last: int) -> tuple[int, int]:
        """The row that `owner` takes, and how many of the prompt's own first positions it holds, `last` left out."""
        own = prompt.content[self.prefix_length :]
        source, start = self._nearest(own, prompt.block_keys)
        start = max(0, prompt.whole(self.prefix_length + start) - self.prefix_length)  # the prefix may end in an image
        start = min(start, len(own) - last)
        if start < MIN_SHARED:
            start = 0
        row = source
        if not start or self.owners[source] is not None:
            unused = [row for row in range(self.rows) if self.owners[row] is None]
            row = min(unused, key=lambda row: self._last_used[row])
            if start:
                self.cache.copy(source, row, stop=start)
        self._index.cut(row, self.prefix_length + start if start and row == source else 0)
        self._content[row, :start] = own[:start]
        self._length[row] = start
        self._salt[row] = prompt.salt
        self.owners[row] = owner
        return row, start

    def _nearest(self, own: np.ndarray, keys: Sequence[bytes]) -> tuple[int, int]:
        """The row with the longest prefix in common with `own`, preferably a free one, and its length.

        `keys` are those of the blocks of the whole prompt: a row that shares no block, or has another salt, is not
        looked at.
        """
        best, row = (0, False), 0
        for other in self._index.rows(keys):
            common = common_prefix(own[: self.positions], self._content[other, : self._length[other]])
            if (candidate := (common, self.owners[other] is None)) >= best:
                best, row = candidate, other
        return row, best[0]

    def _remember(self, row: int) -> None:
        """Let others find what the row holds."""
        known = self._index.keys(row)
        keys = block_keys(self._held(row), salt=int(self._salt[row]), known=known)
        if len(keys) > len(known):
            self._index.put(row, keys)

    def _compute(self, prompts: Sequence[Prompt], starts: Sequence[int], rows: list[int]) -> torch.Tensor:
        """Hidden states [B, T, D] of the prompts' positions from `starts` on; their keys and values are in `rows`."""
        whole = [self.prefix_length + start for start in starts]
        x_BTD = embed_from(self.model, prompts, whole, features=self.features)
        ends = [len(prompt.tokens) for prompt in prompts]
        start_B1, last_B1 = (torch.tensor(x, device=self.device)[:, None] for x in (whole, [end - 1 for end in ends]))
        position_BT = start_B1 + torch.arange(x_BTD.shape[1], device=self.device)
        if any(starts):  # a shorter prompt repeats its last position, whose keys don't change: after it may be no room
            position_BT = position_BT.minimum(last_B1)
        positions = max(ends) - self.prefix_length
        if rows == list(range(rows[0], rows[0] + len(rows))):
            reading = self.cache.view(slice(rows[0], rows[0] + len(rows)), positions).reading(position_BT)
        else:
            reading = self.cache.view(slice(None), positions).reading(position_BT, rows)
        with threads_for(self.model.decoder, position_BT.numel()):
            return self.model.decoder(x_BTD, position_BT, cache=reading)

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, Sequence[int]]) -> tuple[list[int], torch.Tensor]:
        """The owners of all rows in use, and logits [B, T, V] after each of the tokens that continue their rows.

        T is the largest number of tokens; a row with fewer repeats its last one.
        """
        self._compact()
        owners = [owner for owner in self.owners if owner is not None]
        row_B1 = np.arange(len(owners))[:, None]
        news_B1 = np.array([[len(tokens[owner])] for owner in owners])
        # a row with fewer tokens repeats its last position, whose keys don't change: after it may be no room
        index_BT = np.minimum(np.arange(news_B1.max()), news_B1 - 1)
        tokens_BT = np.array([[tokens[owner][at] for at in at_T] for owner, at_T in zip(owners, index_BT, strict=True)])
        own_BT = self._length[row_B1] + index_BT
        self._content[row_B1, own_BT] = tokens_BT
        self._length[row_B1] += news_B1
        self.computed += int(news_B1.sum())
        spare = slice(len(owners), min(self.decode.rows(len(owners)), self.rows))
        # a free row that is full forgets its last position, so that it has a slot to spare
        self._length[spare] = np.minimum(self._length[spare], self.positions - 1)
        for row in range(spare.start, spare.stop):
            self._index.cut(row, self.prefix_length + int(self._length[row]))
        return owners, self.decode(self.cache, tokens_BT, own_BT, spare=self._length[spare])

    def roll_back(self, owner: int, positions: int) -> None:
        """Drop the last positions of the owner's row."""
        self._length[self.owners.index(owner)] -= positions

    def release(self, owner: int) -> None:
        """Free the owner's row. It remembers what it holds."""
        row = self.owners.index(owner)
        self._remember(row)
        self._clock += 1
        self.owners[row], self._last_used[row] = None, self._clock

    @torch.inference_mode()
    def _compact(self) -> None:
        """Move the rows in use to the front, so that a step reads one slice of the cache."""
        count = self.rows - self.free
        holes = [row for row in range(count) if self.owners[row] is None]
        beyond = [row for row in range(count, self.rows) if self.owners[row] is not None]
        for hole, row in zip(holes, beyond, strict=True):
            self.cache.swap(hole, row, length=int(self._length[[hole, row]].max()))
            for of_rows in (self._content, self._length, self._last_used, self._salt):
                of_rows[[hole, row]] = of_rows[[row, hole]]
            self._index.swap(hole, row)
            self.owners[hole], self.owners[row] = self.owners[row], None


def _widened(x_BKLW: torch.Tensor, positions: int, first_KPW: torch.Tensor | None) -> torch.Tensor:
    """Rows of `positions` positions: `first_KPW` in each if given, then what was in them, then zeros."""
    rows, heads, length, width = x_BKLW.shape
    new_BKLW = x_BKLW.new_zeros(rows, heads, positions, width)
    start = 0 if first_KPW is None else first_KPW.shape[1]
    if first_KPW is not None:
        new_BKLW[:, :, :start] = first_KPW
    new_BKLW[:, :, start : start + length] = x_BKLW
    return new_BKLW
