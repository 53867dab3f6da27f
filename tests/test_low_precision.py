"""A model loaded in bf16: near the one in fp32 wherever it is used, and recorded as what it is."""

import copy
from pathlib import Path

import pytest
import small
import test_engine
import torch
from small import IMAGE, doc
from test_engine import joined
from test_evaluate import mm1
from test_generate import prompt

from mm1.checkpoint import load_for_use
from mm1.eval.models import open_model
from mm1.eval.results import read_results
from mm1.generate.beam import BeamSearch, search
from mm1.generate.engine import Engine
from mm1.generate.prompt import Features, Prompt
from mm1.generate.sampling import Decoding
from mm1.model.mllm import MLLM
from mm1.train.run import train_run

NEAR = 0.03
"""How far logits may be off, of the distance from the smallest to the largest: each rounding is 0.4 % of a value."""


@pytest.fixture(scope="module")
def run(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = small.run(stores)
    settings.steps = 2
    return train_run(settings, tmp_path_factory.mktemp("runs") / "small")


def both(kind: str) -> tuple[MLLM, MLLM]:
    """The same model in fp32 and in bf16."""
    config = small.config()
    config.decoder = config.decoder.model_copy(update=test_engine.KINDS[kind])
    model = MLLM(config).eval()
    model.initialise(1)
    return model, copy.deepcopy(model).bfloat16()


@torch.no_grad()
def last_logits(model: MLLM, one: Prompt, written: list[int]) -> torch.Tensor:
    """The logits [V] of a plain pass in the model's own precision."""
    tokens_1T = torch.tensor([[*one.tokens, *written]])
    x_1TD = model.embed(tokens_1T, Features(model).of(one.images))
    hidden_1TD = model.decoder(x_1TD, torch.arange(tokens_1T.shape[1])[None])
    logits_V = model.decoder.logits(hidden_1TD[0, -1]).float()
    logits_V[IMAGE] = -torch.inf
    return logits_V


@pytest.mark.parametrize("kind", [name for name in test_engine.KINDS if name != "experts"])
def test_every_token_that_bf16_writes_is_fp32s_unless_two_are_as_near_as_its_rounding(kind, monkeypatch):
    """If no logit is off by more than e, the largest one in bf16 is within 2 e of the largest in fp32."""
    monkeypatch.setattr("mm1.generate.engine.MIN_SHARED", 3)
    full, low = both(kind)
    shots = doc("image", 5, "image", 3, seed=1)
    prompts = [joined(shots, doc("image", number, seed=10 + number)) for number in range(1, 5)]
    ours = Engine(low, rows=2)
    clear = 0
    for one, completion in zip(prompts, ours.generate(prompts, Decoding(max_tokens=12)), strict=True):
        for step, token in enumerate(completion.tokens):
            logits_V = last_logits(full, one, completion.tokens[:step])
            allowed = logits_V[logits_V.isfinite()]
            most = NEAR * float(allowed.max() - allowed.min())
            assert float((last_logits(low, one, completion.tokens[:step]) - logits_V)[4:].abs().max()) < most
            assert float(logits_V[token]) >= float(allowed.max()) - 2 * most
            first, second = allowed.topk(2).values.tolist()
            clear += first - second > 2 * most
            assert token == int(logits_V.argmax()) or first - second <= 2 * most
    assert ours.prefilled  # in bf16 too, rows read the shared prefix
    assert clear


@pytest.mark.parametrize("kind", test_engine.KINDS)
def test_scores_and_features_are_near_those_of_fp32(kind):
    full, low = both(kind)
    pairs = [(joined(doc("image", 5, "image", seed=seed)), [7, 8, 9, 20]) for seed in range(4)]
    scores = [Engine(model, rows=2).score(pairs) for model in (full, low)]
    for ours, theirs in zip(*scores, strict=True):
        assert ours.log_probability == pytest.approx(theirs.log_probability, rel=0.02)
        assert ours.log_probability != theirs.log_probability
    ours, theirs = (Features(model).of(pairs[0][0].images) for model in (full, low))
    assert theirs.dtype == torch.bfloat16
    torch.testing.assert_close(theirs.float(), ours, rtol=0, atol=0.02 * float(ours.abs().max()))


def test_beams_search_in_bf16():
    _, low = both("grouped keys")
    completion = search(low, prompt(doc("image", 4, seed=2)), how=BeamSearch(Decoding(max_tokens=5), width=3))
    assert len(completion.tokens) == 5
    assert completion.log_probability < 0


def test_a_run_is_scored_and_asked_in_bf16_and_the_record_says_so(run, tmp_path, capsys):
    words = ("eval", run, "--tasks", "captions", "--shots", "1", "--limit", "4", "--to", tmp_path)
    mm1(*words)
    mm1(*words, "--precision", "bf16")
    (score,) = read_results(tmp_path / "eval").scores
    assert score.model_name.endswith(", bf16")
    mm1(*words, "--precision", "auto")  # this machine's: the answers of bf16 are not taken for its own
    (score,) = read_results(tmp_path / "eval").scores
    assert score.model_name.endswith(", bf16" if torch.cuda.is_available() else ", fp32")
    mm1("chat", run, "what is it", "--precision", "bf16", "--tokens", "2")
    assert capsys.readouterr().out.strip()
    model = load_for_use(run, precision="bf16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_precision_of_anothers_model_is_its_own():
    with pytest.raises(ValueError, match="--precision is for mm1's runs"):
        open_model("hf:somewhere", precision="bf16")
