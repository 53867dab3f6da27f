"""Samples per second on one core: mm1's loader and other loaders, on the same JPEG files with the same resize.

    python benchmarks/loader.py [--samples 384] [--rounds 5]

Every loader reads the same pictures with captions from its native format (Lance, tar, parquet, MDS) in one process
without workers, and returns 336 x 336 RGB pixels, resized bicubically, and the caption. mm1 also encodes the captions,
mixes them, packs them into sequences, and writes the pixels into batches of about 26. Each peer is in the table three
times: with its own decoder (Pillow), with mm1's, and with mm1's and its pixels stacked into batches of 26, as training
needs them; without that a peer's pixels are thrown away one by one.
Loaders take turns. Figures are medians over rounds, by processor time; the ratio is mm1's median divided by the peer's.
A peer that cannot be imported is named with the reason. mosaicml-streaming and megatron-energon need other versions
than mm1: install them in an environment of their own.
"""

import argparse
import io
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import torch
from decode import synthetic_jpegs
from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table

from mm1.config.run import DataConfig, SourceConfig
from mm1.data.image import load
from mm1.data.loader import Sequences, batches
from mm1.data.store import write_store
from mm1.document import Document, Image, Text
from mm1.tiling import TileSpec

SIZE, BATCH = 336, 26
Sample = tuple[bytes, str]
Stream = Callable[[], Iterator[Any]]  # yields the number of samples of each item: 1, or more for a batch


def squeeze(picture: Any) -> np.ndarray:
    """The pixels of a peer's own decoder after Pillow's bicubic resize."""
    return np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Pillow.Resampling.BICUBIC))


def bytes_to_pixels(data: bytes) -> np.ndarray:
    return load(data, SIZE)


def decoded(name: str, pictures: Callable[[], Iterator[bytes]]) -> dict[str, Stream]:
    """The streams of a peer that is handed mm1's decoder; `pictures` reads its encoded pictures."""

    def one_by_one() -> Iterator[int]:
        for data in pictures():
            bytes_to_pixels(data)
            yield 1

    def in_batches() -> Iterator[int]:
        pixels = map(bytes_to_pixels, pictures())
        while batch := list(itertools.islice(pixels, BATCH)):
            torch.from_numpy(np.stack(batch))
            yield len(batch)

    return {f"{name}, mm1's decoder": one_by_one, f"{name}, mm1's decoder, batches": in_batches}


def ours(samples: list[Sample], folder: Path) -> dict[str, Stream]:
    documents = (Document((Image(data), Text(text))) for data, text in samples)
    write_store(documents, folder / "captions.lance")
    data = DataConfig(
        sources={"captions": SourceConfig(store=str(folder / "captions.lance"))},
        sequence_length=2048,
        max_images=16,
        workers=0,
    )
    sequences = Sequences(data, tile=TileSpec(SIZE, 144), seed=0, batch_size=2, folder=folder / "index")

    def stream() -> Iterator[int]:
        for step in batches(sequences, start_sequence=0, batch_size=2, micro_batch_size=2):
            yield sum(batch.images for batch in step)

    return {"mm1": stream}


def webdataset(samples: list[Sample], folder: Path) -> dict[str, Stream]:
    import webdataset as wds

    path = write_tar(samples, folder / "samples.tar")

    def as_it_is() -> Iterator[int]:
        data = wds.WebDataset(path, shardshuffle=False, empty_check=False)
        for picture, _ in data.decode("pil").to_tuple("jpg", "txt"):
            squeeze(picture)
            yield 1

    def pictures() -> Iterator[bytes]:
        for data, text in wds.WebDataset(path, shardshuffle=False, empty_check=False).to_tuple("jpg", "txt"):
            text.decode()
            yield data

    return {"webdataset": as_it_is} | decoded("webdataset", pictures)


def hf_datasets(samples: list[Sample], folder: Path) -> dict[str, Stream]:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as parquet

    images = pa.array([{"bytes": data, "path": None} for data, _ in samples])
    path = folder / "samples.parquet"
    parquet.write_table(pa.table({"image": images, "text": [text for _, text in samples]}), path, row_group_size=64)

    def opened(decode: bool) -> Any:
        data = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        return data.cast_column("image", datasets.Image(decode=decode))

    def as_it_is() -> Iterator[int]:
        for sample in opened(True):
            squeeze(sample["image"])
            yield 1

    def pictures() -> Iterator[bytes]:
        return (sample["image"]["bytes"] for sample in opened(False))

    return {"datasets, streaming": as_it_is} | decoded("datasets, streaming", pictures)


