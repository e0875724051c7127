"""Strict loading, saving, and conversion of foreign checkpoints; the catalogue of files is `files.py`.

Our own files are safetensors whose metadata hold "architecture", "config" (JSON) and "card" (one sentence saying where
the weights come from). Nothing here falls back on random weights: a file that is missing, damaged, hostile or of
another layout is an error that says what to do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import nets, store
from ..errors import DamagedFile, HRLibError, LayoutMismatch, UnknownName, WeightsError, nearest
from ..nets import st_lpips
from ..nets.dlib_faces import DlibIdentity
from . import files, foreign, openvino_ir, other_networks, pickles
from .files import Entry, catalogue, path

SUFFIX = ".safetensors"  # of our own files
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")


def register(
    name: str, file: str | os.PathLike, *, card: str, licence: str = "MIT", origin: str = "trained by this repository"
) -> Entry:
    """Add a finished file of ours, in the data folder, to the catalogue, with its hash and its model card.

    card: Markdown, written to `data/weights/<name>.md`: data, recipe, seeds, time, measured quality, limits.

    Raises:
        WeightsError: the file is outside the data folder, or cannot be read.
    """
    file = Path(file).resolve()
    if not file.is_relative_to(files.DATA):
        raise WeightsError(
            f"{file} is outside {files.DATA}", expected="a shipped file", do="save it under data/weights first"
        )
    metadata = _read(file)[1]  # not load_state: the file may differ from the entry that this call replaces
    new = Entry(
        name=name,
        kind="network",
        file=file.relative_to(files.DATA).as_posix(),
        licence=licence,
        origin=origin,
        profile="laptop",
        size=file.stat().st_size,
        sha256=store.sha256(file),
        architecture=metadata.get("architecture"),
    )
    listing = files.catalogue_file()
    store.write_bytes(listing.parent / f"{name}.md", card.strip().encode() + b"\n")
    entries = {**(catalogue() if listing.exists() else {}), name: new}
    store.write_json(listing, {n: _slim(e) for n, e in entries.items()})
    return new


def _slim(e: Entry) -> dict[str, Any]:
    """An entry's fields, without its name (the key) and without defaults."""
    return {f.name: v for f in dataclasses.fields(e) if f.name != "name" and (v := getattr(e, f.name)) != f.default}


# --- reading ----------------------------------------------------------------------------------------------------------


def load_state(name_or_path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state_dict, metadata) of a safetensors file, or of a torch file that holds one plain state_dict.

    Floating point tensors come back as float32, also those stored in half precision.

    Raises:
        WeightsError: the file is missing, damaged, hostile or of another layout, or holds NaN or infinite numbers.
    """
    state, metadata = _read(path(name_or_path))
    return _single(state, str(name_or_path)), metadata


def _single(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state with floating point tensors in float32; `WeightsError` unless all numbers are finite."""
    return checked_finite({k: t.detach().float() if t.is_floating_point() else t for k, t in state.items()}, source)


