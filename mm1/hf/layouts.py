"""State dicts of published image encoders to ours and back: pure functions.

Ours are those of a `Vision`. Nothing is computed, so a round trip gives the same tensors, bit for bit.
"""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

import torch

from mm1.hf.names import (
    AIM,
    AIM_GATED,
    AIMV2,
    DINOV2,
    DINOV2_GATED,
    DINOV3,
    INTERNVL,
    OPENCLIP,
    VISION,
    VISION_DROPPED,
    VIT,
    reverse,
    translate,
)

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the files of a family name an encoder's tensors."""

    anchor: str  # a name that no earlier layout has
    names: dict[str, str]  # ours -> theirs
    dropped: re.Pattern[str]  # other tensors that their files may hold
    prefix: str = ""  # the beginning of every name in their files of the encoder alone
    ones: dict[str, int] = field(default_factory=dict)  # how many leading dimensions of size one, by our name
    has_norm: bool = True  # after the last layer; where theirs has none, ours is not used


_TOKENS = {"class_E": 2, "register_RE": 1, "position_PE": 1, "mask_E": 1}
_MASK_TOKEN, _HEAD = re.compile(r"embeddings\.mask_token$"), re.compile(r"head\.")

LAYOUTS = {
    "internvl": Layout("encoder.layer.0.lambda_1", INTERNVL, _MASK_TOKEN, ones=_TOKENS, has_norm=False),
    "vit": Layout("encoder.layer.0.layernorm_before.weight", VIT, re.compile(r"pooler\."), ones=_TOKENS),
    "clip": Layout("embeddings.patch_embedding.weight", VISION, VISION_DROPPED, "vision_model."),
    "dinov2, gated": Layout("encoder.layer.0.mlp.weights_in.weight", DINOV2_GATED, _MASK_TOKEN, ones=_TOKENS),
    "dinov2": Layout("embeddings.patch_embeddings.projection.weight", DINOV2, _MASK_TOKEN, ones=_TOKENS),
    "dinov3": Layout("embeddings.patch_embeddings.weight", DINOV3, _MASK_TOKEN, ones=_TOKENS | {"mask_E": 2}),
    "aimv2": Layout("embeddings.patch_embed.weight", AIMV2, _HEAD),
    "aimv2, as published": Layout("trunk.blocks.0.mlp.fc3.weight", AIM_GATED, _HEAD, ones=_TOKENS),
    "aim": Layout("preprocessor.patchifier.proj.weight", AIM, _HEAD, ones=_TOKENS),
    "openclip": Layout("visual.conv1.weight", OPENCLIP, re.compile(r"visual\.proj$|(?!visual\.)")),
}
"""A file has the first layout whose anchor is in it. SigLIP's layout is CLIP's."""


def find(names: Iterable[str]) -> tuple[Layout, str]:
    """The layout of the image encoder among tensors of these names, and the prefix of its names.

    Raises:
        ValueError: there is no encoder, or more than one.
    """
    names = list(names)
    for layout in LAYOUTS.values():
        prefixes = [name.removesuffix(layout.anchor) for name in names if name.endswith(layout.anchor)]
        if len(prefixes) == 1:
            return layout, prefixes[0]
        if prefixes:
            raise ValueError(f"found {len(prefixes)} tensors named ...{layout.anchor}, expected one")
    anchors = ", ".join(layout.anchor for layout in LAYOUTS.values())
    raise ValueError(f"no image encoder is among {len(names)} tensors: no name ends like one of {anchors}")


def vision_from_hf(theirs: State) -> State:
    """The state of our `Vision` from a state dict of theirs, which may hold more than the image encoder."""
    layout, prefix = find(theirs)
    short = {name.removeprefix(prefix): x for name, x in theirs.items() if name.startswith(prefix)}
    inside = {name: x for name, x in short.items() if x.numel() and not layout.dropped.match(name)}
    ours: State = {}
    for their, name in translate(inside, reverse(layout.names)).items():
        parts = _parts(name)
        ours.update(zip(parts, inside[their].chunk(len(parts)), strict=True))
    for name in layout.ones.keys() & ours.keys():
        ours[name] = ours[name].flatten(0, layout.ones[name])
    ours["patch.weight"] = ours["patch.weight"].flatten(1)
    if not layout.has_norm:
        ours["norm.weight"] = torch.ones_like(ours["class_E"])
        ours["norm.bias"] = torch.zeros_like(ours["class_E"])
    return ours


def vision_to_hf(ours: State, layout: Layout | None = None) -> State:
    """Their state dict, as in their published files, from the state of our `Vision` or of whole blocks of it.

    The layout is that of `transformers` if it has one: an encoder from OpenCLIP becomes a CLIP.
    """
    layout = layout or layout_of(ours)
    theirs = write(ours, layout)
    if "register_RE" in ours:  # only pre-training uses it, but files of families with registers hold it
        theirs["embeddings.mask_token"] = torch.zeros_like(ours["register_RE"][0])[(None,) * layout.ones["mask_E"]]
    return theirs


def layout_of(names: Container[str]) -> Layout:
    """The layout in which an encoder with tensors of these names (ours) is published."""
    if "blocks.0.attention_scale.weight" in names and "position_PE" not in names:
        return LAYOUTS["dinov3"]
    if "blocks.0.attention_scale.weight" in names:
        return LAYOUTS["dinov2, gated" if "blocks.0.feed_forward.gate.weight" in names else "dinov2"]
    if "patch_norm.weight" in names:
        return LAYOUTS["aim" if "patch_norm.bias" in names else "aimv2"]
    if "class_E" in names and "input_norm.weight" not in names:
        return LAYOUTS["vit"]
    return LAYOUTS["clip"]


def by_part(ours: State) -> dict[str, State]:
    """The state of our `MLLM`, or of a part of it, by part; names without the part."""
    parts: dict[str, State] = {"vision": {}, "connector": {}, "decoder": {}}
    for name, x in ours.items():
        part, _, leaf = name.partition(".")
        parts[part][leaf] = x
    return parts


def write(ours: State, layout: Layout) -> State:
    """The state of our `Vision`, or of whole blocks of it, in one of `LAYOUTS`.

    Raises:
        ValueError: the layout has no name for one of its tensors.
    """
    table = {part: their for name, their in layout.names.items() for part in _parts(name)}
    if "patch.weight" in ours:
        size = round((ours["patch.weight"].shape[1] / 3) ** 0.5)
        ours = ours | {"patch.weight": ours["patch.weight"].unflatten(1, (3, size, size))}
    theirs = {}
    for their, name in translate(dict.fromkeys(translate(ours, table).values()), reverse(layout.names)).items():
        parts = [ours[part] for part in _parts(name)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        theirs[layout.prefix + their] = whole[(None,) * layout.ones.get(name, 0)]
    return theirs


def _parts(name: str) -> list[str]:
    """`a.b|c.d` as [`a.b.d`, `a.c.d`]; any other name as it is."""
    match = re.search(r"\w+(?:\|\w+)+", name)
    return [name] if match is None else [name.replace(match[0], part) for part in match[0].split("|")]
