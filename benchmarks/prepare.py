"""Speed of `mm1 prepare` on web pages and on tars, compared with a tool that does only the main part of the work.

    python benchmarks/prepare.py [--processes 2] [--rounds 5] [--packages .cache/packages]

pages     the GIMP manual, fetched from its package. Ours: a page is read, its content extracted, its images read,
          decoded and checked (`mm1 prepare` at its defaults); the second line leaves the images as addresses. Theirs:
          `trafilatura.extract` of the same bytes, which extracts text alone.
samples   tars of 512 x 512 JPEGs with captions, written for the run by webdataset. Both decode to 336 x 336 with the
          same function (mm1/data/image.py). Ours also makes documents of them.

All are measured in turn, round by round; a ratio is the median over the rounds. One process is measured in CPU time,
several in wall-clock time, during which nothing else may run. Needs webdataset, and leaves trafilatura out where it
isn't installed (pip install '.[bench]' has both).
"""

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # `sample_build` is not installed

import numpy as np
import PIL.Image

from mm1.data.image import load
from mm1.prepare.filters.image_filters import ImageBounds, screen
from mm1.prepare.html.main_content import main_content
from mm1.prepare.ledger import Ledger
from mm1.prepare.readers.tars import read_tars
from mm1.prepare.readers.web import read_html
from mm1.prepare.shard import Shard
from sample_build.sources import GIMP

SIDE = 336
_PAGES_PER_SHARD, _EVERY = 20, 4  # every fourth page of the manual, so that a round takes seconds
_TARS, _SAMPLES = 8, 40
_WHERE = {0: "CPU time", 1: "1 process"}


def our_pages(shard: Shard) -> int:
    """The number of pages read, as `mm1 prepare` reads them."""
    ledger = Ledger()
    for document in read_html(shard, ledger):
        screen(document, ImageBounds(), ledger)
    return len(shard.files)


def our_text(shard: Shard) -> int:
    """The number of pages read, their images left as addresses."""
    return sum(bool(main_content(path.read_bytes(), path.as_uri())) for path in shard.files)


def their_pages(shard: Shard) -> int:
    import trafilatura

    for path in shard.files:
        trafilatura.extract(path.read_bytes())
    return len(shard.files)


def our_samples(shard: Shard) -> int:
    return sum(load(document.images[0].data, SIDE).shape[1] == SIDE for document in read_tars(shard, Ledger()))


def their_samples(shard: Shard) -> int:
    import webdataset

    samples = webdataset.WebDataset(str(shard.files[0]), shardshuffle=False)
    return sum(load(sample["jpg"], SIDE).shape[1] == SIDE for sample in samples)


def page_shards(packages: Path) -> list[Shard]:
    root = GIMP.folder(packages) / "usr/share/gimp/2.0/help/en"
    files = sorted(root.glob("*.html"))[::_EVERY]
    starts = range(0, len(files), _PAGES_PER_SHARD)
    return [Shard(str(at), root, tuple(files[at : at + _PAGES_PER_SHARD])) for at in starts]


def tar_shards(folder: Path) -> list[Shard]:
    import webdataset

    for tar in range(_TARS):
        with webdataset.TarWriter(str(folder / f"{tar:05}.tar")) as file:
            for sample in range(_SAMPLES):
                fields = {"caption": f"picture {sample}", "url": f"https://e.org/{sample}", "status": "success"}
                data = photo(tar * _SAMPLES + sample)
                file.write({"__key__": f"{tar:04}{sample:05}", "jpg": data, "txt": fields["caption"], "json": fields})
    return [Shard(path.name, folder, (path,)) for path in sorted(folder.glob("*.tar"))]


def photo(seed: int) -> bytes:
    """A JPEG with shapes and grain, with about as many bytes as a photograph of its size."""
    random = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((512, 512), PIL.Image.Resampling.BICUBIC), np.int16)
    grainy = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(grainy).save(file, "JPEG", quality=85)
    return file.getvalue()


def rate(task: Callable[[Shard], int], shards: Iterable[Shard], *, pool: ProcessPoolExecutor | None) -> float:
    """Pages or samples per second: by the clock in a pool, in CPU time without one."""
    clock = time.process_time if pool is None else time.perf_counter
    start = clock()
    count = sum(map(task, shards) if pool is None else pool.map(task, shards))
    return count / (clock() - start)


Rates = dict[tuple[str, int], list[float]]


def measure(tasks: dict[str, tuple[Callable, list[Shard]]], *, processes: int, rounds: int) -> Rates:
    """The rates of each task by round, in this process (0), and in pools of one and of `processes`.

    The first round is a warm-up.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as one, ProcessPoolExecutor(processes, mp_context=spawn) as many:
        pools = {0: None} | ({1: one, processes: many} if processes > 1 else {})
        rates: Rates = {(name, count): [] for name in tasks for count in pools}
        for round_ in range(rounds + 1):
            for name, (task, shards) in tasks.items():
                for count, pool in pools.items():
                    items_per_second = rate(task, shards, pool=pool)
                    rates[name, count] += [items_per_second] if round_ else []
    return rates


def ratio(over: list[float], under: list[float]) -> str:
    each = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packages", type=Path, default=Path(".cache/packages"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pages, tars = page_shards(options.packages), tar_shards(Path(folder))
        tasks = {
            "our pages": (our_pages, pages),
            "our pages, text and addresses": (our_text, pages),
            "trafilatura": (their_pages, pages),
            "our samples": (our_samples, tars),
            "webdataset": (their_samples, tars),
        }
        if find_spec("trafilatura") is None:
            del tasks["trafilatura"]
            print("trafilatura is left out: it is not installed (pip install '.[bench]')")
        rates = measure(tasks, processes=options.processes, rounds=options.rounds)
    print(f"{os.cpu_count()} cores, {options.rounds} rounds, medians (smallest to largest)\n")
    for (name, count), values in rates.items():
        print(f"{name:30} {_WHERE.get(count, f'{count} processes'):12}{statistics.median(values):8.0f} a second")
    print()
    compared = {"our pages": "trafilatura", "our pages, text and addresses": "trafilatura", "our samples": "webdataset"}
    for ours, theirs in ((ours, theirs) for ours, theirs in compared.items() if theirs in tasks):
        for count in (0, options.processes) if options.processes > 1 else (0,):
            where = _WHERE.get(count, f"{count} processes each")
            print(f"{ours} / {theirs}, {where}: {ratio(rates[ours, count], rates[theirs, count])}")
    for name in tasks if options.processes > 1 else ():
        print(f"{name}, {options.processes} processes / 1: {ratio(rates[name, options.processes], rates[name, 1])}")


if __name__ == "__main__":
    main()
