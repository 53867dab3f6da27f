"""Checkpoints: save, resume, load for use. All weights on disk are written and read here.

A checkpoint is a folder `checkpoints/step-N` of torch's distributed checkpointing (DCP), in which each rank writes its
shards, with a `whole.json` that lists every file's SHA-256. It is written under another name and renamed when it is on
disk, so a folder with the final name is complete; one that was damaged later is detected and skipped.
"""

import json
import logging
import re
import shutil
import warnings
from collections import ChainMap
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from fsspec.core import url_to_fs
from torch import nn
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from mm1 import dist
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import CheckpointConfig, RunConfig
from mm1.data.recorded import recorded_text
from mm1.data.tokenizer import Tokenizer
from mm1.disk import digest, make_anew, remove, sync
from mm1.model.connector import CAbstractor
from mm1.model.layers import resize_positions, sharded_like
from mm1.model.lora import FACTORS, is_adapter, merge
from mm1.model.mllm import MLLM
from mm1.model.vision import Vision
from mm1.objectives.index import generates_text

log = logging.getLogger("mm1")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what is safe and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint, in a folder on disk or at an address of an object store."""

    path: Path | str
    step: int


class Saver:
    """Writes the checkpoints of the run in the folder `run`, one at a time; in the background if `settings` say so."""

    def __init__(self, run: Path, settings: CheckpointConfig):
        self._run, self._settings, self._location = run, settings, _location(run, settings.folder)
        self._group = dist.background_group()
        self.step: int | None = None  # of the last checkpoint
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        # pinning takes as long as copying, so pinned copies are kept; torch 2.11's DefaultStager takes one state only
        keep = dist.device().type == "cuda"
        self._stager = BlockingAsyncStager(cache_staged_state_dict=keep) if settings.background else None

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after `step` steps; then remove later checkpoints, and old ones that need not be kept.

        Raises:
            CheckpointError: this or the previous one could not be written; older checkpoints stay as they are.
        """
        self.wait()
        self.step = step
        weights, moments = get_state_dict(model, optimizer)
        content: dict[str, Any] = {"model": weights, "optimizer": moments}
        if self._stager is None:
            self._write(step, content)
            return
        copied = self._stager.stage(content)
        self._thread = Thread(target=self._try, args=(step, copied), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when no checkpoint is being written.

        Raises:
            CheckpointError: the last one could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def forget(self, step: int) -> None:
        """Remove the checkpoints of more than `step` steps, the newest first."""
        self.wait()
        if dist.rank() == 0:
            for checkpoint in reversed(_all(self._location)):
                if checkpoint.step > step:
                    remove(checkpoint.path)

    def _try(self, step: int, content: dict[str, Any]) -> None:
        try:
            self._write(step, content)
        except BaseException as error:
            self._failure = error  # raised by `wait`

    def _write(self, step: int, content: dict[str, Any]) -> None:
        _write(self._run, step, content, location=self._location, group=self._group)
        if dist.rank() > 0:
            return
        checkpoints, every = _all(self._location), self._settings.milestone_every
        damaged = [other for other in checkpoints if other.step > step]  # a whole one would have been resumed from
        older = [other for other in checkpoints if other.step <= step][: -self._settings.keep]
        for old in damaged + [other for other in older if not every or other.step % every]:
            remove(old.path)


def save_weights(run: Path, weights: dict[str, torch.Tensor], *, step: int = 0) -> None:
    """Write weights without an optimizer: those that were trained elsewhere as the checkpoint of step 0."""
    _write(run, step, {"model": weights}, location=_location(run, ""))


def _write(run: Path, step: int, content: dict[str, Any], *, location: str, group: dist.Group | None = None) -> None:
    """Write `content` as the checkpoint of a step: each rank its shards, rank 0 the list of all files.

    On disk the folder is renamed at the end. An object store can't rename: there a checkpoint is complete when it has
    `whole.json`, which is written last.
    """
    final = f"{location}/step-{step}"
    part = final if _is_remote(location) else f"{final}.part"
    try:
        dist.on_rank_zero(lambda: make_anew(part), group)
        writer = dcp.FileSystemWriter(part) if part != final else FsspecWriter(part, sync_files=False)
        with _single_process():
            dcp.save(content, storage_writer=writer, process_group=group, no_dist=group is None)
        files = dict(ChainMap(*dist.on_every_rank(lambda: _digests(part, rank=dist.rank()), group)))
        dist.on_rank_zero(lambda: _finish(part, final, {"step": step, "files": files}), group)
    except (Exception, CheckpointException) as error:  # DCP's is not an Exception
        if dist.rank() == 0:
            remove(part)
        others = [other.path for other in _all(location) if other.step != step]
        safe = f"the last whole checkpoint is {others[-1]}" if others else "there is no earlier checkpoint"
        free = "" if part == final else f"; {shutil.disk_usage(run).free / 2**30:.1f} GiB free"
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written ({_root(error)}{free}); {safe}. "
            f"Free some space at {location} and give the same command again to continue."
        ) from error


