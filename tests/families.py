"""The table of docs/weights.md: each published family in and out, tried on tiny random models of `transformers`.

`python tests/families.py` makes the models, tries them and writes the table.
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image as Canvas
from test_gguf_tokenizers import PRETOKENIZE_REGEX, byte_level
from test_parity_vision import FAMILIES as ENCODERS
from test_parity_vision import build as build_encoder
from test_parity_vision import images, pixels, their_features
from test_published_text import ZEPHYR
from test_tiled_models import IMAGE, MODELS, our_logits, picture, publish, with_our_pixels
from test_words import publish_llava

from mm1 import checkpoint
from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.data.chat_format import prompt
from mm1.data.encode import encode
from mm1.data.tiles import TileSpec, tile_spec
from mm1.document import Document, Image, Text
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.generate.sampling import Decoding
from mm1.generate.writer import Writer
from mm1.model.mllm import MLLM

PAGE = Path(__file__).parents[1] / "docs/weights.md"
BEGIN, END = "<!-- families: python tests/families.py writes this table -->", "<!-- end of families -->"
LIMIT = 1e-5
"""The largest difference of two logits or features that counts as none."""


@dataclass(frozen=True)
class Row:
    """One family: the class its export has, and what holds; `-` where a family has no such thing."""

    family: str
    exported: str
    same_in: bool  # logits, or features of an encoder, of the import and of theirs
    same_out: bool  # of the export, opened by `transformers`, and of the import
    text: bool | str  # greedy text
    chat: bool | str  # the tokens of a conversation

    def cells(self) -> list[str]:
        words = {True: "yes", False: "no"}
        held = [words.get(value, value) for value in (self.same_in, self.same_out, self.text, self.chat)]
        return [self.family, f"`{self.exported}`", *held]


SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 480, "max_position_embeddings": 512, "head_dim": 8}
SHAPE |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LONGROPE: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 3.0], "long_factor": [1.0, 4.0, 9.0]}
LONGROPE |= {"rope_theta": 1e4, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 512}
LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama, SmolLM2": ("llama", {"tie_word_embeddings": True}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral, window": ("mistral", {"sliding_window": 6}),
    "Phi-3": ("phi3", {"sliding_window": 6}),
    "Phi-4-mini": ("phi3", {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, "num_hidden_layers": 2}),
    "Gemma 2": (
        "gemma2",
        {
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 2.0,
        },
    ),
    "Gemma 3, text": ("gemma3_text", {"sliding_window": 6, "query_pre_attn_scalar": 24, "num_hidden_layers": 7}),
    "Mixtral": ("mixtral", EXPERTS),
    "Qwen2, Qwen2.5": ("qwen2", {}),
    "Qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS | {"moe_intermediate_size": 24, "norm_topk_prob": True}),
    "OLMo 2": ("olmo2", {}),
    "OLMoE": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "SmolLM3": ("smollm3", {"num_hidden_layers": 5}),
}


def language(name: str, folder: Path) -> Row:
    """The row of a language model."""
    family, settings = LANGUAGE[name]
    theirs = _random(
        lambda: transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(family, **SHAPE | settings)
        )
    )
    theirs.save_pretrained(folder / "theirs")
    words = byte_level(PRETOKENIZE_REGEX)  # Qwen2's, since transformers splits text so for every Qwen2
    words.add_special_tokens(["<s>", "</s>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", chat_template=ZEPHYR
    )
    tokenizer.save_pretrained(folder / "theirs")
    loaded = load_for_use(import_model(str(folder / "theirs"), folder / "ours").folder)
    export_run(folder / "ours", folder / "out")
    exported = transformers.AutoModelForCausalLM.from_pretrained(folder / "out", trust_remote_code=True).eval()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "who?"}], add_generation_prompt=True)["input_ids"]
    again = transformers.AutoTokenizer.from_pretrained(folder / "out")
    chat = encode(prompt([Text("who?")]), loaded.tokenizer, tile=TileSpec(16, 4), end=False).tokens.tolist()
    tokens_BT = torch.tensor([ids])
    decoder = loaded.model.decoder
    with torch.no_grad():
        ours = decoder.logits(decoder(decoder.embed(tokens_BT), torch.arange(len(ids))[None]))
        expected, written = theirs(tokens_BT).logits, exported(tokens_BT).logits
    (said,) = Writer(loaded.model, loaded.tokenizer, rows=1).write([prompt([Text("who?")])], max_tokens=16)
    answer = theirs.generate(tokens_BT, max_new_tokens=16, do_sample=False)[0, len(ids) :]
    same_chat = again.apply_chat_template([{"role": "user", "content": "who?"}], add_generation_prompt=True)
    return Row(
        name,
        type(exported).__name__,
        _same(ours[..., : expected.shape[-1]], expected),
        _same(written, ours),
        said == tokenizer.decode(answer, skip_special_tokens=True),
        chat == ids == same_chat["input_ids"],
    )


def encoder(name: str, folder: Path) -> Row:
    """The row of an image encoder: features after the last norm."""
    theirs = build_encoder(name)
    theirs.save_pretrained(folder / "theirs")
    run = config.load(import_model(str(folder / "theirs"), folder / "ours").folder / "config.json")
    model = MLLM(run.model)
    checkpoint.load_part(folder / "ours", model, "vision")
    export_run(folder / "ours", folder / "out")
    exported = transformers.AutoModel.from_pretrained(folder / "out").eval()
    exported = getattr(exported, "vision_model", exported)
    pictures = images(24)
    with torch.no_grad():
        ours = model.vision(pictures)
        expected, written = (their_features(one, pixels(pictures, run.model.vision))[-1] for one in (theirs, exported))
    return Row(name, type(exported).__name__, _same(ours, expected), _same(written, ours), "-", "-")


def llava(name: str, folder: Path) -> Row:
    """The row of LLaVA-1.5, for an image of the encoder's size."""
    return multimodal(name, folder, *publish_llava(folder / "theirs"), canvas=picture(24, 24))


