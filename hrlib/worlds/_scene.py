"""Draw portraits: placement, camera, rays, the visible materials, and the film."""

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
PIVOT = (0.0, -0.10, 0.26)  # the point the head turns about, relative to its centre
NECK_BASE = (0.0, -0.55, -0.12)
EYEBALL = 0.150  # radius
SEEN = 0.06  # no hair stands off farther than this, in head units


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
    s: _paint.Shader, hit: Hit, baked: _head.Bake, eye: Tensor, landmarks: Tensor, domain: Domain
) -> tuple[Tensor, ...]:
    """Light [N, 3, K] leaving the head along K rays, coverage by hair, and how far hairs stand off, both [N, K].

    Each material is computed only where it can be visible: hair first, then the face beside it.
    """
    p = s.p

    def where(mask: Tensor) -> tuple[Tensor, Hit, dict[str, Tensor]]:
        index = compact(mask)
        part = hit.pick(index)
        return index, part, _head.named_maps(_head.lookup(baked.maps, part.x, part.y))

    seen = hit.gap * (1 - hit.deep) < SEEN + s.pixel
    hairy, bald = _head.lookup(baked.maps[:, : _head.MAPS.index("bald") + 1], hit.x, hit.y).unbind(1)
    lift = (hit.px * hit.px).addcmul_(hit.py, hit.py).addcmul_(hit.pz, hit.pz).sqrt_().sub_(bald)
    above, part, maps = where(((hairy > -0.17) | (lift > 0.005)) & seen)
    strands, hair_cover, fly = domain.hair(s, part, maps)
    nowhere = torch.zeros_like(hit.x)
    cover = nowhere.scatter(1, above, hair_cover)
    loose = nowhere.scatter(1, above, hair_cover * (0.008 + 0.011 * fly.clamp(min=-0.5)))

    bare, face, maps = where((cover < 1) & seen)
    rgb = domain.skin(s, face, maps)
    wide, tall = domain.eye_reach
    index = compact(((face.x.abs() - 0.35).abs() < wide) & ((face.y - 0.07).abs() < tall))
    part = face.pick(index)
    ball = _eyeballs(p, part, eye, landmarks[:, :2])
    rgb = put(rgb, index, domain.eyes(s, part.x, part.y, pick(rgb, index), ball, maps["shadow"].gather(1, index)))
    index = compact((face.x.abs() < 0.38) & ((face.y + 0.58).abs() < 0.28))
    part, maps = face.pick(index), {name: m.gather(1, index) for name, m in maps.items()}
    rgb = put(rgb, index, domain.mouth(s, part.x, part.y, pick(rgb, index), maps))

    rgb = put(torch.zeros(len(p), 3, hit.x.shape[1], device=p.device), bare, rgb)
    rgb = put(rgb, above, mix(pick(rgb, above), strands, hair_cover[:, None]))
    if bool((p["glasses"] > 0.45).any()):
        index = compact((hit.y.abs() < 0.40) & (hit.x.abs() < 1.6) & (p["glasses"] > 0.45))
        front = landmarks[:, :2, 2].mean(1, keepdim=True)
        rgb = put(rgb, index, domain.glasses(s, hit.pick(index), eye, front, pick(rgb, index)))
    return rgb, cover, loose


def draw(
    p: Named,
    pose: Tensor,
    detail_seed: Tensor,
    height: int,
    width: int,
    supersample: int,
    domain: Domain,
    truth: bool = True,
) -> dict[str, Tensor]:
    """One chunk of portraits: the fields of `portraits.Truth` by name, or without `truth` the image alone."""
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
    fill = -count % 256  # for the reason given in _common.compact
    x, y = (F.pad(c.reshape(1, -1), (0, fill)) for c in _grid(*fine, (height, width), device))
    hit, at = intersect(baked, eye, coarse, lambda at: _directions(turn, x[0][at], y[0][at]), fine, REACH)
    landmarks = _landmarks(p, baked.radius)
    shader = domain.shader(p, detail_seed, key, key_world, up, F.normalize(eye, dim=1), 1 / half)
    rgb, cover, loose = _paint_head(shader, hit, baked, eye, landmarks, domain)
    gap = hit.gap * (1 - hit.deep)
    alpha = smooth(1.0, -0.6, (gap - 0.004 - loose) * half).masked_fill(gap <= 0, 1.0)

    base = to_world(torch.tensor(NECK_BASE, device=device).expand(n, 3))
    chin = to_world(landmarks[:, LANDMARKS.index("chin")])
    first = int((y[0, :count] > _paint.NECK_TOP).sum()) // fine[1] // supersample * supersample * fine[1]
    tx, ty = (F.pad(c[:, first:count], (0, -(count - first) % 256)) for c in (x, y))
    torso, torso_cover, torso_z = domain.body(shader, tx, ty, base[:, :1], chin[:, 1:2])
    torso, torso_cover, torso_z = (v[..., : count - first] for v in (torso, torso_cover, torso_z))
    body = F.pad(torso_cover, (first, fill)), F.pad(torso_z, (first, fill), value=-9.0)
    nearer = body[1].gather(1, at) - (DISTANCE - hit.t * REACH)
    alpha = alpha * (1 - body[0].gather(1, at) * smooth(-0.02, 0.02, nearer))

    def shrink(value: Tensor, k: int = supersample) -> Tensor:
        """[N, C, rows / k, columns / k] means of flat [N, C, M]; summing strided views is faster than avg_pool2d."""
        value = value[..., :count].view(n, -1, *fine)
        return sum(value[:, :, i::k, j::k] for i in range(k) for j in range(k)) * (1 / k**2)

    # light of head and body, and in the fourth channel how much of the wall shows; the wall is smooth, so one sample of
    # it a pixel is enough, or one a ray where lines are drawn over it
    front = torch.zeros(n, 4, count + fill, device=device)
    front[:, 3] = 1
    front = put(front, at, torch.cat((rgb * alpha[:, None], 1 - alpha[:, None]), 1))
    low = front[:, :, first:count]
    low[:, :3].addcmul_(torso, (low[:, 3] * torso_cover)[:, None])
    low[:, 3].mul_(1 - torso_cover)
    step = supersample if domain.ink is None else 1
    wall = (fine[0] // step, fine[1] // step)
    area = wall[0] * wall[1]
    wx, wy = (F.pad(c.reshape(1, -1), (0, -area % 256)) for c in _grid(*wall, (height, width), device))
    front = shrink(front, step)
    light = front[:, :3].addcmul(front[:, 3:], domain.backdrop(shader, wx, wy)[..., :area].reshape(n, 3, *wall))
    if domain.ink is not None:
        maps = _head.named_maps(_head.lookup(baked.maps, hit.x, hit.y))
        rgb = F.pad(light.flatten(2), (0, fill))
        light = shrink(domain.ink(shader, Layers(rgb, x, y, *body, hit, at, maps, alpha, cover, fine)))
    image = domain.film(shader, light)
    if not truth:
        return {"image": image}
    known = torch.stack((alpha, alpha * cover, hit.t * REACH), 1)
    mask, hair_mask, depth = shrink(put(torch.zeros(n, 3, count + fill, device=device), at, known)).split(1, 1)
    return {
        "image": image,
        "head_mask": mask,
        "hair_mask": hair_mask,
        "depth": torch.where(mask > 0.99, depth, torch.full_like(depth, float("nan"))),
        "camera": camera(pose, height, width),
        "landmarks": landmarks,
    }
