"""Scores of short answers: documents and charts, letters, yes and no. As `metrics.py`, one number per query.

The readers (`letter_of`, `yes_or_no`, `mme_word`, `math_answer`) find in what a model wrote the answer that is scored.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mm1.eval.metrics.scores import checked

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def anls(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 - edit distance / length to the nearest reference, 0 where that is below 0.5. Float64, 0 to 1.

    Case and the length of white space don't count for the distance; the length is that of the texts as they are.

    Source: Biten et al., https://arxiv.org/abs/1905.13648, section 4; the official script of
    DocVQA and InfographicVQA (https://rrc.cvc.uab.es/?ch=17&com=tasks).
    """
    scores = np.zeros(len(answers))
    for query, (answer, texts) in enumerate(zip(answers, checked(answers, references), strict=True)):
        ours = " ".join(answer.lower().split())
        far = []
        for text in texts:
            length = max(len(answer), len(text))
            far.append(edit_distance(ours, " ".join(text.lower().split())) / length if length else 0.0)
        near = 1 - min(far)
        scores[query] = near if near >= 0.5 else 0.0
    return scores


def relaxed_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer is a number within 5 % of a reference, or the same text in any case. Float64.

    A percent sign divides by 100; a reference of 0 is compared as text.

    Source: Masry et al., ChartQA, https://arxiv.org/abs/2203.10244, section 5.1.
    """
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array([float(any(_relaxed(answer, text) for text in texts)) for answer, texts in pairs])


def _relaxed(answer: str, reference: str) -> bool:
    ours, theirs = _number(answer), _number(reference)
    if ours is not None and theirs:
        return abs(ours - theirs) / abs(theirs) <= 0.05
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def same_text(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer is a reference, letter for letter, else 0. Float64.

    Source: the accuracy of GQA, Hudson and Manning, https://arxiv.org/abs/1902.09506, section 4.4.
    """
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array([float(answer in texts) for answer, texts in pairs])


def same_word(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer is a reference in any case and with or without a last dot, else 0. Float64.

    Source: how accuracy is counted for letters and single words by LLaVA-1.5, https://arxiv.org/abs/2310.03744.
    """
    plain = [answer.strip().rstrip(".").lower() for answer in answers]
    return same_text(
        plain, [[text.strip().rstrip(".").lower() for text in texts] for texts in checked(answers, references)]
    )


def open_answer(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer holds a reference: the same number to two decimals, or its words. Float64.

    A letter must be the whole answer, so that one metric scores choices and open questions side by side.

    Source: the open questions of MMMU, https://arxiv.org/abs/2311.16502, section 4.1. Its official parser
    first cuts long answers into clauses; here the whole answer is read.
    """
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array([float(any(_holds(answer, text) for text in texts)) for answer, texts in pairs])


def _holds(answer: str, reference: str) -> bool:
    if len(reference) == 1 and reference in LETTERS:
        return answer == reference
    wanted = _number(reference.replace(",", "").strip())
    if wanted is not None:
        found = re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", answer.replace(",", ""))
        return any(round(float(number), 2) == round(wanted, 2) for number in found)
    return re.search(rf"(?<!\w){re.escape(reference.strip().lower())}(?!\w)", answer.lower()) is not None


def letter_of(written: str, choices: Sequence[str]) -> str:
    """The letter that written (`generate`) chooses, or "" where it chooses none: nothing is guessed.

    In this order: the letter alone or at the beginning ("B", "(b)", "B. a dog"); after "answer is" or
    "answer:"; in brackets; a choice's whole text; the only choice whose text occurs.
    """
    text, letters = written.strip(), LETTERS[: len(choices)]
    patterns = (
        rf"^\(?([{letters}{letters.lower()}])(?:[).:,]|\s*$)",
        rf"(?i:answer|option|choice)(?i:\s+is|:)\s*:?\s*\(?([{letters}])\b",
        rf"\(([{letters}])\)",
        rf"^([{letters}])\s",
    )
    for pattern in patterns[:3]:
        if found := re.search(pattern, text):
            return found[1].upper()
    lower = [choice.strip().lower() for choice in choices]
    if text.lower().rstrip(".") in lower:
        return letters[lower.index(text.lower().rstrip("."))]
    said = [
        n for n, choice in enumerate(lower) if choice and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text.lower())
    ]
    if len(said) == 1:
        return letters[said[0]]
    # "A dog" begins with a word, not a letter; with choices that don't match it is still no choice
    found = re.search(patterns[3], text)
    return found[1] if found and not said and found[1] not in "AI" else ""


