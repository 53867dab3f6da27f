"""Beam search: the likeliest whole texts, where greedy decoding takes the likeliest token at each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mm1.generate.prefix_cache import Prefix, prefill, prefill_prefix
from mm1.generate.prefix_index import MIN_SHARED
from mm1.generate.prompt import Features, Prompt
from mm1.generate.prompt_content import PromptContent, common_prefix
from mm1.generate.request import Completion
from mm1.generate.sampling import Decoding, without_image_token
from mm1.model.cache import Cache
from mm1.model.mllm import MLLM


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """How to search, with `width` texts at a time.

    Of `decoding` only `max_tokens`, `stop_tokens` and `stopped` count. A text's score is its log-probability /
    tokens ** `length_power`, the end token counted: 0 prefers short texts, 1 is the mean of a token (Wu et al., arXiv
    1609.08144, without their constant 5, as in `transformers`).
    """

    decoding: Decoding
    width: int = 3
    length_power: float = 1.0

    def score(self, completion: Completion) -> float:
        """The score by which completions are compared."""
        length = len(completion.tokens) + (completion.reason == "token")
        return completion.log_probability / length**self.length_power

    @property
    def candidates(self) -> int:
        """So many that `width` of them continue, even if all others end."""
        return self.width * (1 + len(self.decoding.stop_tokens) + (self.decoding.stopped is not None))


def search_all(
    model: MLLM,
    prompts: Sequence[Prompt],
    *,
    how: BeamSearch,
    features: Features | None = None,
    done: Callable[[int, Completion], None] = lambda number, completion: None,
) -> list[Completion]:
    """The best completion of each prompt; what all prompts begin with is computed once.

    `done` is called with the number and the completion of each prompt that is finished.
    """
    if not prompts:
        return []
    features = features or Features(model)
    contents = [PromptContent.of(prompt, model.config) for prompt in prompts]
    # the last position's logits are needed
    shared = min(common_prefix(contents[0].content, other.content[:-1]) for other in contents)
    prefixes: list[Prefix] = []
    if shared >= MIN_SHARED and len(prompts) > 1:
        prefixes = [prefill_prefix(model, contents[0], length=shared, features=features)]
    completions = []
    for number, prompt in enumerate(prompts):
        completions.append(search(model, prompt, how=how, features=features, prefixes=prefixes))
        done(number, completions[-1])
    return completions


@torch.inference_mode()
def search(
    model: MLLM,
    prompt: Prompt,
    *,
    how: BeamSearch,
    features: Features | None = None,
    prefixes: Sequence[Prefix] = (),
) -> Completion:
    """The best completion of a prompt. The prompt's keys and values are held once for all beams.

    The search ends when no beam can become better than the `width` best finished texts at its present length.

    Raises:
        ValueError: the images don't fit the image tokens.
    """
    features = features or Features(model)
    segment, logits_V = prefill(model, prompt, features=features, prefixes=prefixes)
    shared = [*(prefix.segment for prefix in prefixes), segment]
    start = sum(one.length for one in shared)
    max_tokens, weight = how.decoding.max_tokens, model.decoder.embedding.weight
    cache = Cache.empty(model.decoder.config, rows=how.width, length=max_tokens, like=weight, shared=shared)
    finished: list[Completion] = []
    beams = [Completion()]
    logits_BV = logits_V[None]
    for length in range(1, max_tokens + 1):
        beams, parents, ended = _extend(beams, logits_BV, how=how, image_token=model.config.image_token)
        finished = sorted([*finished, *ended], key=how.score, reverse=True)[: how.width]
        if length == max_tokens or not beams or _settled(finished, beams, how):
            break
        device = logits_BV.device
        _reorder(cache, parents, positions=length - 1)
        tokens_B1 = torch.tensor([beam.tokens[-1:] for beam in beams], device=device)
        position_B1 = torch.full_like(tokens_B1, start + length - 1)
        view = cache.view(slice(0, len(beams)), length)
        hidden_B1D = model.decoder(model.decoder.embed(tokens_B1), position_B1, cache=view)
        logits_BV = model.decoder.logits(hidden_B1D[:, 0]).float()
    return max([*finished, *beams], key=how.score, default=Completion())


def _extend(
    beams: Sequence[Completion], logits_BV: torch.Tensor, *, how: BeamSearch, image_token: int
) -> tuple[list[Completion], list[int], list[Completion]]:
    """The next beams, the number of the beam that each continues, and the texts that end."""
    parents: list[int] = []
    extended: list[Completion] = []
    ended: list[Completion] = []
    for parent, token, log_probability in _likeliest(beams, logits_BV, count=how.candidates, image_token=image_token):
        tokens = beams[parent].tokens
        if token in how.decoding.stop_tokens:
            # a text that is not among the `width` likeliest of its length is dropped, finished or not
            if len(extended) < how.width:
                ended.append(Completion(list(tokens), log_probability, "token"))
        elif len(extended) < how.width:
            longer = Completion([*tokens, token], log_probability)
            if how.decoding.stopped is not None and how.decoding.stopped(longer.tokens):
                longer.reason = "text"
                ended.append(longer)
            else:
                extended.append(longer)
                parents.append(parent)
    return extended, parents, ended


def _likeliest(
    beams: Sequence[Completion], logits_BV: torch.Tensor, *, count: int, image_token: int
) -> list[tuple[int, int, float]]:
    """The likeliest texts with one more token, best first: (beam, token, log-probability of the text)."""
    log_probability_BV = without_image_token(logits_BV.log_softmax(-1), image_token)
    before_B1 = log_probability_BV.new_tensor([[beam.log_probability] for beam in beams])
    total = (log_probability_BV + before_B1).flatten()
    best, index = total.topk(min(count, len(total)))
    vocabulary = logits_BV.shape[1]
    pairs = zip(best.tolist(), index.tolist(), strict=True)
    return [(at // vocabulary, at % vocabulary, value) for value, at in pairs if value > -torch.inf]


def _settled(finished: Sequence[Completion], beams: Sequence[Completion], how: BeamSearch) -> bool:
    """Whether no beam beats the worst of `width` finished texts."""
    return len(finished) == how.width and how.score(finished[-1]) >= max(map(how.score, beams))


def _reorder(cache: Cache, parents: Sequence[int], *, positions: int) -> None:
    """Put what row `parents[i]` holds into row i."""
    if positions and list(parents) != list(range(len(parents))):
        for x_BKLW in (*cache.keys, *cache.values):
            x_BKLW[: len(parents), :, :positions] = x_BKLW[list(parents), :, :positions]
