"""One portrait put together: placement, camera, rays, the materials where they show, and the film."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _head, _paint
from ._common import Named, compact, mix, pick, put, smooth
from ._domain import Domain, Layers
from ._rays import Components, Hit, intersect

LANDMARKS = ("left_eye", "right_eye", "nose_tip", "mouth_left", "mouth_right", "chin")
DISTANCE = 6.0  # from the camera to the picture's middle, in half picture sides
FOCUS = 0.35  # depth of the plane on which one unit is half the picture's shorter side
REACH = DISTANCE - FOCUS
PIVOT = (0.0, -0.10, 0.26)  # what the head turns about, relative to its centre
NECK_BASE = (0.0, -0.55, -0.12)
EYEBALL = 0.150  # radius; large eyes are kind


def rotation(pose: Tensor) -> Tensor:
    """[N, 3, 3] rotations taking head directions to the world's, from yaw and pitch [N, 2] in radians."""
    (sy, sp), (cy, cp) = pose.sin().unbind(1), pose.cos().unbind(1)
    zero = torch.zeros_like(sy)
    rows = ((cy, -sy * sp, sy * cp), (zero, cp, sp), (-sy, -cy * sp, cy * cp))
    return torch.stack([torch.stack(r, 1) for r in rows], 1)


def placement(pose: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [N, 3, 3] and offset [N, 3]: world = rotation @ head + offset."""
    turn = rotation(pose)
    pivot = torch.tensor(PIVOT, device=pose.device)
    return turn, pivot + torch.tensor([0.0, _head.CENTRE_Y, 0.0], device=pose.device) - turn @ pivot


def camera(pose: Tensor, height: int, width: int) -> Tensor:
    """[N, 3, 4] matrices from homogeneous head points to homogeneous pixels (x right, y down, first centre at 0.5)."""
    turn, offset = placement(pose)
    focal = REACH * min(height, width) / 2
    rows = [[focal, 0.0, -width / 2], [0.0, -focal, -height / 2], [0.0, 0.0, -1.0]]
    offset = offset - torch.tensor([0.0, 0.0, DISTANCE], device=pose.device)
    return torch.tensor(rows, device=pose.device) @ torch.cat((turn, offset[:, :, None]), 2)


def _grid(height: int, width: int, aspect: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Picture coordinates [height, width] of a grid over a picture of that aspect; y points up."""
    short = min(aspect)
    x = ((torch.arange(width, device=device) + 0.5) / width * 2 - 1) * (aspect[1] / short)
    y = (1 - (torch.arange(height, device=device) + 0.5) / height * 2) * (aspect[0] / short)
    return x[None].expand(height, width), y[:, None].expand(height, width)


def _directions(turn: Tensor, x: Tensor, y: Tensor) -> Components:
    """Components in the head frame, [N, ...] each, of the rays through picture coordinates x, y [N or 1, ...]."""
    lift = (len(turn), *[1] * (x.dim() - 1))
    return tuple(
        turn[:, 0, i].view(lift) * x + turn[:, 1, i].view(lift) * y - (turn[:, 2, i] * REACH).view(lift)
        for i in range(3)
    )


def _landmarks(p: Named, radius: Tensor) -> Tensor:
    """[N, 6, 3] head points of LANDMARKS."""
    cx, mouth = _head.eye_x(p), _head.mouth_shape(p)
    zero, corner = torch.zeros_like(cx), mouth.y + mouth.curve
    x = torch.cat((-cx, cx, zero, -mouth.half_width, mouth.half_width, zero), 1)
    y = torch.cat((zero + _head.EYE_Y, zero + _head.EYE_Y, zero + _head.NOSE_TIP_Y, corner, corner, zero - 0.98), 1)
    rho2 = x * x + y * y
    s = (1 - rho2 / 4).sqrt()
    return torch.stack((x * s, y * s, 1 - rho2 / 2), -1) * _head.lookup(radius, x, y)[:, 0, :, None]


def _eyeballs(p: Named, hit: Hit, eye: Tensor, sockets: Tensor) -> list[Tensor]:
    """Components [N, K] of the eyeballs' normals where the rays meet them (or pass nearest).

    eye: [N, 3] the camera; sockets: [N, 2, 3] the middles of the eyes' openings.
    """
    ball = EYEBALL * p["eye_scale"] * p["head_scale"]
    to = [(eye[:, i, None] - sockets[:, :, i]) for i in range(3)]  # from each ball's centre to the camera
    to[2] = to[2] + ball * 0.96
    to = [torch.where(hit.x < 0, c[:, :1], c[:, 1:]) for c in to]
    d = (hit.dx, hit.dy, hit.dz)
    dd, td, tt = sum(c * c for c in d), sum(c * v for c, v in zip(d, to, strict=True)), sum(v * v for v in to)
    t = (-td - (td * td - dd * (tt - ball**2)).clamp(min=0).sqrt()) / dd
    return [(v + t * c) / ball for v, c in zip(to, d, strict=True)]


def _paint_head(
    s: _paint.Shader, hit: Hit, found: Tensor, eye: Tensor, landmarks: Tensor, domain: Domain
) -> tuple[Tensor, ...]:
    """Light [N, 3, K] leaving the head along its K rays, how much of it is hair, and how far hairs stand off, [N, K].

    Each material is worked out only where it can show.
    """
    p = s.p

    def where(mask: Tensor) -> tuple[Tensor, Hit, dict[str, Tensor]]:
        index = compact(mask)
        return index, hit.pick(index), dict(zip(_head.MAPS, pick(found, index).unbind(1), strict=True))

    wide, tall = domain.eye_reach
    hairy = found[:, _head.MAPS.index("hair")]
    lift = _head.to_chart(hit.px, hit.py, hit.pz)[2] - found[:, _head.MAPS.index("bald")]
    rgb = torch.zeros(len(p), 3, hit.x.shape[1], device=p.device)
    index, part, maps = where(hairy < 0.25)
    rgb = put(rgb, index, domain.skin(s, part, maps))
    index, part, maps = where(((hit.x.abs() - 0.35).abs() < wide) & ((hit.y - 0.07).abs() < tall))
    ball = _eyeballs(p, part, eye, landmarks[:, :2])
    rgb = put(rgb, index, domain.eyes(s, part.x, part.y, pick(rgb, index), ball, maps["shadow"]))
    index, part, maps = where((hit.x.abs() < 0.38) & ((hit.y + 0.58).abs() < 0.28))
    rgb = put(rgb, index, domain.mouth(s, part.x, part.y, pick(rgb, index), maps))
    index, part, maps = where((hairy > -0.25) | (lift > 0.005))
    strands, cover, fly = domain.hair(s, part, maps)
    rgb = put(rgb, index, mix(pick(rgb, index), strands, cover[:, None]))
    nowhere = torch.zeros_like(hit.x)
    loose = nowhere.scatter(1, index, cover * (0.008 + 0.011 * fly.clamp(min=-0.5)))
    if bool((p["glasses"] > 0.45).any()):
        at, part, _ = where((hit.y.abs() < 0.40) & (hit.x.abs() < 1.6) & (p["glasses"] > 0.45))
        front = landmarks[:, :2, 2].mean(1, keepdim=True)
        rgb = put(rgb, at, domain.glasses(s, part, eye, front, pick(rgb, at)))
    return rgb, nowhere.scatter(1, index, cover), loose


def draw(
    p: Named, pose: Tensor, detail_seed: Tensor, height: int, width: int, supersample: int, domain: Domain
) -> dict[str, Tensor]:
    """One chunk of portraits: the fields of `portraits.Truth` by name."""
    p = domain.parameters(p)
    n, device = len(p), p.device
    fine = (height * supersample, width * supersample)
    count = fine[0] * fine[1]
    half = min(fine) / 2
    turn, offset = placement(pose)
    az, el = p["light_azimuth"], p["light_elevation"]
    key_world = torch.cat((az.sin() * el.cos(), el.sin(), az.cos() * el.cos()), 1)
    to_head = lambda v: torch.einsum("nji,nj->ni", turn, v)
    to_world = lambda v: torch.einsum("nij,nj->ni", turn, v) + offset
    key, up = to_head(key_world), turn[:, 1]
    eye = to_head(torch.tensor([0.0, 0.0, DISTANCE], device=device) - offset)  # the camera in the head frame

    baked = _head.bake(p, key)
    coarse = _directions(turn, *(c[None] for c in _grid(-(-fine[0] // 4), -(-fine[1] // 4), (height, width), device)))
    fill = -count % 256  # whole vector registers: see _common.compact
    x, y = (F.pad(c.reshape(1, -1), (0, fill)) for c in _grid(*fine, (height, width), device))
    hit, at = intersect(baked, eye, coarse, lambda at: _directions(turn, x[0][at], y[0][at]), fine, REACH)
    landmarks = _landmarks(p, baked.radius)
    shader = domain.shader(p, detail_seed, key, key_world, up, F.normalize(eye, dim=1), 1 / half)
    found = _head.lookup(baked.maps, hit.x, hit.y)
    rgb, cover, loose = _paint_head(shader, hit, found, eye, landmarks, domain)
    gap = hit.gap * (1 - hit.deep)
    alpha = smooth(1.0, -0.6, (gap - 0.004 - loose) * half).masked_fill(gap <= 0, 1.0)

    base = to_world(torch.tensor(NECK_BASE, device=device).expand(n, 3))
    chin = to_world(landmarks[:, LANDMARKS.index("chin")])
    back = domain.backdrop(shader, x, y)
    top = int((y[0, :count] > _paint.NECK_TOP).sum()) // 256 * 256  # the body is below
    torso, torso_cover, torso_z = domain.body(shader, x[:, top:], y[:, top:], base[:, :1], chin[:, 1:2])
    back[:, :, top:] = mix(back[:, :, top:], torso, torso_cover[:, None])
    nearer = F.pad(torso_z, (top, 0), value=-9.0).gather(1, at) - (DISTANCE - hit.t * REACH)
    alpha = alpha * (1 - F.pad(torso_cover, (top, 0)).gather(1, at) * smooth(-0.02, 0.02, nearer))
    rgb = put(back, at, mix(pick(back, at), rgb, alpha[:, None]))
    if domain.ink is not None:
        full = [F.pad(v, (top, 0), value=off) for v, off in ((torso_cover, 0.0), (torso_z, -9.0))]
        maps = dict(zip(_head.MAPS, found.unbind(1), strict=True))
        rgb = domain.ink(shader, Layers(rgb, x, y, *full, hit, at, maps, alpha, cover, fine))

    def shrink(value: Tensor) -> Tensor:
        value = value[..., :count].reshape(n, -1, *fine)
        k = supersample  # a sum of strided views: much faster than avg_pool2d here
        return sum(value[:, :, i::k, j::k] for i in range(k) for j in range(k)) * (1 / k**2)

    nowhere = torch.zeros_like(back[:, 0])
    mask, depth = shrink(nowhere.scatter(1, at, alpha)), shrink(nowhere.scatter(1, at, hit.t * REACH))
    return {
        "image": domain.film(shader, shrink(rgb)),
        "head_mask": mask,
        "hair_mask": shrink(nowhere.scatter(1, at, alpha * cover)),
        "depth": torch.where(mask > 0.99, depth, torch.full_like(depth, float("nan"))),
        "camera": camera(pose, height, width),
        "landmarks": landmarks,
    }
