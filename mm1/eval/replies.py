"""What a model replied to requests, kept line by line as the replies come.

A call that is killed has lost what was in flight, and the next call asks only what is missing: after a crash, with more
queries, or after a change of the scoring.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mm1.eval.model import REFUSED, Done, Model, Reply, Request, ignore, name_of, prompt_hash

FIRST_REFUSALS = 8
"""A model that refuses so many requests before it has answered one is taken to refuse all."""


class KeptReplies:
    """The replies of `model` in a file, which other models' replies may share. One process at a time writes to it."""

    def __init__(self, path: Path, model: Model):
        self.path, self.model = path, model
        self._replies = _read(path)

    def missing(self, requests: Sequence[Request]) -> int:
        """How many different requests have no reply yet."""
        return len({request_key(self.model.name, request) for request in requests} - self._replies.keys())

    def answer(self, requests: Sequence[Request], *, done: Done = ignore) -> list[Reply]:
        """The reply to each request; only those are asked that have none yet, equal ones once. `done` hears of these.

        A refused request is not kept: the next call asks it again.

        Raises:
            ValueError: the model refuses all requests, or fails; the replies until then are kept.
        """
        keys = [request_key(self.model.name, request) for request in requests]
        missing: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key not in self._replies:
                missing.setdefault(key, request)
        answered = len(set(keys)) - len(missing)
        if not missing:
            return [self._replies[key] for key in keys]
        keys_to_ask, positions = list(missing), {key: number for number, key in reversed(list(enumerate(keys)))}
        refused: dict[str, Reply] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:

            def keep(number: int, reply: Reply) -> None:
                nonlocal answered
                key = keys_to_ask[number]
                if name_of(reply.problem) == REFUSED:
                    refused[key] = reply
                    if not answered and len(refused) >= min(FIRST_REFUSALS, len(missing)):
                        raise ValueError(f"{self.model.name} answered none of {len(refused)} requests: {reply.problem}")
                else:
                    self._replies[key], answered = reply, answered + 1
                    kept = {name: value for name, value in asdict(reply).items() if value or name == "text"}
                    file.write(json.dumps({"request": key, **kept}) + "\n")
                    file.flush()
                done(positions[key], reply)

            self.model.answer(list(missing.values()), done=keep)
        return [self._replies.get(key) or refused[key] for key in keys]


def request_key(model: str, request: Request) -> str:
    """A hash of all that decides the reply of the model of this name."""
    decides = [model, prompt_hash(request.prompt), request.stops, request.max_tokens, request.beams, request.choices]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Reply]:
    """The replies in a file, by the key of their request. A last line that a kill cut off is removed from the file."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    records = [json.loads(line) for line in whole.splitlines()]
    return {record["request"]: Reply(record["text"], record.get("problem", "")) for record in records}
