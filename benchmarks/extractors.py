"""How well extractors keep the content of a page and nothing else: 50 labelled pages of seven manuals (docs/pages.md).

python benchmarks/extractors.py [PACKAGES]     the folder of fetched packages; .cache/packages by default

Libraries that are not installed are left out (pip install trafilatura selectolax), and so are manuals that cannot be
fetched. Prints for each extractor the pages free of navigation, the pages that lost no paragraph, the images found, the
pages in the right order, and the speed; for ours also each mistake.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

sys.path.append(str(Path(__file__).parents[1]))  # `sample_build` is not installed

from mm1.document import Text
from mm1.prepare.html.main_content import main_content
from sample_build.packages import PackageError
from sample_build.pages import LARGER_MANUALS, MANUALS

LABELS = Path(__file__).parents[1] / "tests" / "labels" / "pages.jsonl"
_IMAGE = "img:"  # before the name of an image, where a label or an output has one


@dataclass(frozen=True, slots=True)
class Label:
    """A labelled page.

    removed   words of its navigation, with how often they may still occur: the content may say the same
    kept      the beginnings of its paragraphs, and its images, in order
    """

    manual: str
    page: str
    sha256: str
    removed: dict[str, int]
    kept: list[str]


@dataclass(frozen=True, slots=True)
class Score:
    """What is left of the navigation, what is lost of the content, and what comes too early."""

    left: list[str]
    lost: list[str]
    lost_images: list[str]
    misplaced: list[str]


def labels() -> list[Label]:
    """All labelled pages."""
    return [Label(**json.loads(line)) for line in LABELS.read_text(encoding="utf-8").splitlines()]


def folder_of(name: str, cache: Path, *, fetch: bool = True) -> Path:
    """The folder of the pages of a manual.

    Raises:
        PackageError: its package cannot be fetched, or is missing and must not be fetched.
    """
    manual = next(manual for manual in (*MANUALS, *LARGER_MANUALS) if manual.source.name == name)
    if not fetch and not (cache / "unpacked" / manual.source.package.folder).is_dir():
        raise PackageError(f"{manual.source.package.title} is not in {cache}")
    return manual.source.folder(cache) / manual.root


def folders(cache: Path) -> dict[str, Path]:
    """The folder of the pages of each manual; manuals that cannot be fetched are missing."""
    roots = {}
    for name in dict.fromkeys(label.manual for label in labels()):
        try:
            roots[name] = folder_of(name, cache)
        except PackageError as error:
            print(f"left out: {error}", file=sys.stderr)
    return roots


def page_of(label: Label, root: Path) -> bytes:
    """The labelled page.

    Raises:
        ValueError: it is not the page that was labelled.
    """
    content = (root / label.page).read_bytes()
    if not sha256(content).hexdigest().startswith(label.sha256):
        raise ValueError(f"{label.manual} {label.page} is not the page that was labelled: another version?")
    return content


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def score(label: Label, output: list[str]) -> Score:
    """The score of an output: its words in order, an image as `img:` and the name of its file."""
    joined = f" {' '.join(output)} "
    text = f" {' '.join(word for word in output if not word.startswith(_IMAGE))} "
    left = [removed for removed, times in label.removed.items() if text.count(f" {removed} ") > times]
    lost = [kept for kept in label.kept if f" {kept} " not in (joined if kept.startswith(_IMAGE) else text)]
    misplaced, at = [], 0
    for kept in label.kept:
        if kept not in lost:
            start = _next(joined, kept, at)
            if start < 0:
                misplaced.append(kept)
            at = max(at, start)
    return Score(
        left,
        [kept for kept in lost if not kept.startswith(_IMAGE)],
        [kept for kept in lost if kept.startswith(_IMAGE)],
        misplaced,
    )


def _next(joined: str, kept: str, at: int) -> int:
    """The next start of a paragraph after `at`, or -1; an image may interrupt its words."""
    between = rf" (?:{_IMAGE}\S+ )*"
    match = re.compile(f" {between.join(map(re.escape, kept.split()))} ").search(joined, at)
    return match.start() if match else -1


def ours(content: bytes) -> list[str]:
    output: list[str] = []
    for piece in main_content(content, "site:///"):
        output += words(piece.text) if isinstance(piece, Text) else [_IMAGE + urlsplit(piece.url).path.split("/")[-1]]
    return output


def _marked(content: bytes) -> str:
    """The page with each image replaced by a word: the libraries return text alone."""
    page = content.decode("utf-8", "replace")
    return re.sub(r"""<img\b[^>]*?\bsrc\s*=\s*["']([^"']+)["'][^>]*>""", _marker, page, flags=re.IGNORECASE)


def _marker(image: re.Match[str]) -> str:
    return f" imgstart{image[1].split('/')[-1].encode().hex()}imgend "


def _unmarked(text: str) -> list[str]:
    marked = re.compile(r"imgstart([0-9a-f]+)imgend")
    return [_IMAGE + bytes.fromhex(hit[1]).decode() if (hit := marked.fullmatch(w)) else w for w in words(text)]


def extractors() -> Iterator[tuple[str, Callable[[bytes], list[str]]]]:
    """The installed extractors by name; each returns the words of a page."""
    yield "ours", ours
    from resiliparse.extract.html2text import extract_plain_text

    yield "resiliparse", lambda content: _unmarked(extract_plain_text(_marked(content), main_content=True))
    try:
        import trafilatura

        yield "trafilatura", lambda content: _unmarked(trafilatura.extract(_marked(content)) or "")
        yield (
            "trafilatura, for recall",
            lambda content: _unmarked(trafilatura.extract(_marked(content), favor_recall=True) or ""),
        )
    except ImportError:
        print("left out: trafilatura is not installed", file=sys.stderr)
    try:
        from selectolax.lexbor import LexborHTMLParser

        yield "selectolax, main and tags", lambda content: _unmarked(_by_tags(LexborHTMLParser(_marked(content))))
    except ImportError:
        print("left out: selectolax is not installed", file=sys.stderr)


def _by_tags(tree) -> str:
    """The simplest rule: the page's `main`, `article` or body, without the tags that are navigation."""
    main = tree.css_first("main, [role=main], article") or tree.body
    tree.strip_tags(["script", "style", "nav", "header", "footer", "aside", "noscript"])
    return main.text(separator=" ") if main is not None else ""


