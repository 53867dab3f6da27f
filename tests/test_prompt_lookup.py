"""Draft tokens change how many passes a text takes, never the text."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import doc
from test_generate import MODEL, PROMPTS, prompt, written_without_cache

from mm1.generate import engine, threads
from mm1.generate.engine import Engine
from mm1.generate.prefix_cache import PrefixCache
from mm1.generate.prompt_lookup import PromptLookup, lookup
from mm1.generate.sampling import Decoding
from mm1.generate.threads import threads_for

NINE = Decoding(max_tokens=9)


@settings(max_examples=30)
@given(PROMPTS, st.integers(1, 3), st.data())
def test_any_draft_leaves_the_text(prompts, rows, data):
    whole = [written_without_cache(one, NINE.max_tokens) for one in prompts]
    right_tokens = []

    class Drawn(PromptLookup):
        """Drafts that are right for a while, wrong from the start, or empty."""

        def propose(self, contents, *, most):
            drafts = {}
            for request_id, content in contents.items():
                number = request_id % len(prompts)  # the second call's ids go on from the first's
                coming = whole[number][len(content) - len(prompts[number].tokens) :]
                right = data.draw(st.integers(0, most[request_id]))
                wrong = data.draw(st.lists(st.integers(4, 63), max_size=most[request_id] - right))
                drafts[request_id] = [*coming[:right], *wrong]
                right_tokens.append(right)
            return drafts

        def learn(self, number, *, drafted, accepted):
            assert 0 <= accepted <= drafted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PromptLookup", Drawn)
        ours = Engine(MODEL, rows=rows)
        first = ours.generate(prompts, NINE)
        again = ours.generate(prompts, NINE)  # rows remember rejected drafts, and must not take them for the text
    assert [one.tokens for one in first] == [one.tokens for one in again] == whole
    # each pass writes a token more than were right; the first token comes from the prompt's own pass
    assert sum(right + 1 for right in right_tokens) <= 2 * len(prompts) * (NINE.max_tokens - 1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_drafts_save_passes_where_a_text_repeats(temperature, monkeypatch):
    """Sampled tokens too: each is sampled once, whether it was in a draft or not."""
    decoding = Decoding(max_tokens=24, temperature=temperature, top_k=2, seed=3)
    prompts = [prompt(doc("image", 6, seed=seed)) for seed in range(3)]
    passes: list[int] = []
    step = PrefixCache.step
    monkeypatch.setattr(PrefixCache, "step", lambda self, tokens: passes.append(len(tokens)) or step(self, tokens))
    drafted = Engine(MODEL, rows=2).generate(prompts, decoding)
    with_drafts = len(passes)
    monkeypatch.setattr(PromptLookup, "propose", lambda self, contents, *, most: {number: [] for number in contents})
    plain = Engine(MODEL, rows=2).generate(prompts, decoding)
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    assert [one.log_probability for one in drafted] == pytest.approx([one.log_probability for one in plain], abs=1e-4)
    if not temperature:
        assert with_drafts < len(passes) - with_drafts


@pytest.mark.parametrize(
    ("content", "most", "expected"),
    [
        ([5, 6, 7, 8, 5, 6], 2, [7, 8]),
        ([5, 6, 1, 9, 6, 2, 5, 6], 1, [1]),  # the longer match, though earlier
        ([5, 6, 1, 5, 6, 2, 5, 6], 1, [2]),  # of equal matches the latest
        ([7, 4, 4], 3, [4, 4, 4]),
        ([3, 8, 9, 8, 9], 5, [8, 9, 8, 9, 8]),
        ([6, 5, -77, -77, 6], 4, [5]),  # an image is not written
        ([1, 2, 3], 4, []),
        ([1, 1], 0, []),
    ],
)
def test_a_draft_is_what_followed_the_longest_match(content, most, expected):
    assert lookup([np.array(content)], most=[most]) == [expected]


@given(st.lists(st.tuples(st.lists(st.integers(-1, 3), min_size=1, max_size=12), st.integers(0, 9)), min_size=1))
def test_many_contents_are_looked_up_as_one_by_one(rows):
    contents, most = [np.array(content) for content, _ in rows], [count for _, count in rows]
    alone = [lookup([content], most=[count])[0] for content, count in zip(contents, most, strict=True)]
    assert lookup(contents, most=most) == alone
    for content, count, draft in zip(contents, most, alone, strict=True):
        assert draft == draft_by_search(content.tolist(), count)


def draft_by_search(content: list[int], most: int) -> list[int]:
    """The same, position by position."""
    best, start = 0, 0
    for end in range(len(content) - 1):
        same = 0
        while same < 3 and same <= end and content[end - same] == content[-1 - same]:
            same += 1
        if same and same >= best:
            best, start = same, end + 1
    draft = []
    for number in range(min(most, 7) if best else 0):
        token = content[start + number % (len(content) - start)]
        if token < 0:
            break
        draft.append(token)
    return draft


def test_a_request_whose_drafts_are_rejected_gets_none_for_a_while():
    ours, content = PromptLookup(), np.array([5, 6, 7, 8, 9, 5, 6])
    lengths = []
    for _ in range(4):
        lengths.append(len(ours.propose({0: content}, most={0: 9})[0]))
        ours.learn(0, drafted=lengths[-1], accepted=0)
    assert lengths[0] > 0
    assert lengths[-1] == 0
    assert any(ours.propose({0: content}, most={0: 9})[0] for _ in range(40))
    ours.learn(1, drafted=0, accepted=0)
    for _ in range(4):
        draft = ours.propose({1: content}, most={1: 4})[1]
        ours.learn(1, drafted=len(draft), accepted=len(draft))
    assert draft == [7, 8, 9, 5]


def test_a_small_pass_takes_one_thread_and_gives_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(MODEL.decoder, 1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        many = threads.MIN_PARALLEL_PRODUCT // (MODEL.config.decoder.width * MODEL.config.decoder.mlp_width)
        with threads_for(MODEL.decoder, many):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