def checked_finite(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """`state` itself; a `WeightsError` names its tensors with NaN or infinite numbers, if there are any."""
    if bad := [key for key, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]:
        shown = f"{', '.join(bad[:6])}{' ...' if len(bad) > 6 else ''}"
        raise WeightsError(
            f"{source} holds non-finite numbers (NaN, infinity) in {len(bad)} of {len(state)} tensors: {shown}",
            expected="finite weights",
            do="take an earlier snapshot, or copy the file again",
        )
    return state


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state_dict in the stored precision, metadata)."""
    if file.suffix.lower() in TORCH_SUFFIXES:
        state = pickles.read(file, "torch")
        if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
            raise LayoutMismatch(
                f"{file} holds more than one state_dict",
                expected="a flat state_dict of tensors",
                do="load a StyleGAN2 checkpoint with load_generator or load_discriminator",
            )
        metadata: dict[str, str] = {}
    elif file.suffix.lower() == SUFFIX:
        try:
            with safe_open(file, framework="pt") as f:
                state = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a dict
                metadata = f.metadata() or {}
        except (SafetensorError, OSError) as e:
            raise DamagedFile(
                f"{file} cannot be read ({e})", expected="a complete safetensors file", do="copy or download it again"
            ) from e
    else:
        raise LayoutMismatch(
            f"{file} has the suffix {file.suffix!r}",
            expected=f"{SUFFIX}, {', '.join(TORCH_SUFFIXES)} (or .pkl for load_generator)",
            do="check that this is a weight file",
        )
    return state, metadata


def load_strictly(net: nn.Module, state: dict[str, Tensor], source: str) -> nn.Module:
    """Fill `net` with `state`; a `LayoutMismatch` lists missing keys, unexpected keys and wrong shapes."""
    own = net.state_dict()
    differ = [k for k in own if k in state and own[k].shape != state[k].shape]
    found = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of wrong shape": [f"{k} {list(state[k].shape)} for {list(own[k].shape)}" for k in differ],
    }
    if any(found.values()):
        lines = [f"{len(v)} {what}: {', '.join(v[:6])}{' ...' if len(v) > 6 else ''}" for what, v in found.items() if v]
        raise LayoutMismatch(
            f"{source} does not fit {type(net).__name__}: {'; '.join(lines)}",
            expected="exactly the network's own keys and shapes",
            do="check that the file belongs to this network",
        )
    net.load_state_dict(state)
    return net


def _network(name_or_path: str | os.PathLike, which: str) -> foreign.Network:
    """The network in one of our files or in a foreign checkpoint."""
    file = path(name_or_path)
    if file.suffix.lower() == ".xml":
        return openvino_ir.mobile_stylegan(file.parent)
    if file.suffix.lower() in (".pkl", *TORCH_SUFFIXES):
        reader = other_networks if which in other_networks.EXPECTED else foreign
        return reader.read(str(file), which)
    state, metadata = _read(file)
    try:
        return foreign.Network(metadata["architecture"], json.loads(metadata["config"]), state, metadata["card"])
    except (KeyError, ValueError) as e:
        raise LayoutMismatch(
            f"{file} does not say which network it belongs to ({type(e).__name__}: {e})",
            expected='metadata "architecture", "config" and "card"',
            do="write such files with weights.save_network",
        ) from e


class _Budget(TorchFunctionMode):
    """Lets a constructor allocate about as much as the file holds, so that no false configuration fills the memory."""

    FACTORIES = (torch.randn, torch.rand, torch.zeros, torch.ones, torch.empty, torch.full)

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.left = 2 * numel + 1_000_000  # constructors also make tensors outside their state

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in self.FACTORIES:
            size = args[0] if args and isinstance(args[0], (tuple, list)) else args
            self.left -= math.prod(n for n in size if isinstance(n, int))
            if self.left < 0:
                raise ValueError("its configuration describes a far larger network than the file holds")
        return function(*args, **(kwargs or {}))


def _assemble(network: foreign.Network, source: str, expected: tuple[str, ...]) -> nn.Module:
    if network.architecture not in expected:
        raise LayoutMismatch(
            f"{source} holds a {network.architecture}",
            expected=f"one of {', '.join(expected)}",
            do="check that this is the right file, or load it with the function for its kind of network",
        )
    state = _single(network.state, source)
    try:
        # The initial weights are overwritten at once; drawing them must not advance the caller's random numbers.
        with torch.random.fork_rng(devices=[]), _Budget(sum(t.numel() for t in state.values())):
            net = nets.build(network.architecture, network.config)
    except (HRLibError, RuntimeError, TypeError, ValueError) as e:
        raise LayoutMismatch(
            f"{source} describes an impossible {network.architecture}: {e}",
            expected="a configuration that its constructor accepts",
            do="check that this is the right file, or convert the original checkpoint again",
        ) from e
    load_strictly(net, state, source)
    if network.measure_w_avg:
        with torch.no_grad():
            z = torch.randn(10_000, net.z_dim, generator=torch.Generator().manual_seed(0))
            mapping = getattr(net, "generator", net).mapping  # a DualStyleGAN contains a StyleGAN2
            mapping.w_avg.copy_(torch.cat([mapping.w(part) for part in z.split(500)]).mean(0))
    return net.eval().requires_grad_(False)


def load_generator(name_or_path: str | os.PathLike, device: str = "cpu", *, which: str = "G_ema") -> nn.Module:
    """A generator in evaluation mode, without gradients on its parameters.

    Args:
        name_or_path: catalogue name, our .safetensors, an NVlabs .pkl, a rosinality .pt, or MobileStyleGAN's
            SynthesisNetwork.xml (with the other three files of its OpenVINO networks beside it).
        which: "G_ema" (the averaged weights, which papers show) or "G", for foreign files that hold both.
    """
    expected = ("stylegan2", "style_inr", "mobile_stylegan", "mobile_inr")
    return _assemble(_network(name_or_path, which), str(name_or_path), expected).to(device)


def load_discriminator(name_or_path: str | os.PathLike, device: str = "cpu") -> nn.Module:
    """A discriminator in evaluation mode, without gradients on its parameters; files as for `load_generator`."""
    expected = ("stylegan2_discriminator",)
    return _assemble(_network(name_or_path, "D"), str(name_or_path), expected).to(device)


def load_identity(
    name_or_path: str | os.PathLike = "identity_thin", device: str = "cpu", *, bgr: bool = False
) -> nn.Module:
    """A face recognition network in evaluation mode, without gradients on its parameters; use its `embed`.

    Args:
        name_or_path: catalogue name ("identity_thin", "ir_se50"), a file that `save_network` wrote, the authors'
            model_ir_se50.pth, or "dlib" for `nets.dlib_faces.DlibIdentity`, which finds the faces itself.
        bgr: feed IR-SE50 its colours in the order of its training data; the paper feeds RGB. Our own network takes RGB
            only.
    """
    if name_or_path == "dlib":
        net = DlibIdentity(path("dlib_recognition"), path("dlib_landmarks5")).eval()
    else:
        net = _assemble(_network(name_or_path, "identity"), str(name_or_path), ("identity", "ir_se"))
    if bgr and not hasattr(net, "bgr"):
        raise LayoutMismatch(
            f"bgr of {name_or_path}, a {type(net).__name__}",
            expected="an IR-SE50, the only network trained on BGR",
            do="leave bgr out",
        )
    if bgr:
        net.bgr = True
    return net.to(device)


def load_stylist(name_or_path: str | os.PathLike, device: str = "cpu") -> nn.Module:
    """A network that restyles a picture after a reference: `nets.dualstylegan` or `nets.starganv2`, for inference.

    name_or_path: catalogue name, a file that `save_network` wrote, DualStyleGAN's generator.pt, or StarGAN v2's
        *_nets_ema.ckpt.
    """
    return _assemble(_network(name_or_path, "stylist"), str(name_or_path), ("dualstylegan", "starganv2")).to(device)


def load_generator3d(name_or_path: str | os.PathLike, device: str = "cpu") -> nn.Module:
    """A 3D-aware generator (`nets.cips3d`) in evaluation mode, without gradients on its parameters.

    Args:
        name_or_path: catalogue name, a file that `save_network` wrote, CIPS-3D's G_ema.pth (with its authors' usual
            camera), or an official directory with G_ema.pth and config_command.yaml (with the camera given there).
    """
    if (folder := Path(name_or_path)).is_dir():
        network = other_networks.read_cips3d(folder)
    else:
        network = _network(name_or_path, "generator3d")
    return _assemble(network, str(name_or_path), ("cips3d",)).to(device)


def load_st_lpips(name_or_path: str | os.PathLike) -> nn.Module:
    """The trunk and the heads of ST-LPIPS (`nets.st_lpips`), frozen; `losses.LPIPS` computes the distance.

    name_or_path: "st_lpips_alex", "st_lpips_vgg", or a file with the published names or ours.
    """
    state = st_lpips.translated(load_state(name_or_path)[0])
    first = state.get("net.layers.0.weight")
    with torch.random.fork_rng(devices=[]):
        net = st_lpips.STLPIPS("alex" if first is not None and first.shape[-1] == 11 else "vgg")
    return load_strictly(net, state, str(name_or_path)).eval().requires_grad_(False)


def load_codes(name_or_path: str | os.PathLike) -> dict[str, Tensor]:
    """DualStyleGAN's extrinsic codes (refined_exstyle_code.npy): {portrait's file name: [1, num_ws, z_dim] in Z+}.

    `DualStyleGAN.extrinsic` maps them to the W+ codes that `stylise` takes. The file is a pickle; `pickles` reads it.
    """
    return checked_finite(other_networks.read_codes(str(path(name_or_path))), str(name_or_path))


# --- writing ----------------------------------------------------------------------------------------------------------


def save_network(
    net: nn.Module, file: str | os.PathLike, *, card: str = "", half: bool = False, force: bool = False
) -> Path:
    """Write a network of `nets.ARCHITECTURES` as safetensors, atomically, so that `load_*` can rebuild it.

    Args:
        file, force: as in `save_state`.
        card: one sentence saying where the weights come from.
        half: store floating point numbers in 16 bits: half the size, about three digits.
    """
    names = {cls: name for name, cls in nets.ARCHITECTURES.items()}
    if type(net) not in names:
        raise WeightsError(
            f"a network of type {type(net).__name__}",
            expected=f"one of {', '.join(nets.ARCHITECTURES)}",
            do="save its state_dict with save_state",
        )
    metadata = {"architecture": names[type(net)], "config": json.dumps(net.config), "card": card}
    state = net.state_dict()
    if half:
        state = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    return save_state(state, file, metadata, force=force)


def save_state(
    state: dict[str, Tensor],
    file: str | os.PathLike,
    metadata: dict[str, Any] | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write tensors and metadata (texts) as safetensors, atomically; return the file's path.

    Args:
        file: gets the suffix .safetensors if it lacks it, since the readers go by the suffix.
        force: replace an existing file, as a run does with its own snapshots.

    Raises:
        StoreError: the file exists and force is not set, or it cannot be written.
        WeightsError: NaN or infinite numbers.
    """
    file = store.new(store.destination(file, SUFFIX), force=force)
    checked_finite(state, "the state to be saved")
    with store.atomic(file) as temp:
        save_file({key: t.detach().cpu().contiguous().clone() for key, t in state.items()}, temp, metadata)
    return file


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike | None = None,
    *,
    which: str = "G_ema",
    half: bool = False,
    card: str = "",
    force: bool = False,
) -> Path:
    """Convert network `which` of a foreign checkpoint to one of our safetensors files; return its path.

    Nothing in the checkpoint is executed, and its numbers are copied unchanged. If it has no average code (rosinality's
    training files), w_avg is measured as the mean of 10,000 mapped codes, seed 0.

    Args:
        dst: gets the suffix .safetensors if it lacks it; default: `src` with .safetensors appended. Never `src` itself.
        which: "G_ema", "G" or "D" of a StyleGAN2; "identity" for IR-SE50; "stylist" for DualStyleGAN or StarGAN v2;
            "generator3d" for CIPS-3D.
        half: as in `save_network`; a checkpoint of 16-bit numbers only is always written in 16 bits.
        force: replace an existing file.

    Raises:
        UnknownName: no such `which`.
        WeightsError: as for `load_generator`. StoreError: `dst` exists, is `src`, or cannot be written.
    """
    if which not in (known := (*foreign.WHICH, *other_networks.EXPECTED)):
        hint = nearest(which, list(known)) or "leave it out for a StyleGAN2 generator"
        raise UnknownName(f"which={which!r}", expected=f"one of {', '.join(known)}", do=hint)
    source = path(src)
    target = store.new(store.destination(source if dst is None else dst, SUFFIX), force=force, source=source)
    network = _network(source, which)
    net = _assemble(network, str(src), tuple(nets.ARCHITECTURES))
    measured = "; w_avg measured from 10,000 codes, seed 0" if network.measure_w_avg else ""
    card = card or f"{network.note}, converted from {source.name} (SHA-256 {store.sha256(source)}){measured}"
    half = half or all(t.dtype == torch.float16 for t in network.state.values() if t.is_floating_point())
    return save_network(net, target, card=card, half=half, force=force)
