"""One precision whatever the layout: fp32 master weights, bf16 weights and activations, fp32 where it is needed."""

import json
import shutil
from pathlib import Path

import pytest
import small
import torch
from pair import Pair

from mm1 import checkpoint, dist
from mm1.config import run as config
from mm1.config.model import SparseConfig
from mm1.config.run import RunConfig
from mm1.train import parallel
from mm1.train.log import read_metrics
from mm1.train.run import train_run


def _train(rank: int, folder: Path) -> None:
    """Train the run in `folder`, and write which types each kind of module put out, and attention and loss took."""
    from mm1.model import decoder
    from mm1.objectives import next_token
    from mm1.train.run import train_run

    types: dict[str, set[str]] = {}

    def note(name: str, value) -> None:
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, tuple):
                note(f"{name} {type(tensor).__name__}", tuple(tensor))
            elif isinstance(tensor, torch.Tensor) and not tensor.is_meta:  # as those of the meter are
                types.setdefault(name, set()).add(str(tensor.dtype))

    def attention(q, k, *, v_BLKW, **named):
        note("attention", (q, k, v_BLKW))
        return attend(q, k, v_BLKW=v_BLKW, **named)

    def cross_entropy(*arguments, **named):
        entropy = loss(*arguments, **named)
        note("loss", (entropy.losses, entropy.total))
        return entropy

    attend, decoder.attention = decoder.attention, attention
    loss, next_token.cross_entropy = next_token.cross_entropy, cross_entropy
    torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: note(type(module).__name__.removeprefix("FSDP"), out)
    )
    train_run(config.load(folder / "run.json"), folder / "run")
    (folder / f"types-{rank}.json").write_text(json.dumps({name: sorted(types[name]) for name in sorted(types)}))


def trained(run: RunConfig, folder: Path, *, ranks: int) -> tuple[list[dict], list[dict[str, list[str]]]]:
    """The metrics of the run on so many ranks, and the types that each rank saw."""
    folder.mkdir()
    config.save(run, folder / "run.json")
    pair = Pair(_train, folder, ranks=ranks)
    assert pair.end() == [0] * ranks, pair.messages()
    types = [json.loads((folder / f"types-{rank}.json").read_text()) for rank in range(ranks)]
    return list(read_metrics(folder / "run")), types


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_types_and_losses_are_the_same_on_one_rank_and_on_two(stores, tmp_path, sparse):
    run = small.run(stores)
    run.precision, run.steps, run.micro_batch_size = "bf16", 4, 1
    run.model.decoder = run.model.decoder.model_copy(update={"qk_norm": True})
    run.model.decoder.sparse = SparseConfig(experts=4, every=2, load_balance_weight=0.01) if sparse else SparseConfig()
    alone, [types] = trained(run, tmp_path / "one", ranks=1)
    shared, both = trained(run, tmp_path / "two", ranks=2)
    assert both == [types, types]
    fp32 = ["loss", "SparseFeedForward LayerRouting", "DecoderBlock LayerRouting"]
    expected = {name: ["torch.bfloat16"] for name in types} | {
        name: ["torch.float32"] for name in fp32[: 1 + 2 * sparse]
    }
    assert types == expected
    assert {"VisionBlock", "Average", "Embedding", "RMSNorm", "DecoderBlock", "attention"} <= types.keys()
    losses, theirs = ([record["loss"] for record in records] for records in (alone, shared))
    assert losses[:2] == pytest.approx(theirs[:2], rel=1e-6)
    # later: sums over ranks in another order round a weight to another bf16 number here and there
    assert losses == pytest.approx(theirs, rel=1e-4)
    norms, theirs = ([record["gradient_norm"] for record in records] for records in (alone, shared))
    assert norms[:1] == pytest.approx(theirs[:1], rel=1e-4)
    assert norms == pytest.approx(theirs, rel=1e-3)


def test_every_kind_of_run_trains_and_resumes_on_a_mesh_of_one_rank(stores, tmp_path):
    changes = {
        "adamw": [f"data.validation.captions={stores['captions']}"],
        "adafactor": ["optim.kind=adafactor"],
        "muon": ["optim.kind=muon", "parallel.activation_checkpointing=selective"],
        "frozen": ['frozen=["vision", "decoder.embedding"]', "parallel.activation_checkpointing=full"],
        "contrastive": ["objective=contrastive", "data.sources.text.share=0"],
        "sigmoid": ["objective=contrastive_sigmoid", "data.sources.text.share=0"],
        "pixels": ["objective=autoregressive_pixels", "pixels.head_width=16", "optim.learning_rate=0.001"],
    }
    for name, changed in changes.items():
        run = config.override(small.run(stores), [*changed, "precision=bf16", "steps=2", "checkpoint_every=1"])
        train_run(run, tmp_path / name)
        whole = checkpoint.Weights(tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints/step-2")
        train_run(run, tmp_path / name)
        again = checkpoint.Weights(tmp_path / name)
        assert {value.dtype for value in again.shapes.values()} == {torch.float32}
        for weight in whole.shapes:
            assert torch.equal(whole.read(weight), again.read(weight)), (name, weight)


def test_gradients_accumulate_where_a_forward_pass_leaves_blocks_out(stores, tmp_path):
    """Features are taken before the last block, whose weights no forward pass gathers."""
    losses = []
    for size in (1, 2):
        words = ["precision=bf16", "steps=2", "batch_size=2", f"micro_batch_size={size}"]
        run = config.override(small.run(stores), [*words, "model.vision.feature_layer=-2"])
        train_run(run, tmp_path / str(size))
        losses.append([record["loss"] for record in read_metrics(tmp_path / str(size)) if "loss" in record])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_look_at_the_health_changes_no_weight_on_a_mesh(stores, tmp_path):
    """Its forward pass gathers the weights that the optimizer then changes; nothing may compute with them later."""
    for name, every in (("never", 0), ("every step", 1)):
        run = config.override(small.run(stores), ["precision=bf16", "steps=3", f"health_every={every}"])
        train_run(run, tmp_path / name)
    never, always = (checkpoint.Weights(tmp_path / name) for name in ("never", "every step"))
    assert [name for name in never.shapes if not torch.equal(never.read(name), always.read(name))] == []


def _clip(rank: int, results: Path) -> None:
    run = RunConfig(precision="bf16")
    run.model = small.config()
    with dist.connected(alone=True):
        model, dims = torch.nn.Linear(4, 3, device="meta"), parallel.parallel_dims(run)
        assert dims.dense is not None
        torch.distributed.fsdp.fully_shard(model, mesh=dims.dense["dp_shard"])
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        norms = [parallel.clip(model.parameters(), largest=largest) for largest in (9.0, 1.0, 9.0)]
    results.write_text(json.dumps(norms))


def test_gradients_are_clipped_on_a_mesh_of_one_rank(tmp_path):
    pair = Pair(_clip, tmp_path / "norms.json", ranks=1)
    assert pair.end() == [0], pair.messages()
    assert json.loads((tmp_path / "norms.json").read_text()) == pytest.approx([15**0.5, 15**0.5, 1.0], rel=1e-5)


def test_gradients_under_the_limit_are_not_touched():
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([3.0, 0.0, 4.0])
    version = weight.grad._version
    assert parallel.clip([weight], largest=5.1) == pytest.approx(5)
    assert weight.grad._version == version
    assert parallel.clip([weight], largest=1.0) == pytest.approx(5)
    assert torch.linalg.vector_norm(weight.grad) == pytest.approx(1)
