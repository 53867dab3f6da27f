"""What the engine does not compute twice: common prefixes, images, the question of several choices."""

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import doc
from test_generate import MODEL, PIECES, known, prompt, score, written_without_cache

from mm1.config.model import RopeScalingConfig, SparseConfig
from mm1.generate import admission, engine, prefix_cache, prefix_index
from mm1.generate.engine import Engine
from mm1.generate.prefix_cache import Prefix, PrefixCache, prefill
from mm1.generate.prompt import Features, Prompt, picture
from mm1.generate.prompt_content import common_prefix, content
from mm1.generate.sampling import Choices, Decoding
from mm1.model.cache import Segment
from mm1.model.mllm import MLLM

FOUR = Decoding(max_tokens=4)


@pytest.fixture(autouse=True)
def sharing_of_few_positions(monkeypatch):
    for module in (admission, engine, prefix_cache, prefix_index):
        monkeypatch.setattr(module, "MIN_SHARED", 3)


def joined(*docs: small.Doc) -> Prompt:
    """A prompt of documents one after the other."""
    whole = small.Doc([token for one in docs for token in one.tokens], [image for one in docs for image in one.images])
    return prompt(whole)


DOCS = st.builds(lambda pieces, seed: doc(*pieces, seed=seed), PIECES, st.integers(0, 5))
PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=6)
"""The documents of each prompt by number: many prompts have a common prefix, some are equal or a part of another."""


def tokens_of(completions) -> list[list[int]]:
    return [one.tokens for one in completions]


@settings(max_examples=20)
@given(st.tuples(DOCS, DOCS, DOCS), PATHS, PATHS, st.integers(1, 4))
def test_what_is_shared_equals_what_is_computed_again(docs, first, then, rows):
    ours = Engine(MODEL, rows=rows)
    for paths in (first, then):  # rows still hold what the first wrote
        prompts = [joined(*(docs[number] for number in path)) for path in paths]
        assert tokens_of(ours.generate(prompts, FOUR)) == [written_without_cache(one, 4) for one in prompts]


@settings(max_examples=20)
@given(st.tuples(DOCS, DOCS, DOCS), PATHS, st.data())
def test_choices_after_shared_questions_have_the_scores_of_a_full_forward(docs, paths, data):
    text = st.lists(st.integers(4, 63), min_size=1, max_size=4)
    pairs = [(joined(*(docs[number] for number in path)), data.draw(text)) for path in paths for _ in range(3)]
    ours = Engine(MODEL, rows=4)
    alone = [score([pair])[0] for pair in pairs]
    for got, expected in zip(ours.score(pairs), alone, strict=True):
        assert got.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
        assert (got.tokens, got.greedy) == (expected.tokens, expected.greedy)


