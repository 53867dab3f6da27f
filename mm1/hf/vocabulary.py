"""New special tokens for a model that was trained without them."""

from typing import Any

import torch

from mm1.data.tokenizer import MARKS

State = dict[str, torch.Tensor]


def with_marks(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that holds every mark of the project; what it held before keeps its id.

    A mark that is there already stays where it is. Others get the ids after the last one: often rows that the
    model's matrices hold anyway, as many are padded to a round size.
    """
    added = list(tokenizer.get("added_tokens") or [])
    known = {token["content"] for token in added} | set(tokenizer["model"]["vocab"])
    last = max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in added)])
    for name in (f"<|{name}|>" for name in MARKS):
        if name in known:
            continue
        last += 1
        form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added.append({"id": last, "content": name, **form})
    return tokenizer | {"added_tokens": added}


def extended(decoder: State, vocabulary: int) -> State:
    """The state of our `Decoder` with room for `vocabulary` tokens; one with room enough as it is.

    A new row is the mean of the old ones. So its logit is the mean of theirs, and all new tokens together take no
    larger part of the probability than of the vocabulary, where a random row could take nearly all
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    made = dict(decoder)
    for name in ("embedding.weight", "output.weight"):
        if name in decoder and len(decoder[name]) < vocabulary:
            old_VD = decoder[name]
            mean_D = old_VD.double().mean(0).to(old_VD.dtype)
            made[name] = torch.cat([old_VD, mean_D.expand(vocabulary - len(old_VD), -1)])
    return made
