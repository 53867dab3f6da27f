"""Rotary positions in the configs of `transformers`, and ours: pure functions."""

import math
from typing import Any

from mm1.config.model import RopeScalingConfig


def rope_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """Their fields of rotary positions, by whatever version wrote them; of layers that see all positions.

    Gemma 3 has others, without a stretch, for layers with a window.
    """
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)
    top = {"rope_theta", "original_max_position_embeddings", "partial_rotary_factor", "max_position_embeddings"}
    return {name: theirs[name] for name in top if theirs.get(name) is not None} | rope


def window_rope_base(theirs: dict[str, Any]) -> float | None:
    """The base of layers with a window, if it is another one."""
    inner = (theirs.get("rope_parameters") or {}).get("sliding_attention", {})
    return inner.get("rope_theta") or theirs.get("rope_local_base_freq")


def rope_scaling_from_hf(rope: dict[str, Any]) -> RopeScalingConfig | None:
    """How their rotary positions are stretched, from what `rope_of` gives.

    Raises:
        ValueError: in a way that ours doesn't know, or a field of it is missing.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KINDS:
        known = ", ".join(name for name in _KINDS if name != "su")
        raise ValueError(f"rotary positions of type {kind!r} can't be read; known: {known}")
    try:
        return _KINDS[kind](rope)
    except KeyError as missing:
        raise ValueError(f"rotary positions of type {kind!r} have no {missing.args[0]}") from None


def _linear(rope: dict[str, Any]) -> RopeScalingConfig:
    return RopeScalingConfig(kind="linear", factor=rope["factor"])


def _llama3(rope: dict[str, Any]) -> RopeScalingConfig:
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original = _original(rope)
    return RopeScalingConfig(kind="llama3", factor=rope["factor"], low=low, high=high, original_positions=original)


def _yarn(rope: dict[str, Any]) -> RopeScalingConfig:
    factor, mscale, mscale_all = _factor(rope), rope.get("mscale"), rope.get("mscale_all_dim")
    default = _yarn_attention(factor)
    if mscale and mscale_all:  # DeepSeek's
        default = _yarn_attention(factor, mscale) / _yarn_attention(factor, mscale_all)
    return RopeScalingConfig(
        kind="yarn",
        factor=factor,
        low=rope.get("beta_slow") or 1.0,
        high=rope.get("beta_fast") or 32.0,
        original_positions=_original(rope),
        attention_factor=rope.get("attention_factor") or default,
        truncate=rope.get("truncate", True),
    )


def _yarn_attention(factor: float, scale: float = 1.0) -> float:
    """Peng et al., arXiv 2309.00071, equation 22."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _original(rope: dict[str, Any]) -> int:
    """The length that was stretched: that of the whole model if nothing is said."""
    return rope.get("original_max_position_embeddings") or rope["max_position_embeddings"]


def _factor(rope: dict[str, Any]) -> float:
    return rope.get("factor") or rope["max_position_embeddings"] / _original(rope)


def _longrope(rope: dict[str, Any]) -> RopeScalingConfig:
    """That of texts up to the original length; beyond it, theirs changes all positions of a text."""
    original, factor = _original(rope), _factor(rope)
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0  # arXiv 2402.13753
    return RopeScalingConfig(
        kind="longrope",
        factor=factor,
        factors=tuple(rope["short_factor"]),
        original_positions=original,
        attention_factor=rope.get("attention_factor") or default,
    )


_KINDS: dict[str, Any] = {
    "default": lambda rope: None,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its first name
}


def rope_scaling_to_hf(scaling: RopeScalingConfig | None) -> dict[str, Any]:
    """The fields of `rope_parameters` beside the base.

    Raises:
        ValueError: theirs has more than ours kept of it.
    """
    if scaling is None:
        return {"rope_type": "default"}
    if scaling.kind == "longrope":
        raise ValueError("of LongRoPE only the factors of short texts were read")
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        fields |= {"beta_slow": scaling.low, "beta_fast": scaling.high, "truncate": scaling.truncate}
        fields |= {"attention_factor": scaling.attention_factor}
    return fields | (
        {} if scaling.kind == "linear" else {"original_max_position_embeddings": scaling.original_positions}
    )
