"""Which answer a model's text gives: yes or no. `letters.py` reads letters, `math_answers.py` numbers.

`short_answers.py` scores what these functions return.
"""


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
