"""The language decoder: pre-norm, RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.model import DecoderConfig
from mm1.model.attention import Causal, Mask, attention, document_mask
from mm1.model.cache import Cache, Reading
from mm1.model.layers import OffsetRMSNorm, RMSNorm, SwiGLU, linear, residual_scale
from mm1.model.moe import LayerRouting, SparseFeedForward
from mm1.model.rotary import rotary_angles, rotate
from mm1.model.softcap import soft_cap

Masks = dict[int | None, Mask]
"""The mask of the layers of each window; None for layers without one."""


def masks_of(config: DecoderConfig, document_BT: torch.Tensor) -> Masks:
    """The masks of a packed batch for all layers of a decoder; build them once a batch."""
    return {window: document_mask(document_BT, window=window) for window in dict.fromkeys(_windows(config))}


def _windows(config: DecoderConfig) -> list[int | None]:
    return [config.window_of(layer) for layer in range(config.layers)]


def _norm(config: DecoderConfig, width: int) -> RMSNorm:
    return (OffsetRMSNorm if config.norm_offset else RMSNorm)(width, config.norm_epsilon)


class SelfAttention(nn.Module):
    """Attention of each position over those that it sees, [B, T, D]."""

    def __init__(self, config: DecoderConfig, *, layer: int):
        super().__init__()
        if config.heads % config.kv_heads:
            raise ValueError(f"heads {config.heads} is not a multiple of kv_heads {config.kv_heads}; change one")
        self.layer, self.head_width, self.rotates = layer, config.head_width, layer not in config.no_rope_layers
        self.window, self.softcap = config.window_of(layer), config.attention_softcap
        # attention divides scores by the root of the width
        self.scale = None if config.query_scale is None else config.query_scale * config.head_width**0.5
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = linear(config.width, queries, bias=config.qkv_bias)
        self.key = linear(config.width, keys, bias=config.qkv_bias)
        self.value = linear(config.width, keys, bias=config.qkv_bias)
        self.out = linear(queries, config.width, bias=config.out_bias, scale=residual_scale(config.layers))
        self.norms_heads = config.qk_norm and not config.qk_norm_across_heads
        widths = (queries, keys) if config.qk_norm_across_heads else (config.head_width, config.head_width)
        norms = [_norm(config, width) if config.qk_norm else None for width in widths]
        self.query_norm, self.key_norm = norms

    def forward(
        self,
        x_BTD: torch.Tensor,
        *,
        angles: tuple[torch.Tensor, torch.Tensor],
        mask: Mask | Reading,
    ) -> torch.Tensor:
        heads = (-1, self.head_width)
        q, k = self.query(x_BTD), self.key(x_BTD)
        if self.query_norm is not None and self.key_norm is not None and not self.norms_heads:
            q, k = self.query_norm(q), self.key_norm(k)
        q_BTHW, k_BTKW = q.unflatten(-1, heads), k.unflatten(-1, heads)
        v_BTKW = self.value(x_BTD).unflatten(-1, heads)
        if self.query_norm is not None and self.key_norm is not None and self.norms_heads:
            q_BTHW, k_BTKW = self.query_norm(q_BTHW), self.key_norm(k_BTKW)
        if self.rotates:
            q_BTHW, k_BTKW = rotate(q_BTHW, angles), rotate(k_BTKW, angles)
        if self.scale is not None:
            q_BTHW = q_BTHW * self.scale
        if isinstance(mask, Reading):
            out_BTHW = mask.attend(
                self.layer, q_BTHW, k_BTKW=k_BTKW, v_BTKW=v_BTKW, window=self.window, softcap=self.softcap
            )
        else:
            out_BTHW = attention(q_BTHW, k_BTKW, v_BLKW=v_BTKW, mask=mask, softcap=self.softcap)
        return self.out(out_BTHW.flatten(2))


class DecoderBlock(nn.Module):
    """A transformer layer: [B, T, D], and what its experts did if it has experts and `real_BT` is given.

    With `norm_before` there are norms of what attention and feed-forward take, with `norm_after` of what they give.
    """

    def __init__(self, config: DecoderConfig, *, layer: int):
        super().__init__()
        before, after = config.norm_before, config.norm_after
        self.attention_norm = _norm(config, config.width) if before else None
        self.attention = SelfAttention(config, layer=layer)
        self.attention_out_norm = _norm(config, config.width) if after else None
        self.feed_forward_norm = _norm(config, config.width) if before else None
        self.feed_forward_out_norm = _norm(config, config.width) if after else None
        self.feed_forward: SwiGLU | SparseFeedForward
        scale = residual_scale(config.layers)
        if config.sparse.at(layer):
            self.feed_forward = SparseFeedForward(config, scale=scale)
        else:
            self.feed_forward = SwiGLU(
                config.width, config.mlp_width, bias=config.mlp_bias, scale=scale, activation=config.activation
            )

    def forward(
        self,
        x_BTD: torch.Tensor,
        *,
        angles: tuple[torch.Tensor, torch.Tensor],
        mask: Mask | Reading,
        real_BT: torch.Tensor | None,
    ) -> tuple[torch.Tensor, LayerRouting | None]:
        x_BTD, y_BTD = self.attend(x_BTD, angles=angles, mask=mask)
        if isinstance(self.feed_forward, SwiGLU):
            return x_BTD + _normed(self.feed_forward_out_norm, self.feed_forward(y_BTD)), None
        y_BTD, routing = self.feed_forward(y_BTD, real_BT)
        return x_BTD + _normed(self.feed_forward_out_norm, y_BTD), routing

    def attend(
        self, x_BTD: torch.Tensor, *, angles: tuple[torch.Tensor, torch.Tensor], mask: Mask | Reading
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states after attention, and what the feed-forward takes of them."""
        y_BTD = self.attention(_normed(self.attention_norm, x_BTD), angles=angles, mask=mask)
        x_BTD = x_BTD + _normed(self.attention_out_norm, y_BTD)
        return x_BTD, _normed(self.feed_forward_norm, x_BTD)


