"""Published models, and exports of mm1's own, as runs: `mm1 import`."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mm1.checkpoint import save_weights
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import DecoderConfig, ModelConfig
from mm1.config.run import DataConfig, RunConfig
from mm1.data.chat_format import TEMPLATE
from mm1.data.recorded import TOKENIZER, record_text
from mm1.data.tokenizer import load_tokenizer
from mm1.exchange.description import record_origin
from mm1.exchange.model_card import FILE as CARD
from mm1.hf import encoder, own, unread
from mm1.hf.decoder_state import decoder_from_hf, with_own_head
from mm1.hf.families import FAMILIES
from mm1.hf.language import Language, downloaded, read_language, with_words
from mm1.hf.layouts import vision_from_hf
from mm1.hf.shards import State
from mm1.hf.vocabulary import Words, read_words
from mm1.hf.weight_files import tensors_of
from mm1.model.mllm import MLLM
from mm1.tiling import KINDS


@dataclass(frozen=True, slots=True)
class Imported:
    """The folder of a run of step 0, and what is left out of the published model."""

    folder: Path
    left_out: str = ""


def import_model(name: str, folder: Path, *, tokenizer: Path | None = None) -> Imported:
    """Make `folder` a run with the weights of a published model: a folder, a .gguf file or a name on the hub.

    The `config.json` names the folder in `start_from`. So training it further needs only sources, and other runs may
    start from a part of it. `tokenizer` is a folder whose tokenizer replaces a language model's own.

    Raises:
        ConfigError: the folder holds a run already.
        ValueError: there is no such model, or ours can't compute it.
    """
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} holds a run already; use another --to folder, or remove this one")
    if (Path(name) / "checkpoints").is_dir():
        raise ConfigError(f"{name} is a run already; mm1 export writes it for transformers")
    imported = _import(name, folder, tokenizer)
    record_origin(folder, name, imported.left_out)
    return imported


def _import(name: str, folder: Path, tokenizer: Path | None) -> Imported:
    theirs = _config_of(name)
    kind = theirs.get("model_type", "")
    if "mm1" in theirs:
        return _import_export(_folder_of(name), theirs, folder)
    if kind in FAMILIES:
        return _import_multimodal(_folder_of(name), theirs, folder)
    if theirs.get("vision_config") or encoder.is_encoder(theirs):
        vision, state = encoder.read_encoder(name)
        weights = {f"vision.{leaf}": x for leaf, x in state.items()}
        _write(folder, "vision", weights, model=ModelConfig(vision=vision), data=DataConfig())
        return Imported(folder, unread.left_out(theirs))
    language = read_language(name, tokenizer=tokenizer)
    weights = {f"decoder.{leaf}": x for leaf, x in language.weights.items()}
    model = ModelConfig(decoder=language.config)
    # text alone, unless a run says otherwise: then its chat template, which mostly takes no images, stays
    data = DataConfig(max_images=0, sequence_length=_within(512, model.decoder))
    _write(folder, "decoder", weights, model=model, data=data, words=language.words)
    return Imported(folder, language.left_out)


def _config_of(name: str) -> dict[str, Any]:
    """The config.json (or open_clip_config.json) of a model; empty for GGUF.

    Raises:
        ValueError: it is not JSON, or the folder holds an adapter or quantised weights.
    """
    if name in encoder.NAMES:
        return {"model_cfg": {}}
    path = Path(name)
    if not path.exists():
        path = downloaded(name, kinds=("*config.json",))
    theirs: dict[str, Any] = {}
    file = next((path / each for each in ("open_clip_config.json", "config.json") if (path / each).is_file()), None)
    if file is not None:
        try:
            theirs = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
    unread.check_whole(path, theirs)
    return theirs


def _folder_of(name: str) -> Path:
    return Path(name) if Path(name).is_dir() else downloaded(name, kinds=("*.json", "*.safetensors", TEMPLATE))


def _import_multimodal(path: Path, theirs: dict[str, Any], folder: Path) -> Imported:
    family = FAMILIES[theirs["model_type"]]
    with unread.naming(path, theirs):
        model = family.config_from_hf(theirs, path)
    model.vision.mean, model.vision.std = encoder.pixels_of(path, model.vision)
    image = theirs.get("image_token_index", theirs.get("image_token_id"))
    tensors = tensors_of(path)
    model.decoder = with_own_head(model.decoder, tensors)
    model.decoder.logit_softcap = None  # their output matrix is the whole model's, which caps no logits
    state = family.from_hf(tensors, model)
    language, weights = _with_words(model, state, read_words(path, image=image))
    model.decoder = language.config
    tiling = model.tiling.resolved
    tiles = 1 if tiling == KINDS["none"] else 1 + max(tiling.max_tiles, tiling.use_max_tiles)
    length = max(4 * model.connector.tokens, 2 * tiles * model.tile_features, 512)
    picture = model.connector.tokens + 2  # as much as a document with one takes
    data = DataConfig(sequence_length=max(_within(length, model.decoder), picture))
    _write(folder, "model", weights, model=model, data=data, words=language.words)
    return Imported(folder, family.left_out(path))


def _within(length: int, decoder: DecoderConfig) -> int:
    """A length of sequences, but no longer than the texts that the decoder can read."""
    return min(length, decoder.max_positions or length)


def _with_words(model: ModelConfig, state: State, words: Words) -> tuple[Language, State]:
    """The decoder with a vocabulary for all words, and the state of the whole model with it."""
    decoder = {name.removeprefix("decoder."): x for name, x in state.items() if name.startswith("decoder.")}
    language = with_words(model.decoder, decoder, words)
    return language, state | {f"decoder.{name}": x for name, x in language.weights.items()}


def _import_export(path: Path, theirs: dict[str, Any], folder: Path) -> Imported:
    """An export of `export_run`, as the run that it was."""
    record, native = theirs["mm1"], theirs.get("model_type") not in own.TYPES
    part, model, state = record["part"], ModelConfig.model_validate(record["model"]), tensors_of(path)
    if native and part == "vision":
        state = {f"vision.{name}": x for name, x in vision_from_hf(state).items()}
    elif native and part == "decoder":
        state = {
            f"decoder.{name}": x
            for name, x in decoder_from_hf(state, tie_embeddings=model.decoder.tie_embeddings).items()
        }
    elif native:
        state = FAMILIES[theirs["model_type"]].from_hf(state, model)
    else:
        state = own.own_from_hf(state, part=part)
    data = DataConfig(sequence_length=record["sequence_length"])
    words = None
    if part != "vision":
        template = (path / TEMPLATE).read_text() if (path / TEMPLATE).is_file() else ""
        words = Words(json.loads((path / "tokenizer.json").read_text()), template)
    _write(folder, part, state, model=model, data=data, words=words)
    if (path / CARD).is_file():
        shutil.copyfile(path / CARD, folder / CARD)
    return Imported(folder)


def _check_shapes(part: str, weights: State, model: ModelConfig) -> None:
    """Raise if the tensors of a model's files don't have the names and shapes of its config."""
    with torch.device("meta"):
        whole = MLLM(model).state_dict()
    expected = {name: x.shape for name, x in whole.items() if part == "model" or name.startswith(f"{part}.")}
    shapes = {name: x.shape for name, x in weights.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        shape, by_config = shapes.get(name), expected.get(name)
        if shape != by_config:
            raise ValueError(
                f"{name} is {[*shape] if shape else 'missing'} in the files, but "
                f"{[*by_config] if by_config else 'no tensor'} by config.json; do they belong together, and are all "
                "files there?"
            )


def _write(
    folder: Path, part: str, weights: State, *, model: ModelConfig, data: DataConfig, words: Words | None = None
) -> None:
    _check_shapes(part, weights, model)
    save_weights(folder, weights)
    if words is not None:
        (folder / TOKENIZER).write_text(json.dumps(words.tokenizer, ensure_ascii=False))
        tokenizer, data.tokenizer = load_tokenizer(str(folder)), f"./{TOKENIZER}"  # wherever the folder is moved
        record_text(folder, tokenizer, template=words.template)
        model.image_token_id = tokenizer.image
    run = RunConfig(recipe=folder.name, model=model, data=data, start_from={part: "."})
    config.save(run, folder / "config.json")
