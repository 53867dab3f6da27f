"""Error rates of the look at two pictures before one counts as a copy of the other (`mm1/prepare/second_look.py`).

    python benchmarks/second_look.py [--pairs 400]

different     pairs of invoices, charts, slides and screenshots of one template each, half of them compressed again: how
              many are kept
photographs   pairs of a photograph and a variant, compressed again (JPEG or WebP, quality 40 to 95), resized (0.4 to
              1.5), or cropped (up to 3 % at each side): how many are found

The pictures are drawn, the photographs with the spectrum of photographs, by a seed. Both looks count: fingerprints
within the bits of `copy_bits`, then the difference of `copy_difference`.
"""

import argparse
import io
import random
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mm1.prepare.dedup import CopyRules
from mm1.prepare.images import fingerprint
from mm1.prepare.second_look import detail, difference

_WORDS = ("Paper", "Ink", "Desk", "Chair", "Lamp", "Cable", "Screen", "Mouse", "Printer", "Stapler", "Folder", "Marker")
_TEMPLATES = 9

Maker = Callable[[int, int], Image.Image]
"""(seed, number of the template) -> a picture of text."""


def invoice(seed: int, template: int) -> Image.Image:
    """A form with a number, a date, and lines of goods whose prices differ."""
    shared, own = random.Random(f"invoice {template}"), random.Random(f"invoice {template} {seed}")
    width, height = shared.choice([(600, 800), (800, 1100), (500, 700)])
    size = shared.choice([13, 15, 18])
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((40, 30), shared.choice(["INVOICE", "Rechnung", "BILL"]), "black", _font(size * 2))
    draw.text((40, 90), f"Number: {own.randint(10000, 99999)}", "black", _font(size))
    draw.text((40, 115), f"Date: 2024-{own.randint(1, 12):02}-{own.randint(1, 28):02}", "black", _font(size))
    prices = [own.randint(100, 9999) for _ in range(shared.randint(5, 9))]
    lines = [(shared.choice(_WORDS), price) for price in prices] + [("Total", sum(prices))]
    for line, (name, price) in enumerate(lines):
        y = 170 + 2 * size * line
        draw.text((40, y), name, "black", _font(size))
        draw.text((width - 140, y), f"{price / 100:.2f}", "black", _font(size))
        draw.line((40, y - 4, width - 40, y - 4), "gray")
    return page


