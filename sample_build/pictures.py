"""The captioned pictures of the sample, and how drawings are rendered, cropped and squared."""

from dataclasses import dataclass, field

import PIL.Image

from mm1.prepare.images import PictureError, open_picture
from sample_build.sources import Source

_LONGEST_TO_SHORTEST = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its caption, for a caption document and for gallery pages.

    group    pictures of one group may make a gallery: a folder of clip art, a subgroup of emoji
    family   pictures of one family are held out together: all skin tones of an emoji
    labels   the caption in other languages
    """

    id: str
    source: Source
    data: bytes
    caption: str
    group: str
    family: str
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    creator: str = ""


def render_svg(data: bytes, *, side: int, lettering: bool = True) -> PIL.Image.Image:
    """The drawing in a square of `side` pixels at most, RGB on white.

    No font of this machine is used, so that every machine renders the same picture: drawings with text are refused, or
    rendered without their text if `lettering` is false.

    Raises:
        PictureError: not an SVG, a drawing with text, or one that cannot be rendered.
    """
    import resvg_py

    text = data.decode("utf-8", "replace")
    if lettering and any(tag in text for tag in ("<text", "<svg:text", "<flowRoot")):
        raise PictureError("drawing with text, which needs fonts of the machine")
    try:
        png = resvg_py.svg_to_bytes(svg_string=text, width=side, height=side, dpi=96, skip_system_fonts=True)
    except ValueError as error:
        raise PictureError("drawing that cannot be rendered") from error
    return open_picture(bytes(png))


def crop(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture without its white margins.

    Raises:
        PictureError: an all-white picture, or one so long and thin that nothing of it is left when it is shrunk.
    """
    ink = PIL.Image.eval(image.convert("L"), lambda value: 255 if value < 250 else 0).getbbox()
    if ink is None:
        raise PictureError("empty picture")
    image = image.crop(ink)
    if max(image.size) > _LONGEST_TO_SHORTEST * min(image.size):
        raise PictureError("picture that is too long and thin")
    return image


def square(image: PIL.Image.Image, *, side: int) -> PIL.Image.Image:
    """The picture in the middle of a white square of `side` pixels, aspect ratio kept."""
    small = image.copy()
    scale = side / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    small = small.resize(size, PIL.Image.Resampling.LANCZOS)
    page = PIL.Image.new("RGB", (side, side), "white")
    page.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return page
