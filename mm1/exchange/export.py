"""Runs as models of `transformers`: `mm1 export`.

The config.json of an export holds a record of its run. So importing it gives the same model again, and exporting that
gives the same files, byte for byte.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mm1.checkpoint import Weights
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import ModelConfig
from mm1.config.run import LoRAConfig, RunConfig
from mm1.data.chat_format import TEMPLATE
from mm1.data.recorded import RecordedText, recorded_text
from mm1.data.tokenizer import Tokenizer
from mm1.disk import sync
from mm1.exchange.description import exported_part, positions_of
from mm1.exchange.model_card import FILE as CARD
from mm1.exchange.model_card import model_card
from mm1.hf import adapter, files
from mm1.hf.decoder_config import decoder_config_to_hf
from mm1.hf.decoder_state import decoder_to_hf
from mm1.hf.families import FAMILIES, Family
from mm1.hf.files import Processor
from mm1.hf.layouts import layout_of, vision_to_hf
from mm1.hf.own import own_config, own_processor, own_to_hf
from mm1.hf.shards import Group, State, write_shards
from mm1.hf.vision import is_aim, vision_config_to_aim, vision_config_to_hf
from mm1.model.lora import is_adapter

log = logging.getLogger("mm1")

DTYPES = {"stored": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OURS = re.compile(
    r"model.*\.safetensors(\.index\.json)?|\w*config\.json|tokenizer\.json|\w+_mm1\.py|README\.md|" + TEMPLATE
)


@dataclass(frozen=True, slots=True)
class Form:
    """A run in `transformers`: its config.json, and how its tensors are renamed. `native`: without a modelling file."""

    config: dict[str, Any]
    rename: Callable[[State], State]
    native: bool = True
    processor: Processor | None = None


def export_run(
    run_folder: Path, to: Path, *, dtype: str = "stored", shard_bytes: int = 5 * 10**9, license_id: str = ""
) -> Form:
    """Write the newest checkpoint of a run to `to` in the layout of `transformers`, one tensor at a time.

    README.md is a card with the license `license_id`, an identifier of the hub such as apache-2.0. `to` appears whole
    or not at all. An earlier export there is replaced.

    Raises:
        ConfigError: there is no run, or `to` holds something else.
        CheckpointError: nothing is trained yet.
        ValueError: neither `transformers` nor the modelling file has such a model.
    """
    run = config.load(run_folder / "config.json")
    weights = Weights(run_folder)
    _check_free(to)
    part = exported_part(run_folder, run, weights)
    names = [name for name in weights.shapes if part == "model" or name.startswith(f"{part}.")]
    text = None if part == "vision" else recorded_text(run_folder)
    form = _form(run, part, names, tokenizer=text.tokenizer if text and part == "model" else None)
    target = DTYPES[dtype]

    def typed(x: torch.Tensor) -> torch.Tensor:
        return x.to(target) if target is not None and x.is_floating_point() else x

    types = [typed(weights.shapes[name]).dtype for name in names]
    form.config["dtype"] = str(max(types, key=lambda each: (each.is_floating_point, each.itemsize))).rpartition(".")[2]
    form.config["mm1"] = {
        "part": part,
        "sequence_length": run.data.sequence_length,
        "model": run.model.model_dump(mode="json"),
    }
    with _appears_whole(to) as half:
        write_shards(
            half,
            [Group(group, form.rename) for group in _groups(names)],
            like=lambda name: typed(weights.shapes[name]),
            read=lambda name: typed(weights.read(name)),
            limit=shard_bytes,
        )
        card = model_card(run_folder, run, part, native=form.native, license_id=license_id)
        for name, content in {**_small_files(run, part, form, text), CARD: card}.items():
            written = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (half / name).write_text(written)
    return form


def export_adapter(run_folder: Path, to: Path, *, dtype: str = "stored") -> Path:
    """Write the adapters of a run's newest checkpoint, and what it trained in full, to `to` in the layout of PEFT.

    They belong to the export of the run that this one started from, whose folder comes back.

    Raises:
        ConfigError: there is no run, it has no adapters, or they, connector and encoder don't tell it from its start.
        CheckpointError: nothing is trained yet.
    """
    run = config.load(run_folder / "config.json")
    weights = Weights(run_folder, merged=False)
    others = {path.name for path in to.iterdir()} - {adapter.CONFIG, adapter.WEIGHTS} if to.is_dir() else set()
    if others:
        raise ConfigError(
            f"{to} holds {min(others)}, which no adapter has; use another --to folder, or remove this one"
        )
    part = exported_part(run_folder, run, weights)
    lora, base = _adapter_base(run, run_folder, part=part)
    tokenizer = recorded_text(run_folder).tokenizer if part == "model" else None
    form = _form(run, part, [name for name in weights.shapes if not is_adapter(name)], tokenizer=tokenizer)
    parts = tuple(f"{name}." for name in lora.full) if part == "model" else ()
    names = [name for name in weights.shapes if is_adapter(name) or name.startswith(parts)]
    target = DTYPES[dtype]
    tensors = adapter.adapter_to_hf({name: weights.read(name).to(target) for name in names}, form.rename)
    with _appears_whole(to) as half:
        # not `save_file`, whose files only their owner may read
        (half / adapter.WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        (half / adapter.CONFIG).write_text(json.dumps(adapter.adapter_config(lora, tensors), indent=2) + "\n")
    return base


def _adapter_base(run: RunConfig, folder: Path, *, part: str) -> tuple[LoRAConfig, Path]:
    """The adapters' settings, and the run whose export they belong to.

    Raises:
        ConfigError: there is none.
    """
    merged = "leave --adapter out to export merged weights"
    if run.lora is None:
        raise ConfigError(f"{folder} was trained without adapters (lora is null); {merged}")
    if more := sorted({*run.lora.full} - {"connector", "vision"}):
        raise ConfigError(f"{folder} trained {', '.join(more)} in full (lora.full), which no adapter holds; {merged}")
    start = run.start_from.get("decoder" if part == "decoder" and "model" not in run.start_from else "model")
    if start is None or (part == "model" and len(run.start_from) > 1):
        raise ConfigError(f"{folder} starts from {run.start_from or 'random weights'}, no whole model; {merged}")
    recorded = Path(start) / "config.json"
    if recorded.is_file() and (others := _other_shape(run, config.load(recorded), part=part)):
        raise ConfigError(
            f"{folder} is no adapter of {start}, from which it starts: {'; '.join(others)}. Train it without these "
            f"fields on the command line, or {merged}"
        )
    return run.lora, Path(start)


def _other_shape(run: RunConfig, start: RunConfig, *, part: str) -> list[str]:
    """The fields of the exported part that differ, each with both values; not those that only describe its texts."""
    fields = "model.decoder." if part == "decoder" else "model."
    return [
        f"{name} is {ours!r} here and {theirs!r} there"
        for name, (ours, theirs) in config.differences(run, start).items()
        if name.startswith(fields) and name not in ("model.image_token_id", "model.decoder.max_positions")
    ]


@contextmanager
def _appears_whole(to: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `to` at the end; after an error it is gone."""
    half = to.with_name(f".{to.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        yield half
        sync(half)
        shutil.rmtree(to, ignore_errors=True)
        half.rename(to)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _check_free(to: Path) -> None:
    if to.exists() and not to.is_dir():
        raise ConfigError(f"{to} is a file; name a folder that is not there yet")
    others = sorted(path.name for path in to.iterdir() if not _OURS.fullmatch(path.name)) if to.is_dir() else []
    if not others and to.is_dir() and any(to.iterdir()):
        others = [] if _record(to) else ["config.json"]
    if others:
        raise ConfigError(
            f"{to} holds {others[0]}, which no export writes; use another --to folder, or remove this one"
        )


def _record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in an export's folder; None if the folder is no export."""
    try:
        return json.loads((folder / "config.json").read_text()).get("mm1")
    except (OSError, ValueError):
        return None


def _form(run: RunConfig, part: str, names: list[str], *, tokenizer: Tokenizer | None) -> Form:
    """The form of an export of `part`; a whole model has a `tokenizer`."""
    model, length = run.model, positions_of(run)
    if part == "vision":
        layout = layout_of({name.removeprefix("vision.") for name in names})
        to_published = vision_config_to_aim if is_aim(model.vision) else vision_config_to_hf
        return Form(to_published(model.vision), lambda ours: vision_to_hf(_inside(ours, "vision."), layout))
    if tokenizer is None:
        try:
            theirs = decoder_config_to_hf(model.decoder, max_positions=length)
            return Form(theirs, lambda ours: decoder_to_hf(_inside(ours, "decoder."), model.decoder))
        except ValueError as why:
            log.info("exported with a modelling file: %s", why)
        theirs = own_config(model, part=part, max_positions=length)
        return Form(theirs, lambda ours: own_to_hf(ours, part=part), native=False)
    reasons = []
    for name, family in FAMILIES.items():
        try:
            return _family_form(family, model, tokenizer, max_positions=length)
        except ValueError as why:
            reasons.append(f"no {name}, since {why}")
    log.info("exported with a modelling file: %s", "; ".join(reasons))
    theirs, processor = own_config(model, part=part, max_positions=length), own_processor(model, tokenizer)
    return Form(theirs, lambda ours: own_to_hf(ours, part=part), native=False, processor=processor)


def _family_form(family: Family, model: ModelConfig, tokenizer: Tokenizer, *, max_positions: int) -> Form:
    """The form of a model of a family.

    Raises:
        ValueError: the family has no such model.
    """
    theirs = family.config_to_hf(model, max_positions=max_positions)
    return Form(theirs, lambda ours: family.to_hf(ours, model), processor=family.processor(model, tokenizer))


def _inside(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): x for name, x in state.items()}


