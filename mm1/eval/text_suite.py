"""MM1's text suite in EleutherAI's lm-eval, with a model of mm1 as the backend (extra `mm1[lm-eval]`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    raise ValueError(f"the text suite needs EleutherAI's lm-eval ({error}); pip install 'mm1[lm-eval]'") from error

from mm1 import dist
from mm1.disk import write_whole
from mm1.document import Document, Text
from mm1.eval.harness import PATIENCE
from mm1.eval.model import Request
from mm1.eval.models import Ours

SUITE = {
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "piqa": "acc",
    "lambada_openai": "acc",
    "winogrande": "acc",
    "hellaswag": "acc_norm",
    "sciq": "acc",
    "triviaqa": "exact_match",
    "webqs": "exact_match",
}
"""TextCore (MM1, appendix): its tasks by their names in lm-eval, and the score of each that is reported."""


class TextModel(TemplateLM):
    """A model of mm1 with lm-eval's interface: likelihoods of continuations, and texts up to a stop string.

    lm-eval shares the requests of a task out over the ranks and gathers the answers.
    """

    device = torch.device("cpu")  # on which counts of requests are gathered

    def __init__(self, ours: Ours):
        super().__init__()
        self._rank, self._world_size = dist.rank(), dist.world()
        self.ours, self._begins = ours, ours.tokenizer.begin

    @property
    def eot_token_id(self) -> int:
        return self.ours.tokenizer.end

    @property
    def prefix_token_id(self) -> int:
        return (self._begins or [self.eot_token_id])[0]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(dist.all_gather_object(tensor))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        objects = dist.all_gather_object(obj)
        return objects if dist.rank() == dst else None

    def barrier(self) -> None:
        dist.all_gather_object(None)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.ours.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [
            (before if before[:1] == [self.prefix_token_id] else [*self._begins, *before], after)
            for _, before, after in requests
        ]
        return [(score.log_probability, score.greedy) for score in self.ours.writer.score_tokens(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        whole = [(request.args, [self.prefix_token_id], self.tok_encode(request.args[0])) for request in requests]
        return [nats for nats, _ in self._loglikelihood_tokens(whole)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [reply.text for reply in self.ours.generate([_request(*request.args) for request in requests])]


def _request(context: str, options: dict[str, Any]) -> Request:
    until = options.get("until") or ()
    return Request(
        Document((Text(context, train=False),)),
        stops=(until,) if isinstance(until, str) else tuple(until),
        max_tokens=int(options.get("max_gen_toks", 256)),
    )


def evaluate_text(
    ours: Ours, *, folder: Path, limit: int | None, tasks: Sequence[str | dict[str, Any]] = tuple(SUITE)
) -> dict[str, float]:
    """The score of each task in percent, and their mean. They are also written to `folder/text.json`.

    lm-eval downloads the data or finds them in the cache of `datasets`. The ranks share the requests out; only rank 0
    has the scores, the others return an empty dict.
    """
    with dist.connected(patience=PATIENCE):
        model = TextModel(ours)
        results = simple_evaluate(model=model, tasks=list(tasks), limit=limit, log_samples=False, bootstrap_iters=0)
    if dist.rank():
        return {}
    scores = {name: 100 * _reported(name, values) for name, values in results["results"].items()}
    scores["mean"] = sum(scores.values()) / len(scores)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "text.json", json.dumps({"model_name": ours.name, "limit": limit, "scores": scores}, indent=1))
    return scores


def _reported(name: str, values: dict[str, Any]) -> float:
    """The score of a task that the suite names; for any other task its first."""
    numbers = {key.partition(",")[0]: value for key, value in values.items() if isinstance(value, float)}
    return numbers.get(SUITE.get(name, ""), next(iter(numbers.values())))


def text_table(scores: dict[str, float]) -> Table:
    """The scores for a terminal."""
    table = Table(title="text suite (lm-eval)", title_justify="left")
    table.add_column("task")
    table.add_column("score", justify="right")
    for name, value in scores.items():
        table.add_row(name, f"{value:.1f}")
    return table
