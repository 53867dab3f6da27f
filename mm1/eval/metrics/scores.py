"""The scores other people's scorers give, one number per query, and how sure their means are.

Every metric takes all answers and all their references and returns an array with one score per query;
the score of a run is the mean (BLEU also has its own for a corpus). Pure functions of text, no model.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mm1.eval.metrics.ptb_tokenizer import tokens

Tokenize = Callable[[str], list[str]]
Grams = Counter[tuple[str, ...]]
Vector = dict[tuple[str, ...], float]

LONGEST_GRAM = 4
CIDER_SIGMA = 6.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds that hold it with 95 % confidence, in the unit of the scores."""

    mean: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high < 0


def cider(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokens) -> np.ndarray:
    """CIDEr-D of each answer (0 to 10; papers print 100 times it). Float64, one per query.

    N-grams of 1 to 4 tokens are weighted by how few queries' references hold them, so a score depends
    on the whole set: with one query every score is 0.

    Source: Vedantam et al., CIDEr, https://arxiv.org/abs/1411.5726, section 4 (CIDEr-D), with a habit
    of the official code (https://github.com/tylin/coco-caption): weights are clipped in the numerator only.
    """
    cooked = [[_grams(tokenize(text)) for text in texts] for texts in checked(answers, references)]
    seen: Counter[tuple[str, ...]] = Counter()
    for texts in cooked:
        seen.update({gram for text in texts for gram in text})
    log_queries = math.log(len(cooked)) if cooked else 0.0
    rarity = {gram: log_queries - math.log(count) for gram, count in seen.items()}
    scores = np.zeros(len(cooked))
    for query, (answer, texts) in enumerate(zip(answers, cooked, strict=True)):
        ours = _weigh(_grams(tokenize(answer)), rarity, log_queries)
        similarities = [_similarity(ours, _weigh(text, rarity, log_queries)) for text in texts]
        scores[query] = 10.0 * sum(similarities) / len(similarities)
    return scores


