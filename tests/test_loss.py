"""The loss against whole logits: values and gradients, whatever learns, and in whatever precision."""

import pytest
import small
import torch
import torch.nn.functional as F
from small import IMAGE

from mm1.document import IGNORED, Batch
from mm1.model.mllm import MLLM
from mm1.objectives import next_token as loss
from mm1.objectives.loss import Loss
from mm1.objectives.next_token import NextToken, cross_entropy

VOCABULARY = 64
CHUNKS = (1, 2 * loss.ALIGNED * VOCABULARY, 2**20)
"""Logits at once, of 39 trained places: as few as can be, of most places, of all."""


def batch() -> Batch:
    """The rows of `small` in two sources, about half of their places trained."""
    made = small.pack(small.ROWS)
    selected = torch.rand(made.tokens_BT.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    made.targets_BT = torch.where(selected & (made.document_BT > 0), made.tokens_BT, IGNORED)
    made.source_B = torch.tensor([0, 1, 1])
    return made


def model(*, tie_embeddings: bool) -> MLLM:
    config = small.config()
    config.decoder.tie_embeddings = tie_embeddings
    made = MLLM(config)
    made.initialise(0)
    with torch.no_grad():
        made.decoder.output_weight().mul_(20 if tie_embeddings else 2)  # logits as far apart as a trained model's
    return made


def gradients(made: MLLM, objective: torch.Tensor) -> dict[str, torch.Tensor]:
    made.zero_grad(set_to_none=True)
    objective.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def with_whole_logits(made: MLLM, rows: Batch, *, z_loss_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each place, and the z loss times its weight, summed."""
    learned = rows.targets_BT != IGNORED
    logits = made.decoder.logits(made.hidden(rows))[learned].float()
    losses = F.cross_entropy(logits, rows.targets_BT[learned], reduction="none")
    return losses, z_loss_weight * logits.exp().sum(-1).log().square().sum()


@pytest.mark.parametrize("frozen", ["", "vision", "decoder", "decoder.output", "decoder.blocks"])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("z_loss_weight", [0.0, 0.01])
def test_loss_and_gradients_are_those_of_whole_logits(tie_embeddings, z_loss_weight, frozen, monkeypatch):
    made, rows = model(tie_embeddings=tie_embeddings), batch()
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    losses, z = with_whole_logits(made, rows, z_loss_weight=z_loss_weight)
    wanted = gradients(made, (losses.sum() + z) / len(losses))
    objective = NextToken(made, ["one", "two"], z_loss_weight=z_loss_weight)
    for at_once in CHUNKS:
        monkeypatch.setitem(loss.LOGITS, "cpu", at_once)
        found = objective.loss(rows)
        assert found.weight == len(losses) == objective.weight(rows)
        torch.testing.assert_close(found.total, losses.sum())
        minimised = found.objective(weight=found.weight, rows=3)
        torch.testing.assert_close(minimised, (losses.sum() + z) / len(losses))
        torch.testing.assert_close(gradients(made, minimised), wanted, rtol=1e-4, atol=1e-6)
        figures = found.detach().metrics(["one", "two"])
        source = rows.source_B[:, None].expand_as(rows.targets_BT)[rows.targets_BT != IGNORED]
        for number, name in enumerate(("one", "two")):
            assert figures[f"tokens/{name}"] == int((source == number).sum())
            assert figures[f"loss/{name}"] == pytest.approx(float(losses[source == number].detach().mean()))
        assert figures.get("z_loss", 0) == pytest.approx(float(z.detach()) / len(losses))
        with torch.no_grad():
            torch.testing.assert_close(objective.loss(rows).total, found.total.detach(), atol=0, rtol=1e-6)


def test_parts_of_a_batch_add_up_to_it(monkeypatch):
    monkeypatch.setitem(loss.LOGITS, "cpu", CHUNKS[1])
    made, rows = model(tie_embeddings=True), batch()
    objective = NextToken(made, ["one", "two"], z_loss_weight=0.01)
    whole = objective.loss(rows)
    wanted = gradients(made, whole.objective(weight=whole.weight, rows=3))
    made.zero_grad(set_to_none=True)
    parts, first = [], 0
    for row in range(3):
        part = rows.map(lambda tensor: tensor)
        images = int((rows.tokens_BT[row] == IMAGE).sum()) // small.PLACES
        for name in ("tokens_BT", "targets_BT", "document_BT", "position_BT", "source_B"):
            setattr(part, name, getattr(rows, name)[row : row + 1])
        part.images_NCYX, part.images, first = rows.images_NCYX[first : first + images], images, first + images
        parts.append(objective.loss(part))
        parts[-1].objective(weight=whole.weight, rows=3).backward()
    torch.testing.assert_close(Loss.sum(parts).total, whole.total)
    found = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_no_trained_place_is_no_loss_and_no_gradient():
    made, rows = model(tie_embeddings=False), batch()
    rows.targets_BT = torch.full_like(rows.targets_BT, IGNORED)
    found = NextToken(made, ["one", "two"], z_loss_weight=0.01).loss(rows)
    assert float(found.total) == float(found.z) == found.weight == 0
    assert not any(grad.any() for grad in gradients(made, found.objective(weight=0, rows=3)).values())


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_low_precision_is_near_and_no_further_off_in_chunks(tie_embeddings, monkeypatch):
    """bfloat16 has 8 bits: gradients are compared to 2 % of the largest."""
    made, rows = model(tie_embeddings=tie_embeddings), batch()
    losses, _ = with_whole_logits(made, rows, z_loss_weight=0)
    wanted = gradients(made, losses.sum())
    for at_once in CHUNKS:
        monkeypatch.setitem(loss.LOGITS, "cpu", at_once)
        with torch.autocast("cpu", torch.bfloat16):
            found = NextToken(made, ["one", "two"]).loss(rows)
        assert found.total.dtype == found.by_source.dtype == torch.float32
        torch.testing.assert_close(found.total, losses.sum(), rtol=5e-3, atol=0)
        low = gradients(made, found.total)[made_output(tie_embeddings)]
        torch.testing.assert_close(low, wanted[made_output(tie_embeddings)], rtol=0, atol=0.02 * float(low.abs().max()))


def made_output(tie_embeddings: bool) -> str:
    return "decoder.embedding.weight" if tie_embeddings else "decoder.output.weight"


def test_infinite_logits_are_no_finite_loss():
    made = model(tie_embeddings=False)
    hidden = torch.ones(5, 32)
    hidden[2] = torch.inf
    targets, places = torch.arange(5), torch.tensor([0, 1, 2, 4])
    found = cross_entropy(made, hidden, targets=targets, places=places, at_once=100)
    assert not found.total.isfinite()
    assert found.losses.isfinite().tolist() == [True, True, False, True]
