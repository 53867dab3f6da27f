"""Scores of short answers: ANLS, relaxed accuracy, accuracy of choices, the totals of POPE and MME.

Each metric takes all answers and all references and returns one score per query.
"""

import string
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mm1.eval.metrics.references import checked

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def anls(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ANLS of each answer: 1 - edit distance / length for the nearest reference, 0 if that is below 0.5. Float64.

    The distance ignores case and the amount of white space; the length is that of the unchanged texts.

    Source: Biten et al., https://arxiv.org/abs/1905.13648, section 4; the official script of
    DocVQA and InfographicVQA (https://rrc.cvc.uab.es/?ch=17&com=tasks).
    """
    scores = np.zeros(len(answers))
    for query, (answer, texts) in enumerate(zip(answers, checked(answers, references), strict=True)):
        ours = " ".join(answer.lower().split())
        distances = []
        for text in texts:
            length = max(len(answer), len(text))
            distances.append(edit_distance(ours, " ".join(text.lower().split())) / length if length else 0.0)
        similarity = 1 - min(distances)
        scores[query] = similarity if similarity >= 0.5 else 0.0
    return scores


def relaxed_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer is a number within 5 % of a reference, or the same text ignoring case. Float64.

    A number with a percent sign is divided by 100. A reference of 0 is compared as text.

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
    """1 where the answer equals a reference exactly, else 0. Float64.

    Source: the accuracy of GQA, Hudson and Manning, https://arxiv.org/abs/1902.09506, section 4.4.
    """
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array([float(answer in texts) for answer, texts in pairs])


def same_word(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer equals a reference, ignoring case and a final period, else 0. Float64.

    Source: the accuracy of letters and single words in LLaVA-1.5, https://arxiv.org/abs/2310.03744.
    """
    plain = [answer.strip().rstrip(".").lower() for answer in answers]
    return same_text(
        plain, [[text.strip().rstrip(".").lower() for text in texts] for texts in checked(answers, references)]
    )


def same_without_marks(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer equals a reference, ignoring case and punctuation, else 0. Float64.

    Source: `exact_match` of https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/api/metrics.py, with
    `ignore_case` and `ignore_punctuation`.
    """
    marks = str.maketrans("", "", string.punctuation)
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array(
        [
            float(answer.lower().translate(marks) in {text.lower().translate(marks) for text in texts})
            for answer, texts in pairs
        ]
    )


def pope_scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """F1, precision and recall of `yes`, and the share of answers that are `yes`; all in percent.

    Source: Li et al., POPE, https://arxiv.org/abs/2305.10355, section 5.1.
    """
    positive, true = np.array(answers) == "yes", np.array(labels) == "yes"
    true_positives = float((positive & true).sum())
    precision, recall = true_positives / max(positive.sum(), 1), true_positives / max(true.sum(), 1)
    f1 = 2 * precision * recall / (precision + recall) if true_positives else 0.0
    return {
        name: 100 * float(value)
        for name, value in (("F1", f1), ("precision", precision), ("recall", recall), ("yes", positive.mean()))
    }


def mme_scores(scores: Sequence[float], categories: Sequence[str], images: Sequence[str]) -> dict[str, float]:
    """MME's two sums over categories of accuracy plus accuracy+ in percent.

    Accuracy+ counts an image only if both of its questions are answered right. The sums are at most 2,000 (perception,
    ten categories) and 800 (cognition, four).

    Source: Fu et al., MME, https://arxiv.org/abs/2306.13394, section 2.2.
    """
    pairs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score, category, image in zip(scores, categories, images, strict=True):
        pairs[category][image].append(score)
    points = {
        category: 100 * float(np.mean([np.mean(pair) + (min(pair) == 1) for pair in pairs_of_category.values()]))
        for category, pairs_of_category in pairs.items()
    }
    return {
        name: sum(points.get(category, 0.0) for category in categories)
        for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION))
    }


def edit_distance(ours: str, theirs: str) -> int:
    """The number of letters to insert, delete or replace (Levenshtein)."""
    above = list(range(len(theirs) + 1))
    for row, letter in enumerate(ours, start=1):
        current = [row]
        for column, other in enumerate(theirs, start=1):
            current.append(min(above[column] + 1, current[-1] + 1, above[column - 1] + (letter != other)))
        above = current
    return above[-1]
