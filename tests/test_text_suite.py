"""lm-eval with our model as its backend, on tasks of its own form from local files."""

import json
import math
from pathlib import Path

import pytest
import small
import torch
from pair import Pair

from mm1.eval.models import Ours

pytest.importorskip("lm_eval", reason="the extra mm1[lm-eval] is not installed")


class Letters:
    """A tokenizer for 64 tokens: letters and spaces as numbers."""

    marks = {"pad": 0, "begin": 1, "end": 2, "image": 3}  # noqa: RUF012
    image, end, begin, ends, template = 3, 2, (1,), frozenset({2}), None

    def encode(self, text: str) -> list[int]:
        return [4 + ord(letter) % 60 for letter in text]

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(94 + (token - 4)) if token >= 4 else "" for token in tokens)


@pytest.fixture(scope="module")
def ours() -> Ours:
    return Ours(small.model().eval(), Letters(), name="small", rows=3)


def nats(ours: Ours, context: str, continuation: str) -> float:
    """Log-probability of a continuation from one plain pass of the decoder."""
    encode = ours.tokenizer.encode
    tokens = torch.tensor([[1, *encode(context), *encode(continuation)]])
    decoder = ours.model.decoder
    with torch.no_grad():
        likely = decoder.logits(decoder(decoder.embed(tokens), torch.arange(tokens.shape[1])[None])).log_softmax(-1)
    first = 1 + len(encode(context))
    return float(likely[0, first - 1 : -1].gather(1, tokens[0, first:, None]).sum())


def a_task(name: str, path: Path, **more) -> dict:
    files = {"test": str(path)}
    return {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", **more}


ROWS = [
    {"question": f"which {word}", "choices": ["abc", "zz", "hello you"], "gold": n % 3}
    for n, word in enumerate(["one", "two", "three", "four", "five", "six"])
]


def three_tasks(folder: Path) -> list[dict]:
    """A task of each kind of request."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    selected = a_task(
        "arc_easy",
        path,
        output_type="multiple_choice",
        doc_to_text="{{question}}?",
        doc_to_target="gold",
        doc_to_choice="choices",
        metric_list=[{"metric": "acc"}],
    )
    rolled = a_task(
        "rolled",
        path,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    written = a_task(
        "webqs",
        path,
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="nothing",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match"}],
    )
    return [selected, rolled, written]


@pytest.mark.long  # lm-eval looks through its thousands of task files first
def test_lm_eval_scores_our_model(ours: Ours, tmp_path: Path):
    from mm1.eval.text_suite import SUITE, evaluate_text

    scores = evaluate_text(ours, folder=tmp_path / "eval", limit=None, tasks=three_tasks(tmp_path))
    likely = [[nats(ours, f"{row['question']}?", f" {text}") for text in row["choices"]] for row in ROWS]
    right = [row["gold"] == max(range(3), key=of.__getitem__) for row, of in zip(ROWS, likely, strict=True)]
    assert scores["arc_easy"] == pytest.approx(100 * sum(right) / 6)
    words = sum(len(row["question"].split()) for row in ROWS)
    whole = sum(nats(ours, "", row["question"]) for row in ROWS)
    assert scores["rolled"] == pytest.approx(100 * math.exp(-whole / words), rel=1e-4)
    assert scores["webqs"] == 0
    kept = json.loads((tmp_path / "eval" / "text.json").read_text())
    assert kept["scores"] == scores
    assert {"piqa", "hellaswag", "triviaqa", "webqs", "lambada_openai", "winogrande", "sciq"} < SUITE.keys()


def text_of_rank(rank: int, folder: Path) -> None:
    from mm1.eval.text_suite import evaluate_text

    model = Ours(small.model().eval(), Letters(), name="small", rows=3)
    evaluate_text(model, folder=folder, limit=None, tasks=three_tasks(folder.parent))


@pytest.mark.nightly  # lm-eval looks through its thousands of task files first
def test_ranks_share_the_requests_out(ours: Ours, tmp_path: Path):
    from mm1.eval.text_suite import evaluate_text

    evaluate_text(ours, folder=tmp_path / "alone", limit=None, tasks=three_tasks(tmp_path))
    pair = Pair(text_of_rank, tmp_path / "both")
    assert pair.end() == [0, 0], pair.messages()
    alone, both = (json.loads((tmp_path / name / "text.json").read_text()) for name in ("alone", "both"))
    assert alone == both
