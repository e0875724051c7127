"""Eq. (1) in textbook operations: the yardstick of `speed.py`, written to be read and not to be fast.

    min_{w, n}  d[G(w + eps, n), x]                                                                       (1)

The loop is the published projector's, and d is Eq. (3), written out. StyleGAN2's layers modulate a kernel for every
picture and filter after up-sampling, as its paper says (Karras et al. 2020, Sec. 2.2 and Fig. 2); those of
MobileStyleGAN do one operation after the other (Belousov 2021). Networks and weights are the library's. Beside it, LSO:
Eq. (8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrlib import inversion, losses, optim
from hrlib.nets.mobile_stylegan import MobileGenerator, StyledConv
from hrlib.nets.style_inr import INRHead, pixel_grid
from hrlib.nets.stylegan2 import FIR, SQRT2, ModulatedConv, ToRGB


def invert(
    G: nn.Module,
    x: Tensor,
    d: losses.Perceptual,
    *,
    num_steps: int = 1000,
    optimise_noise: bool = True,
    lr: float = 0.1,
    eps_initial: float = 0.05,
    free_noise: bool = False,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Minimise Eq. (1); yields G(w + eps, n) of each step. x: [N, 3, H, W] of the generator's size.

    free_noise: noise maps start at zero and are not normalised, as MobileStyleGAN needs it (`experiments.at_scale`).
    """
    w_avg, w_std = inversion.w_statistics(G)
    torch.manual_seed(seed)
    w = w_avg.repeat(len(x), G.num_ws, 1)  # [N, num_ws, w_dim]
    n = {k: torch.randn(len(x), *m.shape, device=x.device) * (not free_noise) for k, m in G.noise_maps().items()}
    phi_x = features(d, x)  # of images without gradients

    def objective(t: float) -> tuple[Tensor, Tensor]:
        eps = torch.randn_like(w) * optim.exploration_scale(t, w_std=w_std, initial=eps_initial)
        image = synthesis(G, w + eps, n)
        return distance(d, image, phi_x), image

    variables, normalised = [w, *(n.values() if optimise_noise else [])], {} if free_noise else n
    yield from descend(variables, normalised, objective, num_steps=num_steps, lr=lr)


