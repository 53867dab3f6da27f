"""Answers that need no model: the commonest training answer (majority), and random ones (chance)."""

from collections import defaultdict

from mm1.eval.fewshot import Task, rng
from mm1.eval.metrics.short_answers import LETTERS


def majority_answer(task: Task) -> str:
    """The commonest answer of the pool; of equally common ones the first in alphabetical order."""
    counts: dict[str, int] = defaultdict(int)
    for answer in task.pool.answers:
        counts[answer] += 1
    return min(counts, key=lambda answer: (-counts[answer], answer))


def chance_answers(task: Task, *, seed: int, draw: int = 0) -> list[str]:
    """For each query a random one of its choices or, without choices, the answer of a random example of the pool.

    The second follows the frequencies of the training answers, of the query's own kind where there are several.
    """
    draws = rng(seed, "chance", draw)
    if task.pool.kinds:
        answers = {query.kind: task.pool.fitting(range(task.pool.count), query.kind) for query in task.queries}
        return [task.pool.answers[draws.choice(answers[query.kind])] for query in task.queries]
    indices = draws.integers(0, len(task.pool.answers), size=len(task.queries)).tolist()
    letters = draws.random(len(task.queries))
    return [
        LETTERS[int(letter * len(query.choices))] if query.choices else task.pool.answers[index]
        for index, letter, query in zip(indices, letters, task.queries, strict=True)
    ]
