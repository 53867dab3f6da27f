"""Every recipe, built without memory: its parameters, its learning rate, its shares. Numbers that must not move."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.ablations import ablation_record

from mm1.ablate.plan import make_plan
from mm1.config.run import RunConfig
from mm1.data.tiles import tile_spec
from mm1.model.sizes import non_embedding_parameters
from mm1.objectives.index import objective_of
from mm1.recipes.ablations.index import ABLATIONS, ablation
from mm1.recipes.index import RECIPES, recipe
from mm1.recipes.sft import SETS, remedy
from mm1.scaling import law
from mm1.tiling import tiles
from mm1.train import optim, schedule

GOLDEN = {
    "tiny_encoder": 2_307_073,
    "tiny_aim": 1_265_920,
    "tiny_language": 2_398_016,
    "tiny": 2_398_016,
    "tiny_sft": 2_409_536,
    "small_encoder": 5_452_033,
    "small_language": 5_649_888,
    "small": 5_649_888,
    "small_sft": 5_667_168,
    "vit_l_14_224": 414_677_249,
    "vit_l_14_336": 415_004_929,
    "vit_h_14_224": 975_014_401,
    "vit_h_14_378": 975_619_841,
    "aim_600m": 1_087_594_572,
    "aim_1b": 1_617_478_220,
    "aim_3b": 3_130_230_348,
    "mm1_3b": 3_707_662_400,
    "mm1_7b": 7_985_959_488,
    "mm1_30b": 30_627_251_776,
    "mm1_3b_moe": 65_542_647_872,
    "mm1_7b_moe": 46_994_035_264,
    "mm1_3b_sft": 3_711_694_400,
    "mm1_7b_sft": 7_989_991_488,
    "mm1_30b_sft": 30_631_283_776,
    "mm1_3b_moe_sft": 65_546_679_872,
    "mm1_7b_moe_sft": 46_998_067_264,
    "mm1_5_sft": 3_711_694_400,
}


def build(run: RunConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return objective_of(run).build(run, []).model


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_parameters_it_had(name):
    assert sum(parameter.numel() for parameter in build(recipe(name)).parameters()) == GOLDEN[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_nothing_that_its_objective_refuses(name):
    run = recipe(name)
    objective_of(run).check(run)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_carries_its_own_name_and_survives_its_json(name):
    run = recipe(name)
    assert run.recipe == name
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_arm_of_an_ablation_is_a_run_that_can_be_built(name, scale, tmp_path):
    runs = make_plan(ablation(name, scale), tmp_path, seeds=1).runs.values()
    for run in {one.run.model_dump_json(include={"model", "objective"}): one.run for one in runs}.values():
        assert sum(parameter.numel() for parameter in build(run).parameters()) > 0


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_the_configs_of_an_ablation_are_those_they_were(name, scale):
    golden = json.loads((Path(__file__).parent / "fixtures" / "ablations.json").read_text())
    assert ablation_record(name, scale) == golden[scale][name]


@pytest.mark.parametrize("recipe_name", ["tiny", "mm1_3b", "mm1_30b", "mm1_7b_moe"])
def test_pretraining_mixes_nine_nine_two(recipe_name):
    shares = {"captions": 0, "interleaved": 0, "text": 0}
    for name, source in recipe(recipe_name).data.sources.items():
        shares[name.partition("/")[0]] += source.share
    assert shares == {"captions": 9, "interleaved": 9, "text": 2}


def test_the_law_gives_the_papers_rates():
    for parameters, rate in ((2.9e9, 5.92e-5), (7e9, 4.08e-5), (30e9, 2.21e-5)):
        assert law(parameters) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("name", "rate"), [("3b", 6e-5), ("3b_moe", 6e-5), ("7b", 4e-5), ("7b_moe", 4e-5), ("30b", 2.2e-5)]
)
def test_the_final_models_are_the_papers_in_all_it_tells(name, rate):
    """MM1, section 4: 512 sequences of 4096 tokens and 16 images, 200k steps, the fitted rate of the dense model."""
    run = recipe(f"mm1_{name}")
    assert law(non_embedding_parameters(run.model.decoder)) == pytest.approx(rate, rel=0.03)
    assert (run.batch_size, run.data.sequence_length, run.data.max_images, run.steps) == (512, 4096, 16, 200_000)
    assert run.model.connector.tokens == 144
    assert (run.optim.warmup_steps, run.optim.betas, run.frozen) == (2000, (0.9, 0.95), [])


@pytest.mark.parametrize("name", ["3b", "7b", "30b", "3b_moe", "7b_moe"])
def test_fine_tuning_is_the_papers_in_all_it_tells(name):
    """MM1, section 5: 10k steps of 256 x 2048 at 1e-5, pictures of 720 tokens, nothing frozen; 1.45 M samples."""
    run, before = recipe(f"mm1_{name}_sft"), recipe(f"mm1_{name}")
    assert (run.steps, run.batch_size, run.data.sequence_length) == (10_000, 256, 2048)
    assert (run.optim.kind, run.optim.learning_rate, run.optim.schedule) == ("adafactor", 1e-5, "cosine")
    spec = tile_spec(run.model)
    picture = len(tiles(1344, 1344, spec))
    assert (spec.size, picture, picture * spec.tokens) == (672, 5, 720)
    assert run.frozen == []
    assert run.start_from == {"model": f"runs/{before.recipe}"}
    assert run.model.decoder == before.model.decoder
    assert sum(source.share for source in run.data.sources.values()) == 1448


def test_the_categories_of_mm1_5_have_its_ratios():
    run = recipe("mm1_5_sft")
    share = {name: source.share / 1000 for name, source in run.data.sources.items()}
    assert sum(share.values()) == pytest.approx(1)
    for name, ratio in (("refer_and_ground", 2.0), ("math", 0.5), ("code", 0.2), ("science", 0.1)):
        assert share[name] / share["general"] == pytest.approx(ratio, abs=0.01)
    assert (share["multi_image"], share["text_only"]) == (0.1, 0.1)
    assert (run.steps, run.batch_size, run.optim.learning_rate) == (23_000, 256, 2e-5)


def test_the_page_about_fine_tuning_has_the_sets_of_the_recipe():
    page = (Path(__file__).parents[1] / "docs/finetune.md").read_text()
    for name, chats in SETS.items():
        command = f"`mm1 prepare {chats.prepared} --to sft/{name}`"
        row = next(line for line in page.splitlines() if line.startswith("| ") and f"sft/{name}" in line)
        assert f"| {chats.thousands}k | {chats.published} | {command}" in row
        assert remedy(f"sft/{name}/images.lance").count(f"--to sft/{name}") == 1


def test_the_schedule_warms_up_peaks_and_ends_at_a_tenth():
    settings = RunConfig().optim.model_copy(update={"warmup_steps": 10})
    rates = [schedule.rate(settings, step, steps=100, peak=1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 9
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_decay():
    model = build(recipe("tiny"))
    decayed, free = optim.build(model, RunConfig().optim, peak=1e-3).param_groups
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim < 2 for parameter in free["params"])
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
