"""OpenVINO IR files as far as they hold MobileStyleGAN: constants and the edges of a graph. Nothing is executed.

A network is two files: NAME.xml, the graph, and NAME.bin, the raw little-endian numbers that its Const layers point
into. Everything is checked: sizes, types, bounds, the edges that say which constant serves which layer.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from ..errors import DamagedFile, LayoutMismatch
from . import foreign

TYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "boolean": np.bool_}
# The published network has no strengths for noise maps that are optimised. Each styled convolution of the FFHQ network
# gets a share of its spread: the standard deviation of the features that noise is added to, over 16 samples (z of the
# seeds 0 to 15, psi 0.7).
SPREAD = {
    "b4.conv1": 1.72,
    "b8.conv0": 2.95,
    "b8.conv1": 0.96,
    "b16.conv0": 2.33,
    "b16.conv1": 1.01,
    "b32.conv0": 2.65,
    "b32.conv1": 1.68,
    "b64.conv0": 3.87,
    "b64.conv1": 2.43,
    "b128.conv0": 9.08,
    "b128.conv1": 3.01,
    "b256.conv0": 7.23,
    "b256.conv1": 1.95,
    "b512.conv0": 1.36,
    "b512.conv1": 0.25,
}
COARSE, FINE = 0.02, 0.05  # shares up to b128, and in b256 and b512: the start of an inversion shows no spots
MOST_XML = 16 << 20  # bytes; the largest graph that we read has half a megabyte


@dataclass(frozen=True)
class Layer:
    """A node: its name and type, the ids of the layers that feed its input ports in order, and a Const's numbers."""

    name: str
    type: str
    inputs: tuple[str, ...]
    value: Tensor | None


def read(path: Path) -> dict[str, Layer]:
    """The layers of NAME.xml with the numbers of NAME.bin, by id, in the file's order.

    Raises:
        DamagedFile: either file is missing, truncated, or not such a network; the message names it.
    """
    path, numbers = Path(path), Path(path).with_suffix(".bin")
    try:
        text = path.read_bytes()
        if len(text) > MOST_XML or b"<!" in text:  # a document type could define entities that expand without end
            raise ValueError("too large, or with a document type")
        root = ElementTree.fromstring(text)
        if root.tag != "net" or root.get("version") != "10":
            raise ValueError(f"<{root.tag} version={root.get('version')!r}>, not a <net> of version 10")
        data = numbers.read_bytes()
        feeds: dict[str, dict[int, str]] = {}
        for edge in root.find("edges"):
            feeds.setdefault(edge.attrib["to-layer"], {})[int(edge.attrib["to-port"])] = edge.attrib["from-layer"]
        layers = {}
        for node in root.find("layers"):
            inputs = tuple(source for _, source in sorted(feeds.get(node.attrib["id"], {}).items()))
            value = _constant(node, data) if node.attrib["type"] == "Const" else None
            layers[node.attrib["id"]] = Layer(node.attrib["name"], node.attrib["type"], inputs, value)
        if missing := {source for layer in layers.values() for source in layer.inputs} - layers.keys():
            raise ValueError(f"edges from layers {sorted(missing)[:4]}, which do not exist")
    except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as e:
        raise DamagedFile(
            f"{path.name} and {numbers.name} cannot be read as an OpenVINO network ({type(e).__name__}: {e})",
            expected=f"{path} and {numbers}, IR version 10, as the package holds them",
            do="install the package again",
        ) from e
    return layers


def _constant(node: ElementTree.Element, data: bytes) -> Tensor:
    about, name = node.find("data").attrib, node.attrib["name"]
    shape = tuple(int(n) for n in about["shape"].split(",") if n.strip())
    kind = np.dtype(TYPES[about["element_type"]]).newbyteorder("<")
    offset, size = int(about["offset"]), int(about["size"])
    if min(shape, default=1) < 1 or size != math.prod(shape) * kind.itemsize:
        raise ValueError(f"constant {name}: {size} bytes for {list(shape)} of {about['element_type']}")
    if offset < 0 or offset + size > len(data):
        raise ValueError(f"constant {name} ends at byte {offset + size} of {len(data)}")
    return torch.from_numpy(np.frombuffer(data, kind, math.prod(shape), offset).reshape(shape).copy())


