"""What docs/serve.md says of systemd, containers and nginx, read by systemd where it is installed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs/serve.md").read_text()


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
