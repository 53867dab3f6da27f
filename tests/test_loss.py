"""The loss against whole logits: values and gradients, whatever learns, and in whatever precision."""

import copy

import pytest
import small
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import IMAGE

from mm1.document import IGNORED, Batch, trained_positions
from mm1.model.mllm import MLLM
from mm1.objectives import next_token
from mm1.objectives.loss import Loss
from mm1.objectives.next_token import NextToken, cross_entropy, log_sum_by_parts, log_sum_by_softmax

VOCABULARY = 64
CHUNKS = (1, 2 * next_token.ALIGNED * VOCABULARY, 2**20)
"""Logits at once, of 39 trained positions: as few as possible, of most positions, of all."""


def packed_batch() -> Batch:
    """The sequences of `small` in two sources, about half of their positions trained."""
    packed = small.pack(small.ROWS)
    selected = torch.rand(packed.tokens_BT.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    packed.targets_BT = torch.where(selected & (packed.document_BT > 0), packed.tokens_BT, IGNORED)
    packed.source_B = torch.tensor([0, 1, 1])
    return packed


def model(*, tie_embeddings: bool, softcap: float | None = None) -> MLLM:
    config = small.config()
    config.decoder.tie_embeddings, config.decoder.logit_softcap = tie_embeddings, softcap
    mllm = MLLM(config)
    mllm.initialise(0)
    with torch.no_grad():
        mllm.decoder.output_weight().mul_(20 if tie_embeddings else 2)  # logits as far apart as a trained model's
    return mllm


def gradients(mllm: MLLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    mllm.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in mllm.named_parameters() if p.grad is not None}


def with_whole_logits(mllm: MLLM, batch: Batch, *, z_loss_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each trained position, and the z loss times its weight, summed."""
    trained = batch.targets_BT != IGNORED
    logits = mllm.decoder.logits(mllm.hidden(batch))[trained].float()
    losses = F.cross_entropy(logits, batch.targets_BT[trained], reduction="none")
    return losses, z_loss_weight * logits.exp().sum(-1).log().square().sum()


@pytest.mark.parametrize("frozen", ["", "vision", "decoder", "decoder.output", "decoder.blocks"])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("z_loss_weight", "softcap"), [(0.0, None), (0.01, None), (0.01, 3.0)])
def test_loss_and_gradients_are_those_of_whole_logits(tie_embeddings, z_loss_weight, softcap, frozen, monkeypatch):
    mllm, batch = model(tie_embeddings=tie_embeddings, softcap=softcap), packed_batch()
    for name, parameter in mllm.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    losses, z = with_whole_logits(mllm, batch, z_loss_weight=z_loss_weight)
    expected = gradients(mllm, (losses.sum() + z) / len(losses))
    objective = NextToken(mllm, ["one", "two"], z_loss_weight=z_loss_weight)
    for at_once in CHUNKS:
        monkeypatch.setitem(next_token.LOGITS, "cpu", at_once)
        loss = objective.loss(batch)
        assert loss.weight == len(losses) == objective.weight(batch)
        torch.testing.assert_close(loss.total, losses.sum())
        minimised = loss.scaled(weight=loss.weight, sequences=3)
        torch.testing.assert_close(minimised, (losses.sum() + z) / len(losses))
        torch.testing.assert_close(gradients(mllm, minimised), expected, rtol=1e-4, atol=1e-6)
        metrics = loss.detach().metrics(["one", "two"])
        source = batch.source_B[:, None].expand_as(batch.targets_BT)[batch.targets_BT != IGNORED]
        for number, name in enumerate(("one", "two")):
            assert metrics[f"tokens/{name}"] == int((source == number).sum())
            assert metrics[f"loss/{name}"] == pytest.approx(float(losses[source == number].detach().mean()))
        assert metrics.get("z_loss", 0) == pytest.approx(float(z.detach()) / len(losses))
        with torch.no_grad():
            torch.testing.assert_close(objective.loss(batch).total, loss.total.detach(), atol=0, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_two_ways_to_the_probabilities_agree(axis):
    logits = torch.randn(70, 50, generator=torch.Generator().manual_seed(0)) * 8
    ours, theirs = (way(logits.clone(), axis) for way in (log_sum_by_parts, log_sum_by_softmax))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, (logits.logsumexp(axis), logits.softmax(axis)), rtol=1e-6, atol=1e-6)


def test_loss_and_gradients_are_the_same_in_both_ways(monkeypatch):
    mllm, batch = model(tie_embeddings=False), packed_batch()
    objective, results = NextToken(mllm, ["one", "two"], z_loss_weight=0.01), []
    for way in (log_sum_by_parts, log_sum_by_softmax):
        monkeypatch.setattr(next_token, "log_sum_by_softmax", way)
        loss = objective.loss(batch)
        results.append((loss.total, loss.by_source, loss.z, gradients(mllm, loss.total + loss.z)))
    torch.testing.assert_close(results[0][:3], results[1][:3], rtol=1e-6, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in results[0][3].values())
    torch.testing.assert_close(results[0][3], results[1][3], rtol=0, atol=1e-6 * largest)


def test_parts_of_a_batch_add_up_to_it(monkeypatch):
    monkeypatch.setitem(next_token.LOGITS, "cpu", CHUNKS[1])
    mllm, batch = model(tie_embeddings=True), packed_batch()
    objective = NextToken(mllm, ["one", "two"], z_loss_weight=0.01)
    whole = objective.loss(batch)
    expected = gradients(mllm, whole.scaled(weight=whole.weight, sequences=3))
    mllm.zero_grad(set_to_none=True)
    parts, first = [], 0
    for row in range(3):
        part = batch.map(lambda tensor: tensor)
        images = int((batch.tokens_BT[row] == IMAGE).sum()) // small.IMAGE_TOKENS
        for name in ("tokens_BT", "targets_BT", "document_BT", "position_BT", "source_B"):
            setattr(part, name, getattr(batch, name)[row : row + 1])
        part.images_NCYX, part.images, first = batch.images_NCYX[first : first + images], images, first + images
        parts.append(objective.loss(part))
        parts[-1].scaled(weight=whole.weight, sequences=3).backward()
    torch.testing.assert_close(Loss.sum(parts).total, whole.total)
    added = {name: p.grad for name, p in mllm.named_parameters() if p.grad is not None}
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-6)


def test_positions_that_come_with_the_batch_are_not_looked_for():
    mllm, batch = model(tie_embeddings=True), packed_batch()
    objective = NextToken(mllm, ["one", "two"])
    searched = objective.loss(batch)
    batch.trained_R = trained_positions(batch.targets_BT)
    assert torch.equal(objective.loss(batch).total, searched.total)
    batch.trained_R = batch.trained_R[:5]
    assert objective.loss(batch).weight == 5


def test_no_trained_position_is_no_loss_and_no_gradient():
    mllm, batch = model(tie_embeddings=False), packed_batch()
    batch.targets_BT = torch.full_like(batch.targets_BT, IGNORED)
    loss = NextToken(mllm, ["one", "two"], z_loss_weight=0.01).loss(batch)
    assert float(loss.total) == float(loss.z) == loss.weight == 0
    assert not any(grad.any() for grad in gradients(mllm, loss.scaled(weight=0, sequences=3)).values())


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_low_precision_is_near_and_no_further_off_in_chunks(tie_embeddings, monkeypatch):
    """bfloat16 has 8 bits: gradients are compared to 2 % of the largest."""
    mllm, batch = model(tie_embeddings=tie_embeddings), packed_batch()
    losses, _ = with_whole_logits(mllm, batch, z_loss_weight=0)
    expected, low_mllm = gradients(mllm, losses.sum()), copy.deepcopy(mllm).bfloat16()
    for at_once in CHUNKS:
        monkeypatch.setitem(next_token.LOGITS, "cpu", at_once)
        loss = NextToken(low_mllm, ["one", "two"]).loss(batch)
        assert loss.total.dtype == loss.by_source.dtype == torch.float32
        torch.testing.assert_close(loss.total, losses.sum(), rtol=5e-3, atol=0)
        low = gradients(low_mllm, loss.total)[output_name(tie_embeddings)].float()
        torch.testing.assert_close(
            low, expected[output_name(tie_embeddings)], rtol=0, atol=0.02 * float(low.abs().max())
        )


def output_name(tie_embeddings: bool) -> str:
    return "decoder.embedding.weight" if tie_embeddings else "decoder.output.weight"


def test_infinite_logits_are_no_finite_loss():
    mllm = model(tie_embeddings=False)
    hidden = torch.ones(5, 32)
    hidden[2] = torch.inf
    targets, positions = torch.arange(5), torch.tensor([0, 1, 2, 4])
    loss = cross_entropy(mllm, hidden, targets=targets, positions=positions, at_once=100)
    assert not loss.total.isfinite()
    assert loss.losses.isfinite().tolist() == [True, True, False, True]


def test_a_detached_loss_keeps_no_graph():
    losses = torch.ones(2, requires_grad=True) * 2
    loss = Loss(losses.sum(), 2, losses, torch.ones(2), z=losses.sum()).detach()
    assert not any(part is not None and part.requires_grad for part in (loss.total, loss.by_source, loss.z))


DOCUMENTS = [document for row in small.ROWS for document in row]
WEIGHTS = {"token": lambda count: 1.0, "sample": lambda count: 1 / count, "sqrt": lambda count: count**-0.5}


def trained_batch(rows: list[list[int]]) -> Batch:
    """Documents by their numbers, packed in rows. Tokens at odd positions are trained, but for those of document 0."""
    batch = small.pack([[DOCUMENTS[number] for number in row] for row in rows])
    trained = (batch.position_BT % 2 == 1) & (batch.document_BT > 0) & (batch.tokens_BT != IMAGE)
    for number, row in enumerate(rows):
        if 0 in row:
            trained[number] &= batch.document_BT[number] != row.index(0) + 1
    batch.targets_BT = torch.where(trained, batch.tokens_BT, IGNORED)
    return batch


@pytest.mark.parametrize("weighting", WEIGHTS)
@settings(max_examples=8)
@given(order=st.permutations(range(len(DOCUMENTS))), rows=st.integers(1, 5), micro_batches=st.integers(1, 3))
def test_no_packing_and_no_accumulation_changes_the_weighted_loss(weighting, order, rows, micro_batches):
    """The step's loss and gradient are those of each document alone, its tokens weighted by their number."""
    mllm = model(tie_embeddings=False)
    objective = NextToken(mllm, ["one"], z_loss_weight=0.01, loss_weighting=weighting)
    minimised, weight = torch.zeros(()), 0.0
    for number in range(len(DOCUMENTS)):
        losses, z = with_whole_logits(mllm, trained_batch([[number]]), z_loss_weight=0.01)
        if len(losses):
            minimised = minimised + WEIGHTS[weighting](len(losses)) * (losses.sum() + z)
            weight += WEIGHTS[weighting](len(losses)) * len(losses)
    expected = gradients(mllm, minimised / weight)
    packed = [order[first::rows] for first in range(rows)]
    batches = [trained_batch(packed[first::micro_batches]) for first in range(min(rows, micro_batches))]
    total = sum(objective.weight(batch) for batch in batches)
    assert total == pytest.approx(weight, rel=1e-6)
    parts = [objective.loss(batch) for batch in batches]
    assert float(Loss.sum(parts).weight) == pytest.approx(weight, rel=1e-6)
    step = torch.stack([part.scaled(weight=total, sequences=rows) for part in parts]).sum()
    torch.testing.assert_close(step, minimised / weight, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(mllm, step), expected, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        again = Loss.sum([objective.loss(batch) for batch in batches])
    torch.testing.assert_close(again.total, Loss.sum(parts).total.detach(), rtol=1e-6, atol=0)


def test_the_means_of_sources_are_over_tokens_whatever_documents_count():
    mllm, batch = model(tie_embeddings=True), packed_batch()
    plain, weighted = (
        NextToken(mllm, ["one", "two"], loss_weighting=each).loss(batch).metrics(["one", "two"])
        for each in ("token", "sample")
    )
    assert {name: value for name, value in plain.items() if name != "loss"} == {
        name: value for name, value in weighted.items() if name != "loss"
    }
    assert plain["loss"] != pytest.approx(weighted["loss"], rel=1e-4)
