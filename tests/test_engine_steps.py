"""Requests that come and go at any time: each gets what it gets alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import IMAGE, doc
from test_engine import joined
from test_generate import MODEL, prompt

from mm1.generate import admission, engine, prefix_cache, prefix_index
from mm1.generate.engine import Engine
from mm1.generate.prompt import Prompt
from mm1.generate.request import EngineRequest, Event
from mm1.generate.sampling import Choices, Decoding


@pytest.fixture(autouse=True)
def sharing_of_few_positions(monkeypatch):
    for module in (admission, engine, prefix_cache, prefix_index):
        monkeypatch.setattr(module, "MIN_SHARED", 3)


SHOTS = [doc("image", 5, seed=1), doc(7, "image", 2, seed=2), doc(4, seed=3)]
"""Prompts are made of these, so that many of them begin alike."""

PROMPTS = st.builds(
    lambda path, seed: joined(*(SHOTS[number] for number in path), doc(1 + seed % 4, seed=10 + seed)),
    st.lists(st.integers(0, 2), max_size=3),
    st.integers(0, 5),
)
DECODINGS = st.builds(
    Decoding,
    max_tokens=st.integers(0, 12),
    stop_tokens=st.sampled_from([frozenset(), frozenset(range(4, 20))]),
    stopped=st.sampled_from([None, lambda tokens: tokens[-1] > 55]),
    temperature=st.sampled_from([0.0, 0.0, 1.2]),
    top_k=st.sampled_from([0, 5]),
    seed=st.integers(0, 3),
    constraint=st.sampled_from([None, None, None, Choices([[7, 8, 9], [7, 8, 4], [10], [10, 11]])]),
)
CONTINUATIONS = st.lists(st.sampled_from([token for token in range(64) if token != IMAGE]), min_size=1, max_size=6)
WRITTEN = st.builds(EngineRequest, PROMPTS, DECODINGS, stream=st.integers(0, 2))
SCORED = st.builds(lambda one, continuation: EngineRequest(one, continuation=continuation), PROMPTS, CONTINUATIONS)
WITH_SHOTS = st.builds(
    lambda length, seed, decoding: EngineRequest(joined(*SHOTS, doc(length, seed=seed)), decoding),
    *(st.integers(1, 4), st.integers(10, 99), DECODINGS),
)
STEP = st.just("step")
SUBMIT = st.lists(st.one_of(WRITTEN, WRITTEN, SCORED), min_size=1, max_size=4)
ABORT = st.integers(0, 30)  # the number of a request, whether it exists, runs or has ended
ACTIONS = st.tuples(
    st.one_of(st.just([]), st.lists(WITH_SHOTS, min_size=3, max_size=6)),  # a first batch has a shared prefix
    st.lists(st.one_of(STEP, STEP, SUBMIT, ABORT), min_size=1, max_size=25),
).map(lambda parts: [parts[0], *parts[1]])


def alone(request: EngineRequest) -> Event:
    """The last event of a request that a new engine has to itself, with all its tokens."""
    ours, events = Engine(MODEL, rows=1), []
    ours.submit(request)
    while ours.busy:
        events += ours.step()
    return Event(
        0, tuple(token for event in events for token in event.tokens), events[-1].reason, score=events[-1].score
    )


@settings(max_examples=60)
@given(ACTIONS, st.integers(1, 4))
def test_each_request_gets_what_it_gets_alone(actions, rows):
    check_all_get_what_they_get_alone(Engine(MODEL, rows=rows), actions)


def check_all_get_what_they_get_alone(ours: Engine, actions) -> None:
    requests: dict[int, EngineRequest] = {}
    aborted: set[int] = set()
    events: dict[int, list[Event]] = {}

    def step() -> None:
        for event in ours.step():
            assert not events[event.request_id] or events[event.request_id][-1].reason is None, "an event after the end"
            events[event.request_id].append(event)

    for action in actions:
        if action == "step":
            step()
        elif isinstance(action, int):
            if action in requests:
                aborted |= {action} if not events[action] or events[action][-1].reason is None else set()
                ours.abort(action)
        else:
            for request in action:
                requests[(number := ours.submit(request))] = request
                events[number] = []
    while ours.busy:
        step()
    for number, request in requests.items():
        tokens = tuple(token for event in events[number] for token in event.tokens)
        last, expected = events[number][-1], alone(request)
        if last.reason == "aborted":
            assert number in aborted
            assert tokens == expected.tokens[: len(tokens)]
            continue
        assert (tokens, last.reason) == (expected.tokens, expected.reason)
        if request.continuation is None:
            assert last.completion is not None
            assert (tuple(last.completion.tokens), last.completion.reason) == (tokens, last.reason)
        else:
            assert last.score is not None
            assert expected.score is not None
            assert last.score.log_probability == pytest.approx(expected.score.log_probability, abs=1e-4)
            assert (last.score.tokens, last.score.greedy) == (expected.score.tokens, expected.score.greedy)
    assert ours.prefix_cache is None or ours.prefix_cache.free == ours.prefix_cache.rows


def writing(one: Prompt, tokens: int = 9) -> EngineRequest:
    return EngineRequest(one, Decoding(max_tokens=tokens))


def test_an_aborted_request_frees_its_row_at_once():
    ours = Engine(MODEL, rows=1)
    first, second = (ours.submit(writing(prompt(doc(length, seed=length)))) for length in (4, 5))
    ours.step()
    assert ours.prefix_cache is not None
    assert ours.prefix_cache.owners == [first]
    ours.abort(first)
    assert ours.prefix_cache.free == 1
    ended, begun = sorted(ours.step(), key=lambda event: event.request_id)
    assert (ended.request_id, ended.reason) == (first, "aborted")
    assert (begun.request_id, begun.reason, len(begun.tokens)) == (second, None, 1)
    ours.abort(first)  # has ended: nothing happens
    ours.abort(second)
    assert [event.reason for event in ours.step()] == ["aborted"]
    assert not ours.busy


def test_a_longer_request_joins_while_others_run():
    """The cache grows; the row in use keeps its keys, and nothing is computed again."""
    short, long = writing(prompt(doc("image", 3, seed=1))), writing(prompt(doc(40, seed=2)))
    ours = Engine(MODEL, rows=2)
    ours.submit(short)
    ours.step()
    assert ours.prefix_cache is not None
    before = ours.prefix_cache
    assert before.positions == len(short.prompt.tokens) + 9
    ours.submit(long)
    assert {event.request_id for event in ours.step()} == {1}
    assert ours.prefix_cache is before
    assert before.positions == 49
    assert before.computed == len(short.prompt.tokens) + 40


def test_a_request_without_the_shared_prefix_joins_while_others_run():
    """The rows then hold the prefix themselves: all of it, or what the newcomer doesn't share."""
    shots = doc("image", 5, "image", 3, seed=1)
    ours = Engine(MODEL, rows=4)
    for number in range(3):
        ours.submit(writing(joined(shots, doc(2, seed=5 + number))))
    ours.step()
    assert ours.prefix_cache is not None
    assert ours.prefilled == ours.prefix_cache.prefix_length == len(shots.tokens)
    ours.submit(writing(joined(doc("image", 5, "image", seed=1), doc(9, seed=9))))
    ours.step()
    assert ours.prefix_cache.prefix_length == 13  # as much of the shots as it begins with
    ours.submit(writing(prompt(doc(6, seed=20))))
    before = ours.prefix_cache.computed
    while ours.busy:
        ours.step()
    assert ours.prefix_cache.prefix_length == 0
    # a row remembers the shots, though they were computed as a prefix
    ours.submit(writing(joined(shots, doc(2, seed=30)), 1))
    before = ours.prefix_cache.computed
    ours.step()
    assert ours.prefix_cache.computed - before == 2


def test_after_an_error_the_engine_is_idle_and_works(monkeypatch):
    ours, question = Engine(MODEL, rows=2), writing(prompt(doc("image", 3, seed=1)))
    ours.submit(question)
    ours.step()
    with monkeypatch.context() as patch:
        patch.setattr(MODEL.decoder, "logits", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ours.step()
    assert not ours.busy
    (again,) = ours.generate([question.prompt], question.decoding)
    assert tuple(again.tokens) == alone(question).tokens


def test_a_bad_prompt_leaves_the_engine_idle():
    ours = Engine(MODEL, rows=2)
    with pytest.raises(ValueError, match="image tokens"):
        ours.generate([prompt(doc(3)), Prompt([IMAGE])], Decoding())
    assert not ours.busy
    assert len(ours.generate([prompt(doc(3))], Decoding(max_tokens=2))[0].tokens) == 2
