"""Beam search: the likeliest whole texts, where greedy decoding takes the likeliest token each time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mm1.generate.engine import Completion
from mm1.generate.prompt import Features, Prompt, common_prefix, content, whole_images
from mm1.generate.sampling import Decoding, writable
from mm1.generate.session import LEAST, Prefix, begun, prefill
from mm1.model.cache import Cache
from mm1.model.mllm import MLLM


@dataclass(frozen=True, slots=True)
class Beams:
    """How wide to search, and how lengths compare.

    A text's score is its log-probability / tokens ** `length_power`, its end token counted (Wu et al., arXiv
    1609.08144, without their constant 5, as `transformers` has it): 0 prefers short texts, 1 is the mean of a token.
    """

    width: int = 3
    length_power: float = 1.0


def search_all(
    model: MLLM,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding,
    beams: Beams,
    features: Features | None = None,
    done: Callable[[int], None] = lambda number: None,
) -> list[Completion]:
    """`search` after each prompt; what all begin with is computed once. `done` hears of each that ends."""
    if not prompts:
        return []
    features = features or Features(model)
    image_tokens = model.config.connector.tokens
    contents = [content(prompt, model.config) for prompt in prompts]
    shared = min(common_prefix(contents[0], other[:-1]) for other in contents)  # the last place's logits are wanted
    shared = whole_images(contents[0], shared, image_tokens=image_tokens)
    prefixes: list[Prefix] = []
    if shared >= LEAST and len(prompts) > 1:
        first, whole = prompts[0], contents[0]
        prefixes = [begun(model, first, whole, places=shared, features=features)]
    found = []
    for number, prompt in enumerate(prompts):
        found.append(
            search(
                model,
                prompt,
                decoding=decoding,
                beams=beams,
                features=features,
                prefixes=prefixes,
            )
        )
        done(number)
    return found


@torch.inference_mode()
def search(
    model: MLLM,
    prompt: Prompt,
    *,
    decoding: Decoding,
    beams: Beams,
    features: Features | None = None,
    prefixes: Sequence[Prefix] = (),
) -> Completion:
    """The best completion found with `beams.width` texts going on side by side; the prompt's keys are held once.

    Ends when no text that goes on can beat the `width` best ended ones at its present length. Of `decoding` only
    `tokens`, `stop_tokens` and `stopped` count; a text that holds a stop string has ended with it.

    Raises:
        ValueError: images that don't fill their places.
    """
    features = features or Features(model)
    segment, logits_V = prefill(model, prompt, features=features, prefixes=prefixes)
    shared = [*(prefix.segment for prefix in prefixes), segment]
    start = sum(one.places for one in shared)
    width = beams.width
    weight = model.decoder.embedding.weight
    cache = Cache.empty(model.decoder.config, rows=width, places=decoding.tokens, like=weight, shared=shared)
    ended: list[Completion] = []
    going = [Completion()]
    logits_BV = logits_V[None]
    for length in range(1, decoding.tokens + 1):
        found = _continued(going, logits_BV, count=_candidates(decoding, width), image_token=model.config.image_token)
        parents: list[int] = []
        nexts: list[Completion] = []
        for parent, token, log_probability in found:
            tokens = going[parent].tokens
            if token in decoding.stop_tokens:
                # one below the `width` best texts of this length is not among the best, ended or not
                if len(nexts) < width:
                    ended.append(Completion(list(tokens), log_probability, "token"))
            elif len(nexts) < width:
                longer = Completion([*tokens, token], log_probability)
                if decoding.stopped is not None and decoding.stopped(longer.tokens):
                    longer.reason = "text"
                    ended.append(longer)
                else:
                    nexts.append(longer)
                    parents.append(parent)
        ended = sorted(ended, key=lambda one: _score(one, beams), reverse=True)[:width]
        going = nexts
        if length == decoding.tokens or not going or _settled(ended, going, beams):
            break
        device = logits_BV.device
        _follow(cache, parents, places=length - 1)
        tokens_B1 = torch.tensor([one.tokens[-1:] for one in going], device=device)
        position_B1 = torch.full_like(tokens_B1, start + length - 1)
        view = cache.view(slice(0, len(going)), length)
        hidden_B1D = model.decoder(model.decoder.embed(tokens_B1), position_B1, cache=view)
        logits_BV = model.decoder.logits(hidden_B1D[:, 0]).float()
    return max([*ended, *going], key=lambda one: _score(one, beams), default=Completion())


def _candidates(decoding: Decoding, width: int) -> int:
    """So many that `width` go on, though others end."""
    return width * (1 + len(decoding.stop_tokens) + (decoding.stopped is not None))


def _continued(
    going: Sequence[Completion], logits_BV: torch.Tensor, *, count: int, image_token: int
) -> list[tuple[int, int, float]]:
    """The likeliest texts one token longer, best first: which one they continue, with what, and how likely."""
    log_probability_BV = writable(logits_BV.log_softmax(-1), image_token)
    before_B1 = log_probability_BV.new_tensor([[one.log_probability] for one in going])
    whole = (log_probability_BV + before_B1).flatten()
    best, index = whole.topk(min(count, len(whole)))
    vocabulary = logits_BV.shape[1]
    pairs = zip(best.tolist(), index.tolist(), strict=True)
    return [(at // vocabulary, at % vocabulary, value) for value, at in pairs if value > -torch.inf]


def _score(one: Completion, beams: Beams) -> float:
    return one.log_probability / (len(one.tokens) + (one.reason == "token")) ** beams.length_power


def _settled(ended: Sequence[Completion], going: Sequence[Completion], beams: Beams) -> bool:
    if len(ended) < beams.width:
        return not going
    return not going or _score(ended[-1], beams) >= max(_score(one, beams) for one in going)


def _follow(cache: Cache, parents: Sequence[int], *, places: int) -> None:
    """Row i goes on from what was in row `parents[i]`."""
    if places and list(parents) != list(range(len(parents))):
        for x_BKLW in (*cache.keys, *cache.values):
            x_BKLW[: len(parents), :, :places] = x_BKLW[list(parents), :, :places]