def yes_or_no(written: str) -> str:
    """`no` where the first sentence has the word no or not, else `yes`.

    Source: the official evaluation of POPE, Li et al., https://arxiv.org/abs/2305.10355, section 5.
    """
    words = written.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_word(written: str) -> str:
    """`yes` or `no` if it stands in the first four letters, else `other`, which is always wrong.

    Source: the official evaluation of MME, Fu et al., https://arxiv.org/abs/2306.13394, section 2.2.
    """
    start = written.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def pope_scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """F1, precision and recall of `yes`, and the share of `yes` answers; all in percent.

    Source: Li et al., POPE, https://arxiv.org/abs/2305.10355, section 5.1.
    """
    said, true = np.array(answers) == "yes", np.array(labels) == "yes"
    right = float((said & true).sum())
    precision, recall = right / max(said.sum(), 1), right / max(true.sum(), 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {
        name: 100 * float(value)
        for name, value in (("F1", f1), ("precision", precision), ("recall", recall), ("yes", said.mean()))
    }


def mme_scores(scores: Sequence[float], categories: Sequence[str], images: Sequence[str]) -> dict[str, float]:
    """MME's two sums: of each category accuracy + accuracy+ in percent, where + wants both questions of an image.

    At most 2,000 (perception, ten categories) and 800 (cognition, four).

    Source: Fu et al., MME, https://arxiv.org/abs/2306.13394, section 2.2.
    """
    pairs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score, category, image in zip(scores, categories, images, strict=True):
        pairs[category][image].append(score)
    points = {
        category: 100 * float(np.mean([np.mean(both) + (min(both) == 1) for both in of_image.values()]))
        for category, of_image in pairs.items()
    }
    return {
        name: sum(points.get(category, 0.0) for category in categories)
        for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION))
    }


def math_answer(written: str, *, choices: Sequence[str], kind: str, decimals: int) -> str:
    """The answer as MathVista compares it: a choice's text, a whole number, or one with so many decimals.

    Source: Lu et al., MathVista, https://arxiv.org/abs/2310.02255, section 3.1 and its official code, whose first
    step, GPT-4 cutting the answer out of the text, is replaced by the last "answer is" or the last number.
    """
    said = re.split(r"(?i)\banswer(?:\s+is|:)\s*:?", written)[-1].strip().rstrip(".").strip()
    if choices:
        letter = letter_of(said, choices)
        return choices[LETTERS.index(letter)] if letter else min(choices, key=lambda one: edit_distance(said, one))
    if kind not in ("integer", "float"):
        return said
    found = re.findall(r"-?\d+(?:\.\d+)?", said.replace(",", ""))
    if not found or not math.isfinite(float(found[-1])):
        return ""
    return str(int(float(found[-1]))) if kind == "integer" else str(round(float(found[-1]), decimals))


def edit_distance(ours: str, theirs: str) -> int:
    """Letters to insert, delete or replace (Levenshtein)."""
    before = list(range(len(theirs) + 1))
    for row, letter in enumerate(ours, start=1):
        here = [row]
        for column, other in enumerate(theirs, start=1):
            here.append(min(before[column] + 1, here[-1] + 1, before[column - 1] + (letter != other)))
        before = here
    return before[-1]
