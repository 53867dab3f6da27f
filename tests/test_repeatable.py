"""A training step holds no operation that torch refuses on a GPU when kernels must be deterministic."""

import os

import pytest
import small
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mm1 import dist
from mm1.config.model import SparseConfig
from mm1.config.run import OptimConfig
from mm1.document import IGNORED
from mm1.model.connector import KINDS
from mm1.model.mllm import MLLM
from mm1.objectives.contrastive import Contrastive, ContrastiveModel, ContrastiveSigmoid
from mm1.objectives.loss import Objective
from mm1.objectives.next_token import NextToken
from mm1.train import optim, parallel

REFUSED = (
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "max_unpool2d",
    "reflection_pad",
    "grid_sampler_2d_backward",
    "nll_loss2d",
    "_ctc_loss_backward",
    "put_",
    "histc",
    "bincount",
    "median",
    "kthvalue",
    "scatter_reduce",
    "scatter_add",
)
"""Operations without a deterministic CUDA kernel (docs of `torch.use_deterministic_algorithms`, 2.13). Scatter-add has
one, which sorts."""


class Recorder(TorchDispatchMode):
    """The names of all operations, cumulative sums of fractions apart."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        fractions = name == "cumsum" and args[0].is_floating_point()
        self.names.add("cumsum of fractions" if fractions else name)
        return func(*args, **(kwargs or {}))


def operations(objective: Objective) -> set[str]:
    """The operations of a step on a packed batch, its validation and its optimizer."""
    batch = small.pack(small.ROWS, padding_images=1)
    batch.targets_BT = torch.where(batch.document_BT > 0, batch.tokens_BT, IGNORED)
    optimizer = optim.build(objective.model, OptimConfig(), peak=1e-3)
    with Recorder() as recorder:
        objective.loss(batch).scaled(weight=10, sequences=3).backward()
        parallel.clip(objective.model.parameters(), largest=1e-3)
        optimizer.step()
        with torch.no_grad():
            objective.loss(batch)
    return recorder.names


def objectives() -> dict[str, Objective]:
    """Every objective, dense and sparse, with every connector."""
    several: dict[str, Objective] = {kind: NextToken(small.model(kind=kind), ["a"]) for kind in KINDS}
    for capacity in (None, 1.5):
        config = small.config()
        config.decoder.sparse = SparseConfig(experts=4, every=2, capacity=capacity, load_balance_weight=0.01)
        several[f"sparse, capacity {capacity}"] = NextToken(MLLM(config), ["a"])
    several["contrastive"] = Contrastive(ContrastiveModel(small.config()), ["a"])
    several["sigmoid"] = ContrastiveSigmoid(ContrastiveModel(small.config(), "sigmoid"), ["a"])
    for objective in several.values():
        objective.model.initialise(0)  # type: ignore[operator]
    return several


def test_no_operation_of_a_step_is_refused_when_kernels_must_be_deterministic():
    for name, objective in objectives().items():
        done = operations(objective)
        assert "native_layer_norm_backward" in done, name
        refused = [op for op in done if op == "cumsum of fractions" or op.startswith(REFUSED)]
        assert not refused, f"{name}: {refused}"


@pytest.mark.parametrize(("device", "warns"), [("cpu", True), ("cuda", False)])
def test_a_gpu_refuses_what_cannot_be_repeated(monkeypatch, device, warns):
    monkeypatch.setattr(dist, "device", lambda: torch.device(device))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    with dist.repeatable():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled() == before
