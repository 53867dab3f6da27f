"""Scores of captions as the official scorers give them: CIDEr-D, BLEU-4, ROUGE-L.

Each takes all answers and all references and returns one score per query; the score of a run is the mean. BLEU also has
a score of the whole corpus, which is the number papers print.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mm1.eval.metrics.ptb_tokenizer import tokens
from mm1.eval.metrics.references import Metric, checked

Tokenize = Callable[[str], list[str]]
Grams = Counter[tuple[str, ...]]
Vector = dict[tuple[str, ...], float]

LONGEST_GRAM = 4
CIDER_SIGMA = 6.0


@dataclass(frozen=True, slots=True)
class DocumentFrequencies:
    """How many of `queries` have each n-gram in their references."""

    counts: Counter[tuple[str, ...]]
    queries: int


def document_frequencies(references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokens) -> DocumentFrequencies:
    """The frequencies of n-grams of 1 to 4 tokens among the references of all queries."""
    counts: Counter[tuple[str, ...]] = Counter()
    for texts in references:
        counts.update({gram for text in texts for gram in _grams(tokenize(text))})
    return DocumentFrequencies(counts, len(references))


def cider_within(split: Sequence[Sequence[str]]) -> Metric:
    """CIDEr-D with the document frequencies of these references, so that a score doesn't depend on other queries."""
    return partial(cider, frequencies=document_frequencies(split))


def cider(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Tokenize = tokens,
    frequencies: DocumentFrequencies | None = None,
) -> np.ndarray:
    """CIDEr-D of each answer (0 to 10; papers print it times 100). Float64, one per query.

    N-grams of 1 to 4 tokens weigh more the fewer queries have them in their references. `frequencies` are those of the
    whole split; without them, those of these queries: then a score depends on all of them, and a single query has 0.

    Source: Vedantam et al., CIDEr, https://arxiv.org/abs/1411.5726, section 4 (CIDEr-D). As in the official code
    (https://github.com/tylin/coco-caption), weights are clipped in the numerator only.
    """
    reference_grams = [[_grams(tokenize(text)) for text in texts] for texts in checked(answers, references)]
    frequencies = frequencies or document_frequencies(references, tokenize=tokenize)
    log_queries = math.log(frequencies.queries) if frequencies.queries else 0.0
    rarity = {gram: log_queries - math.log(count) for gram, count in frequencies.counts.items()}
    scores = np.zeros(len(reference_grams))
    for query, (answer, texts) in enumerate(zip(answers, reference_grams, strict=True)):
        ours = _weigh(_grams(tokenize(answer)), rarity, unseen=log_queries)
        similarities = [_similarity(ours, _weigh(text, rarity, unseen=log_queries)) for text in texts]
        scores[query] = 10.0 * sum(similarities) / len(similarities)
    return scores


@dataclass(frozen=True, slots=True)
class Bleu:
    """BLEU of the whole corpus (the number papers print) and of each query by itself (float64)."""

    corpus: float
    queries: np.ndarray


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokens) -> Bleu:
    """BLEU-4 (0 to 1) with the closest reference length.

    Source: Papineni et al., https://aclanthology.org/P02-1040/. The smoothing constants and the choice of the reference
    length are those of the official caption scorer (https://github.com/tylin/coco-caption).
    """
    counts = np.array(
        [
            _bleu_counts(tokenize(answer), [tokenize(text) for text in texts])
            for answer, texts in zip(answers, checked(answers, references), strict=True)
        ],
        dtype=np.float64,
    ).reshape(-1, 2 * LONGEST_GRAM + 2)
    queries = np.array([_bleu_score(counts_of_query) for counts_of_query in counts])
    return Bleu(corpus=_bleu_score(counts.sum(axis=0)), queries=queries)


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokens) -> np.ndarray:
    """ROUGE-L of each answer (0 to 1): the F score of the best precision and the best recall, beta 1.2. Float64.

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


def _grams(words: list[str]) -> Grams:
    """How often each n-gram of 1 to 4 words occurs."""
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST_GRAM + 1)
        for start in range(len(words) - length + 1)
    )


@dataclass(frozen=True, slots=True)
class _Weighted:
    """A caption for CIDEr: for each n-gram length a sparse vector and its norm."""

    vectors: tuple[Vector, ...]
    norms: tuple[float, ...]
    words: int


def _weigh(grams: Grams, rarity: Vector, *, unseen: float) -> _Weighted:
    vectors: tuple[Vector, ...] = tuple({} for _ in range(LONGEST_GRAM))
    for gram, count in grams.items():
        vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
    norms = tuple(math.sqrt(sum(weight * weight for weight in vector.values())) for vector in vectors)
    return _Weighted(vectors, norms, sum(count for gram, count in grams.items() if len(gram) == 1))


def _similarity(ours: _Weighted, theirs: _Weighted) -> float:
    """The mean over n-gram lengths of the clipped cosine, reduced by the difference in length."""
    total = 0.0
    for left, right, norm, other in zip(ours.vectors, theirs.vectors, ours.norms, theirs.norms, strict=True):
        if norm and other:
            dot = sum(min(weight, right[gram]) * right[gram] for gram, weight in left.items() if gram in right)
            total += dot / (norm * other)
    difference = ours.words - theirs.words
    return math.exp(-(difference**2) / (2 * CIDER_SIGMA**2)) * total / LONGEST_GRAM


def _bleu_counts(ours: list[str], theirs: list[list[str]]) -> list[int]:
    """Matching n-grams by length, all n-grams by length, our length, the closest reference's length."""
    highest_counts: Grams = Counter()
    for text in theirs:
        highest_counts |= _grams(text)
    matching = [0] * LONGEST_GRAM
    for gram, count in _grams(ours).items():
        matching[len(gram) - 1] += min(count, highest_counts[gram])
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
    lengths = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for column, other in enumerate(theirs, start=1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if word == other else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]
