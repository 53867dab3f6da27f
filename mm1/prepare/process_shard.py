"""One shard of a preparation: its documents are read, filtered and written, with the hashes that find copies."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mm1.data.store import write_store
from mm1.document import Document
from mm1.prepare.decontaminate import Decontaminator
from mm1.prepare.dedup import HashFiles, hash_documents
from mm1.prepare.filters.image_filters import ImageBounds, Screened, screen
from mm1.prepare.filters.text_filters import FILTERS, detect_language
from mm1.prepare.readers.kinds import READERS
from mm1.prepare.request import PrepareRequest
from mm1.prepare.shard import Shard


def process_shard(
    request: PrepareRequest, shard: Shard, to: Path, *, decontaminator: Decontaminator | None = None
) -> str:
    """Why the shard failed; empty if it did not, and then the folder `to` holds its documents and their hashes.

    The folder appears whole or not at all, whoever else processes the same shard at the same time.
    """
    folder = to.with_name(f"{to.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    drops: Counter[str] = Counter()
    errors: list[Exception] = []
    with HashFiles(folder) as hashes:
        kept = _kept_documents(request, shard, drops, decontaminator=decontaminator)
        write_store(_hashed(kept, hashes, errors), folder / "documents.lance")
    if errors:
        shutil.rmtree(folder)
        return f"{type(errors[0]).__name__}: {errors[0]}"
    (folder / "drops.json").write_text(json.dumps(drops), encoding="utf-8")
    try:
        folder.rename(to)
    except OSError:
        if not to.is_dir():
            raise
        shutil.rmtree(folder)  # another process was faster
    return ""


def _kept_documents(
    request: PrepareRequest, shard: Shard, drops: Counter[str], *, decontaminator: Decontaminator | None
) -> Iterator[Screened]:
    """The documents of the shard that pass all filters."""
    bounds = ImageBounds(request.min_side, request.max_aspect, request.max_images, request.max_side)
    stated = {"licence": request.licence, "language": request.language}
    for document in READERS[shard.kind](shard, drops):
        drops["read"] += 1
        drops["pictures read"] += len(document.images)
        reason = _drop_reason(request, document)
        if reason is not None:
            drops[reason] += 1
            continue
        screened = screen(document, bounds, drops)
        reason = decontaminator.drop_reason(screened) if decontaminator is not None else None
        if reason is not None:
            drops[reason] += 1
            continue
        metadata = {**{key: value for key, value in stated.items() if value}, **document.metadata}
        kept = replace(screened.document, source=request.source or shard.source, metadata=metadata)
        yield Screened(kept, screened.fingerprints)


def _drop_reason(request: PrepareRequest, document: Document) -> str | None:
    """Why a document is left out for its text; None if it stays."""
    if not document.text.strip():
        return "document without text"
    if request.language and (language := detect_language(document.text)) != request.language:
        return f"document in another language ({language})"
    return next((reason for name in request.filters if (reason := FILTERS[name](document.text))), None)


def _hashed(kept: Iterator[Screened], hashes: HashFiles, errors: list[Exception]) -> Iterator[Document]:
    """The documents, their hashes written. Whatever error strangers' bytes raise ends the shard, in `errors`."""
    try:
        for screened in kept:
            hashes.add(hash_documents([screened]))
            yield screened.document
    except Exception as error:
        errors.append(error)
