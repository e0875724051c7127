"""The caricature domain: a person's deviations from the mean head, exaggerated, in pencil and watercolour.

The identity parameters that shape the head are multiplied. The drawing is a light wash of the person's own colours,
hatched along the form where it is dark, with pencil contours on rough paper. Strokes waver and break at random, and the
paper's grain reaches the Nyquist frequency.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _cartoon, _features, _paint
from ._common import Named, colour, compact, dot, hash01, mix, noise, pick, put, smooth
from ._domain import Domain, Layers
from ._paint import hsl
from ._rays import Components, Hit

# Factors of the deviations from the mean head; up to LIMIT the head stays intact.
GAIN = {
    "head_width": 2.6, "head_height": 2.4, "jaw_width": 2.5, "chin": 2.6, "cheeks": 2.4, "fullness": 2.4,
    "eye_size": 1.8, "eye_spacing": 2.2, "eye_tilt": 2.4, "nose_length": 2.6, "nose_width": 2.2,
    "nose_projection": 2.4, "mouth_width": 2.4, "lip_fullness": 2.0, "ear_size": 2.6, "brow_thickness": 1.8,
    "brow_arch": 2.0, "hair_volume": 1.3,
}  # fmt: skip
LIMIT = 3.4
PAPER = (0.935, 0.890, 0.800)
PERIOD = 0.040  # spacing of parallel strokes in head units: 2.6 pixels of a 128-pixel portrait


def warp(p: Named) -> dict[str, Tensor]:
    """The mean head plus the person's multiplied deviation from it, with soft limits."""
    far = {name: LIMIT * torch.tanh(gain * p[name] / LIMIT) for name, gain in GAIN.items()}
    nose = 0.35 * p["nose_projection"] + 0.30 * p["nose_length"] + 0.15 * p["nose_width"]
    return far | {
        "nose_scale": 1.22 * torch.exp(0.75 * torch.tanh(1.4 * nose)),
        "eye_scale": 1.18 * torch.exp(0.20 * p["eye_size"]),
        "head_scale": torch.full_like(nose, 1.03),
        "body_scale": torch.full_like(nose, 0.62),
        "smile": 1.15 * p["smile"],
        "age": p["age"] * 1.1,
    }


def paper(like: Tensor) -> Tensor:
    """[1, 3, 1] the paper's linear colour."""
    return colour(like, *PAPER)


def hatch(s: _paint.Shader, at: Components, dark: Tensor, turn: float = 0.0) -> Tensor:
    """[N, M] density of graphite at the points `at` (head or picture coordinates), for the wanted darkness `dark`.

    There are up to three sets of strokes; each is where parallel planes cut the surface, so strokes follow the form.
    """
    a, b, c = at
    bend = noise(a * 5, b * 5 + c * 3, s.seed, 50)
    press = noise(a * 11 + 7 * c, b * 11, s.seed, 51)
    fade = min(max(PERIOD / s.pixel / 2.2 - 0.45, 0.0), 1.0)  # strokes too fine for the rays fade to their mean
    soft = s.pixel / PERIOD
    clear = torch.ones_like(dark)
    sets = ((0.62, 0.74, 0.35, 0.22), (-0.60, 0.72, 0.42, 0.46), (0.05, 0.98, -0.30, 0.68))
    for k, (ka, kb, kc, threshold) in enumerate(sets):
        wave = (ka * a + (kb + turn) * b + kc * c) * (1 / PERIOD) + 0.45 * bend + 8 + 2.3 * k
        off = (torch.frac(wave + 64) - 0.5).abs() * 2  # 0 in the stroke's middle, 1 between strokes
        wide = ((dark - threshold) * 1.9 + 0.10 * press).clamp(0, 0.66)
        line = smooth(0.0, 1.0, ((wide - off) / (2 * soft) + 0.5).clamp(0, 1)) * fade + wide * (1 - fade)
        clear = clear * (1 - line * (0.55 + 0.12 * press).clamp(0.2, 0.8) * smooth(0.0, 0.08, wide))
    return 1 - clear


def wash(rgb: Tensor, strength: float = 0.72) -> Tensor:
    """Watercolour of linear colours: lighter, and never whiter than the paper."""
    return paper(rgb) * rgb.clamp(1e-4, 1.0).pow(strength)


def pencilled(base: Tensor, ink: Tensor, pigment: Tensor) -> Tensor:
    """`base` under strokes of a pencil tinted by the pigment."""
    return mix(base, 0.20 * pigment * base + 0.012, ink[:, None])