def _groups(names: list[str]) -> list[list[str]]:
    """Names in groups of one, but those of an encoder block together: some families concatenate tensors of a block."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]):
        block = re.match(r"vision\.blocks\.\d+\.", name)
        groups.setdefault(block[0] if block else name, []).append(name)
    return [*groups.values()]


def _small_files(run: RunConfig, part: str, form: Form, text: RecordedText | None) -> dict[str, str | dict[str, Any]]:
    contents: dict[str, str | dict[str, Any]] = {"config.json": form.config}
    if text is None:
        return contents | {"preprocessor_config.json": files.squeezed_images(run.model.vision)}
    tokenizer = text.tokenizer
    contents["tokenizer.json"] = files.tokenizer_file(json.loads(tokenizer.path.read_text()), tokenizer)
    contents["tokenizer_config.json"] = files.tokenizer_config(
        tokenizer,
        max_positions=positions_of(run),
        processor=form.processor.name if form.processor is not None else "",
    )
    contents["generation_config.json"] = files.generation_config(tokenizer)
    if form.processor is not None:
        contents |= form.processor.contents()
    if not form.native:
        contents |= files.code(pictures=form.processor is not None)
    if text.chats:
        contents[TEMPLATE] = tokenizer.template.source if tokenizer.template else files.chat_template(tokenizer)
    return contents
