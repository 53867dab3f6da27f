"""What can be seen of a run while it runs: health, MFU, memory, trackers, traces."""

import gzip
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import small
import torch

from mm1 import checkpoint
from mm1.config.base import ConfigError
from mm1.config.model import ConnectorConfig
from mm1.config.run import RunConfig
from mm1.data.loader import Sequences
from mm1.data.tiles import tile_spec
from mm1.document import Batch
from mm1.model.connector import KINDS
from mm1.model.mllm import MLLM
from mm1.train.health import Health
from mm1.train.log import read_metrics
from mm1.train.meter import Meter, costs, peak_memory
from mm1.train.run import train_run


@pytest.fixture
def run(stores) -> RunConfig:
    short = small.run(stores)
    short.steps = 4
    return short


@pytest.fixture
def batch(run) -> Batch:
    """Two sequences with images, and a black padding image. Gives the run its image token."""
    sequences = Sequences(run.data, tile=tile_spec(run.model), seed=0, batch_size=4)
    run.model.image_token_id = sequences.tokenizer.image
    batch = next(batch for batch in (sequences.batch([n, n + 1]) for n in range(0, 8, 2)) if batch.images)
    batch.images_NCYX = torch.cat([batch.images_NCYX, torch.zeros(1, 3, 16, 16, dtype=torch.uint8)])
    return batch


def test_watching_changes_no_weight_and_the_parts_norms_make_the_whole(run, tmp_path):
    run.health_every, plain = 2, run.model_copy(update={"health_every": 0})
    train_run(run, tmp_path / "watched")
    train_run(plain, tmp_path / "plain")
    watched, plain = (checkpoint.load_for_use(tmp_path / name).model.state_dict() for name in ("watched", "plain"))
    assert all(torch.equal(watched[name], value) for name, value in plain.items())
    records = read_metrics(tmp_path / "watched")
    assert [record["step"] for record in records if "health/connector/rms" in record] == [2, 4]
    assert not any("health/connector/rms" in record for record in read_metrics(tmp_path / "plain"))
    parts = [records[1][f"gradient_norm/{part}"] for part in ("vision", "connector", "decoder")]
    assert math.hypot(*parts) == pytest.approx(records[1]["gradient_norm"], rel=1e-5)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_health_is_that_of_the_residual_stream(run, batch, is_compiled):
    model = MLLM(run.model)
    model.initialise(0)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def forward(batch: Batch) -> None:
        with torch.no_grad():
            model.hidden(batch)

    if is_compiled:
        for block in (*model.vision.blocks, *model.decoder.blocks):
            block.compile(backend=backend)
        forward(batch)
    before = len(compiled)
    with torch.no_grad():  # a huge channel and a dead one
        model.decoder.blocks[1].feed_forward.down.weight[3] = 1e4
        model.connector.out.weight[5], model.connector.out.bias[5] = 0, 0
    look = Health(model, forward, every=3).look
    assert look(1, [batch]) == {}
    metrics = look(2, [batch])
    assert len(compiled) == before
    assert (before > 0) == is_compiled
    streams = []
    hook = model.decoder.norm.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))
    forward(batch)
    hook.remove()
    (x_BTD,) = streams
    assert metrics["health/decoder.blocks.1/rms"] == pytest.approx(float(x_BTD.square().mean().sqrt()), rel=1e-5)
    assert metrics["health/connector/dead"] == pytest.approx(1 / 16)
    assert 0 == metrics["health/decoder.blocks.0/huge"] == metrics["health/decoder.blocks.0/dead"]
    assert metrics["health/decoder.blocks.1/dead"] > 0.5  # beside the huge one
    assert not any(module._forward_hooks for module in model.modules())


def test_what_compiles_itself_stays_compiled_while_health_looks():
    """Else FlexAttention would hold the scores of all pairs of positions."""
    model, ran = small.model(), []

    def backend_of(name):
        def run_and_count(graph):
            return lambda *inputs: ran.append(name) or graph.forward(*inputs)

        return lambda graph, inputs: run_and_count(graph)

    mlp = torch.compile(lambda x: torch.relu(x) * 2, backend=backend_of("inside"))
    block = model.decoder.blocks[0]
    block.feed_forward.forward = mlp  # stands for attention, which compiles itself on a GPU only
    for each in (*model.vision.blocks, *model.decoder.blocks):
        each.compile(backend=backend_of("block"))
    batch = small.pack(small.ROWS)

    def forward(batch: Batch) -> None:
        with torch.no_grad():
            model.hidden(batch)

    forward(batch)
    assert "block" in ran
    ran.clear()
    Health(model, forward, every=1).look(0, [batch])
    assert set(ran) == {"inside"}
    ran.clear()
    forward(batch)
    assert "block" in ran


def test_huge_values_are_counted():
    stream = torch.nn.Identity()
    model = torch.nn.ModuleDict({"part": stream})
    x_BTD = torch.ones(1, 10, 1000)
    x_BTD[0, 4, 7] = x_BTD[0, 9, 7] = 1e4
    look = Health(model, lambda _: stream(x_BTD), every=1).look
    assert look(0, [SimpleNamespace(images=0)])["health/part/huge"] == pytest.approx(2 / 10_000)