def chart(seed: int, template: int) -> Image.Image:
    """Bars or a line of other values, under the same title."""
    shared, own = random.Random(f"chart {template}"), random.Random(f"chart {template} {seed}")
    page = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(page)
    draw.text((200, 20), shared.choice(["Sales by month", "Rain in mm", "Users"]), "black", _font(20))
    draw.line((60, 60, 60, 420, 600, 420), "black")
    colour, is_line, count = (
        shared.choice(["steelblue", "orange", "green"]),
        shared.random() < 0.5,
        shared.randint(4, 9),
    )
    points = [(80 + at * 500 // count, 420 - own.randint(40, 340)) for at in range(count)]
    for at, (x, y) in enumerate(points):
        if not is_line:
            draw.rectangle((x, y, x + 300 // count, 420), colour)
        draw.text((x, 425), str(at + 1), "black", _font(14))
    if is_line:
        draw.line(points, colour, 3)
    return page


def slide(seed: int, template: int) -> Image.Image:
    """Other words on the same background."""
    shared, own = random.Random(f"slide {template}"), random.Random(f"slide {template} {seed}")
    ground = shared.choice(["white", "navy", "#f4f0e8", "#204030"])
    page = Image.new("RGB", (960, 540), ground)
    draw, ink = ImageDraw.Draw(page), "white" if ground in ("navy", "#204030") else "black"
    draw.text((60, 40), _words(own, 3), ink, _font(36))
    for line in range(4):
        draw.text((80, 150 + 70 * line), f"- {_words(own, 4)}", ink, _font(24))
    return page


def screenshot(seed: int, template: int) -> Image.Image:
    """Other lines in the same program."""
    shared, own = random.Random(f"screen {template}"), random.Random(f"screen {template} {seed}")
    page = Image.new("RGB", (1024, 640), "#eeeeee")
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, 1024, 40), shared.choice(["#336699", "#444444"]))
    draw.text((20, 10), shared.choice(["Mail", "Editor", "Shop"]), "white", _font(18))
    draw.rectangle((0, 40, 200, 640), "#dddddd")
    for line in range(8):
        draw.text((20, 60 + 40 * line), shared.choice(_WORDS), "black", _font(16))
    for line in range(10):
        draw.rectangle((220, 60 + 55 * line, 1000, 105 + 55 * line), "white")
        draw.text((235, 72 + 55 * line), _words(own, 7), "black", _font(16))
    return page


def photo(seed: int) -> Image.Image:
    """Noise with the spectrum of photographs (amplitude about 1 over frequency), with some objects."""
    noise, own = np.random.default_rng(seed), random.Random(seed)
    width, height = 640, 480
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequencies[0, 0] = 1
    channels: list[np.ndarray] = []
    for _ in range(3):
        phases = noise.normal(size=frequencies.shape) + 1j * noise.normal(size=frequencies.shape)
        values = np.fft.irfft2(phases / frequencies ** noise.uniform(1.1, 1.4), s=(height, width))
        values = (values - values.mean()) / values.std()
        channels.append(values if not channels else 0.7 * channels[0] + 0.3 * values)
    picture = Image.fromarray(np.clip(128 + 50 * np.stack(channels, axis=-1), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(own.randint(0, 6)):
        x, y, radius = own.randint(0, width), own.randint(0, height), own.randint(20, 160)
        colour = own.randint(0, 255), own.randint(0, 255), own.randint(0, 255)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    return picture.filter(ImageFilter.GaussianBlur(own.choice([0, 0.7, 1.2])))


def compressed(picture: Image.Image, chance: random.Random) -> bytes:
    return encoded(picture, chance.choice(["JPEG", "WEBP"]), quality=chance.randint(40, 95))


def resized(picture: Image.Image, chance: random.Random) -> bytes:
    scale = chance.uniform(0.4, 1.5)
    size = round(picture.width * scale), round(picture.height * scale)
    how = chance.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
    return encoded(picture.resize(size, how), "JPEG", quality=chance.randint(70, 95))


def cropped(picture: Image.Image, chance: random.Random) -> bytes:
    left, top, right, bottom = (chance.uniform(0, 0.03) for _ in range(4))
    width, height = picture.size
    box = (int(left * width), int(top * height), int(width - right * width), int(height - bottom * height))
    return encoded(picture.crop(box), "JPEG", quality=chance.randint(70, 95))


def numbered(seed: int, template: int) -> Image.Image:
    """An invoice of a template where only its number, of five digits, is its own."""
    page = invoice(0, template)
    draw, size = ImageDraw.Draw(page), random.Random(f"invoice {template}")
    size.choice([(600, 800), (800, 1100), (500, 700)])
    letters = size.choice([13, 15, 18])
    draw.rectangle((40, 88, page.width - 40, 113), "white")
    number = random.Random(f"number {template} {seed}").randint(10000, 99999)
    draw.text((40, 90), f"Number: {number}", "black", _font(letters))
    return page


PICTURES_OF_TEXT: dict[str, Maker] = {"invoices": invoice, "charts": chart, "slides": slide, "screenshots": screenshot}
VARIANTS = {"compressed": compressed, "resized": resized, "cropped": cropped}


def encoded(picture: Image.Image, form: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def different_pairs(make: Maker, count: int, *, seed: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of different pictures of one template; the second of every other pair is compressed again."""
    chance = random.Random(f"pairs {seed}")
    for number in range(count):
        one, other = (make(2 * number + at + seed, number % _TEMPLATES) for at in (1, 2))
        yield encoded(one), compressed(other, chance) if number % 2 else encoded(other)


def variant_pairs(name: str, count: int, *, seed: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of a photograph and a variant of it."""
    chance = random.Random(f"{name} {seed}")
    for number in range(count):
        picture = photo(number + seed)
        yield encoded(picture, "JPEG", quality=92), VARIANTS[name](picture, chance)


def are_copies(one: bytes, other: bytes, rules: CopyRules) -> bool:
    """Whether both looks take one picture for a copy of the other."""
    if (fingerprint(one) ^ fingerprint(other)).bit_count() > rules.bits:
        return False
    details = detail(one), detail(other)
    return bool(details[0] and details[1] and difference(details[0], details[1]) <= rules.difference)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="of each kind")
    count, rules = parser.parse_args().pairs, CopyRules()
    for name, make in PICTURES_OF_TEXT.items():
        pairs = list(different_pairs(make, count))
        alike = sum((fingerprint(one) ^ fingerprint(other)).bit_count() <= rules.bits for one, other in pairs)
        kept = sum(not are_copies(one, other, rules) for one, other in pairs)
        print(f"different {name:12} kept {kept} of {count}; {alike} look alike at first", flush=True)
    kept = sum(not are_copies(one, other, rules) for one, other in different_pairs(numbered, count))
    print(f"invoices that differ in their number alone: kept {kept} of {count}", flush=True)
    for name in VARIANTS:
        copies = sum(are_copies(one, other, rules) for one, other in variant_pairs(name, count))
        print(f"photographs {name:10} found {copies} of {count}", flush=True)


if __name__ == "__main__":
    main()
