"""An image-text-to-text model of `transformers`."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mm1.data.chat_format import messages
from mm1.document import Document, Image, Mark
from mm1.eval.model import Done, Model, Ranked, Reply, Request, as_pillow, digest, ignore
from mm1.generate.writer import until
from mm1.hf.files import code

log = logging.getLogger("mm1")

_SENTINEL = "\u00a7"
"""A text that no chat template has."""


class HfModel(Model):
    """An image-text-to-text model of `transformers` from its folder; `rows` prompts are written side by side."""

    def __init__(self, folder: Path, *, rows: int = 8):
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ValueError(f"hf: models need transformers ({error}); pip install 'mm1[hf]'") from error
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json; hf: takes the folder of a transformers model")
        if (folder / "checkpoints").is_dir():
            raise ValueError(f"{folder} is a run of mm1; give it without hf:")
        ours = code(pictures=True)
        theirs = {path.name: path.read_text() for path in folder.glob("*.py")}
        # our own code is trusted; before it runs other code, `transformers` asks the user
        trust = {"trust_remote_code": True} if theirs and theirs.items() <= ours.items() else {}
        try:
            self.processor = AutoProcessor.from_pretrained(folder, **trust)
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", **trust).eval()
        except (ValueError, OSError, ImportError) as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"transformers opens {folder} as no model of images and text: {why}") from error
        if torch.cuda.is_available():
            self.model = self.model.to("cuda")
        self.folder, self.rows, self._tried = folder, rows, False
        images = self.processor.image_processor
        settings = ("image_grid_pinpoints", "do_image_splitting", "crop_to_patches")
        self.tiles = hasattr(self.processor, "tile") or any(getattr(images, name, None) for name in settings)
        self.name = f"{folder.name}, weights {digest(sorted(folder.glob('*.safetensors')))}"

    def generate(self, requests: Sequence[Request], *, done: Done = ignore) -> list[Reply]:
        """The replies; prompts of about one length are written side by side, if that changes nothing."""
        replies = [Reply("")] * len(requests)
        for numbers in self._batches(requests):
            for number, text in zip(numbers, self._written([requests[n] for n in numbers]), strict=True):
                replies[number] = Reply(until(text, requests[number].stops))
                done(number, replies[number])
        return replies

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """The numbers of requests that are answered together: decoded alike, and of about one length."""
        groups: dict[tuple, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            how = (request.stops, request.max_tokens, request.beams, bool(request.prompt.images))
            groups[how].append(number)
        batches = []
        for numbers in groups.values():
            by_length = sorted(numbers, key=lambda n: _size(requests[n].prompt))
            rows = self.rows if len(numbers) > 1 and self._can_batch([requests[n] for n in by_length]) else 1
            batches += [by_length[start : start + rows] for start in range(0, len(by_length), rows)]
        return batches

    def _can_batch(self, by_length: Sequence[Request]) -> bool:
        """Whether the shortest and the longest prompt, padded side by side, are continued as each by itself.

        Tried once per model. If not, a note says so, and prompts are asked one at a time.
        """
        if self.rows > 1 and not self._tried:
            self._tried = True
            pair = [by_length[0].prompt, by_length[-1].prompt]
            self._check_shown(pair)  # else a warning would say it too
            try:
                together, alone = self._first_logits(pair), torch.cat([self._first_logits([one]) for one in pair])
                bound = 1e-3 if together.dtype == torch.float32 else 0.1
                far = float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
                why = f"logits differ by {far:.2g} of the largest" if far > bound else ""
            except (ValueError, TypeError, IndexError, KeyError, RuntimeError, AttributeError) as error:
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if why:
                log.warning("%s is asked one prompt at a time: side by side with padding, %s", self.name, why)
                self.rows = 1
        return self.rows > 1

    @torch.inference_mode()
    def _first_logits(self, prompts: Sequence[Document]) -> torch.Tensor:
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        return self.model.generate(**self._inputs(*prompts), **options).logits[0]

    @torch.inference_mode()
    def _written(self, requests: Sequence[Request]) -> list[str]:
        """The text written after each prompt; all are decoded as the first."""
        first, inputs = requests[0], self._inputs(*(request.prompt for request in requests))
        options: dict[str, Any] = {"max_new_tokens": first.max_tokens, "num_beams": first.beams}
        if first.stops:
            options |= {"stop_strings": list(first.stops), "tokenizer": self.processor.tokenizer}
        tokens = self.model.generate(**inputs, do_sample=False, **options)
        written = tokens[:, inputs["input_ids"].shape[1] :]
        return [self.processor.tokenizer.decode(row, skip_special_tokens=True) for row in written]

    @torch.inference_mode()
    def loglikelihoods(self, requests: Sequence[Request], *, done: Ranked = ignore) -> list[list[float]]:
        nats = []
        for number, request in enumerate(requests):
            texts = [request.continued_by(choice) for choice in request.choices]
            nats.append([self._loglikelihood(request.prompt, text) for text in texts])
            done(number, nats[-1])
        return nats

    def _loglikelihood(self, prompt: Document, text: str) -> float:
        before = self._inputs(prompt)
        tokens = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        tokens = tokens.to(self.model.device)
        whole = dict(before) | {"input_ids": torch.cat([before["input_ids"], tokens], dim=1)}
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in before:
                filler = torch.full_like(tokens, int(name == "attention_mask"))
                whole[name] = torch.cat([before[name], filler], dim=1)
        logits = self.model(**whole).logits[0, -tokens.shape[1] - 1 : -1].float()
        return float(logits.log_softmax(-1).gather(-1, tokens[0, :, None]).mean())

    def prompt_tokens(self, prompt: Document) -> int:
        return int(self._inputs(prompt)["input_ids"].shape[1])

    def _inputs(self, *prompts: Document) -> Any:
        """What the model takes for these prompts, padded on the left to one length."""
        self._check_shown(prompts)
        texts, begins = zip(*(self._text(prompt) for prompt in prompts), strict=True)
        images = [[as_pillow(image) for image in prompt.images] for prompt in prompts]
        padding: dict[str, Any] = {}
        if len(prompts) > 1:
            tokenizer = self.processor.tokenizer
            tokenizer.padding_side, padding = "left", {"padding": True}
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        inputs = self.processor(
            text=list(texts),
            images=(images if len(prompts) > 1 else images[0]) if any(images) else None,
            add_special_tokens=not any(begins),
            return_tensors="pt",
            **padding,
        )
        return inputs.to(self.model.device)

    def _check_shown(self, prompts: Sequence[Document]) -> None:
        """Raise ValueError if a prompt shows overviews alone, which its processor doesn't make."""
        if self.tiles and any(image.in_tiles is False for prompt in prompts for image in prompt.images):
            raise ValueError(
                f"the processor of {self.folder} cuts every picture into tiles, so --subimage-shots can't show some as "
                "overviews; mm1 import makes it a run, which can"
            )

    def _text(self, prompt: Document) -> tuple[str, bool]:
        """The prompt as the processor takes it, and whether it has its begin token already."""
        if not any(isinstance(piece, Mark) for piece in prompt.pieces):
            marks, pieces = self._image_marks, prompt.pieces
            return "".join(marks if isinstance(piece, Image) else piece.text for piece in pieces), False  # type: ignore[union-attr]
        if not self.processor.chat_template:
            raise ValueError(
                f"{self.folder} has no chat template, but task {prompt.source} asks in chat form; "
                "give --form plain, or another task"
            )
        text = self.processor.apply_chat_template(messages(prompt), add_generation_prompt=True, tokenize=False)
        begin = self.processor.tokenizer.bos_token
        # as in `apply_chat_template(tokenize=True)`
        return text, bool(begin and text.startswith(begin))

    @cached_property
    def _image_marks(self) -> str:
        """What stands for an image in a text: its token, within the marks that the chat template puts around it."""
        token: str = self.processor.image_token
        if not self.processor.chat_template:
            return token

        def begin(*images: dict[str, str]) -> str:
            content = [*images, {"type": "text", "text": _SENTINEL}]
            turns = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(turns, tokenize=False)).partition(_SENTINEL)[0]

        without, shown = begin(), begin({"type": "image"})
        marks = shown.removeprefix(without).strip() if shown.startswith(without) else token
        return marks if marks.count(token) == 1 else token


def _size(prompt: Document) -> tuple[int, int]:
    return len(prompt.images), len(prompt.text)
