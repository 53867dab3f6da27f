"""The language decoder: pre-norm, RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.model import DecoderConfig
from mm1.model.attention import Causal, Mask, attention
from mm1.model.cache import Cache, Reading
from mm1.model.layers import RMSNorm, SwiGLU, linear, residual_scale
from mm1.model.moe import LayerRouting, SparseFeedForward
from mm1.model.rotary import rotary_angles, rotate


class SelfAttention(nn.Module):
    """Attention of each position over those that it sees, [B, T, D]."""

    def __init__(self, config: DecoderConfig, *, layer: int):
        super().__init__()
        if config.heads % config.kv_heads:
            raise ValueError(f"heads {config.heads} is not a multiple of kv_heads {config.kv_heads}; change one")
        self.layer, self.head_width, self.rotates = layer, config.head_width, layer not in config.no_rope_layers
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = linear(config.width, queries, bias=config.qkv_bias)
        self.key = linear(config.width, keys, bias=config.qkv_bias)
        self.value = linear(config.width, keys, bias=config.qkv_bias)
        self.out = linear(queries, config.width, bias=config.out_bias, scale=residual_scale(config.layers))
        self.norms_heads = config.qk_norm and not config.qk_norm_across_heads
        widths = (queries, keys) if config.qk_norm_across_heads else (config.head_width, config.head_width)
        norms = [RMSNorm(width, config.norm_epsilon) if config.qk_norm else None for width in widths]
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
        if isinstance(mask, Reading):
            out_BTHW = mask.attend(self.layer, q_BTHW, k_BTKW=k_BTKW, v_BTKW=v_BTKW)
        else:
            out_BTHW = attention(q_BTHW, k_BTKW, v_BLKW=v_BTKW, mask=mask)
        return self.out(out_BTHW.flatten(2))


class DecoderBlock(nn.Module):
    """A transformer layer: [B, T, D], and what its experts did if it has experts and `real_BT` is given.

    The norms are of what attention and feed-forward take, or, with `norm_after`, of what they give.
    """

    def __init__(self, config: DecoderConfig, *, layer: int):
        super().__init__()
        self.norm_after = config.norm_after
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = SelfAttention(config, layer=layer)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward: SwiGLU | SparseFeedForward
        scale = residual_scale(config.layers)
        if config.sparse.at(layer):
            self.feed_forward = SparseFeedForward(config, scale=scale)
        else:
            self.feed_forward = SwiGLU(config.width, config.mlp_width, bias=config.mlp_bias, scale=scale)

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
            return x_BTD + self._given(self.feed_forward_norm, self.feed_forward(y_BTD)), None
        y_BTD, routing = self.feed_forward(y_BTD, real_BT)
        return x_BTD + self._given(self.feed_forward_norm, y_BTD), routing

    def attend(
        self, x_BTD: torch.Tensor, *, angles: tuple[torch.Tensor, torch.Tensor], mask: Mask | Reading
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states after attention, and what the feed-forward takes of them."""
        y_BTD = self.attention(self._taken(self.attention_norm, x_BTD), angles=angles, mask=mask)
        x_BTD = x_BTD + self._given(self.attention_norm, y_BTD)
        return x_BTD, self._taken(self.feed_forward_norm, x_BTD)

    def _taken(self, norm: nn.Module, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD if self.norm_after else norm(x_BTD)

    def _given(self, norm: nn.Module, y_BTD: torch.Tensor) -> torch.Tensor:
        return norm(y_BTD) if self.norm_after else y_BTD


class Decoder(nn.Module):
    """A decoder-only transformer between `embed` and `logits`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config, layer=layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.output = None if config.tie_embeddings else linear(config.width, config.vocabulary, bias=False)

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Token embeddings [B, T, D]."""
        return self.embedding(tokens_BT)

    def forward(
        self,
        x_BTD: torch.Tensor,
        position_BT: torch.Tensor,
        *,
        mask: Mask | None = None,
        cache: Cache | Reading | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, T, D], after the last norm.

        `mask` (from `attention.document_mask`) tells which positions see which; without one each sequence is a single
        document. With a `cache` the tokens continue the cache's sequences at `position_BT`, and the cache is as long
        as the positions in use after this call.
        """
        return self.routed(x_BTD, position_BT, mask=mask, cache=cache)[0]

    def routed(
        self,
        x_BTD: torch.Tensor,
        position_BT: torch.Tensor,
        *,
        mask: Mask | None = None,
        cache: Cache | Reading | None = None,
        real_BT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[LayerRouting]]:
        """The same, and what the experts of each sparse layer did with the tokens where `real_BT` is true."""
        sees: Mask | Reading = Causal() if mask is None else mask
        if cache is not None:
            sees = cache.reading(position_BT) if isinstance(cache, Cache) else cache
        angles = rotary_angles(position_BT, self.config)
        routing = []
        for block in self.blocks:
            x_BTD, layer_routing = block(x_BTD, angles=angles, mask=sees, real_BT=real_BT)
            if layer_routing is not None:
                routing.append(layer_routing)
        return self.norm(x_BTD), routing

    def output_weight(self) -> torch.Tensor:
        """The matrix [V, D] of the logits, for losses that never hold all logits at once."""
        return self.embedding.weight if self.output is None else self.output.weight

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unnormalised log-probabilities [..., V] of the next token."""
        return F.linear(hidden, self.output_weight())
