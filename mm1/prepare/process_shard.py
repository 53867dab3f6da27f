"""One shard of a preparation: its documents are read, filtered and written, with the hashes that find copies."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from mm1.data.store import write_store
from mm1.document import Document
from mm1.prepare.bounded_read import NOT_UTF8
from mm1.prepare.decontaminate import Decontaminator
from mm1.prepare.dedup import Hashes, HashFiles, hash_documents
from mm1.prepare.filters.image_filters import screen
from mm1.prepare.filters.text_filters import FILTERS, detect_language
from mm1.prepare.ledger import Dropped, Example, Ledger
from mm1.prepare.readers.kinds import READERS
from mm1.prepare.request import PrepareRequest
from mm1.prepare.shard import InputError, Shard
from mm1.prepare.watch import changed_files, note_file, watch_files


def process_shard(
    request: PrepareRequest, shard: Shard, to: Path, *, decontaminator: Decontaminator | None = None
) -> str:
    """Why the shard failed, as JSON: `error`, and the numbers of `records` and `pictures` that were read of it.

    Empty if it did not; then the folder `to` holds its documents, their hashes and its ledger.

    The folder appears whole or not at all, whoever else processes the same shard at the same time.
    """
    folder = to.with_name(f"{to.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ledger = Ledger(shard.title)
    errors: list[Exception] = []
    with watch_files() as stamps, HashFiles(folder) as hashes:
        for path in shard.files:
            note_file(path)
        kept = kept_documents(request, shard, ledger, decontaminator=decontaminator)
        write_store(_hashed(kept, hashes, errors), folder / "documents.lance")
    if not errors and (changed := changed_files({str(path): stamps[str(path)] for path in shard.files})):
        errors.append(InputError(f"{changed[0]} changed while it was read; give the same command again"))
    if errors:
        shutil.rmtree(folder)
        ledger.fail()
        error = str(errors[0]) if isinstance(errors[0], InputError) else f"{type(errors[0]).__name__}: {errors[0]}"
        return json.dumps({"error": error, "records": ledger.records.read, "pictures": ledger.pictures.read})
    write_ledger(ledger, folder)
    (folder / "files.json").write_text(json.dumps(stamps), encoding="utf-8", errors="surrogateescape")
    try:
        folder.rename(to)
    except OSError:
        if not to.is_dir():
            raise
        shutil.rmtree(folder)  # another process was faster
    return ""


Kept = tuple[Document, Hashes]


def is_current(output: Path) -> bool:
    """Whether the folder holds a finished shard whose files are still as they were when it was made."""
    try:
        stamps = json.loads((output / "files.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not changed_files(stamps)


def kept_documents(
    request: PrepareRequest, shard: Shard, ledger: Ledger, *, decontaminator: Decontaminator | None = None
) -> Iterator[Kept]:
    """The documents of the shard that pass all filters, and their hashes."""
    for path in shard.files if len(shard.files) == 1 else ():
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path.name} is a link to {os.readlink(path)}, where nothing is; download it again")
    bounds = request.image_bounds
    stated = {"licence": request.licence, "language": request.language}
    stated = {key: value for key, value in stated.items() if value}
    for document in READERS[shard.kind](shard, ledger):
        with ledger.document(document):
            _check_text(request, document)
            screened = screen(document, bounds, ledger)
            reason = decontaminator.drop_reason(screened) if decontaminator is not None else None
            if reason is not None:
                raise Dropped(reason, expected=True)
            metadata = {**stated, **document.metadata}
            kept = replace(screened.document, source=request.source or shard.source, metadata=metadata)
            hashes = hash_documents([replace(screened, document=kept)])
            yield _encodable(kept), hashes
    if ledger.records.missing or ledger.pictures.missing:
        raise RuntimeError(
            f"a fault of mm1, please report it: the reader of {shard.kind} counted {ledger.records.missing} records "
            f"and {ledger.pictures.missing} pictures that it neither yielded nor dropped"
        )


def _check_text(request: PrepareRequest, document: Document) -> None:
    """Returns if the document stays.

    Raises:
        Dropped: it is left out for its text.
    """
    text = document.text
    if not text.strip():
        raise Dropped("document without text")
    if not _is_unicode(text):
        of_bytes = _is_unicode(text, errors="surrogateescape")  # as a table's reader keeps what it cannot decode
        raise Dropped(NOT_UTF8 if of_bytes else "text with characters that are no Unicode (lone surrogates)")
    if request.language and (language := detect_language(text)) != request.language:
        raise Dropped(f"document in another language ({language})", expected=True)
    reason = next((reason for name in request.filters if (reason := FILTERS[name](text))), None)
    if reason is not None:
        raise Dropped(reason, expected=True)


def _is_unicode(text: str, *, errors: str = "strict") -> bool:
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        return False
    return True


def _encodable(document: Document) -> Document:
    """The document with an id and metadata that can be written: names of files may hold any bytes."""
    if _is_unicode(f"{document.id}{document.source}{document.metadata}"):
        return document
    metadata = {_replaced(key): _replaced(value) for key, value in document.metadata.items()}
    return replace(document, id=_replaced(document.id), source=_replaced(document.source), metadata=metadata)


def _replaced(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _hashed(kept: Iterator[Kept], files: HashFiles, errors: list[Exception]) -> Iterator[Document]:
    """The documents, their hashes written. An error of the reader ends the shard, in `errors`."""
    try:
        for document, hashes in kept:
            files.add(hashes)
            yield document
    except Exception as error:
        errors.append(error)


def write_ledger(ledger: Ledger, folder: Path) -> None:
    """Writes the ledger into a folder: its accounts, and the examples of what was left out."""
    (folder / "ledger.json").write_text(json.dumps(ledger.to_json()), encoding="utf-8")
    lines = (json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in ledger.examples)
    (folder / "dropped.jsonl").write_text("".join(lines), encoding="utf-8", errors="replace")


def read_ledger(folder: Path) -> Ledger:
    """The ledger that `write_ledger` wrote."""
    ledger = Ledger.from_json(json.loads((folder / "ledger.json").read_text(encoding="utf-8")))
    with (folder / "dropped.jsonl").open(encoding="utf-8") as lines:
        ledger.examples += [Example(**json.loads(line)) for line in lines]
    return ledger
