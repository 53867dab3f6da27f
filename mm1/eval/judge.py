"""Another model as the judge of open answers. What it said is kept, so that it is asked once."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mm1.eval.fewshot import Example, Rule
from mm1.eval.models import Server

ATTEMPTS = 3


class Judge:
    """Scores by a server's model; replies stand in `folder/judge.jsonl` with the judge's name."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.name = server, server.name
        self._path = folder / "judge.jsonl"
        self._said: dict[str, str] = {}
        if self._path.is_file():
            lines = [json.loads(line) for line in self._path.read_text().splitlines()]
            self._said = {line["asked"]: line["said"] for line in lines if line["judge"] == self.name}

    def score(self, rule: Rule, query: Example, answer: str) -> float:
        """0 to 1. An empty answer is 0 without asking.

        Raises:
            ValueError: the judge gave no score in three replies: nothing is counted in its place.
        """
        if not answer.strip():
            return 0.0
        text, problem = rule.ask(query, answer), ""
        for attempt in range(ATTEMPTS):
            said = self._reply(text, attempt)
            try:
                return rule.points(said)
            except ValueError as error:
                problem = str(error)
        raise ValueError(f"judge {self.name} on query {query.id}: {problem}")

    def _reply(self, text: str, attempt: int) -> str:
        name = hashlib.sha256(f"{attempt} {text}".encode()).hexdigest()[:16]
        if name not in self._said:
            asked: list[dict[str, Any]] = [{"role": "user", "content": text}]
            self._said[name] = self.server.reply(asked, longest=256)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"judge": self.name, "asked": name, "said": self._said[name]}) + "\n")
        return self._said[name]
