"""The comparison of an ablation's arms: the marks, the sentence, the page, the tables."""

import csv
import io
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from small import run as small_run

from mm1.__main__ import main
from mm1.ablate.comparison import Comparison, cautions, compare_arms, sentence, shown
from mm1.ablate.measures import Measures, write_results
from mm1.ablate.page import FORMATS, write_page
from mm1.ablate.plan import Plan, make_plan, save_plan
from mm1.config.ablation import Ablation, Arm, Evaluation, Stage
from mm1.report.findings import MINUS

EVALUATION = Evaluation(tasks=("captions", "vqa"), shots=(0, 8), limit=50)
OFFSETS = {"base": 0.0, "same": 0.0, "better_&": 1.0, "worse": -1.0}
"""What each arm's likelihoods differ by from the base's; every query and seed has noise of 0.2."""


def planned(stores, folder: Path, *, seeds: int = 3, **fields) -> Plan:
    """A plan of arms that differ in their learning rate."""
    arms = tuple(Arm(name, (f"optim.learning_rate={0.01 * n}",), at=n) for n, name in enumerate(OFFSETS) if n)
    one = Ablation(
        name="toy",
        question="Which is best?",
        stages=(Stage("multimodal", small_run(stores), seeded=True),),
        arms=arms,
        evaluation=EVALUATION,
    )
    return make_plan(replace(one, **fields), folder, seeds=seeds)


def measured(plan: Plan, folder: Path, *, leave_out: str = "") -> None:
    """Write what the runs of the plan were measured to have."""
    save_plan(plan, folder)
    chance = np.random.default_rng(3)
    for arm in plan.arms:
        for seed, name in arm.runs.items():
            if name == leave_out:
                continue
            queries = {
                f"{task}-{shots}shot{kind}": {
                    str(n): value
                    for n, value in enumerate(np.arange(50.0) + OFFSETS[arm.name] + 0.2 * chance.normal(size=50))
                }
                for kind in ("", "-likelihood")
                for task in EVALUATION.tasks
                for shots in EVALUATION.shots
            }
            losses = {"text": 5.0 - OFFSETS[arm.name] + 0.01 * seed + 0.001 * chance.normal()}
            (folder / name).mkdir(parents=True, exist_ok=True)
            record = asdict(Measures(losses, queries)) | {"evaluation": asdict(plan.evaluation)}
            (folder / name / "measures.json").write_text(json.dumps(record))
            (folder / name / "report.html").write_text("a report")
            steps = [{"step": step, "loss": 1.0, "step_seconds": 36.0, "flops": 5e17} for step in (1, 2)]
            (folder / name / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


@pytest.fixture
def comparison(stores, tmp_path) -> Comparison:
    plan = planned(stores, tmp_path)
    measured(plan, tmp_path)
    return compare_arms(plan, tmp_path)


def test_an_arm_is_marked_exactly_if_its_interval_excludes_0(comparison):
    for name in comparison.measures:
        verdicts = {arm: cells[name].verdict for arm, cells in comparison.cells.items()}
        assert verdicts == {"base": "", "same": "", "better_&": "better", "worse": "worse"}, name


def test_the_mean_over_tasks_is_that_of_their_means(comparison):
    for cells in comparison.cells.values():
        parts = [cells[f"{task}-8shot"].value.mean for task in EVALUATION.tasks]
        assert cells["8shot"].value.mean == pytest.approx(np.mean(parts))


def test_the_sentence_claims_no_more_than_the_intervals(comparison):
    said = sentence(comparison)
    number = r"0\.9\d+|1\.0\d+"
    better, worse, rest = said.split("; ")
    assert re.search(rf"base\. Better: better_& \(\+({number}) \[", better)
    assert re.match(rf"worse: worse \({MINUS}({number}) \[", worse)
    assert rest == "no difference is shown for 1 other arm."
    assert "same" not in said


def test_one_seed_is_told_and_gives_losses_no_interval(stores, tmp_path):
    plan = planned(stores, tmp_path, seeds=1)
    measured(plan, tmp_path)
    comparison = compare_arms(plan, tmp_path)
    assert "one seed" in cautions(comparison)[0]
    assert "[" not in shown(comparison.cells["worse"]["loss/text"].difference, "loss/text")
    assert comparison.cells["worse"]["loss/text"].verdict == ""


def test_a_missing_run_leaves_its_seed_out_of_the_pairs(stores, tmp_path):
    plan = planned(stores, tmp_path)
    measured(plan, tmp_path, leave_out="arms/base/seed-1")
    comparison = compare_arms(plan, tmp_path)
    assert comparison.seeds == {"base": 2, "same": 3, "better_&": 3, "worse": 3}
    assert comparison.cells["worse"]["8shot"].verdict == "worse"


class Page(HTMLParser):
    """The rows of the page's tables, its links, and whether each element is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "path", "use", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.rows[-1][-1] += data.strip() + " "


def test_the_page_shows_every_arm_with_its_reports_and_cost(stores, tmp_path):
    plan = planned(stores, tmp_path)
    measured(plan, tmp_path)
    text = write_page(plan, tmp_path, failed={"arms/x/seed-0": "ValueError: <no>"}).read_text()
    figure = (tmp_path / "figure.svg").read_text()
    assert ElementTree.fromstring(figure).tag.endswith("svg")
    assert "currentColor" not in figure  # it stands without a page whose colour it could have
    page = Page(text)
    assert not page.open
    rows = {row[0].strip(): row for row in page.rows if row}
    assert OFFSETS.keys() <= rows.keys()
    assert rows["worse"][1:4] == ["optim.learning_rate=0.03 ", "0.060 ", "3 "]
    assert "worse " in next(row for row in page.rows if row and row[0] == "worse ")[2]
    assert len(page.links) == 12
    assert all((tmp_path / link).is_file() for link in page.links)
    assert "&lt;no&gt;" in text
    assert text.count("<svg") == 3


def test_the_tables_hold_what_the_page_shows(stores, tmp_path, capsys, monkeypatch):
    plan = planned(stores, tmp_path)
    measured(plan, tmp_path)
    comparison = compare_arms(plan, tmp_path)
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](comparison))))
    worst = comparison.cells["worse"]["8shot"]
    assert float(rows[3]["8shot - base high"]) == pytest.approx(worst.difference.high)
    assert rows[0]["8shot - base"] == ""
    latex = FORMATS["latex"](comparison)
    assert latex.count(r"\\") == 5
    assert r"better\_\&" in latex
    assert len(re.findall(r"textbf", latex)) == 2 * len(comparison.columns)
    monkeypatch.setattr("sys.argv", ["mm1", "ablate", "toy", "--csv", "--to", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == FORMATS["csv"](comparison)


def test_lines_over_an_axis_name_the_best_of_each_group(stores, tmp_path):
    groups = {"base": "a", "same": "a", "better_&": "b", "worse": "b"}
    arms = [
        Arm(name, (f"optim.learning_rate={0.01 * (n + 1)}",), group=groups[name], at=0.01 * (n + 1))
        for n, name in enumerate(OFFSETS)
    ]
    plan = planned(stores, tmp_path, base=arms[0], arms=tuple(arms[1:]), axis="peak learning rate")
    measured(plan, tmp_path)
    said = sentence(compare_arms(plan, tmp_path))
    assert "b at 0.03" in said
    write_results(plan, tmp_path)
    assert "peak learning rate" in write_page(plan, tmp_path, failed={}).read_text()
