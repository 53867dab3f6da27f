"""Images per second and core of several methods to decode an image and resize it to 336 x 336 RGB pixels.

    python benchmarks/decode.py [--size 336] [--rounds 7]

The methods take turns, round by round. The table has the median of the rounds, the ratios to Pillow and to its `draft`
mode, and the mean and the largest difference (of 255) from the pixels of a full decode and Pillow's bicubic resize.
Methods of OpenCV are left out if it is not installed.
"""

import argparse
import io
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import simplejpeg
import torch
from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table

from mm1.data.image import load, resize
from mm1.data.store import open_store

try:
    import cv2
except ImportError:
    cv2 = None

Method = Callable[[bytes, int], np.ndarray]


def pillow(data: bytes, size: int) -> np.ndarray:
    with Pillow.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC))


def pillow_draft(data: bytes, size: int) -> np.ndarray:
    with Pillow.open(io.BytesIO(data)) as picture:
        picture.draft("RGB", (size, size))
        return np.asarray(picture.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC, reducing_gap=2.0))


def pillow_torch(data: bytes, size: int) -> np.ndarray:
    with Pillow.open(io.BytesIO(data)) as picture:
        pixels_CYX = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return resize(pixels_CYX, size, size).permute(1, 2, 0).numpy()


def opencv(data: bytes, size: int) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def turbo_opencv(data: bytes, size: int) -> np.ndarray:
    pixels = simplejpeg.decode_jpeg(data, min_height=size, min_width=size)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def ours(data: bytes, size: int) -> np.ndarray:
    return load(data, size).transpose(1, 2, 0)


def synthetic_jpegs(width: int, height: int, *, count: int = 24) -> list[bytes]:
    """JPEGs as detailed as photographs: noise of every scale, the coarse strongest."""
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
    files = [image.data for document in documents for image in document.images]
    return [data for data in files if data[8:12] == b"WEBP"]


def measure(files: list[bytes], methods: dict[str, Method], *, size: int, rounds: int) -> dict[str, float]:
    """The median images per second of each method."""
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.process_time()
            for data in files:
                method(data, size)
            speeds[name].append(len(files) / (time.process_time() - start))
    return {name: median(of_method) for name, of_method in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    any_format: dict[str, Method] = {"Pillow": pillow, "Pillow draft": pillow_draft, "mm1": ours}
    any_format["Pillow + torch's bicubic"] = pillow_torch
    if cv2:
        cv2.setNumThreads(1)
        any_format["OpenCV area"] = opencv
    jpeg = any_format | ({"simplejpeg + OpenCV area": turbo_opencv} if cv2 else {})
    sets = {
        "JPEG 512 x 512": (synthetic_jpegs(512, 512), jpeg),
        "JPEG 1024 x 768": (synthetic_jpegs(1024, 768), jpeg),
        "WebP of the sample": (sample_webps(), any_format),
    }
    table = Table(title=f"to {options.size} x {options.size}, images per second and core")
    for column in ("files", "kB each", "method", "images/s", "over Pillow", "over draft", "difference", "largest"):
        table.add_column(column, justify="right")
    for name, (files, methods) in sets.items():
        speeds = measure(files, methods, size=options.size, rounds=options.rounds)
        exact = [pillow(data, options.size).astype(int) for data in files]
        kilobytes = sum(map(len, files)) / len(files) / 1000
        for method, speed in speeds.items():
            differences = [
                np.abs(methods[method](data, options.size) - right) for data, right in zip(files, exact, strict=True)
            ]
            ratios = [f"{speed / speeds[other]:.2f}" for other in ("Pillow", "Pillow draft")]
            mean, largest = np.mean(list(map(np.mean, differences))), max(map(np.max, differences))
            table.add_row(name, f"{kilobytes:.0f}", method, f"{speed:,.0f}", *ratios, f"{mean:.2f}", f"{largest}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
