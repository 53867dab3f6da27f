"""A model of mm1 under lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval).

`--model mm1 --model_args run=FOLDER` finds it by the entry point in pyproject.toml. Its requests become the same
Documents that our harness asks.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image as Pillow

from mm1 import dist
from mm1.checkpoint import load_for_use
from mm1.data import chat
from mm1.document import Document, Image, Piece, Text
from mm1.eval.models import Ours, name_of


def manifest() -> ModelManifest:
    """How lmms-eval's registry learns of `MM1`."""
    return ModelManifest(model_id="mm1", simple_class_path="mm1.eval.lmms_plugin.MM1")


class MM1(lmms):
    """A run's newest checkpoint as one of lmms-eval's models.

    `form` is chat for fine-tuned runs (the request is a turn of the user) or plain (a text to continue).
    """

    is_simple = True

    def __init__(self, run: str, form: str = "chat", batch_size: int | str = 32, device: str = "", **rest: Any):
        super().__init__()
        if rest or form not in ("chat", "plain"):
            raise ValueError(f"mm1 takes run=FOLDER and form=chat or form=plain; found form={form}, {rest}")
        loaded = load_for_use(Path(run))
        self.form = form
        self.ours = Ours(loaded.model, loaded.tokenizer, name=name_of(loaded), rows=int(batch_size))
        self._rank, self._world_size = dist.rank(), dist.world()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the model writes for each request, in their order; greedily, whatever temperature is asked."""
        written = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            options = request.args[1]
            until = options.get("until") or ()
            stops = (until,) if isinstance(until, str) else tuple(until)
            groups.setdefault((stops, int(options.get("max_new_tokens", 128))), []).append(place)
        for (stops, longest), places in groups.items():
            prompts = [self._prompt(requests[place]) for place in places]
            texts = self.ours.write(prompts, stops=stops, longest=longest, done=lambda count: None)
            for place, text in zip(places, texts, strict=True):
                written[place] = text.strip()
        return written

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Nats of each request's target behind its prompt; lmms-eval compares these, `greedy` is left False."""
        found = []
        for request in requests:
            context, target, visuals, number, task, split = request.args
            doc = self.task_dict[task][split][number]
            answer = target(doc) if callable(target) else target
            prompt = self._document(context, visuals(doc))
            nats = self.ours.likelihoods([prompt], choices=[[answer]], done=lambda count: None)[0][0]
            lead = "" if self.form == "chat" else " "
            found.append((nats * len(self.ours.tokenizer.encode(lead + answer)), False))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mm1 answers single rounds; choose a task of one round")

    def _prompt(self, request: Any) -> Document:
        context, _, visuals, number, task, split = request.args
        return self._document(context, visuals(self.task_dict[task][split][number]))

    def _document(self, context: str, visuals: Sequence[Pillow.Image] | None) -> Document:
        pieces: list[Piece] = [Image(_png(picture)) for picture in visuals or ()]
        pieces.append(Text(context, train=False))
        return chat.prompt(pieces) if self.form == "chat" else Document(tuple(pieces))


def _png(picture: Pillow.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, format="PNG")
    return file.getvalue()
