"""Which answer a model's text gives: what follows its thoughts; yes or no.

`letters.py` reads letters, `math_answers.py` numbers.
`short_answers.py` scores what these functions return.
"""

import re


def after_thoughts(written: str) -> str:
    """What a model wrote outside of <think>...</think>; "" if it was cut off within its first thoughts.

    Source: `strip_reasoning_tags` of https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/api/reasoning.py,
    which leaves thoughts that were cut off. What stands before a lone </think> are thoughts too: some chat templates
    write the <think> into the prompt.
    """
    closed, end, rest = written.rpartition("</think>")
    answer = re.sub(r"<think>.*?</think>", "", closed + end, flags=re.DOTALL).rpartition("</think>")[2] + rest
    return "" if answer.lstrip().startswith("<think>") else answer


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