def skin(s: _paint.Shader, hit: Hit, maps: dict[str, Tensor]) -> Tensor:
    """[N, 3, M] washed and hatched skin with freckles and beard; see `_paint.skin`."""
    p, x, y = s.p, hit.x, hit.y
    n = [maps["nx"], maps["ny"], maps["nz"]]
    ndl, amb = s.lit(n, maps["occlusion"])
    pool = noise(x * 4, y * 4, s.seed, 0) + 0.5 * noise(x * 11, y * 11, s.seed, 1)
    albedo = s.skin * (1 + 0.035 * pool[:, None])
    albedo = albedo * (1 + colour(x, 0.06, -0.30, -0.27) * (1.2 * maps["blush"])[:, None])
    if bool((p["freckles"] > 0).any()):
        spots = smooth(1.05, 1.45, noise(x * 22, y * 22, s.seed, 8)) * p["freckles"].clamp(min=0)
        spots = spots * smooth(0.85, 0.45, (x * x + (y + 0.2) ** 2).sqrt())
        albedo = albedo * (1 - 0.6 * spots[:, None] * colour(x, 0.28, 0.5, 0.62))
    lit = (0.5 * smooth(-0.35, 0.25, ndl) + 0.5 * smooth(0.20, 0.85, ndl)) * (1 - 0.60 * maps["shadow"])
    cavity = maps["cavity"].clamp(min=0)
    dark = 0.60 - 0.60 * lit + 0.45 * (1 - maps["occlusion"]) + 0.14 * cavity
    grey = s.skin.mean(1)
    dark = dark + 0.10 * (0.6 - grey) - 0.10 * s.gloss(n, 3)
    paint = wash(albedo, 0.66) * (0.66 + 0.40 * lit + 0.25 * (amb - 0.7))[:, None]
    out = pencilled(paint, hatch(s, (hit.px, hit.py, hit.pz), dark), 0.35 + 1.2 * s.skin)
    grow = maps["beard"]
    if bool((grow > 0).any()):  # short strokes down the jaw
        at = compact(grow > 0)
        bx, by, grow = x.gather(1, at), y.gather(1, at), grow.gather(1, at)
        hairs = noise(bx * 44 + 6 * by, by * 9, s.seed, 9) + 0.7 * noise(bx * 90 - 14 * by, by * 22, s.seed, 10)
        thick = smooth(0.05, 0.60, grow + 0.22 * hairs * smooth(0, 0.15, grow))
        colour_ = wash(s.hair, 0.62) * (0.75 + 0.3 * lit.gather(1, at))[:, None]
        strokes = smooth(-0.1, 0.9, hairs) * 0.75
        out = put(out, at, mix(pick(out, at), pencilled(colour_, strokes, s.hair), (0.92 * thick)[:, None]))
    return out