def test_mfu_counts_images_and_padding_separately(run, batch):
    meter = Meter(run, peak=1e9)
    metrics = meter.step([batch])
    vision, whole, padded = (metrics[name] for name in ("mfu/vision", "mfu", "hfu"))
    cost = costs(run)
    assert metrics["flops"] == pytest.approx(whole * metrics["step_seconds"] * 1e9)
    possible = metrics["step_seconds"] * 1e9
    assert vision * possible == pytest.approx(3 * batch.images * (cost.encoder + cost.connector))
    assert (whole - vision) * possible == pytest.approx(cost.text([batch]))
    empty = int((batch.document_BT == 0).sum())
    assert empty
    added = 3 * (empty * cost.token + cost.encoder + cost.connector)
    assert (padded - whole) * possible == pytest.approx(added, rel=1e-6)


@pytest.mark.parametrize(
    ("frozen", "passes"),
    [
        ([], (3, 3, 3)),
        (["vision"], (1, 3, 3)),
        (["vision", "connector"], (1, 1, 3)),
        (["vision", "decoder"], (1, 3, 2)),
        (["connector", "decoder"], (3, 2, 2)),
        (["decoder.blocks.0"], (3, 3, 3)),
    ],
)
def test_frozen_parts_cost_the_passes_they_need(run, frozen, passes):
    run.frozen = frozen
    assert tuple(costs(run).passes.values()) == passes


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_connector_has_a_cost(run, kind):
    run.model.connector = ConnectorConfig(kind=kind, tokens=4, width=16, heads=2)
    assert costs(run).connector > 0


def test_peak_memory_is_that_of_the_process():
    before = peak_memory()
    held = torch.ones(64 << 20)
    assert peak_memory() >= before
    assert peak_memory() > held.nbytes


class FakeWandB:
    """Records what mm1 calls of the package."""

    Error = ConnectionError

    def __init__(self):
        self.started, self.logged, self.axes, self.finished = [], [], [], 0

    def init(self, **fields):
        self.started.append(fields)
        return self

    def define_metric(self, name, **fields):
        self.axes.append((name, fields))

    def log(self, record):
        self.logged.append(record)

    def finish(self):
        self.finished += 1


def test_a_resumed_run_goes_on_in_the_same_wandb_run(run, tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run.wandb, run.steps = "mine", 3
    train_run(run, tmp_path)
    (tmp_path / "checkpoints/step-3").rename(tmp_path / "gone")
    run.wandb = "other"  # may change, as no sequence and no weight depends on it
    train_run(run, tmp_path)
    first, second = fake.started
    assert (first["project"], second["project"]) == ("mine", "other")
    assert first["id"] == second["id"]
    assert first["id"]
    assert first["resume"] == "allow"
    assert first["config"]["steps"] == 3
    assert [record["step"] for record in fake.logged] == [1, 2, 3, 3]
    assert fake.logged[:2] == read_metrics(tmp_path)[:2]
    assert fake.axes[0] == ("*", {"step_metric": "step"})
    assert fake.finished == 2


def test_wandb_without_its_package_is_a_clear_mistake(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run.wandb = "mine"
    with pytest.raises(ConfigError, match=r"pip install 'mm1\[wandb\]'"):
        train_run(run, tmp_path)


def test_wandb_that_takes_no_run_is_a_clear_mistake(run, tmp_path, monkeypatch):
    def refuse(**fields):
        raise ConnectionError("no key")

    fake = FakeWandB()
    fake.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run.wandb = "mine"
    with pytest.raises(ConfigError, match="wandb=mine: no key; log in, set WANDB_MODE=offline"):
        train_run(run, tmp_path)


@pytest.mark.long
def test_the_real_wandb_takes_a_run_and_its_resumption_offline(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run.wandb, run.steps = "mine", 3
    train_run(run, tmp_path)
    (tmp_path / "checkpoints/step-3").rename(tmp_path / "gone")
    train_run(run, tmp_path)
    run_id = (tmp_path / "wandb_id").read_text()
    folders = [path for path in (tmp_path / "wandb").glob("offline-run-*") if path.is_dir()]
    assert folders
    assert all(path.name.endswith(run_id) for path in folders)
    assert all(list(path.glob("*.wandb")) for path in folders)


def trace(path: Path) -> list[dict]:
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def test_a_profile_holds_the_steps_asked_for(run, tmp_path):
    run.profile = (2, 3)
    train_run(run, tmp_path)
    events = trace(tmp_path / "profile/steps-2-3.json.gz")
    assert sum(event.get("name", "").startswith("Optimizer.step") for event in events) == 2


def test_a_profile_may_begin_with_the_first_step(run, tmp_path):
    run.profile, run.steps = (1, 1), 2
    train_run(run, tmp_path)
    events = trace(tmp_path / "profile/steps-1-1.json.gz")
    assert sum(event.get("name", "").startswith("Optimizer.step") for event in events) == 1
