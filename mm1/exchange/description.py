"""What a run's model is, in a few lines: for `mm1 import`, `mm1 show RUN --model` and the card of an export."""

import json
from pathlib import Path

import torch

from mm1.checkpoint import Weights
from mm1.config import run as config
from mm1.config.model import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from mm1.config.run import RunConfig
from mm1.data.recorded import RecordedText, recorded_text
from mm1.disk import write_whole
from mm1.model.mllm import MLLM
from mm1.objectives.index import generates_text

ORIGIN = "origin.json"
"""What `mm1 import` records in a run's folder: the published model, and what was left out of it."""

Lines = list[tuple[str, str]]


def record_origin(folder: Path, model: str, left_out: str) -> None:
    """Write from which published model the run in `folder` was imported, by its name without the path to it."""
    name = Path(model).name if Path(model).exists() else model
    write_whole(folder / ORIGIN, json.dumps({"model": name, "left_out": left_out}) + "\n")


def origin_of(folder: Path) -> dict[str, str]:
    """The `model` and `left_out` of an imported run; empty for other runs."""
    path = folder / ORIGIN
    return json.loads(path.read_text()) if path.is_file() else {}


def description(folder: Path) -> str:
    """What the model in a run's folder is: lines of a label and a text.

    Raises:
        ConfigError, CheckpointError: there is no run, or nothing is trained yet.
    """
    run = config.load(folder / "config.json")
    part = exported_part(folder, run, Weights(folder))
    text = None if part == "vision" else recorded_text(folder)
    origin = origin_of(folder)
    lines = [("from", origin["model"])] if origin else []
    lines += architecture(run.model, part)
    if text is not None:
        lines += _text_lines(text, positions_of(run))
    lines += [("left out", origin["left_out"])] if origin.get("left_out") else []
    return "\n".join(f"  {label + ':':15}{line}" for label, line in lines)


def exported_part(folder: Path, run: RunConfig, weights: Weights) -> str:
    """The part of a run that was trained, and that an export holds: `vision`, `decoder`, or `model` for the whole."""
    parts = {name.partition(".")[0] for name in weights.shapes}
    if not generates_text(run) or "decoder" not in parts:
        return "vision"
    return "model" if "vision" in parts and recorded_text(folder).images else "decoder"


def positions_of(run: RunConfig) -> int:
    """How many positions a text may have: as many as the run's sequences, or as the decoder it started from took."""
    return max(run.data.sequence_length, run.model.decoder.max_positions or 0)


def architecture(model: ModelConfig, part: str) -> Lines:
    """The shapes of a part of a model, or of the whole, with parameters."""
    with torch.device("meta"):
        whole = MLLM(model)
    lines: Lines = []
    if part in ("vision", "model"):
        lines.append(("image encoder", f"{_vision(model.vision)}, {_parameters(whole.vision)}"))
    if part == "model":
        lines.append(("connector", f"{_connector(model.connector)}, {_parameters(whole.connector)}"))
        if model.tiling.kind != "none":
            lines.append(("tiles", model.tiling.kind))
    if part in ("decoder", "model"):
        lines.append(("decoder", f"{_decoder(model.decoder)}, {_parameters(whole.decoder)}"))
    return lines


def _vision(vision: VisionConfig) -> str:
    return (
        f"ViT of {vision.layers} layers, width {vision.width}, {vision.image_size} x {vision.image_size} pixels in "
        f"patches of {vision.patch_size}"
    )


def _connector(connector: ConnectorConfig) -> str:
    return f"{connector.kind}, {connector.tokens} tokens an image"


def _decoder(decoder: DecoderConfig) -> str:
    heads = f"{decoder.heads} heads" + (f" ({decoder.kv_heads} of keys)" if decoder.kv_heads != decoder.heads else "")
    sparse = decoder.sparse
    experts = f", {sparse.experts} experts of which {sparse.top_k} are used" if sparse.experts else ""
    return f"{decoder.layers} layers, width {decoder.width}, {heads}{experts}, vocabulary {decoder.vocabulary:,}"


def _parameters(module: torch.nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {unit} parameters"
    return f"{count:,} parameters"


def _text_lines(text: RecordedText, positions: int) -> Lines:
    tokenizer = text.tokenizer
    others = len(tokenizer.ends) - 1
    ends = f"{tokenizer.spelling('end')}" + (f" or {others} other tokens" if others else "")
    forms = {
        "none": "none: it continues texts",
        "marks": "mm1's marks (data/chat_format.py)",
        "template": "its own template",
    }
    return [
        ("context", f"{positions:,} positions"),
        ("tokenizer", f"{tokenizer.vocabulary:,} tokens; an answer ends with {ends}"),
        ("chat form", forms[text.chat_format]),
    ]
