"""The decoding step of GPUs, run here without recording: few shapes, inputs in fixed buffers, the same tokens."""

import pytest
import small
import test_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from small import doc
from test_engine import joined
from test_engine_steps import ACTIONS, check_all_get_what_they_get_alone, sharing_of_few_positions
from test_generate import MODEL, prompt

from mm1.generate import decode_step
from mm1.generate.decode_step import BucketedStep
from mm1.generate.engine import Engine
from mm1.generate.request import EngineRequest
from mm1.generate.sampling import Decoding
from mm1.model.mllm import MLLM

__all__ = ["sharing_of_few_positions"]  # a fixture for every test here


@pytest.fixture(autouse=True)
def few_slots(monkeypatch):
    """Several sizes, though prompts are short."""
    monkeypatch.setattr(decode_step, "SLOTS", 8)


@settings(max_examples=60)
@given(ACTIONS, st.integers(1, 6))
def test_requests_that_join_leave_and_abort_get_what_the_plain_step_gives(actions, rows):
    check_all_get_what_they_get_alone(Engine(MODEL, rows=rows, decode=BucketedStep(MODEL)), actions)


@pytest.mark.parametrize("kind", test_engine.KINDS)
def test_every_decoder_gives_the_tokens_of_the_plain_step(kind):
    config = small.config()
    config.decoder = config.decoder.model_copy(update=test_engine.KINDS[kind])
    model = MLLM(config)
    model.initialise(1)
    shots = doc("image", 5, "image", 3, seed=1)
    prompts = [joined(shots, doc("image", number, seed=10 + number)) for number in range(1, 6)]
    plain, ours = Engine(model, rows=3), Engine(model, rows=3, decode=BucketedStep(model))
    decoding = Decoding(max_tokens=20)
    written = [[one.tokens for one in engine.generate(prompts, decoding)] for engine in (plain, ours)]
    assert written[0] == written[1]


def test_shapes_are_few_and_their_buffers_stay():
    """A graph needs both."""
    step = BucketedStep(MODEL)
    ours = Engine(MODEL, rows=5, decode=step)
    decodings = [Decoding(max_tokens=tokens) for tokens in (4, 9, 17, 30, 44)]
    prompts = [prompt(doc(3 + number, seed=number)) for number in range(5)]
    buffers: dict = {}
    calls = 0
    for one, decoding in zip(prompts, decodings, strict=True):
        ours.submit(EngineRequest(one, decoding))
    while ours.busy:
        ours.step()
        for shape, one in step._passes.items():
            address = one._inputs_2BT.data_ptr()
            assert buffers.setdefault(shape, address) == address
        calls = sum(one._uses for one in step._passes.values())
    assert calls > 2 * len(buffers)
    assert {shape.rows for shape in buffers} <= {1, 2, 4, 5}
    assert {shape.tokens for shape in buffers} <= {1, 2, 4, 8}
    assert {shape.slots for shape in buffers} <= {*range(8, 51, 8), 7 + 44}  # the last: all of the cache


def test_graphs_of_another_cache_get_other_memory():
    """That of graphs that are gone is gone: recording into it is an internal error of torch 2.11 on an H200."""
    step = BucketedStep(MODEL)
    step._pool = object()
    Engine(MODEL, rows=2, decode=step).generate([prompt(doc(3, seed=1))], Decoding(max_tokens=2))
    assert step._pool is None


def test_what_free_rows_remember_is_not_overwritten():
    """A step computes more rows than are in use; in these it may write only behind what they hold."""
    ours = Engine(MODEL, rows=4, decode=BucketedStep(MODEL))
    remembered = prompt(doc(20, seed=1))
    ours.generate([remembered], Decoding(max_tokens=1))
    ours.generate([prompt(doc(3, seed=seed)) for seed in (50, 51, 52)], Decoding(max_tokens=12))  # beside the free row
    assert ours.prefix_cache is not None
    before = ours.prefix_cache.computed
    ((again,), (new,)) = (engine.score([(remembered, [7, 8, 9])]) for engine in (ours, Engine(MODEL)))
    assert ours.prefix_cache.computed - before <= 4  # the rest is still there: even the last position, or all but it
    assert again.log_probability == pytest.approx(new.log_probability, abs=1e-4)
