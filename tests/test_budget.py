"""The budget of a run: its memory against what torch allocates, its shards against FSDP2's, its page."""

import gc
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
from allocations import most_alive
from small import config as small_model
from small import doc, pack
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from typer.testing import CliRunner

from mm1.__main__ import app
from mm1.budget.hardware import GPUS
from mm1.budget.parallel_layout import ParallelLayout
from mm1.budget.planner import Planner, fastest_budget, full_sequences
from mm1.budget.report import choose_budget, explain_misfit, make_planner, requested_layout
from mm1.budget.simulate import simulate
from mm1.config.model import SparseConfig
from mm1.config.run import DataConfig, RunConfig, override
from mm1.dist import DataRanks
from mm1.document import Batch
from mm1.model import attention_cpu
from mm1.model.mllm import MLLM
from mm1.objectives.index import objective_of
from mm1.recipes.index import recipe
from mm1.train import optim, parallel
from mm1.train.meter import costs

PAGE = Path(__file__).parents[1] / "docs/budget.md"
BLOCK = re.compile(r"^```console\n\$ mm1 (budget [^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(*words: str, sparse: bool = False) -> RunConfig:
    """A model wide enough for activations to be most of its memory, deep enough for blocks to repeat."""
    config = RunConfig(
        recipe="small",
        model=small_model(),
        data=DataConfig(sequence_length=256, max_images=4),
        micro_batch_size=2,
    )
    config.model.decoder.layers, config.model.decoder.mlp_width, config.model.vision.layers = 4, 64, 3
    if sparse:
        config.model.decoder.sparse = SparseConfig(experts=4, every=2)
    return override(config, ["batch_size=2", "compile=never", *words])


def packed() -> Batch:
    """Two sequences of several documents, as a loader would give them."""
    sequences = [
        [doc("image", 90, seed=1), doc(30, "image", 100, seed=2)],
        [doc(120, seed=3), doc("image", 80, seed=4)],
    ]
    batch = pack(sequences, length=256)
    batch.targets_BT = torch.where(batch.document_BT > 0, batch.tokens_BT, batch.targets_BT)
    return batch


def allocated(run: RunConfig, batches: list[Batch]) -> int:
    """The most bytes alive at any time during two real steps, counted from before the model is built."""
    objective_weight = 100
    gc.collect()  # otherwise what an earlier test left is freed inside, and counts as negative
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.device("meta"):
            objective = objective_of(run).build(run, ["a"])
        model = objective.model
        parallel.parallelize(model, run, dims=parallel.parallel_dims(run), precision=torch.float32)
        parallel.init_weights(model, 0)
        optimizer = optim.build(model, run.optim, peak=1e-4)
        for _ in range(2):
            for loss in objective.losses(batches, ranks=DataRanks(), device=torch.device("cpu")):
                loss.scaled(weight=objective_weight, sequences=2).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return most_alive(profiler)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_predicted_memory_is_what_torch_allocates(kind: str, sparse: bool):
    config, batch = run(f"parallel.activation_checkpointing={kind}", sparse=sparse), packed()
    planner = Planner(config, GPUS["h100"], precision=torch.float32, batch=batch)
    predicted = planner.budget(ParallelLayout(activation_checkpointing=kind, micro_batch_size=2)).bytes
    assert predicted == pytest.approx(allocated(config, [batch]), rel=0.05)


def test_gradients_of_earlier_micro_batches_are_counted():
    config, batch = run("batch_size=4"), packed()
    planner = Planner(config, GPUS["h100"], precision=torch.float32, batch=batch)
    predicted = planner.budget(ParallelLayout(micro_batch_size=2)).bytes
    assert predicted == pytest.approx(allocated(config, [batch, batch]), rel=0.05)


@pytest.mark.parametrize("objective", ["contrastive", "contrastive_sigmoid"])
def test_predicted_memory_of_a_contrast_is_what_torch_allocates(objective: str):
    """Micro-batches of a picture and two texts; the activations of one are in memory, the features of all."""
    config, batch = run(f"objective={objective}", "batch_size=4"), packed()
    planner = Planner(config, GPUS["h100"], precision=torch.float32, batch=batch)
    predicted = planner.budget(ParallelLayout(micro_batch_size=2)).bytes
    assert predicted == pytest.approx(allocated(config, [batch, batch]), rel=0.05)


def test_the_second_pass_of_a_contrast_takes_a_third_of_a_step_at_most():
    config = recipe("vit_l_14_224")
    planner = Planner(config, GPUS["h100"], precision=torch.bfloat16)
    budgets = [planner.budget(ParallelLayout(dp_shard=64, micro_batch_size=count)) for count in (16, 8, 1)]
    assert budgets[0].flops["encoder"] == pytest.approx(162e9 * 32_768, rel=0.02)  # CLIP's ViT-L/14 at 224 pixels
    seconds = [budget.seconds["encoder"] for budget in budgets]
    assert seconds[1] / seconds[0] == pytest.approx(1 + 1 / 6, rel=0.03)
    assert seconds[2] / seconds[0] == pytest.approx(1 + 15 / 48, rel=0.03)
    assert budgets[2].bytes < budgets[1].bytes / 3 < budgets[0].bytes / 5


PIXELS = (
    *("objective=autoregressive_pixels", "optim.learning_rate=1e-3"),
    *("pixels.head_width=64", "pixels.head_layers=2"),
)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_predicted_memory_of_a_run_that_predicts_pixels_is_what_torch_allocates(kind: str):
    config, batch = run(*PIXELS, f"parallel.activation_checkpointing={kind}"), packed()
    planner = Planner(config, GPUS["h100"], precision=torch.float32, batch=batch)
    predicted = planner.budget(ParallelLayout(activation_checkpointing=kind, micro_batch_size=2)).bytes
    assert predicted == pytest.approx(allocated(config, [batch]), rel=0.05)


def test_the_arithmetic_of_predicting_pixels_is_the_meters():
    config = recipe("aim_600m")
    budget = fastest_budget(Planner(config, GPUS["h100"], precision=torch.bfloat16), 64)
    assert budget is not None
    assert budget.layout.tp == 1
    assert sum(budget.flops.values()) == pytest.approx(costs(config).encoder * 4096, rel=0.01)
    assert budget.flops["head"] > 0


def test_a_run_that_predicts_pixels_needs_a_head_to_be_planned():
    with pytest.raises(ValueError, match=r"set pixels\.head_width"):
        Planner(run("objective=autoregressive_pixels"), GPUS["h100"], precision=torch.bfloat16)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_simulated_arithmetic_is_the_meters(sparse: bool):
    """Operations are counted one by one, and by the formula that MFU is computed with."""
    config = run(sparse=sparse)
    batch = full_sequences(config, 2)
    flops = (
        Planner(config, GPUS["h100"], precision=torch.float32, batch=batch)
        .budget(ParallelLayout(micro_batch_size=2))
        .flops
    )
    formula = costs(config)
    assert flops["encoder"] == pytest.approx(formula.encoder * batch.images, rel=1e-6)
    assert flops["connector"] == pytest.approx(formula.connector * batch.images, rel=1e-6)
    # the simulation counts the pairs that attention by blocks computes, the meter those that see each other
    beyond = formula.pairs[None] * batch.tokens_BT.numel() * (attention_cpu.BLOCK - 1) / 2
    whole = formula.text([batch]) / formula.passes["decoder"] + beyond
    assert flops["decoder"] + flops["logits"] == pytest.approx(whole, rel=0.001)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_layers_with_a_window_count_what_it_shows(sparse: bool):
    """Against the pairs of a full sequence, counted one by one, in the budget of a GPU and in the meter."""
    config = run("model.decoder.window=40", "model.decoder.full_layers=[1]", "model.decoder.layers=6", sparse=sparse)
    batch, decoder = full_sequences(config, 2), config.model.decoder
    seen = {window: sum(min(t + 1, window) for t in range(256)) for window in (40, 256)}
    products = 4 * decoder.heads * decoder.head_width  # of a query and a key, and of their share and a value
    pairs = 2 * products * (5 * seen[40] + seen[256])
    formula = costs(config)
    wide = costs(override(config, ["model.decoder.window=256"]))
    assert formula.text([batch]) / formula.passes["decoder"] == pytest.approx(
        wide.text([batch]) / wide.passes["decoder"] - 2 * products * 5 * (seen[256] - seen[40])
    )
    segments = simulate(config, batch, precision=torch.bfloat16, prepare=lambda model: None)
    ops = [
        (op, times) for one in segments if one.part == "decoder" and not one.backward for op, times in one.ops.items()
    ]
    counted = sum(op.flops * times for op, times in ops if op.kind == "attention")
    assert counted == pytest.approx(pairs, rel=0.02)  # the simulation counts half of the diagonal's pairs


@pytest.mark.parametrize(
    "layout",
    [ParallelLayout(1, 4), ParallelLayout(2, 2), ParallelLayout(1, 2, 2), ParallelLayout(1, 4, ep=2)],
    ids=lambda s: s.overrides(),
)
def test_a_rank_keeps_what_the_budget_says(layout: ParallelLayout, monkeypatch: pytest.MonkeyPatch):
    """FSDP2, tensor and expert parallelism are applied as on the first of 4 ranks, in a fake process group."""
    config = run(*layout.overrides().split(), "batch_size=8", sparse=layout.ep > 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    torch_dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        with torch.device("meta"):
            model = MLLM(config.model)
        parallel.parallelize(model, config, dims=parallel.parallel_dims(config), precision=torch.float32)
        kept = sum(parameter.to_local().numel() for parameter in model.parameters())
    finally:
        torch_dist.destroy_process_group()
    planner = Planner(config, GPUS["h100"], precision=torch.float32)
    assert planner.budget(layout).memory["weights"] == 4 * kept


def invoke(*words: str) -> tuple[int, str, str]:
    answer = CliRunner().invoke(app, ["budget", *words])
    return answer.exit_code, answer.output, str(answer.exception)


def test_a_layout_that_does_not_fit_is_refused_and_one_proposed():
    config = run("batch_size=4", "parallel.dp_shard=1", "parallel.dp_replicate=2")
    roomy = Planner(config, GPUS["h100"], precision=torch.float32)
    bytes_ = roomy.budget(requested_layout(config, 2, node=8)).bytes
    tight = Planner(config, replace(GPUS["h100"], memory=bytes_ * 0.9), precision=torch.float32)
    budget = choose_budget(tight, 2)
    assert not budget.fits
    line = explain_misfit(tight, budget)
    assert re.search(
        r"needs \d+\.\d\d GB of the \d+\.\d\d GB of a GPU; \d+\.\d\d GB are .*\. This layout fits, with", line
    )
    proposed = override(config, line.rpartition(": ")[2].split())
    assert tight.budget(requested_layout(proposed, 2, node=8)).fits


def test_a_model_too_large_names_how_many_gpus_are_enough():
    config = run("batch_size=8", "data.sequence_length=64")  # weights are most of it
    enough = (
        Planner(config, GPUS["h100"], precision=torch.float32)
        .budget(ParallelLayout(1, 8, activation_checkpointing="full"))
        .bytes
    )
    planner = Planner(config, replace(GPUS["h100"], memory=enough), precision=torch.float32)
    with pytest.raises(ValueError, match=r"no layout of 2 GPUs fits: the smallest needs .* take --gpus (4|8)"):
        choose_budget(planner, 2)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--gpu", "h1000"], "did you mean 'h100'"),
        (["parallel.dp_shard=3", "--gpus", "4"], "is 3, but --gpus is 4"),
        (["parallel.tp=4", "--gpus", "4"], "unevenly"),
    ],
)
def test_mistakes_are_named(words: list[str], why: str):
    code, _, error = invoke("tiny", *words)
    assert code != 0
    assert why in error


