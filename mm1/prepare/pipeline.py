"""A preparation: parts are done one by one, on all cores or machines, then joined into stores that appear whole.

While it runs, `TO.part/` holds what each finished part gave. The same command continues with the parts that are
missing. A part that fails is named, on the card too, and does not stop the others.
"""

import fcntl
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mm1.cluster import Runner
from mm1.data.store import open_store
from mm1.prepare.card import Prepared, write_card
from mm1.prepare.dedup import Guard, guard_of
from mm1.prepare.executor import each
from mm1.prepare.fetch import Web
from mm1.prepare.filters.image_filters import Bounds, screened
from mm1.prepare.merge import join
from mm1.prepare.process_shard import do_part
from mm1.prepare.readers.kinds import parts_of
from mm1.prepare.request import Order
from mm1.prepare.shard import Part


class BusyError(ValueError):
    """The folder of another preparation is in the way."""


def prepare(order: Order, to: Path, *, runner: Runner | None = None, show: bool = False) -> Prepared:
    """What was prepared; `to` holds the stores `images` and `text` afterwards, each where it has documents.

    What comes out does not depend on the runner. `show` draws a progress bar.

    Raises:
        FileExistsError: `to` exists. BusyError: `TO.part` belongs to another order, or to a process that still works.
        InputError: the input is not there, or not of this kind. ValueError: no document is left.
    """
    if to.exists():
        raise FileExistsError(f"{to} exists; remove it first or prepare elsewhere")
    parts, guard = _parts(order, to), _guard(order)
    with _begun(order, to) as folder, _progress(show) as progress:
        places = [folder / f"{at:06}" for at in range(len(parts))]
        due = [at for at, place in enumerate(places) if not place.is_dir()]
        task = progress.add_task("reading parts", total=len(parts), completed=len(parts) - len(due))
        failed: dict[str, str] = {}
        for at, why in each(partial(_do, order, parts, places, guard), due, runner=runner or Runner()):
            failed |= {parts[at].name: why} if why else {}
            progress.advance(task)
        whole = folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        progress.update(task, description="leaving copies out")
        done = [place for place in places if place.is_dir()]
        result = join(done, whole, max_image_repeats=order.max_image_repeats, failed=dict(sorted(failed.items())))
        progress.update(task, description="writing the card")
        (whole / "order.json").write_text(order.model_dump_json(indent=1) + "\n", encoding="utf-8")
        write_card(whole, result, title=to.name)
        whole.rename(to)
    shutil.rmtree(folder)
    return result


def _do(order: Order, parts: list[Part], places: list[Path], guard: Guard | None, at: int) -> str:
    return do_part(order, parts[at], places[at], guard=guard)


def _parts(order: Order, to: Path) -> list[Part]:
    """The parts of all inputs, in their order."""
    web = Web(to.with_name(to.name + ".fetched")) if order.fetch else None
    pictures = Path(order.pictures) if order.pictures else None
    found = []
    for given in order.inputs:
        path = Path(given.path)
        for part in parts_of(path, given.kind, pictures=pictures, web=web):
            several = f"{path}: {part.name}" if len(order.inputs) > 1 else part.name
            found.append(replace(part, name=several, source=path.resolve().name))
    return found


def _guard(order: Order) -> Guard | None:
    """The guard against the evaluation sets that the order names."""
    if not order.decontaminate:
        return None
    every = Bounds(min_side=1, max_aspect=math.inf, max_images=sys.maxsize)
    return guard_of(screened(d, every, Counter()) for name in order.decontaminate for d in open_store(name).scan())


@contextmanager
def _begun(order: Order, to: Path) -> Iterator[Path]:
    """The folder of the work, new or of an earlier try of the same order, held against other processes."""
    folder = to.with_name(to.name + ".part")
    record, said = folder / "order.json", order.model_dump_json(indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            raise BusyError(f"{folder} is being worked on by another process; wait, or prepare elsewhere") from None
        if record.is_file() and record.read_text(encoding="utf-8") != said:
            raise BusyError(
                f"{folder} is of another preparation (its order.json differs); remove it or prepare elsewhere"
            )
        record.write_text(said, encoding="utf-8")
        for rest in folder.glob("*.tmp"):
            shutil.rmtree(rest)  # of a process that was stopped
        yield folder


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, disable=not show)
