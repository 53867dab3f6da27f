"""Images a second, one core, of ways to decode a picture and squeeze it to 336 x 336 RGB pixels.

    python benchmarks/decode.py [--size 336] [--rounds 7]

Ways take turns, round by round; the medians of the rounds are printed, with the ratio to Pillow's `draft` and how far
the pixels are from those of a full decode and Pillow's bicubic resize (mean of the absolute difference, of 255).
OpenCV's ways are left out where it is not installed.
"""

import argparse
import io
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import simplejpeg
from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table

from mm1.data.image import load
from mm1.data.store import open_store

try:
    import cv2
except ImportError:
    cv2 = None

Way = Callable[[bytes, int], np.ndarray]


def pillow(data: bytes, size: int) -> np.ndarray:
    with Pillow.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC))


def pillow_draft(data: bytes, size: int) -> np.ndarray:
    with Pillow.open(io.BytesIO(data)) as picture:
        picture.draft("RGB", (size, size))
        return np.asarray(picture.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC, reducing_gap=2.0))


def opencv(data: bytes, size: int) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def turbo_opencv(data: bytes, size: int) -> np.ndarray:
    pixels = simplejpeg.decode_jpeg(data, min_height=size, min_width=size)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def ours(data: bytes, size: int) -> np.ndarray:
    return load(data, size).transpose(1, 2, 0)


def made_jpegs(width: int, height: int, *, count: int = 24) -> list[bytes]:
    """Pictures as rough as photographs: noise of every scale, the coarse strongest."""
    random, files = np.random.default_rng(width), []
    for _ in range(count):
        pixels = np.zeros((height, width, 3), np.float32)
        for octave in range(2, 9):
            grid = random.normal(0, 60 * 0.62 ** (octave - 2), (2**octave, 2**octave, 3)).astype(np.float32)
            layers = [
                Pillow.fromarray(grid[:, :, colour]).resize((width, height), Pillow.Resampling.BICUBIC)
                for colour in range(3)
            ]
            pixels += np.stack([np.asarray(layer) for layer in layers], axis=2)
        file = io.BytesIO()
        Pillow.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def sample_webps(count: int = 96) -> list[bytes]:
    documents = open_store("sample:captions-train").take(list(range(0, 20 * count, 20)))
    found = [image.data for document in documents for image in document.images]
    return [data for data in found if data[8:12] == b"WEBP"]


def measure(files: list[bytes], ways: dict[str, Way], *, size: int, rounds: int) -> dict[str, float]:
    """The median images a second of each way."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            for data in files:
                way(data, size)
            speeds[name].append(len(files) / (time.process_time() - start))
    return {name: median(found) for name, found in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    anything: dict[str, Way] = {"Pillow": pillow, "Pillow draft": pillow_draft, "mm1": ours}
    if cv2:
        cv2.setNumThreads(1)
        anything["OpenCV area"] = opencv
    jpeg = anything | ({"simplejpeg + OpenCV area": turbo_opencv} if cv2 else {})
    sets = {
        "JPEG 512 x 512": (made_jpegs(512, 512), jpeg),
        "JPEG 1024 x 768": (made_jpegs(1024, 768), jpeg),
        "WebP of the sample": (sample_webps(), anything),
    }
    table = Table(title=f"to {options.size} x {options.size}, images a second of one core")
    for column in ("files", "kB each", "way", "images/s", "over draft", "difference"):
        table.add_column(column, justify="right")
    for name, (files, ways) in sets.items():
        speeds = measure(files, ways, size=options.size, rounds=options.rounds)
        exact = [pillow(data, options.size).astype(float) for data in files]
        for way, speed in speeds.items():
            found = zip(files, exact, strict=True)
            far = np.mean([np.abs(ways[way](data, options.size) - right).mean() for data, right in found])
            kilobytes = sum(map(len, files)) / len(files) / 1000
            ratio = speed / speeds["Pillow draft"]
            table.add_row(name, f"{kilobytes:.0f}", way, f"{speed:,.0f}", f"{ratio:.2f}", f"{far:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
