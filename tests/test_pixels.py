"""The autoregressive objective is AIM's: NumPy computes the same loss, and nothing but the step decides it."""

import math
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from pair import Pair, train_all
from small import doc, pack

from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import PixelsConfig, RunConfig, override
from mm1.objectives.autoregressive_pixels import AutoregressivePixels, standardised
from mm1.objectives.draws import uniform
from mm1.objectives.loss import Loss
from mm1.train.log import read_metrics
from mm1.train.run import train_run

SIDE, PATCH = 24, 6
PATCHES = (SIDE // PATCH) ** 2
ROWS = [
    [doc("image", 5, seed=1), doc(3, seed=2), doc(2, "image", 4, "image", 1, seed=3)],
    [doc(9, seed=4)],
    [doc("image", 1, seed=5), doc(1, seed=6), doc("image", 2, seed=8)],
]


def run_of(**pixels) -> RunConfig:
    run = RunConfig(objective="autoregressive_pixels", seed=3)
    run.model = small.config()
    vision = {
        "bias": False,
        "patch_norm": True,
        "fixed_positions": True,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.4),
    }
    run.model.vision = run.model.vision.model_copy(update=vision)
    run.pixels = PixelsConfig(head_width=16, head_layers=3).model_copy(update=pixels)
    run.optim.learning_rate = 1e-3
    return run


def build(run: RunConfig) -> AutoregressivePixels:
    objective = AutoregressivePixels.build(run, ["a", "b"])
    objective.model.initialise(0)
    return objective


