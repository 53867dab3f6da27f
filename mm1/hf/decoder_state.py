"""State dicts of decoders of `transformers` to ours and back: pure functions.

Ours are those of a `Decoder`. Nothing is computed, so a round trip gives the same tensors, bit for bit.
"""

import torch

from mm1.config.model import DecoderConfig
from mm1.hf.decoders import FAMILIES, family_of
from mm1.hf.experts import stack_experts, unstack_experts
from mm1.hf.names import AFTER, DECODER, DECODER_DROPPED, QWEN3_MOE, reverse, translate

State = dict[str, torch.Tensor]

_MARKS = {".mlp.experts.": QWEN3_MOE, ".post_feedforward_layernorm.": AFTER}
"""Tables of names by what only their files have in a name."""


def with_own_head(config: DecoderConfig, theirs: State) -> DecoderConfig:
    """`config` with embeddings untied if the files hold an output matrix of their own, as `transformers` reads them."""
    heads = [x for name, x in theirs.items() if name.endswith("lm_head.weight")]
    if not config.tie_embeddings or not heads:
        return config
    (embedding,) = (x for name, x in theirs.items() if name.endswith("embed_tokens.weight"))
    is_own = heads[0].shape != embedding.shape or not torch.equal(heads[0], embedding)
    return config.model_copy(update={"tie_embeddings": not is_own})


def decoder_from_hf(theirs: State, *, tie_embeddings: bool) -> State:
    """The state of our `Decoder` from a state dict of theirs, which may hold more than the decoder.

    Raises:
        ValueError: tensors of another model, or no output matrix though embeddings are not tied.
    """
    prefix = _prefix(theirs, "embed_tokens.weight")
    inside = {name: x for name, x in _inside(theirs, prefix).items() if not DECODER_DROPPED.match(name)}
    inside = stack_experts(_unfused(inside))
    names = next((table for mark, table in _MARKS.items() if any(mark in name for name in inside)), DECODER)
    ours = {name: inside[their] for their, name in translate(inside, reverse(names)).items()}
    if tie_embeddings:
        return ours
    if not any(name.endswith("lm_head.weight") for name in theirs):
        raise ValueError(
            "no file holds lm_head.weight, but config.json does not say that embeddings are tied; if they are, add "
            '"tie_word_embeddings": true to it, else download the missing file'
        )
    return ours | {"output.weight": theirs[_prefix(theirs, "lm_head.weight") + "lm_head.weight"]}


def beside_decoder(theirs: State) -> list[str]:
    """The names of tensors that are not the decoder's."""
    prefix = _prefix(theirs, "embed_tokens.weight")
    return [name for name in theirs if not name.startswith(prefix) and not name.endswith("lm_head.weight")]


def _unfused(theirs: State) -> State:
    """Their state dict with Phi-3's matrices of queries, keys and values, and of gate and up, each on its own."""
    state: State = {}
    for name, x in theirs.items():
        if ".qkv_proj." in name:
            queries = theirs[name.replace(".qkv_proj.", ".o_proj.")].shape[1]
            keys = (len(x) - queries) // 2
            parts = zip("qkv", x.split((queries, keys, keys)), strict=True)
            state |= {name.replace(".qkv_proj.", f".{letter}_proj."): part for letter, part in parts}
        elif ".gate_up_proj." in name:
            parts = zip(("gate", "up"), x.chunk(2), strict=True)
            state |= {name.replace(".gate_up_proj.", f".{part}_proj."): half for part, half in parts}
        else:
            state[name] = x
    return state


def decoder_to_hf(ours: State, config: DecoderConfig) -> State:
    """Their state dict from the state of our `Decoder` of this `config`, or from a part of it; as theirs without
    `lm_head` if embeddings are tied."""
    names = FAMILIES[family_of(config)].names
    ours = dict(ours)
    output = ours.pop("output.weight", None)
    theirs = unstack_experts({"model." + their: ours[name] for name, their in translate(ours, names).items()})
    return theirs if output is None else theirs | {"lm_head.weight": output}


def _prefix(state: State, ending: str) -> str:
    prefixes = [name.removesuffix(ending) for name in state if name.endswith(ending)]
    if len(prefixes) != 1:
        raise ValueError(f"found {len(prefixes)} tensors named ...{ending} among {len(state)}, expected one")
    return prefixes[0]


def _inside(state: State, prefix: str) -> State:
    """The tensors whose names begin with `prefix`, less the prefix; without the output matrix."""
    names = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    return {short: state[name] for name, short in names.items() if not short.endswith("lm_head.weight")}
