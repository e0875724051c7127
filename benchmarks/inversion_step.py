"""The time of one step of Eq. (1) with the shipped generator: w+ and noise maps, VGG conv loss, two threads.

Prints the median time of a step, and its ratio to the same step with the textbook StyleGAN2 convolution (kernels
modulated per image, grouped convolution, FIR filter as a separate pass); the two take turns in the same run. The script
checks that their images are equal up to rounding.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from hrlib import inversion, losses, weights
from hrlib.lab import picture
from hrlib.nets import stylegan2
from hrlib.nets.stylegan2 import FIR, SQRT2, ModulatedConv
from hrlib.nets.windows import Window

STEPS, ROUNDS = 25, 4


def textbook_forward(self: ModulatedConv, x: Tensor, w: Tensor, noise: Tensor | None, keep: Window) -> Tensor:
    """ModulatedConv.forward, written as in the paper of StyleGAN2."""
    n, i, h, width = x.shape
    kernel = self.weight[None] * self.affine(w)[:, None, :, None, None]  # [N, O, I, 3, 3]
    kernel = kernel * (kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    o = kernel.shape[1]
    x = x.reshape(1, n * i, h, width)
    if self.up:
        x = F.conv_transpose2d(x, kernel.transpose(1, 2).reshape(n * i, o, 3, 3), stride=2, groups=n)
        fir = (FIR * 4)[None, None].expand(n * o, 1, 4, 4)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), fir, groups=n * o)
    else:
        x = F.conv2d(x, kernel.reshape(n * o, i, 3, 3), padding=1, groups=n)
    x = x.reshape(n, o, *x.shape[2:])[:, :, *keep]
    if noise is not None:
        x = x + (noise if noise.ndim == 2 else noise[:, None]) * self.noise_strength
    return F.leaky_relu(x + self.bias[:, None, None], 0.2) * SQRT2


def seconds_per_step(G: torch.nn.Module, x: Tensor, loss: losses.Loss) -> float:
    """Median over the steps of one short inversion, without the first."""
    its = inversion.invert(G, x, loss, num_steps=STEPS)
    next(its)
    times, start = [], time.perf_counter()
    for _ in its:
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(2)
    G = weights.load_generator("portraits_inr128")
    ours, x = ModulatedConv.forward, picture("portrait:1", 128)
    ws = G.w_avg.repeat(1, G.num_ws, 1)
    image = G.synthesis(ws)
    stylegan2.ModulatedConv.forward = textbook_forward
    difference = float((G.synthesis(ws) - image).abs().max())
    stylegan2.ModulatedConv.forward = ours
    print(f"largest difference between the two implementations: {difference:.1e}")
    for name, resize in (("vgg_conv", None), ("vgg_conv", 32)):
        loss, rows = losses.named(name, weights="shipped", resize=resize), []
        for _ in range(ROUNDS):
            stylegan2.ModulatedConv.forward = ours
            fast = seconds_per_step(G, x, loss)
            stylegan2.ModulatedConv.forward = textbook_forward
            rows.append((fast, seconds_per_step(G, x, loss)))
        stylegan2.ModulatedConv.forward = ours
        fast = statistics.median(a for a, _ in rows)
        ratios = sorted(b / a for a, b in rows)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name}, input {resize or 128}: {1000 * fast:.0f} ms a step, textbook / ours {spread}")


if __name__ == "__main__":
    main()
