"""The one door for weights: save, resume, load for use.

A checkpoint is a folder `checkpoints/step-N` written by torch's distributed checkpointing (DCP), by each rank its
shards, with a `whole.json` that lists every file's SHA-256. It is written beside its final name and renamed when it
is on disk, so a folder with its final name is whole; a torn or changed one is detected and passed over.
"""

import hashlib
import json
import logging
import re
import shutil
import warnings
from collections import ChainMap
from collections.abc import Iterator
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
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from mm1 import dist
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import Grid
from mm1.config.run import CheckpointConfig, RunConfig
from mm1.data.recorded import recorded_text
from mm1.data.tokenizer import Tokenizer
from mm1.disk import sync
from mm1.model.connector import CAbstractor
from mm1.model.layers import resize_positions, sharded_like
from mm1.model.mllm import MLLM
from mm1.model.vision import Vision

log = logging.getLogger("mm1")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read: says what is safe and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint, in a folder on disk or at an address of an object store."""

    path: Path | str
    step: int


class Saver:
    """Writes the checkpoints of the run in `run`; in the background, if its settings say so, one at a time."""

    def __init__(self, run: Path, settings: CheckpointConfig):
        self._run, self._settings, self._place = run, settings, _place(run, settings.folder)
        self._group = dist.apart()
        self.step: int | None = None  # of what was saved last
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self._stager = DefaultStager(StagingOptions(*[False] * 4)) if settings.background else None

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after `step` steps; then remove later checkpoints and the oldest that need not stay.

        Raises:
            CheckpointError: this or the one before could not be written; older checkpoints stay as they are.
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
        """Return when nothing is being written any more.

        Raises:
            CheckpointError: what was written last could not be.
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
            for checkpoint in reversed(_all(self._place)):
                if checkpoint.step > step:
                    _remove(checkpoint.path)

    def _try(self, step: int, content: dict[str, Any]) -> None:
        try:
            self._write(step, content)
        except BaseException as error:
            self._failure = error  # told by `wait`

    def _write(self, step: int, content: dict[str, Any]) -> None:
        _write(self._run, step, content, place=self._place, group=self._group)
        if dist.rank() > 0:
            return
        found, every = _all(self._place), self._settings.milestone_every
        torn = [other for other in found if other.step > step]  # a whole one would have been resumed from
        older = [other for other in found if other.step <= step][: -self._settings.keep]
        for old in torn + [other for other in older if not every or other.step % every]:
            _remove(old.path)


