"""The key/value cache: keys and values of earlier positions, and the attention of new tokens over them.

Two letters beside the project's legend: L are the slots of a row of the cache, X the queries of a row that read the
same key head, which are those of its group at every new token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from mm1.config.model import DecoderConfig
from mm1.model.attention import Causal, attention
from mm1.model.softcap import capped_attention, soft_cap

SCORES_AT_ONCE = 1 << 24
"""Attention scores computed at once where rows share a prefix: 64 MB in fp32."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions that many rows begin with, computed once: keys and values of every layer, [K, P, W] each."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[1]


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of every layer, [B, K, L, W] each, after the `shared` segments that all rows begin with.

    The key of position p is in slot p of its row, less the length of the shared segments, which rows hold no copy of.
    No query sees the slots after a row's last position: a slot is written before any query may see it. So rows of
    different lengths need no mask of their own.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    shared: tuple[Segment, ...] = ()

    @classmethod
    def empty(
        cls, config: DecoderConfig, *, rows: int, length: int, like: torch.Tensor, shared: Sequence[Segment] = ()
    ) -> "Cache":
        """A cache of `rows` rows of `length` slots, on the device and in the type of `like`."""
        shape = (rows, config.kv_heads, length, config.head_width)
        # zeros: a value that no query sees is multiplied by 0, so it must be a finite number
        keys, values = (tuple(like.new_zeros(shape) for _ in range(config.layers)) for _ in range(2))
        return cls(keys, values, tuple(shared))

    @property
    def length(self) -> int:
        """Slots of a row."""
        return self.keys[0].shape[2]

    @property
    def shared_length(self) -> int:
        """Positions of the shared segments."""
        return sum(segment.length for segment in self.shared)

    def view(self, rows: slice, length: int) -> "Cache":
        """The first `length` slots of some rows; writing to the view writes to this cache."""
        keys, values = (tuple(x[rows, :, :length] for x in layers) for layers in (self.keys, self.values))
        return Cache(keys, values, self.shared)

    def copy(self, row: int, to: int, *, start: int = 0, stop: int) -> None:
        """Copy the slots [start, stop) of `row` to row `to`."""
        for x_BKLW in (*self.keys, *self.values):
            x_BKLW[to, :, start:stop] = x_BKLW[row, :, start:stop]

    def swap(self, row: int, other: int, *, length: int) -> None:
        """Exchange the first `length` slots of two rows."""
        for x_BKLW in (*self.keys, *self.values):
            row_KLW = x_BKLW[row, :, :length].clone()
            x_BKLW[row, :, :length] = x_BKLW[other, :, :length]
            x_BKLW[other, :, :length] = row_KLW

    def segment(self) -> Segment:
        """The only row, as a segment that other caches may share."""
        return Segment(tuple(x[0] for x in self.keys), tuple(x[0] for x in self.values))

    def reading(self, position_BT: torch.Tensor, rows: Sequence[int] | None = None) -> "Reading":
        """One pass of new tokens at `position_BT` of `rows`, or of all rows."""
        length, shared = self.length, self.shared_length
        slot_BT = position_BT - shared if shared else position_BT
        rows_B = None if rows is None else torch.tensor(rows, device=position_BT.device)
        count, news = position_BT.shape
        row_B1 = (torch.arange(count, device=position_BT.device) if rows_B is None else rows_B)[:, None]
        # as many new tokens as slots, and all from the first slot on: the rows start here
        fresh = not shared and news == length and bool((slot_BT[:, 0] == 0).all())
        seen_B1TL = None
        if not fresh and count * news > 1:  # a single new token is the last one and sees all
            slot_L = torch.arange(length, device=position_BT.device)
            seen_B1TL = (slot_L <= slot_BT[..., None])[:, None]
        return Reading(self, row_B1, slot_BT, seen_B1TL, fresh=fresh, rows=rows_B)

    def static_reading(self, slot_BT: torch.Tensor, slots: int) -> "Reading":
        """One pass of new tokens in `slot_BT` of all rows, which see the first `slots` slots at most.

        Neither shapes nor branches depend on what `slot_BT` holds, so a CUDA graph can record the pass. Slots after
        the first `slots` may be written; then their own token doesn't see them.
        """
        row_B1 = torch.arange(len(slot_BT), device=slot_BT.device)[:, None]
        seen_B1TL = (torch.arange(slots, device=slot_BT.device) <= slot_BT[..., None])[:, None]
        return Reading(self, row_B1, slot_BT, seen_B1TL, fresh=False, rows=None, slots=slots)