def mosaic(samples: list[Sample], folder: Path) -> dict[str, Stream]:
    stub_torchvision()
    from streaming import MDSWriter, StreamingDataset

    for kind in ("jpeg", "bytes"):
        with MDSWriter(out=str(folder / f"mds-{kind}"), columns={"image": kind, "text": "str"}) as out:
            for data, text in samples:
                out.write({"image": Pillow.open(io.BytesIO(data)) if kind == "jpeg" else data, "text": text})

    def pictures(kind: str) -> Iterator[Any]:
        return (sample["image"] for sample in StreamingDataset(local=str(folder / f"mds-{kind}"), batch_size=1))

    def as_it_is() -> Iterator[int]:
        for picture in pictures("jpeg"):
            squeeze(picture)
            yield 1

    return {"mosaicml-streaming": as_it_is} | decoded("mosaicml-streaming", partial(pictures, "bytes"))


def stub_torchvision() -> None:
    """Make `import torchvision` work without it: mosaicml-streaming imports it for classes that are not used here."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        if name not in sys.modules:
            module = ModuleType(name)
            module.__getattr__ = _class_of_torchvision  # type: ignore[method-assign]
            module.__path__ = []
            module.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = module


def _class_of_torchvision(name: str) -> type:
    if name.startswith("__"):  # of every module, which other libraries look for
        raise AttributeError(name)
    return SimpleNamespace


def energon(samples: list[Sample], folder: Path) -> dict[str, Stream]:
    from megatron.energon import DefaultTaskEncoder, SampleDecoder, WorkerConfig, get_loader, get_train_dataset

    root = folder / "energon"
    root.mkdir()
    write_tar(samples, root / "samples.tar")
    prepare = "import sys; from megatron.energon.tools.prepare import command; command()"
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--num-workers", "1"]
    options += ["--sample-type", "CaptioningSample", "--field-map", '{"image": "jpg", "caption": "txt"}']
    subprocess.run([sys.executable, "-c", prepare, *options, str(root)], check=True, capture_output=True)

    def pictures(decoder: Any) -> Iterator[Any]:
        class Encoder(DefaultTaskEncoder):
            def __init__(self):
                super().__init__()
                self.decoder = decoder

        worker = WorkerConfig(rank=0, world_size=1, num_workers=0)
        data = get_train_dataset(
            str(root),
            batch_size=None,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            worker_config=worker,
            task_encoder=Encoder(),
        )
        return (sample.image for sample in get_loader(data))

    def as_it_is() -> Iterator[int]:
        for picture in pictures(SampleDecoder(image_decode="pil")):
            squeeze(picture)
            yield 1

    return {"Megatron-Energon": as_it_is} | decoded("Megatron-Energon", partial(pictures, None))


def write_tar(samples: list[Sample], path: Path) -> str:
    with tarfile.open(path, "w") as tar:
        for number, (data, text) in enumerate(samples):
            for ending, content in (("jpg", data), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


def speed(stream: Stream, samples: int) -> float:
    """Samples per second of processor time of all threads, without opening the data."""
    items = stream()
    next(items)
    done, start = 0, time.process_time()
    for count in items:
        done += count
        if done >= samples:
            break
    return done / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    for width, height in ((512, 512), (1024, 768)):
        jpegs = synthetic_jpegs(width, height)
        samples = [(jpegs[n % len(jpegs)], f"a picture of noise, number {n}") for n in range(options.samples)]
        with tempfile.TemporaryDirectory() as folder:
            streams: dict[str, Stream] = {}
            for loader in (ours, webdataset, hf_datasets, mosaic, energon):
                try:
                    streams |= loader(samples, Path(folder))
                except Exception as error:  # a peer may fail in any way at import; print how
                    console.print(f"{loader.__name__} is left out: {type(error).__name__}: {str(error)[:300]}")
            speeds: dict[str, list[float]] = {name: [] for name in streams}
            for _ in range(options.rounds):
                for name, stream in streams.items():
                    speeds[name].append(speed(stream, options.samples - 40))
        table = Table(title=f"JPEG {width} x {height} to {SIZE} x {SIZE}")
        for column in ("loader", "samples/s per core", "mm1 / loader"):
            table.add_column(column, justify="left" if column == "loader" else "right")
        for name, of_loader in speeds.items():
            table.add_row(name, f"{median(of_loader):,.0f}", f"{median(speeds['mm1']) / median(of_loader):.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
