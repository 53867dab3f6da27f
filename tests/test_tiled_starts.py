"""A run that starts from a model with tiles goes on with them: the pictures it sees are those that the model knows."""

from pathlib import Path

import pytest
import small
import test_tiled_models
import torch
from test_export import opened

from mm1.checkpoint import load_for_use
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import SparseConfig, TilingConfig
from mm1.config.run import RunConfig
from mm1.exchange.export import export_adapter, export_run
from mm1.exchange.importing import import_model
from mm1.recipes.index import recipe
from mm1.recipes.starts import with_starts
from mm1.train.run import train_run

ODD = "SmolVLM, patches that don't fill"
SHORT = ["steps=1", "batch_size=1", "micro_batch_size=1", "data.validation={}", "data.workers=0", "precision=fp32"]


@pytest.fixture(scope="module")
def imports(tmp_path_factory) -> dict[str, Path]:
    """Tiny published models with tiles, imported, by their names."""
    folder = tmp_path_factory.mktemp("imports")
    for number, published in enumerate(test_tiled_models.MODELS.values()):
        test_tiled_models.publish(published, folder / f"{number}")
        import_model(str(folder / f"{number}"), folder / f"run{number}")
    return {name: folder / f"run{number}" for number, name in enumerate(test_tiled_models.MODELS)}


def started(start: Path, *assignments: str, name: str = "tiny_sft") -> RunConfig:
    """The run of a recipe that starts from a whole model, as the command line makes it."""
    return with_starts(recipe(name), [f"start_from.model={start}", *assignments])


def trained(run: RunConfig, stores: dict[str, Path], folder: Path) -> Path:
    run.data.sources = {"captions": config.SourceConfig(store=str(stores["captions"]))}
    return train_run(run, folder)


@pytest.mark.parametrize("name", test_tiled_models.MODELS)
def test_a_fine_tuned_import_keeps_its_tiles_and_leaves_as_the_model_it_was(name, imports, stores, tmp_path, capsys):
    run = started(imports[name], *SHORT, "data.sequence_length=1024", "optim.learning_rate=1e-9")
    start = config.load(imports[name] / "config.json").model
    assert (run.model.tiling, run.model.vision) == (start.tiling, start.vision)
    trained(run, stores, tmp_path / "run")
    assert f"image size: 24; tiles: {start.tiling.kind}\n" in capsys.readouterr().out
    ours, theirs = (load_for_use(each).model.state_dict() for each in (tmp_path / "run", imports[name]))
    assert ours.keys() == theirs.keys()
    export_run(tmp_path / "run", tmp_path / "out")
    assert type(opened(tmp_path / "out")).__name__.startswith(test_tiled_models.MODELS[name].processor)


def test_only_the_command_line_changes_how_a_whole_start_sees_pictures(imports):
    following = started(imports["LLaVA-NeXT"], "model.vision.image_size=48", "model.tiling.kind=mm1").model
    assert (following.vision.image_size, following.tiling) == (48, TilingConfig(kind="mm1"))
    limited = config.load(imports["LLaVA-NeXT, three grids, SigLIP"] / "config.json").model.tiling
    assert limited.max_tiles is not None
    other = started(imports["LLaVA-NeXT, three grids, SigLIP"], "model.tiling.kind=internvl").model.tiling
    assert other == TilingConfig(kind="internvl", pixels=limited.pixels)  # without the limit of the others
    assert started(imports[ODD], name="mm1_3b_sft").model.tiling.kind == "idefics3"  # not the recipe's


def test_a_recipe_of_tiles_keeps_them_where_the_start_has_none(stores, tmp_path):
    config.save(small.run(stores), tmp_path / "config.json")
    assert started(tmp_path).model.vision.image_size == 16
    model = started(tmp_path, name="mm1_3b_sft").model
    assert (model.tiling.kind, model.vision.image_size) == ("mm1", 672)


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_tiles_whose_rows_end_start_from_a_model_without_tiles(kind, experts, stores, tmp_path, capsys):
    """What ends a row is new, drawn as LLaVA-NeXT's code draws it; all other weights are the start's."""
    run = small.run(stores)
    run.steps = 1
    train_run(run, tmp_path / "plain")
    run.start_from, run.optim.learning_rate, run.optim.weight_decay = {"model": str(tmp_path / "plain")}, 1e-9, 0.0
    run.model.tiling, run.model.decoder.sparse = TilingConfig(kind=kind), SparseConfig(experts=experts)
    run.data.sequence_length, run.data.max_images = 128, 16
    capsys.readouterr()
    train_run(run, tmp_path / "tiled")
    said = capsys.readouterr().out
    assert f"image size: 16; tiles: {kind} (none there)" in said
    assert "new, since the start has none: connector.row_end_D" in said
    before, after = (load_for_use(tmp_path / name).model.state_dict() for name in ("plain", "tiled"))
    if not experts:
        assert after.keys() - before.keys() == {"connector.row_end_D"}
    for name in before.keys() & after.keys():
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert 0.5 < after["connector.row_end_D"].std() * 16**0.5 < 2
    assert load_for_use(train_run(run, tmp_path / "tiled")).step == 1  # and the run's own checkpoint has it


def test_adapters_of_a_recipe_leave_as_adapters_of_the_run_that_it_starts_from(stores, tmp_path):
    """The example of docs/finetune.md: `tiny_sft` has another image size than its start, which wins."""
    run = small.run(stores)
    run.steps = 1
    train_run(run, tmp_path / "plain")
    lora = ["lora.rank=2", "lora.alpha=4", "data.max_images=16"]
    trained(started(tmp_path / "plain", *SHORT, *lora), stores, tmp_path / "adapted")
    assert export_adapter(tmp_path / "adapted", tmp_path / "adapter") == tmp_path / "plain"
    tiles = ["model.vision.image_size=32", "model.tiling.kind=mm1", "data.augment=null"]
    larger = started(tmp_path / "plain", *SHORT, *lora, *tiles)
    trained(larger, stores, tmp_path / "larger")
    words = "model.tiling.kind is 'mm1' here and 'none' there; model.vision.image_size is 32 here and 16 there. Train"
    with pytest.raises(ConfigError, match=words):
        export_adapter(tmp_path / "larger", tmp_path / "second")


def test_an_image_size_that_a_pixel_shuffle_did_not_learn_is_refused_with_the_one_that_fits(imports, stores, tmp_path):
    short = [*SHORT, "data.sequence_length=1024"]
    with pytest.raises(ConfigError, match=r"blocks of 6 x 6 patches .* learned blocks of 2 x 2; .*image_size=24$"):
        trained(started(imports["Idefics3"], *short, "model.vision.image_size=72"), stores, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
    fitting = started(imports["Idefics3"], *short, "model.vision.image_size=48", "model.connector.tokens=16")
    trained(fitting, stores, tmp_path / "larger")
