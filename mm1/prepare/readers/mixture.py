"""Reads a mixture of LLaVA-NeXT: a YAML file that lists JSON files, and how much of each is taken.

    datasets:
      - json_path: /data/llava_{a,b}.json
        sampling_strategy: "first:10%"

https://github.com/LLaVA-VL/LLaVA-NeXT/blob/main/llava/train/train.py (`LazySupervisedDataset`)
"""

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1.document import Document
from mm1.prepare.json_arrays import read_json_array, read_named
from mm1.prepare.ledger import Dropped, Ledger
from mm1.prepare.readers.folders import read_conversation
from mm1.prepare.readers.pictures import Pictures
from mm1.prepare.shard import InputError, Shard

_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")
_BRACES = re.compile(r"\{([^{}]*)\}")


def mixture_shards(path: Path, *, pictures: Path | None = None) -> list[Shard]:
    """A shard for each JSON file of a mixture.

    Raises:
        InputError: it is no mixture, a file is missing, or a strategy unknown.
    """
    entries = read_mixture(path)
    if entries is None:
        raise InputError(f"{path.name} is no mixture: expected `datasets:`, a list of entries with a json_path")
    shards = []
    for number, entry in enumerate(entries):
        strategy = str(entry.get("sampling_strategy") or "all")
        if strategy != "all" and not _STRATEGY.fullmatch(strategy):
            expected = "expected all, or first, end or random with a number or a share: first:1000, random:10%"
            raise InputError(f"{path.name}: data set {number + 1} has the sampling_strategy {strategy!r}; {expected}")
        for name in _expanded(str(entry["json_path"])):
            file = path.parent / name
            if not file.is_file():
                raise InputError(f"{path.name}: there is no {file}, which data set {number + 1} names")
            shards.append(Shard(name, file.parent, (file,), pictures, sample=strategy))
    return shards


def read_mixture(path: Path) -> list[dict[str, Any]] | None:
    """The data sets of a mixture; None if the file is none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "json_path" in entry for entry in entries):
        return None
    return entries or None


def _expanded(name: str) -> list[str]:
    """The names that braces stand for: a{b,c}.json is ab.json and ac.json."""
    braces = _BRACES.search(name)
    if braces is None:
        return [name]
    return [f for part in braces[1].split(",") for f in _expanded(name[: braces.start()] + part + name[braces.end() :])]


def read_sampled(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """The conversations of a JSON file that its mixture takes; the others are left out, and counted."""
    total = sum(1 for _ in read_json_array(shard, Ledger()))
    taken = _taken(shard.sample, total, name=shard.name)
    pictures = Pictures(shard)
    for at, (number, position, entry) in enumerate(read_named(shard, ledger)):
        with ledger.record(position, entry) as record:
            if at not in taken:
                raise Dropped("conversation that the mixture's sampling_strategy leaves out", expected=True)
            yield read_conversation(entry, number, pictures, record)


def _taken(strategy: str, total: int, *, name: str) -> range | set[int]:
    """The numbers of the records that a strategy takes."""
    match = _STRATEGY.fullmatch(strategy)
    if match is None:
        return range(total)
    count = min(total, math.ceil(int(match[2]) * total / 100) if match[3] else int(match[2]))
    if match[1] == "random":
        return set(random.Random(f"mixture {name}").sample(range(total), count))
    return range(count) if match[1] == "first" else range(total - count, total)
