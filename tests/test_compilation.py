"""Compiled blocks stay whole: no graph breaks, whatever the backward pass recomputes."""

import json
from functools import partial
from pathlib import Path

import pytest
import small
import torch
import torch.nn.functional as F
from pair import Pair
from torch._dynamo.utils import counters

from mm1 import dist
from mm1.config.model import SparseConfig
from mm1.config.run import ParallelConfig, RunConfig
from mm1.model.attention import dense_mask
from mm1.model.connector import KINDS
from mm1.model.depthwise import depthwise
from mm1.model.mllm import MLLM
from mm1.train import parallel
from mm1.train.activation_checkpointing import checkpoint_activations
from mm1.train.compilation import FIRST_ROWS, blocks_of, compile_blocks

POSITIONS = 24


def built(*, sparse: bool, mode: str) -> MLLM:
    """A small model whose blocks are checkpointed; experts in bf16, all that the compiler takes."""
    config = small.config()
    config.decoder.sparse = SparseConfig(experts=4, every=2) if sparse else SparseConfig()
    model = MLLM(config)
    model.initialise(0)
    checkpoint_activations(model, mode)  # type: ignore[arg-type]
    return model.bfloat16() if sparse else model


def gradients(model: MLLM) -> list[torch.Tensor]:
    """A loss over every output of both towers, and the gradients of all that it depends on."""
    images_NCYX = torch.randint(0, 256, (2, 3, 24, 24), generator=torch.Generator().manual_seed(0)).byte()
    tokens_BT = torch.randint(4, 64, (2, POSITIONS), generator=torch.Generator().manual_seed(1))
    document_BT = torch.arange(POSITIONS).expand(2, -1) // 10 + 1
    features_NPE = model.vision(images_NCYX)
    hidden_BTD, layers = model.decoder.routed(
        model.decoder.embed(tokens_BT),
        torch.arange(POSITIONS).expand(2, -1) % 10,
        masks={None: dense_mask(document_BT)},
        real_BT=document_BT > 0,
    )
    loss = features_NPE.float().square().sum() + hidden_BTD.float().square().sum()
    loss = loss + sum((layer.balance + layer.z for layer in layers), torch.zeros(()))
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_every_block_is_one_graph_under_activation_checkpointing(mode, sparse):
    plain, compiled = gradients(built(sparse=sparse, mode="none")), built(sparse=sparse, mode=mode)
    torch.compiler.reset()
    counters.clear()
    for block in blocks_of(compiled):
        block.compile(backend="aot_eager")
    for ours, theirs in zip(gradients(compiled), plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert not counters["graph_break"]
    kinds = 1 + (2 if sparse else 1)  # blocks that differ: the encoder's; the dense and the sparse ones of the decoder
    assert counters["stats"]["unique_graphs"] >= kinds
    assert counters["frames"]["ok"] == counters["frames"]["total"] == counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_convolution_that_compiled_code_calls_as_a_whole_is_torchs(requires_grad):
    chance = torch.Generator().manual_seed(0)
    x_NYXC = torch.randn(3, 5, 4, 6, generator=chance).requires_grad_(requires_grad)
    weight_C1HW = torch.randn(6, 1, 3, 3, generator=chance).requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.mm1.depthwise.default, (x_NYXC, weight_C1HW))
    gradient = torch.randn(x_NYXC.shape, generator=chance)
    expected = F.conv2d(x_NYXC.permute(0, 3, 1, 2), weight_C1HW, padding=1, groups=6).permute(0, 2, 3, 1)
    for result in (depthwise(x_NYXC, weight_C1HW), torch.ops.mm1.depthwise(x_NYXC, weight_C1HW)):
        torch.testing.assert_close(result, expected)
        if requires_grad:
            ours = torch.autograd.grad(result, (x_NYXC, weight_C1HW), gradient, retain_graph=True)
            theirs = torch.autograd.grad(expected, (x_NYXC, weight_C1HW), gradient, retain_graph=True)
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("kind", "class_token"), [*((kind, False) for kind in KINDS), ("c_abstractor", True)])
def test_encoder_and_connector_compile_once_for_any_number_of_tiles(kind, class_token, monkeypatch):
    """Once with gradients and once without; two is the least that a loader gives.

    Each is compiled with the same number first, whatever number is first. FSDP's hooks hand on new tensors.
    """
    graphs: list = []
    firsts: set[int] = set()

    def backend(graph, inputs):
        graphs.append(graph)
        firsts.update(each.node.hint for each in inputs if isinstance(each, torch.SymInt))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    config = small.config(kind=kind)
    config.vision.class_token = class_token
    model = MLLM(config)
    model.initialise(0)
    torch.compiler.reset()
    compile_blocks(model, "always", device=torch.device("cpu"))
    for module in (*model.vision.blocks, model.connector):
        module.register_forward_pre_hook(lambda module, inputs: (inputs[0].view_as(inputs[0]), *inputs[1:]))
    for tiles in (5, 2, 3, 7, 11, 13, 20, 29, 31):
        images_NCYX = torch.zeros(tiles, 3, 24, 24, dtype=torch.uint8)
        model.encode_images(images_NCYX).sum().backward()
        with torch.no_grad():
            model.encode_images(images_NCYX)
        assert len(graphs) <= 6
    assert firsts == {FIRST_ROWS}


