"""Reads captions in COCO's own JSON, and in Karpathy's splits of it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mm1.document import Document, Image, Text
from mm1.prepare.bounded_read import LARGEST_INDEX, parse_json, read_head, read_picture
from mm1.prepare.ledger import Dropped, Ledger
from mm1.prepare.shard import InputError, Shard


def read_coco(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """A picture, then a caption of it, for each caption of a COCO captions file (https://cocodataset.org/#format-data).

    Files of Karpathy (https://cs.stanford.edu/people/karpathy/deepimagesent/) hold the captions beside the pictures.

    Raises:
        InputError: the file is neither, or too large to be read whole.
    """
    path = shard.files[0]
    data = read_head(path, LARGEST_INDEX + 1)
    if len(data) > LARGEST_INDEX:
        raise InputError(f"{path.name} has more than {LARGEST_INDEX:,} bytes, the most that are read whole")
    content = parse_json(data.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path.name} is no COCO captions file: it needs the lists images and annotations")
    entries = [entry for entry in content["images"] if isinstance(entry, dict)]
    if any("sentences" in entry for entry in entries):
        yield from _karpathy(entries, shard, ledger)
    else:
        yield from _coco(content, entries, shard, ledger)


def _coco(content: dict[str, Any], entries: list[dict[str, Any]], shard: Shard, ledger: Ledger) -> Iterator[Document]:
    if shard.options.split:
        raise InputError(
            f"{shard.name} has no split {', '.join(shard.options.split)}: COCO's files hold one split each"
        )
    licences = {
        entry.get("id"): str(entry.get("url") or entry.get("name"))
        for entry in content.get("licenses") or []
        if isinstance(entry, dict)
    }
    annotations = [one for one in content.get("annotations") or [] if isinstance(one, dict)]
    if annotations and not any("caption" in one for one in annotations):
        ledger.skipped["COCO file without captions (of objects, keypoints)"] += 1
        return
    images = {entry.get("id"): entry for entry in entries}
    captions: dict[Any, list[str]] = {}
    for number, annotation in enumerate(content.get("annotations") or []):
        caption = annotation.get("caption") if isinstance(annotation, dict) else None
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(caption, str) and caption.strip() and image_id in images:
            captions.setdefault(image_id, []).append(" ".join(caption.split()))
            continue
        with ledger.record(f"annotation {number + 1}", annotation):
            raise Dropped("annotation without a caption, or of a picture that the file does not list")
    for image_id, entry in images.items():
        metadata = {"licence": licences.get(entry.get("license"), ""), "url": str(entry.get("coco_url", ""))}
        metadata = {key: value for key, value in metadata.items() if value}
        name = str(entry.get("file_name", ""))
        for document in _captioned(name, captions.get(image_id, []), shard, ledger):
            yield replace(document, id=f"{shard.name}/{image_id}/{document.id}", metadata=metadata)


def _karpathy(entries: list[dict[str, Any]], shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """Pictures stand in the folder that `filepath` names, those of Flickr30k in the picture folder itself."""
    for entry in entries:
        sentences = entry.get("sentences") if isinstance(entry.get("sentences"), list) else []
        captions = [" ".join(raw.split()) for raw in map(_raw, sentences or []) if raw.strip()]
        name = "/".join(str(entry[key]) for key in ("filepath", "filename") if entry.get(key))
        if shard.options.split and entry.get("split") not in shard.options.split:
            for number in range(max(1, len(captions))):
                with ledger.record(f"image {name}, caption {number + 1}", pictures=1):
                    raise Dropped("record of another split", expected=True, detail=str(entry.get("split")))
            continue
        for document in _captioned(name, captions, shard, ledger):
            yield replace(document, id=f"{shard.name}/{entry.get('imgid', name)}/{document.id}")


def _raw(sentence: Any) -> str:
    raw = sentence.get("raw") if isinstance(sentence, dict) else sentence
    return raw if isinstance(raw, str) else ""


def _captioned(name: str, captions: list[str], shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """The picture with each of its captions; a document's id is the caption's number."""
    image: Image | None = None
    for number, caption in enumerate(captions):
        with ledger.record(f"image {name}, caption {number + 1}", caption, pictures=1):
            image = image or read_picture(shard, name)
            yield Document((image, Text(caption)), id=str(number))
    if not captions:
        with ledger.record(f"image {name}", name, pictures=1):
            raise Dropped("picture without a caption")
