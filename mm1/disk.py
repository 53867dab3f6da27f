"""Files that are complete or absent on disk, whenever a process is killed."""

import os
from pathlib import Path


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