@dataclass(frozen=True, slots=True)
class Reading:
    """What each layer needs for a pass of new tokens over a cache, computed once for all layers."""

    cache: Cache
    row_B1: torch.Tensor
    slot_BT: torch.Tensor
    seen_B1TL: torch.Tensor | None  # the slots each query sees; None: all
    fresh: bool  # the rows were empty before
    rows: torch.Tensor | None
    slots: int | None = None  # the first slots that are read; None: all
    near: dict[int, torch.Tensor] = field(default_factory=dict)  # the shared and own positions seen within a window

    def attend(
        self,
        layer: int,
        q_BTHW: torch.Tensor,
        *,
        k_BTKW: torch.Tensor,
        v_BTKW: torch.Tensor,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Attention of the new tokens, [B, T, H, W], after their keys and values are written to the cache.

        With a `window` each sees so many positions, its own and those just before it; a `softcap` bounds scores.
        """
        keys_BKLW, values_BKLW = self.cache.keys[layer], self.cache.values[layer]
        with _in_any_order():
            keys_BKLW[self.row_B1, :, self.slot_BT] = k_BTKW
            values_BKLW[self.row_B1, :, self.slot_BT] = v_BTKW
        if self.fresh:
            return attention(q_BTHW, k_BTKW, v_BLKW=v_BTKW, mask=Causal(window), softcap=softcap)
        if self.rows is not None:
            keys_BKLW, values_BKLW = keys_BKLW[self.rows], values_BKLW[self.rows]
        if self.slots is not None:  # by products: with a mask, SDPA on a GPU would copy the keys for every query head
            keys_BKLW, values_BKLW = keys_BKLW[:, :, : self.slots], values_BKLW[:, :, : self.slots]
        if self.cache.shared or self.slots is not None:
            own = (keys_BKLW, values_BKLW)
            return self._with_shared(layer, q_BTHW, own=own, seen_B1TY=self._near(window), softcap=softcap)
        seen_B1TL = self.seen_B1TL if window is None else self._near(window)
        if softcap is not None:
            q_BHTW = q_BTHW.transpose(1, 2)
            out_BHTW = capped_attention(q_BHTW, keys_BKLW, v_BKLW=values_BKLW, seen_B1TL=seen_B1TL, cap=softcap)
            return out_BHTW.transpose(1, 2)
        out_BHTW = F.scaled_dot_product_attention(
            q_BTHW.transpose(1, 2),
            keys_BKLW,
            values_BKLW,
            attn_mask=seen_B1TL,
            enable_gqa=q_BTHW.shape[2] != keys_BKLW.shape[1],
        )
        return out_BHTW.transpose(1, 2)

    def _near(self, window: int | None) -> torch.Tensor | None:
        """The shared positions and the slots [B, 1, T, Y] that each query sees within the window; None without one."""
        if window is not None and window not in self.near:
            shared = self.cache.shared_length
            length = self.cache.length if self.slots is None else self.slots
            position_Y = torch.arange(shared + length, device=self.slot_BT.device)
            query_BT1 = self.slot_BT[..., None] + shared
            self.near[window] = ((position_Y <= query_BT1) & (position_Y > query_BT1 - window))[:, None]
        return None if window is None else self.near[window]

    def _with_shared(
        self,
        layer: int,
        q_BTHW: torch.Tensor,
        *,
        own: tuple[torch.Tensor, torch.Tensor],
        seen_B1TY: torch.Tensor | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention over shared and own positions at once; one product with the shared keys serves all rows.

        Juravsky et al., Hydragen (arXiv 2402.05099), section 3, with one softmax instead of two that are combined.
        """
        rows, news, heads, _ = q_BTHW.shape
        length = own[0].shape[2] + self.cache.shared_length
        seen_B1TX = self.seen_B1TL if seen_B1TY is None else seen_B1TY
        step = max(1, SCORES_AT_ONCE // (rows * heads * length))
        segments = [(segment.keys[layer], segment.values[layer]) for segment in self.cache.shared]
        outs = []
        for start in range(0, news, step):
            part = slice(start, start + step)
            seen = None if seen_B1TX is None else seen_B1TX[:, :, part]
            outs.append(_attend(q_BTHW[:, part], *own, seen_B1TX=seen, segments=segments, softcap=softcap))
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


@contextmanager
def _in_any_order() -> Iterator[None]:
    """Inside, indexed writes may take any order. Here it makes no difference: a slot gets one value, or equal ones.

    For a fixed order torch sorts the indices on a GPU, and copies a whole cache that is a view before and after: at 64
    rows three quarters of the time of a token.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns)


def _attend(
    q_BTHW: torch.Tensor,
    keys_BKLW: torch.Tensor,
    values_BKLW: torch.Tensor,
    *,
    seen_B1TX: torch.Tensor | None,
    segments: Sequence[tuple[torch.Tensor, torch.Tensor]],
    softcap: float | None,
) -> torch.Tensor:
    rows, news, heads, width = q_BTHW.shape
    groups = (keys_BKLW.shape[1], heads // keys_BKLW.shape[1])
    q_BKXW = q_BTHW.mul(width**-0.5).unflatten(2, groups).permute(0, 2, 3, 1, 4).flatten(2, 3)
    own_BKXL = q_BKXW @ keys_BKLW.mT
    all_KYW = q_BKXW.transpose(0, 1).flatten(1, 2)  # the queries of all rows
    scores = [torch.bmm(all_KYW, keys_KPW.mT).unflatten(1, (rows, -1)).transpose(0, 1) for keys_KPW, _ in segments]
    all_BKXY = soft_cap(torch.cat((*scores, own_BKXL), -1), softcap)
    if seen_B1TX is not None:  # of the slots, or of the shared positions too
        last_BKXY = all_BKXY[..., all_BKXY.shape[-1] - seen_B1TX.shape[-1] :]
        last_BKXY.unflatten(2, (groups[1], news)).masked_fill_(~seen_B1TX[:, :, None], -torch.inf)
    share = all_BKXY.softmax(-1, dtype=torch.float32).to(q_BTHW.dtype)
    *shared, own_BKXL = share.split([*(x.shape[-1] for x in scores), own_BKXL.shape[-1]], -1)
    out_BKXW = own_BKXL @ values_BKLW
    for share_BKXP, (_, values_KPW) in zip(shared, segments, strict=True):
        out_KYW = torch.bmm(share_BKXP.transpose(0, 1).flatten(1, 2), values_KPW)
        out_BKXW += out_KYW.unflatten(1, (rows, -1)).transpose(0, 1)
    return out_BKXW.unflatten(2, (groups[1], news)).permute(0, 3, 1, 2, 4).flatten(2, 3)
