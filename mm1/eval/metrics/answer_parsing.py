"""Which answer a model's text gives: yes or no, a number. `letters.py` reads the letter of a choice.

`short_answers.py` scores what these functions return.
"""

import math
import re
from collections.abc import Sequence

from mm1.eval.metrics.letters import letter_of
from mm1.eval.metrics.short_answers import LETTERS, edit_distance


def yes_or_no(written: str) -> str:
    """`no` if the first sentence has the word no or not, else `yes`.

    Source: the official evaluation of POPE, Li et al., https://arxiv.org/abs/2305.10355, section 5.
    """
    words = written.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_word(written: str) -> str:
    """`yes` or `no` if it occurs in the first four letters, else `other`, which is always wrong.

    Source: the official evaluation of MME, Fu et al., https://arxiv.org/abs/2306.13394, section 2.2.
    """
    start = written.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def math_answer(written: str, *, choices: Sequence[str], kind: str, decimals: int) -> str:
    """The answer as MathVista compares it: the text of a choice, an integer, or a number with `decimals` decimals.

    Source: Lu et al., MathVista, https://arxiv.org/abs/2310.02255, section 3.1, and its official code. There GPT-4
    first extracts the answer from the text; here the text after the last "answer is" or the last number is taken.
    """
    answer = re.split(r"(?i)\banswer(?:\s+is|:)\s*:?", written)[-1].strip().rstrip(".").strip()
    if choices:
        letter = letter_of(answer, choices)
        nearest = min(choices, key=lambda choice: edit_distance(answer, choice))
        return choices[LETTERS.index(letter)] if letter else nearest
    if kind not in ("integer", "float"):
        return answer
    numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
    if not numbers or not math.isfinite(float(numbers[-1])):
        return ""
    return str(int(float(numbers[-1]))) if kind == "integer" else str(round(float(numbers[-1]), decimals))
