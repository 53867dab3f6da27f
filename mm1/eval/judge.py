"""Another model as the judge of open answers. Its replies are kept, so that it is asked once."""

import hashlib
import json
from pathlib import Path

from mm1.eval.fewshot import Example, JudgeRule
from mm1.eval.http_model import HttpModel

ATTEMPTS = 3


class Judge:
    """Scores answers with the model of a server; `folder/judge.jsonl` keeps its replies under the judge's name."""

    def __init__(self, model: HttpModel, folder: Path):
        self.model, self.name = model, model.name
        self._path = folder / "judge.jsonl"
        self._replies: dict[str, str] = {}
        if self._path.is_file():
            records = [json.loads(line) for line in self._path.read_text().splitlines()]
            self._replies = {record["asked"]: record["said"] for record in records if record["judge"] == self.name}

    def score(self, rule: JudgeRule, query: Example, *, answer: str) -> float:
        """The score of `answer`, 0 to 1. An empty answer gets 0 without a request.

        Raises:
            ValueError: none of three replies has a score; no other number stands in for it.
        """
        if not answer.strip():
            return 0.0
        question, problem = rule.ask(query, answer), ""
        for attempt in range(ATTEMPTS):
            reply = self._reply(question, attempt)
            try:
                return rule.parse(reply)
            except ValueError as error:
                problem = str(error)
        raise ValueError(f"judge {self.name} on query {query.id}: {problem}")

    def _reply(self, question: str, attempt: int) -> str:
        key = hashlib.sha256(f"{attempt} {question}".encode()).hexdigest()[:16]
        if key not in self._replies:
            self._replies[key] = self.model.chat([{"role": "user", "content": question}], max_tokens=256)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"judge": self.name, "asked": key, "said": self._replies[key]}) + "\n")
        return self._replies[key]
