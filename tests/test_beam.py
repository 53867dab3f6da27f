"""Beam search against `transformers`, and against trying everything."""

import itertools

import pytest
import small
import torch
from small import IMAGE, doc
from test_generate import MODEL, prompt, score

from mm1.generate.beam import BeamSearch, search, search_all
from mm1.generate.prompt import Prompt
from mm1.generate.sampling import Decoding
from mm1.model.mllm import MLLM

ENDS = [7, 9, 11, 13, 20, 30]


@pytest.mark.parametrize("length_power", [0.0, 1.0, 2.0])
def test_beams_write_what_transformers_writes(length_power):
    pytest.importorskip("transformers")
    import test_parity

    theirs = test_parity.build("llama", test_parity.DECODER)
    decoder, config = test_parity.our_decoder(theirs), small.config()
    config.decoder = decoder.config
    ours = MLLM(config)
    ours.initialise(0)
    ours.decoder.load_state_dict(decoder.state_dict())
    for seed, width in ((0, 4), (1, 2), (2, 4)):
        ids_1T = torch.randint(4, 61, (1, 5 + seed), generator=torch.Generator().manual_seed(seed))
        settings = {"num_beams": width, "length_penalty": length_power, "max_new_tokens": 8, "do_sample": False}
        written = theirs.generate(ids_1T, **settings, eos_token_id=ENDS, pad_token_id=0, suppress_tokens=[IMAGE])
        expected = [token for token in written[0, ids_1T.shape[1] :].tolist() if token not in ENDS]
        how = BeamSearch(Decoding(max_tokens=8, stop_tokens=frozenset(ENDS)), width, length_power)
        assert search(ours, Prompt(ids_1T[0].tolist()), how=how).tokens == expected


def test_a_search_as_wide_as_the_vocabulary_finds_the_likeliest_text():
    question = prompt(doc("image", 3, seed=4))
    best_text = search(MODEL, question, how=BeamSearch(Decoding(max_tokens=2), 64))
    texts = [list(text) for text in itertools.product([n for n in range(64) if n != IMAGE], repeat=2)]
    scores = score([(question, text) for text in texts])
    best = max(range(len(texts)), key=lambda number: scores[number].log_probability)
    assert best_text.tokens == texts[best]
    assert best_text.log_probability == pytest.approx(scores[best].log_probability, abs=1e-4)


@pytest.mark.parametrize("width", [1, 3])
def test_searches_together_find_what_each_finds_alone(width: int):
    shots = prompt(doc("image", 12, "image", 9, seed=1))
    queries = [prompt(doc("image", 2 + seed, seed=seed)) for seed in (2, 3, 4)]
    prompts = [Prompt([*shots.tokens, *one.tokens], [*shots.images, *one.images]) for one in queries]
    how = BeamSearch(Decoding(max_tokens=5, stop_tokens=frozenset(ENDS)), width)
    ended: list[int] = []
    together = search_all(MODEL, prompts, how=how, done=lambda number, completion: ended.append(number))
    assert ended == [0, 1, 2]
    for one, alone in zip(together, [search(MODEL, only, how=how) for only in prompts], strict=True):
        assert (one.tokens, one.reason) == (alone.tokens, alone.reason)
        assert one.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


def test_a_text_ends_with_its_stop_string():
    question = prompt(doc("image", 3, seed=4))
    stops = {4, 5, 6, 8, 10, 12, 14, 16, 18, 22}
    decoding = Decoding(max_tokens=2, stopped=lambda tokens: tokens[-1] in stops)
    best_text = search(MODEL, question, how=BeamSearch(decoding, 64, 0.0))
    tokens = [n for n in range(64) if n != IMAGE]
    texts = [[n] for n in stops] + [[a, b] for a in tokens if a not in stops for b in tokens]
    scores = score([(question, text) for text in texts])
    best = max(range(len(texts)), key=lambda number: scores[number].log_probability)
    assert best_text.tokens == texts[best]
    assert best_text.reason == ("text" if best_text.tokens[-1] in stops else "length")
    assert best_text.tokens[-1] in stops  # one token is always likelier than two