@dataclass(frozen=True, slots=True)
class Bleu:
    """BLEU of the corpus (the number papers print) and of each query alone (float64)."""

    corpus: float
    queries: np.ndarray


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokens) -> Bleu:
    """BLEU-4 (0 to 1) with the closest reference length.

    Source: Papineni et al., https://aclanthology.org/P02-1040/; smoothing constants and the choice of
    the reference length as in the official caption scorer (https://github.com/tylin/coco-caption).
    """
    rows = np.array(
        [
            _bleu_counts(tokenize(answer), [tokenize(text) for text in texts])
            for answer, texts in zip(answers, checked(answers, references), strict=True)
        ],
        dtype=np.float64,
    ).reshape(-1, 2 * LONGEST_GRAM + 2)
    queries = np.array([_bleu_score(row) for row in rows])
    return Bleu(corpus=_bleu_score(rows.sum(axis=0)), queries=queries)


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokens) -> np.ndarray:
    """ROUGE-L of each answer (0 to 1): F of the best precision and best recall, beta 1.2. Float64.

    Source: Lin, https://aclanthology.org/W04-1013/, section 3; beta as in the official caption scorer
    (https://github.com/tylin/coco-caption).
    """
    scores = np.zeros(len(answers))
    for query, (answer, texts) in enumerate(zip(answers, checked(answers, references), strict=True)):
        ours, theirs = tokenize(answer), [tokenize(text) for text in texts]
        common = [_longest_common(ours, text) for text in theirs]
        precision = max(length / max(len(ours), 1) for length in common)
        recall = max(length / max(len(text), 1) for length, text in zip(common, theirs, strict=True))
        if precision and recall:
            scores[query] = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    return scores


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """VQA accuracy of each answer (0 to 1), from ten people's answers to each question. Float64.

    An answer that three other people gave is right; the mean is taken over leaving out each person.
    As in the official code, answers are normalised only where the people disagree.

    Source: Antol et al., https://arxiv.org/abs/1505.00468, section 3, and the official evaluation
    (https://github.com/GT-Vision-Lab/VQA), the one OpenFlamingo and MM1 report.
    """
    scores = np.zeros(len(answers))
    for query, (answer, people) in enumerate(zip(answers, checked(answers, references), strict=True)):
        given = [_one_line(person) for person in people]
        ours = _one_line(answer)
        if len(set(given)) > 1:
            given, ours = [normalize_answer(person) for person in given], normalize_answer(ours)
        matches = [person == ours for person in given]
        scores[query] = sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)
    return scores


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the answer equals a reference, both normalised as for `vqa_accuracy`, else 0. Float64.

    Source: the score of easy-VQA (https://github.com/vzhou842/easy-VQA): one answer is right.
    """
    pairs = zip(answers, checked(answers, references), strict=True)
    return np.array(
        [float(normalize_answer(answer) in {normalize_answer(text) for text in texts}) for answer, texts in pairs]
    )


def normalize_answer(answer: str) -> str:
    """`answer` as the VQA evaluation compares it: no punctuation, digits for number words, no articles.

    Source: https://visualqa.org/evaluation.html and https://github.com/GT-Vision-Lab/VQA, whose two
    oddities are kept: a mark is deleted if anywhere it stands beside a space (or if the answer has a
    number like 1,000), else it becomes a space; and a dot goes unless a digit follows.
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


def bootstrap(scores: np.ndarray, *, seed: int, samples: int = 2000) -> Interval:
    """The mean of `scores` with its 95 % percentile interval, from `samples` draws with replacement.

    Queries are what is drawn: the interval says how far the score would move on other queries of the
    same kind, not on another training run. The weights of CIDEr stay those of the whole set.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; for language
    tasks Koehn, https://aclanthology.org/W04-3250/.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        return Interval(math.nan, math.nan, math.nan)
    draws = np.random.default_rng([seed, samples])
    means = np.concatenate(
        [
            scores[draws.integers(0, len(scores), size=(50, len(scores)))].mean(axis=1)
            for _ in range(math.ceil(samples / 50))
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(scores.mean()), float(low), float(high))


def paired_difference(ours: np.ndarray, theirs: np.ndarray, *, seed: int, samples: int = 2000) -> Interval:
    """The mean of `ours - theirs`, query by query, with its 95 % interval; a sign that is sure excludes 0.

    Raises:
        ValueError: when the two do not score the same number of queries.

    Source: the paired bootstrap, Koehn, https://aclanthology.org/W04-3250/, section 4.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"a paired difference needs the same queries: found {len(ours)} and {len(theirs)}")
    return bootstrap(np.asarray(ours) - np.asarray(theirs), seed=seed, samples=samples)


def checked(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """`references`, one list with at least one text for every answer.

    Raises:
        ValueError: another number of lists, or a list that is empty or a bare text.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers but references for {len(references)} queries")
    for query, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"query {query} needs a list of at least one reference, found {texts!r}")
    return references


def _grams(words: list[str]) -> Grams:
    """How often each run of 1 to 4 words occurs."""
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST_GRAM + 1)
        for start in range(len(words) - length + 1)
    )


@dataclass(frozen=True, slots=True)
class _Weighted:
    """A caption as CIDEr sees it: for each n-gram length a sparse vector and its norm."""

    vectors: tuple[Vector, ...]
    norms: tuple[float, ...]
    words: int


def _weigh(grams: Grams, rarity: Vector, unseen: float) -> _Weighted:
    vectors: tuple[Vector, ...] = tuple({} for _ in range(LONGEST_GRAM))
    for gram, count in grams.items():
        vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
    norms = tuple(math.sqrt(sum(weight * weight for weight in vector.values())) for vector in vectors)
    return _Weighted(vectors, norms, sum(count for gram, count in grams.items() if len(gram) == 1))


def _similarity(ours: _Weighted, theirs: _Weighted) -> float:
    """The mean over n-gram lengths of the clipped cosine, damped by the difference in length."""
    total = 0.0
    for left, right, norm, other in zip(ours.vectors, theirs.vectors, ours.norms, theirs.norms, strict=True):
        if norm and other:
            dot = sum(min(weight, right[gram]) * right[gram] for gram, weight in left.items() if gram in right)
            total += dot / (norm * other)
    difference = ours.words - theirs.words
    return math.exp(-(difference**2) / (2 * CIDER_SIGMA**2)) * total / LONGEST_GRAM


def _bleu_counts(ours: list[str], theirs: list[list[str]]) -> list[int]:
    """Matching n-grams by length, n-grams by length, our length, the closest reference's length."""
    most: Grams = Counter()
    for text in theirs:
        most |= _grams(text)
    matching = [0] * LONGEST_GRAM
    for gram, count in _grams(ours).items():
        matching[len(gram) - 1] += min(count, most[gram])
    possible = [max(0, len(ours) - length) for length in range(LONGEST_GRAM)]
    _, closest = min((abs(len(text) - len(ours)), len(text)) for text in theirs)
    return [*matching, *possible, len(ours), closest]


def _bleu_score(counts: np.ndarray) -> float:
    matching, possible = counts[:LONGEST_GRAM], counts[LONGEST_GRAM : 2 * LONGEST_GRAM]
    length, closest = counts[-2:]
    score = float(np.prod((matching + 1e-15) / (possible + 1e-9))) ** (1 / LONGEST_GRAM)
    ratio = (length + 1e-15) / (closest + 1e-9)
    return score * math.exp(1 - 1 / ratio) if ratio < 1 else score


def _longest_common(ours: list[str], theirs: list[str]) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for place, other in enumerate(theirs, start=1):
            here = best[place]
            best[place] = before + 1 if word == other else max(here, best[place - 1])
            before = here
    return best[-1]


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
    """The contractions of the VQA evaluation: what people type when they drop one apostrophe."""
    dropped = {
        word[:place] + word[place + 1 :]: word
        for word in _APOSTROPHES.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return dropped | {"somebody'd": "somebodyd"}  # the one entry the official table has backwards


_CONTRACTIONS = _contractions()
