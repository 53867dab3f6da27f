"""Open questions of MMMU, scored as its official code does."""

import re
from collections.abc import Sequence

import numpy as np

from mm1.eval.metrics.references import checked
from mm1.eval.metrics.short_answers import LETTERS

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def open_answer(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer gives a reference: the same number to two decimals, or a text within its conclusion. Float64.

    A letter must be the whole answer, so that one metric scores multiple-choice and open questions.

    Source: `parse_open_response` and `eval_open` of
    https://github.com/MMMU-Benchmark/MMMU/blob/main/mmmu/utils/eval_utils.py. Each line of an answer counts from its
    last "is", "answer", "so" or the like on; in what is left, a reference may stand anywhere.
    """
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array([float(_gives(answer, texts)) for answer, texts in pairs])


def _gives(answer: str, references: Sequence[str]) -> bool:
    if all(len(text) == 1 and text in LETTERS for text in references):
        return answer in references
    said = _said(answer)
    for reference in references:
        for right in _normalized(reference):
            if isinstance(right, float):
                if right in said:
                    return True
            elif any(isinstance(one, str) and right in one for one in said):
                return True
    return False


def _said(answer: str) -> list[str | float]:
    """The texts and numbers that an answer gives."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    parts = []
    for number, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        shortest = ""
        for indicator in indicators:
            tail = line.split(indicator)[-1].strip()
            if indicator in line and (not shortest or len(tail) < len(shortest)):
                shortest = tail
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            parts.append(shortest)
    parts = parts or [whole]
    numbers = [number for part in parts for pattern in _NUMBERS for number in re.findall(pattern, part)]
    return [one for part in (*parts, *numbers) for one in _normalized(part)]


def _normalized(text: str) -> list[str | float]:
    """A number to two decimals, or the text in small letters; a single letter only next to a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
