"""Rows of a key/value cache that prompts enter and leave at any step, and that remember what they hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm1.generate.prompt import Features, Prompt, common_prefix, content, embed_from, whole_images
from mm1.generate.threads import threads_for
from mm1.model.cache import Cache, Segment
from mm1.model.mllm import MLLM

LEAST = 16
"""Places in common that are worth a copy of their keys, or a wait for them."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first places of many prompts, computed once: what stands there, and their keys and values."""

    content: np.ndarray
    segment: Segment


@torch.inference_mode()
def prefill(
    model: MLLM, prompt: Prompt, *, features: Features, prefixes: Sequence[Prefix] = ()
) -> tuple[Segment, torch.Tensor]:
    """Keys and values of the places of `prompt` behind `prefixes`, and the last place's logits [V]."""
    start = sum(prefix.segment.places for prefix in prefixes)
    x_1TD = embed_from(model, [prompt], [start], features=features)
    places = x_1TD.shape[1]
    shared = [prefix.segment for prefix in prefixes]
    cache = Cache.empty(model.decoder.config, rows=1, places=places, like=x_1TD, shared=shared)
    position_1T = torch.arange(start, start + places, device=x_1TD.device)[None]
    hidden_1TD = model.decoder(x_1TD, position_1T, cache=cache)
    return cache.segment(), model.decoder.logits(hidden_1TD[0, -1]).float()


def begun(model: MLLM, prompt: Prompt, whole: np.ndarray, *, places: int, features: Features) -> Prefix:
    """The first `places` of `prompt`, whose content is `whole`; they tear no picture apart."""
    images = int((whole[:places] < 0).sum()) // model.config.connector.tokens
    start = Prompt(prompt.tokens[:places], prompt.images[:images])
    segment, _ = prefill(model, start, features=features)
    return Prefix(whole[:places], segment)


