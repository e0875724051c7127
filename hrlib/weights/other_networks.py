"""The paper's networks besides StyleGAN2 (Sec. III-D, IV-E, IV-F) in their authors' files, translated to our names.

"stylist": DualStyleGAN's generator.pt and StarGAN v2's *_nets_ema.ckpt; "identity": model_ir_se50.pth; "generator3d":
CIPS-3D's G_ema.pth, whose camera settings are in a file beside it. As in `foreign`, `pickles` reads the files, and
networks that we would compute differently are refused.
"""

from __future__ import annotations

import math
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LayoutMismatch
from ..nets.cips3d import CAMERA
from . import foreign, pickles

EXPECTED = {
    "stylist": "a DualStyleGAN generator.pt or a StarGAN v2 *_nets_ema.ckpt",
    "identity": "an IR-SE network as in model_ir_se50.pth",
    "generator3d": "a CIPS-3D generator as in G_ema.pth",
}
CIPS3D_FILES = ("G_ema.pth", "config_command.yaml")  # of an official directory
STARGAN = ("generator", "mapping_network", "style_encoder")


def read(path: str, which: str) -> foreign.Network:
    """The network in a file; `which` is "stylist", "identity" or "generator3d"."""
    content = pickles.read(path, "torch")
    try:
        found = {"stylist": _stylist, "identity": _ir_se, "generator3d": _cips3d}[which](content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise _mismatch(path, which, f"an unexpected layout ({type(e).__name__}: {e})") from e
    if found is None:
        keys = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content).__name__
        raise _mismatch(path, which, f"{keys}")
    return found


def _mismatch(path: str, which: str, what: str) -> LayoutMismatch:
    return LayoutMismatch(f"{path} holds {what}", expected=EXPECTED[which], do="use a file listed in data/README.md")


def _stylist(content: Any) -> foreign.Network | None:
    if not isinstance(content, dict):
        return None
    if all(isinstance(content.get(name), dict) for name in STARGAN):
        return _starganv2(content)
    state = content.get("g_ema")
    return _dualstylegan(state) if isinstance(state, dict) and any(k.startswith("res.") for k in state) else None


def _dualstylegan(state: dict[str, Tensor]) -> foreign.Network:
    inner = {k.removeprefix("generator."): v for k, v in state.items() if k.startswith("generator.")}
    G = foreign.from_rosinality({"g_ema": inner}, "G_ema", "generator.*")
    own = {k: v for k, v in state.items() if not k.startswith("generator.")}
    blocks = sum(re.fullmatch(r"res\.\d+\.conv\.0\.weight", k) is not None for k in own)
    config = {"generator": G.config, "res_index": blocks - 1}
    together = {f"generator.{k}": v for k, v in G.state.items()} | own
    return foreign.Network("dualstylegan", config, together, "g_ema of a DualStyleGAN file", measure_w_avg=True)


def _starganv2(content: dict[str, Any]) -> foreign.Network:
    state = {f"{name}.{k}": v for name in STARGAN for k, v in content[name].items()}
    count = lambda pattern: sum(re.fullmatch(pattern, k) is not None for k in state)
    edge = state.get("generator.hpf.filter")
    hidden, latent_dim = state["mapping_network.shared.0.weight"].shape
    config = dict(
        img_size=4 << count(r"style_encoder\.shared\.\d+\.conv1\.weight"),
        style_dim=state["generator.decode.0.norm1.fc.weight"].shape[1],
        latent_dim=latent_dim,
        num_domains=count(r"style_encoder\.unshared\.\d+\.weight"),
        max_conv_dim=max(
            len(v) for k, v in state.items() if re.fullmatch(r"style_encoder\.shared\.\d+\.conv2\.weight", k)
        ),
        w_hpf=0 if edge is None else float(8 / edge[1, 1]),
        hidden=hidden,
        width=state["generator.from_rgb.weight"].shape[0],
    )
    without = ", without its landmark network `fan`" if "fan" in content else ""
    return foreign.Network("starganv2", config, state, f"a StarGAN v2 nets_ema file{without}")


def _ir_se(state: Any) -> foreign.Network | None:
    if not isinstance(state, dict) or "input_layer.0.weight" not in state:
        return None
    count = sum(re.fullmatch(r"body\.\d+\.res_layer\.1\.weight", k) is not None for k in state)
    widths = [state[f"body.{i}.res_layer.1.weight"].shape[0] for i in range(count)]
    stages = [(c, len(list(group))) for c, group in groupby(widths)]
    if len(stages) != 4:
        raise ValueError(f"stages of widths {[c for c, _ in stages]} instead of four stages of different widths")
    config = dict(
        channels=[c for c, _ in stages], units=[n for _, n in stages], dim=state["output_layer.3.weight"].shape[0]
    )
    return foreign.Network("ir_se", config, state, "an IR-SE face recognition network")