def save_weights(run: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights that were trained elsewhere, as the state after no step."""
    _write(run, 0, {"model": weights}, place=_place(run, ""))


def _write(run: Path, step: int, content: dict[str, Any], *, place: str, group: dist.Group | None = None) -> None:
    """Write `content` as the checkpoint of a step: each rank its shards, rank 0 what says that all are there.

    On disk it is renamed at the end; an object store has no renaming, and there `whole.json`, the last, is the end.
    """
    final = f"{place}/step-{step}"
    part = final if _is_remote(place) else f"{final}.part"
    try:
        dist.on_rank_zero(lambda: _make_anew(part), group)
        writer = dcp.FileSystemWriter(part) if part != final else FsspecWriter(part, sync_files=False)
        with _alone():
            dcp.save(content, storage_writer=writer, process_group=group, no_dist=group is None)
        files = dict(ChainMap(*dist.everywhere(lambda: _digests(part, rank=dist.rank()), group)))
        dist.on_rank_zero(lambda: _finish(part, final, {"step": step, "files": files}), group)
    except (Exception, CheckpointException) as error:  # DCP's own is no Exception
        if dist.rank() == 0:
            _remove(part)
        newest = [other.path for other in _all(place) if other.step != step]
        safe = f"the last whole checkpoint is {newest[-1]}" if newest else "there is no earlier checkpoint"
        free = "" if part == final else f"; {shutil.disk_usage(run).free / 2**30:.1f} GiB free"
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written ({_root(error)}{free}); {safe}. "
            f"Make room at {place} and give the same command again to continue."
        ) from error


def _make_anew(part: str) -> None:
    _remove(part)
    files, path = url_to_fs(part)
    files.makedirs(path, exist_ok=True)


def _digests(part: str, *, rank: int) -> dict[str, str]:
    """The checksums of the files that this rank wrote, by name: its shards, and rank 0's list of all."""
    files, path = url_to_fs(part)
    names = [name.rpartition("/")[2] for name in files.ls(path, detail=False)]
    mine = [name for name in names if name.startswith(f"__{rank}_") or (rank == 0 and name == ".metadata")]
    return {name: _digest(part, name) for name in mine}


def _finish(part: str, final: str, whole: dict[str, Any]) -> None:
    files, path = url_to_fs(part)
    with files.open(f"{path}/whole.json", "w") as file:
        file.write(json.dumps(whole, indent=1))
    if part != final:
        sync(Path(part))
        _remove(final)
        Path(part).rename(final)


def latest(run: Path, folder: str | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were written; None where there is none.

    `folder` is the run's `checkpoints.folder`; without one its `config.json` is asked.
    """
    if folder is None:
        recorded = run / "config.json"
        folder = config.load(recorded).checkpoints.folder if recorded.exists() else ""
    return _whole(_place(run, folder))


def _whole(place: str) -> Checkpoint | None:
    for checkpoint in reversed(_all(place)):
        problem = _problem(str(checkpoint.path))
        if problem is None:
            return checkpoint
        log.warning("passed over %s: %s", checkpoint.path, problem)
    return None


def newest(run: Path) -> Checkpoint:
    """The same, where there must be one.

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """
    checkpoint = latest(run)
    if checkpoint is None:
        raise CheckpointError(f"{run} has no whole checkpoint; train it first (mm1 train), or name another run")
    return checkpoint


def resume(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer moments into `model` and `optimizer`, however they are spread."""
    weights, moments = get_state_dict(model, optimizer)
    with _alone():
        dcp.load(
            {"model": weights, "optimizer": moments}, storage_reader=_reader(checkpoint), no_dist=dist.world() == 1
        )
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


def _reader(checkpoint: Checkpoint) -> dcp.FileSystemReader:
    return FsspecReader(checkpoint.path) if isinstance(checkpoint.path, str) else dcp.FileSystemReader(checkpoint.path)


def load_part(run: Path, model: nn.Module, part: str = "") -> Checkpoint:
    """Put the weights of a run's newest checkpoint into `model`: all, or only those of one `part`.

    Position embeddings of another image size are stretched, as MM1 fine-tunes at a higher resolution (section 5).

    Raises:
        CheckpointError: the run has no whole checkpoint, or its part has other names or shapes.
    """
    checkpoint = newest(run)
    _load_part(checkpoint, model, part, grid=config.load(run / "config.json").model.vision.grid)
    return checkpoint


def _load_part(checkpoint: Checkpoint, model: nn.Module, part: str, *, grid: Grid) -> None:
    """The same from one checkpoint, whose position embeddings belong to the patches of `grid`."""
    prefix = f"model.{part}." if part else "model."
    stored = _reader(checkpoint).read_metadata().state_dict_metadata
    wanted = {name: value for name, value in model.state_dict().items() if f"model.{name}".startswith(prefix)}
    read = dict(wanted)
    for name, value in wanted.items():
        found = getattr(stored.get(f"model.{name}"), "size", None)
        if name.endswith("position_PE") and found is not None and found[1:] == value.shape[1:]:
            read[name] = torch.empty(found, dtype=value.dtype)
        elif found != value.shape:
            shape = "nothing" if found is None else tuple(found)
            raise CheckpointError(
                f"{checkpoint.path} cannot start {part or 'the model'}: {name} is "
                f"{shape} there and {tuple(value.shape)} here; give both runs the same model.* fields"
            )
    with _alone():
        dcp.load({"model": read}, storage_reader=_reader(checkpoint), no_dist=dist.world() == 1)
    for name, value in wanted.items():
        if read[name] is not value:
            module = model.get_submodule(name.rpartition(".")[0])
            assert isinstance(module, Vision | CAbstractor)
            antialias = isinstance(module, Vision) and module.config.antialias
            resized_PE = resize_positions(read[name], grid, to=module.grid, antialias=antialias)
            value.copy_(sharded_like(resized_PE, value))


class Weights:
    """The weights of a run's newest checkpoint, each read when it is asked for. `shapes` are tensors without content.

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """

    def __init__(self, run: Path):
        self._checkpoint = newest(run)
        stored = _reader(self._checkpoint).read_metadata().state_dict_metadata
        found = {name.removeprefix("model."): x for name, x in stored.items() if name.startswith("model.")}
        self.shapes = {
            name: torch.empty(x.size, dtype=x.properties.dtype, device="meta")
            for name, x in found.items()
            if isinstance(x, TensorStorageMetadata)
        }

    def read(self, name: str) -> torch.Tensor:
        read = torch.empty_like(self.shapes[name], device="cpu")
        with _alone():
            dcp.load({"model": {name: read}}, storage_reader=_reader(self._checkpoint), no_dist=True)
        return read


@dataclass(frozen=True, slots=True)
class Loaded:
    """A trained run, ready for use: the model is in evaluation mode on this process's device.

    `chats` tells whether it learned chats. A run that doesn't see is a language model alone, as imported: it has the
    weights of a decoder only.
    """

    run: RunConfig
    folder: Path
    step: int
    model: MLLM
    tokenizer: Tokenizer
    chats: bool
    sees: bool = True


def load_for_use(folder: Path) -> Loaded:
    """The multimodal model of a run's newest checkpoint, with its tokenizer.

    Everything is read from the run's folder (and its `checkpoints.folder`): no training store, no other file.

    Raises:
        ConfigError, CheckpointError: no run there, nothing trained yet, or not a model that writes text.
    """
    run = config.load(folder / "config.json")
    if run.objective != "next_token":
        raise ConfigError(f"{folder} trained an encoder ({run.objective}); name a run that writes text")
    model = MLLM(run.model)
    found = newest(folder)
    sees = any(name.startswith("model.vision.") for name in _reader(found).read_metadata().state_dict_metadata)
    _load_part(found, model, "" if sees else "decoder", grid=run.model.vision.grid)
    text = recorded_text(folder)
    return Loaded(run, folder, found.step, model.to(dist.device()).eval(), text.tokenizer, text.chats, sees)


def _place(run: Path, folder: str) -> str:
    """Where a run's checkpoints stand: an address, or a path on disk."""
    return folder.rstrip("/") or str(run / "checkpoints")


def _is_remote(place: str) -> bool:
    return "://" in place


def _all(place: str) -> list[Checkpoint]:
    files, root = url_to_fs(place)
    names = [name.rstrip("/").rpartition("/")[2] for name in files.ls(root, detail=False)] if files.isdir(root) else []
    steps = sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-([0-9]+)", name)))
    kind = str if _is_remote(place) else Path
    return [Checkpoint(kind(f"{place}/step-{step}"), step) for step in steps]


def _remove(path: Path | str) -> None:
    files, root = url_to_fs(str(path))
    if files.exists(root):
        files.rm(root, recursive=True)


def _problem(path: str) -> str | None:
    """What is wrong with a checkpoint; each rank looks at some of its files."""
    files, root = url_to_fs(path)
    try:
        with files.open(f"{root}/whole.json") as file:
            listed = json.load(file)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"whole.json cannot be read ({error})"

    def look() -> str | None:
        for number, (name, digest) in enumerate(sorted(listed.items())):
            if number % dist.world() != dist.rank():
                continue
            if not files.isfile(f"{root}/{name}"):
                return f"{name} is missing"
            if _digest(path, name) != digest:
                return f"{name} is not what was written (checksum differs)"
        return None

    return next((problem for problem in dist.all_gather_object(look()) if problem), None)


def _digest(folder: str, name: str) -> str:
    files, root = url_to_fs(folder)
    with files.open(f"{root}/{name}", "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    """DCP warns at every call that there is one process only; that is what we asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _root(error: BaseException) -> str:
    """What the system said first, out of the layers that DCP wraps around it."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__context__:
        error = error.__context__
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
