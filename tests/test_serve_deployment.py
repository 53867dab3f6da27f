"""What docs/serve.md says of systemd, containers and nginx, read by systemd and by nginx where they are installed."""

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import conftest
import pytest
import requests
import serving
from test_serve import chat_run  # noqa: F401  (a fixture)
from test_serve_page import slowed

PAGE = (Path(__file__).parents[1] / "docs/serve.md").read_text()
NGINX = os.environ.get("MM1_NGINX") or shutil.which("nginx")


def block(language: str) -> str:
    """The page's only block in this language."""
    (body,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return body


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt-get install systemd")
def test_systemd_takes_the_unit(tmp_path):
    unit = tmp_path / "mm1.service"

    def said(text: str) -> str:
        unit.write_text(text)
        done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
        return f"{done.returncode} {done.stderr}"

    program = tmp_path / "mm1"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = re.sub(r"(?<=^ExecStart=)\S+", str(program), block("ini"), flags=re.MULTILINE)
    assert said(text) == "0 "
    assert "Unknown key" in said(text.replace("KillSignal", "KilSignal"))
    for section in ("[Unit]", "[Service]", "[Install]"):
        assert section in text


def test_the_unit_waits_longer_than_the_server_drains_and_nginx_longer_than_an_answer_takes():
    from mm1.serve.limits import Limits

    assert int(re.search(r"TimeoutStopSec=(\d+)", PAGE)[1]) > Limits().drain_seconds
    assert int(re.search(r"proxy_read_timeout (\d+)s", PAGE)[1]) > Limits().request_seconds
    assert int(re.search(r"client_max_body_size (\d+)m", PAGE)[1]) * 2**20 >= Limits().max_body_bytes


def test_the_containers_command_is_one_that_mm1_takes():
    lines = dict(line.split(" ", 1) for line in block("dockerfile").splitlines() if line)
    words = json.loads(lines["CMD"])
    assert words[:2] == ["mm1", "serve"]
    done = subprocess.run([sys.executable, "-m", "mm1", *words[1:]], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: "), done.stderr  # the run is not here, but all options are known
    assert "no run at" in done.stderr
    check = re.search(r'"(.*)"', lines["HEALTHCHECK"])
    assert check is not None
    compile(check[1], "HEALTHCHECK", "exec")


def said_by(words: list[str], server: serving.Running, folder: Path) -> str:
    """What a command of the page prints that asks this server instead of the page's."""
    here = {"http://127.0.0.1:8000": server.base, "tiny_sft": "tiny"}
    words = [functools.reduce(lambda text, old: text.replace(old, here[old]), here, word) for word in words]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_lines_for_openais_sdk_get_an_answer(chat_run, tmp_path):  # noqa: F811
    (tmp_path / "picture.png").write_bytes(conftest.picture(1, 0)[0])
    with serving.running(chat_run) as server:
        assert said_by([sys.executable, "-c", block("py")], server, tmp_path)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: apt-get install curl")
def test_the_pages_curl_command_gets_an_answer(chat_run, tmp_path):  # noqa: F811
    (curl,) = re.findall(r"^curl .*\n  .*", PAGE, re.MULTILINE)
    assert "--json" not in curl  # which curl knows since 7.82; Ubuntu 22.04 has 7.81
    with serving.running(chat_run) as server:
        answer = json.loads(said_by(["bash", "-c", curl], server, tmp_path))
    assert answer["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.skipif(NGINX is None, reason="no nginx: apt-get install nginx, or MM1_NGINX=PATH")
def test_nginx_passes_a_stream_on_while_it_is_written(chat_run, tmp_path):  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    with serving.running(chat_run) as server:
        slowed(server, 0.01)
        inside = block("nginx").replace("http://127.0.0.1:8000", server.base)
        paths = "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in folders)
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{paths}server {{ listen 127.0.0.1:{port};\n{inside}}}\n}}\n"
        )
        words = [NGINX, "-p", str(tmp_path), "-e", str(tmp_path / "log"), "-c", str(tmp_path / "nginx.conf")]
        tested = subprocess.run([*words, "-t"], capture_output=True, text=True, check=False)
        assert tested.returncode == 0, tested.stderr
        process = subprocess.Popen(words)
        try:
            base = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 30
            while not answers(base):
                assert time.monotonic() < deadline, "nginx doesn't answer"
                time.sleep(0.05)
            body = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 400, "ignore_eos": True}
            reply = requests.post(f"{base}/v1/chat/completions", json={**body, "stream": True}, stream=True, timeout=60)
            lines = reply.iter_lines()
            next(lines)
            assert server.server.scheduler.running == 1, "the stream came only when the answer was complete"
            assert list(lines)[-2] == b"data: [DONE]"
            large = {"messages": [{"role": "user", "content": "x" * 70_000_000}]}
            assert requests.post(f"{base}/v1/chat/completions", json=large, timeout=60).status_code == 413
        finally:
            process.terminate()
            process.wait(30)


def answers(base: str) -> bool:
    try:
        return requests.get(f"{base}/health", timeout=5).ok
    except requests.ConnectionError:
        return False
