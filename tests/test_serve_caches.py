"""What a server keeps between requests: by content and by key, and no more bytes than it may."""

import gc

import conftest
import pytest
import requests
import serving
import torch
from serving import said, shown
from test_serve import chat_run  # noqa: F401  (a fixture)

from mm1.config.model import TilingConfig
from mm1.data.encode import encode
from mm1.data.tiles import tile_spec
from mm1.document import Document, Image, Tile
from mm1.generate.document_prompt import decode_tiles, tile_names
from mm1.generate.prompt_content import content
from mm1.serve.guard import Guard
from mm1.serve.limits import Limits
from mm1.serve.pixels import Pixels


def tiles_of(loaded, pictures: list[bytes]) -> list[tuple[Tile, ...]]:
    """The tiles of each picture of a document, with MM1.5's tiling, which cuts no pictures where there are many."""
    config = loaded.run.model.model_copy(update={"tiling": TilingConfig(kind="mm1_5")})
    document = Document(tuple(Image(data) for data in pictures))
    encoded = encode(document, loaded.tokenizer, tile=tile_spec(config, use=True), end=False)
    groups: dict[int, list[Tile]] = {}
    for number, tile in zip(encoded.pictures, encoded.images, strict=True):
        groups.setdefault(int(number), []).append(tile)
    return [tuple(tiles) for tiles in groups.values()]


def test_features_are_named_by_the_pictures_bytes_and_its_cut(chat_run):  # noqa: F811
    one, other = (conftest.picture(seed, 0)[0] for seed in (1, 2))
    (alone,) = tiles_of(chat_run, [one])
    among = tiles_of(chat_run, [one, other, other])
    assert len(alone) > 1
    assert len(among[0]) == 1
    names = tile_names(alone)
    assert len(set(names)) == len(names)
    assert names == tile_names(tiles_of(chat_run, [one])[0])
    (overview,) = tile_names(among[0])
    assert names.index(overview) == len(names) - 1, "only the overview is the same cut"
    pixels, whole = decode_tiles(alone, size=16), decode_tiles(among[0], size=16)[0]
    assert [bool((one == whole).all()) for one in pixels] == [name == overview for name in names]
    assert not set(tile_names(among[0])) & set(tile_names(among[1]))
    assert tile_names(among[1]) == tile_names(among[2])


def guard(*keys: str) -> Guard:
    return Guard(lambda *_: None, keys=keys, limits=Limits())


def salt(guarded: Guard, key: str = "") -> str:
    return guarded._salt({"path": "/v1/models", "headers": [(b"authorization", f"Bearer {key}".encode())]})


def test_names_of_what_is_kept_depend_on_the_key_and_on_a_secret_of_the_server():
    """So nobody can look for two pictures whose shortened hashes are equal, and no key sees what another one sent."""
    one, other = guard("a", "b"), guard("a", "b")
    assert salt(one, "a") == salt(one, "a")
    assert len({salt(one, "a"), salt(one, "b"), salt(other, "a"), salt(other, "b")}) == 4
    assert salt(guard()) != salt(guard())


def test_a_pictures_positions_in_the_prefix_cache_are_named_anew_by_every_server(chat_run):  # noqa: F811
    config = chat_run.model.config
    document = Document((Image(conftest.picture(1, 0)[0]),))
    contents = []
    for _ in range(2):
        with serving.running(chat_run) as server:
            prompt = server.server.reader.prompt(document, salt=salt(guard()))
        contents.append([number for number in content(prompt, config) if number < 0])
    assert contents[0]
    assert not set(contents[0]) & set(contents[1])


def test_keys_share_neither_prompts_nor_features(chat_run):  # noqa: F811
    with serving.running(chat_run, keys=("a", "b"), limits=Limits(max_concurrent=2, max_length=256)) as server:
        features = server.server.reader.features

        def ask(key: str) -> tuple[int, int]:
            client = server.client.with_options(api_key=key)
            content = [shown(3), said("What is it, and what stands beside it in this picture?")]
            reply = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": content}], max_tokens=1
            )
            return reply.usage.prompt_tokens_details.cached_tokens, features.hits

        assert ask("a")[0] == 0
        assert ask("a")[0] > 0
        before = features.hits
        assert ask("b") == (0, before)


def test_decoded_pictures_are_kept_up_to_a_number_of_bytes(chat_run):  # noqa: F811
    one, other = tiles_of(chat_run, [conftest.picture(1, 0)[0]])[0], tiles_of(chat_run, [conftest.picture(2, 0)[0]])[0]
    size = tile_spec(chat_run.run.model, use=True).size
    each = 3 * size * size * len(one)
    pixels = Pixels(size, most=each)
    kept = pixels.pictures(one, tile_names(one), known=False)
    assert pixels.held == each
    again = pixels.pictures(other, tile_names(other), known=False)
    assert pixels.held == each, "more bytes than allowed"
    roomy = Pixels(size, most=9 * each).pictures(other, tile_names(other), known=False)
    for first, second in zip(again, roomy, strict=True):
        torch.testing.assert_close(first.pixels(), second.pixels(), atol=0, rtol=0)
    del kept
    gc.collect()
    assert pixels.held == 0


@pytest.mark.parametrize("most", [0, 1 << 30])
def test_answers_are_the_same_whether_decoded_pictures_are_kept(chat_run, most):  # noqa: F811
    limits = Limits(max_concurrent=2, max_length=256, max_pixel_bytes=most)
    with serving.running(chat_run, limits=limits) as server:
        messages = [{"role": "user", "content": [shown(1), said("and"), shown(2), said("?")]}]
        reply = server.client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=9)
        metrics = requests.get(f"{server.base}/metrics", timeout=60).text
    with serving.running(chat_run) as other:
        expected = other.client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=9)
    assert reply.choices[0].message.content == expected.choices[0].message.content
    assert 'mm1:decoded_picture_bytes{model_name="tiny"}' in metrics
