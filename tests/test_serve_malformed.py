"""Fifteen hundred requests, most of which break the OpenAPI document: none makes the server fail."""

import json
from pathlib import Path

import pytest
import requests
import schemathesis
import serving
from hypothesis import HealthCheck, Phase, given, settings
from test_serve import chat_run  # noqa: F401  (a fixture)
from test_serve_load import until

from mm1.serve.limits import Limits

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize")
WORDS = ("Traceback", "/work", "/usr", "site-packages", ".py", "pydantic", "0x", "Errno")


def memory() -> float:
    """Resident megabytes of this process, in which the server runs."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1000


def examples(count: int):
    phases = (Phase.generate,)
    return settings(max_examples=count, deadline=None, phases=phases, suppress_health_check=list(HealthCheck))


def check(reply: requests.Response, body: object, *, refused: bool) -> None:
    assert reply.status_code < 500, (reply.text, body)
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert not [word for word in WORDS if word in error["message"]], error
        assert 0 < len(error["message"]) < 1000
    assert not refused or reply.status_code >= 400, (reply.text, body)


@pytest.mark.nightly
@pytest.mark.parametrize("path", PATHS)
def test_no_request_makes_the_server_fail(chat_run, path):  # noqa: F811
    with serving.running(chat_run, limits=Limits(max_concurrent=4, max_length=96, max_choices=4)) as server:
        document = requests.get(f"{server.base}/openapi.json", timeout=60).json()
        operation = schemathesis.openapi.from_dict(document)[path]["POST"]
        before: list[float] = []

        def ask(case, *, refused: bool) -> None:
            before.extend([memory()] if not before else [])
            content = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
            header = {"Content-Type": "application/json"}
            reply = requests.post(server.base + path, data=content, headers=header, timeout=60)
            check(reply, case.body, refused=refused)

        breaking = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        keeping = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
        examples(450)(given(breaking)(lambda case: ask(case, refused=True)))()
        examples(50)(given(keeping)(lambda case: ask(case, refused=False)))()
        until(lambda: not server.server.scheduler.running and not server.server.scheduler.waiting)
        assert requests.get(f"{server.base}/health", timeout=60).json() == {"status": "ok"}
        assert memory() - before[0] < 300, "the server's memory grows"