KINDS = {
    "grouped keys": {"kv_heads": 1, "qk_norm": False},
    "stretched": {"rope_scaling": RopeScalingConfig(kind="llama3", factor=4.0, original_positions=16)},
    "no_rope_layers": {"layers": 3, "no_rope_layers": (1,), "qkv_bias": True},
    "OLMo 2": {"qk_norm": True, "qk_norm_across_heads": True, "norm_before": False, "norm_after": True},
    "windows": {"layers": 3, "window": 4, "full_layers": (1,), "window_rope_base": 100.0},
    "soft caps": {"layers": 3, "window": 4, "full_layers": (1,), "attention_softcap": 0.3, "logit_softcap": 1.0},
    "experts": {"sparse": SparseConfig(experts=4, every=2)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_shares(kind):
    config = small.config()
    config.decoder = config.decoder.model_copy(update=KINDS[kind])
    model = MLLM(config)
    model.initialise(1)
    shots = doc("image", 5, "image", 3, seed=1)
    prompts = [joined(shots, doc("image", number, seed=10 + number)) for number in range(1, 6)]
    together = Engine(model, rows=2)
    alone = [Engine(model, rows=1).generate([one], FOUR)[0] for one in prompts]
    assert tokens_of(together.generate(prompts, FOUR)) == tokens_of(alone)
    assert together.prefilled == len(shots.tokens)


def test_fixed_shots_are_computed_once_and_images_encoded_once(monkeypatch):
    seen = []
    encode_images = MODEL.encode_images
    monkeypatch.setattr(MODEL, "encode_images", lambda x: seen.append(len(x)) or encode_images(x))
    shots = doc("image", 5, "image", 3, seed=1)
    queries = [doc("image", 4, seed=number) for number in (5, 6, 7, 8, 5)]
    ours = Engine(MODEL, rows=2)
    ours.generate([joined(shots, one) for one in queries], Decoding(max_tokens=1))
    assert ours.prefilled == len(shots.tokens)
    assert ours.prefix_cache is not None
    whole, last = len(queries[0].tokens), 1  # of two equal prompts the second needs only the last position's logits
    assert ours.prefix_cache.computed == 4 * whole + last
    assert sum(seen) == 2 + 4
    # other queries after the same shots: neither these nor the images are computed again
    ours.generate([joined(shots, doc(4, seed=number)) for number in (1, 2, 3)], Decoding(max_tokens=1))
    assert ours.prefilled == len(shots.tokens)
    assert sum(seen) == 2 + 4


def test_shots_of_two_queries_are_taken_over_without_a_common_prefix():
    """Pairs of queries, each pair after its own shots: the second prompt of a pair computes only its end."""
    pairs = [
        [joined(doc("image", 6, seed=shots), doc("image", 2, seed=query)) for query in (50, 51)] for shots in range(4)
    ]
    prompts = [one for pair in pairs for one in pair]
    ours = Engine(MODEL, rows=3)
    ours.generate(prompts, Decoding(max_tokens=1))
    assert ours.prefix_cache is not None
    assert (ours.prefilled, ours.prefix_cache.computed) == (0, 4 * (10 + 6) + 4 * 6)


def test_choices_compute_their_question_once():
    question = joined(doc("image", 9, seed=1))
    ours = Engine(MODEL, rows=4)
    ours.score([(question, [5 + number, 6, 7]) for number in range(4)])
    assert ours.prefix_cache is not None
    assert ours.prefilled == len(question.tokens) - 1  # each choice needs the last position's logits
    assert ours.prefix_cache.computed == 4 * 3


def test_a_chat_continues_where_its_last_turn_ended():
    """The first prompt's row still holds it and what was written, though another prompt came in between."""
    first, other = joined(doc("image", 7, seed=1)), joined(doc(9, seed=2))
    ours = PrefixCache(MODEL, rows=2, positions=40)
    for number, one in enumerate((first, other)):
        ours.admit([known(one)], [number])
        ours.step({number: [9]})
        ours.release(number)
    again = Prompt([*first.tokens, 9, 11, 12], first.images)
    assert ours.cached(known(again)) == len(first.tokens) + 1
    before = ours.computed
    with torch.no_grad():
        logits = MODEL.decoder.logits(ours.admit([known(again)], [2]))
        alone = MODEL.decoder.logits(PrefixCache(MODEL, rows=1, positions=40).admit([known(again)], [0]))
    assert ours.computed - before == 2
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def test_large_passes_over_a_prefix_go_in_pieces(monkeypatch):
    shots, query = doc("image", 9, seed=1), doc("image", 12, seed=2)
    features, whole = Features(MODEL), joined(shots, query)
    first = prompt(shots)
    segment, _ = prefill(MODEL, first, features=features)
    prefix = Prefix(content(first, small.config()), segment)
    _, logits = prefill(MODEL, whole, features=features, prefixes=[prefix])
    monkeypatch.setattr("mm1.model.cache.SCORES_AT_ONCE", 300)
    _, in_pieces = prefill(MODEL, whole, features=features, prefixes=[prefix])
    torch.testing.assert_close(logits, in_pieces, atol=1e-5, rtol=1e-5)
    # and the prefix is part of what every row sees
    blank = Segment(*([torch.zeros_like(x) for x in side] for side in (segment.keys, segment.values)))
    _, without = prefill(MODEL, whole, features=features, prefixes=[Prefix(prefix.content, blank)])
    assert (without - logits).abs().max() > 1e-3


def test_a_prompt_without_the_caches_prefix_is_refused():
    shots = prompt(doc(9, seed=1))
    segment, _ = prefill(MODEL, shots, features=Features(MODEL))
    prefix = Prefix(content(shots, small.config()), segment)
    ours = PrefixCache(MODEL, rows=1, positions=20, prefix=prefix)
    with pytest.raises(ValueError, match="the 9 positions that all rows share"):
        ours.admit([known(prompt(doc(12, seed=2)))], [0])


def test_contents_tell_images_apart():
    config = small.config()
    ours, same, other = (content(prompt(doc(2, "image", 3, seed=seed)), config) for seed in (1, 1, 2))
    assert common_prefix(ours, same) == len(ours)
    swapped = content(Prompt(doc(2, "image", 3, seed=1).tokens, [picture(small.image(9))]), config)
    assert common_prefix(ours, swapped) == 2
    assert common_prefix(ours, other) < 2


def test_features_beyond_the_memory_are_dropped_oldest_first():
    seen = []

    def named(number: int):
        one = picture(small.image(number))
        return type(one)(one.name, lambda: seen.append(number) or one.pixels())

    size = small.IMAGE_TOKENS * 32 * 4
    features = Features(MODEL, memory=2 * size)
    first = features.of([named(1), named(2), named(1)])
    assert seen == [1, 2]
    torch.testing.assert_close(first[0], first[2], rtol=0, atol=0)
    features.of([named(1)])
    features.of([named(3)])  # 2 is the oldest now
    features.of([named(1)])
    features.of([named(2)])
    assert seen == [1, 2, 3, 2]
    assert len(features.of([named(4), named(5), named(6)])) == 3  # more than it may keep


TEXTS = [[7, 8, 9], [7, 8, 4], [10], [10, 11]]


@settings(max_examples=20)
@given(DOCS, st.sampled_from([0.0, 3.0]), st.integers(0, 9))
def test_only_choices_are_written(document, temperature, seed):
    decoding = Decoding(
        max_tokens=8, constraint=Choices(TEXTS), stop_tokens=frozenset({2}), temperature=temperature, seed=seed
    )
    (completion,) = Engine(MODEL, rows=1).generate([prompt(document)], decoding)
    assert completion.tokens in TEXTS
    assert completion.reason == ("token" if completion.tokens == [10] else "choice")


def test_the_likeliest_allowed_token_is_taken_at_each_step():
    decoding = Decoding(constraint=Choices([[n] for n in range(4, 30)]))
    (completion,) = Engine(MODEL).generate([prompt(doc(5, seed=1))], decoding)
    logits = PrefixCache(MODEL, rows=1, positions=9).admit([known(prompt(doc(5, seed=1)))], [0])
    with torch.no_grad():
        assert completion.tokens == [4 + int(MODEL.decoder.logits(logits)[0, 4:30].argmax())]


def test_each_prompt_may_have_its_own_decoding():
    prompts = [prompt(doc(5, seed=number)) for number in range(3)]
    decodings = [
        Decoding(max_tokens=2),
        Decoding(max_tokens=5, temperature=2.0, seed=4),
        Decoding(max_tokens=9, constraint=Choices(TEXTS)),
    ]
    together = Engine(MODEL, rows=2).generate(prompts, decodings)
    assert tokens_of(together)[:2] == [
        Engine(MODEL).generate(prompts[: number + 1], decodings[: number + 1])[number].tokens for number in range(2)
    ]
    assert together[2].tokens in TEXTS


def test_choices_need_tokens():
    for wrong in ([], [[4], []]):
        with pytest.raises(ValueError, match="at least one"):
            Choices(wrong)
