"""Weights out of ONNX files, read with no library of ONNX's: its protobuf's few fields that hold tensors.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto has the numbers of the fields.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

State = dict[str, torch.Tensor]

_FLOAT = 1  # TensorProto.DataType


def read_onnx(path: Path) -> State:
    """The fp32 weights of the model in an ONNX file, by the names its modules had before the export.

    An exporter folds some weights into constants without a name: one that a matrix product takes is named after that
    node, and turned back to [outputs, inputs]; others keep the file's own name, such as `onnx::Concat_1957`.
    """
    graph = _messages(memoryview(path.read_bytes()), 7)[0]
    tensors = {name: x for message in _messages(graph, 5) for name, x in _tensor(message).items()}
    nodes = [node for node in _messages(graph, 1) if _text(node, 4) == ["MatMul"]]
    products = {_text(node, 1)[1]: _text(node, 3)[0] for node in nodes}
    state = {}
    for name, x in tensors.items():
        if name in products:
            name, x = products[name].removesuffix("/MatMul").strip("/").replace("/", ".") + ".weight", x.mT
        state[name] = x
    return state


def dinov2_from_onnx(path: Path) -> State:
    """A DINOv2's tensors as its published files name them, from an export of `transformers`' Dinov2Model.

    Its two constants without a name are the position embeddings, cut into the class token's and the patches'.
    """
    state = read_onnx(path)
    ending = "embeddings.cls_token"
    prefix = next((name.removesuffix(ending) for name in state if name.endswith(ending)), None)
    if prefix is None:
        raise ValueError(f"{path} is no DINOv2: no class token is among its {len(state)} tensors")
    inside = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    width = inside["embeddings.cls_token"].shape[-1]
    constants = [x for name, x in state.items() if name.startswith("onnx::") and x.shape[::2] == (1, width)]
    positions = sorted(constants, key=lambda x: x.shape[1])
    if [x.shape[1] == 1 for x in positions] != [True, False]:
        raise ValueError(f"{path} has {len(positions)} constants of width {width}, not the two positions are cut into")
    return inside | {"embeddings.position_embeddings": torch.cat(positions, 1)}


def _tensor(message: memoryview) -> State:
    """A TensorProto as {its name: it}, or nothing where it isn't fp32 or stands in another file."""
    raw = _messages(message, 9)
    if [value for number, value in _fields(message) if number == 2] != [_FLOAT] or not raw:
        return {}
    shape = [size for number, value in _fields(message) if number == 1 for size in _integers(value)]
    return {_text(message, 8)[0]: torch.frombuffer(bytearray(raw[0]), dtype=torch.float32).reshape(shape)}


def _text(message: memoryview, wanted: int) -> list[str]:
    return [bytes(value).decode() for value in _messages(message, wanted)]


def _messages(message: memoryview, wanted: int) -> list[memoryview]:
    """The values of one field that are bytes: messages inside the message, texts, raw data."""
    return [value for number, value in _fields(message) if number == wanted and not isinstance(value, int)]


def _integers(value: int | memoryview) -> list[int]:
    """A repeated integer field's value: one, or several packed."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message: https://protobuf.dev/programming-guides/encoding."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value: int | memoryview
            value, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"no protobuf: a field of kind {kind} at byte {at}")
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The integer that begins at byte `at`, seven bits a byte, and where it ends."""
    value, shift = 0, 0
    while message[at] & 128:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1
