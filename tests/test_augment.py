"""Pictures are shown in other ways at every turn, and in the same way for the same sequence."""

import numpy as np
import pytest
import small
from PIL import Image as Pillow

from mm1.config.base import ConfigError
from mm1.config.run import AugmentConfig, override
from mm1.data.augment import Augmentation
from mm1.data.loader import sequences_of
from mm1.document import Image


def png(width: int, height: int) -> bytes:
    import io

    file = io.BytesIO()
    ramp = np.add.outer(np.arange(height), np.arange(width)) % 256
    Pillow.fromarray(np.repeat(ramp[:, :, None], 3, 2).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def augmentation(seed: int = 0, **fields) -> Augmentation:
    return Augmentation(AugmentConfig(**fields), seed)


def test_crops_are_inside_and_as_large_as_the_config_says():
    image, draw = Image(png(200, 100)), augmentation()
    areas, aspects = [], []
    for picture in range(400):
        box = draw.crop(image, draw.draws(5, picture)).box
        assert box is not None
        left, top, right, bottom = box
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 100
        areas.append((right - left) * (bottom - top) / 20_000)
        aspects.append((right - left) / (bottom - top) / 2)
    assert 0.39 < min(areas) < 0.45
    assert 0.9 < max(areas) <= 1
    assert 0.72 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.38
    part = draw.crop(Image(image.data, (50, 20, 150, 60)), draw.draws(5, 0)).box
    assert part is not None
    assert 50 <= part[0] < part[2] <= 150
    assert 20 <= part[1] < part[3] <= 60


def test_flips_are_as_frequent_as_the_config_says_and_colours_move_both_ways():
    ramp = np.repeat(np.arange(8, dtype=np.uint8)[None, None] * 20, 3, 0).repeat(8, 1) + 40
    draw = augmentation()
    flipped = [not (draw.recolour(ramp, draw.draws(1, n)) == ramp).all() for n in range(400)]
    assert 150 < sum(flipped) < 250
    assert all((draw.recolour(ramp, draw.draws(1, n))[:, :, ::-1] == ramp).all() for n in range(400) if flipped[n])
    coloured = augmentation(flip=0.0, jitter=0.4)
    means = [coloured.recolour(ramp, coloured.draws(1, n)).mean() / ramp.mean() for n in range(400)]
    assert 0.55 < min(means) < 0.7
    assert 1.3 < max(means) < 1.45
    grey = [coloured.recolour(ramp, coloured.draws(1, n)) for n in range(20)]
    assert all((x[0] == x[1]).all() for x in grey)  # grey has no saturation to change


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_sequences_are_the_same_whatever_is_read_with_them(stores, tmp_path, jitter):
    run = override(small.run(stores), [f"data.augment.jitter={jitter}"])
    run.data.sources["text"].share = 0
    one, again = sequences_of(run, tmp_path / "a"), sequences_of(run, tmp_path / "b")
    together = one.batch([3, 4, 5])
    apart = [again.batch([number]) for number in (5, 4, 3)]
    pixels = [batch.images_NCYX[: batch.images] for batch in reversed(apart)]
    assert (together.images_NCYX[: together.images].numpy() == np.concatenate(pixels)).all()
    plain = sequences_of(override(run, ["data.augment=null"]), tmp_path / "c").batch([3, 4, 5])
    differ = (plain.images_NCYX != together.images_NCYX).flatten(1).any(1)[: plain.images]
    assert differ.double().mean() > 0.9
    other = sequences_of(override(run, ["seed=1"]), tmp_path / "d").batch([3, 4, 5])
    assert other.images_NCYX.shape != plain.images_NCYX.shape or (other.images_NCYX != plain.images_NCYX).any()


def test_validation_shows_pictures_as_they_are(stores, tmp_path):
    run = override(small.run(stores), ["data.augment.jitter=0.3"])
    held_out = {"captions": str(stores["captions"])}
    batches = [
        sequences_of(each, tmp_path / str(number), held_out=held_out).batch([0, 1])
        for number, each in enumerate((run, override(run, ["data.augment=null"])))
    ]
    assert (batches[0].images_NCYX == batches[1].images_NCYX).all()


def test_tiles_are_not_augmented(stores):
    with pytest.raises(ConfigError, match=r"set data\.augment=null, or model\.tiling\.kind=none"):
        override(small.run(stores), ["data.augment.flip=0", "model.tiling.kind=mm1"])
