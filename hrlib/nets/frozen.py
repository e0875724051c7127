"""Layers whose weights do not change: torch's numbers, with a third of the memory and a faster backward pass.

In inversion the gradient goes to codes and noise maps. For it torch keeps three maps a layer of a generator: the
modulated input, which only a gradient of the weights would need; the convolution's result u, for the gradient of its
factor f; and the activation's result y. Here only y is kept, which the next layer keeps anyway. With a leaky ReLU,
y = a(z) = a'(z) z, so it gives the gradients of the rest:

    z = f u + n + b;    g_z = a'(z) g_y;    sum g_z u = (sum g_y y - sum g_z n - b sum g_z) / f

The gradient of a convolution's input is itself a convolution, with the kernel flipped. For depthwise and 1x1 kernels
the library's own backward pass takes 1.4 to 3 times as long on a CPU.

Where weights take gradients, and under autocast, the functions are torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

SLOPE = 0.2


def conv2d(x: Tensor, weight: Tensor, *, padding: int, groups: int = 1) -> Tensor:
    """The same as F.conv2d."""
    if weight.requires_grad or torch.is_autocast_enabled(x.device.type):
        return F.conv2d(x, weight, padding=padding, groups=groups)
    return _Conv2d.apply(x, weight, padding, groups)


def conv_transpose2d(x: Tensor, weight: Tensor, *, stride: int) -> Tensor:
    """The same as F.conv_transpose2d."""
    if weight.requires_grad or torch.is_autocast_enabled(x.device.type):
        return F.conv_transpose2d(x, weight, stride=stride)
    return _ConvTranspose2d.apply(x, weight, stride)


def activate(u: Tensor, factor: Tensor | None, noise: Tensor | None, bias: Tensor) -> Tensor:
    """leaky_relu(factor * u + noise + bias, 0.2), for u [N, C, H, W].

    factor: [N, C], none of them 0; None stands for 1. noise: [H, W], [N, 1, H, W], or None for 0. bias: [C].
    """
    if bias.requires_grad or torch.is_autocast_enabled(u.device.type):
        return _activated(u, factor, noise, bias)
    return _Activate.apply(u, factor, noise, bias)


def _activated(u: Tensor, factor: Tensor | None, noise: Tensor | None, bias: Tensor) -> Tensor:
    bias = bias[:, None, None].to(u.dtype)
    if factor is not None:
        u = u * factor[:, :, None, None].to(u.dtype)
    z = u + bias if noise is None else (u + noise.to(u.dtype)).add_(bias)  # in place: no gradient needs the sums
    return F.leaky_relu(z, SLOPE, inplace=True)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, padding, groups):
        ctx.save_for_backward(weight)
        ctx.how = (x.shape, padding, groups)
        return F.conv2d(x, weight, padding=padding, groups=groups)

    @staticmethod
    def backward(ctx, g):
        (weight,), (shape, padding, groups) = ctx.saved_tensors, ctx.how
        k, depthwise = weight.shape[-1], groups == shape[1] == weight.shape[0]
        if padding < k and (depthwise or (k == 1 and groups == 1)):
            flipped = weight.flip(2, 3) if depthwise else weight.transpose(0, 1)
            return F.conv2d(g, flipped, padding=k - 1 - padding, groups=groups), None, None, None
        return conv2d_input(shape, weight, g, padding=padding, groups=groups), None, None, None


class _ConvTranspose2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.save_for_backward(weight)
        ctx.stride = stride
        return F.conv_transpose2d(x, weight, stride=stride)

    @staticmethod
    def backward(ctx, g):
        return F.conv2d(g, *ctx.saved_tensors, stride=ctx.stride), None, None


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, factor, noise, bias):
        y = _activated(u, factor, noise, bias)
        ctx.save_for_backward(y, factor, noise, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g_y):
        y, factor, noise, bias = ctx.saved_tensors
        g_factor = g_noise = None
        g_z = torch.ops.aten.leaky_relu_backward(g_y, y, SLOPE, True)  # [N, C, H, W]
        if ctx.needs_input_grad[1]:
            # For one picture, einsum passes over both maps once; for several it is four times as slow as a product.
            sums = torch.einsum("nchw,nchw->nc", g_y, y) if len(y) == 1 else (g_y * y).sum((2, 3))  # [N, C]
            sums -= bias * g_z.sum((2, 3))
            if noise is not None:
                sums -= torch.einsum("nchw,nhw->nc", g_z, noise.expand(len(y), 1, -1, -1)[:, 0])
            g_factor = sums / factor
        if ctx.needs_input_grad[2]:
            g_noise = g_z.sum(1, keepdim=True).sum_to_size(noise.shape)
        g_u = g_z if factor is None else g_z.mul_(factor[:, :, None, None])
        return g_u, g_factor, g_noise, None
