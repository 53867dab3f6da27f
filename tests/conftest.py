"""What every test stands on: few threads, no network, and small stores of made documents."""

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

# read once, when torch loads; where there are several test processes each has one core
os.environ.setdefault(
    "OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else str(min(2, os.cpu_count() or 1))
)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the door sets it: waiting threads yield
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import hypothesis
import pytest
from PIL import Image as Canvas
from PIL import ImageDraw

from mm1.data.store import write_store
from mm1.document import Document, Image, Text

hypothesis.settings.register_profile("mm1", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("mm1")

COLOURS = ("red", "green", "blue", "yellow", "white", "orange")
SHAPES = ("circle", "square", "triangle")


def picture(seed: int, index: int) -> tuple[bytes, str]:
    """A PNG of one shape, 24 to 64 pixels a side, and what it shows; the same for the same arguments."""
    chance = random.Random(f"picture {seed} {index}")
    colour, shape = chance.choice(COLOURS), chance.choice(SHAPES)
    width, height = chance.randint(24, 64), chance.randint(24, 64)
    canvas = Canvas.new("RGB", (width, height), "black")
    draw, box = ImageDraw.Draw(canvas), (4, 4, width - 5, height - 5)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (width // 2, box[1])], fill=colour)
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    return file.getvalue(), f"a {colour} {shape}"


def captions(count: int, *, seed: int = 0) -> Iterator[Document]:
    """Documents of one picture and its caption."""
    for index in range(count):
        data, label = picture(seed, index)
        yield Document((Image(data), Text(label)), id=f"caption-{index}", source="captions")


def interleaved(count: int, *, seed: int = 1) -> Iterator[Document]:
    """Pages of one to four pictures, each between sentences that speak of it."""
    for index in range(count):
        pieces: list[Text | Image] = [Text(f"Page {index}. ")]
        for figure in range(1 + index % 4):
            data, label = picture(seed, 10 * index + figure)
            pieces += [Text(f"Figure {figure + 1} shows {label}: "), Image(data), Text("as we said. ")]
        yield Document(tuple(pieces), id=f"page-{index}", source="interleaved")


def texts(count: int, *, seed: int = 2) -> Iterator[Document]:
    """Documents of three to thirty plain sentences."""
    for index in range(count):
        chance = random.Random(f"text {seed} {index}")
        sentences = [
            f"The {chance.choice(COLOURS)} {chance.choice(SHAPES)} is left of the {chance.choice(SHAPES)}."
            for _ in range(chance.randint(3, 30))
        ]
        yield Document((Text(" ".join(sentences)),), id=f"text-{index}", source="text")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three small stores by name: 40 `captions`, 16 `interleaved` pages, 24 of `text`. Only for reading."""
    folder = tmp_path_factory.mktemp("stores")
    documents_of = {"captions": captions(40), "interleaved": interleaved(16), "text": texts(24)}
    paths = {name: folder / f"{name}.lance" for name in documents_of}
    for name, documents in documents_of.items():
        write_store(documents, paths[name])
    return paths
