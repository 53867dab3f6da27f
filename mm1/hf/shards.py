"""Writes tensors to safetensors files one at a time, so that no more than the largest tensor is in memory.

The library needs all tensors of a file at once. The format is a length, a JSON header and the bytes:
https://github.com/huggingface/safetensors#format
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

State = dict[str, torch.Tensor]

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
}


def bytes_of(size: str) -> int:
    """The number of bytes in a size such as 5GB or 200MB, with decimal units as in `transformers`.

    Raises:
        ValueError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B", size.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"a size is written as 5GB or 200MB; found {size!r}")
    return max(1, int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")))


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of ours that are converted together; `rename` turns their state dict into one of theirs."""

    names: Sequence[str]
    rename: Callable[[State], State]


def write_shards(
    folder: Path,
    groups: Sequence[Group],
    *,
    like: Callable[[str], torch.Tensor],
    read: Callable[[str], torch.Tensor],
    limit: int,
) -> None:
    """Write all groups to `folder`, in files of at most `limit` bytes unless a single tensor is larger.

    `like` gives the shape and type of a tensor (on the meta device), `read` the tensor itself; it is called once for
    each. Several files are listed in model.safetensors.index.json, as in `transformers`.
    """
    shapes = [group.rename({name: like(name) for name in group.names}) for group in groups]
    shards = _shards({name: x for shape in shapes for name, x in shape.items()}, limit)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(x.nbytes for shard in shards for x in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    stream = _tensors(groups, read)
    for file, shard in zip(files, shards, strict=True):
        _write(folder / file, shard, stream)


def _tensors(groups: Sequence[Group], read: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for group in groups:
        yield from group.rename({name: read(name) for name in group.names}).items()


def _shards(tensors: State, limit: int) -> list[State]:
    shards: list[State] = [{}]
    left = limit
    for name, x in tensors.items():
        if x.nbytes > left and shards[-1]:
            shards.append({})
            left = limit
        shards[-1][name] = x
        left -= x.nbytes
    return shards


def _write(path: Path, shard: State, stream: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write a file of the next tensors of `stream`, which are those of `shard` in the same order."""
    entries: dict[str, dict[str, object]] = {}
    offsets, end = {}, 0
    for name, x in sorted(shard.items(), key=lambda item: -item[1].itemsize):  # so that every tensor is aligned
        offsets[name] = end
        entries[name] = {"dtype": _TYPES[x.dtype], "shape": [*x.shape], "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in shard:
            name, x = next(stream)
            assert [*x.shape] == entries[name]["shape"]
            file.seek(8 + len(header) + offsets[name])
            file.write(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del x  # before the next one is read into memory
        file.flush()
        os.fsync(file.fileno())
