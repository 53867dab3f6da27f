"""Before an evaluation starts: what is fetched and how large, how long it will take, and which tasks there are."""

import io
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import layouts
import pytest
from rich.console import Console
from test_protocol import Echo, a_task

from mm1.eval import tasks as task_folder
from mm1.eval.catalogue import FACTS, task_table
from mm1.eval.data import hub
from mm1.eval.harness import evaluate, load_task
from mm1.eval.pace import FIRST, Pace
from mm1.eval.task_evaluation import Settings


@dataclass
class Planned:
    filename: str
    file_size: int
    local_path: str
    will_download: bool = True


class Hub:
    """In place of `snapshot_download`: a folder of files, of which it keeps what was asked for."""

    def __init__(self, folder: Path, *, reachable: bool = True):
        self.folder, self.reachable, self.patterns = folder, reachable, []

    def __call__(self, repo: str, *, repo_type: str, allow_patterns: list[str], dry_run=False, local_files_only=False):
        from fnmatch import fnmatch

        assert repo_type == "dataset"
        if not self.reachable and not local_files_only:
            raise ConnectionError("no route to the hub")
        if local_files_only and not self.folder.is_dir():
            raise FileNotFoundError("not in the cache")
        self.patterns = allow_patterns
        names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]
        matching = [name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns)]
        return (
            [Planned(name, 1_500_000_000, str(self.folder / name)) for name in matching]
            if dry_run
            else str(self.folder)
        )


def test_only_the_needed_splits_are_fetched_and_announced(tmp_path: Path, monkeypatch, capsys):
    layouts.vqav2(tmp_path / "hub")
    (tmp_path / "hub" / "data" / "testdev-00000-of-00001.parquet").write_bytes(b"large")
    ours = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "snapshot_download", ours)
    few_shot = load_task("vqav2", limit=3, seed=0)
    told = capsys.readouterr().err
    assert "vqav2: fetching 2 files, 3.0 GB, from https://huggingface.co/datasets/lmms-lab-encoder/VQAv2 to" in told
    assert len(few_shot.queries) == 3
    assert load_task("vqav2", limit=3, seed=0, zero_shot=True).queries == few_shot.queries
    assert "fetching 1 files, 1.5 GB" in capsys.readouterr().err
    assert ours.patterns == ["data/validation-*", "validation-*"]


def test_what_is_not_on_the_hub_or_cannot_be_reached_is_said_in_one_line(tmp_path: Path, monkeypatch, capsys):
    with pytest.raises(
        ValueError, match=r"coco is not on the hub .*; give --data FOLDER with dataset_coco.json beside"
    ):
        load_task("coco", limit=3, seed=0)
    monkeypatch.setattr(hub, "snapshot_download", Hub(tmp_path / "none", reachable=False))
    with pytest.raises(
        ValueError, match=r"vqav2: .*VQAv2 can't be fetched \(no route to the hub\); give --data FOLDER"
    ):
        load_task("vqav2", limit=3, seed=0)
    layouts.vqav2(tmp_path / "cached")
    monkeypatch.setattr(hub, "snapshot_download", Hub(tmp_path / "cached", reachable=False))
    assert len(load_task("vqav2", limit=3, seed=0).queries) == 3
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(hub, "snapshot_download", Hub(tmp_path / "empty"))
    with pytest.raises(ValueError, match="VQAv2 has no file like data/validation"):
        load_task("vqav2", limit=3, seed=0)
    assert [hub.size(count) for count in (12, 3_400, 45e9)] == ["12 bytes", "3 kB", "45.0 GB"]


def test_the_time_is_told_once_after_the_first_replies():
    told: list[str] = []
    times = iter([0.0, 16.0])
    pace = Pace(10 * FIRST + 90 * FIRST, tell=told.append, clock=lambda: next(times))
    pace.begin()
    for _ in range(2 * FIRST):
        pace.reply(1)
    assert told == ["32 replies in 16 seconds: about 26 minutes for the rest"]


def test_the_work_that_is_left_counts_examples_and_skips_what_is_kept(tmp_path: Path, monkeypatch):
    from mm1.eval import harness

    paces: list[Pace] = []
    monkeypatch.setattr(harness, "Pace", lambda work, tell: paces.append(Pace(work, tell=tell)) or paces[-1])
    for _ in range(2):
        evaluate(Echo(), [a_task()], settings=Settings(tmp_path, trials=2), shots=(0, 3))
    assert [pace.left for pace in paces] == [0, 0]
    assert paces[0].finished > 5 * 4 * 2
    assert paces[1].finished == 0


def test_all_tasks_are_listed():
    names = {module.name for module in pkgutil.iter_modules(task_folder.__path__)}
    assert names == FACTS.keys()
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(task_table())
    shown = console.export_text()
    assert "lmms-lab-encoder/DocVQA" in shown
    assert "5,349" in shown
    assert all(name in shown for name in names)
