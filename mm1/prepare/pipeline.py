"""A preparation: shards are processed on all cores or machines, then merged into stores that appear whole.

While it runs, `TO.part/` holds the result of each finished shard. The same command continues with the missing shards:
those of files that are new, or that have another size or time than when they were read. A shard that fails is named, on
the card too, and does not stop the others; `TO.part/` then stays, so that the same command reads it again.
"""

import fcntl
import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mm1.cluster import Runner
from mm1.data.store import open_store
from mm1.prepare.card import Failure, PrepareResult, write_card
from mm1.prepare.decontaminate import Decontaminator, index_evaluation_sets
from mm1.prepare.executor import run_shards
from mm1.prepare.fetch import Fetcher
from mm1.prepare.filters.image_filters import ImageBounds, screen
from mm1.prepare.ledger import Ledger
from mm1.prepare.merge import NothingLeftError, merge
from mm1.prepare.process_shard import is_current, process_shard
from mm1.prepare.readers.kinds import PAGES, list_shards
from mm1.prepare.readers.ranges import cut
from mm1.prepare.readers.task_chats import PREFIX, ChatsOfTask, TaskChats, task_shards
from mm1.prepare.request import PrepareRequest
from mm1.prepare.shard import InputError, Shard
from mm1.prepare.watch import Stamp, stamp


class BusyError(ValueError):
    """The folder of another preparation is in the way."""


