"""Scores of short answers to questions: VQA accuracy by both rules of normalisation, and exact match."""

import re
from collections.abc import Sequence

import numpy as np

from mm1.eval.metrics.references import checked


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """VQA accuracy of each answer (0 to 1), given ten people's answers to each question. Float64.

    With one person left out, an answer is right if three of the others gave it; the score is the mean over leaving out
    each person. Answers are always normalised, as by OpenFlamingo and lmms-eval: "Yes." is the "yes" of ten people.

    Source: Antol et al., https://arxiv.org/abs/1505.00468, section 3; OpenFlamingo, whose evaluation MM1 follows
    (https://github.com/mlfoundations/open_flamingo/blob/main/open_flamingo/eval/vqa_metric.py).
    """
    return _accuracy(answers, references, disputed_only=False)


def vqa_accuracy_official(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """`vqa_accuracy` where answers are normalised only if the people disagree: "Yes." isn't the "yes" of ten people.

    Source: the official evaluation
    (https://github.com/GT-Vision-Lab/VQA/blob/master/PythonEvaluationTools/vqaEvaluation/vqaEval.py).
    """
    return _accuracy(answers, references, disputed_only=True)


def vqa_accuracy_evalai(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """`vqa_accuracy` after commas and question marks are deleted, and 's is a word of its own: "a,b" isn't "a, b".

    Source: TextVQA's evaluation, `EvalAIAnswerProcessor` of
    https://github.com/facebookresearch/mmf/blob/main/mmf/utils/m4c_evaluators.py, which lmms-eval also takes
    for VizWiz and OK-VQA.
    """
    split = [[_words(text) for text in texts] for texts in checked(answers, references)]
    return vqa_accuracy([_words(answer) for answer in answers], split)


def _words(answer: str) -> str:
    return answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")


def _accuracy(answers: Sequence[str], references: Sequence[Sequence[str]], *, disputed_only: bool) -> np.ndarray:
    scores = np.zeros(len(answers))
    for query, (answer, people) in enumerate(zip(answers, checked(answers, references), strict=True)):
        references_of_query = [_one_line(person) for person in people]
        ours = _one_line(answer)
        if not disputed_only or len(set(references_of_query)) > 1:
            references_of_query = [normalize_answer(text) for text in references_of_query]
            ours = normalize_answer(ours)
        matches = [text == ours for text in references_of_query]
        scores[query] = sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)
    return scores


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer equals a reference after normalisation as in `vqa_accuracy`, else 0. Float64.

    Source: the score of easy-VQA (https://github.com/vzhou842/easy-VQA), where exactly one answer is right.
    """
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array(
        [float(normalize_answer(answer) in {normalize_answer(text) for text in texts}) for answer, texts in pairs]
    )


def normalize_answer(answer: str) -> str:
    """`answer` as the VQA evaluation compares it: no punctuation, digits for number words, no articles.

    Source: https://visualqa.org/evaluation.html and https://github.com/GT-Vision-Lab/VQA. Two oddities of the official
    code are kept: a punctuation mark is deleted if it occurs next to a space anywhere in the answer (or if the answer
    has a number like 1,000), otherwise it becomes a space; and a period is deleted unless a digit follows.
    """
    answer = _one_line(answer)
    deletes_all = re.search(r"\d,\d", answer) is not None
    spaced = answer
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        deletes = deletes_all or f"{mark} " in answer or f" {mark}" in answer
        spaced = spaced.replace(mark, "" if deletes else " ")
    spaced = re.sub(r"\.(?!\d)", "", spaced, count=32)  # the official call passes re.UNICODE, 32, as its count
    words = [_NUMBERS.get(word, word) for word in spaced.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}

_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """The contractions of the VQA evaluation, keyed by their spelling with one apostrophe missing."""
    misspelled = {
        word[:index] + word[index + 1 :]: word
        for word in _APOSTROPHES.split()
        for index, letter in enumerate(word)
        if letter == "'"
    }
    return misspelled | {"somebody'd": "somebodyd"}  # the official table has this one entry backwards


_CONTRACTIONS = _contractions()
