"""The cost of a plan of many documents, in time and bytes: packing once, opening again, getting a far sequence.

    python benchmarks/plan.py [--documents 1000000 10000000] [--packed 1000000]

Documents are synthetic: half captions of one image, half pages of up to ten, 144 tokens per image, sequences of 4096.
They are written as the index of a source is (columns on disk), packed window by window, opened by a fresh process, and
sequences are read in the order of a run. Of more than `--packed` documents only the first so many are packed; their
packing is repeated, and the packing time is theirs. The last columns compare planning with the time that the loader
needs for the documents of the shipped sample (336 pixels, one core).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
from padding import synthetic_lengths
from rich.console import Console
from rich.table import Table

from mm1.config.run import DataConfig, SourceConfig
from mm1.data.index import append, mapped
from mm1.data.loader import Sequences
from mm1.data.plan import WINDOW, Packing, Plan, Spans, pack_windows, typed
from mm1.tiling import TileSpec

T, K = 4096, 64
FAR = 10**6  # steps
BLOCK = WINDOW * 128


def write(folder: Path, *, documents: int, packed: int) -> float:
    """The seconds per document that packing takes; writes the columns of a source to `folder`."""
    captions, pages = (synthetic_lengths(BLOCK, T)[name] for name in ("synthetic captions", "synthetic pages"))
    half = BLOCK // 2
    mixed = np.random.default_rng(0).permutation(BLOCK)
    length = np.concatenate([captions[0][:half], pages[0][:half]])[mixed]
    images = np.concatenate([captions[1][:half], pages[1][:half]])[mixed]
    sizes = [min(BLOCK, documents - first) for first in range(0, documents, BLOCK)]
    parts = (
        typed(
            Spans,
            document=np.arange(number * BLOCK, number * BLOCK + size),
            start=np.zeros(size),
            length=length[:size],
            images=images[:size],
            trained=length[:size] // 3,
        )
        for number, size in enumerate(sizes)
    )
    append(Spans, parts, folder)
    spans = mapped(Spans, folder)
    if documents <= packed:
        start = time.perf_counter()
        append(Packing, pack_windows(spans, sequence_length=T, max_images=K), folder)
        return (time.perf_counter() - start) / documents
    first = Spans(**{field.name: getattr(spans, field.name)[:packed] for field in fields(Spans)})
    start = time.perf_counter()
    packings = list(pack_windows(first, sequence_length=T, max_images=K))
    seconds = time.perf_counter() - start
    windows = len(np.linspace(0, documents, -(-documents // WINDOW) + 1)) - 1
    edges = np.linspace(0, documents, windows + 1).astype(np.int64)
    repeated = (_fitted(packings[n % len(packings)], int(edges[n + 1] - edges[n])) for n in range(windows))
    append(Packing, repeated, folder)
    return seconds / packed


def _fitted(packing: Packing, spans: int) -> Packing:
    """The packing for a window of one span more or fewer, which the last sequence takes."""
    sizes = packing.sequence_spans.copy()
    sizes[-1] += spans - len(packing.order)
    return Packing(np.resize(packing.order, spans), sizes, packing.sequence_images, packing.sequences)


def measure(folder: Path) -> dict[str, float]:
    """The cost of opening the source in this process and reading sequences like a run that begins at step 10^6."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    plan = Plan(mapped(Spans, folder), mapped(Packing, folder), seed=(0, 2, 0))
    first = FAR * 64
    spans = len(plan.sequence(first))
    opened = time.perf_counter() - start
    start = time.process_time()
    for k in range(first + 1, first + 4000):
        plan.images(k)
        spans += len(plan.sequence(k))
    each = (time.process_time() - start) / spans
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"opened": opened, "each": each, "grown": grown / 1024, "sequences": plan.epoch_sequences}


def reading() -> float:
    """Seconds per document of the sample's captions that the loader takes to read, encode and decode to 336 pixels."""
    data = DataConfig(sources={"captions": SourceConfig(store="sample:captions-test")}, sequence_length=T, workers=0)
    sequences = Sequences(data, tile=TileSpec(336, 16), seed=0, batch_size=1)
    sequences.batch([0])
    start = time.process_time()
    documents = sum(int(sequences.batch([n]).document_BT.max()) for n in range(1, 7))
    return (time.process_time() - start) / documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument(
        "--packed", type=int, default=10**6, help="documents that are packed; the packing of more is repeated"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    read = reading()
    table = Table(title=f"a plan of sequences of {T} positions; reading a document takes {read * 1e3:.2f} ms")
    heads = ("documents", "sequences", "bytes each", "pack once, us each", "open at step 10^6, s", "memory, MB")
    for column in (*heads, "plan, us per document", "of reading"):
        table.add_column(column, justify="right")
    for documents in options.documents:
        with tempfile.TemporaryDirectory() as name:
            pack = write(Path(name), documents=documents, packed=options.packed)
            size = sum(file.stat().st_size for file in Path(name).iterdir())
            command = [sys.executable, __file__, "--measure", name]
            costs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        table.add_row(
            f"{documents:,}",
            f"{costs['sequences']:,}",
            f"{size / documents:.1f}",
            f"{pack * 1e6:.2f}",
            f"{costs['opened']:.2f}",
            f"{costs['grown']:.0f}",
            f"{costs['each'] * 1e6:.2f}",
            f"{costs['each'] / read:.3%}",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
