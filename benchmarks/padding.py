"""Padding and planning time of ways to pack the same spans into rows: one span a row, greedy, knapsack, ours.

    python benchmarks/padding.py [--row-length 4096] [--spans 50000]

Prints one table: for each set of lengths the share of places that stay empty, and microseconds a span. The sets are
the shipped sample's sources, and two made ones with the lengths MM1 has (144 places an image, 4096 a row).
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from mm1.data.encode import Cutter
from mm1.data.index import open_source
from mm1.data.plan import Spans, pack_windows
from mm1.data.store import open_store
from mm1.data.tiles import TileSpec
from mm1.data.tokenizer import load_tokenizer

Lengths = tuple[np.ndarray, np.ndarray]  # places and images of each span


def alone(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """One span a row: what a padded batch does when rows are as long as the longest may be."""
    return len(length)


def greedy(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """Spans in order; a row is closed when the next does not fit."""
    rows, places, pictures = 1, 0, 0
    for need, image in zip(length.tolist(), images.tolist(), strict=True):
        if places + need > sequence_length or pictures + image > max_images:
            rows, places, pictures = rows + 1, 0, 0
        places, pictures = places + need, pictures + image
    return rows


def knapsack(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """Balanced greedy knapsack, as nanoVLM describes it: long to short, each into the emptiest row it fits.

    It works on buffers of 4,096 spans and opens 5 rows more than the sum of lengths needs
    (https://github.com/huggingface/nanoVLM, data/advanced_datasets.py, read for its rule only).
    """
    rows = 0
    for first in range(0, len(length), 4096):
        part, image = length[first : first + 4096], images[first : first + 4096]
        bins = -(-int(part.sum()) // sequence_length) + 5
        loads, pictures = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        for item in np.argsort(-part, kind="stable").tolist():
            fits = (loads + part[item] <= sequence_length) & (pictures + image[item] <= max_images)
            if not fits.any():
                loads, pictures = np.append(loads, 0), np.append(pictures, 0)
                fits = np.append(fits, True)
            row = int(np.where(fits, loads, sequence_length + 1).argmin())
            loads[row] += part[item]
            pictures[row] += image[item]
        rows += int((loads > 0).sum())
    return rows


def ours(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    spans = Spans(np.arange(len(length)), np.zeros_like(length), length, images, length)
    return sum(
        int(part.sequences[0]) for part in pack_windows(spans, sequence_length=sequence_length, max_images=max_images)
    )


def least(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """No way to pack gives fewer."""
    return max(-(-int(length.sum()) // sequence_length), -(-int(images.sum()) // max_images))


WAYS: dict[str, Callable[..., int]] = {
    "one a row": alone,
    "greedy": greedy,
    "knapsack": knapsack,
    "ours": ours,
    "least possible": least,
}


def sample_lengths(sequence_length: int, image_tokens: int) -> dict[str, Lengths]:
    cutter = Cutter(load_tokenizer("sample"), TileSpec(1, image_tokens), sequence_length, max_images=64)
    found = {}
    for name in ("captions", "interleaved", "text", "vqa"):
        store = open_store(f"sample:{name}-train")
        spans = open_source(name, store, cutter=cutter, seed=(0,)).spans
        found[f"sample {name}"] = spans.length, spans.images
    return found


def made_lengths(count: int, sequence_length: int) -> dict[str, Lengths]:
    """Captions of one image and pages of up to ten, log-normal in their text, pages cut at a row's end."""
    random = np.random.default_rng(0)
    captions = 144 + 2 + random.lognormal(2.8, 0.6, count).astype(np.int64).clip(1, 200)
    pictures = random.geometric(0.4, count).clip(max=10)
    pages = 144 * pictures + 2 + random.lognormal(6.0, 1.0, count).astype(np.int64)
    whole, rest = np.divmod(pages, sequence_length)
    cut = np.concatenate([np.full(int(whole.sum()), sequence_length), rest[rest > 0]])
    images = np.concatenate([np.full(int(whole.sum()), 10), pictures[rest > 0]]).clip(max=cut // 144)
    shuffled = random.permutation(len(cut))
    return {
        "made captions": (captions, np.ones_like(captions)),
        "made pages": (cut[shuffled], images[shuffled]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row-length", type=int, default=4096)
    parser.add_argument("--image-tokens", type=int, default=64, help="places of an image of the sample")
    parser.add_argument("--row-images", type=int, default=64)
    parser.add_argument("--spans", type=int, default=20_000, help="spans of a made set")
    options = parser.parse_args()
    table = Table(title=f"padding, rows of {options.sequence_length} places and at most {options.max_images} images")
    for column in ("lengths", "spans", *WAYS, *(f"{name}, us a span" for name in list(WAYS)[1:-1])):
        table.add_column(column, justify="right")
    sets = sample_lengths(options.sequence_length, options.image_tokens)
    sets |= made_lengths(options.spans, options.sequence_length)
    for name, (length, images) in sets.items():
        paddings, times = [], []
        for way in WAYS.values():
            start = time.perf_counter()
            rows = way(length, images, sequence_length=options.sequence_length, max_images=options.max_images)
            times.append(f"{(time.perf_counter() - start) / len(length) * 1e6:.2f}")
            paddings.append(f"{1 - length.sum() / (rows * options.sequence_length):.2%}")
        table.add_row(name, f"{len(length):,}", *paddings, *times[1:-1])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
