"""The parts of `gpu.py` that run a trained model: decoding, eight shots, the encoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gpu_figures import IMAGE, Figures, base_model, random_weights

from mm1.generate.engine import Engine
from mm1.generate.prefix_cache import PrefixCache
from mm1.generate.prompt import Features, Picture, Prompt
from mm1.generate.prompt_content import PromptContent
from mm1.generate.sampling import Decoding
from mm1.hf.decoder_config import decoder_config_to_hf
from mm1.hf.decoder_state import decoder_to_hf
from mm1.model.mllm import MLLM


def decode(figures: Figures) -> None:
    """Tokens a second at 1, 8 and 64 rows after a prompt, beside `transformers` with the same weights."""
    model, theirs = both(figures)
    prompt_tokens, tokens = (64, 8) if figures.tiny else (512, 48)
    for rows in (1, 8) if figures.tiny else (1, 8, 64):
        ids_BT = np.random.default_rng(0).integers(16, 4000, (rows, prompt_tokens))
        ours = decode_ours(figures, model, ids_BT, tokens)
        tokens_BT = torch.from_numpy(ids_BT).to(figures.device)
        inputs = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT)}
        one, many = (generate_seconds(figures, theirs, inputs, count) for count in (1, tokens))
        beside = (many - one) / (tokens - 1)
        name = f"decode, {rows} row{'s' if rows > 1 else ''}"
        figures.add(f"{name}: mm1", rows / ours, "tokens/s")
        figures.add(f"{name}: transformers", rows / beside, "tokens/s")
        figures.add(f"{name}: ratio", beside / ours)


def both(figures: Figures) -> tuple[MLLM, Any]:
    """The base with random weights in the type it is evaluated in, and its decoder in `transformers`."""
    import transformers

    dtype = torch.bfloat16 if figures.on_gpu else torch.float32
    config = base_model(figures.tiny)
    with torch.device(figures.device):
        model = random_weights(MLLM(config)).to(dtype)
        described = decoder_config_to_hf(config.decoder, max_positions=8192)
        described.pop("architectures")
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**described))
    theirs.load_state_dict(decoder_to_hf(model.decoder.state_dict(), model.decoder.config), strict=False)
    return model, theirs.to(dtype).eval()


def decode_ours(figures: Figures, model: MLLM, ids_BT: np.ndarray, tokens: int) -> float:
    """Seconds of mm1 for a token of every row: no draft tokens, the likeliest token read back each time."""
    rows = len(ids_BT)
    cache = PrefixCache(model, rows=rows, positions=ids_BT.shape[1] + tokens + 12)
    cache.admit([PromptContent.of(Prompt(tokens_T), model.config) for tokens_T in ids_BT.tolist()], range(rows))
    last = {row: [17] for row in range(rows)}

    def write() -> None:
        owners, logits_BTV = cache.step(last)
        for owner, token in zip(owners, logits_BTV[:, -1].argmax(-1).tolist(), strict=True):
            last[owner] = [token]

    return figures.seconds(write, rounds=tokens, warm=8)  # the fifth is recorded as a CUDA graph


@torch.inference_mode()
def generate_seconds(figures: Figures, theirs: Any, inputs: dict[str, torch.Tensor], tokens: int) -> float:
    return figures.seconds(lambda: generate(theirs, inputs, tokens), rounds=1, warm=1)


def generate(theirs: Any, inputs: dict[str, torch.Tensor], tokens: int) -> torch.Tensor:
    """So many tokens by `transformers`, greedy, none fewer."""
    return theirs.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )


def shots(figures: Figures) -> None:
    """Queries after the same eight shots, 20 tokens each, beside `transformers` one by one and eight at once."""
    model, theirs = both(figures)
    prompts = shot_prompts(model, queries=8 if figures.tiny else 64)

    def ours(some: Sequence[Prompt]) -> None:
        Engine(model, rows=32, features=Features(model)).generate(some, Decoding(max_tokens=20))

    @torch.inference_mode()
    def beside(some: Sequence[Prompt]) -> None:
        """Every query's nine pictures and all its positions anew, as most harnesses do."""
        pixels_NCYX = torch.stack([picture.pixels() for prompt in some for picture in prompt.images])
        tokens_BT = torch.tensor([prompt.tokens for prompt in some], device=figures.device)
        x_BTD = model.embed(tokens_BT, model.encode_images(pixels_NCYX.to(figures.device)))
        seen_BT = torch.ones(x_BTD.shape[:2], dtype=torch.int64, device=figures.device)
        generate(theirs, {"inputs_embeds": x_BTD, "attention_mask": seen_BT}, 20)

    each = figures.seconds(lambda: ours(prompts), rounds=1, warm=1) / len(prompts)
    figures.add("eight shots: mm1", each * 1e3, "ms a query")
    for count, name in ((1, "one by one"), (8, "eight at once")):
        seconds = figures.seconds(lambda: beside(prompts[:count]), rounds=2, warm=1) / count  # noqa: B023
        figures.add(f"eight shots: transformers, {name}", seconds * 1e3, "ms a query")
        figures.add(f"eight shots: ratio to {name}", seconds / each)


def shot_prompts(model: MLLM, *, queries: int) -> list[Prompt]:
    """Prompts of eight shots with a picture and 20 tokens each, the same in all, and a query's picture and 4 tokens."""
    random, size, image = np.random.default_rng(0), model.config.vision.image_size, model.config.connector.tokens
    pixels = [torch.from_numpy(x) for x in random.integers(0, 256, (8 + queries, 3, size, size), dtype=np.uint8)]
    pictures = [Picture(str(number), lambda x=x: x) for number, x in enumerate(pixels)]  # type: ignore[misc]
    texts = random.integers(16, 4000, (8 + queries, 20)).tolist()
    examples = [token for text in texts[:8] for token in [*[IMAGE] * image, *text]]
    return [
        Prompt([*examples, *[IMAGE] * image, *texts[number][:4]], [*pictures[:8], pictures[number]])
        for number in range(8, 8 + queries)
    ]


@torch.inference_mode()
def encoder(figures: Figures) -> None:
    """Images a second through encoder and connector, in the type of evaluation."""
    config = base_model(figures.tiny)
    with torch.device(figures.device):
        model = random_weights(MLLM(config)).to(torch.bfloat16 if figures.on_gpu else torch.float32)
    size, count = config.vision.image_size, 8 if figures.tiny else 64
    pixels_NCYX = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=figures.device)
    figures.add("encoder", count / figures.seconds(lambda: model.encode_images(pixels_NCYX)), "images/s")