def optimise(
    G_m: nn.Module,
    ws_m: Tensor,
    x_s: Tensor,
    d_h: losses.Perceptual,
    *,
    lam_reg: float,
    num_steps: int = 50,
    lr: float = 0.1,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Minimise Eq. (8), LSO, over all codes and the noise maps; yields G_m(w_m + w_opt + eps, n) of each step."""
    _, w_std = inversion.w_statistics(G_m)
    torch.manual_seed(seed)
    w_opt = torch.randn_like(ws_m) * 0.01 * w_std
    n = {k: m.repeat(len(x_s), 1, 1) for k, m in G_m.noise_maps().items()}
    phi_x = features(d_h, x_s)

    def objective(t: float) -> tuple[Tensor, Tensor]:
        eps = torch.randn_like(ws_m) * optim.exploration_scale(t, w_std=w_std)
        image = synthesis(G_m, ws_m + w_opt + eps, n)
        return distance(d_h, image, phi_x) + lam_reg * w_opt.square().sum() / len(x_s), image

    yield from descend([w_opt, *n.values()], n, objective, num_steps=num_steps, lr=lr)


def descend(
    variables: list[Tensor],
    n: dict[str, Tensor],
    objective: Callable[[float], tuple[Tensor, Tensor]],
    *,
    num_steps: int,
    lr: float,
) -> Iterator[Tensor]:
    """Adam with the projector's rates; the noise maps n are normalised after each step."""
    adam = torch.optim.Adam([v.requires_grad_() for v in variables], lr=lr)
    for step in range(num_steps):
        t = step / num_steps
        adam.param_groups[0]["lr"] = lr * optim.lr_ramp(t)
        loss, image = objective(t)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for m in n.values():
                inversion.normalise_(m)
        yield image.detach()


def distance(d: losses.Perceptual, image: Tensor, phi_x: dict[str, Tensor]) -> Tensor:
    """sum_l || lambda_l (phi_l(image) - phi_l(x)) ||^2, Eq. (3), divided by the batch size."""
    phi = features(d, image)
    return sum((lam * (phi[tap] - phi_x[tap])).square().sum() for tap, lam in d.weights.items()) / len(image)


def features(d: losses.Perceptual, x: Tensor) -> dict[str, Tensor]:
    """phi_l(x) of Eq. (3): the network's own layers, one after the other."""
    return d.features(x, d.weights, resize=d.resize)


def synthesis(G: nn.Module, ws: Tensor, n: dict[str, Tensor]) -> Tensor:
    """G(w, n): [N, num_ws, w_dim], {layer: [N, h, w]} -> [N, 3, H, W]."""
    S, image, code, mobile = G.synthesis, None, 0, isinstance(G, MobileGenerator)
    conv = styled_conv if mobile else modulated_conv
    for res in S.resolutions:
        block = getattr(S, f"b{res}")
        if res == 4:
            x = block.const.expand(len(ws), -1, -1, -1)
        else:
            if mobile:
                x = inverse_haar(x * block.up.affine(ws[:, code]))
            x = conv(block.conv0, x, ws[:, code], n[f"b{res}.conv0"])
            code += 1
        x = conv(block.conv1, x, ws[:, code], n[f"b{res}.conv1"])
        code += 1
        if hasattr(block, "torgb") and not mobile:
            rgb = to_rgb(block.torgb, x, ws[:, code])
            image = rgb if image is None else up_and_filter(image) + rgb
    if hasattr(S, "inr"):
        return inr(S.inr, x, ws[:, -1])
    if mobile:
        rgb = block.torgb
        image = inverse_haar(F.conv2d(x * rgb.affine(ws[:, code]) * rgb.gain, rgb.weight, rgb.bias))
    return image


def modulated_conv(layer: ModulatedConv, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """StyleGAN2: the kernel modulated and demodulated for each picture, a grouped convolution, noise, bias, lReLU."""
    n, i, h, width = x.shape
    kernel = layer.weight[None] * layer.affine(w)[:, None, :, None, None]  # [N, O, I, 3, 3]
    kernel = kernel * (kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    o = kernel.shape[1]
    x = x.reshape(1, n * i, h, width)
    if layer.up:
        x = F.conv_transpose2d(x, kernel.transpose(1, 2).reshape(n * i, o, 3, 3), stride=2, groups=n)
        fir = (FIR.to(x) * 4)[None, None].expand(n * o, 1, 4, 4)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), fir, groups=n * o)
    else:
        x = F.conv2d(x, kernel.reshape(n * o, i, 3, 3), padding=1, groups=n)
    x = x.reshape(n, o, *x.shape[2:]) + noise[:, None] * layer.noise_strength
    return F.leaky_relu(x + layer.bias[:, None, None], 0.2) * SQRT2


def to_rgb(layer: ToRGB, x: Tensor, w: Tensor) -> Tensor:
    """StyleGAN2: features to a picture by a 1x1 convolution, modulated but not demodulated."""
    return F.conv2d(x * (layer.affine(w) * layer.gain)[:, :, None, None], layer.weight) + layer.bias[:, None, None]


def up_and_filter(image: Tensor) -> Tensor:
    """StyleGAN2: twice the size, zeros between the pixels, then the FIR filter."""
    n, c, h, w = image.shape
    spread = image.new_zeros(n, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = image
    return F.conv2d(F.pad(spread, (2, 1, 2, 1)), (FIR.to(image) * 4)[None, None].expand(c, 1, 4, 4), groups=c)


def inr(head: INRHead, x: Tensor, w: Tensor) -> Tensor:
    """Sec. III-A: at each pixel, its features and coordinates through an MLP."""
    n, _, h, width = x.shape
    x = (x * head.affine(w)[:, :, None, None]).permute(0, 2, 3, 1)
    x = torch.cat([x, pixel_grid((h, width), device=x.device).expand(n, -1, -1, -1)], dim=-1)
    return head.fc2(head.fc1(head.fc0(x))).permute(0, 3, 1, 2)


def styled_conv(layer: StyledConv, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """MobileStyleGAN: modulation, depthwise and pointwise convolution, published and own noise, bias, leaky ReLU."""
    x = x * layer.affine(w) * layer.gain
    if hasattr(layer, "depthwise"):
        x = F.conv2d(x, layer.depthwise, padding=1, groups=x.shape[1])
    x = F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2)
    x = x + layer.noise_const + layer.noise_strength * noise[:, None]
    return F.leaky_relu(x + layer.bias[:, None, None], 0.2)


def inverse_haar(x: Tensor) -> Tensor:
    """[N, 4 C, H, W] -> [N, C, 2H, 2W]: the four pixels of each 2x2 square, one after the other."""
    n, c, h, w = x.shape
    low, (lh, hl, hh) = x[:, : c // 4], x[:, c // 4 :].reshape(n, c // 4, 3, h, w).unbind(2)
    y = x.new_empty(n, c // 4, 2 * h, 2 * w)
    y[:, :, 0::2, 0::2] = (low + lh + hl + hh) / 2
    y[:, :, 0::2, 1::2] = (low + lh - hl - hh) / 2
    y[:, :, 1::2, 0::2] = (low - lh + hl - hh) / 2
    y[:, :, 1::2, 1::2] = (low - lh - hl + hh) / 2
    return y
