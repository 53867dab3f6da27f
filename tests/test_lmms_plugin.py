"""The plugin under lmms-eval: the likeliest choice is taken, whichever way the version that is installed compares."""

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

CHOICES = ["a dog", "a cat", "a very large cow"]


class Smallest:
    """How 0.7 takes a choice."""

    def process_results(self, results):
        lls, _ = zip(*results, strict=True)
        return np.argmin(lls)


class Largest:
    """How lm-eval takes a choice."""

    def process_results(self, results):
        lls, _ = zip(*results, strict=True)
        return np.argmax(lls)


@dataclass
class GenerationResult:
    """What 0.7 wraps answers in."""

    text: Any


def as_the_runner_takes_it(answer: Any) -> Any:
    """What 0.7.3 hands on to the task: of anything but a result and a text it makes a text."""
    return answer.text if isinstance(answer, GenerationResult) else str(answer)


@pytest.mark.parametrize("results", [True, False])
@pytest.mark.parametrize("task", [Smallest, Largest])
def test_the_likeliest_choice_is_taken(task: type, results: bool, monkeypatch):
    modules = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult} if results else {},
        "lmms_eval.api.model": {"lmms": type("lmms", (), {})},
        "lmms_eval.api.task": {"ConfigurableTask": task},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": SimpleNamespace},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "mm1.eval.lmms_plugin", raising=False)
    plugin = importlib.import_module("mm1.eval.lmms_plugin")
    monkeypatch.delitem(sys.modules, "mm1.eval.lmms_plugin")
    model = plugin.MM1.__new__(plugin.MM1)
    nats = {"a dog": -2.0, "a cat": -0.5, "a very large cow": -3.0}
    likely = SimpleNamespace(
        loglikelihoods=lambda requests: [[nats[one.choices[0]]] for one in requests],
        tokenizer=SimpleNamespace(encode=str.split),
    )
    model.ours, model.form = likely, "chat"
    model.task_dict = {"made": {"test": [{}]}}
    requests = [SimpleNamespace(args=("Which?", f" {text}", lambda doc: [], 0, "made", "test")) for text in CHOICES]
    answers = model.loglikelihood(requests)
    handed_on = [as_the_runner_takes_it(one) for one in answers] if results else answers
    assert task().process_results(handed_on) == 1
