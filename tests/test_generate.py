"""The cache, the batch and the order of requests change the speed, never a token."""

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import IMAGE, IMAGE_TOKENS, doc

from mm1.generate.engine import Engine
from mm1.generate.prefix_cache import PrefixCache
from mm1.generate.prompt import Prompt, picture
from mm1.generate.prompt_content import PromptContent
from mm1.generate.request import Completion, Score
from mm1.generate.sampling import Decoding, sample_tokens
from mm1.model.cache import Cache

MODEL = small.model(kind="c_abstractor")
ENOUGH = Decoding(max_tokens=6)


def prompt(document: small.Doc) -> Prompt:
    return Prompt(document.tokens, [picture(image) for image in document.images])


def known(one_prompt: Prompt) -> PromptContent:
    return PromptContent.of(one_prompt, MODEL.config)


def generate(prompts: list[Prompt], decoding: Decoding) -> list[Completion]:
    """The completions of a new engine that has a row for each prompt."""
    return Engine(MODEL, rows=max(1, len(prompts))).generate(prompts, decoding)


def score(pairs: list[tuple[Prompt, list[int]]]) -> list[Score]:
    """The scores of a new engine."""
    return Engine(MODEL).score(pairs)


PIECES = st.lists(st.one_of(st.integers(1, 9), st.just("image")), min_size=1, max_size=4)
PROMPTS = st.lists(st.builds(lambda p, s: prompt(doc(*p, seed=s)), PIECES, st.integers(0, 99)), min_size=1, max_size=4)


@torch.no_grad()
def logits_without_cache(one_prompt: Prompt, written=()) -> torch.Tensor:
    """Logits [T, V] from a plain forward pass over a prompt and what was written."""
    tokens_BT = torch.tensor([[*one_prompt.tokens, *written]])
    if one_prompt.images:
        images_NCYX = torch.stack([one.pixels() for one in one_prompt.images])
        x_BTD = MODEL.embed(tokens_BT, MODEL.encode_images(images_NCYX))
    else:
        x_BTD = MODEL.decoder.embed(tokens_BT)
    return MODEL.decoder.logits(MODEL.decoder(x_BTD, torch.arange(tokens_BT.shape[1])[None]))[0]


def written_without_cache(one_prompt: Prompt, tokens: int) -> list[int]:
    written: list[int] = []
    for _ in range(tokens):
        logits_V = logits_without_cache(one_prompt, written)[-1]
        logits_V[IMAGE] = -torch.inf
        written.append(int(logits_V.argmax()))
    return written


@settings(max_examples=25)
@given(PROMPTS)
def test_cached_and_batched_equals_uncached_and_single(prompts):
    completions = generate(prompts, ENOUGH)
    assert [c.tokens for c in completions] == [written_without_cache(p, 6) for p in prompts]
    assert all(c.reason == "length" for c in completions)


@settings(max_examples=25)
@given(PROMPTS, st.data())
def test_scores_equal_a_full_forward(prompts, data):
    pairs = []
    for p in prompts:
        text = st.lists(st.integers(4, 63), min_size=1, max_size=7)
        likely = st.just(written_without_cache(p, 3))
        pairs.append((p, data.draw(st.one_of(text, likely))))
    for (p, continuation), got in zip(pairs, score(pairs), strict=True):
        log_BV = logits_without_cache(p, continuation).log_softmax(-1)[len(p.tokens) - 1 : -1]
        expected = log_BV.gather(-1, torch.tensor(continuation)[:, None]).sum()
        assert got.log_probability == pytest.approx(float(expected), abs=1e-4)
        assert got.tokens == len(continuation)
        log_BV[:, IMAGE] = -torch.inf
        assert got.greedy == (log_BV.argmax(-1).tolist() == continuation)


def test_what_is_written_has_the_score_it_was_given():
    prompts = [prompt(doc("image", 4, seed=s)) for s in range(3)]
    completions = generate(prompts, ENOUGH)
    pairs = [(p, c.tokens) for p, c in zip(prompts, completions, strict=True)]
    for completion, got in zip(completions, score(pairs), strict=True):
        assert got.greedy
        assert completion.log_probability == pytest.approx(got.log_probability, abs=1e-4)


def test_a_request_ends_at_a_stop_token_and_the_others_go_on():
    prompts = [prompt(doc(n, seed=n)) for n in (3, 8, 5)]
    plain = [c.tokens for c in generate(prompts, ENOUGH)]
    stop = plain[1][2]
    decoding = Decoding(max_tokens=6, stop_tokens=frozenset({stop}))
    for tokens, got in zip(plain, generate(prompts, decoding), strict=True):
        ends = tokens.index(stop) if stop in tokens else 6
        assert got.tokens == tokens[:ends]
        assert got.reason == ("token" if ends < 6 else "length")


def test_a_request_ends_when_its_text_holds_a_stop_string():
    prompts = [prompt(doc(n, seed=n)) for n in (3, 8, 5)]
    plain = [c.tokens for c in generate(prompts, ENOUGH)]
    needle = plain[0][1:3]

    def stopped(tokens):
        return tokens[-2:] == needle

    got = generate(prompts, Decoding(max_tokens=6, stopped=stopped))
    assert got[0].tokens == plain[0][:3]
    assert got[0].reason == "text"
    assert [c.tokens for c in got[1:]] == plain[1:]