def _digests(part: str, *, rank: int) -> dict[str, str]:
    """The checksums of the files that this rank wrote, by name: its shards; for rank 0 also DCP's metadata."""
    files, path = url_to_fs(part)
    names = [name.rpartition("/")[2] for name in files.ls(path, detail=False)]
    mine = [name for name in names if name.startswith(f"__{rank}_") or (rank == 0 and name == ".metadata")]
    return {name: digest(part, name) for name in mine}


def _finish(part: str, final: str, whole: dict[str, Any]) -> None:
    files, path = url_to_fs(part)
    with files.open(f"{path}/whole.json", "w") as file:
        file.write(json.dumps(whole, indent=1))
    if part != final:
        sync(Path(part))
        remove(final)
        Path(part).rename(final)


def latest(run: Path, folder: str | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were written; None if there is none.

    `folder` is the run's `checkpoints.folder`; None: the one in its `config.json`.
    """
    if folder is None:
        recorded = run / "config.json"
        folder = config.load(recorded).checkpoints.folder if recorded.exists() else ""
    return _newest_whole(_location(run, folder))


def _newest_whole(location: str) -> Checkpoint | None:
    for checkpoint in reversed(_all(location)):
        problem = _problem(str(checkpoint.path))
        if problem is None:
            return checkpoint
        log.warning("skipped %s: %s", checkpoint.path, problem)
    return None


def newest(run: Path) -> Checkpoint:
    """The newest whole checkpoint of a run that must have one.

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """
    checkpoint = latest(run)
    if checkpoint is None:
        raise CheckpointError(f"{run} has no whole checkpoint; train it first (mm1 train), or name another run")
    return checkpoint


def resume(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and optimizer moments into `model` and `optimizer`, whatever their sharding."""
    weights, moments = get_state_dict(model, optimizer)
    with _single_process():
        dcp.load(
            {"model": weights, "optimizer": moments}, storage_reader=_reader(checkpoint), no_dist=dist.world() == 1
        )
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


def _reader(checkpoint: Checkpoint) -> dcp.FileSystemReader:
    return FsspecReader(checkpoint.path) if isinstance(checkpoint.path, str) else dcp.FileSystemReader(checkpoint.path)


def load_part(run: Path, model: nn.Module, part: str = "", *, but: Container[str] = ()) -> Checkpoint:
    """Load the weights of a run's newest checkpoint into `model`: all `but` these, or only those of one `part`.

    Position embeddings are resized to the model's image size, since MM1 fine-tunes at a higher resolution (section 5).
    The run's adapters are merged into its weights; those of `model` stay as they are.

    Raises:
        CheckpointError: the run has no whole checkpoint, or its part has other names or shapes.
    """
    checkpoint = newest(run)
    _load_part(checkpoint, model, part, run=config.load(run / "config.json"), but=but)
    return checkpoint


def _load_part(
    checkpoint: Checkpoint, model: nn.Module, part: str, *, run: RunConfig, but: Container[str] = ()
) -> None:
    """The same from one checkpoint of `run`."""
    prefix, grid = f"model.{part}." if part else "model.", run.model.vision.grid
    stored = _reader(checkpoint).read_metadata().state_dict_metadata
    whole = {name: value for name, value in model.state_dict().items() if f"model.{name}".startswith(prefix)}
    state = {name: value for name, value in whole.items() if not is_adapter(name) and name not in but}
    adapters = {name: torch.empty(x.size) for name, x in _adapters(stored, prefix).items()}
    read = state | adapters
    for name, value in state.items():
        size = getattr(stored.get(f"model.{name}"), "size", None)
        if name.endswith("position_PE") and size is not None and size[1:] == value.shape[1:]:
            read[name] = torch.empty(size, dtype=value.dtype)
        elif size != value.shape:
            raise CheckpointError(
                f"{checkpoint.path} cannot start {part or 'the model'}: {name} is "
                f"{'nothing' if size is None else tuple(size)} there and {tuple(value.shape)} here; "
                "give both runs the same model.* fields"
            )
    with _single_process():
        dcp.load({"model": read}, storage_reader=_reader(checkpoint), no_dist=dist.world() == 1)
    for name, value in state.items():
        if read[name] is not value:
            module = model.get_submodule(name.rpartition(".")[0])
            assert isinstance(module, Vision | CAbstractor)
            antialias = isinstance(module, Vision) and module.config.antialias
            resized_PE = resize_positions(read[name], grid, to=module.grid, antialias=antialias)
            value.copy_(sharded_like(resized_PE, value))
    if run.lora is not None:
        merge(state, {name: read[name] for name in adapters}, scale=run.lora.scale)


def _adapters(stored: Mapping[str, Any], prefix: str) -> dict[str, TensorStorageMetadata]:
    """The matrices of adapters among the tensors of a checkpoint of this prefix, by their names in the model."""
    return {
        name.removeprefix("model."): x for name, x in stored.items() if name.startswith(prefix) and is_adapter(name)
    }


class Weights:
    """The weights of a run's newest checkpoint, read one by one. `shapes` are the tensors without content.

    Adapters are no weights of their own but merged into those of their layers, unless `merged` is False.

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """

    def __init__(self, run: Path, *, merged: bool = True):
        self._checkpoint = newest(run)
        stored = _reader(self._checkpoint).read_metadata().state_dict_metadata
        self._tensors = {
            name.removeprefix("model."): torch.empty(x.size, dtype=x.properties.dtype, device="meta")
            for name, x in stored.items()
            if name.startswith("model.") and isinstance(x, TensorStorageMetadata)
        }
        self.shapes = {name: x for name, x in self._tensors.items() if not (merged and is_adapter(name))}
        self._lora = config.load(run / "config.json").lora if merged else None

    def read(self, name: str) -> torch.Tensor:
        factors = [name.removesuffix(".weight") + factor for factor in FACTORS] if self._lora else []
        factors = [factor for factor in factors if factor in self._tensors]
        read = {each: torch.empty_like(self._tensors[each], device="cpu") for each in (name, *factors)}
        with _single_process():
            dcp.load({"model": read}, storage_reader=_reader(self._checkpoint), no_dist=True)
        if self._lora:
            merge(read, {factor: read[factor] for factor in factors}, scale=self._lora.scale)
        return read[name]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A trained run, ready for use: the model is in evaluation mode on this process's device.

    `chats` tells whether it learned chats. A run that doesn't see is a language model alone: it has the weights of a
    decoder only, as imported, or its vision was never trained.
    """

    run: RunConfig
    folder: Path
    step: int
    model: MLLM
    tokenizer: Tokenizer
    chats: bool
    sees: bool = True


def load_for_use(folder: Path, *, precision: dist.Precision = "auto") -> Loaded:
    """The multimodal model of a run's newest checkpoint, in this precision, with its tokenizer.

    Everything is read from the run's folder (and its `checkpoints.folder`): no training store, no other file.

    Raises:
        ConfigError, CheckpointError: there is no run, nothing is trained yet, or the model doesn't write text.
    """
    run = config.load(folder / "config.json")
    if not generates_text(run):
        raise ConfigError(f"{folder} trained an encoder ({run.objective}); name a run that writes text")
    model = MLLM(run.model)
    checkpoint = newest(folder)
    whole = any(name.startswith("model.vision.") for name in _reader(checkpoint).read_metadata().state_dict_metadata)
    _load_part(checkpoint, model, "" if whole else "decoder", run=run)
    text, device = recorded_text(folder), dist.device()
    model.to(device, dist.resolve_precision(precision, device)).eval()
    return Loaded(run, folder, checkpoint.step, model, text.tokenizer, text.chats, whole and text.images)


def _location(run: Path, folder: str) -> str:
    """Where a run's checkpoints are: an address, or a path on disk."""
    return folder.rstrip("/") or str(run / "checkpoints")


def _is_remote(location: str) -> bool:
    return "://" in location


def _all(location: str) -> list[Checkpoint]:
    """The checkpoints there, whole or not, in order of steps."""
    files, root = url_to_fs(location)
    names = [name.rstrip("/").rpartition("/")[2] for name in files.ls(root, detail=False)] if files.isdir(root) else []
    steps = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-([0-9]+)", name)))
    kind = str if _is_remote(location) else Path
    return [Checkpoint(kind(f"{location}/step-{step}"), step) for step in steps]


def _problem(path: str) -> str | None:
    """What is wrong with a checkpoint, None if nothing is; each rank checks some of the files."""
    files, root = url_to_fs(path)
    try:
        with files.open(f"{root}/whole.json") as file:
            listed = json.load(file)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"whole.json cannot be read ({error})"

    def check() -> str | None:
        for number, (name, expected) in enumerate(sorted(listed.items())):
            if number % dist.world() != dist.rank():
                continue
            if not files.isfile(f"{root}/{name}"):
                return f"{name} is missing"
            if digest(path, name) != expected:
                return f"{name} is not what was written (checksum differs)"
        return None

    return next((problem for problem in dist.all_gather_object(check()) if problem), None)


@contextmanager
def _single_process() -> Iterator[None]:
    """Without DCP's warning, at every call, that there is only one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _root(error: BaseException) -> str:
    """The message of the first error, which DCP wraps in others."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__context__:
        error = error.__context__
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
