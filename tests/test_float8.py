"""Blocks whose products are in float8, emulated on a CPU: what is converted, what stays, what they go together with."""

from pathlib import Path

import pytest
import small
import torch
import torch.distributed as torch_dist
from small import doc
from torch.distributed.device_mesh import init_device_mesh

from mm1.config.base import ConfigError
from mm1.config.model import SparseConfig
from mm1.config.run import ParallelConfig, RunConfig
from mm1.model.mllm import MLLM
from mm1.objectives.next_token import NextToken
from mm1.train import parallel
from mm1.train.float8 import check_float8, use_float8
from mm1.train.parallel import ParallelDims
from mm1.train.run import train_run

CUDA = torch.device("cuda")


def built(*, float8: bool, sparse: bool = False) -> MLLM:
    if float8:
        pytest.importorskip("torchao")
    config = small.config()
    config.decoder.sparse = SparseConfig(experts=4, every=2) if sparse else SparseConfig()
    model = MLLM(config)
    if float8:
        use_float8(model, emulate=True)
    model.initialise(0)
    return model


def batch():
    packed = small.pack([[doc("image", 20, seed=1)], [doc(12, seed=2), doc("image", 8, seed=3)]])
    packed.targets_BT = torch.where(packed.document_BT > 0, packed.tokens_BT, packed.targets_BT)
    return packed


def loss_of(model: MLLM) -> torch.Tensor:
    loss = NextToken(model, ["one"]).loss(batch())
    return loss.total / loss.weight


@pytest.mark.parametrize("sparse", [False, True])
def test_names_and_initial_weights_are_those_without_float8(sparse):
    plain, ours = (built(float8=float8, sparse=sparse).state_dict() for float8 in (False, True))
    assert list(plain) == list(ours)
    assert all(torch.equal(ours[name], weight) for name, weight in plain.items())


def test_only_linear_layers_of_blocks_with_sides_of_multiples_of_16_are_converted():
    converted = {
        name for name, module in built(float8=True, sparse=True).named_modules() if "Float8" in type(module).__name__
    }
    attention = {f"attention.{name}" for name in ("query", "key", "value", "out")}
    dense = {f"feed_forward.{name}" for name in ("gate", "up", "down")}
    # the encoder is 24 wide; the router of the second block has a side of 4
    assert converted == {f"decoder.blocks.0.{name}" for name in attention | dense} | {
        f"decoder.blocks.1.{name}" for name in attention
    }


def test_a_router_of_16_experts_is_not_converted():
    config = small.config()
    config.decoder.sparse = SparseConfig(experts=16)
    model = MLLM(config)
    use_float8(model, emulate=True)
    assert type(model.decoder.blocks[0].feed_forward.router) is torch.nn.Linear


def test_loss_and_gradients_are_near_those_of_fp32():
    """Rounding is off by 2^-4 at most, that of gradients by 2^-3."""
    plain, ours = built(float8=False), built(float8=True)
    losses = [loss_of(model) for model in (plain, ours)]
    values = [float(loss.detach()) for loss in losses]
    assert values[0] != values[1]
    assert values[1] == pytest.approx(values[0], rel=0.02)
    gradients = []
    for loss, model in zip(losses, (plain, ours), strict=True):
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert 0 < float((gradients[1] - gradients[0]).norm()) < 0.3 * float(gradients[0].norm())


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_it_goes_together_with_compiled_and_checkpointed_blocks_on_a_mesh(mode, monkeypatch):
    """One rank that shards its weights: the loss is that of the blocks as they are."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *positional, **named: compiler(*positional, backend="aot_eager"))
    run = RunConfig(model=small.config(), compile="always")
    run.parallel = ParallelConfig(activation_checkpointing=mode)
    plain = built(float8=True)
    expected = loss_of(plain)
    expected.backward()
    torch_dist.init_process_group("gloo", store=torch_dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=("dp_replicate", "dp_shard", "tp"))
        torch.compiler.reset()
        with torch.device("meta"):
            model = MLLM(run.model)
        use_float8(model, emulate=True)
        parallel.parallelize(model, run, dims=ParallelDims(1, 1, 1, 1, mesh, None), precision=torch.float32)
        parallel.init_weights(model, 0)
        loss = loss_of(model)
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
        loss.backward()
        weight = "decoder.blocks.0.feed_forward.up.weight"
        ours, theirs = (each.get_parameter(weight).grad for each in (model, plain))
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-3, atol=1e-5)
    finally:
        torch_dist.destroy_process_group()


@pytest.mark.parametrize(
    ("installed", "capability", "tp", "message"),
    [
        (None, (9, 0), 1, r"needs torchao; pip install 'mm1\[fp8\]'"),
        (True, (8, 0), 1, "compute capability 8.9 or higher .* this is compute capability 8.0"),
        (True, (9, 0), 2, "parallel.tp is 2"),
        (True, (9, 0), 1, None),
    ],
)
def test_what_is_missing_is_named(installed, capability, tp, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    run = RunConfig(fp8=True)
    run.parallel.tp = tp
    if message is None:
        check_float8(run, CUDA)
        return
    with pytest.raises(ConfigError, match=message):
        check_float8(run, CUDA)


def test_a_run_on_a_cpu_refuses_it_before_it_claims_a_folder(stores, tmp_path: Path):
    pytest.importorskip("torchao")
    run = small.run(stores)
    run.fp8 = True
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="this is a CPU; set fp8=false"):
        train_run(run, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
