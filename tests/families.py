"""The table of docs/weights.md: each published family in and out, tried on tiny random models of `transformers`.

`python tests/families.py` makes the models, tries them and writes the table. `python tests/families.py VLLM_PYTHON`
asks vLLM too, by an interpreter that has it (docs/weights.md has the recipe); else its column stays. Families named
after it are tried alone, and the other rows stay.
"""

import base64
import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from test_video_models import PUBLISHED
from test_words import publish_llava
from with_vllm import ask_all

from mm1 import checkpoint
from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.data.chat_format import prompt
from mm1.data.encode import encode
from mm1.data.tiles import TileSpec, tile_spec
from mm1.document import Document, Image, Text
from mm1.exchange.description import positions_of
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.generate.sampling import Decoding
from mm1.generate.writer import Writer
from mm1.model.mllm import MLLM

PAGE = Path(__file__).parents[1] / "docs/weights.md"
BEGIN, END = "<!-- families: python tests/families.py writes this table -->", "<!-- end of families -->"
NOT_RUN = "not run"
LIMIT = 1e-5
"""The largest difference of two logits or features that counts as none."""


@dataclass(frozen=True)
class Row:
    """One family: the class its export has, and what holds; `-` where a family has no such thing."""

    family: str
    exported: str
    same_in: bool  # logits, or features of an encoder, of the import and of theirs
    same_out: bool  # of the export, opened by `transformers`, and of the import
    around: bool  # an export of an import of the export has the same files, byte for byte
    text: bool | str  # greedy text
    chat: bool | str  # the tokens of a conversation
    vllm: bool | str = NOT_RUN  # greedy text of vLLM with the export

    def cells(self) -> list[str]:
        words = {True: "yes", False: "no"}
        held = [
            words.get(value, value)
            for value in (self.same_in, self.same_out, self.around, self.text, self.chat, self.vllm)
        ]
        return [self.family, f"`{self.exported}`", *held]


SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
# vLLM takes no heads that are thinner than 32
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 480, "max_position_embeddings": 512, "head_dim": 32}
SHAPE |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 3.0] * 4,
    "long_factor": [9.0] * 12,
}
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

EAGER = "eager"
"""Attention of language models: transformers 5.20 caps Gemma 2's scores only there."""


def language(name: str, folder: Path) -> Row:
    """The row of a language model."""
    family, settings = LANGUAGE[name]
    theirs = _random(
        lambda: transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(family, **SHAPE | settings), attn_implementation=EAGER
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
    exported = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "out", attn_implementation=EAGER, trust_remote_code=True
    ).eval()
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
    _ask_later(folder, Question(ids, answer.tolist()), max_positions=256)
    same_chat = again.apply_chat_template([{"role": "user", "content": "who?"}], add_generation_prompt=True)
    return Row(
        name,
        type(exported).__name__,
        _same(ours[..., : expected.shape[-1]], expected),
        _same(written, ours),
        _goes_around(folder),
        said == tokenizer.decode(answer, skip_special_tokens=True),
        chat == ids == same_chat["input_ids"],
    )


@dataclass(frozen=True)
class Question:
    """What vLLM is asked about an export, and what the published model answers."""

    tokens: list[int]  # a picture is one image token
    answer: list[int]
    pictures: tuple[bytes, ...] = ()
    suppressed: tuple[int, ...] = ()


def _ask_later(folder: Path, question: Question, *, max_positions: int) -> None:
    """Write the question about the export in `folder` to where `in_vllm` finds it."""
    pictures = [base64.b64encode(data).decode() for data in question.pictures]
    limits = {"max_positions": max_positions, "max_tokens": len(question.answer), "ends": []}
    prompts = {"prompts": [{"tokens": question.tokens, "pictures": pictures}], "suppressed": question.suppressed}
    (folder / "question.json").write_text(json.dumps(prompts | limits | {"answer": question.answer}))


def in_vllm(python: str, folder: Path, names: list[str]) -> dict[str, bool | str]:
    """Whether vLLM goes on as they do, by family; `fails` if it can't load the export."""
    models = {name: [folder / name / file for file in ("out", "question.json", "answer.json")] for name in names}
    ask_all(python, [(export, question, answer) for export, question, answer in models.values()], folder)
    cells: dict[str, bool | str] = {}
    for name, (_, question, answer) in models.items():
        cells[name] = "fails"
        if answer.is_file():
            (said,), expected = json.loads(answer.read_text())["answers"], json.loads(question.read_text())["answer"]
            cells[name] = said["tokens"] == expected
            if said["tokens"] != expected:
                print(f"{name}: {expected} in transformers, {said['tokens']} in vLLM, whose prompt is {said['prompt']}")
    return cells


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
    return Row(
        name, type(exported).__name__, _same(ours, expected), _same(written, ours), _goes_around(folder), "-", "-", "-"
    )


def llava(name: str, folder: Path) -> Row:
    """The row of LLaVA-1.5, for an image of the encoder's size."""
    return multimodal(name, folder, *publish_llava(folder / "theirs"), canvas=picture(24, 24))


def tiled(name: str, folder: Path) -> Row:
    """The row of a model with tiles, for a tall picture."""
    return multimodal(name, folder, *publish(MODELS[name], folder / "theirs"), canvas=picture(31, 90))


def with_videos(name: str, folder: Path) -> Row:
    """The row of a model that takes videos too, for a tall picture."""
    return multimodal(name, folder, *PUBLISHED[name](folder / "theirs"), canvas=picture(31, 90))


