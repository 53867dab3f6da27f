"""The lowest version of each dependency is one that `make test-oldest` installs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name: str) -> list[Requirement]:
    """What an extra needs, and what the extras of ours that it names need."""
    needed = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][name]):
        inner = [each for extra in sorted(requirement.extras) for each in requirements(extra)]
        needed += inner if requirement.name == "mm1" else [requirement]
    return needed


NEEDED = {each.name: each for each in [*map(Requirement, PROJECT["dependencies"]), *requirements("dev")]}


@pytest.mark.parametrize("name", NEEDED)
def test_the_oldest_environment_has_the_lowest_version(name: str):
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements/oldest.txt").read_text(), re.MULTILINE))
    (lowest,) = (Version(each.version) for each in NEEDED[name].specifier if each.operator == ">=")
    pinned = Version(pins.get(canonicalize_name(name), "0"))
    assert pinned == lowest, (
        f"pyproject.toml allows {name} from {lowest} on, but requirements/oldest.txt has {pinned}: run the command in "
        "its first lines (pip install uv); if that changes nothing, another dependency needs a newer one: raise the "
        "bound to what is there"
    )