def _normed(norm: nn.Module | None, x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD if norm is None else norm(x_BTD)


class Decoder(nn.Module):
    """A decoder-only transformer between `embed` and `logits`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config, layer=layer) for layer in range(config.layers))
        self.norm = _norm(config, config.width)
        self.output = None if config.tie_embeddings else linear(config.width, config.vocabulary, bias=False)

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Token embeddings [B, T, D]."""
        x_BTD = self.embedding(tokens_BT)
        if self.config.embedding_scale == 1:
            return x_BTD
        return x_BTD * torch.tensor(self.config.embedding_scale, dtype=x_BTD.dtype)  # rounded as in transformers

    def forward(
        self,
        x_BTD: torch.Tensor,
        position_BT: torch.Tensor,
        *,
        masks: Masks | None = None,
        cache: Cache | Reading | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, T, D], after the last norm.

        `masks` (from `masks_of`) tell which positions see which; without them each sequence is a single
        document. With a `cache` the tokens continue the cache's sequences at `position_BT`, and the cache is as long
        as the positions in use after this call.
        """
        return self.routed(x_BTD, position_BT, masks=masks, cache=cache)[0]

    def routed(
        self,
        x_BTD: torch.Tensor,
        position_BT: torch.Tensor,
        *,
        masks: Masks | None = None,
        cache: Cache | Reading | None = None,
        real_BT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[LayerRouting]]:
        """The same, and what the experts of each sparse layer did with the tokens where `real_BT` is true."""
        windows = _windows(self.config)
        sees: dict[int | None, Mask | Reading] = {window: Causal(window) for window in windows}
        if masks is not None:
            sees |= masks
        if cache is not None:
            sees = dict.fromkeys(windows, cache.reading(position_BT) if isinstance(cache, Cache) else cache)
        angles = {window: rotary_angles(position_BT, self.config, window) for window in dict.fromkeys(windows)}
        routing = []
        for block, window in zip(self.blocks, windows, strict=True):
            x_BTD, layer_routing = block(x_BTD, angles=angles[window], mask=sees[window], real_BT=real_BT)
            if layer_routing is not None:
                routing.append(layer_routing)
        return self.norm(x_BTD), routing

    def output_weight(self) -> torch.Tensor:
        """The matrix [V, D] of the logits, for losses that never hold all logits at once."""
        return self.embedding.weight if self.output is None else self.output.weight

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unnormalised log-probabilities [..., V] of the next token."""
        return soft_cap(F.linear(hidden, self.output_weight()), self.config.logit_softcap)
