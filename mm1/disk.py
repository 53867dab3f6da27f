"""Files that are complete or absent on disk, whenever a process is killed; and folders of disks and object stores."""

import hashlib
import os
from pathlib import Path

from fsspec.core import url_to_fs


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file; its previous content stays until all of the new content is written."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def sync(folder: Path) -> None:
    """Wait until a folder and its files are on disk, so that a rename can't overtake their content."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def remove(folder: Path | str) -> None:
    """Remove a folder, or what is at an address of an object store, if it is there."""
    files, path = url_to_fs(str(folder))
    if files.exists(path):
        files.rm(path, recursive=True)


def make_anew(folder: str) -> None:
    """Make an empty folder, in place of one that may be there."""
    remove(folder)
    files, path = url_to_fs(folder)
    files.makedirs(path, exist_ok=True)


def digest(folder: str, name: str) -> str:
    """The SHA-256 of a file of a folder, on a disk or in an object store."""
    files, path = url_to_fs(folder)
    with files.open(f"{path}/{name}", "rb") as stream:
        sha = hashlib.sha256()
        while block := stream.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()