def _shard_and_count(rank: int, results: Path, layouts: dict[str, dict]) -> None:
    """Losses of two steps, compiled and not, and the graph breaks, of each layout."""
    compiler = torch.compile
    torch.compile = lambda *positional, **named: compiler(*positional, **named | {"backend": "aot_eager"})  # type: ignore[assignment]
    outcomes = {}
    with dist.connected():
        for name, layout in layouts.items():
            run = RunConfig(model=small.config(), precision="bf16", batch_size=2, micro_batch_size=1)
            run.parallel = ParallelConfig(**layout)
            run.model.decoder.sparse = SparseConfig(experts=4, every=2) if "sparse" in name else SparseConfig()
            outcomes[name] = [_steps(run, rank), _steps(run.model_copy(update={"compile": "always"}), rank)]
    results.with_suffix(f".{rank}").write_text(json.dumps(outcomes))


def _steps(run: RunConfig, rank: int) -> tuple[list[float], dict[str, int]]:
    torch.compiler.reset()
    counters.clear()
    dims = parallel.parallel_dims(run)
    with torch.device("meta"):
        model = MLLM(run.model)
    parallel.parallelize(model, run, dims=dims, precision=torch.bfloat16)
    parallel.init_weights(model, 0)
    batch = small.pack([[small.doc("image", 12, seed=rank)]])
    losses = []
    for _ in range(2):
        hidden_BTD, _ = model(batch)
        loss = hidden_BTD.float().square().sum()
        loss.backward()
        losses.append(float(loss))
        norm = parallel.clip(model.parameters(), largest=1e9)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad / norm
                    parameter.grad = None
    return losses, dict(counters["graph_break"])


SHARDED = {
    f"{kind} {mode}": {"activation_checkpointing": mode} | layout
    for mode in ("none", "selective", "full")
    for kind, layout in {"dense": {}, "sparse": {}, "sparse, distributed": {"ep": 2}}.items()
}


@pytest.mark.long
def test_blocks_are_whole_graphs_on_two_ranks_that_share_weights(tmp_path):
    pair = Pair(_shard_and_count, tmp_path / "outcomes", SHARDED)
    assert pair.end() == [0, 0], pair.messages()
    for rank in range(2):
        for name, (plain, compiled) in json.loads((tmp_path / f"outcomes.{rank}").read_text()).items():
            assert compiled[1] == {}, name
            assert compiled[0] == pytest.approx(plain[0], rel=1e-6), name