def tiled(name: str, folder: Path) -> Row:
    """The row of a model with tiles, for a tall picture."""
    return multimodal(name, folder, *publish(MODELS[name], folder / "theirs"), canvas=picture(31, 90))


def multimodal(name: str, folder: Path, theirs, processor, *, canvas: Canvas.Image) -> Row:
    """The row of a multimodal model, with our pixels on both sides, which are theirs up to rounding."""
    loaded = load_for_use(import_model(str(folder / "theirs"), folder / "ours").folder)
    export_run(folder / "ours", folder / "out")
    exported = transformers.AutoModelForImageTextToText.from_pretrained(folder / "out").eval()
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    document = Document((Image(file.getvalue()), Text("what is it?")))
    inputs = processor(images=canvas, text="<image>what is it?", return_tensors="pt")
    is_one_tile = inputs["pixel_values"].ndim == 4
    if is_one_tile:
        inputs["pixel_values"] = inputs["pixel_values"][None]
    inputs, pixels_NCYX, encoded = with_our_pixels(inputs, document, loaded)
    if is_one_tile:
        inputs["pixel_values"] = inputs["pixel_values"][0]
    with torch.no_grad():
        ours, expected, written = our_logits(loaded, pixels_NCYX, encoded), theirs(**inputs), exported(**inputs)
    width = min(ours.shape[-1], expected.logits.shape[-1], written.logits.shape[-1])
    writer = Writer(loaded.model, loaded.tokenizer, rows=1)
    (said,) = writer.engine.generate([writer._prompts.prompt(encoded)], Decoding(max_tokens=16))
    options = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE]}
    answer = theirs.generate(**inputs, max_new_tokens=16, **options)[0, len(encoded.tokens) :]
    return Row(
        name,
        type(exported).__name__,
        _same(ours[..., :width], expected.logits[..., :width]),
        _same(written.logits[..., :width], ours[..., :width]),
        said.tokens == answer.tolist(),
        _same_chat(processor, loaded) if getattr(processor, "chat_template", None) else "-",
    )


def _same_chat(processor, loaded) -> bool:
    messages = [{"role": "user", "content": [{"type": "text", "text": "who?"}]}]
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    tile = tile_spec(loaded.model.config, use=True)
    ours = encode(prompt([Text("who?")]), loaded.tokenizer, tile=tile, end=False).tokens.tolist()
    return ours == torch.as_tensor(ids["input_ids"]).flatten().tolist()


def _random(build: Callable[[], Any]):
    """A model with every parameter away from its neutral start."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(torch.allclose(ours, theirs, atol=LIMIT, rtol=LIMIT))


TRIED: dict[str, Callable[[str, Path], Row]] = {
    **dict.fromkeys(LANGUAGE, language),
    **dict.fromkeys(ENCODERS, encoder),
    "LLaVA-1.5": llava,
    **dict.fromkeys(MODELS, tiled),
}


def row(name: str) -> Row:
    """The row of a family, tried now."""
    with tempfile.TemporaryDirectory() as folder:
        return TRIED[name](name, Path(folder))


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    head = ["family", "export is a", "import: same logits", "export: same logits", "same greedy text", "same chat"]
    lines = [head, ["---"] * len(head), *(one.cells() for one in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    lines = table([row(name) for name in TRIED])
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}")
