"""A model of mm1 under lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval).

`--model mm1 --model_args run=FOLDER` finds it by the entry point in pyproject.toml. Its requests become the same
Documents as in our harness.
"""

import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api import instance
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image as Pillow

from mm1 import dist
from mm1.checkpoint import load_for_use
from mm1.data import chat_format as chat
from mm1.document import Document, Image, Piece, Text
from mm1.eval.model import Request
from mm1.eval.models import Ours, model_name


def manifest() -> ModelManifest:
    """The entry for `MM1` in lmms-eval's registry."""
    return ModelManifest(model_id="mm1", simple_class_path="mm1.eval.lmms_plugin.MM1")


def smallest_wins() -> bool:
    """Whether the installed lmms-eval takes the choice with the smallest value, as 0.7 does, or the largest."""
    return "argmin" in inspect.getsource(ConfigurableTask.process_results)


class MM1(lmms):
    """A run's newest checkpoint as a model of lmms-eval.

    `form` is chat for fine-tuned runs (the request is a turn of the user), or plain (a text to continue).
    """

    is_simple = True

    def __init__(self, run: str, form: str = "chat", batch_size: int | str = 32, device: str = "", **rest: Any):
        super().__init__()
        if rest or form not in ("chat", "plain"):
            raise ValueError(f"mm1 takes run=FOLDER and form=chat or form=plain; found form={form}, {rest}")
        loaded = load_for_use(Path(run))
        self.form = form
        self.ours = Ours(loaded.model, loaded.tokenizer, name=model_name(loaded), rows=int(batch_size))
        self._rank, self._world_size = dist.rank(), dist.world()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text generated for each request, in their order; greedily, whatever temperature is requested."""
        return [reply.text.strip() for reply in self.ours.generate([self._request(request) for request in requests])]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Log-likelihood of each request's target after its prompt, in nats, and `greedy`, which is always False.

        Where lmms-eval takes the choice with the smallest value, the value is the loss in nats per token, as its own
        models return it. The space between prompt and target is set by the form of the run, not by the task.
        """
        ranked = []
        for request in requests:
            context, target, visuals, number, task, split = request.args
            doc = self.task_dict[task][split][number]
            answer = target(doc) if callable(target) else target
            ranked.append(Request(self._document(context, visuals(doc)), choices=(answer.strip(),)))
        nats_per_token = [nats for (nats,) in self.ours.loglikelihoods(ranked)]
        if smallest_wins():
            return [_whole((-nats, False)) for nats in nats_per_token]
        tokens = [len(self.ours.tokenizer.encode(one.continued_by(one.choices[0]))) for one in ranked]
        return [_whole((nats * count, False)) for nats, count in zip(nats_per_token, tokens, strict=True)]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mm1 answers single rounds; choose a task of one round")

    def _request(self, request: Any) -> Request:
        context, options, visuals, number, task, split = request.args
        until = options.get("until") or ()
        return Request(
            self._document(context, visuals(self.task_dict[task][split][number])),
            stops=(until,) if isinstance(until, str) else tuple(until),
            max_tokens=int(options.get("max_new_tokens", 128)),
        )

    def _document(self, context: str, visuals: Sequence[Pillow.Image] | None) -> Document:
        pieces: list[Piece] = [Image(_png(picture)) for picture in visuals or ()]
        pieces.append(Text(context, train=False))
        return chat.prompt(pieces) if self.form == "chat" else Document(tuple(pieces))


def _whole(likelihood: tuple[float, bool]) -> Any:
    """`likelihood` as the installed lmms-eval takes it: 0.7.3 makes a text of a pair, but not of a result's content.

    Source: `unwrap_generation_output` of https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/api/instance.py.
    """
    result = getattr(instance, "GenerationResult", None)
    return likelihood if result is None else result(likelihood)


def _png(picture: Pillow.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, format="PNG")
    return file.getvalue()
