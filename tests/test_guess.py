"""Guessed tokens change how many passes a text takes, never the text."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import doc
from test_generate import MODEL, PROMPTS, prompt, written_without_cache

from mm1.generate import engine, threads
from mm1.generate.engine import Engine
from mm1.generate.prompt_lookup import Guesses, continued
from mm1.generate.sampling import Decoding
from mm1.generate.session import Session
from mm1.generate.threads import threads_for

NINE = Decoding(tokens=9)


@settings(max_examples=30, deadline=None)
@given(PROMPTS, st.integers(1, 3), st.data())
def test_any_guess_leaves_the_text(prompts, rows, data):
    whole = [written_without_cache(one, NINE.tokens) for one in prompts]
    right_ones = []

    class Drawn(Guesses):
        """Guesses that are right for a while, wrong from the start, or none."""

        def next(self, contents, *, most):
            found = {}
            for number, content in contents.items():
                coming = whole[number][len(content) - len(prompts[number].tokens) :]
                right = data.draw(st.integers(0, most[number]))
                wrong = data.draw(st.lists(st.integers(4, 63), max_size=most[number] - right))
                found[number] = [*coming[:right], *wrong]
                right_ones.append(right)
            return found

        def learn(self, row, *, guessed, right):
            assert 0 <= right <= guessed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Guesses", Drawn)
        ours = Engine(MODEL, rows=rows)
        found = ours.generate(prompts, NINE)
        again = ours.generate(prompts, NINE)  # rows remember what was guessed wrongly, and must not believe it
    assert [one.tokens for one in found] == [one.tokens for one in again] == whole
    # each pass writes a token more than were guessed right; the first comes from the prompt's own pass
    assert sum(right + 1 for right in right_ones) <= 2 * len(prompts) * (NINE.tokens - 1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_save_passes_where_a_text_repeats(temperature, monkeypatch):
    """Drawn tokens too: each is drawn once, whether it was guessed or not."""
    decoding = Decoding(tokens=24, temperature=temperature, top_k=2, seed=3)
    prompts = [prompt(doc("image", 6, seed=seed)) for seed in range(3)]
    passes: list[int] = []
    step = Session.step
    monkeypatch.setattr(Session, "step", lambda self, tokens: passes.append(len(tokens)) or step(self, tokens))
    guessed = Engine(MODEL, rows=2).generate(prompts, decoding)
    with_guesses = len(passes)
    monkeypatch.setattr(Guesses, "next", lambda self, contents, *, most: {row: [] for row in contents})
    plain = Engine(MODEL, rows=2).generate(prompts, decoding)
    assert [one.tokens for one in guessed] == [one.tokens for one in plain]
    assert [one.log_probability for one in guessed] == pytest.approx([one.log_probability for one in plain], abs=1e-4)
    if not temperature:
        assert with_guesses < len(passes) - with_guesses


@pytest.mark.parametrize(
    ("content", "most", "expected"),
    [
        ([5, 6, 7, 8, 5, 6], 2, [7, 8]),
        ([5, 6, 1, 9, 6, 2, 5, 6], 1, [1]),  # more alike, though longer ago
        ([5, 6, 1, 5, 6, 2, 5, 6], 1, [2]),  # of equals the latest
        ([7, 4, 4], 3, [4, 4, 4]),
        ([3, 8, 9, 8, 9], 5, [8, 9, 8, 9, 8]),
        ([6, 5, -77, -77, 6], 4, [5]),  # a picture is not written
        ([1, 2, 3], 4, []),
        ([1, 1], 0, []),
    ],
)
def test_what_followed_the_place_most_like_this_one(content, most, expected):
    assert continued(np.array(content), most=most) == expected


def test_a_row_that_guesses_wrongly_stops_guessing_for_a_while():
    guesses, content = Guesses(), np.array([5, 6, 7, 8, 9, 5, 6])
    lengths = []
    for _ in range(4):
        lengths.append(len(guesses.next({0: content}, most={0: 9})[0]))
        guesses.learn(0, guessed=lengths[-1], right=0)
    assert lengths[0] > 0
    assert lengths[-1] == 0
    assert any(guesses.next({0: content}, most={0: 9})[0] for _ in range(40))
    guesses.learn(1, guessed=0, right=0)
    for _ in range(4):
        found = guesses.next({1: content}, most={1: 4})[1]
        guesses.learn(1, guessed=len(found), right=len(found))
    assert found == [7, 8, 9, 5]


def test_few_places_take_one_thread_and_give_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(MODEL.decoder, 1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        many = threads.WORTH_WAKING // (MODEL.config.decoder.width * MODEL.config.decoder.mlp_width)
        with threads_for(MODEL.decoder, many):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