def norm(x, state, name):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def positions(width: int) -> np.ndarray:
    """Sines and cosines of the column, then of the row, of each patch."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    rows = []
    for patch in range(PATCHES):
        for number in (patch % (SIDE // PATCH), patch // (SIDE // PATCH)):
            rows.append(np.concatenate([np.sin(number * frequencies), np.cos(number * frequencies)]))
    return np.array(rows).reshape(PATCHES, width)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def patches_of(image: np.ndarray, run: RunConfig) -> np.ndarray:
    """Normalised pixels, a patch a row, by the order of channel, row, column."""
    mean, std = (np.array(x)[:, None, None] for x in (run.model.vision.mean, run.model.vision.std))
    x = (image / 255 - mean) / std
    corners = [(y, x0) for y in range(0, SIDE, PATCH) for x0 in range(0, SIDE, PATCH)]
    return np.stack([x[:, y : y + PATCH, x0 : x0 + PATCH].reshape(-1) for y, x0 in corners])


def by_paper(image: np.ndarray, prefix: int, run: RunConfig, weights: dict[str, torch.Tensor], rank: np.ndarray):
    """The summed loss of an image and how many patches it counts, in NumPy from sections 3.1 and 3.2 of the paper."""
    state = {name: value.double().numpy() for name, value in weights.items()}
    patches, vision = patches_of(image.astype(np.float64), run), run.model.vision
    x = patches @ state["vision.patch.weight"].T + state["vision.patch.bias"]
    x = norm(x, state, "vision.patch_norm") + positions(vision.width)
    seen = (rank[:, None] >= rank) | (rank < prefix)
    for layer in range(vision.layers):
        name = f"vision.blocks.{layer}"
        y = norm(x, state, f"{name}.attention_norm")
        q, k, v = (y @ state[f"{name}.attention.{part}.weight"].T for part in ("query", "key", "value"))
        heads = []
        for q_h, k_h, v_h in zip(*(np.split(part, vision.heads, axis=1) for part in (q, k, v)), strict=True):
            scores = np.where(seen, q_h @ k_h.T / math.sqrt(q_h.shape[1]), -np.inf)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(scores / scores.sum(1, keepdims=True) @ v_h)
        x = x + np.concatenate(heads, 1) @ state[f"{name}.attention.out.weight"].T
        y = gelu(norm(x, state, f"{name}.feed_forward_norm") @ state[f"{name}.feed_forward.up.weight"].T)
        x = x + y @ state[f"{name}.feed_forward.down.weight"].T
    x = norm(x, state, "vision.norm")
    assert run.pixels is not None
    if run.pixels.head_layers:
        x = x @ state["head.input.weight"].T + state["head.input.bias"] + positions(run.pixels.head_width)
        for layer in range(run.pixels.head_layers):
            name = f"head.layers.{layer}"
            y = gelu(norm(x, state, f"{name}.norm") @ state[f"{name}.feed_forward.up.weight"].T)
            x = x + y @ state[f"{name}.feed_forward.down.weight"].T
        x = norm(x, state, "head.norm")
    predicted = x @ state["head.output.weight"].T + state["head.output.bias"]
    total, count = 0.0, 0
    for patch in range(PATCHES):
        after = np.flatnonzero(rank == rank[patch] + 1)
        if len(after) and rank[after[0]] >= prefix:
            target = patches[after[0]]
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            total, count = total + ((predicted[patch] - target) ** 2).mean(), count + 1
    return total, count


@pytest.mark.parametrize(("layers", "order"), [(3, "raster"), (0, "raster"), (3, "random")])
def test_the_loss_is_that_of_the_paper(layers, order):
    run = run_of(head_layers=layers, order=order)
    objective, batch = build(run), pack(ROWS, padding_images=2)
    batch.source_B = torch.tensor([0, 1, 1])
    loss = objective.loss(batch)
    rank = np.argsort(objective._order_R)
    assert (order == "raster") == (rank == np.arange(PATCHES)).all()
    prefixes = objective._images(batch).prefix_N.tolist()
    expected = [
        by_paper(batch.images_NCYX[n].numpy(), prefixes[n], run, objective.model.state_dict(), rank) for n in range(5)
    ]
    assert float(loss.weight) == objective.weight(batch) == sum(count for _, count in expected)
    assert float(loss.total.detach()) == pytest.approx(sum(total for total, _ in expected), rel=1e-5)
    by_source = [sum(total for total, _ in part) for part in (expected[:3], expected[3:])]
    assert loss.by_source.tolist() == pytest.approx(by_source, rel=1e-5)


def test_every_parameter_learns():
    objective = build(run_of())
    objective.loss(pack(ROWS, padding_images=1)).total.backward()
    for name, parameter in objective.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_without_images_the_loss_and_all_gradients_are_zero():
    objective = build(run_of())
    loss = objective.loss(pack([[doc(5)], [doc(3)]]))
    loss.total.backward()
    assert (float(loss.total.detach()), int(loss.weight), objective.weight(pack([[doc(5)], [doc(3)]]))) == (0.0, 0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in objective.model.parameters())


def test_micro_batches_are_as_one_batch():
    """Prefixes are drawn by the number of the sequence, so it doesn't matter which sequences are together."""
    whole = pack(ROWS, length=40)
    whole.sequence_B = torch.tensor([7, 8, 9])
    together, apart = build(run_of()), build(run_of())
    loss = together.loss(whole)
    weight = together.weight(whole)
    loss.scaled(weight=weight, sequences=3).backward()
    parts = []
    for row, number in ((2, 9), (0, 7), (1, 8)):
        batch = pack([ROWS[row]], length=40, padding_images=1)
        batch.sequence_B = torch.tensor([number])
        part = apart.loss(batch)
        part.scaled(weight=weight, sequences=3).backward()
        parts.append(part.detach())
    assert int(Loss.sum(parts).weight) == weight
    torch.testing.assert_close(Loss.sum(parts).total, loss.total.detach(), rtol=1e-6, atol=1e-6)
    for (name, ours), theirs in zip(apart.model.named_parameters(), together.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_prefixes_are_even_and_change_with_seed_sequence_and_image():
    sequence, image = (x.flatten() for x in torch.meshgrid(torch.arange(400), torch.arange(50), indexing="ij"))
    prefix = uniform(1, 255, seed=0, what=1, numbers=(sequence, image))
    counts = torch.bincount(prefix, minlength=256)[1:]
    assert (int(prefix.min()), int(prefix.max())) == (1, 255)
    # chi-square of 254 degrees: 99.9 % are below 327
    assert float(((counts - len(prefix) / 255) ** 2 / (len(prefix) / 255)).sum()) < 327
    for other in (
        uniform(1, 255, seed=1, what=1, numbers=(sequence, image)),
        uniform(1, 255, seed=0, what=2, numbers=(sequence, image)),
        uniform(1, 255, seed=0, what=1, numbers=(image, sequence)),
    ):
        assert float((other == prefix).double().mean()) < 0.01


def test_a_patch_of_one_colour_is_no_reason_for_infinity():
    assert torch.equal(standardised(torch.full((1, 2, 12), 0.3)), torch.zeros(1, 2, 12))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("pixels=null", "needs a head for pixels; set pixels.head_width"),
        ("model.vision.class_token=true", "set model.vision.class_token=false"),
        ("model.tiling.kind=mm1", "set model.tiling.kind=none"),
        ("optim.learning_rate=law", "set optim.learning_rate to a number"),
        ("z_loss_weight=0.1", "set z_loss_weight=0"),
        ("objective=next_token", "next_token predicts no pixels; set pixels=null"),
        ("objective=contrastive", "contrastive predicts no pixels; set pixels=null"),
    ],
)
def test_settings_that_it_would_ignore_are_refused(change, words):
    from mm1.objectives.index import objective_of

    run = override(run_of(), [change])
    with pytest.raises(ConfigError, match=words):
        objective_of(run).check(run)


def trained(stores, folder: Path, *changes: str) -> RunConfig:
    base = small.run(stores)
    base.objective, base.data.sources["text"].share, base.micro_batch_size = "autoregressive_pixels", 0, 1
    base.pixels, base.optim.learning_rate = PixelsConfig(head_width=16, head_layers=2), 1e-3
    base.model.connector.tokens = 1
    run = override(base, ["data.augment.jitter=0.3", *changes])
    config.save(run, folder / "run.json")
    return run


def test_two_ranks_learn_what_one_learns_and_the_encoder_is_a_start(stores, tmp_path):
    run = trained(stores, tmp_path, f"data.validation.captions={stores['captions']}")
    train_run(run, tmp_path / "one")
    pair = Pair(train_all, [(tmp_path / "run.json", tmp_path / "two")])
    assert pair.end(200) == [0, 0], pair.messages()
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "validation/captions", "flops"):
        ours, theirs = ([record[name] for record in records if name in record] for records in (one, two))
        assert ours
        assert ours == pytest.approx(theirs, rel=1e-6), name
    assert one[-2]["loss"] < one[0]["loss"]
    started = override(small.run(stores), ["steps=1", "model.connector.tokens=1"])
    started.start_from = {"vision": str(tmp_path / "one")}
    train_run(started, tmp_path / "mm")