def _cips3d(state: Any) -> foreign.Network | None:
    if not isinstance(state, dict) or "siren.final_layer.weight" not in state:
        return None
    count = lambda pattern: sum(re.fullmatch(pattern, k) is not None for k in state)
    shape = lambda key: state[key].shape
    config = dict(
        z_dim=shape("mapping_network_nerf.base_net.0.weight")[1],
        z_dim_inr=shape("mapping_network_inr.base_net.0.weight")[1],
        nerf_hidden=shape("siren.final_layer.weight")[1],
        nerf_layers=count(r"siren\.network\.\d+\.linear\.weight"),
        rgb_dim=shape("siren.color_layer_linear.0.weight")[0],
        nerf_style=shape("siren.network.0.gain_fc.weight")[1],
        inr_hidden=shape("inr_net.network.4.mod1.weight")[2],
        inr_style=shape("inr_net.network.4.mod1.modulation.weight")[1],
        inr_blocks=count(r"inr_net\.network\.\d+\.mod1\.weight"),
        nerf_mapping=count(r"mapping_network_nerf\.base_net\.\d+\.weight"),
        inr_mapping=sum(v.ndim == 2 for k, v in state.items() if k.startswith("mapping_network_inr.base_net.")),
    )
    return foreign.Network("cips3d", config, state, "G_ema of CIPS-3D, with its authors' usual camera")


def read_cips3d(folder: Path) -> foreign.Network:
    """The generator of an official directory: `G_ema.pth`, with the camera of `config_command.yaml` (its G_kwargs)."""
    import yaml  # not among the packages that the core requires

    if missing := [name for name in CIPS3D_FILES if not (folder / name).is_file()]:
        there = ", ".join(sorted(f.name for f in folder.iterdir())[:6]) or "nothing"
        raise LayoutMismatch(
            f"{folder} lacks {' and '.join(missing)} (it holds {there})",
            expected=f"a CIPS-3D directory with {' and '.join(CIPS3D_FILES)}",
            do="give a directory saved by the authors' training, or the path of a single G_ema.pth",
        )
    file = folder / CIPS3D_FILES[1]
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings = _kwargs(content)
        camera = {k: _setting(k, settings[k]) for k in CAMERA if k in settings}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as e:
        raise LayoutMismatch(
            f"{file}: {type(e).__name__}: {e}",
            expected="YAML with G_kwargs: fov, ray_start, ray_end, num_steps, ...",
            do="use the config_command.yaml that the training saved beside this G_ema.pth",
        ) from e
    network = read(str(folder / CIPS3D_FILES[0]), "generator3d")
    return foreign.Network(network.architecture, network.config | {"camera": camera}, network.state, "CIPS-3D")


def _kwargs(content: Any) -> dict[str, Any]:
    """The G_kwargs of a configuration: at its top level, or below the name of the command that was run."""
    for part in (content, *content.values()) if isinstance(content, dict) else ():
        if isinstance(part, dict) and isinstance(found := part.get("G_kwargs"), dict):
            if missing := [k for k in ("fov", "ray_start", "ray_end", "num_steps") if k not in found]:
                raise KeyError(f"G_kwargs without {', '.join(missing)}")
            return found
    raise KeyError("no G_kwargs")


def _setting(name: str, value: Any) -> Any:
    if type(value) is int and isinstance(CAMERA[name], float):
        value = float(value)
    if type(value) is not type(CAMERA[name]) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name}={value!r}")
    return value


def read_codes(path: str) -> dict[str, Tensor]:
    """The codes in refined_exstyle_code.npy: {file name of the portrait: [1, num_ws, z_dim] in Z+}, float32."""
    content = pickles.read(path, "npy")
    arrays = {k: getattr(v, "value", None) for k, v in content.items()} if isinstance(content, dict) else {}
    bad = [k for k, v in arrays.items() if not isinstance(v, np.ndarray) or v.ndim != 3 or v.dtype.kind != "f"]
    if not arrays or bad:
        raise LayoutMismatch(
            f"{path} holds {bad[:4] or type(content).__name__}",
            expected="{file name: numbers [1, num_ws, z_dim]}",
            do="use DualStyleGAN's refined_exstyle_code.npy",
        )
    return {str(k): torch.from_numpy(np.array(v, dtype=np.float32, order="C")) for k, v in arrays.items()}
