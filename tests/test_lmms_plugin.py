"""The plugin under lmms-eval: the likeliest choice is taken, whichever way the version that is installed compares."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

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


@pytest.mark.parametrize("task", [Smallest, Largest])
def test_the_likeliest_choice_is_taken(task: type, monkeypatch):
    modules = {
        "lmms_eval": {},
        "lmms_eval.api": {},
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
    requests = [SimpleNamespace(args=("Which?", text, lambda doc: [], 0, "made", "test")) for text in CHOICES]
    assert task().process_results(model.loglikelihood(requests)) == 1
