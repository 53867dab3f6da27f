"""How a source reads answers, where it doesn't follow the task's own rule.

lmms-eval reads letters and words more strictly than `mm1.eval.metrics.letters`. Only MMBench, where it asks GPT for
what its rules can't read, and MMMU, where it draws a letter then, are read by our rule.
"""

import re
from collections.abc import Callable

from mm1.eval.fewshot import Example
from mm1.eval.metrics.answer_parsing import mme_word
from mm1.eval.shots import Rules

Reading = Callable[[str, Example], str]
"""(the text that the model wrote, the query) -> the answer to be scored."""


def _lettered_line(written: str, query: Example) -> str:
    """AI2D: the capital letter before a period that the text begins with, else all of the text."""
    match = re.match(r"\s*([A-Z])\.", written)
    return match[1] if match else written


def _letter(written: str, query: Example) -> str:
    """ScienceQA: a letter alone, or a capital one and a period at the beginning."""
    starts = len(written) == 1 or re.match(r"[A-Z]\.", written)
    return written[0].upper() if written and starts else ""


def _first_letter(written: str, query: Example) -> str:
    """SEED-Bench: the first letter of the text, whatever the word."""
    return written[:1].upper()


def _whole_yes_or_no(written: str, query: Example) -> str:
    """POPE: yes or no alone, without a period."""
    return written.lower() if written.lower() in ("yes", "no") else ""


def _mme_word(written: str, query: Example) -> str:
    """MME: as officially, but y and n alone are words."""
    text = written.lower().replace(".", "")
    return mme_word({"y": "yes", "n": "no"}.get(text, text))


READINGS: dict[Rules, dict[str, Reading]] = {
    "lmms-eval": {
        "ai2d": _lettered_line,
        "scienceqa": _letter,
        "seed": _first_letter,
        "pope": _whole_yes_or_no,
        "mme": _mme_word,
        "gqa": lambda written, query: written,
    }
}
"""By source and task: `process_results` and the filters of lmms_eval/tasks, 0.7.3."""
