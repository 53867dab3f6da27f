"""The contrast of a step is that of all its pairs, however ranks and micro-batches divide them."""

import shutil
from pathlib import Path

import pytest
import small
import torch
from pair import Pair, train_all
from small import Doc, doc, image, pack

from mm1 import checkpoint, dist
from mm1.config import run as config
from mm1.config.run import RunConfig
from mm1.dist import DataRanks
from mm1.document import Batch
from mm1.objectives import contrast
from mm1.objectives.contrastive import Contrastive, ContrastiveModel, ContrastiveSigmoid
from mm1.objectives.loss import Loss
from mm1.train import parallel
from mm1.train.log import read_metrics
from mm1.train.run import train_run

OBJECTIVES: dict[str, type[Contrastive]] = {"softmax": Contrastive, "sigmoid": ContrastiveSigmoid}
CAPTION = doc(6, seed=1).tokens


def again(seed: int) -> Doc:
    """A document with another image and the same caption each time."""
    return Doc([*CAPTION, *[small.IMAGE] * small.IMAGE_TOKENS], [image(seed)])


ROWS = [
    [doc("image", 5, seed=1), doc(3, seed=2), again(20)],
    [doc("image", 1, seed=5), doc(2, "image", 4, "image", 1, seed=3)],
    [doc(9, seed=4), doc(4, seed=6)],  # a micro-batch without a pair
    [again(21), doc("image", 2, seed=8), doc("image", 5, seed=9), again(22)],
]

PAIRS = 7


def step_of(objective: Contrastive, batches: list[Batch], ranks: DataRanks) -> Loss:
    """The loss of a step; the gradients of this rank's part of it are in the model."""
    losses = []
    for loss in objective.losses(batches, ranks=ranks, device=torch.device("cpu")):
        loss.scaled(weight=PAIRS, sequences=len(ROWS)).backward()
        losses.append(loss.detach())
    return Loss.sum(losses)


def build(kind: str) -> Contrastive:
    objective = OBJECTIVES[kind](ContrastiveModel(small.config(), kind), [])
    objective.model.initialise(0)
    return objective


def batches_of(rows: list[list[Doc]], count: int) -> list[Batch]:
    """The rows in `count` micro-batches, of as many positions and with images to fill up."""
    size = len(rows) // count
    return [pack(rows[first : first + size], length=40, padding_images=1) for first in range(0, len(rows), size)]


def recorded(loss: Loss, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    known = {
        "loss": loss.total / PAIRS,
        "pairs": torch.tensor(loss.weight),
        "retrieved": torch.tensor(loss.extra["retrieval"]),
    }
    return known | gradients


def expected(kind: str) -> dict[str, torch.Tensor]:
    objective = build(kind)
    loss = step_of(objective, batches_of(ROWS, 1), DataRanks())
    return recorded(loss, {name: p.grad for name, p in objective.model.named_parameters()})


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], *, most: float = 1e-6) -> None:
    """`most` is the largest difference, in the largest number of each tensor or in 1."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        largest = float(theirs[name].abs().max())
        torch.testing.assert_close(
            ours[name], theirs[name], atol=most * max(1, largest), rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("at_once", [1, 10, 2**18])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_micro_batches_are_as_one_batch(monkeypatch, kind, count, at_once):
    whole = expected(kind)
    monkeypatch.setitem(contrast.AT_ONCE, "cpu", at_once)
    objective = build(kind)
    loss = step_of(objective, batches_of(ROWS, count), DataRanks())
    assert_same(recorded(loss, {name: p.grad for name, p in objective.model.named_parameters()}), whole)
    assert loss.weight == PAIRS


def _do_step(rank: int, folder: Path, sharded: bool, tp: int) -> None:
    with dist.connected(patience=None):
        for kind in OBJECTIVES:
            run = RunConfig(batch_size=4, micro_batch_size=1)
            run.model, run.parallel.tp = small.config(), tp
            dims = parallel.parallel_dims(run)
            if sharded:
                with torch.device("meta"):
                    objective = OBJECTIVES[kind](ContrastiveModel(run.model, kind), [])
                parallel.parallelize(objective.model, run, dims=dims, precision=torch.float32)
                parallel.init_weights(objective.model, 0)
            else:
                objective = build(kind)
            own = len(ROWS) // dims.data_ranks
            batches = batches_of(ROWS[dims.data_rank * own :][:own], own)
            loss = step_of(objective, batches, DataRanks(dims.data_rank, dims.data_ranks, dims.tp))
            total = Loss.sum([each for number, each in enumerate(dist.all_gather_object(loss)) if number % tp == 0])
            gradients = {
                name: p.grad.full_tensor() if sharded else dist.sum_over_ranks(p.grad)
                for name, p in objective.model.named_parameters()
            }
            if rank == 0:
                torch.save(recorded(total, gradients), folder / f"{kind}.pt")


@pytest.mark.parametrize(
    ("ranks", "sharded", "tp"),
    [
        (2, False, 1),
        (2, True, 1),
        pytest.param(4, True, 1, marks=pytest.mark.long),
        pytest.param(4, True, 2, marks=pytest.mark.long),
    ],
    ids=["two", "two sharded", "four sharded", "two of two tensor-parallel"],
)
def test_ranks_are_as_one_batch(tmp_path, ranks, sharded, tp):
    """One rank of four has no pair, and captions are equal across ranks."""
    pair = Pair(_do_step, tmp_path, sharded, tp, ranks=ranks)
    assert pair.end() == [0] * ranks, pair.messages()
    for kind in OBJECTIVES:
        # tensor parallelism adds up halves of every product; on some processors that is 1.2e-6 away
        assert_same(torch.load(tmp_path / f"{kind}.pt"), expected(kind), most=1e-6 if tp == 1 else 3e-6)


def run_of(stores, kind: str) -> RunConfig:
    run = small.run(stores)
    run.objective = {"softmax": "contrastive", "sigmoid": "contrastive_sigmoid"}[kind]
    run.data.sources["text"].share, run.micro_batch_size, run.optim.learning_rate = 0, 1, 1e-3
    run.data.validation = {"captions": str(stores["captions"])}
    run.validation_sequences = 6
    return run


def measured(folder: Path) -> list[list[float]]:
    """Losses and shares of images that find their caption, of all steps and of the validation."""
    names = ("loss", "retrieval", "validation/captions", "validation/captions/retrieval")
    return [[record[name] for name in names if name in record] for record in read_metrics(folder)]


@pytest.mark.parametrize("kind", ["softmax", pytest.param("sigmoid", marks=pytest.mark.long)])
def test_a_stopped_run_goes_on_also_on_another_number_of_ranks(stores, tmp_path, kind):
    """On as many ranks bit for bit; two ranks, then one, to 1e-6."""
    run = run_of(stores, kind)
    config.save(run, tmp_path / "run.json")
    train_run(run, tmp_path / "whole")
    pair = Pair(train_all, [(tmp_path / "run.json", tmp_path / "moved")])
    assert pair.end(200) == [0, 0], pair.messages()
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for name in ("again", "moved"):
        shutil.rmtree(tmp_path / name / "checkpoints/step-8")
        train_run(run, tmp_path / name)
    whole = measured(tmp_path / "whole")
    assert [len(values) for values in whole] == [2] * 8 + [2]
    assert measured(tmp_path / "again") == whole
    weights, again = (checkpoint.Weights(tmp_path / name) for name in ("whole", "again"))
    assert all(torch.equal(weights.read(name), again.read(name)) for name in weights.shapes)
    for ours, theirs in zip(measured(tmp_path / "moved"), whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