def test_rows_come_and_go_without_touching_others():
    """A row ends, another prompt takes it, and the rest go on as if alone."""
    prompts = [prompt(doc("image", 4, seed=1)), prompt(doc(9, seed=2)), prompt(doc(2, "image", seed=3))]
    late = prompt(doc(1, "image", 2, seed=4))
    expected = [written_without_cache(p, 5) for p in (*prompts, late)]
    prefix_cache = PrefixCache(MODEL, rows=3, positions=20)
    written: list[list[int]] = [[], [], [], []]

    def take(owners, logits_BV):
        for owner, token in zip(owners, logits_BV.argmax(-1).tolist(), strict=True):
            written[owner].append(token)

    def step():
        owners, logits_BTV = prefix_cache.step({owner: tokens[-1:] for owner, tokens in enumerate(written) if tokens})
        take(owners, logits_BTV[:, 0])

    with torch.no_grad():
        take([0, 1, 2], MODEL.decoder.logits(prefix_cache.admit([known(one) for one in prompts], [0, 1, 2])))
        step()
        prefix_cache.release(0)
        step()
        take([3], MODEL.decoder.logits(prefix_cache.admit([known(late)], [3])))
    step()
    step()
    assert [len(tokens) for tokens in written] == [2, 5, 5, 3]
    assert all(tokens == whole[: len(tokens)] for tokens, whole in zip(written, expected, strict=True))


def test_a_prompt_in_pieces_equals_the_whole():
    """A cache continues from any position, which prefix caching and chunked prefill need."""
    decoder = MODEL.decoder
    tokens_BT = torch.randint(4, 64, (2, 12))
    with torch.no_grad():
        whole = decoder(decoder.embed(tokens_BT), torch.arange(12).expand(2, -1))
        cache = Cache.empty(decoder.config, rows=2, length=12, like=whole)
        parts = [
            decoder(
                decoder.embed(tokens_BT[:, start:stop]),
                torch.arange(start, stop).expand(2, -1),
                cache=cache.view(slice(0, 2), stop),
            )
            for start, stop in ((0, 5), (5, 6), (6, 12))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_sampling_depends_on_the_seed_and_not_on_other_requests():
    prompts = [prompt(doc(n, seed=n)) for n in (3, 8, 5)]
    hot = Decoding(max_tokens=8, temperature=1.5, seed=7)
    first = [c.tokens for c in generate(prompts, hot)]
    assert first == [c.tokens for c in generate(prompts, hot)]
    assert first[0] == generate(prompts[:1], hot)[0].tokens
    ending = Decoding(max_tokens=8, temperature=1.5, seed=7, stop_tokens=frozenset({first[0][2]}))
    ended = [c.tokens for c in generate(prompts, ending)]
    assert ended[0] == first[0][:2]
    assert all(tokens == whole[: len(tokens)] for tokens, whole in zip(ended, first, strict=True))
    other = Decoding(max_tokens=8, temperature=1.5, seed=8)
    assert first != [c.tokens for c in generate(prompts, other)]


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.25, 0.15, 0.1]),
        (1.0, 0.6, [2 / 3, 1 / 3, 0, 0]),
        (1.0, 0.0, [1, 0, 0, 0]),
        (0.5, 1.0, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        (0.0, 1.0, [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(temperature, top_p, expected):
    """Temperature scales logits; top-p keeps the fewest likeliest tokens that hold that much probability."""
    order = [2, 4, 3, 1]  # the likeliest token is number 2
    logits_BV = torch.full((1, 5), 9.0)  # token 0 is the image token: likeliest, and never written
    logits_BV[0, order] = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    rows = 4000
    generator = torch.Generator().manual_seed(0)
    decoding = Decoding(temperature=temperature, top_p=top_p)
    sampled = sample_tokens(logits_BV.expand(rows, -1), [decoding] * rows, generators=[generator] * rows, image_token=0)
    tokens = [one.token for one in sampled]
    shares = [tokens.count(token) / rows for token in order]
    assert shares == pytest.approx(expected, abs=0.025)
    assert all(share == 0 for share, probability in zip(shares, expected, strict=True) if probability == 0)


def test_images_that_do_not_fit_the_image_tokens_are_refused():
    short = Prompt([IMAGE] * (IMAGE_TOKENS - 1), [picture(small.image(0))])
    none = Prompt([IMAGE] * IMAGE_TOKENS)
    for wrong in (short, none, Prompt([])):
        with pytest.raises(ValueError, match="image tokens"):
            generate([prompt(doc(3)), wrong], ENOUGH)


def test_nothing_to_do_is_done():
    assert generate([], ENOUGH) == []
    assert score([]) == []
    nothing = generate([prompt(doc(3))], Decoding(max_tokens=0))
    assert [c.tokens for c in nothing] == [[]]


def test_a_score_needs_a_position_to_start_from():
    for one_prompt, continuation in ((Prompt([]), [5]), (prompt(doc(3)), [])):
        with pytest.raises(ValueError, match="empty"):
            score([(one_prompt, continuation)])


def test_a_full_cache_says_so():
    prefix_cache = PrefixCache(MODEL, rows=1, positions=8)
    prefix_cache.admit([known(prompt(doc(3)))], [0])
    with pytest.raises(ValueError, match="0 free rows"):
        prefix_cache.admit([known(prompt(doc(3)))], [1])
