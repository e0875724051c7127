"""Mixing two generators and two codes, block by block: Eq. (6) and (7); with lambdas 0 and 1 this is layer swapping.

    G_m = lerp(G_s, G_t, lambda)   (6)        w_m = lerp(w_s, w_t, lambda)   (7)

lambda is a number for each resolution of the synthesis network; the pure functions `paper_lambdas`, `swap_lambdas` and
`logistic_lambdas` make the usual ones. All weights of the synthesis network are mixed, including the fixed noise maps;
the INR head of a Style-INR-GAN belongs to the last block. MobileStyleGAN has no b1024 and ignores a lambda for one: its
step from b512 to the picture belongs to b512. The mapping network remains the source's, as in the authors' code; the
codes are mixed instead.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .errors import LayoutMismatch, ShapeError, UnknownName, nearest, number
from .nets.stylegan2 import block_resolutions

Lambdas = float | Mapping[int, float]
LOW, HIGH = 0.2, 0.7  # the paper's lambdas for its five coarse blocks (b4 to b64) and its four fine ones (to b1024)
# Settings that may differ: those of the mapping network, and a bound for 16-bit numbers.
NOT_MIXED = ("z_dim", "mapping_layers", "conv_clamp")


def paper_lambdas(resolution: int, low: float = LOW, high: float = HIGH) -> dict[int, float]:
    """The paper's lambdas (Sec. III-C): `low` for b4 to b64 and `high` for b128 to b1024 of a 1024-pixel network.

    At other resolutions, too, five ninths of the blocks, rounded, are coarse: three of six (b4 to b16) at 128 pixels.
    """
    blocks = block_resolutions(resolution)
    coarse = round(len(blocks) * 5 / 9)
    return {res: low if i < coarse else high for i, res in enumerate(blocks)}


def swap_lambdas(resolution: int, from_block: str) -> dict[int, float]:
    """Layer swapping: 0 before the block `from_block` ("b32"), 1 from there on (Pinkney and Adler 2020)."""
    first = _block(resolution, from_block)
    return {res: float(res >= first) for res in block_resolutions(resolution)}


def logistic_lambdas(resolution: int, middle: str, width: float = 1.0) -> dict[int, float]:
    """Smooth layer blending (Pinkney and Adler 2020): 1 / (1 + exp(-x / width)), x counted in blocks from `middle`.

    lambda is 1/2 at `middle` ("b32"); width -> 0 swaps the layers after it, like `swap_lambdas`.
    """
    first = _block(resolution, middle)
    width = number("width", width, "(0, inf)")
    x = {res: math.log2(res / first) / width for res in block_resolutions(resolution)}
    return {res: 0.5 * (1 + math.tanh(v / 2)) for res, v in x.items()}  # the logistic function, without overflow


def lerp_generators(G_s: nn.Module, G_t: nn.Module, lam: Lambdas) -> nn.Module:
    """G_m = G_s + lambda (G_t - G_s), Eq. (6): a new generator; lambda 0 and 1 give source and target exactly.

    Args:
        G_s, G_t: source and target, of the same architecture; G_t was fine-tuned from G_s (Sec. III-C).
        lam: in [0, 1]; one number, or one for each block resolution, {4: 0.2, ..., 128: 0.7}.

    Raises:
        LayoutMismatch: different architectures; the message says how they differ. UnknownName: lambdas for other blocks
            than the network's. InvalidValue: lambdas out of range.
    """
    check_alike(G_s, G_t)
    blocks = G_s.synthesis.resolutions
    lam = _checked(lam, blocks, {G_s.resolution} - set(blocks))
    target = G_t.synthesis.state_dict()
    G_m = copy.deepcopy(G_s)
    with torch.no_grad():
        for name, value in G_m.synthesis.state_dict().items():  # shares its memory with the parameters
            res = blocks[-1] if name.startswith("inr.") else int(name.split(".")[0][1:])
            value.copy_(torch.lerp(value, target[name].to(value), lam[res]))  # Eq. (6); exact at both ends
    return G_m


def lerp_ws(ws_s: Tensor, ws_t: Tensor, lam: Lambdas, *, code_blocks: Sequence[int] | None = None) -> Tensor:
    """w_m = w_s + lambda (w_t - w_s), Eq. (7), of codes [N, num_ws, w_dim] (N of one may be 1).

    Codes belong to blocks in pairs, ws[:, 0:2] to b4, ws[:, 2:4] to b8 and so on, as in the authors' code. (The
    synthesis network itself uses code 1 in b4's toRGB and in b8's first layer.)

    lam: as in `lerp_generators`. code_blocks: the resolution that each code belongs to, `G.code_blocks`; needed for
    MobileStyleGAN, whose codes are no such pairs.
    """
    if ws_s.ndim != 3 or ws_s.shape[1:] != ws_t.shape[1:] or len({len(ws_s), len(ws_t)} - {1}) > 1:
        raise ShapeError(
            f"codes {tuple(ws_s.shape)} and {tuple(ws_t.shape)}",
            expected="[N, num_ws, w_dim] twice",
            do="invert both pictures in space w+, with generators of one architecture",
        )
    num_ws = ws_s.shape[1]
    if code_blocks is None:
        code_blocks = [res for res in block_resolutions(2 ** (num_ws // 2 + 1)) for _ in range(2)]
    if len(code_blocks) != num_ws:
        raise ShapeError(
            f"{num_ws} codes and {len(code_blocks)} code_blocks", expected="one a code", do="give G.code_blocks"
        )
    blocks = sorted(set(code_blocks))
    lam = _checked(lam, blocks, {2 * blocks[-1]} if code_blocks.count(blocks[-1]) > 2 else set())
    of_code = ws_s.new_tensor([lam[res] for res in code_blocks])[:, None]  # [num_ws, 1]
    return torch.lerp(ws_s, ws_t.to(ws_s), of_code)  # Eq. (7)


def swap_layers(G_s: nn.Module, G_t: nn.Module, from_block: str) -> nn.Module:
    """The source generator with the target's blocks from `from_block` ("b32") on (Fig. 2a)."""
    return lerp_generators(G_s, G_t, swap_lambdas(G_s.resolution, from_block))


