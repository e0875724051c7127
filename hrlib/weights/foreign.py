"""StyleGAN2 in foreign checkpoints, translated to our names: NVlabs' stylegan2-ada-pytorch, rosinality's
stylegan2-pytorch.

The input is what `pickles.read` returns: plain containers and tensors. Options that would change the network's
arithmetic are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import LayoutMismatch
from ..nets.stylegan2 import FIR
from . import pickles

WHICH = ("G_ema", "G", "D")
_WHOLE_BATCH = 1 << 30  # NVlabs' mbstd_group_size None: the whole batch is one group


class Network(NamedTuple):
    """What `nets.build` and `load_state_dict` need, and a sentence for the model card.

    measure_w_avg: the file has no average code; the caller must measure it with the network's own mapping.
    """

    architecture: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    note: str
    measure_w_avg: bool = False


def read(path: str, which: str) -> Network:
    """Read network `which` ("G_ema", "G" or "D") from an NVlabs .pkl or a rosinality .pt."""
    nvlabs = str(path).lower().endswith(".pkl")
    content = pickles.read(path, "nvlabs" if nvlabs else "torch")
    translate = from_nvlabs if nvlabs else from_rosinality
    try:
        return translate(content, which, str(path))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise _mismatch(str(path), f"something other than a StyleGAN2 ({type(e).__name__}: {e})") from e


def _mismatch(source: str, what: str, do: str = "use a StyleGAN2 checkpoint (see data/README.md)") -> LayoutMismatch:
    return LayoutMismatch(
        f"{source} holds {what}",
        expected="a StyleGAN2 saved by stylegan2-ada-pytorch (.pkl) or by rosinality's stylegan2-pytorch (.pt)",
        do=do,
    )


def _require(source: str, what: str, value: Any, *allowed: Any) -> None:
    """Refuse an option that would change the network's arithmetic."""
    if isinstance(value, Tensor) or value not in allowed:
        raise _mismatch(source, f"a network with {what} = {value!r}; only {what} = {allowed[0]!r} is supported")


def _layers(state: dict[str, Tensor]) -> int:
    return sum(re.fullmatch(r"mapping\.fc\d+\.weight", key) is not None for key in state)


def _check_filter(kernel: Tensor, gain: float, source: str, key: str) -> None:
    if kernel.shape != FIR.shape or not torch.allclose(kernel.float(), FIR * gain, rtol=0, atol=1e-6):
        raise _mismatch(source, f"a resampling filter at {key} other than [1, 3, 3, 1]")


# --- NVlabs -----------------------------------------------------------------------------------------------------------


def from_nvlabs(content: Any, which: str, source: str) -> Network:
    """G_ema, G or D of a network-snapshot: config from `_init_kwargs`, state equal to the original state_dict."""
    if not isinstance(content, dict) or not isinstance(content.get(which), pickles.Record):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise _mismatch(source, f"{found} and no network {which!r}", f"use another of {', '.join(WHICH)}")
    record = content[which]
    _require(source, "class name", record.class_name, "Discriminator" if which == "D" else "Generator")
    state = {}
    for key, tensor in _walk(record):
        if key.rpartition(".")[2] == "resample_filter":
            _check_filter(tensor, 1.0, source, key)
        else:
            state[key] = tensor
    kwargs = record.state["_init_kwargs"]
    _require(source, "positional arguments", tuple(record.state.get("_init_args", ())), ())
    _require(source, "c_dim (class labels)", kwargs.get("c_dim", 0), 0)
    _require(source, "img_channels", kwargs.get("img_channels", 3), 3)
    config = (_nvlabs_discriminator if which == "D" else _nvlabs_generator)(kwargs, state, source)
    architecture = "stylegan2_discriminator" if which == "D" else "stylegan2"
    return Network(architecture, config, state, f"{which} of an NVlabs stylegan2-ada-pytorch pickle")


def _walk(record: pickles.Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) as the original module's state_dict would list them."""
    if not isinstance(record, pickles.Record):
        raise ValueError(f"module {prefix or 'root'!r} is a {type(record).__name__}")
    for group in ("_parameters", "_buffers"):
        for name, tensor in record.state[group].items():
            if isinstance(tensor, Tensor) and name not in record.state.get("_non_persistent_buffers_set", ()):
                yield f"{prefix}{name}", tensor
    for name, child in record.state["_modules"].items():
        yield from _walk(child, f"{prefix}{name}.")


