"""`mm1 eval` of encoders: its scores are those that scikit-learn and loops give, on what people have."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from encoder_weights import FOCUS, focus
from PIL import Image as Pillow
from typer.testing import CliRunner
from weights import CACHE, fetched

from mm1.__main__ import app
from mm1.checkpoint import save_weights
from mm1.config import run as config
from mm1.config.run import override
from mm1.data.loader import sequences_of
from mm1.data.store import write_store
from mm1.document import Document, Image, Text
from mm1.eval.encoders.categories import AttentiveProbe, attentive_probe, nearest_neighbours
from mm1.eval.encoders.command import EncoderCommand, read_scores
from mm1.eval.encoders.encoder import Encoder, PairFeatures, open_encoder
from mm1.eval.encoders.labelled import Labelled, Pictures, read_labelled
from mm1.eval.encoders.retrieval import both_ways, pairs_of
from mm1.eval.metrics.statistics import paired_difference
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.model.layers import initialise, resize_positions
from mm1.model.vision import Vision
from mm1.objectives.index import objective_of
from mm1.train.run import train_run

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 60), "red": (220, 30, 40)}


def picture(colour: tuple[int, int, int], seed: int) -> Pillow.Image:
    noise = np.random.default_rng(seed).integers(-20, 20, (24, 32, 3))
    return Pillow.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An ImageNet-like folder of three colours: 40 pictures of each to learn from, 6 to be asked about."""
    folder = tmp_path_factory.mktemp("colours")
    for part, count in (("train", 40), ("val", 6)):
        for number, (name, colour) in enumerate(COLOURS.items()):
            (folder / part / name).mkdir(parents=True)
            for each in range(count):
                seed = 1000 * number + each + (500 if part == "val" else 0)
                picture(colour, seed).save(folder / part / name / f"{each}.{'JPEG' if each % 2 else 'png'}")
    (folder / "train" / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def runs(stores, tmp_path_factory) -> dict[str, Path]:
    """A run that was trained by contrast, and one that predicted pixels."""
    folder = tmp_path_factory.mktemp("encoders")
    base = small.run(stores)
    base.steps, base.checkpoint_every, base.data.sources["text"].share = 2, 2, 0
    base.optim.learning_rate = 1e-3
    changes = {"contrast": ["objective=contrastive"], "pixels": ["objective=autoregressive_pixels", "pixels={}"]}
    for name, changed in changes.items():
        train_run(override(base, changed), folder / name)
    return {name: folder / name for name in changes}


def vision() -> Vision:
    built = Vision(small.config().vision)
    initialise(built, 0)
    return built.eval()


def encoder() -> Encoder:
    return Encoder(vision(), name="random", pairs=None, tokenizer=None)


def test_recall_is_that_of_a_loop_with_several_captions_of_a_picture():
    """Five captions of each of four pictures, one caption of two of them, and equal scores."""
    generator = torch.Generator().manual_seed(0)
    documents = []
    for number in range(4):
        for caption in range(5):
            text = "a thing" if caption == 0 and number < 2 else f"thing {number} as {caption}"
            documents.append(Document((Image(bytes([number])), Text(text))))
    image_ND = torch.randn(4, 8, generator=generator).repeat_interleave(5, 0)
    text_ND = torch.randn(20, 8, generator=generator)
    text_ND[5] = text_ND[0]
    text_ND[7] = text_ND[3]  # another caption with the same score
    hits = both_ways(documents, PairFeatures(image_ND, text_ND))
    texts = list(dict.fromkeys(document.text for document in documents))
    features = {document.text: feature for document, feature in zip(documents, text_ND, strict=True)}
    ranks: dict[str, list[int]] = {"image-to-text": [], "text-to-image": []}
    for number in range(4):
        own = {document.text for document in documents if document.images[0].data == bytes([number])}
        scores = {text: float(features[text] @ image_ND[5 * number]) for text in texts}
        best = max(scores[text] for text in own)
        ranks["image-to-text"].append(sum(scores[text] >= best for text in texts if text not in own))
    for text in texts:
        own = {document.images[0].data[0] for document in documents if document.text == text}
        scores_of = {number: float(features[text] @ image_ND[5 * number]) for number in range(4)}
        best = max(scores_of[number] for number in own)
        ranks["text-to-image"].append(sum(scores_of[number] >= best for number in range(4) if number not in own))
    assert {name: each.rank_Q.tolist() for name, each in hits.items()} == ranks
    assert len(hits["text-to-image"].rank_Q) == 19
    assert hits["image-to-text"].at(1).tolist() == [float(rank == 0) for rank in ranks["image-to-text"]]


def test_neighbours_vote_as_in_scikit_learn(folder):
    neighbors = pytest.importorskip("sklearn.neighbors")
    labelled = read_labelled(str(folder))
    features = [encoder().summaries(part.images(range(len(part)))) for part in (labelled.train, labelled.held_out)]
    train, held_out = (torch.nn.functional.normalize(x, dim=-1).numpy() for x in features)
    votes = neighbors.KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = votes.fit(train, labelled.train.labels).predict(held_out) == labelled.held_out.labels
    assert nearest_neighbours(encoder(), labelled).tolist() == expected.tolist()


def test_a_probe_learns_what_patches_show_and_not_what_they_do_not(folder):
    labelled = read_labelled(str(folder))
    assert attentive_probe(encoder(), labelled, seed=0).mean() > 0.9
    shuffled = np.random.default_rng(0).permutation(labelled.train.labels)
    without = Labelled(Pictures(labelled.train.sources, shuffled), labelled.held_out, labelled.names, labelled.origin)
    assert attentive_probe(encoder(), without, seed=0).mean() < 0.8


def test_the_probe_is_attention_of_a_learned_query():
    probe = AttentiveProbe(8, 3, heads=2).eval()
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        x_NPE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        mean, std = torch.full((8,), 0.3), torch.full((8,), 2.0)
        probe.norm.running_mean, probe.norm.running_var = mean, std**2
        y_NPE = (x_NPE - mean) / std
        theirs = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        eye = torch.eye(8)
        theirs.in_proj_weight.copy_(torch.cat([eye, probe.key.weight, probe.value.weight]))
        theirs.out_proj.weight.copy_(eye)
        pooled = theirs(probe.query.expand(2, -1, -1), y_NPE, y_NPE)[0][:, 0]
        torch.testing.assert_close(probe(x_NPE), probe.output(pooled), atol=1e-5, rtol=1e-5)


def test_pairs_have_the_features_of_training(runs, stores):
    """A document alone has the features that it has among others of its sequence."""
    run = config.load(runs["contrast"] / "config.json")
    opened = open_encoder(str(runs["contrast"]))
    documents = pairs_of(str(stores["captions"]), seed=0)
    alone = opened.pairs(documents)
    sequences = sequences_of(run, runs["contrast"], held_out={"captions": str(stores["captions"])})
    batch = sequences.batch(list(range(sequences.sources[0].plan.epoch_sequences)))
    assert opened._pairs is not None
    with torch.no_grad():
        packed = opened._pairs(batch)
    assert len(documents) == int(packed.real_N.sum()) == 40
    for ours, theirs in ((alone.image_ND, packed.image_ND), (alone.text_ND, packed.text_ND)):
        nearest = (ours[:, None] - theirs[packed.real_N]).abs().amax(-1).amin(1)
        assert float(nearest.max()) < 1e-5


def call(*words: str) -> str:
    """What a call prints, and its error."""
    result = CliRunner().invoke(app, ["eval", *words], env={"COLUMNS": "200"})
    return f"{result.output}{result.exception or ''}"


def test_the_command_scores_encoders_and_keeps_what_it_scored(runs, stores, folder, tmp_path):
    contrast, to = str(runs["contrast"]), ("--to", str(tmp_path))
    output = call(contrast, "--tasks", "retrieval", "--data", str(stores["captions"]), *to)
    assert "image-to-text R@1" in output
    assert "text-to-image R@10" in output
    output = call(contrast, "--tasks", "knn,probe", "--data", str(folder), "--limit", "10", *to)
    assert "right of 3 categories" in output
    assert "33.3" in output or "30.0" in output or "40.0" in output  # the commonest category of ten pictures
    scores = read_scores(tmp_path / "eval")
    assert [score.task for score in scores] == ["retrieval"] * 6 + ["knn", "probe"]
    assert {score.queries for score in scores[-2:]} == {10}
    call(contrast, "--tasks", "knn", "--data", str(folder), *to)
    again = read_scores(tmp_path / "eval")
    assert [score.task for score in again] == ["retrieval"] * 6 + ["probe", "knn"]
    assert again[-1].queries == 18


def test_an_encoder_without_a_text_tower_is_scored_by_its_features(runs, folder, tmp_path):
    for name in ("pixels", "imported", "hf"):
        where = str(runs["pixels"])
        if name != "pixels":
            if not (tmp_path / "out").exists():
                run = config.load(runs["contrast"] / "config.json")
                model = objective_of(run).build(run, []).model
                model.initialise(0)
                save_weights(tmp_path / "source", model.state_dict())
                config.save(run, tmp_path / "source" / "config.json")
                export_run(tmp_path / "source", tmp_path / "out")
                import_model(str(tmp_path / "out"), tmp_path / "run")
            where = str(tmp_path / "run") if name == "imported" else f"hf:{tmp_path / 'out'}"
        (score,) = EncoderCommand(where, ("knn",), str(folder)).run(tmp_path / name)
        assert (score.queries, score.baseline) == (18, pytest.approx(100 / 3))
        with pytest.raises(ValueError, match="has no text tower, which retrieval asks; its tasks are knn and probe"):
            EncoderCommand(where, ("retrieval",)).run(tmp_path / name)
    scores = [json.loads((tmp_path / name / "encoder.json").read_text())["scores"] for name in ("imported", "hf")]
    assert scores[0] == scores[1]


def test_mistakes_are_named(runs, stores, tmp_path):
    contrast = str(runs["contrast"])
    assert "two calls" in call(contrast, "--tasks", "knn,captions")
    assert "expected train/CATEGORY/PICTURE and val/CATEGORY/PICTURE" in call(
        contrast, "--tasks", "knn", "--data", str(tmp_path)
    )
    assert "no run at" in call(str(tmp_path / "nothing"), "--tasks", "knn")
    write_store([Document((Text("words alone"),)), Document((Text("more words"),))], tmp_path / "text.lance")
    assert "has 0 documents of one picture and a text" in call(
        contrast, "--tasks", "retrieval", "--data", str(tmp_path / "text.lance")
    )
    for part, names in (("train", ("a", "b")), ("val", ("c",))):
        for name in names:
            (tmp_path / "f" / part / name).mkdir(parents=True)
            picture((1, 2, 3), 0).save(tmp_path / "f" / part / name / "0.png")
    assert "asks about the category 'c', of which train has no picture" in call(
        contrast, "--tasks", "probe", "--data", str(tmp_path / "f")
    )
    (tmp_path / "f" / "val" / "a").mkdir()
    (tmp_path / "f" / "val" / "a" / "0.png").write_bytes(b"no picture")
    (tmp_path / "f" / "val" / "c" / "0.png").unlink()
    assert "not a readable image" in call(contrast, "--tasks", "knn", "--data", str(tmp_path / "f"))


def test_the_sample_has_categories():
    labelled = read_labelled("")
    assert (len(labelled.train), len(labelled.held_out)) == (5252, 450)
    assert len(labelled.limited(100, seed=0).held_out) == 100
    assert labelled.majority < 20


@pytest.mark.nightly
def test_real_features_tell_categories_apart_better_than_random_ones(capsys):
    """A ViT-S that learned from pictures, against the same shape with random weights, at 112 pixels."""
    fetched(FOCUS)
    published, state = focus(CACHE)
    shape = published.model_copy(update={"image_size": 112, "feature_layer": -2})
    state["position_PE"] = resize_positions(state["position_PE"], published.grid, to=shape.grid)
    whole, right = read_labelled(""), {}
    labelled = replace(whole, train=whole.train.drawn(1500, seed=0))  # all of them take four times as long
    for name in ("real", "random"):
        built = Vision(shape)
        initialise(built, 0)
        if name == "real":
            built.load_state_dict(state)
        scored = Encoder(built.eval(), name=name, pairs=None, tokenizer=None)
        right[name] = {"knn": nearest_neighbours(scored, labelled), "probe": attentive_probe(scored, labelled, seed=0)}
    for task in ("knn", "probe"):
        margin = paired_difference(100 * right["real"][task], 100 * right["random"][task], seed=0)
        with capsys.disabled():
            means = ", ".join(f"{name} {100 * of_task[task].mean():.1f}" for name, of_task in right.items())
            print(f"\n{task}: {means}; margin {margin.mean:.1f} [{margin.low:.1f}, {margin.high:.1f}] points")
        assert margin.above_zero
