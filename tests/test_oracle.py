"""A right answer is right and a wrong one wrong in every task, in both forms, whichever kind of model writes it."""

from pathlib import Path

import oracle
import pytest


@pytest.mark.parametrize("name", oracle.names())
def test_the_right_answer_is_right_and_a_wrong_one_wrong(name: str, tmp_path: Path):
    points = oracle.scores(name, tmp_path)
    forms = dict.fromkeys(form for form, _, _ in points)
    for form in forms:
        for manner in (*oracle.MANNERS, "wrong"):
            by_kind = {kind: points[form, kind, manner] for kind in oracle.KINDS}
            assert len(set(by_kind.values())) == 1, (form, manner, by_kind)
        assert points[form, "ours", "wrong"] == 0
        assert points[form, "ours", "bare"] == pytest.approx(official(name, tmp_path, form))
    for line in oracle.lines(name, points):
        assert line in oracle.DOCS.read_text(), "run python tests/oracle.py --write"


def official(name: str, folder: Path, form: str) -> float:
    """The points of the right answers by the task's metric alone: 100, or for captions their CIDEr."""
    task = oracle.tasks(name, folder)[form]
    if task.scoring.within is None:
        return 100.0
    metric = task.scoring.within(task.split_references)
    return 100 * metric([one.answers[0] for one in task.queries], [one.answers for one in task.queries]).mean()
