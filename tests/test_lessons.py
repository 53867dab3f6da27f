"""docs/lessons.md says what the CSVs beside it say, about arms that there are."""

import csv
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_law import simulated, write_results

from mm1.recipes.ablations.index import ABLATIONS, ablation

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def lessons():
    spec = importlib.util.spec_from_file_location("make_lessons", DOCS / "make_lessons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_computed_from_the_results_beside_it(lessons):
    assert (DOCS / "lessons.md").read_text() == lessons.page(DOCS / "ablations"), "run python docs/make_lessons.py"


def test_every_arm_and_measure_of_a_lesson_exists(lessons):
    comparisons = [one for lesson in lessons.LESSONS for one in lesson.comparisons]
    for one in comparisons:
        plan = ablation(one.ablation, "tiny")
        assert set(one.arms) <= {arm.name for arm in (plan.base, *plan.arms)}, one.says
        if "shot" in one.measure:
            assert int(one.measure.partition("shot")[0]) in plan.evaluation.shots, one.says
    assert {one.ablation for one in comparisons} | {"learning_rate"} == set(ABLATIONS)


def write(folder: Path, name: str, values: Mapping[str, list[float]], *, measure: str) -> None:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("arm", "seed", "measure", "value", "parameters", "learning_rate"))
        for arm, of_arm in values.items():
            lines.writerows((arm, seed, measure, value, 1, 0.1) for seed, value in enumerate(of_arm))


@pytest.mark.parametrize(
    ("sparse", "verdict", "shown"),
    [
        ([-1.0, -1.1, -0.9], "agrees", "+0.500 [+0.500, +0.500]"),
        ([-2.0, -2.1, -1.9], "disagrees", "-0.500 [-0.500, -0.500]"),
        ([-1.0, -2.1, -1.4], "not resolved", "+0.000 ["),
        ([-1.0], "not resolved", "+0.500, one seed"),
        ([], "not run yet", ""),
    ],
)
def test_a_verdict_is_that_of_the_interval(lessons, sparse, verdict, shown, tmp_path):
    write(tmp_path, "experts", {"dense": [-1.5, -1.6, -1.4], "sparse": sparse}, measure="8shot-likelihood")
    (lesson,) = (one for one in lessons.LESSONS if one.name == "Experts")
    (finding,) = lessons.findings(lesson, tmp_path)
    assert finding.verdict == lessons.overall([finding]) == verdict
    assert finding.value.startswith(shown)


def test_a_lower_loss_is_better(lessons, tmp_path):
    write(tmp_path, "mix", {"9:9:2": [3.0, 3.1], "captions 18:0:2": [3.2, 3.3]}, measure="loss/text")
    (lesson,) = (one for one in lessons.LESSONS if one.name == "Interleaved pages and captions")
    assert [one.verdict for one in lessons.findings(lesson, tmp_path)] == ["not run yet", "agrees", "not run yet"]
    assert lessons.overall(lessons.findings(lesson, tmp_path)) == "not run yet"


def test_kinds_of_connector_matter_less_only_if_their_difference_is_smaller(lessons, tmp_path):
    (lesson,) = (one for one in lessons.LESSONS if one.name == "The connector")
    for kind_effect, verdict in ((0.1, "agrees"), (3.0, "disagrees")):
        values = {
            f"{kind}-{tokens}-{pixels}px": [-9 + number * kind_effect + tokens / 16 + pixels / 144] * 2
            for number, kind in enumerate(("average", "attention", "c_abstractor"))
            for tokens in (4, 16)
            for pixels in (96, 144)
        }
        write(tmp_path, "connector", values, measure="8shot-likelihood")
        assert [one.verdict for one in lessons.findings(lesson, tmp_path)] == ["agrees", "agrees", verdict]


def test_the_law_is_that_of_the_fit(lessons, tmp_path):
    (lesson,) = (one for one in lessons.LESSONS if one.is_law)
    write_results(simulated(), tmp_path).joinpath("results.csv").rename(tmp_path / "learning_rate.csv")
    (finding,) = lessons.findings(lesson, tmp_path)
    assert finding.verdict == "agrees"
    assert finding.value.startswith("-0.4")
    lines = (tmp_path / "learning_rate.csv").read_text().splitlines()
    (tmp_path / "learning_rate.csv").write_text("\n".join(lines[:10]))
    (finding,) = lessons.findings(lesson, tmp_path)
    assert finding.verdict == "not resolved"
    assert "a law needs at least two sizes" in finding.value


def test_all_arms_of_a_run_ablation_are_shown_with_their_means(lessons, tmp_path):
    write(tmp_path, "mix", {"9:9:2": [3.0, 3.2], "captions alone": [3.25, 3.35]}, measure="loss/text")
    page = lessons.page(tmp_path)
    assert "## All arms of `mix`\n\n| arm | seeds | loss/text |\n|---|---|---|\n| 9:9:2 | 2 | 3.100 |\n" in page
    assert "| captions alone | 2 | 3.300 |" in page
    assert "All arms of `connector`" not in page