def multimodal(name: str, folder: Path, theirs, processor, *, canvas: Canvas.Image) -> Row:
    """The row of a multimodal model, with our pixels on both sides, which are theirs up to rounding."""
    loaded = load_for_use(import_model(str(folder / "theirs"), folder / "ours").folder)
    export_run(folder / "ours", folder / "out")
    exported = transformers.AutoModelForImageTextToText.from_pretrained(folder / "out", trust_remote_code=True).eval()
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    document = Document((Image(file.getvalue()), Text("what is it?")))
    their_inputs = processor(images=canvas, text="<image>what is it?", return_tensors="pt")
    is_flat = their_inputs["pixel_values"].ndim == 4  # the tiles of all pictures together
    inputs = dict(their_inputs)
    if is_flat:
        inputs["pixel_values"] = inputs["pixel_values"][None]
    inputs, pixels_NCYX, encoded = with_our_pixels(inputs, document, loaded)
    if is_flat:
        inputs["pixel_values"] = inputs["pixel_values"][0]
    with torch.no_grad():
        ours, expected = our_logits(loaded, pixels_NCYX, encoded), theirs(**inputs)
        written = exported(**_inputs_of_export(folder / "out", canvas, loaded, inputs))
    width = min(ours.shape[-1], expected.logits.shape[-1], written.logits.shape[-1])
    writer = Writer(loaded.model, loaded.tokenizer, rows=1)
    (said,) = writer.engine.generate([writer._prompts.prompt(encoded)], Decoding(max_tokens=16))
    options = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE]}
    answer, seen_answer = (
        theirs.generate(**batch, max_new_tokens=16, **options)[0, len(encoded.tokens) :].tolist()
        for batch in (inputs, inputs if _has_own_processor(folder / "out") else their_inputs)
    )
    one = encode(document, loaded.tokenizer, tile=TileSpec(loaded.run.model.vision.image_size, 1), end=False)
    question = Question(one.tokens.tolist(), seen_answer, (file.getvalue(),), (IMAGE,))
    _ask_later(folder, question, max_positions=positions_of(loaded.run))
    return Row(
        name,
        type(exported).__name__,
        _same(ours[..., :width], expected.logits[..., :width]),
        _same(written.logits[..., :width], ours[..., :width]),
        _goes_around(folder),
        said.tokens == answer,
        _same_chat(processor, loaded) if getattr(processor, "chat_template", None) else "-",
    )


def _inputs_of_export(folder: Path, canvas: Canvas.Image, loaded, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` as they are for a class of `transformers`; those of the export's processor for mm1's own."""
    if not _has_own_processor(folder):
        return inputs
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    return processor(images=canvas, text=f"{loaded.tokenizer.spelling('image')}what is it?", return_tensors="pt")


def _has_own_processor(export: Path) -> bool:
    """Whether an export makes pixels with mm1's own module."""
    return (export / "processing_mm1.py").is_file()


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


def _goes_around(folder: Path) -> bool:
    import_model(str(folder / "out"), folder / "back")
    export_run(folder / "back", folder / "again")
    first, second = (
        {path.name: path.read_bytes() for path in (folder / name).iterdir() if path.is_file()}
        for name in ("out", "again")
    )
    return first == second


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(torch.allclose(ours, theirs, atol=LIMIT, rtol=LIMIT))


TRIED: dict[str, Callable[[str, Path], Row]] = {
    **dict.fromkeys(LANGUAGE, language),
    **dict.fromkeys(ENCODERS, encoder),
    "LLaVA-1.5": llava,
    **dict.fromkeys(MODELS, tiled),
    **dict.fromkeys(("InternVL3", "LLaVA-OneVision"), with_videos),
}


def row(name: str, folder: Path | None = None) -> Row:
    """The row of a family, tried now; in a folder that stays if it is given."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return row(name, Path(temporary))
    tried = TRIED[name](name, folder)
    return replace(tried, vllm=recorded(name)) if tried.vllm == NOT_RUN else tried


def recorded(name: str) -> str:
    """What the page says of a family in vLLM."""
    cells = line_of(name).strip("| ").split(" | ")
    return cells[-1] if len(cells) == len(HEAD) else NOT_RUN


def line_of(name: str) -> str:
    """The row of a family on the page; empty if it has none."""
    return next((line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |")), "")


HEAD = ["family", "export is a", "import: same logits", "export: same logits", "export again: same files"]
HEAD += ["same greedy text", "same chat", "vLLM"]


def line(cells: list[str]) -> str:
    """A row in Markdown."""
    return "| " + " | ".join(cells) + " |"


def write_table(vllm: str | None, names: list[str]) -> None:
    """Try the families named, with vLLM's interpreter if there is one, and write their rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, Path(folder) / name) for name in names]
        writers = [one.family for one in rows if one.vllm != "-"]  # no encoder alone
        cells = in_vllm(vllm, Path(folder), writers) if vllm else {}
    tried = {one.family: line(replace(one, vllm=cells.get(one.family, one.vllm)).cells()) for one in rows}
    lines = [line(HEAD), line(["---"] * len(HEAD)), *(tried.get(name) or line_of(name) for name in TRIED)]
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"]))


if __name__ == "__main__":
    vllm, *names = sys.argv[1:] or [None]
    write_table(vllm, names or [*TRIED])
