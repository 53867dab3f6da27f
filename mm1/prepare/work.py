"""A preparation: parts are read one by one, in processes, then joined into stores that appear whole.

While it runs, `TO.part/` holds what each finished part gave. The same command continues with the parts that are
missing. A part that fails is named and does not stop the others; it is tried again by the next such command.
"""

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np

from mm1.data.store import Store, open_store, write_store
from mm1.document import Document, Image
from mm1.prepare.card import Prepared, write_card
from mm1.prepare.copies import Guard, Prints, copies, guard_of, joined, number, prints_of, repeated_pictures
from mm1.prepare.order import Order
from mm1.prepare.part import Part
from mm1.prepare.pictures import sha256
from mm1.prepare.prose import FILTERS, language_of
from mm1.prepare.readers import KINDS, parts_of
from mm1.prepare.screen import Bounds, looks, screened
from mm1.prepare.web import Web

_AT_ONCE = 16  # documents in memory at a time


class BusyError(ValueError):
    """A folder of another preparation is in the way."""


def prepare(order: Order, to: Path, *, workers: int = 1) -> Prepared:
    """What was prepared; `to` holds the stores `images` and `text` afterwards, each where it has documents.

    Raises:
        FileExistsError: `to` exists. BusyError: `TO.part` belongs to another order.
        InputError: the input is not there, or not of this kind. ValueError: no document is left.
    """
    if to.exists():
        raise FileExistsError(f"{to} exists; remove it first or prepare elsewhere")
    web = Web(to.with_name(to.name + ".fetched")) if order.fetch else None
    pictures = Path(order.pictures) if order.pictures else None
    parts = parts_of(Path(order.input), order.kind, pictures=pictures, web=web)
    folder = _begun(order, to)
    failed = _do_parts(order, parts, folder, workers=workers)
    done = [_place(folder, at) for at in range(len(parts)) if _place(folder, at).is_dir()]
    result = _join(order, done, folder / "whole", failed=failed)
    (folder / "whole" / "order.json").write_text(order.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_card(folder / "whole", result, title=to.name)
    (folder / "whole").rename(to)
    shutil.rmtree(folder)
    return result


def _begun(order: Order, to: Path) -> Path:
    """The folder of the work, new or of an earlier try of the same order."""
    folder = to.with_name(to.name + ".part")
    record, said = folder / "order.json", order.model_dump_json(indent=1)
    if record.is_file() and record.read_text(encoding="utf-8") != said:
        raise BusyError(f"{folder} is of another preparation (its order.json differs); remove it or prepare elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(said, encoding="utf-8")
    return folder


def _place(folder: Path, at: int) -> Path:
    return folder / f"{at:06}"


def _do_parts(order: Order, parts: list[Part], folder: Path, *, workers: int) -> dict[str, str]:
    """Why parts failed, by their names; all others lie in the folder."""
    guard = _guard(order)
    due = [(at, part) for at, part in enumerate(parts) if not _place(folder, at).is_dir()]
    failed: dict[str, str] = {}
    if workers == 1:
        for at, part in due:
            why = do_part(order, part, _place(folder, at), guard=guard)
            failed |= {part.name: why} if why else {}
        return failed
    spawn = multiprocessing.get_context("spawn")  # Lance's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        running = {pool.submit(do_part, order, part, _place(folder, at), guard=guard): part.name for at, part in due}
        for future in as_completed(running):
            failed |= {running[future]: why} if (why := future.result()) else {}
    return failed


def do_part(order: Order, part: Part, place: Path, *, guard: Guard | None) -> str:
    """Why the part failed; nothing when its documents and their prints lie in the folder `place`."""
    made = place.with_name(place.name + ".tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    drops: Counter[str] = Counter()
    kept: list[Prints] = []
    faults: list[Exception] = []
    wanted = _wanted(order, part, drops, guard=guard)
    write_store(_remembered(wanted, kept, faults), made / "documents.lance")
    if faults:
        shutil.rmtree(made)
        return f"{type(faults[0]).__name__}: {faults[0]}"
    if kept:
        prints = joined(kept)
        np.savez(made / "prints.npz", **{name: getattr(prints, name) for name in Prints.__slots__})
    (made / "drops.json").write_text(json.dumps(drops), encoding="utf-8")
    made.rename(place)
    return ""


def _wanted(
    order: Order, part: Part, drops: Counter[str], *, guard: Guard | None
) -> Iterator[tuple[Document, np.ndarray]]:
    """The part's documents that may stay, each with its pictures' fingerprints."""
    bounds = Bounds(order.smallest, order.aspect, order.a_page, order.side)
    for document in KINDS[order.kind](part, drops):
        drops["read"] += 1
        drops["pictures read"] += len(document.images)
        document = screened(document, bounds, drops)
        why = _fault(order, document)
        seen = looks(document) if why is None else np.zeros(0, np.uint64)
        if why is None and guard is not None:
            why = guard.fault(document, seen)
        if why is not None:
            drops[why] += 1
            continue
        said = {"licence": order.licence, "language": order.language}
        metadata = {**{key: value for key, value in said.items() if value}, **document.metadata}
        yield replace(document, source=order.source or Path(order.input).name, metadata=metadata), seen


def _fault(order: Order, document: Document) -> str | None:
    """Why a document is left out for what it says, or for having nothing to say."""
    if not document.text.strip():
        return "document without text"
    if order.language and (found := language_of(document.text)) != order.language:
        return f"document in another language ({found})"
    return next((why for name in order.filters if (why := FILTERS[name](document.text))), None)


def _remembered(
    documents: Iterator[tuple[Document, np.ndarray]], kept: list[Prints], faults: list[Exception]
) -> Iterator[Document]:
    """The documents, their prints put into `kept`. Whatever strangers' bytes raise ends the part, in `faults`."""
    try:
        for document, seen in documents:
            kept.append(prints_of([(document, seen)]))
            yield document
    except Exception as error:
        faults.append(error)


def _guard(order: Order) -> Guard | None:
    """The guard against the evaluation sets that the order names."""
    if not order.against:
        return None
    return guard_of((document, looks(document)) for name in order.against for document in open_store(name).scan())


def _join(order: Order, done: list[Path], to: Path, *, failed: dict[str, str]) -> Prepared:
    """What all parts give together, written to the folder `to`: copies and pictures that repeat are gone."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    drops = sum((Counter(json.loads((part / "drops.json").read_text())) for part in done), Counter[str]())
    before = {"documents": drops.pop("read", 0), "pictures": drops.pop("pictures read", 0)}
    full = [part for part in done if (part / "prints.npz").is_file()]
    if not full:
        raise ValueError(f"no document of {order.input} is left; left out: {dict(drops)}; failed: {failed}")
    prints = joined([Prints(**np.load(part / "prints.npz")) for part in full])
    found = copies(prints)
    drops["copy of an earlier document"] += len(found.exact)
    drops["near copy of an earlier document"] += len(found.near)
    gone = repeated_pictures(prints, order.repeats) if order.repeats else frozenset()
    hidden = np.isin(prints.bytes, np.array(sorted(gone), np.uint64))
    drops[f"picture in more than {order.repeats} documents"] += int(hidden.sum())
    owner = np.repeat(np.arange(len(prints.pictures)), prints.pictures)
    shown = np.bincount(owner[~hidden], minlength=len(prints.pictures))
    kept = np.ones(len(prints.exact), bool)
    kept[found.exact] = kept[found.near] = False
    stores = {}
    for name, mask in (("images", kept & (shown > 0)), ("text", kept & (shown == 0))):
        if mask.any():
            stores[name] = write_store(_taken(full, mask, gone), to / f"{name}.lance")
    return Prepared(stores, dict(sorted((+drops).items())), failed, before)


def _taken(parts: list[Path], mask: np.ndarray, gone: frozenset[int]) -> Iterator[Document]:
    """The documents of all parts that the mask keeps, in order, without the pictures that go."""
    start = 0
    for part in parts:
        store = Store(part / "documents.lance")
        wanted = np.flatnonzero(mask[start : start + len(store)]).tolist()
        start += len(store)
        for at in range(0, len(wanted), _AT_ONCE):
            for document in store.take(wanted[at : at + _AT_ONCE]):
                yield _without(document, gone) if gone else document


def _without(document: Document, gone: frozenset[int]) -> Document:
    pieces = (p for p in document.pieces if not (isinstance(p, Image) and number(sha256(p.data)) in gone))
    return replace(document, pieces=tuple(pieces))
