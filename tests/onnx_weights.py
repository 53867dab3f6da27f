"""Reads the weights of an ONNX file without an ONNX library: only the protobuf fields that hold tensors.

The numbers of the fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

State = dict[str, torch.Tensor]

_FLOAT = 1  # TensorProto.DataType


def read_onnx(path: Path) -> State:
    """The fp32 weights of the model in an ONNX file, by the names that its modules had before the export.

    An exporter folds some weights into constants without a name. A factor of a matrix product gets the name of that
    node, and is transposed to [outputs, inputs] again; others keep their name in the file, such as `onnx::Concat_1957`.
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
    """The tensors of a DINOv2 by their published names, from an export of the Dinov2Model of `transformers`.

    Its two constants without a name are the position embeddings, split into those of the class token and the patches.
    """
    state = read_onnx(path)
    ending = "embeddings.cls_token"
    prefix = next((name.removesuffix(ending) for name in state if name.endswith(ending)), None)
    if prefix is None:
        raise ValueError(f"{path} is no DINOv2: its {len(state)} tensors have no class token")
    tensors = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    width = tensors["embeddings.cls_token"].shape[-1]
    constants = [x for name, x in state.items() if name.startswith("onnx::") and x.shape[::2] == (1, width)]
    positions = sorted(constants, key=lambda x: x.shape[1])
    if [x.shape[1] == 1 for x in positions] != [True, False]:
        raise ValueError(f"{path} has {len(positions)} constants of width {width}; expected 2, the position embeddings")
    return tensors | {"embeddings.position_embeddings": torch.cat(positions, 1)}


def _tensor(message: memoryview) -> State:
    """A TensorProto as {name: tensor}; empty if it is not fp32, or its data are in another file."""
    raw = _messages(message, 9)
    if [value for number, value in _fields(message) if number == 2] != [_FLOAT] or not raw:
        return {}
    shape = [size for number, value in _fields(message) if number == 1 for size in _integers(value)]
    return {_text(message, 8)[0]: torch.frombuffer(bytearray(raw[0]), dtype=torch.float32).reshape(shape)}


def _text(message: memoryview, field: int) -> list[str]:
    return [bytes(value).decode() for value in _messages(message, field)]


def _messages(message: memoryview, field: int) -> list[memoryview]:
    """The values of one field that are bytes: inner messages, texts, raw data."""
    return [value for number, value in _fields(message) if number == field and not isinstance(value, int)]


def _integers(value: int | memoryview) -> list[int]:
    """The values of a repeated integer field: one, or several packed ones."""
    if isinstance(value, int):
        return [value]
    integers, at = [], 0
    while at < len(value):
        integer, at = _varint(value, at)
        integers.append(integer)
    return integers


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message, see https://protobuf.dev/programming-guides/encoding."""
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
    """The integer at byte `at`, with seven bits per byte, and the position after it."""
    value, shift = 0, 0
    while message[at] & 128:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1
