"""Answers of MathVista, in the form that its official code compares."""

import math
import re
from collections.abc import Sequence

from mm1.eval.metrics.letters import letter_of
from mm1.eval.metrics.short_answers import LETTERS, edit_distance

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,9}|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+"
_NUMBER = rf"(?<![\w.])(-?(?:{_DIGITS}))(?!_?\d)"
_OPERATORS = "-+*/x^\u00d7\u00f7\u00b7"
_SUM = re.compile(rf"[\d)] ?[{re.escape(_OPERATORS)}] ?\(?-?\.?\d")
_APART = re.compile(r"[.,] |(?<=[\d)]) (?=[\d(.])")
"""What stands between two sums, or between a number and a sum: "5 (2 + 3"."""

_COMPOUND = re.compile(
    r"""\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}
        |(?:(?<![\d.])[\d.]+\s?)?(?:\\sqrt|√)\s?(?:\{[^{}]*\}|[\d.]*)
        |(?<![\d.])[\d.]+\s?(?:\\pi\b|π)
        |\bbetween\s+\d[\d.,]*\s+and\s+\d[\d.,]*
        |(?<![\d.,])\d{1,3}(?:\ \d{3})+(?!\d)
        |(?<![\d.,])(?!\d{1,3}(?:,\d{3})+(?!\d|,\d))\d[\d.]*(?:,\d+)+
        |(?<![\d.,])\d[\d.,]*\s?[\u00b2\u00b3\u00b9\u2070-\u2079\u00bc-\u00be\u2150-\u215e]
        |(?<![\d.,])\.?\d[\d.,]*(?:(?:\s?(?:[/^x\u00d7\u00f7\u00b7]|\bor\b|\bto\b)\s?\{?|\s?:)-?\d[\d.,]*|-\d[\d.,]*)+
    """,
    re.VERBOSE,
)
"""Numbers that are parts of something else: a fraction, root, power, product, time, date, range or list, or have
a comma before their decimals.

A number is entered at its beginning only, and whitespace is single here, so that a long text takes linear time.
"""

_LARGE = re.compile(r"(?i)\b(?:hundred|thousand|million|billion|dozen)|\bno one\b")
_CONCLUSION = r"(?i)\banswer\b(?:\s+(?:to|for)\b[^.\n:]{0,60}?)?\s*(?:\b(?:is|was|would\s+be|should\s+be)\b|:|=)\s*:?"
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def math_answer(written: str, *, choices: Sequence[str], kind: str, decimals: int, unit: str = "") -> str:
    """The answer as MathVista compares it: the text of a choice, an integer, a number with `decimals` decimals, a list.

    "" if none can be read: there GPT-4 extracts the answer from a text, here rules do. They take what stands alone,
    after "answer is", after the last "=", with the unit, at the end, or the only number; among several numbers they
    don't guess. Without a letter the choice that is nearest to a short text is the answer, as in the official code.

    Source: Lu et al., MathVista, https://arxiv.org/abs/2310.02255, section 3.1; `normalize_extracted_answer` of
    https://github.com/lupantech/MathVista/blob/main/evaluation/calculate_score.py.
    """
    if choices:
        return _choice(written, choices)
    if kind not in ("integer", "float"):
        return _list(written)
    number = _number(written, unit)
    if number is None or not math.isfinite(number):
        return ""
    return str(int(number)) if kind == "integer" else str(round(number, decimals))


def _choice(written: str, choices: Sequence[str]) -> str:
    if letter := letter_of(written, choices):
        return choices[LETTERS.index(letter)]
    answer = re.split(_CONCLUSION, written)[-1].strip().rstrip(".").strip()
    if not answer or len(answer) > 2 * max(map(len, choices)):
        return ""
    return min(choices, key=lambda choice: edit_distance(answer, choice))


def _list(written: str) -> str:
    """The last list in brackets, else the whole text."""
    lists = re.findall(r"\[[^\[\]]*\]", written)
    return lists[-1] if lists else re.split(_CONCLUSION, written)[-1].strip().rstrip(".").strip()


def _number(written: str, unit: str) -> float | None:
    text = _COMPOUND.sub("?", _without_sums(_plain(written)))
    text = re.sub(r"[{}]", "", text).strip()
    tails = re.split(_CONCLUSION, text)[1:]
    if tails and (concluded := re.findall(_NUMBER, tails[-1])):
        return _value(concluded[0])
    if equal := re.search(rf"=\s*{_NUMBER}[^\d=]{{0,20}}$", text):
        return _value(equal[1])
    if alone := re.match(rf"{_NUMBER}\s*(?:{re.escape(unit)})?\s*\n", text):
        return _value(alone[1])
    numbers = re.findall(_NUMBER, text)
    with_unit = re.findall(rf"{_NUMBER}\s*{re.escape(unit)}(?!\w)", text) if unit.strip("$") else []
    ends = re.findall(rf"(?<!\bor )(?<!\band ){_NUMBER}\s*(?:{re.escape(unit)})?[\s.!%)]*$", text)
    for candidates in (numbers, with_unit, ends):
        if len({_value(number) for number in candidates}) == 1:
            return _value(candidates[0])
    if numbers or _LARGE.search(text):
        return None
    words = {word for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS}
    return float(_WORDS.index(words.pop())) if len(words) == 1 else None


def _plain(written: str) -> str:
    """The text without markup, with plain signs and single whitespace."""
    text = re.sub(r"\s+", lambda match: "\n" if "\n" in match[0] else " ", written.strip())
    text = re.sub(r"\\(?:times|cdot)\b|(?<=[\d)]) ?\*(?!\*) ?(?=[\d(.])", "\u00d7", text).replace("\\div", "\u00f7")
    text = re.sub(r"[*`$]|\\(?:boxed|text|mathrm)\b", "", text).translate(str.maketrans("\u2212\u2013", "--"))
    return re.sub(r"(?i)\b(?:minus|negative)\s+(?=\d)", "-", text)


def _without_sums(text: str) -> str:
    """`text` without the sums and products that an equals sign follows: "2 + 3 = 5" is " = 5"."""
    *sides, last = text.split("=")
    return "=".join([*map(_without_sum, sides), last])


def _without_sum(side: str) -> str:
    start = len(side.rstrip(f"0123456789.,() {_OPERATORS}"))
    start = max((start + match.end() for match in _APART.finditer(side[start:])), default=start)
    return f"{side[:start]} " if _SUM.search(side[start:]) else side


def _value(number: str) -> float:
    return float(number.replace(",", ""))
