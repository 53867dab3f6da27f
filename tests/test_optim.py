"""Optimizers equal their formulas, groups and schedules follow the config, and stops change nothing."""

import math
from pathlib import Path

import pytest
import small
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from mm1 import checkpoint
from mm1.config.base import ConfigError
from mm1.config.run import OptimConfig, RunConfig
from mm1.model.mllm import MLLM
from mm1.train import optim, schedule
from mm1.train.log import read_metrics
from mm1.train.parameters import freeze
from mm1.train.run import train_run


@pytest.fixture
def run(stores) -> RunConfig:
    fast = small.run(stores)
    fast.optim.learning_rate = 1e-2
    return fast


class Small(nn.Module):
    """An embedding, a hidden matrix, a vector."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(7, 5), nn.Linear(5, 3)


def built(kind: str, change=lambda model: model) -> tuple[Small, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = change(Small())
    return model, optim.build(model, OptimConfig(kind=kind, weight_decay=0.1), peak=1e-2)


def gradients(step: int) -> dict[str, torch.Tensor]:
    """Small gradients, like those of a mean over many tokens."""
    generator = torch.Generator().manual_seed(step)
    return {name: 1e-3 * torch.randn(p.shape, generator=generator) for name, p in Small().named_parameters()}


def after(model: Small, optimizer: torch.optim.Optimizer, *, steps: int) -> dict[str, torch.Tensor]:
    for step in range(steps):
        for name, parameter in model.named_parameters():
            parameter.grad = gradients(step)[name]
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def test_adafactor_is_its_papers_algorithm_with_an_absolute_learning_rate():
    """arXiv 1804.04235, algorithms 4 and 5, with decay decoupled."""
    model, optimizer = built("adafactor")
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    rows, columns, whole = {}, {}, {}
    for step in range(4):
        keep = 1 - (step + 1) ** -0.8
        for name, x in expected.items():
            g = gradients(step)[name].double()
            if g.ndim == 2:
                rows[name] = keep * rows.get(name, 0) + (1 - keep) * g.square().sum(1)
                columns[name] = keep * columns.get(name, 0) + (1 - keep) * g.square().sum(0)
                second = torch.outer(rows[name], columns[name]) / rows[name].sum()
                x *= 1 - 1e-2 * 0.1
            else:
                second = whole[name] = keep * whole.get(name, 0) + (1 - keep) * g.square()
            update = g / second.sqrt()
            x -= 1e-2 * update / max(1.0, update.square().mean().sqrt())
    moved = after(model, optimizer, steps=4)
    for name, x in expected.items():
        torch.testing.assert_close(moved[name].double(), x, atol=1e-6, rtol=1e-5)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Five steps of the quintic iteration a X + b (X X') X + c (X X')^2 X on the singular values."""
    u, s, v = torch.linalg.svd(x / x.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def test_muon_makes_hidden_matrices_orthogonal_and_leaves_the_rest_to_adamw():
    model, optimizer = built("muon")
    x = model.hidden.weight.detach().clone().double()
    momentum = torch.zeros_like(x)
    for step in range(4):
        g = gradients(step)["hidden.weight"].double()
        momentum = 0.95 * momentum + 0.05 * g
        x = x * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * math.sqrt(5) * orthogonal(0.95 * momentum + 0.05 * g)
    moved = after(model, optimizer, steps=4)
    torch.testing.assert_close(moved["hidden.weight"].double(), x, atol=1e-5, rtol=0)
    plain = after(*built("adamw"), steps=4)
    assert torch.equal(moved["embedding.weight"], plain["embedding.weight"])
    assert torch.equal(moved["hidden.bias"], plain["hidden.bias"])
    assert (moved["hidden.weight"] - plain["hidden.weight"]).abs().max() > 1e-2


def test_muon_takes_no_embedding_no_output_no_router_and_no_stacked_experts():
    config = small.config(kind="c_abstractor")
    config.decoder.sparse.experts, config.decoder.tie_embeddings = 4, False
    model = MLLM(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim.build(model, OptimConfig(kind="muon"), peak=1e-3).param_groups
    orthogonal = {names[id(p)] for group in groups if group["orthogonal"] for p in group["params"]}
    assert {
        "vision.blocks.0.attention.query.weight",
        "connector.up.weight",
        "decoder.blocks.1.attention.out.weight",
    } < orthogonal
    words = ("embedding", "position", "output", "patch", "norm", "router", "experts", "depthwise", "bias")
    assert not [name for name in orthogonal if any(word in name for word in words)]
    assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize("kind", ["adafactor", "muon"])
def test_a_stopped_run_continues_bit_for_bit_with_every_optimizer(run, tmp_path, monkeypatch, kind):
    run.optim.kind, run.optim.lr_multipliers, run.steps = kind, {"vision": 0.5}, 6
    train_run(run, tmp_path / "whole")
    save = checkpoint.Saver.save

    def stop(folder, step, *arguments, **keywords):
        if step == 4:
            raise KeyboardInterrupt
        return save(folder, step, *arguments, **keywords)

    monkeypatch.setattr(checkpoint.Saver, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_run(run, tmp_path / "stopped")
    monkeypatch.undo()
    train_run(run, tmp_path / "stopped")
    assert read_metrics(tmp_path / "stopped")[-1]["loss"] < read_metrics(tmp_path / "stopped")[0]["loss"]
    whole, stopped = (checkpoint.load_for_use(tmp_path / name).model.state_dict() for name in ("whole", "stopped"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name


def test_the_last_multiplier_that_matches_a_parameter_counts():
    model = MLLM(small.config())
    config = OptimConfig(lr_multipliers={"vision": 0.1, "*.bias": 3.0, "decoder.blocks.1": 0.5})
    optimizer = optim.build(model, config, peak=1.0)
    schedule.set_rate(optimizer, 0.01)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert by_name["vision.patch.weight"] == pytest.approx(0.001)
    assert by_name["vision.patch.bias"] == pytest.approx(0.03)
    assert by_name["decoder.blocks.0.attention.out.weight"] == pytest.approx(0.01)
    assert by_name["decoder.blocks.1.attention.out.weight"] == pytest.approx(0.005)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_frozen_parameters_do_not_move_or_decay(run, tmp_path, kind):
    run.optim.kind, run.optim.weight_decay, run.steps = kind, 5.0, 2
    run.frozen = ["vision", "decoder.blocks.0", "*norm*"]
    train_run(run, tmp_path)
    before = MLLM(run.model)
    before.initialise(run.seed)
    after = checkpoint.load_for_use(tmp_path).model.state_dict()
    stayed = {name for name, value in before.state_dict().items() if torch.equal(value, after[name])}
    assert stayed == {name for name in after if name.startswith(("vision.", "decoder.blocks.0.")) or "norm" in name}


@pytest.mark.parametrize(
    ("field", "pattern", "hint"),
    [
        ("frozen", "visoin", "did you mean 'vision'"),
        ("frozen", "decoder.blocks.7", "did you mean 'decoder.blocks.1'"),
        ("optim.lr_multipliers", "decodr.*", "did you mean 'decoder'"),
        ("frozen", "xyz", "known: connector, decoder, vision"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_that_names_the_nearest(run, tmp_path, field, pattern, hint):
    if field == "frozen":
        run.frozen = [pattern]
    else:
        run.optim.lr_multipliers = {pattern: 0.1}
    with pytest.raises(ConfigError, match=f"{field}: '{pattern.replace('*', '.')}' is no parameter .*{hint}"):
        train_run(run, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_that_freezes_everything_is_refused():
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(MLLM(small.config()), ["*"])


def test_schedules_have_their_shapes():
    def rates(kind: str) -> list[float]:
        config = OptimConfig(schedule=kind, warmup_steps=10, decay_fraction=0.2, final_fraction=0.1)
        return [schedule.rate(config, step, steps=100, peak=1.0) for step in range(101)]

    assert rates("cosine")[:10] == rates("constant")[:10] == rates("wsd")[:10]
    assert set(rates("constant")[9:]) == {1.0}
    wsd = rates("wsd")
    assert set(wsd[9:81]) == {1.0}
    assert wsd[90] == pytest.approx(0.55)
    assert wsd[100] == pytest.approx(0.1)


def sharded(rank: int, store: str) -> None:
    """On two ranks: every optimizer moves sharded parameters where it moves whole ones; write which were compared."""
    compared = []
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for kind in ("adamw", "adafactor", "muon"):
        whole, ours = built(kind)
        sharded_model, theirs = built(kind, change=fully_shard)
        for step in range(4):
            by_name = gradients(step)
            for (name, left), right in zip(whole.named_parameters(), sharded_model.parameters(), strict=True):
                left.grad = by_name[name]
                right.grad = distribute_tensor(by_name[name], right.device_mesh, right.placements)
            ours.step()
            theirs.step()
        for (name, left), right in zip(whole.named_parameters(), sharded_model.parameters(), strict=True):
            torch.testing.assert_close(right.full_tensor(), left, atol=1e-6, rtol=0, msg=f"{kind}, {name}")
        compared.append(kind)
    torch.distributed.destroy_process_group()
    Path(f"{store}-{rank}").write_text(" ".join(compared))


@pytest.mark.long
def test_every_optimizer_computes_on_sharded_parameters(tmp_path):
    torch.multiprocessing.spawn(sharded, (str(tmp_path / "store"),), nprocs=2)
    assert [(tmp_path / f"store-{rank}").read_text() for rank in range(2)] == ["adamw adafactor muon"] * 2
