"""Adapters: nothing changes at the first step, only they learn, and a run with them is used like any other."""

import shutil
import warnings
from pathlib import Path

import pytest
import small
import test_tiled_models
import torch
import torch.distributed as torch_dist
from pair import Pair, train_all
from torch.testing._internal.distributed.fake_pg import FakeStore

from mm1 import checkpoint
from mm1.budget.hardware import GPUS
from mm1.budget.parallel_layout import ParallelLayout, layouts
from mm1.budget.planner import Planner
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import ConnectorConfig, SparseConfig, VisionConfig
from mm1.config.run import LoRAConfig, RunConfig
from mm1.document import Document, Image, Text
from mm1.exchange.export import export_adapter, export_run
from mm1.exchange.importing import import_model
from mm1.model.lora import LoRALinear, is_adapter
from mm1.train.adapters import add_adapters, check_adapters
from mm1.train.log import read_metrics
from mm1.train.meter import costs
from mm1.train.parallel import parallel_dims, parallelize
from mm1.train.parameters import trained
from mm1.train.run import train_run

LORA = LoRAConfig(rank=4, alpha=8)


def run_of(stores: dict[str, Path], **fields) -> RunConfig:
    """Eight steps with adapters of the small decoder, at a rate at which they learn something."""
    run = small.run(stores)
    run.lora, run.optim.learning_rate, run.precision = LORA, 3e-3, "fp32"
    return run.model_copy(update=fields, deep=True)


