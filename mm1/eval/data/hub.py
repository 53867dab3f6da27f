"""Published data from the hub: only the files of the splits that are needed, announced before they are fetched."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from rich.console import Console

from mm1.eval.data.rows import TaskError


def fetch(repo: str, patterns: Sequence[str], *, task: str) -> Path:
    """The folder of a data set's files that match `patterns`, from the hub or its cache.

    What is not in the cache is announced first: how many files, how large, from where and to where.

    Raises:
        TaskError: the data set is not on the hub, or can't be reached and is not in the cache.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise TaskError(f"{task} is not on the hub in a layout that mm1 reads; give --data FOLDER with {repo}")
    options: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": list(patterns)}
    try:
        plan = snapshot_download(repo, dry_run=True, **options)
        if not plan:
            raise TaskError(f"{repo} has no file like {' or '.join(patterns)}; give --data FOLDER with the task's data")
        missing = [file for file in plan if file.will_download]
        if missing:
            total = sum(file.file_size or 0 for file in missing)
            cache = Path(missing[0].local_path).parents[len(Path(missing[0].filename).parts) - 1]
            Console(stderr=True).print(
                f"{task}: fetching {len(missing)} files, {size(total)}, from https://huggingface.co/datasets/{repo} "
                f"to {cache}; --data FOLDER reads a copy of your own",
                soft_wrap=True,
            )
        return Path(snapshot_download(repo, **options))
    except TaskError:
        raise
    except Exception as error:  # of the hub, its client, the network or the disk
        return _cached(repo, options, task=task, why=error)


def _cached(repo: str, options: dict[str, Any], *, task: str, why: Exception) -> Path:
    try:
        return Path(snapshot_download(repo, local_files_only=True, **options))
    except (OSError, ValueError):
        reason = (str(why).strip().splitlines() or [type(why).__name__])[0]
        raise TaskError(
            f"{task}: https://huggingface.co/datasets/{repo} can't be fetched ({reason}); give --data FOLDER"
        ) from why


def size(count: float) -> str:
    """Bytes for people to read."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