def test_json_holds_what_the_table_shows(tmp_path: Path):
    path = tmp_path / "budget.json"
    code, output, _ = invoke("tiny", "parallel.dp_shard=2", "micro_batch_size=1", "--gpus", "2", "--json", str(path))
    assert code == 0
    saved = json.loads(path.read_text())
    assert saved["fits"]
    assert f"{saved['bytes'] / 1e9:.2f}" in output
    assert f"{saved['step_seconds']:.3f}" in output


@pytest.mark.parametrize("words", [block[1] for block in BLOCK.finditer(PAGE.read_text())])
def test_the_page_shows_what_the_command_says(words: str, monkeypatch: pytest.MonkeyPatch):
    shown = next(block[2] for block in BLOCK.finditer(PAGE.read_text()) if block[1] == words)
    answer = CliRunner().invoke(app, shlex.split(words))
    assert answer.exit_code == 0, answer.output
    assert answer.output == shown


@pytest.mark.long
@pytest.mark.parametrize("name", ["mm1_30b", "mm1_3b_moe"])
def test_the_page_shows_the_fastest_layouts(name: str):
    budget = fastest_budget(make_planner(recipe(name), gpu="h100", gpus=256), 256)
    assert budget is not None
    assert f"$ mm1 budget {name} {budget.layout.overrides()} --gpus 256 --gpu h100\n" in PAGE.read_text()