def prepare(
    request: PrepareRequest,
    to: Path,
    *,
    chats_of: ChatsOfTask | None = None,
    runner: Runner | None = None,
    show: bool = False,
) -> PrepareResult:
    """What was prepared; the folder `to` then holds the stores `images` and `text`, each if it has documents.

    The result does not depend on the runner. `chats_of` makes the chats of inputs `task:NAME`. `show` draws a progress
    bar.

    Raises:
        FileExistsError: `to` exists. BusyError: `TO.part` is of another request, or another process works on it.
        InputError: the input is missing, or not of this kind. ValueError: no document is left.
    """
    tasks = _tasks(request, chats_of)
    shards = _shards(request, to, tasks)
    _check_target(request, to, shards)
    with _work_folder(request, to) as folder, _progress(show) as progress:
        decontaminator = _decontaminator(request, tasks, folder)
        outputs = [folder / _key(shard) for shard in shards]
        missing = [number for number, output in enumerate(outputs) if not is_current(output)]
        for number in missing:
            shutil.rmtree(outputs[number], ignore_errors=True)  # its files have changed
        task = progress.add_task("reading shards", total=len(shards), completed=len(shards) - len(missing))
        failed: dict[str, Failure] = {}
        process = partial(_process, request, shards, outputs, decontaminator)
        for number, error in run_shards(process, missing, runner=runner or Runner()):
            failed |= {shards[number].title: Failure(**json.loads(error))} if error else {}
            progress.advance(task)
        merged = folder / "whole"
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir()
        progress.update(task, description="removing copies")
        finished = [output for output in outputs if output.is_dir()]
        failed = dict(sorted(failed.items()))
        repeats, skipped = request.max_image_repeats, Counter(reason for shard in shards for reason in shard.skipped)
        try:
            result = merge(
                finished, merged, rules=request.copy_rules, max_image_repeats=repeats, failed=failed, skipped=skipped
            )
        except NothingLeftError:
            for output in dict.fromkeys(finished) if not failed else ():
                shutil.rmtree(output)  # another try needs other files or other fields
            raise
        progress.update(task, description="writing the card")
        (merged / "ledger.json").unlink()  # the card has it
        (merged / "request.json").write_text(request.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (merged / "inputs.json").write_text(
            json.dumps(_stamps(shards, finished)), encoding="utf-8", errors="surrogateescape"
        )
        write_card(merged, result, title=to.name)
        if to.exists():
            to.rename(folder / "replaced")
        merged.rename(to)
    if not failed:
        shutil.rmtree(folder)
    return result


def _key(shard: Shard) -> str:
    """The name of a shard's output: the same in every try as long as the shard has the same files, by name."""
    content = (shard.name, shard.kind, shard.span, shard.sample, [str(path) for path in shard.files])
    return hashlib.sha256(repr(content).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stamps(shards: Iterable[Shard], outputs: Iterable[Path]) -> dict[str, Stamp]:
    """Size and time of all files of the input, and of the pictures that were looked for as its shards were read."""
    stamps = {str(path): stamp(path) for shard in shards for path in shard.files}
    for output in outputs:
        stamps |= json.loads((output / "files.json").read_text(encoding="utf-8"))
    return stamps


def _check_target(request: PrepareRequest, to: Path, shards: Sequence[Shard]) -> None:
    """Returns if the folder `to` may be written: it is not there, or an earlier try of the same request left faults.

    Raises:
        FileExistsError: it is there; the message says what has changed in its input.
    """
    if not to.exists():
        return
    message = f"{to} exists; remove it first or prepare elsewhere"
    try:
        same_request = (to / "request.json").read_text(encoding="utf-8") == request.model_dump_json(indent=1) + "\n"
        before = json.loads((to / "inputs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(message) from None
    if same_request and to.with_name(to.name + ".part").exists():
        return
    if same_request:
        names = sorted({str(path) for shard in shards for path in shard.files} | before.keys())
        now = {name: list(value) if (value := stamp(name)) else None for name in names}
        new = [name for name in names if now[name] and not before.get(name)]
        gone = [name for name in names if before.get(name) and not now[name]]
        changed = [name for name in names if now[name] and before.get(name) and now[name] != before[name]]
        changes = [
            f"{what}: {_some(names)}" for what, names in (("new", new), ("changed", changed), ("gone", gone)) if names
        ]
        message += f"; its input has changed since: {'; '.join(changes)}" if changes else "; its input is the same"
    raise FileExistsError(message)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(Path(name).name for name in names[:3])}{more}"


def _process(
    request: PrepareRequest,
    shards: list[Shard],
    outputs: list[Path],
    decontaminator: Decontaminator | None,
    number: int,
) -> str:
    return process_shard(request, shards[number], outputs[number], decontaminator=decontaminator)


def _tasks(request: PrepareRequest, chats_of: ChatsOfTask | None) -> dict[str, TaskChats]:
    """The chats of the inputs that are tasks, by the input's name."""
    names = [entry.path for entry in request.inputs if entry.kind == "task"]
    if bool(names) != bool(request.data):
        raise InputError("data=FOLDER goes with task:NAME: the folder of the task's data set")
    if names and chats_of is None:
        raise InputError(f"{names[0]} is made by evaluation, which was not handed over")
    return {name: chats_of(name.removeprefix(PREFIX), request.data) for name in names if chats_of is not None}


def _pages(request: PrepareRequest) -> list[Shard]:
    """The shards of the pages that the request asks to be rendered."""
    wanted = any(entry.kind == PAGES for entry in request.inputs)
    if not wanted == bool(request.text) == bool(request.count):
        raise InputError(f"text=STORE and count=N go with {PAGES}: whose texts are written, on how many pages")
    if not wanted:
        return []
    from mm1.prepare.rendering.fonts import find_fonts  # matplotlib takes a second
    from mm1.prepare.rendering.pages import Rendering

    open_store(request.text)  # a name that is wrong is an error of the request
    sizes = (request.page_words, request.page_side, request.page_letters)
    return Rendering(request.text, find_fonts(request.fonts), request.seed, *sizes).shards(request.count)


def _shards(request: PrepareRequest, to: Path, tasks: Mapping[str, TaskChats]) -> list[Shard]:
    """The shards of all inputs, in their order."""
    fetcher = Fetcher(to.with_name(to.name + ".fetched")) if request.fetch else None
    pictures = Path(request.pictures) if request.pictures else None
    if pictures is not None and not pictures.is_dir():
        raise InputError(f"there is no folder {pictures}; pictures= names the folder that names of pictures start from")
    without_files = {PAGES: _pages(request)} | {name: task_shards(name, chats) for name, chats in tasks.items()}
    shards = []
    for entry in request.inputs:
        path = Path(entry.path)
        listed = without_files.get(entry.path) or list_shards(
            path, entry.kind, pictures=pictures, fetcher=fetcher, options=request.read_options
        )
        for shard in listed:
            name = f"{path}: {shard.name}" if len(request.inputs) > 1 else shard.name
            shards += cut(replace(shard, name=name, source=path.resolve().name))
    return shards


def _decontaminator(request: PrepareRequest, tasks: Mapping[str, TaskChats], folder: Path) -> Decontaminator | None:
    """The index of the evaluation sets that the request names, and those of its tasks; None if there are none.

    Their pictures are written to a store in `folder`, which the next try removes.
    """
    if not request.decontaminate and not tasks:
        return None
    unbounded = ImageBounds(min_side=1, max_aspect=math.inf, max_images=sys.maxsize, on_missing="keep_text")
    stores = (open_store(name).scan() for name in request.decontaminate)
    documents = chain.from_iterable((*stores, *(chats.evaluation_set() for chats in tasks.values())))
    screened = (screen(document, unbounded, Ledger()) for document in documents)
    pictures = Path(tempfile.mkdtemp(prefix="evaluation.", suffix=".tmp", dir=folder)) / "pictures.lance"
    return index_evaluation_sets(screened, pictures, rules=request.copy_rules)


@contextmanager
def _work_folder(request: PrepareRequest, to: Path) -> Iterator[Path]:
    """The folder of the work, new or of an earlier try of the same request, locked against other processes."""
    folder = to.with_name(to.name + ".part")
    record, content = folder / "request.json", request.model_dump_json(indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released with the process, however it ends
        except BlockingIOError:
            raise BusyError(f"another process is working on {folder}; wait, or prepare elsewhere") from None
        if record.is_file() and record.read_text(encoding="utf-8") != content:
            what = f"another preparation (its request.json differs{_differing(record, content)})"
            raise BusyError(f"{folder} is of {what}; remove it or prepare elsewhere")
        record.write_text(content, encoding="utf-8")
        for leftover in (*folder.glob("*.tmp"), folder / "replaced"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a process that was stopped
        try:
            yield folder
        except Exception:
            if not any(folder.glob("*/ledger.json")):
                shutil.rmtree(folder, ignore_errors=True)  # it helps no other try, which may be of another request
            raise


def _differing(record: Path, content: str) -> str:
    """In which fields the request of an earlier try differs."""
    try:
        before, now = json.loads(record.read_text(encoding="utf-8")), json.loads(content)
        return f": {', '.join(name for name in now if now[name] != before.get(name))}"
    except (ValueError, AttributeError):
        return ""


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, disable=not show)