def _plan(kwargs: dict, resolution: int) -> dict[int, int]:
    base, most = kwargs.get("channel_base", 32768), kwargs.get("channel_max", 512)
    return {2**k: min(base // 2**k, most) for k in range(2, int(math.log2(resolution)) + 1)}


def _nvlabs_generator(kwargs: dict, state: dict[str, Tensor], source: str) -> dict[str, Any]:
    mapping = kwargs.get("mapping_kwargs", {})
    own = {"z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"}
    # stylegan3's repository does not nest the synthesis options of its StyleGAN2.
    synthesis = {**{k: v for k, v in kwargs.items() if k not in own}, **kwargs.get("synthesis_kwargs", {})}
    _require(source, "mapping lr_multiplier", mapping.get("lr_multiplier", 0.01), 0.01)
    _require(source, "mapping num_layers", mapping.get("num_layers", 8), _layers(state))
    _require(source, "mapping layer_features", mapping.get("layer_features"), None, kwargs["w_dim"])
    _require(source, "mapping activation", mapping.get("activation", "lrelu"), "lrelu")
    _require(source, "architecture", synthesis.get("architecture", "skip"), "skip")
    _require(source, "activation", synthesis.get("activation", "lrelu"), "lrelu")
    _require(source, "use_noise", synthesis.get("use_noise", True), True)
    return dict(
        z_dim=kwargs["z_dim"],
        w_dim=kwargs["w_dim"],
        resolution=kwargs["img_resolution"],
        channels=_plan(synthesis, kwargs["img_resolution"]),
        mapping_layers=_layers(state),
        conv_clamp=synthesis.get("conv_clamp"),
    )


def _nvlabs_discriminator(kwargs: dict, _: dict[str, Tensor], source: str) -> dict[str, Any]:
    epilogue, block = kwargs.get("epilogue_kwargs", {}), kwargs.get("block_kwargs", {})
    _require(source, "architecture", kwargs.get("architecture", "resnet"), "resnet")
    _require(source, "activation", block.get("activation", "lrelu"), "lrelu")
    _require(source, "epilogue activation", epilogue.get("activation", "lrelu"), "lrelu")
    _require(source, "mbstd_num_channels", epilogue.get("mbstd_num_channels", 1), 1)
    group = epilogue.get("mbstd_group_size", 4)
    return dict(
        resolution=kwargs["img_resolution"],
        channels=_plan(kwargs, kwargs["img_resolution"]),
        mbstd_group_size=_WHOLE_BATCH if group is None else group,
        conv_clamp=kwargs.get("conv_clamp"),
    )


# --- rosinality -------------------------------------------------------------------------------------------------------


def from_rosinality(content: Any, which: str, source: str) -> Network:
    """g_ema, g or d of a rosinality file, or the decoder of a file of the pSp family, which is its g_ema."""
    if not isinstance(content, dict):
        raise _mismatch(source, f"a {type(content).__name__}")
    if isinstance(content.get("state_dict"), dict) and which == "G_ema":  # pSp, e4e, ...
        decoder = {k[8:]: v for k, v in content["state_dict"].items() if k.startswith("decoder.")}
        content = {"g_ema": decoder, "latent_avg": content.get("latent_avg")}
    state = content.get(which.lower())
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _mismatch(source, f"{sorted(map(str, content))} and no network {which.lower()!r}")
    if which == "D":
        return _rosinality_discriminator(state, source)
    return _rosinality_generator(state, content.get("latent_avg"), which, source)


def _rename(state: dict[str, Tensor], rules: list[tuple[str, Any]], source: str) -> dict[str, Tensor]:
    """Rename each key by the first (pattern, match -> new key) that fits; check filters, refuse unknown keys."""
    out, unknown = {}, []
    for key, tensor in state.items():
        if key.endswith(".kernel"):
            up = ".blur." in key or ".upsample." in key  # in the generator, scaled by up^2
            _check_filter(tensor, 4.0 if up else 1.0, source, key)
            continue
        for pattern, name in rules:
            if match := re.fullmatch(pattern, key):
                out[name(*match.groups())] = tensor
                break
        else:
            unknown.append(key)
    if unknown:
        raise _mismatch(source, f"{len(unknown)} unknown keys, such as {unknown[:4]}")
    return out


_TAIL = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "activate.bias": "bias",
    "noise.weight": "noise_strength",
    "bias": "bias",
}
_TAILS = "|".join(re.escape(t) for t in _TAIL)


def _conv(i: str) -> str:
    """rosinality's convs.i is our layer i + 1: b8.conv0, b8.conv1, b16.conv0, ..."""
    return f"synthesis.b{8 << int(i) // 2}.conv{int(i) % 2}"


def _noise(k: str) -> str:
    return f"{'synthesis.b4.conv1' if k == '0' else _conv(str(int(k) - 1))}.noise_const"


def _rosinality_generator(state: dict[str, Tensor], latent_avg: Any, which: str, source: str) -> Network:
    rules = [
        (r"style\.(\d+)\.(weight|bias)", lambda i, t: f"mapping.fc{int(i) - 1}.{t}"),
        (r"input\.input", lambda: "synthesis.b4.const"),
        (rf"conv1\.({_TAILS})", lambda t: f"synthesis.b4.conv1.{_TAIL[t]}"),
        (rf"convs\.(\d+)\.({_TAILS})", lambda i, t: f"{_conv(i)}.{_TAIL[t]}"),
        (rf"to_rgb1\.({_TAILS})", lambda t: f"synthesis.b4.torgb.{_TAIL[t]}"),
        (rf"to_rgbs\.(\d+)\.({_TAILS})", lambda i, t: f"synthesis.b{8 << int(i)}.torgb.{_TAIL[t]}"),
        (r"noises\.noise_(\d+)", _noise),
    ]
    out = _rename(state, rules, source)
    for key, tensor in out.items():
        if key.endswith("noise_strength"):
            out[key] = tensor.reshape([])
        elif key.endswith("noise_const"):
            out[key] = tensor[0, 0]
        elif key.endswith("torgb.bias"):
            out[key] = tensor.reshape(-1)
        elif key.endswith("const") or re.search(r"conv\d\.weight$|torgb\.weight$", key):
            out[key] = tensor[0]
    channels = {int(m[1]): len(out[k]) for k in out if (m := re.fullmatch(r"synthesis\.b(\d+)\.conv1\.weight", k))}
    w_dim, z_dim = out["mapping.fc0.weight"].shape
    note = f"{which.lower()} of a rosinality stylegan2-pytorch file"
    if latent_avg is None:
        out["mapping.w_avg"] = torch.zeros(w_dim)
    else:
        rows = latent_avg.reshape(-1, w_dim)  # the pSp family repeats the vector for each layer
        if not torch.equal(rows, rows[:1].expand_as(rows)):
            raise _mismatch(source, "a latent_avg that differs between layers")
        out["mapping.w_avg"] = rows[0]
    config = dict(z_dim=z_dim, w_dim=w_dim, resolution=max(channels), channels=channels, mapping_layers=_layers(out))
    return Network("stylegan2", {**config, "conv_clamp": None}, out, note, measure_w_avg=latent_avg is None)


def _rosinality_discriminator(state: dict[str, Tensor], source: str) -> Network:
    top = 2 ** (2 + max(int(m[1]) for k in state if (m := re.match(r"convs\.(\d+)\.", k))))

    def block(i: str) -> str:
        return f"b{2 * top >> int(i)}"  # convs.1 works at full resolution

    rules = [
        (r"convs\.0\.0\.weight", lambda: f"b{top}.fromrgb.weight"),
        (r"convs\.0\.1\.bias", lambda: f"b{top}.fromrgb.bias"),
        (r"final_conv\.0\.weight", lambda: "b4.conv.weight"),
        (r"final_conv\.1\.bias", lambda: "b4.conv.bias"),
        (r"final_linear\.0\.(weight|bias)", lambda t: f"b4.fc.{t}"),
        (r"final_linear\.1\.(weight|bias)", lambda t: f"b4.out.{t}"),
        (r"convs\.(\d+)\.conv1\.0\.weight", lambda i: f"{block(i)}.conv0.weight"),
        (r"convs\.(\d+)\.conv1\.1\.bias", lambda i: f"{block(i)}.conv0.bias"),
        (r"convs\.(\d+)\.conv2\.1\.weight", lambda i: f"{block(i)}.conv1.weight"),
        (r"convs\.(\d+)\.conv2\.2\.bias", lambda i: f"{block(i)}.conv1.bias"),
        (r"convs\.(\d+)\.skip\.1\.weight", lambda i: f"{block(i)}.skip.weight"),
    ]
    out = _rename(state, rules, source)
    channels = {int(m[1]): v.shape[1] for k, v in out.items() if (m := re.fullmatch(r"b(\d+)\.conv0\.weight", k))}
    config = dict(resolution=top, channels={**channels, 4: len(out["b4.conv.bias"])}, mbstd_group_size=4)
    note = "d of a rosinality stylegan2-pytorch file"
    return Network("stylegan2_discriminator", {**config, "conv_clamp": None}, out, note)