def mobile_stylegan(folder: Path) -> foreign.Network:
    """MobileStyleGAN's generator from {Mapping,Synthesis}Network.{xml,bin} in a folder; see `nets.mobile_stylegan`.

    Raises:
        DamagedFile: see `read`. LayoutMismatch: a network, but not a MobileStyleGAN.
    """
    mapping, synthesis = (read(Path(folder) / f"{name}Network.xml") for name in ("Mapping", "Synthesis"))
    try:
        state = _mapping(mapping) | _synthesis(synthesis)
        channels = {int(k.split(".")[1][1:]): len(v) for k, v in state.items() if k.endswith("conv1.bias")}
        dims = {"z_dim": state["mapping.fc0.weight"].shape[1], "w_dim": len(state["mapping.fc0.weight"])}
        depth = sum(re.fullmatch(r"mapping\.fc\d+\.bias", k) is not None for k in state)
    except (KeyError, IndexError, StopIteration, RuntimeError, ValueError, AttributeError) as e:
        raise LayoutMismatch(
            f"the networks in {folder} are not a MobileStyleGAN ({type(e).__name__}: {e})",
            expected="the layers that MobileStyleGAN's converted networks have",
            do="use the package that the catalogue names",
        ) from e
    layers = {k.split(".", 1)[1].removesuffix(".noise_strength") for k in state if k.endswith(".noise_strength")}
    if layers == SPREAD.keys():
        for name, spread in SPREAD.items():
            share = FINE if name.startswith(("b256", "b512")) else COARSE
            state[f"synthesis.{name}.noise_strength"] = torch.tensor(share * spread)
    config = {**dims, "resolution": 2 * max(channels), "channels": channels, "mapping_layers": depth}
    return foreign.Network("mobile_stylegan", config, state, "MobileStyleGAN", measure_w_avg=True)


def _mapping(layers: dict[str, Layer]) -> dict[str, Tensor]:
    """Matrices and vectors in the order of the graph."""
    state, users = {}, _users(layers)
    products = [(key, layer) for key, layer in layers.items() if layer.type == "MatMul"]
    for i, (key, layer) in enumerate(products):
        add = next(layers[user] for user in users[key] if layers[user].type == "Add")
        reshape = next(layers[source] for source in add.inputs if layers[source].type == "Reshape")
        state[f"mapping.fc{i}.weight"] = layers[layer.inputs[1]].value
        state[f"mapping.fc{i}.bias"] = layers[reshape.inputs[0]].value
    state["mapping.w_avg"] = torch.zeros(len(state["mapping.fc0.bias"]))  # measured where the network is loaded
    return state


def _synthesis(layers: dict[str, Layer]) -> dict[str, Tensor]:
    named = {layer.name: layer.value for layer in layers.values() if layer.name.startswith("m.")}
    users, state = _users(layers), {"synthesis.b4.const": named.pop("m.input.input")[0]}

    def take(key: str, ours: str) -> None:
        state[f"{ours}.affine.weight"] = named.pop(f"{key}.modulation.weight")
        state[f"{ours}.affine.bias"] = named.pop(f"{key}.modulation.bias").flatten()

    convolutions = iter([k for k, layer in layers.items() if layer.type in ("Convolution", "GroupConvolution")])
    count = sum(name.endswith(".up.modulation.weight") for name in named)
    wanted = [("m.conv1", "synthesis.b4.conv1")]
    for i in range(count):
        res = 8 << i
        take(f"m.layers.{i}.up", f"synthesis.b{res}.up")
        wanted += [(f"m.layers.{i}.conv{j + 1}", f"synthesis.b{res}.conv{j}") for j in (0, 1)]
    for theirs, ours in wanted:
        take(f"{theirs}.conv", ours)
        key = next(convolutions)
        if layers[key].type == "GroupConvolution":
            depthwise = layers[layers[key].inputs[1]]
            if depthwise.name != f"{theirs}.conv.weight_dw":
                raise ValueError(f"{depthwise.name} where {theirs} was expected")
            state[f"{ours}.depthwise"] = named.pop(depthwise.name)[:, 0]
            key = next(convolutions)
        state[f"{ours}.weight"] = layers[layers[key].inputs[1]].value
        (noise,) = users[key]
        (bias,) = users[noise]
        state[f"{ours}.noise_const"] = layers[layers[noise].inputs[1]].value[0, 0]
        if (found := layers[layers[bias].inputs[1]].name) != f"{theirs}.bias":
            raise ValueError(f"{found} where {theirs}.bias was expected")
        state[f"{ours}.bias"] = named.pop(found).flatten()
        state[f"{ours}.noise_strength"] = torch.zeros([])
    last = f"m.layers.{count - 1}.to_img"
    take(f"{last}.conv", f"synthesis.b{4 << count}.torgb")
    state[f"synthesis.b{4 << count}.torgb.weight"] = named.pop(f"{last}.conv.weight")
    state[f"synthesis.b{4 << count}.torgb.bias"] = named.pop(f"{last}.bias").flatten()
    if named:
        raise ValueError(f"constants without a place: {sorted(named)[:4]}")
    return state


def _users(layers: dict[str, Layer]) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for key, layer in layers.items():
        for source in layer.inputs:
            users.setdefault(source, []).append(key)
    return users
