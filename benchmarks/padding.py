"""Padding and packing time of ways to pack the same spans into sequences: one span each, greedy, knapsack, ours.

    python benchmarks/padding.py [--sequence-length 4096] [--spans 50000] [--tiling mm1_5]

Prints one table: for each set of lengths the share of positions that stay empty, and microseconds per span. The sets
are the shipped sample's sources and two synthetic ones with MM1's lengths (144 tokens per image, sequences of 4096).
With a tiling, the sample's pictures are cut into tiles of `--tile-pixels`, and names of tiles are tokens, as they are
in the tokenizers of models that have them.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as HFTokenizer

from mm1.data.encode import Cutter
from mm1.data.index import open_source
from mm1.data.plan import Spans, pack_windows
from mm1.data.store import open_store
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.tiling import AROUND, KINDS, TileSpec

Lengths = tuple[np.ndarray, np.ndarray]  # positions and images of each span


def alone(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """One span per sequence: a padded batch of sequences of full length."""
    return len(length)


def greedy(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """Spans in order; a new sequence begins when the next span does not fit."""
    sequences, positions, pictures = 1, 0, 0
    for needed, image in zip(length.tolist(), images.tolist(), strict=True):
        if positions + needed > sequence_length or pictures + image > max_images:
            sequences, positions, pictures = sequences + 1, 0, 0
        positions, pictures = positions + needed, pictures + image
    return sequences


def knapsack(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """Balanced greedy knapsack, as nanoVLM describes it: long to short, each into the emptiest sequence it fits.

    It works on buffers of 4,096 spans and opens 5 sequences more than the sum of lengths needs
    (https://github.com/huggingface/nanoVLM, data/advanced_datasets.py, read for its rule only).
    """
    sequences = 0
    for first in range(0, len(length), 4096):
        part, image = length[first : first + 4096], images[first : first + 4096]
        bins = -(-int(part.sum()) // sequence_length) + 5
        loads, pictures = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        for item in np.argsort(-part, kind="stable").tolist():
            fits = (loads + part[item] <= sequence_length) & (pictures + image[item] <= max_images)
            if not fits.any():
                loads, pictures = np.append(loads, 0), np.append(pictures, 0)
                fits = np.append(fits, True)
            emptiest = int(np.where(fits, loads, sequence_length + 1).argmin())
            loads[emptiest] += part[item]
            pictures[emptiest] += image[item]
        sequences += int((loads > 0).sum())
    return sequences


def ours(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    spans = Spans(np.arange(len(length)), np.zeros_like(length), length, images, length)
    return sum(
        int(part.sequences[0]) for part in pack_windows(spans, sequence_length=sequence_length, max_images=max_images)
    )


def least(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> int:
    """A lower bound for every way to pack."""
    return max(-(-int(length.sum()) // sequence_length), -(-int(images.sum()) // max_images))


WAYS: dict[str, Callable[..., int]] = {
    "one each": alone,
    "greedy": greedy,
    "knapsack": knapsack,
    "ours": ours,
    "least possible": least,
}


def tokenizer_with_names(folder: Path) -> Tokenizer:
    """The sample's tokenizer, in which Idefics3's names of tiles are special tokens."""
    tokenizer = HFTokenizer.from_file(str(load_tokenizer("sample").path))
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer.add_special_tokens([AROUND, "<global-img>", *cells])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def sample_lengths(tile: TileSpec, *, sequence_length: int, max_images: int) -> dict[str, Lengths]:
    with TemporaryDirectory() as folder:
        cutter = Cutter(tokenizer_with_names(Path(folder)), tile, sequence_length, max_images=max_images)
    lengths = {}
    for name in ("captions", "interleaved", "text", "vqa"):
        store = open_store(f"sample:{name}-train")
        spans = open_source(name, store, cutter=cutter, seed=(0,)).spans
        lengths[f"sample {name}"] = spans.length, spans.images
    return lengths


def synthetic_lengths(count: int, sequence_length: int) -> dict[str, Lengths]:
    """Captions of one image and pages of up to ten, log-normal in their text, pages cut into sequences."""
    random = np.random.default_rng(0)
    captions = 144 + 2 + random.lognormal(2.8, 0.6, count).astype(np.int64).clip(1, 200)
    pictures = random.geometric(0.4, count).clip(max=10)
    pages = 144 * pictures + 2 + random.lognormal(6.0, 1.0, count).astype(np.int64)
    whole, rest = np.divmod(pages, sequence_length)
    cut = np.concatenate([np.full(int(whole.sum()), sequence_length), rest[rest > 0]])
    images = np.concatenate([np.full(int(whole.sum()), 10), pictures[rest > 0]]).clip(max=cut // 144)
    shuffled = random.permutation(len(cut))
    return {
        "synthetic captions": (captions, np.ones_like(captions)),
        "synthetic pages": (cut[shuffled], images[shuffled]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--image-tokens", type=int, default=64, help="tokens per image of the sample")
    parser.add_argument("--max-images", type=int, default=64)
    parser.add_argument("--tiling", choices=sorted(KINDS), default="none")
    parser.add_argument("--tile-pixels", type=int, default=96)
    parser.add_argument("--spans", type=int, default=20_000, help="spans of a synthetic set")
    options = parser.parse_args()
    table = Table(
        title=f"padding, sequences of {options.sequence_length} positions, at most {options.max_images} tiles; "
        f"tiling {options.tiling}"
    )
    for column in ("lengths", "spans", *WAYS, *(f"{name}, us per span" for name in list(WAYS)[1:-1])):
        table.add_column(column, justify="right")
    tile = TileSpec(options.tile_pixels, options.image_tokens, KINDS[options.tiling])
    sets = sample_lengths(tile, sequence_length=options.sequence_length, max_images=options.max_images)
    sets |= synthetic_lengths(options.spans, options.sequence_length)
    for name, (length, images) in sets.items():
        paddings, times = [], []
        for way in WAYS.values():
            start = time.perf_counter()
            sequences = way(length, images, sequence_length=options.sequence_length, max_images=options.max_images)
            times.append(f"{(time.perf_counter() - start) / len(length) * 1e6:.2f}")
            paddings.append(f"{1 - length.sum() / (sequences * options.sequence_length):.2%}")
        table.add_row(name, f"{len(length):,}", *paddings, *times[1:-1])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
