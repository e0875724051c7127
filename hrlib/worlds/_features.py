"""What is painted on the face in the photo domain: eyes, brows, mouth, nostrils and spectacles, in linear light."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import colour, dot, mix, noise, smooth
from ._head import EYE_Y, NOSE_TIP_Y, eye_x, mouth_curves, mouth_shape
from ._paint import Shader, hsl, ramp
from ._rays import Hit

IRIS = [(0.22, 0.12, 0.06), (0.42, 0.25, 0.10), (0.42, 0.42, 0.20), (0.35, 0.50, 0.42), (0.30, 0.48, 0.68)]


def brows_and_eyes(s: Shader, x: Tensor, y: Tensor, base: Tensor, n: list[Tensor], shadow: Tensor) -> Tensor:
    """Paint the eyes with their lids, lashes and brows over `base` [N, 3, M] at the chart points x, y [N, M].

    n: components [N, M] of the eyeball's unit normal where the ray meets it; shadow: [N, M], the face's shadow there.
    """
    p = s.p
    fem, age = p["femininity"], p["age"].clamp(min=0)
    side = torch.where(x < 0, -1.0, 1.0)
    apart = 40 * side  # separates the noise of the two eyes
    cx = eye_x(p)
    width = (0.168 + 0.016 * p["eye_size"]) * p["eye_scale"]
    tilt = 0.05 + 0.08 * p["eye_tilt"]
    ex, ey = (side * x - cx) / width, (y - EYE_Y) / width
    ey = ey - tilt * ex
    open_ = (0.58 + 0.06 * p["eye_size"] + 0.17 * p["lids"] - 0.06 * p["smile"].clamp(min=0) - 0.05 * age).clamp(
        min=0.03
    )
    low = 0.35 - 0.09 * p["smile"].clamp(min=0) + 0.04 * p["lids"]
    q = (1 - ex * ex).clamp(min=0)
    arch = q.sqrt() * 0.55 + q * 0.45
    upper = open_ * arch * (1 - 0.10 * ex)
    lower = -low * (0.3 * q.sqrt() + 0.7 * q) * (1 + 0.12 * ex) * (open_ / 0.5).clamp(max=1)
    px = s.pixel / width / 0.72
    edge = torch.minimum(upper - ey, ey - lower)
    inside = smooth(-0.6, 0.9, edge / px) * (q > 0)

    gaze = F.normalize(0.62 * s.view + torch.tensor([0.0, 0.0, 0.38], device=x.device), dim=1)
    dx, dy, dz = n[0] - gaze[:, 0, None] + 0.03 * side, n[1] - gaze[:, 1, None], n[2] - gaze[:, 2, None]
    radius = (dx * dx + dy * dy + dz * dz).sqrt()
    soft = px * 0.55
    iris_r, pupil_r = 0.56, 0.23
    iris = smooth(iris_r + soft * 0.6, iris_r - soft * 0.6, radius)
    pupil = smooth(pupil_r + soft * 0.5, pupil_r - soft * 0.5, radius)
    fibre = noise(torch.atan2(dy, dx) * 7, radius * 4 + apart, s.seed, 30)
    pigment = ramp(IRIS, 0.5 + 0.5 * p["iris_hue"])
    glow = (0.95 + 1.1 * smooth(0.1, -0.55, dy) + 0.25 * fibre).clamp(min=0.2)
    ring = smooth(0.42, 0.58, radius)
    eye = pigment * (1.25 * glow * (1 - 0.72 * ring))[:, None]
    white = colour(x, 0.80, 0.765, 0.745)
    veins = 1 - 0.10 * smooth(0.5, 1.0, ex.abs())[:, None] * colour(x, 0.1, 1.0, 1.0)
    eye = mix(white * veins, eye, iris[:, None])
    eye = eye * (1 - 0.97 * pupil[:, None])
    ndl, amb = dot(s.key, n), 0.70 + 0.3 * n[1]
    lid_shadow = 0.40 + 0.60 * smooth(0.0, 0.34, upper - ey)
    lid_shadow = (
        lid_shadow * (0.75 + 0.25 * smooth(0.0, 0.15, ey - lower)) * smooth(1.05, 0.75, ex.abs()).mul(0.35).add(0.65)
    )
    light = (
        s.key_colour * (0.25 + 0.60 * (0.5 + 0.5 * ndl).clamp(min=0) * (1 - 0.5 * shadow))[:, None]
        + s.fill_colour * amb[:, None]
    )
    eye = eye * light * lid_shadow[:, None]
    # two catchlights: the key light on the cornea, and a smaller soft box on the other side
    hx, hy = s.half[:, 0, None] - gaze[:, 0, None], s.half[:, 1, None] - gaze[:, 1, None]
    reach = (hx * hx + hy * hy).sqrt().clamp(min=1e-3)
    scale = torch.minimum(torch.full_like(reach, 0.34), reach) / reach
    spot = ((dx - hx * scale) ** 2 + (dy - (hy * scale).clamp(min=0.14)) ** 2).sqrt()
    eye = eye + (1.3 * smooth(0.12 + 0.5 * soft, 0.12 - 0.5 * soft, spot))[:, None]
    spot2 = ((dx + hx * scale) ** 2 + (dy + 0.24) ** 2).sqrt()
    eye = eye + (0.16 * smooth(0.22, 0.06, spot2))[:, None]
    corner = torch.exp(-(((ex + 0.93) / 0.13) ** 2))
    eye = mix(eye, s.skin * light * colour(x, 0.95, 0.55, 0.52), (0.75 * corner)[:, None])

    # lids: crease, soft upper shadow, wet lower rim, lashes
    reach_x = smooth(1.22, 0.9, ex.abs())
    crease_at = upper + 0.17 + 0.05 * p["lids"] + 0.03 * fem
    crease = torch.exp(-(((ey - crease_at) / 0.055) ** 2)) * reach_x
    below = torch.exp(-(((ey - lower + 0.30 + 0.1 * age) / 0.08) ** 2)) * smooth(1.1, 0.5, ex.abs())
    lid = smooth(0.0, 0.05, ey - upper) * smooth(0.0, 0.06, crease_at - ey) * reach_x
    base = base * (1 - (0.36 * crease + (0.05 + 0.17 * age) * below)[:, None])
    base = base * (1 - (lid * (0.10 + 0.16 * fem.clamp(min=0)))[:, None] * colour(x, 0.8, 1.0, 0.9))
    rim = smooth(0.085, 0.03, (ey - lower).abs() + 0.02) * smooth(1.0, 0.8, ex.abs())
    base = mix(base, base * colour(x, 1.06, 0.84, 0.82), (0.8 * rim)[:, None])
    out = mix(base, eye, inside[:, None])
    lash_w = 0.055 + 0.03 * fem.clamp(min=0)
    wing = smooth(-0.4, 1.0, ex)
    comb = 0.75 + 0.25 * noise(ex * 22 + 8 * (ey - upper) * ex, ey * 2 + apart, s.seed, 32)
    lash = (
        smooth(lash_w * (1 + 0.8 * wing) + px * 0.5, 0.012, (ey - upper - 0.015).abs())
        * smooth(1.16, 0.98, ex.abs())
        * comb
    )
    lash_low = 0.35 * smooth(0.05, 0.0, (ey - lower + 0.015).abs()) * smooth(1.05, 0.7, ex.abs()) * (0.5 + 0.5 * wing)
    dark = s.hair * 0.10 + 0.008
    out = mix(out, dark, (torch.maximum(lash * (0.80 + 0.15 * fem), lash_low)).clamp(0, 1)[:, None])

    # brow
    rise = 0.035 * p["brow_raise"]
    bx = (side * x - cx) / 0.19
    line = (
        0.205
        + 0.10 * (p["eye_scale"] - 1)
        + rise
        + 0.012 * fem
        + (0.022 + 0.016 * p["brow_arch"]) * (1 - ((bx - 0.25) / 0.9) ** 2)
    )
    line = line + 0.03 * bx * p["brow_raise"].clamp(max=0)
    thick = (0.035 + 0.012 * p["brow_thickness"] - 0.006 * fem) * smooth(1.22, -0.2, bx) ** 0.5
    across = (y - line) / thick.clamp(min=0.004)
    hairs = noise(x * 70 - side * y * 55, y * 30 + side * x * 14 + apart, s.seed, 33)
    body = (
        smooth(1.25, 0.35, across.abs() + 0.28 * hairs) * smooth(-1.0, -0.72, bx + 0.05 * hairs) * smooth(1.25, 1.0, bx)
    )
    tone = mix(s.hair * 0.55, s.hair, p["grey"].clamp(0, 1)[:, :, None]) * (0.8 + 0.4 * hairs[:, None]).clamp(min=0.3)
    lum = (base.mean(1, keepdim=True) / s.skin.mean(1, keepdim=True)).clamp(0.1, 1.5)
    return mix(out, tone * lum, (0.86 * body)[:, None])


def mouth(s: Shader, x: Tensor, y: Tensor, base: Tensor, maps: dict[str, Tensor]) -> Tensor:
    """Paint lips, teeth and nostrils over `base` [N, 3, M]."""
    p = s.p
    m = mouth_shape(p)
    top, up, down, bottom, _ = mouth_curves(m, x)
    px = s.pixel / 0.75
    inx = smooth(1.03, 0.97, x.abs() / m.half_width)
    lips = smooth(-0.7, 0.7, torch.minimum(top - y, y - bottom) / (px + 0.006)) * inx
    crinkle = noise(x * 60, y * 8, s.seed, 36)
    fem = p["femininity"]
    tint = colour(x, 0.92, 0.52, 0.50)
    make_up = colour(x, 0.95, 0.30, 0.32)
    tint = mix(tint, make_up, (0.75 * p["lip_tint"].clamp(min=0))[:, :, None])
    lip = base * tint * (1 + 0.05 * crinkle[:, None])
    n = [maps["nx"], maps["ny"], maps["nz"]]
    shine = s.gloss(n, 5) * (0.14 + 0.10 * fem.clamp(min=0)) * (1 + 0.5 * crinkle) * (1 - maps["shadow"])
    upper_dark = smooth(-0.005, 0.02, y - up) * 0.16
    lip = lip * (1 - upper_dark[:, None]) + s.key_colour * shine[:, None]
    out = mix(base, lip, (0.9 * lips)[:, None])
    under = torch.exp(-(((y - bottom + 0.035) / 0.03) ** 2)) * smooth(0.9, 0.3, x.abs() / m.half_width)
    out = out * (1 - 0.18 * under[:, None])
    # inside: teeth lit from the front, dark toward the corners and the throat
    hole = smooth(-0.5, 0.5, torch.minimum(up - y, y - down) / (px * 0.8 + 0.002)) * smooth(
        1.0, 0.93, x.abs() / m.half_width
    )
    hole = hole * smooth(0.002, 0.012, m.gap)
    tooth_low = m.y + m.gap * 0.35 - 0.082
    tooth = smooth(-0.01, 0.012, y - tooth_low - 0.6 * x * x) * smooth(1.02, 0.55, x.abs() / m.half_width)
    gaps = 1 - 0.16 * torch.exp(-((((x.abs() / 0.052) % 1.0) - 0.5).abs() - 0.5).abs() * 16)
    deep = colour(x, 0.055, 0.016, 0.016)
    white = colour(x, 0.78, 0.71, 0.60) * (0.45 + 0.55 * smooth(0.0, 0.03, up - y))[:, None]
    lamp = (s.key_colour * 0.62 + s.fill_colour * 0.6) * gaps[:, None]
    out = mix(out, mix(deep, white * lamp, tooth[:, None]), hole[:, None])
    seam = torch.exp(-(((y - 0.5 * (up + down)) / (0.010 + px * 0.35)) ** 2)) * smooth(
        1.12, 0.95, x.abs() / m.half_width
    )
    out = out * (1 - 0.72 * (seam * (1 - hole))[:, None] * colour(x, 0.85, 1.0, 1.0))
    # nostrils
    nx = (x.abs() - 0.078 - 0.012 * p["nose_width"]) / 0.045
    ny = (y - NOSE_TIP_Y + 0.080 + 0.02 * p["nose_length"] - 0.02 * nx) / 0.026
    hollow = smooth(1.3, 0.4, (nx * nx + ny * ny).sqrt())
    return out * (1 - hollow[:, None] * colour(x, 0.72, 0.86, 0.88))


def glasses(s: Shader, hit: Hit, o: Tensor, front: Tensor, rgb: Tensor) -> Tensor:
    """Draw spectacles over `rgb` [N, 3, M].

    o: [N, 3] the camera in the head frame; front: [N, 1] depth of the eyes there.
    """
    p = s.p
    d = (hit.dx, hit.dy, hit.dz)
    wear = smooth(0.45, 0.55, p["glasses"])
    z = front + 0.05
    t = (z - o[:, 2, None]) / d[2]
    gx, gy = o[:, 0, None] + t * d[0], o[:, 1, None] + t * d[1]
    shape = p["glasses_shape"]
    size = p["eye_scale"].sqrt() * p["head_scale"]
    cx = 0.262 * size
    qx, qy = (gx.abs() - cx).abs(), (gy - (EYE_Y - 0.012)).abs()
    rx, ry = (0.178 + 0.012 * shape) * size, (0.142 - 0.022 * shape) * size
    corner = (0.125 - 0.06 * shape) * size
    ax, ay = qx - rx + corner, qy - ry + corner
    dist = (ax.clamp(min=0) ** 2 + ay.clamp(min=0) ** 2).sqrt() + torch.maximum(ax, ay).clamp(max=0) - corner
    bar = 0.013 + 0.008 * p["brow_thickness"].abs()
    line = smooth(0.5, -0.5, (dist.abs() - bar) / s.pixel)
    bridge = ((gy - 0.045 + 1.2 * gx * gx).abs() - bar) / s.pixel
    line = torch.maximum(line, smooth(0.5, -0.5, bridge) * (gx.abs() < cx - rx + 0.01))
    visible = (t < hit.t + 0.01).to(line)
    lens = smooth(0.5, -0.5, dist / s.pixel) * visible
    metal = hsl(p["cloth_hue"], torch.full_like(shape, 0.25), 0.10 + 0.07 * (1 + shape))
    gleam = smooth(-0.35, 0.4, s.key[:, 1, None] * 0.6 + 0.4 * torch.sin(gx * 9 + gy * 5))
    frame = metal * (0.5 + 0.7 * gleam)[:, None] + 0.02
    streak = smooth(0.05, 0.0, (gx - 0.35 * gy - 0.30 * torch.sign(gx) + 0.05).abs() - 0.012)
    out = rgb * (1 - 0.10 * lens * wear)[:, None] + (0.045 * (lens * wear) * (0.35 + streak))[:, None]
    # temples: straight bars from the frame's outer edge back to the ears, on the planes x = +-(cx + rx)
    sx = torch.sign(o[:, 0, None])
    edge_x = (cx + rx + bar) * sx
    tt = (edge_x - o[:, 0, None]) / torch.where(d[0].abs() < 1e-4, torch.full_like(d[0], 1e-4), d[0])
    ty, tz = o[:, 1, None] + tt * d[1], o[:, 2, None] + tt * d[2]
    arm = (
        smooth(0.5, -0.5, ((ty - 0.03).abs() - bar) / s.pixel)
        * (tz < z)
        * (tz > -0.05)
        * (tt < hit.t + 0.012)
        * (tt > 0)
    )
    arm = torch.maximum(arm, line * visible) * wear
    return mix(out, frame, arm[:, None])