def hair(s: _paint.Shader, hit: Hit, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A wash with pencil strokes along the locks; see `_paint.hair`."""
    it = _paint.strands(s, hit, base=11.0)
    locks, fine = it.locks, it.strands
    cover = _paint.hair_cover(s, hit, maps, 0.026 * fine + 0.020 * locks)
    n = maps["nx"], maps["ny"], maps["nz"]
    th = dot(s.half, it.tangent(n, 0.25 * locks * (1 + it.curl))) + 0.05 * locks
    ndl, amb = s.lit(n, maps["occlusion"])
    lit = smooth(-0.40, 0.75, ndl + 0.1 * locks) * (1 - 0.6 * maps["shadow"])
    band = smooth(0.34, 0.05, th.abs()) * smooth(-0.2, 0.5, ndl) * (1 - 0.5 * it.kink)
    root = 1 - smooth(0.0, 0.18, maps["hair"])
    dark = 0.62 - 0.50 * lit + 0.40 * root + 0.6 * (1 - amb).clamp(min=0) - 0.32 * band
    light = 0.66 + 0.50 * lit[:, None] + (1.5 - 1.3 * s.hair.sqrt()) * band[:, None]
    paint = torch.minimum(wash(s.hair, 0.74) * light, paper(s.hair))
    strokes = smooth(-0.15, 0.95, 0.70 * fine + 0.40 * locks + 1.6 * (dark - 0.5)) * 0.80
    return pencilled(paint, strokes, s.hair), cover, fine


def body(s: _paint.Shader, x: Tensor, y: Tensor, turn: Tensor, chin_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The photo's neck and clothes, washed and hatched; see `_paint.body`."""
    light, cover, z = _paint.body(s, x, y, turn, chin_y)
    tone = light.clamp(1e-4, 1).mean(1).pow(0.45)
    ink = hatch(s, (x.expand_as(tone), y.expand_as(tone), 0.5 * z), 0.82 - 0.85 * tone, turn=-0.4)
    return pencilled(wash(light, 0.70), ink, light.clamp(0, 1)), cover, z


def backdrop(s: _paint.Shader, x: Tensor, y: Tensor) -> Tensor:
    """[N, 3, M] paper with a loose patch of colour behind the head."""
    p = s.p
    h = p["bg_hue"]
    tint = hsl(h, 0.30 + 0.35 * p["bg_saturation"], 0.58 + 0.22 * p["bg_lightness"])
    angle = 6.2832 * p["bg_angle"]
    around = torch.atan2(y, x)
    edge = 0.93 + 0.07 * torch.sin(3 * around + angle) + 0.05 * torch.sin(7 * around - 2 * angle)
    rough = noise(x * 9, y * 9, s.seed, 44) + 0.6 * noise(x * 24, y * 24, s.seed, 45)
    far = (0.80 * x * x + 0.95 * (y - 0.08) ** 2).sqrt() + 0.020 * rough - edge
    inside = smooth(0.02, -0.03, far)
    rim = torch.exp(-(((far + 0.035) / 0.03) ** 2))  # pigment gathers at a wash's edge
    thin = inside * (0.62 + 0.30 * smooth(-1.0, 0.9, y * angle.cos() + x * angle.sin()) + 0.05 * rough) + 0.22 * rim
    return mix(paper(y).expand(len(p), -1, y.shape[1]), paper(y) * tint, thin.clamp(0, 1)[:, None])


def ink(s: _paint.Shader, layers: Layers) -> Tensor:
    """Pencil contours around the head, its folds and the shoulders, and the paper's grain over everything."""
    hit, size = layers.hit, s.pixel
    n = [layers.maps["nx"], layers.maps["ny"], layers.maps["nz"]]
    waver = noise(hit.px * 7, hit.py * 7, s.seed, 52)
    width = 0.022 + 0.006 * waver
    outside = smooth(0.5, -0.5, (hit.gap - width) / size) * (hit.gap > 0) * (1 - hit.deep)
    facing = dot(s.view, n)
    inside = smooth(0.28, 0.06, facing + 0.05 * waver) * layers.alpha
    hairline = smooth(0.40, 0.10, (layers.hair - 0.5).abs()) * layers.alpha * 0.55
    line = layers.spread(torch.maximum(torch.maximum(outside, 0.8 * inside), hairline) * (0.88 + 0.10 * waver))
    # where one part of the head is in front of another, or of the shoulders
    reach = max(1, round(0.010 / size))
    shown = (hit.gap <= 0) & (layers.alpha > 0.5)
    t = layers.grid(layers.spread(torch.where(shown, hit.t * 5.65, torch.full_like(hit.t, 99.0)), 99.0))
    before = t + F.max_pool2d(-t, 2 * reach + 1, 1, reach)
    fold = smooth(0.035, 0.09, before) * (t < 50)
    torso = layers.grid(layers.body)
    soft = F.avg_pool2d(F.pad(torso, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
    shoulder = smooth(0.25, 0.75, 4 * soft * (1 - soft)) * layers.grid(1 - layers.spread(layers.alpha))
    count = layers.size[0] * layers.size[1]
    more = torch.maximum(0.75 * fold, 0.8 * shoulder).flatten(1)
    line = torch.maximum(line, F.pad(more, (0, line.shape[1] - count)))
    x, y = layers.x, layers.y
    tooth = 0.0
    octaves = s.octaves(26.0)
    for k in range(octaves):
        f = 26.0 * 2**k
        tooth = tooth + noise(x * f, y * f, s.seed, 54 + k) * (0.7 if k == octaves - 1 else 0.5)
    rgb = mix(layers.rgb, 0.10 * layers.rgb + 0.014, (line * (0.95 - 0.10 * tooth)).clamp(0, 1)[:, None])
    bare = smooth(0.1, 1.5, tooth)  # little graphite and pigment reaches the paper's hollows
    rgb = rgb + (0.45 * bare)[:, None] * rgb * (paper(rgb) - rgb).clamp(min=0)
    return rgb * (1 - 0.05 * tooth)[:, None]


def film(s: _paint.Shader, linear: Tensor) -> Tensor:
    """Reflectance [N, 3, H, W] -> picture in [-1, 1], with slight scanner noise."""
    n, _, height, width = linear.shape
    flat = F.pad(linear.flatten(2), (0, -(height * width) % 256))  # padded: see _common.compact
    image = flat.clamp(1e-5, 1).pow(1 / 2.2)[:, :, : height * width].reshape(n, 3, height, width)
    row, col = torch.arange(height, device=linear.device)[:, None], torch.arange(width, device=linear.device)
    seed = s.seed[:, None, None]
    grain = hash01(seed, row, col) + hash01(seed + 77, row, col) - 1
    return ((image + 0.014 * grain[:, None]) * 2 - 1).clamp(-1, 1)


CARICATURE = Domain(
    warp=warp,
    skin=skin,
    eyes=_cartoon.eyes,
    mouth=_cartoon.mouth,
    hair=hair,
    glasses=_features.glasses,
    body=body,
    backdrop=backdrop,
    ink=ink,
    film=film,
    eye_reach=(0.36, 0.42),
)
