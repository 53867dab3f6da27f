"""Two thousand requests, most of which break the OpenAPI document, and a list of holes that other servers had.

None makes the server fail. `make test-long LONG=nightly ARGS="-k malformed -s"` runs them and prints what came back.
"""

import json
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import conftest
import pytest
import requests
import schemathesis
import serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving import Running, data_url
from test_serve import chat_run  # noqa: F401  (a fixture)
from test_serve_load import until

from mm1.serve.limits import Limits

BREAKING = {"/v1/chat/completions": 700, "/v1/completions": 600, "/tokenize": 220, "/detokenize": 200}
"""Bodies that break each route's schema; a tenth as many keep it."""

NAMES, METHODS = 60, 40  # models that there are not, and methods that routes do not take
WORDS = ("Traceback", "/work", "/usr", "site-packages", ".py", "pydantic", "0x", "Errno")
PNG = conftest.picture(1, 0)[0]
LIMITS = Limits(max_concurrent=4, max_length=96, max_choices=4)


def memory() -> float:
    """Resident megabytes of this process, in which the server runs."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1000


@dataclass
class Sender:
    """Sends requests to a server, checks every answer, and counts them by status."""

    server: Running
    statuses: Counter = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)

    def send(self, method: str, path: str, content: bytes = b"", *, refused: bool, **how: Any) -> requests.Response:
        headers = {"Content-Type": "application/json"} | how.pop("headers", {})
        reply = requests.request(
            method, self.server.base + path, data=content, headers=headers, timeout=60, allow_redirects=False
        )
        self.statuses[reply.status_code] += 1
        self.memory.append(memory())
        assert reply.status_code < 500, (reply.text, path, content[:500])
        assert not refused or reply.status_code >= 400, (reply.text, path, content[:500])
        if reply.status_code >= 400 and method != "HEAD":
            error = reply.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert not [word for word in WORDS if word in error["message"]], error
            assert 0 < len(error["message"]) < 1000
        return reply


def break_schemas(sender: Sender) -> None:
    """Bodies that schemathesis makes of the OpenAPI document."""
    document = requests.get(f"{sender.server.base}/openapi.json", timeout=60).json()
    schema = schemathesis.openapi.from_dict(document)
    assert BREAKING.keys() == {path for path, operations in document["paths"].items() if "post" in operations}
    for path, count in BREAKING.items():
        operation = schema[path]["POST"]
        for mode, examples in (("NEGATIVE", count), ("POSITIVE", count // 10)):
            cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode])
            ask_all(cases, partial(ask, sender, path, refused=mode == "NEGATIVE"), examples)


def ask(sender: Sender, path: str, case: Any, *, refused: bool) -> None:
    content = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
    sender.send("POST", path, content, refused=refused)


def ask_all(cases: st.SearchStrategy, ask: Callable[[Any], object], count: int) -> None:
    """Ask `count` of the cases."""

    def one(case: Any) -> None:
        ask(case)

    how = settings(max_examples=count, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    how(given(cases)(one))()


def ask_for_what_is_not_there(sender: Sender) -> None:
    """Models of any name, and routes by methods that they do not take."""
    names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda name: name != "tiny")
    ask_all(names, lambda name: sender.send("GET", f"/v1/models/{quote(name, safe='')}", refused=True), NAMES)
    paths = st.sampled_from([*BREAKING, "/v1/models", "/health", "/metrics", "/docs", "/openapi.json", "/", "/../etc"])
    methods = st.sampled_from(["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
    ask_all(st.tuples(methods, paths), lambda pair: sender.send(*pair, b"{}", refused=True), METHODS)


def message(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


def shown(url: Any) -> dict[str, Any]:
    return message([{"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"}])


ADDRESSES = (
    *(
        "http://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost:22/",
    ),
    *("http://0/a.png", "http://2130706433/", "http://example.com\\@127.0.0.1/", "https://127.0.0.1#@example.com/"),
    *("file:" + "//" + "/etc/passwd", "/etc/passwd", "ftp://example.com/a.png", "gopher://127.0.0.1:6379/_", ""),
    *(
        "data:",
        "data:image/png;base64,",
        "data:image/png;base64,%%",
        "data:image/png,abc",
        "data:text/html;base64,PGI+",
    ),
    *(data_url(PNG[:40]), data_url(b"\x80\x04."), data_url(b"%!PS-Adobe-3.0"), data_url(b"<svg/>"), data_url(b"BM")),
)
HOLES: tuple[dict[str, Any], ...] = (
    *(shown({"url": address}) for address in ADDRESSES),  # CVE-2025-6242, CVE-2026-24779, CVE-2026-22778
    *(shown(url) for url in ("http://127.0.0.1/", data_url(PNG), None, 5, [], {}, {"url": None}, {"url": 5})),
    message([{"type": "image_url", "image_url": {"url": data_url(PNG)}}] * 33),  # CVE-2026-34755
    message("x", chat_template="{{ ''.__class__ }}"),  # GHSA-69j4-grxj-j64p
    message("x", chat_template_kwargs={"tools": "{{ 1 }}"}),
    message("x", prompt_embeds="gAQu"),  # CVE-2025-62164, CVE-2026-7301
    message([{"type": "prompt_embeds", "data": "gAQu"}]),
    message([{"type": "video_url", "video_url": {"url": "data:,"}}]),
    message([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]),
    message("x", n=10**9),
    message("x", logit_bias={"-1": 1}),
    message("x", logit_bias={"9" * 400: 1}),
    message("x", seed=2**64),
    message("x", stop=[""] * 17),
    message("x", tools=[{"type": "function", "function": {"name": "f"}}]),
    message("x", response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
    message("x", response_format={"type": "json_schema", "json_schema": {"schema": {"pattern": "(a*)*$" * 99}}}),
    message("x", structured_outputs={"regex": "(" * 5000}),
    message("x", structured_outputs={"grammar": "start: start"}),
    message("x" * 10**6),
    message("\x00\x1b[2J" * 9000),
    {"messages": [{"role": "user", "content": "x"}] * 2000},
    {"messages": [{"role": "assistant", "content": "x"}]},
    {"messages": {"role": "user"}},
)
RAW = (
    b"",
    b"null",
    b"[]",
    b"{",
    b'{"messages":' * 5000,
    b"[" * 10**5,
    b'{"messages": NaN}',
    b"\xff\xfe",
    b'{"a":1}{"a":1}',
)


def try_holes(sender: Sender) -> None:
    """What other servers let through, on every route that takes a body."""
    for path in BREAKING:
        for body in HOLES:
            wrong = "structured_outputs" not in body and "response_format" not in body
            sender.send("POST", path, json.dumps(body).encode(), refused=wrong)
        for content in RAW:
            sender.send("POST", path, content, refused=True)
        sender.send("POST", path, b"{}", refused=True, headers={"Content-Type": "text/plain"})
        sender.send("POST", path, b"{}", refused=True, headers={"Content-Encoding": "gzip"})
    host, port = sender.server.base.removeprefix("http://").split(":")
    for line in (
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"POST /tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port))) as one:
            one.sendall(line)
            one.settimeout(5)
            assert b" 500 " not in one.recv(4000)


@pytest.mark.nightly
def test_no_malformed_request_makes_the_server_fail(chat_run):  # noqa: F811
    with serving.running(chat_run, limits=LIMITS) as server:
        sender = Sender(server)
        break_schemas(sender)
        ask_for_what_is_not_there(sender)
        try_holes(sender)
        until(lambda: not server.server.scheduler.running and not server.server.scheduler.waiting)
        assert requests.get(f"{server.base}/health", timeout=60).json() == {"status": "ok"}
        reply = server.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "What?"}], max_tokens=2
        )
        assert reply.choices
    refused = sum(count for status, count in sender.statuses.items() if 400 <= status < 500)
    first, last = sender.memory[len(sender.memory) // 4], sender.memory[-1]
    print(f"{sum(sender.statuses.values())} requests by status: {dict(sorted(sender.statuses.items()))}")
    print(f"memory {first:.0f} MB after a quarter, {last:.0f} MB at the end")
    assert refused >= 2000
    assert last - first < 100, "the server's memory grows"


def test_holes_of_other_servers_are_closed(chat_run):  # noqa: F811
    with serving.running(chat_run, limits=LIMITS) as server:
        sender = Sender(server)
        try_holes(sender)
        assert requests.get(f"{server.base}/health", timeout=60).json() == {"status": "ok"}