def main() -> None:
    cache = Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/packages")
    roots = folders(cache)
    pages = [(label, page_of(label, roots[label.manual])) for label in labels() if label.manual in roots]
    images = sum(kept.startswith(_IMAGE) for label, _ in pages for kept in label.kept)
    print(f"{len(pages)} pages of {len(roots)} manuals, {images} images\n")
    print(f"{'extractor':26}{'no navigation':>15}{'nothing lost':>15}{'images':>9}{'in order':>10}{'pages/s':>9}")
    for name, extract in extractors():
        start = time.process_time()
        outputs = [extract(content) for _, content in pages]
        seconds = time.process_time() - start
        scores = [score(label, output) for (label, _), output in zip(pages, outputs, strict=True)]
        clean, whole = sum(not one.left for one in scores), sum(not one.lost for one in scores)
        images_found = images - sum(len(one.lost_images) for one in scores)
        in_order = sum(not one.misplaced for one in scores)
        share = [f"{count} = {count / len(pages):.0%}" for count in (clean, whole)]
        print(f"{name:26}{share[0]:>15}{share[1]:>15}{images_found:>9}{in_order:>10}{len(pages) / seconds:>9.0f}")
        if name == "ours":
            mistakes = [(label, one) for (label, _), one in zip(pages, scores, strict=True)]
    for label, one in mistakes:
        for what in ("left", "lost", "lost_images", "misplaced"):
            for words_ in getattr(one, what):
                print(f"ours, {what}: {label.manual} {label.page}: {words_}")


if __name__ == "__main__":
    main()
