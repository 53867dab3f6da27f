"""Experts: three implementations of one product, router losses, capacity, upcycling, training."""

import pytest
import small
import torch
import torch.nn.functional as F

from mm1.config.base import ConfigError
from mm1.config.model import DecoderConfig, SparseConfig
from mm1.config.run import RunConfig, override
from mm1.document import Batch
from mm1.model import moe
from mm1.model.cache import Cache
from mm1.model.decoder import Decoder
from mm1.model.layers import initialise
from mm1.model.mllm import MLLM
from mm1.model.moe import Routing, SparseFeedForward, upcycled
from mm1.objectives.contrastive import Contrastive
from mm1.objectives.next_token import NextToken

SEQUENCES, LENGTH, WIDTH = 3, 20, 16


def layer(seed: int = 0, **sparse) -> SparseFeedForward:
    settings = SparseConfig(**{"experts": 8} | sparse)
    built = SparseFeedForward(DecoderConfig(width=WIDTH, mlp_width=24, sparse=settings), scale=0.5)
    initialise(built, seed)
    return built


def inputs(seed: int = 1, *, sequences: int = SEQUENCES, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(sequences, length, WIDTH, generator=torch.Generator().manual_seed(seed))


REAL = torch.ones(SEQUENCES, LENGTH, dtype=torch.bool)


def one_expert_at_a_time(built: SparseFeedForward, x_BTD: torch.Tensor) -> torch.Tensor:
    """From the formula: every expert on every token, weighted by the router, mostly with zero."""
    probability_BTJ = (x_BTD @ built.router.weight.T).softmax(-1)
    second_BT1 = probability_BTJ.sort(-1, descending=True).values[..., 1:2]
    share_BTJ = torch.where(probability_BTJ >= second_BT1, probability_BTJ, 0)
    share_BTJ = share_BTJ / share_BTJ.sum(-1, keepdim=True)
    out_BTD = torch.zeros_like(x_BTD)
    experts = built.experts
    for j in range(share_BTJ.shape[-1]):
        hidden = F.silu(x_BTD @ experts.gate.weight[j].T) * (x_BTD @ experts.up.weight[j].T)
        out_BTD = out_BTD + share_BTJ[..., j, None] * (hidden @ experts.down.weight[j].T)
    return out_BTD


def outcome(forward, built: SparseFeedForward) -> list[torch.Tensor]:
    """Output, gradient of the input, gradients of all weights."""
    built.zero_grad()
    x_BTD = inputs().requires_grad_()
    y_BTD = forward(x_BTD)
    (y_BTD * torch.linspace(-1, 2, y_BTD.numel()).view_as(y_BTD)).sum().backward()
    return [y_BTD.detach(), x_BTD.grad, *(parameter.grad for parameter in built.parameters())]


@pytest.mark.parametrize("experts", [2, 8, 64])
def test_grouped_equals_looped_equals_one_expert_at_a_time(experts, monkeypatch):
    built = layer(experts=experts)
    grouped = outcome(lambda x: built(x, None)[0], built)
    monkeypatch.setattr(moe, "grouped", moe.looped)
    looped = outcome(lambda x: built(x, None)[0], built)
    single = outcome(lambda x: one_expert_at_a_time(built, x), built)
    assert all(float(x.abs().max()) > 0.01 for x in single)
    for ours, theirs, formula in zip(grouped, looped, single, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours, formula, atol=1e-5, rtol=1e-5)


def test_ample_capacity_equals_none_gradients_too():
    free, limited = layer(), layer(capacity=8.0)
    pairs = zip(*(outcome(lambda x, b=b: b(x, REAL)[0], b) for b in (free, limited)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_full_expert_drops_the_last_and_second_choices_first():
    built = layer(experts=4, capacity=1.0)  # each expert takes five of 20 tokens
    x_BTD = inputs()
    choice = built._choose(F.linear(x_BTD, built.router.weight), REAL)
    for sequence in range(SEQUENCES):
        free = [5] * 4
        for rank in range(2):
            for position in range(LENGTH):
                expert = int(choice.expert_BTZ[sequence, position, rank])
                assert bool(choice.kept_BTZ[sequence, position, rank]) == (free[expert] > 0)
                free[expert] -= 1
    dropped = 1 - choice.kept_BTZ.float().mean()
    assert 0.4 < float(dropped) < 0.9
    y_BTD, routing = built(x_BTD, REAL)
    assert Routing.of([routing], built.sparse, sequences=SEQUENCES).metrics()["experts/dropped"] == pytest.approx(
        float(dropped)
    )
    gone_BT = ~choice.kept_BTZ.any(-1)
    assert gone_BT.any()
    assert (y_BTD[gone_BT] == 0).all()
    share_BTJ = torch.zeros(SEQUENCES, LENGTH, 4).scatter(2, choice.expert_BTZ, choice.weight_BTZ * choice.kept_BTZ)
    e = built.experts
    hidden = F.silu(torch.einsum("btd,jfd->btjf", x_BTD, e.gate.weight))
    hidden = hidden * torch.einsum("btd,jfd->btjf", x_BTD, e.up.weight)
    expected = torch.einsum("btjf,jdf,btj->btd", hidden, e.down.weight, share_BTJ)
    torch.testing.assert_close(y_BTD, expected, atol=1e-5, rtol=1e-5)


def test_padding_takes_no_expert_and_counts_in_no_metric():
    built = layer(experts=4, capacity=1.0)
    real = REAL.clone()
    real[:, 12:] = False
    one, other = inputs(), inputs()
    other[:, 12:] = 7 * inputs(5)[:, 12:]
    (left, figures), (right, same) = built(one, real), built(other, real)
    torch.testing.assert_close(left[:, :12], right[:, :12])
    for ours, theirs in zip(figures, same, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_router_losses_are_those_of_the_formula():
    built, x_BTD = layer(), inputs()
    logits_BTJ = x_BTD @ built.router.weight.T
    density_BJ = F.one_hot(logits_BTJ.argmax(-1), 8).float().mean(1)
    proxy_BJ = logits_BTJ.softmax(-1).mean(1)
    balance = (density_BJ * proxy_BJ).mean(1) * 8**2  # AXLearn: a mean over experts, times experts squared
    z = logits_BTJ.exp().sum(-1).log().square().mean(1)
    figures = built(x_BTD, REAL)[1]
    torch.testing.assert_close(figures.balance, balance.sum())
    torch.testing.assert_close(figures.z, z.sum())
    torch.testing.assert_close(figures.load_J.sum(), torch.tensor(float(SEQUENCES)))


def test_even_work_has_balance_one_and_a_single_busy_expert_as_many_as_there_are():
    built = layer(experts=4)
    x_BTD = torch.eye(WIDTH)[torch.arange(LENGTH) % 4].expand(SEQUENCES, -1, -1)
    with torch.no_grad():
        built.router.weight.zero_()[:, :4] = 50 * torch.eye(4)
    even = Routing.of([built(x_BTD, REAL)[1]], built.sparse, sequences=SEQUENCES).metrics()
    assert even["experts/balance"] == pytest.approx(1.0, abs=1e-3)
    assert even["experts/idle"] == 0
    single = Routing.of([built(x_BTD[:, :1].expand_as(x_BTD), REAL)[1]], built.sparse, sequences=SEQUENCES).metrics()
    assert single["experts/balance"] == pytest.approx(4.0, abs=1e-3)
    assert single["experts/busiest"] == pytest.approx(2.0)  # always one of the two choices
    assert single["experts/idle"] == 0.5


def test_the_router_computes_in_fp32_among_bf16():
    built, x_BTD = layer(experts=64).bfloat16(), inputs().bfloat16()
    with torch.no_grad():
        rounded_BTD, routing = built(x_BTD, REAL)
        exact_BTD, exact = built.float()(x_BTD.float(), REAL)  # of the same rounded weights
    assert rounded_BTD.dtype == torch.bfloat16
    for ours, theirs in zip(routing, exact, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(rounded_BTD.float(), exact_BTD)
    torch.testing.assert_close(rounded_BTD.float(), exact_BTD, atol=0.05, rtol=0.05)


def train_unbalanced(**sparse) -> list[dict[str, float]]:
    """The log of a layer of 64 experts whose router starts by preferring four of them."""
    built = layer(experts=64, **sparse)
    with torch.no_grad():
        built.router.weight[:4] *= 4
    x_BTD, real_BT = inputs(sequences=4, length=256), torch.ones(4, 256, dtype=torch.bool)
    optimizer, log = torch.optim.AdamW(built.parameters(), lr=1e-2), []
    for _ in range(120):
        y_BTD, figures = built(x_BTD, real_BT)
        routing = Routing.of([figures], built.sparse, sequences=4)
        log.append(routing.metrics())
        (F.mse_loss(y_BTD, x_BTD.flip(-1).tanh()) + routing.penalty / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
    return log


def test_a_64_expert_layers_balance_loss_falls_in_training():
    balanced, left = train_unbalanced(load_balance_weight=0.01), train_unbalanced()
    assert balanced[0]["experts/balance"] > 5
    assert balanced[-1]["experts/balance"] < 1.3  # 1 is even
    assert balanced[-1]["experts/idle"] == 0
    assert left[-1]["experts/balance"] > 2  # without the loss it stays uneven


def test_the_z_loss_keeps_logits_small():
    assert train_unbalanced(router_z_weight=0.01)[-1]["experts/z"] < 0.7 * train_unbalanced()[-1]["experts/z"]


def sparse_config(**sparse):
    config = small.config()
    config.decoder.sparse = SparseConfig(**{"experts": 4, "every": 2} | sparse)
    return config


def test_every_second_layer_is_sparse():
    config = sparse_config().decoder.model_copy(update={"layers": 5})
    kinds = [type(block.feed_forward).__name__ for block in Decoder(config).blocks]
    assert kinds == ["SwiGLU", "SparseFeedForward", "SwiGLU", "SparseFeedForward", "SwiGLU"]


def trained(rows) -> Batch:
    batch = small.pack(rows, length=48)
    batch.targets_BT = torch.where(batch.document_BT > 0, batch.tokens_BT.roll(-1, 1), -100)
    return batch


def step_gradients(model: MLLM, batches: list) -> dict[str, torch.Tensor]:
    model.zero_grad()
    objective = NextToken(model, ["all"])
    weight = sum(objective.weight(batch) for batch in batches)
    sequences = sum(len(batch.tokens_BT) for batch in batches)
    for batch in batches:
        objective.loss(batch).scaled(weight=weight, sequences=sequences).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_router_losses_reach_the_step_and_micro_batches_do_not_change_them():
    model = MLLM(sparse_config(load_balance_weight=0.5, router_z_weight=0.5))
    model.initialise(0)
    whole = step_gradients(model, [trained(small.ROWS)])
    parts = step_gradients(model, [trained([row]) for row in small.ROWS])
    twice = step_gradients(model, [trained(small.ROWS), trained(small.ROWS)])
    model.decoder.config.sparse.load_balance_weight = model.decoder.config.sparse.router_z_weight = 0.0
    model.config.decoder.sparse.load_balance_weight = model.config.decoder.sparse.router_z_weight = 0.0
    without = step_gradients(model, [trained(small.ROWS)])
    router = "decoder.blocks.1.feed_forward.router.weight"
    assert float((whole[router] - without[router]).abs().max()) > 0.01
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, parts[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient, twice[name], atol=1e-5, rtol=1e-4)  # a mean over sequences, as the loss is


@pytest.mark.parametrize("every", [1, 2])
def test_an_upcycled_models_first_loss_is_the_dense_ones(every):
    dense, sparse = small.model(seed=3), MLLM(sparse_config(every=every))
    sparse.initialise(4)
    routers = {name: x.clone() for name, x in sparse.state_dict().items() if ".router." in name}
    sparse.load_state_dict(upcycled(dense.state_dict(), sparse.state_dict()))
    batch = trained(small.ROWS)
    ours, theirs = (NextToken(m, ["all"]).loss(batch).total for m in (sparse, dense))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-6)
    assert all(torch.equal(sparse.state_dict()[name], x) for name, x in routers.items())


def test_upcycling_another_shape_is_refused_by_name():
    dense, sparse = small.model(), MLLM(sparse_config())
    sparse.initialise(0)
    state = dense.state_dict()
    state["decoder.blocks.1.feed_forward.up.weight"] = torch.zeros(7, 32)
    with pytest.raises(ValueError, match=r"blocks\.1\.feed_forward\.up\.weight is \(7, 32\)"):
        upcycled(state, sparse.state_dict())


def test_a_cached_sparse_decoder_says_what_an_uncached_one_does():
    decoder = Decoder(sparse_config(every=1).decoder)
    initialise(decoder, 2)
    tokens_BT = torch.randint(0, 64, (2, 12))
    position_BT = torch.arange(12).expand(2, -1)
    with torch.no_grad():
        whole_BTD = decoder(decoder.embed(tokens_BT), position_BT)
        cache = Cache.empty(decoder.config, rows=2, length=12, like=whole_BTD)
        for t in range(12):
            one = slice(t, t + 1)
            x_B1D = decoder.embed(tokens_BT[:, one])
            y_B1D = decoder(x_B1D, position_BT[:, one], cache=cache.view(slice(0, 2), t + 1))
            torch.testing.assert_close(y_B1D, whole_BTD[:, one], atol=1e-5, rtol=1e-5)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="only 1 experts"):
        override(RunConfig(), ["model.decoder.sparse.experts=1"])
    with pytest.raises(ConfigError, match="no router losses"):
        Contrastive.check(override(RunConfig(), ["model.decoder.sparse.experts=4", "objective=contrastive"]))
    with pytest.raises(ConfigError, match="no z loss"):
        Contrastive.check(override(RunConfig(), ["z_loss_weight=0.1", "objective=contrastive"]))
