"""An image-text-to-text model of `transformers`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mm1.data.chat_format import messages
from mm1.document import Document, Image, Mark
from mm1.eval.model import Done, Model, Ranked, Reply, Request, as_pillow, digest, ignore
from mm1.generate.writer import until
from mm1.hf.files import code


class HfModel(Model):
    """An image-text-to-text model of `transformers` from its folder, asked one prompt at a time."""

    def __init__(self, folder: Path):
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ValueError(f"hf: models need transformers ({error}); pip install 'mm1[hf]'") from error
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json; hf: takes the folder of a transformers model")
        if (folder / "checkpoints").is_dir():
            raise ValueError(f"{folder} is a run of mm1; give it without hf:")
        ours = code(tiles=True)
        theirs = {path.name: path.read_text() for path in folder.glob("*.py")}
        # our own code is trusted; before it runs other code, `transformers` asks the user
        trust = {"trust_remote_code": True} if theirs and theirs.items() <= ours.items() else {}
        try:
            self.processor = AutoProcessor.from_pretrained(folder, **trust)
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", **trust).eval()
        except (ValueError, OSError) as error:
            why = str(error).strip().splitlines()[0]
            raise ValueError(f"transformers opens {folder} as no model of images and text: {why}") from error
        if torch.cuda.is_available():
            self.model = self.model.to("cuda")
        self.folder = folder
        self.name = f"{folder.name}, weights {digest(sorted(folder.glob('*.safetensors')))}"

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], *, done: Done = ignore) -> list[Reply]:
        replies = []
        for number, request in enumerate(requests):
            inputs = self._inputs(request.prompt)
            options: dict[str, Any] = {"max_new_tokens": request.max_tokens, "num_beams": request.beams}
            if request.stops:
                options |= {"stop_strings": list(request.stops), "tokenizer": self.processor.tokenizer}
            tokens = self.model.generate(**inputs, do_sample=False, **options)
            text = self.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            replies.append(Reply(until(text, request.stops)))
            done(number, replies[-1])
        return replies

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

    def _inputs(self, prompt: Document) -> Any:
        pictures = [as_pillow(image) for image in prompt.images]
        add_special_tokens = True
        if any(isinstance(piece, Mark) for piece in prompt.pieces):
            if not self.processor.chat_template:
                raise ValueError(
                    f"{self.folder} has no chat template, but task {prompt.source} asks in chat form; "
                    "give --form plain, or another task"
                )
            text = self.processor.apply_chat_template(messages(prompt), add_generation_prompt=True, tokenize=False)
            begin = self.processor.tokenizer.bos_token
            # as in `apply_chat_template(tokenize=True)`
            add_special_tokens = not (begin and text.startswith(begin))
        else:
            token = self.processor.image_token
            text = "".join(token if isinstance(piece, Image) else piece.text for piece in prompt.pieces)  # type: ignore[union-attr]
        inputs = self.processor(
            text=[text], images=pictures or None, add_special_tokens=add_special_tokens, return_tensors="pt"
        )
        return inputs.to(self.model.device)