class Session:
    """Up to `rows` prompts at once, each of an owner's number, all behind `prefix`, each with `places` of its own.

    `admit` starts rows, `step` continues all by a token, `release` ends one. A row keeps what it held after its
    end: a prompt that begins like any row, in use or not, takes over the keys and values of those places, without
    a copy where that row is free. Of other free rows the one unused for longest is taken.
    """

    def __init__(
        self,
        model: MLLM,
        *,
        rows: int,
        places: int,
        features: Features | None = None,
        prefix: Prefix | None = None,
    ):
        self.model, self.rows, self.places = model, rows, places
        self.features = features or Features(model)
        self.prefix = prefix
        self.before = prefix.segment.places if prefix else 0
        weight = model.decoder.embedding.weight
        self.device = weight.device
        shared = [prefix.segment] if prefix else []
        self.cache = Cache.empty(model.decoder.config, rows=rows, places=places, like=weight, shared=shared)
        self.owners: list[int | None] = [None] * rows
        self.computed = 0  # places that went through the decoder
        self._content = np.zeros((rows, places), np.int64)
        self._filled = np.zeros(rows, np.int64)  # places of each row that are remembered
        self._used = np.zeros(rows, np.int64)  # when each row was last in use
        self._clock = 0

    @property
    def free(self) -> int:
        """Rows that a prompt could take."""
        return self.owners.count(None)

    def content(self, prompt: Prompt) -> np.ndarray:
        """What stands at each place of `prompt`: see `prompt.content`."""
        return content(prompt, self.model.config)

    def known(self, whole: np.ndarray) -> int:
        """How many places of a prompt's content would not be computed again."""
        return self.before + self._nearest(whole[self.before :])[1]

    @torch.inference_mode()
    def admit(
        self, prompts: Sequence[Prompt], owners: Sequence[int], *, wanted: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Hidden states of the last `wanted` places (else of the last) of each prompt, one after the other, [.., D].

        Raises:
            ValueError: too few free rows, too long a prompt, or one that doesn't begin with the prefix.
        """
        wanted = wanted or [1] * len(prompts)
        contents = [self.content(prompt) for prompt in prompts]
        longest = max(map(len, contents)) - self.before
        if self.free < len(prompts) or longest > self.places:
            raise ValueError(
                f"{len(prompts)} prompts of up to {longest} tokens don't fit into a cache with {self.free} free rows "
                f"of {self.places} places; make it larger or admit fewer"
            )
        if self.prefix and any(common_prefix(whole, self.prefix.content) < self.before for whole in contents):
            raise ValueError(f"a prompt doesn't begin with the {self.before} places that all rows share")
        starts, rows = [], []
        for whole, owner, last in zip(contents, owners, wanted, strict=True):
            own = whole[self.before :]
            row, start = self._place(own, owner, most=len(own) - last)
            starts.append(start)
            rows.append(row)
        hidden_BTD = self._compute(prompts, starts, rows)
        for whole, row in zip(contents, rows, strict=True):
            own = whole[self.before :]
            self._content[row, : len(own)] = own
            self._filled[row] = len(own)
        news = [len(whole) - self.before - start for whole, start in zip(contents, starts, strict=True)]
        self.computed += sum(news)
        picked = [(row, place) for row, new in enumerate(news) for place in range(new - wanted[row], new)]
        row_A, place_A = torch.tensor(picked, device=self.device).unbind(1)
        return hidden_BTD[row_A, place_A]

    def _place(self, own: np.ndarray, owner: int, *, most: int) -> tuple[int, int]:
        """The row that `owner` takes, and how many of its first places it holds already."""
        source, start = self._nearest(own)
        image_tokens = self.model.config.connector.tokens
        start = whole_images(own, min(start, most), image_tokens=image_tokens)
        if start < LEAST:
            start = 0
        row = source
        if not start or self.owners[source] is not None:
            unused = [row for row in range(self.rows) if self.owners[row] is None]
            row = min(unused, key=lambda row: self._used[row])
            self.cache.copy(source, row, stop=start)
        self._content[row, :start] = own[:start]
        self._filled[row] = start
        self.owners[row] = owner
        return row, start

    def _nearest(self, own: np.ndarray) -> tuple[int, int]:
        """The row that begins most like `own`, a free one of equals, and how many places they have in common."""
        same = (self._content[:, : len(own)] == own[: self.places]) & (
            np.arange(min(len(own), self.places)) < self._filled[:, None]
        )
        common = np.where(same.all(1), same.shape[1], same.argmin(1)) if same.size else np.zeros(self.rows, np.int64)
        free = np.array([owner is None for owner in self.owners])
        row = int(np.lexsort((free, common))[-1])
        return row, int(common[row])

    def _compute(self, prompts: Sequence[Prompt], starts: Sequence[int], rows: list[int]) -> torch.Tensor:
        """Hidden states [B, T, D] of the prompts' places from the starts on, which stand in `rows` afterwards."""
        whole = [self.before + start for start in starts]
        x_BTD = embed_from(self.model, prompts, whole, features=self.features)
        ends = [len(prompt.tokens) for prompt in prompts]
        start_B1, last_B1 = (torch.tensor(x, device=self.device)[:, None] for x in (whole, [end - 1 for end in ends]))
        position_BT = start_B1 + torch.arange(x_BTD.shape[1], device=self.device)
        if any(starts):  # a shorter prompt's last place comes again, writing the same keys: behind it may be no room
            position_BT = position_BT.minimum(last_B1)
        places = max(ends) - self.before
        if rows == list(range(rows[0], rows[0] + len(rows))):
            reading = self.cache.view(slice(rows[0], rows[0] + len(rows)), places).reading(position_BT)
        else:
            reading = self.cache.view(slice(None), places).reading(position_BT, rows)
        return self.model.decoder(x_BTD, position_BT, cache=reading)

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, Sequence[int]]) -> tuple[list[int], torch.Tensor]:
        """The owners of all rows in use, and logits [B, T, V] after each of the tokens by which each is continued.

        T is that of the longest; a row of fewer tokens has its last one's again.
        """
        self._close_up()
        owners = [owner for owner in self.owners if owner is not None]
        row_B1 = np.arange(len(owners))[:, None]
        news_B1 = np.array([[len(tokens[owner])] for owner in owners])
        # a shorter row's last token comes again at its place, writing the same keys: behind it may be no room
        index_BT = np.minimum(np.arange(news_B1.max()), news_B1 - 1)
        given_BT = np.array([[tokens[owner][at] for at in at_T] for owner, at_T in zip(owners, index_BT, strict=True)])
        place_BT = self._filled[row_B1] + index_BT
        self._content[row_B1, place_BT] = given_BT
        self._filled[row_B1] += news_B1
        self.computed += int(news_B1.sum())
        position_BT = torch.from_numpy(place_BT + self.before).to(self.device)
        cache = self.cache.view(slice(0, len(owners)), int(place_BT.max()) + 1)
        with threads_for(self.model.decoder, place_BT.size):
            x_BTD = self.model.decoder.embed(torch.from_numpy(given_BT).to(self.device))
            hidden_BTD = self.model.decoder(x_BTD, position_BT, cache=cache)
            return owners, self.model.decoder.logits(hidden_BTD).float()

    def held(self, owner: int) -> np.ndarray:
        """What stands at the places of its row, the shared ones first."""
        row = self.owners.index(owner)
        own = self._content[row, : self._filled[row]]
        return np.concatenate((self.prefix.content, own)) if self.prefix else own

    def take_back(self, owner: int, places: int) -> None:
        """The row of `owner` ends so many places earlier, as if they had not been."""
        self._filled[self.owners.index(owner)] -= places

    def release(self, owner: int) -> None:
        """End the row of `owner`; it is free, and remembers what it held."""
        row = self.owners.index(owner)
        self._clock += 1
        self.owners[row], self._used[row] = None, self._clock

    @torch.inference_mode()
    def _close_up(self) -> None:
        """Rows in use stand together, so that a step reads one piece of the cache."""
        count = self.rows - self.free
        holes = [row for row in range(count) if self.owners[row] is None]
        beyond = [row for row in range(count, self.rows) if self.owners[row] is not None]
        for hole, row in zip(holes, beyond, strict=True):
            self.cache.swap(hole, row, places=int(self._filled[[hole, row]].max()))
            for of_rows in (self._content, self._filled, self._used):
                of_rows[[hole, row]] = of_rows[[row, hole]]
            self.owners[hole], self.owners[row] = self.owners[row], None