def check_alike(G_s: nn.Module, G_t: nn.Module) -> None:
    """Raise `LayoutMismatch`, naming the first difference, unless the two synthesis networks can be mixed."""
    if type(G_s) is not type(G_t):
        raise _differ(f"a {type(G_s).__name__} and a {type(G_t).__name__}")
    for key, value in G_s.config.items():
        other = G_t.config.get(key)
        if key not in NOT_MIXED and other != value:
            if key == "channels" and set(value) == set(other):
                res = next(r for r in value if value[r] != other[r])
                raise _differ(f"{value[res]} and {other[res]} channels in block b{res}")
            raise _differ(f"{key} {value} and {other}")


def _differ(how: str) -> LayoutMismatch:
    return LayoutMismatch(
        f"source and target generator differ: {how}",
        expected="two generators of one architecture",
        do="mix a generator with one that was fine-tuned from it",
    )


def _block(resolution: int, name: str) -> int:
    names = [f"b{res}" for res in block_resolutions(resolution)]
    if name not in names:
        raise UnknownName(
            f"block {name!r}", expected=f"one of {', '.join(names)}", do=nearest(name, names) or "write b32, say"
        )
    return int(name[1:])


def _checked(lam: Lambdas, blocks: Sequence[int], unused: set[int]) -> dict[int, float]:
    """{resolution: lambda} for every block, in their order; `lam` may also have some for `unused`."""
    values = dict(lam) if isinstance(lam, Mapping) else dict.fromkeys(blocks, lam)
    if set(values) - unused != set(blocks):
        raise UnknownName(
            f"lambdas for {sorted(values, key=str)}",
            expected=f"one for each of {list(blocks)}",
            do=f"start from mixing.paper_lambdas({max(blocks)})",
        )
    return {res: float(number(f"lambdas[{res}]", values[res], "[0, 1]")) for res in blocks}
