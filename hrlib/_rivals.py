"""The networks of the paper's comparison (Sec. III-D, IV-E) inside their authors' files, in our names.

"stylist": DualStyleGAN's generator.pt and StarGAN v2's *_nets_ema.ckpt; "identity": model_ir_se50.pth. As in
`_foreign`, everything is read by the allow-list, and what we would not compute as they do is refused.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _foreign, _pickles
from .errors import LayoutMismatch

EXPECTED = {
    "stylist": "a DualStyleGAN generator.pt or a StarGAN v2 *_nets_ema.ckpt",
    "identity": "an IR-SE network as in model_ir_se50.pth",
}
STARGAN = ("generator", "mapping_network", "style_encoder")


def read(path: str, which: str) -> _foreign.Network:
    """The network of a "stylist" or an "identity" file."""
    content = _pickles.read(path, "torch")
    try:
        found = _stylist(content) if which == "stylist" else _ir_se(content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise _mismatch(path, which, f"contents that do not fit ({type(e).__name__}: {e})") from e
    if found is None:
        keys = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content).__name__
        raise _mismatch(path, which, f"{keys}")
    return found


def _mismatch(path: str, which: str, what: str) -> LayoutMismatch:
    return LayoutMismatch(f"{path} holds {what}", expected=EXPECTED[which], do="see data/README.md for the files")


def _stylist(content: Any) -> _foreign.Network | None:
    if not isinstance(content, dict):
        return None
    if all(isinstance(content.get(name), dict) for name in STARGAN):
        return _starganv2(content)
    state = content.get("g_ema")
    return _dualstylegan(state) if isinstance(state, dict) and any(k.startswith("res.") for k in state) else None


def _dualstylegan(state: dict[str, Tensor]) -> _foreign.Network:
    inner = {k.removeprefix("generator."): v for k, v in state.items() if k.startswith("generator.")}
    G = _foreign.from_rosinality({"g_ema": inner}, "G_ema", "generator.*")
    own = {k: v for k, v in state.items() if not k.startswith("generator.")}
    blocks = sum(re.fullmatch(r"res\.\d+\.conv\.0\.weight", k) is not None for k in own)
    config = {"generator": G.config, "res_index": blocks - 1}
    together = {f"generator.{k}": v for k, v in G.state.items()} | own
    return _foreign.Network("dualstylegan", config, together, "g_ema of a DualStyleGAN file", measure_w_avg=True)


def _starganv2(content: dict[str, Any]) -> _foreign.Network:
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
    return _foreign.Network("starganv2", config, state, f"a StarGAN v2 nets_ema file{without}")


def _ir_se(state: Any) -> _foreign.Network | None:
    if not isinstance(state, dict) or "input_layer.0.weight" not in state:
        return None
    count = sum(re.fullmatch(r"body\.\d+\.res_layer\.1\.weight", k) is not None for k in state)
    widths = [state[f"body.{i}.res_layer.1.weight"].shape[0] for i in range(count)]
    stages = [(c, len(list(group))) for c, group in groupby(widths)]
    if len(stages) != 4:
        raise ValueError(f"{len(stages)} widths {[c for c, _ in stages]}, where four stages of different widths belong")
    config = dict(
        channels=[c for c, _ in stages], units=[n for _, n in stages], dim=state["output_layer.3.weight"].shape[0]
    )
    return _foreign.Network("ir_se", config, state, "an IR-SE face recognition network")


def read_codes(path: str) -> dict[str, Tensor]:
    """The codes in refined_exstyle_code.npy: {file name of the portrait: [1, num_ws, z_dim] in Z+}, float32."""
    content = _pickles.read(path, "npy")
    arrays = {k: getattr(v, "value", None) for k, v in content.items()} if isinstance(content, dict) else {}
    bad = [k for k, v in arrays.items() if not isinstance(v, np.ndarray) or v.ndim != 3 or v.dtype.kind != "f"]
    if not arrays or bad:
        raise LayoutMismatch(
            f"{path} holds {bad[:4] or type(content).__name__}",
            expected="{file name: numbers [1, num_ws, z_dim]}",
            do="use DualStyleGAN's refined_exstyle_code.npy",
        )
    return {str(k): torch.from_numpy(np.array(v, dtype=np.float32, order="C")) for k, v in arrays.items()}
