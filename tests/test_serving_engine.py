"""The engine of a server: whatever comes, each request gets what it gets alone, in memory that doesn't grow."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import IMAGE, IMAGE_TOKENS, doc
from test_engine import joined
from test_engine_steps import ACTIONS, PROMPTS, check_all_get_what_they_get_alone
from test_generate import MODEL, logits_without_cache, prompt

from mm1.generate import admission, engine, prefix_cache, prefix_index, serving
from mm1.generate.prefix_index import block_keys
from mm1.generate.prompt import Features, Picture, Prompt
from mm1.generate.prompt_content import common_prefix, image_edges
from mm1.generate.request import ActiveRequest, EngineRequest, Event
from mm1.generate.sampling import Decoding
from mm1.generate.serving import ServingEngine, ServingSizes

POSITIONS = 80


@pytest.fixture(autouse=True)
def sharing_of_few_positions(monkeypatch):
    for module in (admission, engine, prefix_cache, prefix_index, serving):
        monkeypatch.setattr(module, "MIN_SHARED", 3)


def new(rows: int = 2, *, kept: int = 0, prefill: int = 5) -> ServingEngine:
    return ServingEngine(MODEL, ServingSizes(rows, POSITIONS, kept, prefill))


def all_events(ours: ServingEngine) -> list[Event]:
    events = []
    while ours.busy:
        events += ours.step()
    return events


@settings(max_examples=60)
@given(ACTIONS, st.integers(1, 4), st.integers(0, 2), st.integers(3, 20))
def test_each_request_gets_what_it_gets_alone(actions, rows, kept, prefill):
    ours = new(rows, kept=kept, prefill=prefill)
    keys = [x.data_ptr() for x in ours.prefix_cache.cache.keys]
    check_all_get_what_they_get_alone(ours, actions)
    assert [x.data_ptr() for x in ours.prefix_cache.cache.keys] == keys, "the cache was allocated anew"
    assert ours.running == 0


def test_a_long_prompt_comes_in_parts_while_others_write():
    ours = new(prefill=8)
    short, long = prompt(doc(4, seed=1)), joined(doc(9, "image", 20, "image", seed=2))
    first = ours.submit(EngineRequest(short, Decoding(max_tokens=20)))
    assert [event.request_id for event in ours.step()] == [first]
    second = ours.submit(EngineRequest(long, Decoding(max_tokens=2)))
    parts, pauses, computed = 0, [], ours.prefix_cache.computed
    for _ in range(20):
        events = ours.step()
        pauses.append(first not in {event.request_id for event in events})
        done = ours.prefix_cache.computed - computed
        assert done <= 8, "more positions than a pass may have"
        computed += done
        parts += any(event.request_id == second and not event.tokens for event in events)
        if any(event.request_id == second and event.tokens for event in events):
            break
    assert parts == len(long.tokens) // 8
    assert not any(one and other for one, other in pairwise(pauses)), "two passes without a token"


def test_rows_are_given_in_the_order_of_arrival():
    ours = new(rows=1)
    lengths = [30, 3, 12, 4]
    ids = [ours.submit(EngineRequest(prompt(doc(n, seed=n)), Decoding(max_tokens=2))) for n in lengths]
    assert ours.waiting == ids
    assert [event.request_id for event in all_events(ours) if event.reason] == ids


def test_what_was_computed_for_another_salt_is_not_used():
    shots = joined(doc("image", 9, seed=1))
    ours = new(rows=2, kept=1, prefill=50)

    def cached(salt: str) -> int:
        ours.submit(EngineRequest(shots, Decoding(max_tokens=1), salt=salt))
        return max(event.cached for event in all_events(ours))

    assert [cached("a"), cached("a"), cached("b"), cached("b"), cached("a")] == [0, 12, 0, 12, 12]


def test_requests_of_several_salts_at_once_share_only_with_their_own():
    shots = joined(doc("image", 9, seed=1))
    ours = new(rows=4, prefill=50)
    for salt in ("a", "b", "a", "b"):
        ours.submit(EngineRequest(shots, Decoding(max_tokens=1), salt=salt))
    cached = {event.request_id: event.cached for event in all_events(ours)}
    assert cached == {0: 0, 1: 0, 2: 12, 3: 12}


def test_rows_that_only_remember_keep_prompts_of_earlier_requests():
    shots, others = joined(doc("image", 9, seed=1)), [prompt(doc(5, seed=n)) for n in (3, 4)]
    for kept, expected in ((0, 0), (2, 12)):
        ours = new(rows=1, kept=kept, prefill=50)
        for one in (shots, *others, shots):
            ours.submit(EngineRequest(one, Decoding(max_tokens=1)))
            events = all_events(ours)
        assert events[0].cached == expected


@settings(max_examples=25)
@given(PROMPTS, st.integers(0, 3), st.integers(3, 30), st.booleans())
def test_a_prompts_tokens_have_the_log_probabilities_of_a_full_forward(one, alternatives, prefill, known):
    ours = new(prefill=prefill)
    if known:  # what rows hold already cannot be read from them
        ours.submit(EngineRequest(one, Decoding(max_tokens=1)))
        all_events(ours)
    ours.submit(EngineRequest(one, Decoding(max_tokens=2), prompt_alternatives=alternatives))
    (sampled,) = [event.prompt for event in all_events(ours) if event.prompt]
    expected_TV = logits_without_cache(one).log_softmax(-1)
    assert len(sampled) == len(one.tokens)
    assert sampled[0] is None
    for at in range(1, len(sampled)):
        token, got = one.tokens[at], sampled[at]
        if token == IMAGE:
            assert got is None
            continue
        assert got.token == token
        assert got.log_probability == pytest.approx(float(expected_TV[at - 1, token]), abs=1e-4)
        expected_TV[at - 1, IMAGE] = -torch.inf
        best = expected_TV[at - 1].topk(alternatives)
        assert [value for _, value in got.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_request_that_fits_no_row_is_refused():
    with pytest.raises(ValueError, match="needs 81 positions, and a row has 80"):
        new().submit(EngineRequest(prompt(doc(30, seed=1)), Decoding(max_tokens=51)))


def test_bias_and_penalties_change_the_logits_as_openai_says():
    one = prompt(doc(9, seed=3))
    expected_V = logits_without_cache(one)[-1]
    expected_V[IMAGE] = -torch.inf
    best = int(expected_V.argmax())

    def written(tokens: int = 1, **how) -> list[int]:
        ours = new()
        ours.submit(EngineRequest(one, Decoding(max_tokens=tokens, **how)))
        return [token for event in all_events(ours) for token in event.tokens]

    assert written() == [best]
    assert written(bias={best: -100.0}) == [int(expected_V.topk(2).indices[1])]
    assert written(bias={17: 100.0}) == [17]
    assert written(4, bias={17: 50.0, 18: 49.0}) == [17] * 4
    assert written(4, bias={17: 50.0, 18: 49.0}, presence_penalty=2.0) == [17, 18, 17, 17]
    assert written(4, bias={17: 60.0, 18: 50.0}, frequency_penalty=40.0)[:2] == [17, 18]
    sizes = ServingSizes(2, POSITIONS, 1)
    config = small.config().decoder
    expected = 3 * POSITIONS * config.layers * 2 * config.kv_heads * config.head_width * 4
    assert sizes.cache_bytes(MODEL) == expected


def lengths_with_whole_images(one: Prompt) -> set[int]:
    """Numbers of first positions that end inside no image."""
    return {n for n in range(len(one.tokens) + 1) if not list(one.tokens[:n]).count(IMAGE) % IMAGE_TOKENS}


@settings(max_examples=60)
@given(PROMPTS, PROMPTS, st.integers(3, 20), st.integers(1, 3))
def test_no_part_of_a_prompt_and_no_shared_beginning_ends_inside_an_image(first, second, prefill, steps):
    """The first request goes away in the middle, and what it left serves the second one."""
    ours = new(rows=1, prefill=prefill)
    left = ours.submit(EngineRequest(first, Decoding(max_tokens=2)))
    for _ in range(steps):
        ours.step()
        assert int(ours.prefix_cache._length[0]) in lengths_with_whole_images(first) | {len(first.tokens) + 1}
    ours.abort(left)
    ours.submit(EngineRequest(second, Decoding(max_tokens=1)))
    cached = max(event.cached for event in all_events(ours))
    assert cached in lengths_with_whole_images(second) | {len(second.tokens) - 1}


def test_a_picture_of_a_long_prompt_is_encoded_once_even_if_no_feature_is_kept():
    long, encoded = joined(doc(9, "image", 20, "image", 3, seed=2)), []
    images = [Picture(one.name, partial(counted, encoded, one)) for one in long.images]
    ours = ServingEngine(MODEL, ServingSizes(2, POSITIONS, 0, 6), features=Features(MODEL, memory=0))
    ours.submit(EngineRequest(Prompt(long.tokens, images), Decoding(max_tokens=2)))
    all_events(ours)
    assert encoded == [one.name for one in long.images]


def counted(names: list[str], one: Picture) -> torch.Tensor:
    names.append(one.name)
    return one.pixels()


def test_an_image_larger_than_a_part_is_computed_in_one_pass():
    ours = new(prefill=3)
    ours.submit(EngineRequest(joined(doc("image", "image", 5, seed=1)), Decoding(max_tokens=1)))
    computed = []
    while ours.busy:
        before = ours.prefix_cache.computed
        ours.step()
        computed.append(ours.prefix_cache.computed - before)
    assert computed == [IMAGE_TOKENS, IMAGE_TOKENS, 3, 2]


def test_features_of_two_tiles_that_cross_are_one_image():
    """Where rows of features alternate between tiles, only whole pictures are whole."""
    config = small.config()
    rows = [0, 1, 4, 5, 2, 3, 6, 7]  # two tiles of four features, row by row
    one = Prompt([5, *[IMAGE] * 8, 6, *[IMAGE] * 4, 7], features=np.array([*rows, 8, 9, 10, 11]))
    assert np.flatnonzero(image_edges(one, config)).tolist() == [0, 1, 9, 10, 14, 15]
    two = Prompt([5, *[IMAGE] * 8, 6], [None] * 2)
    assert np.flatnonzero(image_edges(two, config)).tolist() == [0, 1, 5, 9, 10]


def test_the_cache_has_the_bytes_that_its_sizes_say():
    ours, sizes = new(rows=3, kept=2), ServingSizes(3, POSITIONS, 2)
    cache = ours.prefix_cache.cache
    assert sum(x.nbytes for x in (*cache.keys, *cache.values)) == sizes.cache_bytes(MODEL)


@settings(max_examples=60)
@given(st.lists(st.tuples(PROMPTS, st.sampled_from(["", "a"]), st.integers(0, 3)), min_size=1, max_size=8), PROMPTS)
def test_a_prompt_finds_the_longest_beginning_that_a_row_of_its_salt_holds(requests, last):
    ours = new(rows=2, kept=2, prefill=50)
    for one, salt, steps in requests:  # some go away while they are computed or written
        number = ours.submit(EngineRequest(one, Decoding(max_tokens=3), salt=salt))
        for _ in range(steps):
            ours.step()
        if steps % 2:
            ours.abort(number)
    all_events(ours)
    cache = ours.prefix_cache
    for salt in ("", "a"):
        active = ActiveRequest(0, EngineRequest(last, salt=salt), MODEL.config)
        held = [
            common_prefix(active.known.content, cache._content[row, : cache._length[row]])
            for row in range(cache.rows)
            if cache._salt[row] == active.known.salt
        ]
        longest = max(held, default=0)
        assert cache.cached(active.known) == (longest if longest >= 3 else 0)


def test_keys_of_blocks_depend_on_all_before_them_and_on_the_salt():
    content = np.arange(30)
    keys = block_keys(content)
    assert len(keys) == 10
    assert block_keys(content[:17]) == keys[:5]
    assert block_keys(content, known=keys[:4]) == keys
    changed = content.copy()
    changed[7] = -1
    assert [a == b for a, b in zip(block_keys(changed), keys, strict=True)] == [True] * 2 + [False] * 8
    assert not set(block_keys(content, salt=1)) & set(keys)
