"""MM1's evaluation of reasoning (section 5.2): chain-of-thought shots in mixed resolution, as `mm1 eval` shows them."""

from collections import Counter
from pathlib import Path

import layouts_tuned
import pytest
import small
from layout import cell, data, parquet, six

from mm1.__main__ import app
from mm1.config.model import TilingConfig
from mm1.config.run import SourceConfig
from mm1.data.store import write_store
from mm1.document import Document, Encoded, Image, Text
from mm1.eval.results import read_answers, read_results
from mm1.generate.document_prompt import DocumentPrompts
from mm1.train.run import train_run
from tests.conftest import picture

IN_TILES = 3
"""The last shots that are shown in tiles; MM1 doesn't say its number."""


@pytest.fixture(scope="module")
def tuned(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is fine-tuned on chats with pictures in MM1's tiles."""
    folder = tmp_path_factory.mktemp("tuned")
    run = small.run(stores)
    run.steps = 2
    train_run(run, folder / "first")
    chats = (
        Document((Image(data), Text("What is it?", train=False), Text(name)), id=name, metadata={"form": "chat"})
        for data, name in (picture(3, number) for number in range(20))
    )
    write_store(chats, folder / "chats.lance")
    run.data.sources = {"chats": SourceConfig(store=str(folder / "chats.lance"))}
    run.model.tiling, run.start_from = TilingConfig(kind="mm1"), {"model": str(folder / "first")}
    return train_run(run, folder / "tuned")


def scienceqa(folder: Path) -> None:
    for split, start in (("test", 0), ("train", 20)):
        rows = six(lambda n: {"image": cell(n), **layouts_tuned.scienceqa_row(n)}, start=start, count=12)
        parquet(folder / "ScienceQA-IMG" / f"{split}-00000-of-00001.parquet", rows)


def mathvista(folder: Path) -> None:
    """With a column of explanations, which the published rows don't have."""
    more = {"solution": "Both sides are equal."}
    rows = six(lambda n: layouts_tuned.mathvista_row(n) | {"decoded_image": cell(n)} | more, count=12)
    data(folder, "testmini", rows, images=("decoded_image",))


@pytest.mark.parametrize("task", [scienceqa, mathvista])
def test_shots_explain_and_only_the_last_pictures_are_in_tiles(task, tuned: Path, tmp_path: Path, monkeypatch):
    task(tmp_path / "data")
    shown: dict[int, list[Encoded]] = {}
    prompt_of = DocumentPrompts.prompt

    def seen(self: DocumentPrompts, encoded: Encoded):
        shown.setdefault(len(encoded.extents), []).append(encoded)
        return prompt_of(self, encoded)

    monkeypatch.setattr(DocumentPrompts, "prompt", seen)
    words = ["eval", tuned, "--tasks", task.__name__, "--data", tmp_path / "data", "--shots", "0,4,8", "--limit", "2"]
    words += ["--reasoning", "--subimage-shots", IN_TILES, "--max-tokens", "4", "--to", tmp_path]
    app([str(word) for word in words], standalone_mode=False)
    assert {*shown} == {1, 5, 9}
    for pictures, prompts in shown.items():
        for encoded in prompts:
            tiles = Counter(encoded.pictures)
            full = min(IN_TILES, pictures - 1) + 1  # and the query
            assert [tiles[number] for number in range(pictures)] == [1] * (pictures - full) + [5] * full
            cells = [tile.cut.cell for tile in encoded.images]
            assert cells == [(0, 0)] * (pictures - full) + [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)] * full
            assert (encoded.tokens == small.IMAGE).sum() == small.IMAGE_TOKENS * len(encoded.images)
    scores = read_results(tmp_path / "eval").scores
    assert [score.shots for score in scores] == [0, 4, 8]
    for score in scores:
        for answer in read_answers(tmp_path / "eval", score):
            assert answer.prompt.text.count("The answer is") == score.shots
            assert answer.prompt.text.count(" overview>") == max(0, score.shots - IN_TILES)
