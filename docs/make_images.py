"""Draw the pictures of README.md from the runs that `make demo` leaves: `make images` calls it.

    python docs/make_images.py [runs/demo] [--to docs/images]

Two pages are laid out for a picture and rendered by Chromium: the opening of the report, and one packed sequence of the
multimodal run. Needs Chromium: `apt-get install chromium` on Debian; CHROMIUM=PATH names another browser of the family.
"""

import argparse
import io
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageChops

from mm1.report.sequence import run_sequence_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SEQUENCE = 42  # of captions: many short documents
WIDTH, HEIGHT, MARGIN, SCALE = 1000, 3000, 28, 1.5  # of the page, in CSS pixels; pixels of the picture to one of these
LARGEST = 150_000  # bytes of a picture

REPORT_STYLE = """
main { max-width: none; padding: 1.75rem 1.75rem 0; } p, .findings, figure svg { max-width: none; }
section, nav, body > footer { display: none; }
"""
SEQUENCE_STYLE = """
main { max-width: none; padding: 1.75rem 1.75rem 0; display: grid; grid-template-columns: repeat(4, 1fr); gap: 0.5rem; }
main > :not(.document) { grid-column: 1 / -1; } h1, .facts, .legend, h2 { margin: 0.2rem 0; }
.document { margin: 0; padding: 0.3rem 0.5rem; font-size: 0.85rem; line-height: 1.4; }
.document > small { display: none; }
.text img { max-width: 3.2rem; min-width: 0; margin: 0.1rem; } .text span.mark { font-size: 0.66rem; }
.checks { flex-wrap: nowrap; } .checks table { flex: 1; font-size: 0.8rem; } td { padding: 0.5rem 0.6rem 0.5rem 0; }
.legend { font-size: 0.8rem; } td.legend { white-space: nowrap; font-size: 0.72rem; } .checks img { width: 12rem; }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", nargs="?", type=Path, default=Path("runs/demo"), help="folder of the demo's runs")
    parser.add_argument("--to", type=Path, default=Path("docs/images"), help="folder to write to")
    options = parser.parse_args()
    run = options.demo / "tiny"
    if not (run / "report.html").is_file():
        parser.error(f"there is no {run / 'report.html'}; run `make demo` first")
    options.to.mkdir(parents=True, exist_ok=True)
    for name, page, style in (
        ("report", (run / "report.html").read_text(), REPORT_STYLE),
        ("sequence", run_sequence_page(run, SEQUENCE), SEQUENCE_STYLE),
    ):
        path = options.to / f"{name}.webp"
        save(crop(screenshot(for_picture(page, style))), path)
        print(f"{path}: {path.stat().st_size:,} bytes")


def for_picture(page: str, style: str) -> str:
    """The page in its light colours with `style` added."""
    return page.replace("@media (prefers-color-scheme: dark)", "@media not all").replace(
        "</style>", f"{style}</style>", 1
    )


def screenshot(page: str) -> Image.Image:
    """The top of an HTML page as Chromium renders it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "page.html").write_text(page)
        command = [
            *(browser(), "--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"),
            *(f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium's sandbox does not work for root
            *(f"--screenshot={folder / 'page.png'}", (folder / "page.html").as_uri()),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not (folder / "page.png").is_file():
            raise SystemExit(f"{command[0]} made no picture (exit code {answer.returncode}):\n{answer.stderr}")
        with Image.open(folder / "page.png") as picture:
            return picture.convert("RGB")


def browser() -> str:
    """The path of Chromium or a relative of it."""
    names = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else BROWSERS
    for name in names:
        if path := shutil.which(name):
            return path
    raise SystemExit(f"found none of {', '.join(names)}; install Chromium (Debian: apt-get install chromium)")


def crop(picture: Image.Image) -> Image.Image:
    """The picture without the empty part below its content."""
    empty = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, empty).getbbox()
    if box is None:
        raise SystemExit("the page is empty")
    return picture.crop((0, 0, picture.width, min(picture.height, box[3] + round(MARGIN * SCALE))))


def save(picture: Image.Image, path: Path) -> None:
    """Write the picture in the best quality that gives fewer than `LARGEST` bytes: few colours, else lossy."""
    for colours in (256, 192, 128):
        flat = picture.quantize(colours, dither=Image.Dither.NONE).convert("RGB")
        if fits(flat, path, lossless=True, quality=100):
            return
    for quality in (85, 80, 75, 70, 65, 60):
        if fits(picture, path, lossless=False, quality=quality):
            return
    raise SystemExit(f"{path} would have more than {LARGEST:,} bytes; show less of the page")


def fits(picture: Image.Image, path: Path, *, lossless: bool, quality: int) -> bool:
    """Whether the picture as WebP is small enough; then it is written."""
    file = io.BytesIO()
    picture.save(file, format="WEBP", lossless=lossless, quality=quality, method=6)
    if file.tell() >= LARGEST:
        return False
    path.write_bytes(file.getvalue())
    return True


if __name__ == "__main__":
    main()