@pytest.fixture(scope="module")
def base(stores, tmp_path_factory) -> Path:
    """A run whose weights are all trained, to start from."""
    run = small.run(stores)
    run.steps = 2
    return train_run(run, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def tuned(stores, base, tmp_path_factory) -> Path:
    """The same run, fine-tuned by adapters."""
    return train_run(run_of(stores, start_from={"model": str(base)}), tmp_path_factory.mktemp("tuned") / "tuned")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's newest checkpoint, adapters beside their layers."""
    weights = checkpoint.Weights(folder, merged=False)
    return {name: weights.read(name) for name in weights.shapes}


def test_new_adapters_change_no_logit():
    plain, adapted = small.model(), small.model()
    add_adapters(adapted, LORA)
    adapted.initialise(0)
    batch = small.pack(small.ROWS)
    with torch.no_grad():
        assert torch.equal(plain.hidden(batch), adapted.hidden(batch))
        for name, parameter in adapted.named_parameters():
            if is_adapter(name):
                parameter.add_(0.1)
        assert not torch.allclose(plain.hidden(batch), adapted.hidden(batch), atol=1e-2)


def test_adapters_stand_beside_every_linear_layer_of_the_blocks_but_routers():
    model = small.config()
    model.decoder.sparse = SparseConfig(experts=4, every=2)
    mllm = small.MLLM(model)
    add_adapters(mllm, LORA)
    attention = [f"attention.{name}" for name in ("query", "key", "value", "out")]
    expected = {f"decoder.blocks.{layer}.{name}" for layer in (0, 1) for name in attention}
    expected |= {f"decoder.blocks.0.feed_forward.{name}" for name in ("gate", "up", "down")}
    assert {name for name, module in mllm.named_modules() if isinstance(module, LoRALinear)} == expected
    assert {name.partition(".")[0] for name in trained(mllm) if not is_adapter(name)} == {"connector"}


def test_targets_and_full_parts_are_patterns():
    mllm = small.model()
    add_adapters(mllm, LoRAConfig(targets=["decoder.blocks.1", "*.query"], full=["vision.norm.weight", "decoder.norm"]))
    layers = [name for name, module in mllm.named_modules() if isinstance(module, LoRALinear)]
    assert len(layers) == 8
    assert "decoder.blocks.0.attention.query" in layers
    assert {name for name in trained(mllm) if not is_adapter(name)} == {"vision.norm.weight", "decoder.norm.weight"}
    for wrong, words in (
        (LoRAConfig(targets=["decoder.blocks.9"]), "lora.targets: 'decoder.blocks.9' is no linear layer"),
        (
            LoRAConfig(full=["conector"]),
            "lora.full: 'conector' is no parameter of this model; did you mean 'connector'",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            add_adapters(small.model(), wrong)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (LoRAConfig(targets=["q_proj"]), r"known: \*\.attention\.key, \*\.attention\.out, .*, \*\.feed_forward\.up$"),
        (
            LoRAConfig(rank=999),
            r"lora\.rank is 999, but decoder\.blocks\.0\.attention\.query has 16 inputs and 16 outputs; set",
        ),
    ],
)
def test_adapters_that_a_run_cannot_have_are_refused_before_data_is_read(stores, lora, words, tmp_path):
    run = run_of(stores, lora=lora)
    run.data.sources["captions"].store = str(tmp_path / "missing.lance")
    with pytest.raises(ConfigError, match=words):
        train_run(run, tmp_path / "run")


def test_only_adapters_and_the_connector_move(base, tuned):
    before, after = stored(base), stored(tuned)
    assert {name for name in after if is_adapter(name)} == after.keys() - before.keys()
    moved = {name.partition(".")[0] for name, x in before.items() if not torch.equal(x, after[name])}
    assert moved == {"connector"}
    assert all(after[name].abs().sum() > 0 for name in after if name.endswith(".lora_B.weight"))


def test_a_merged_model_says_what_the_unmerged_one_says(tuned):
    run = config.load(tuned / "config.json")
    unmerged = small.MLLM(run.model)
    add_adapters(unmerged, LORA)
    unmerged.load_state_dict(stored(tuned))
    merged = checkpoint.load_for_use(tuned).model
    assert not any(is_adapter(name) for name in merged.state_dict())
    tokens_BT = torch.randint(4, 4096, (2, 48), generator=torch.Generator().manual_seed(0))
    position_BT = torch.arange(48).expand(2, -1)
    with torch.no_grad():
        left, right = (
            each.decoder.logits(each.decoder(each.decoder.embed(tokens_BT), position_BT)) for each in (merged, unmerged)
        )
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    weights = checkpoint.Weights(tuned)
    assert weights.shapes.keys() == merged.state_dict().keys()
    for name, x in merged.state_dict().items():
        assert torch.equal(weights.read(name), x), name


def test_a_run_that_starts_from_adapters_starts_from_the_merged_weights(stores, tuned, tmp_path):
    """With adapters of its own, which start at zero, and without."""
    expected = checkpoint.load_for_use(tuned).model.state_dict()
    for name, lora in (("again", LORA), ("full", None)):
        run = run_of(stores, start_from={"model": str(tuned)}, lora=lora, steps=1)
        run.optim.learning_rate = 0.0
        started = stored(train_run(run, tmp_path / name))
        assert all(torch.equal(started[name], x) for name, x in expected.items())
        assert len(started) > len(expected) if lora else len(started) == len(expected)
        assert not any(started[name].any() for name in started if name.endswith(".lora_B.weight"))


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(stores, base, tuned, tmp_path):
    """The optimizer of the checkpoint holds what is trained, and nothing else."""
    folder = tmp_path / "resumed"
    shutil.copytree(tuned, folder)
    shutil.rmtree(folder / "checkpoints/step-8")
    train_run(config.load(folder / "config.json"), folder)
    whole, resumed = stored(tuned), stored(folder)
    assert all(torch.equal(whole[name], x) for name, x in resumed.items())
    newest = checkpoint.newest(folder)
    names = {name for name in checkpoint._reader(newest).read_metadata().state_dict_metadata if "exp_avg" in name}
    learned = {name for name in whole if is_adapter(name) or name.startswith("connector.")}
    assert {name.removeprefix("optimizer.state.").rpartition(".")[0] for name in names} == learned


def test_settings_that_adapters_cannot_have_are_refused(stores):
    for changes, words in (
        (["fp8=true"], "fp8=true replaces the linear layers"),
        (["objective=contrastive"], "contrastive trains an encoder"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_adapters(config.override(run_of(stores), changes))


def test_adapters_are_set_on_the_command_line(stores):
    run = config.override(small.run(stores), ["lora.rank=8"])
    assert run.lora == LoRAConfig(rank=8)
    assert config.override(run, ["lora=null"]).lora is None
    with pytest.raises(ConfigError, match=r"no field 'lora.rnk' in a run; did you mean 'lora.rank'"):
        config.override(run, ["lora.rnk=8"])


@pytest.mark.parametrize("tp", [1, 2])
def test_a_budget_counts_moments_of_what_is_trained_only_and_of_the_rank(tp: int, stores, monkeypatch):
    """As on the first of four ranks, in a fake process group; what tensor parallelism doesn't divide is whole."""
    changes = ["decoder.heads=2", "decoder.kv_heads=2", "decoder.head_width=8", "decoder.qkv_bias=true"]
    layout = ParallelLayout(dp_shard=4 // tp, tp=tp)
    words = [*(f"model.{change}" for change in changes), *layout.overrides().split()]
    run = config.override(run_of(stores), words)
    monkeypatch.setenv("WORLD_SIZE", "4")
    torch_dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        with torch.device("meta"):
            mllm = small.MLLM(run.model)
        add_adapters(mllm, LORA)
        parallelize(mllm, run, dims=parallel_dims(run), precision=torch.float32)
        kept = {name: parameter.to_local().numel() for name, parameter in mllm.named_parameters()}
        moments = 8 * sum(kept[name] for name in trained(mllm))
    finally:
        torch_dist.destroy_process_group()
    assert layout in set(layouts(run, 4, node=8))
    planner = Planner(run, GPUS["h100"], precision=torch.float32)
    budget = planner.budget(layout)
    assert (budget.memory["moments"], budget.memory["weights"]) == (moments, 4 * sum(kept.values()))
    assert planner.state_bytes(layout) == moments + moments / 2 + 4 * sum(kept.values())
    assert budget.flops == planner.budget(ParallelLayout(dp_shard=4)).flops  # of the step, however it is shared


def test_a_budget_takes_adapters_of_named_blocks(stores):
    run = config.override(run_of(stores), ["model.decoder.layers=4", 'lora.targets=["decoder.blocks.2"]'])
    with torch.device("meta"):
        mllm = small.MLLM(run.model)
    add_adapters(mllm, run.lora)
    memory = Planner(run, GPUS["h100"], precision=torch.bfloat16).budget(ParallelLayout(micro_batch_size=2)).memory
    assert memory["moments"] == 8 * sum(parameter.numel() for parameter in trained(mllm).values())


def test_a_run_with_adapters_counts_a_backward_pass_through_frozen_layers_once(stores):
    assert costs(run_of(stores)).passes == {"vision": 1, "connector": 3, "decoder": 2}


@pytest.mark.long
def test_two_ranks_learn_what_one_rank_learns(stores, base, tmp_path):
    """Frozen weights and adapters share FSDP's units; a resume on another number of ranks goes on as before.

    The sparse runs start from the dense one, each expert from its feed-forward.
    """
    dense = run_of(stores, start_from={"model": str(base)}, micro_batch_size=1)
    sparse = dense.model_copy(deep=True)
    sparse.model.decoder.sparse = SparseConfig(experts=4, every=2)
    heads = [f"model.decoder.{name}" for name in ("heads=2", "kv_heads=2", "head_width=8")]
    halves = config.override(dense, heads)
    changes = {
        "two": (dense, []),
        "halves, split": (halves, ["parallel.tp=2"]),
        "replicas, recomputed": (dense, ["parallel.dp_replicate=2", "parallel.activation_checkpointing=full"]),
        "experts, recomputed in part": (sparse, ["parallel.ep=2", "parallel.activation_checkpointing=selective"]),
    }
    for name, run in (("dense", dense), ("sparse", sparse), ("halves", halves)):
        train_run(run, tmp_path / name)
    train_run(config.override(dense, ["compile=always"]), tmp_path / "compiled")
    for name, (run, words) in changes.items():
        config.save(config.override(run, words), tmp_path / f"{name}.json")
    pair = Pair(train_all, [(tmp_path / f"{name}.json", tmp_path / name) for name in changes])
    assert pair.end(300) == [0, 0], pair.messages()
    shutil.copytree(tmp_path / "two", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/checkpoints/step-8")
    train_run(dense, tmp_path / "moved")
    for folder in ("compiled", "moved", *changes):
        same = {"experts": "sparse", "halves": "halves"}.get(folder.partition(",")[0], "dense")
        alone = read_metrics(tmp_path / same)
        for left, right in zip(read_metrics(tmp_path / folder), alone, strict=True):
            assert left["loss"] == pytest.approx(right["loss"], abs=1e-5), folder
            assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-4), folder


@pytest.mark.parametrize("kind", ["average", "mlp"])
def test_peft_loads_the_adapter_and_says_what_the_run_says(stores, tmp_path, kind):
    """On the export of the run it started from, native (a LLaVA) or with our modelling file; and merged, without it."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    first = small.run(stores)
    first.steps, first.precision = 1, "fp32"
    if kind == "mlp":
        first.model.vision = VisionConfig(
            image_size=16,
            patch_size=8,
            width=16,
            layers=2,
            heads=1,
            mlp_width=32,
            feature_layer=-2,
            activation="gelu_tanh",
        )
        first.model.connector = ConnectorConfig(kind="mlp", tokens=4)
    train_run(first, tmp_path / "first")
    second = first.model_copy(deep=True)
    second.lora, second.start_from = LORA, {"model": str(tmp_path / "first")}
    second.steps, second.optim.learning_rate = 8, 3e-3
    train_run(second, tmp_path / "second")
    assert export_adapter(tmp_path / "second", tmp_path / "adapter") == tmp_path / "first"
    for run in ("first", "second"):
        export_run(tmp_path / run, tmp_path / f"{run} exported")

    def opened(name: str):
        auto = transformers.AutoModelForImageTextToText
        return auto.from_pretrained(tmp_path / f"{name} exported", trust_remote_code=True).eval()

    loaded = checkpoint.load_for_use(tmp_path / "second")
    image = loaded.model.config.image_token
    tokens_BT = torch.tensor([[5, *[image] * 4, 200, 300, 17, 9]])
    pixels_NCYX = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    batch = small.pack([[small.Doc(tokens_BT[0].tolist(), [pixels_NCYX[0]])]])
    inputs = {"input_ids": tokens_BT, "pixel_values": (pixels_NCYX.float() / 255 - 0.5) / 0.5}
    adapted = peft.PeftModel.from_pretrained(opened("first"), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = loaded.model.decoder.logits(loaded.model.hidden(batch))
        plain = opened("first")
        assert type(plain).__name__.startswith("Llava" if kind == "mlp" else "MM1")
        before = plain(**inputs).logits
        assert (before - expected).abs().max() > 1e-2
        torch.testing.assert_close(adapted(**inputs).logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(opened("second")(**inputs).logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(adapted.merge_and_unload()(**inputs).logits, expected, atol=1e-5, rtol=0)
    assert all(parameter.dtype == torch.float32 for parameter in adapted.parameters())


@pytest.mark.parametrize("full", [["connector"], ["connector", "vision"]], ids=" and ".join)
@pytest.mark.parametrize("name", test_tiled_models.MODELS)
def test_peft_puts_an_adapter_on_the_published_model_with_tiles_that_it_was_trained_on(name, full, stores, tmp_path):
    """With all that was trained in full: the connector, LLaVA-NeXT's `image_newline`, the encoder."""
    peft = pytest.importorskip("peft")
    theirs, processor = test_tiled_models.publish(test_tiled_models.MODELS[name], tmp_path / "theirs")
    start = import_model(str(tmp_path / "theirs"), tmp_path / "ours").folder
    run = small.run(dict.fromkeys(("captions", "text"), stores["captions"]))
    run.model, run.start_from = config.load(start / "config.json").model, {"model": str(start)}
    run.data.sequence_length, run.data.max_images, run.precision = 1024, 60, "fp32"
    run.micro_batch_size, run.batch_size, run.optim.learning_rate = 1, 1, 3e-3
    run.data.tokenizer, run.lora = str(start), LoRAConfig(rank=4, alpha=8, full=full)
    train_run(run, tmp_path / "tuned")
    assert export_adapter(tmp_path / "tuned", tmp_path / "adapter") == start
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it warns of what it misses
        adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    before, after = stored(start), stored(tmp_path / "tuned")
    moved = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert {name.partition(".")[0] for name in moved} == {*full}
    assert ("connector.row_end_D" in moved) == name.startswith("LLaVA-NeXT")
    loaded = checkpoint.load_for_use(tmp_path / "tuned")
    for width, height in test_tiled_models.PICTURES.values():
        canvas = test_tiled_models.picture(width, height)
        document = Document((Image(test_tiled_models.png(canvas)), Text("what is it?")))
        inputs = processor(images=canvas, text="<image>what is it?", return_tensors="pt")
        inputs, pixels_NCYX, encoded = test_tiled_models.with_our_pixels(inputs, document, loaded)
        ours = test_tiled_models.our_logits(loaded, pixels_NCYX, encoded)
        with torch.no_grad():
            torch.testing.assert_close(ours, adapted(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(adapted.merge_and_unload()(**inputs).logits, adapted(**inputs).logits)


def test_an_adapter_that_no_base_fits_is_refused(stores, base, tuned, tmp_path):
    run = config.load(tuned / "config.json")
    for change, words in (
        ({"lora": None}, "was trained without adapters"),
        ({"lora": LoRAConfig(full=["connector", "decoder.norm"])}, "trained decoder.norm in full"),
        ({"start_from": {"vision": str(base)}}, "no whole model; leave --adapter out"),
        ({"model": small.config()}, "model.vision.image_size is 24 here and 16 there; "),
    ):
        shutil.copytree(tuned, tmp_path / "run", dirs_exist_ok=True)
        config.save(run.model_copy(update=change), tmp_path / "run/config.json")
        with pytest.raises(ConfigError, match=words):
            export_adapter(tmp_path / "run", tmp_path / "adapter")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").touch()
    with pytest.raises(ConfigError, match=r"taken holds notes\.txt"):
        export_adapter(tuned, tmp_path / "taken")
