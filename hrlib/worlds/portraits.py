"""Procedural portraits with ground truth: one parametric head, drawn as a photograph.

    people = sample(16, seed=1)
    x = render(people, 128)                                      # [16, 3, 128, 128] in [-1, 1]
    turned = people.replace(pose={"yaw": 0.5})                   # the same people, looking to the picture's right
    truth = render_with_truth(turned, (96, 160))                 # + masks, depth, camera, landmarks

A picture is a function of the named parameters below and of `detail_seed`, which alone draws what the parameters do not
explain: strands of hair, pores, freckles, fabric and the grain of the film. That detail reaches the pixel's Nyquist
frequency at every size, so a generator trained on these pictures has a use for its noise inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from dataclasses import replace as _replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hrlib.errors import ShapeError, UnknownName, nearest
from hrlib.worlds import _head, _paint
from hrlib.worlds._noise import hash01, mix, smooth

IDENTITY_NAMES = (
    "head_width", "head_height", "jaw_width", "chin", "cheeks", "fullness",
    "eye_size", "eye_spacing", "eye_tilt", "iris_hue",
    "nose_length", "nose_width", "nose_projection",
    "mouth_width", "lip_fullness", "lip_tint",
    "ear_size",
    "skin_tone", "skin_warmth", "freckles",
    "hair_tone", "hair_red", "grey", "hair_length", "hair_volume", "hair_curl", "hair_part", "fringe", "bun", "hairline",
    "brow_thickness", "brow_arch",
    "beard", "moustache",
    "glasses", "glasses_shape",
    "age", "femininity",
)  # fmt: skip
POSE_NAMES = ("yaw", "pitch")
EXPRESSION_NAMES = ("smile", "mouth_open", "brow_raise", "lids")
LIGHT_NAMES = ("light_azimuth", "light_elevation", "light_warmth", "light_strength", "light_fill")
BACKGROUND_NAMES = (
    "bg_hue", "bg_saturation", "bg_lightness", "bg_shift", "bg_gradient", "bg_angle", "bg_blob",
    "cloth_hue", "cloth_saturation", "cloth_lightness", "neckline",
)  # fmt: skip
GROUPS = {
    "identity": IDENTITY_NAMES,
    "pose": POSE_NAMES,
    "expression": EXPRESSION_NAMES,
    "light": LIGHT_NAMES,
    "background": BACKGROUND_NAMES,
}
LANDMARK_NAMES = ("left_eye", "right_eye", "nose_tip", "mouth_left", "mouth_right", "chin")

DISTANCE = 6.0  # from the camera to the picture's middle, in half picture sides
FOCUS = 0.35  # depth of the plane on which one unit is half the picture's shorter side
PIVOT = (0.0, -0.10, 0.26)  # what the head turns about, relative to its centre


@dataclass(frozen=True)
class Portraits:
    """Parameters of N portraits.

    identity [N, 38], expression [N, 4], background [N, 11]: mostly in [-1, 1] or [0, 1]; pose [N, 2]: yaw, pitch in
    radians (yaw > 0 turns the face to the picture's right, pitch > 0 up); light [N, 5]: azimuth and elevation of the key
    light in radians (0, 0 is the camera), then warmth, strength, fill in [-1, 1]; detail_seed [N] int64.
    """

    identity: Tensor
    pose: Tensor
    expression: Tensor
    light: Tensor
    background: Tensor
    detail_seed: Tensor

    def __post_init__(self) -> None:
        for group, names in GROUPS.items():
            value = getattr(self, group)
            if value.shape != (len(self.detail_seed), len(names)) or value.dtype != torch.float32:
                raise ShapeError(
                    f"{group} of shape {list(value.shape)} and type {value.dtype}",
                    expected=f"float32 [{len(self.detail_seed)}, {len(names)}]",
                    do=f"give one column for each of portraits.{group.upper()}_NAMES",
                )

    def __len__(self) -> int:
        return len(self.detail_seed)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Portraits:
        """The portraits at `index` (a slice, a list or a tensor of indices)."""
        return Portraits(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.identity.device

    def to(self, device: str | torch.device) -> Portraits:
        """The same portraits on another device."""
        return Portraits(*(getattr(self, f.name).to(device) for f in fields(self)))

    def get(self, name: str) -> Tensor:
        """[N] values of one named parameter."""
        for group, names in GROUPS.items():
            if name in names:
                return getattr(self, group)[:, names.index(name)]
        valid = [n for names in GROUPS.values() for n in names]
        raise UnknownName(
            f"no portrait parameter {name!r}", expected=f"one of {', '.join(valid)}", do=nearest(name, valid) or "see GROUPS"
        )

    def replace(self, **changes: Tensor | Mapping[str, float | Tensor]) -> Portraits:
        """A copy with some groups replaced.

        Each keyword is a group's name; its value is the whole new tensor, or a mapping from parameter names of that group
        to a number or an [N] tensor: `people.replace(pose={"yaw": 0.4}, expression={"smile": 1.0})`.
        """
        new = {}
        for group, change in changes.items():
            if group not in {f.name for f in fields(self)}:
                raise UnknownName(
                    f"no group {group!r}", expected=f"one of {', '.join(f.name for f in fields(self))}", do="rename the keyword"
                )
            if isinstance(change, Mapping):
                value = getattr(self, group).clone()
                for name, column in change.items():
                    if name not in GROUPS.get(group, ()):
                        valid = list(GROUPS.get(group, ()))
                        raise UnknownName(
                            f"no parameter {name!r} in {group}",
                            expected=f"one of {', '.join(valid)}",
                            do=nearest(name, valid) or "see GROUPS",
                        )
                    value[:, GROUPS[group].index(name)] = torch.as_tensor(column, dtype=value.dtype, device=value.device)
                change = value
            new[group] = change
        return _replace(self, **new)


@dataclass(frozen=True)
class Truth:
    """A rendering and what is exactly known about it.

    image [N, 3, H, W] in [-1, 1]; head_mask, hair_mask [N, 1, H, W] in [0, 1] (the head includes its hair); depth
    [N, 1, H, W]: distance along the optical axis in half shorter picture sides, NaN off the head; camera [N, 3, 4]: takes
    homogeneous head points to homogeneous pixels (x right, y down, the first pixel's centre at 0.5); landmarks [N, 6, 3]:
    head points named by LANDMARK_NAMES (left and right as seen in the picture).
    """

    image: Tensor
    head_mask: Tensor
    hair_mask: Tensor
    depth: Tensor
    camera: Tensor
    landmarks: Tensor


def sample(n: int, seed: int = 0, *, device: str | torch.device = "cpu") -> Portraits:
    """Draw n portraits; item i depends on (seed, i) alone.

    Tones of skin are drawn evenly, ages from young adult to old, cuts of hair and accessories as mixtures that go together
    often enough to look natural; poses crowd near the frontal one (standard deviations 14 and 6 degrees).
    """
    index = torch.arange(n)
    taken = 0

    def u(lo: float = 0.0, hi: float = 1.0) -> Tensor:
        nonlocal taken
        taken += 1
        return lo + (hi - lo) * hash01(torch.tensor(seed), index, torch.tensor(taken))

    def g(scale: float = 0.4, bound: float = 1.0) -> Tensor:
        radius = (-2 * (u() + 1e-7).log()).sqrt()
        return (scale * radius * (6.283185 * u()).cos()).clamp(-bound, bound)

    def chance(probability: Tensor | float, yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(u() < probability, yes, no)

    v: dict[str, Tensor] = {name: g() for name in IDENTITY_NAMES}
    fem = chance(0.5, u(0.35, 1.0), u(-1.0, -0.35))
    age = u(-0.9, 1.0)
    old = age.clamp(min=0)
    tone = u(-1, 1)
    woman, man = (fem > 0).float(), (fem <= 0).float()
    v |= {"femininity": fem, "age": age, "skin_tone": tone, "jaw_width": (-0.35 * fem + g(0.35)).clamp(-1, 1)}
    v["lip_fullness"] = (0.3 * fem + 0.3 * tone + g(0.35)).clamp(-1, 1)
    v["nose_width"] = (0.35 * tone - 0.15 * fem + g(0.35)).clamp(-1, 1)
    v["lip_tint"] = woman * chance(0.6, u(0.2, 1.0), 0 * age)
    fair = smooth(0.3, -0.7, tone)
    v["iris_hue"] = mix(u(-1, -0.55), u(-1, 1), fair)
    v["freckles"] = chance(0.35, u(0.2, 1.0), 0 * age) * smooth(0.5, 0.0, tone)
    v["hair_tone"] = mix(u(-1.0, -0.55), u(-0.95, 0.95), fair)
    v["hair_red"] = chance(0.22, u(0.3, 1.0), 0 * age) * smooth(0.6, -0.4, tone)
    v["grey"] = (smooth(0.25, 0.95, age + g(0.2)) * 1.1).clamp(0, 1)
    short, long = u(-0.75, -0.1), u(0.25, 1.0)
    v["hair_length"] = chance(0.16 + 0.66 * woman, long, short)
    bald = man * (u() < 0.10 + 0.12 * old).float()
    v["hair_length"] = torch.where(bald > 0, torch.full_like(age, -1.0), v["hair_length"])
    bun = woman * (u() < 0.16).float()
    v["hair_length"] = torch.where(bun > 0, short, v["hair_length"])
    v["bun"] = bun
    v["hair_curl"] = mix(chance(0.4, u(0.2, 0.8), 0 * age), u(0.55, 1.0), smooth(0.2, 0.8, tone + g(0.3)))
    v["hair_volume"] = (u(-1, 1) + 0.4 * (v["hair_curl"] > 0.6)).clamp(-1, 1)
    v["hair_part"] = u(-1, 1)
    v["fringe"] = chance(0.25 + 0.15 * woman, u(0.4, 1.0), 0 * age) * (1 - bun)
    v["hairline"] = (man * (0.9 * old + g(0.3)) + woman * g(0.2)).clamp(-1, 1)
    v["brow_thickness"] = (-0.35 * fem + g(0.4)).clamp(-1, 1)
    bearded = man * (u() < 0.42).float()
    v["beard"] = bearded * chance(0.4, u(0.15, 0.45), u(0.6, 1.0))
    v["moustache"] = man * torch.where(bearded > 0, (v["beard"] + 0.1).clamp(max=1), chance(0.12, u(0.7, 1.0), 0 * age))
    v["glasses"] = chance(0.20 + 0.15 * old, 0 * age + 1, 0 * age)
    v["glasses_shape"] = u(-1, 1)

    yaw = g(0.26, 0.69)
    pitch = g(0.10, 0.34)
    smile = chance(0.65, u(0.2, 1.0), u(-0.35, 0.2))
    opened = chance(0.30, u(0.05, 0.75), 0 * age)
    expression = (smile, opened, g(0.35), g(0.3).clamp(-0.6, 0.6))
    light = (u(-0.95, 0.95), u(0.15, 0.85), g(0.5), g(0.4), g(0.5))
    background = (u(), u(), u(), u(-1, 1), u(), u(), u(-1, 1), u(), u(), u(), u(-1, 1))
    stack = lambda columns: torch.stack([torch.as_tensor(c) for c in columns], 1).float()  # noqa: E731
    detail = (hash01(torch.tensor(seed), index, torch.tensor(-1)) * (1 << 24)).long()
    return Portraits(
        stack([v[name] for name in IDENTITY_NAMES]), stack((yaw, pitch)), stack(expression), stack(light), stack(background), detail
    ).to(device)


class _Named:
    """Parameters by name, [N, 1] each."""

    def __init__(self, people: Portraits) -> None:
        self.device, self._n = people.device, len(people)
        self._columns = {
            name: getattr(people, group)[:, i, None] for group, names in GROUPS.items() for i, name in enumerate(names)
        }

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, name: str) -> Tensor:
        return self._columns[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._columns[name] = value


def rotation(pose: Tensor) -> Tensor:
    """[N, 3, 3] rotations taking head directions to the world's, from yaw and pitch [N, 2] in radians."""
    (sy, sp), (cy, cp) = pose.sin().unbind(1), pose.cos().unbind(1)
    zero = torch.zeros_like(sy)
    rows = ((cy, -sy * sp, sy * cp), (zero, cp, sp), (-sy, -cy * sp, cy * cp))
    return torch.stack([torch.stack(r, 1) for r in rows], 1)


def _placement(people: Portraits) -> tuple[Tensor, Tensor]:
    """World = rotation @ head + offset."""
    turn = rotation(people.pose)
    pivot = torch.tensor(PIVOT, device=people.device)
    return turn, pivot + torch.tensor([0.0, _head.CENTRE_Y, 0.0], device=people.device) - turn @ pivot


def camera(people: Portraits, size: int | tuple[int, int]) -> Tensor:
    """[N, 3, 4] matrices taking homogeneous head points to homogeneous pixels of a picture of that size."""
    height, width = _size(size)
    turn, offset = _placement(people)
    half = min(height, width) / 2
    focal = (DISTANCE - FOCUS) * half
    intrinsics = torch.tensor(
        [[focal, 0.0, -width / 2], [0.0, -focal, -height / 2], [0.0, 0.0, -1.0]], device=people.device
    )
    offset = offset - torch.tensor([0.0, 0.0, DISTANCE], device=people.device)
    return intrinsics @ torch.cat((turn, offset[:, :, None]), 2)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 8:
        raise ShapeError(f"picture size {height} x {width}", expected="at least 8 x 8 pixels", do="ask for a larger picture")
    return int(height), int(width)


def _rays(height: int, width: int, aspect: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Picture coordinates of a height x width grid over a picture of that aspect, [height, width] each; y points up."""
    short = min(aspect)
    x = ((torch.arange(width, device=device) + 0.5) / width * 2 - 1) * (aspect[1] / short)
    y = (1 - (torch.arange(height, device=device) + 0.5) / height * 2) * (aspect[0] / short)
    return x[None].expand(height, width), y[:, None].expand(height, width)


def _project(matrix: Tensor, points: Tensor) -> Tensor:
    """[N, K, 2] pixels of head points [N, K, 3]."""
    q = torch.einsum("nij,nkj->nki", matrix[:, :, :3], points) + matrix[:, None, :, 3]
    return q[..., :2] / q[..., 2:]


def _on_surface(radius: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[N, K, 3] head points at the chart points x, y [N, K]."""
    r = _head.lookup(radius, x, y)[:, 0]
    rho2 = x * x + y * y
    s = (1 - rho2 / 4).sqrt()
    return torch.stack((x * s, y * s, 1 - rho2 / 2), -1) * r[..., None]


def _draw(people: Portraits, height: int, width: int, supersample: int) -> Truth:
    """One chunk of portraits."""
    p, n, device = _Named(people), len(people), people.device
    fine_h, fine_w = height * supersample, width * supersample
    half = min(fine_h, fine_w) / 2
    turn, offset = _placement(people)
    az, el = p["light_azimuth"], p["light_elevation"]
    key_world = torch.cat((az.sin() * el.cos(), el.sin(), az.cos() * el.cos()), 1)
    p["key_world"] = key_world
    to_head = lambda v: torch.einsum("nji,nj->ni", turn, v)  # noqa: E731  world direction -> head direction
    key = to_head(key_world)
    axis = torch.eye(3, device=device)
    eye = to_head(torch.tensor([0.0, 0.0, DISTANCE], device=device) - offset)  # the camera in the head frame
    baked = _head.bake(p, key)

    reach = DISTANCE - FOCUS

    def directions(h: int, w: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        x, y = _rays(h, w, (height, width), device)
        d = tuple(
            turn[:, 0, i, None, None] * x + turn[:, 1, i, None, None] * y - turn[:, 2, i, None, None] * reach for i in range(3)
        )
        return d, x, y

    coarse, _, _ = directions(-(-fine_h // 4), -(-fine_w // 4))
    fill = -(fine_h * fine_w) % 256  # whole vector registers: see _head.compact
    wx, wy = (F.pad(c.reshape(1, -1), (0, fill)) for c in _rays(fine_h, fine_w, (height, width), device))

    def fine_at(at: Tensor) -> tuple[Tensor, ...]:
        x, y = wx[0][at], wy[0][at]
        return tuple(turn[:, 0, i, None] * x + turn[:, 1, i, None] * y - turn[:, 2, i, None] * reach for i in range(3))

    hit, at = _head.intersect(baked, eye, coarse, fine_at, (fine_h, fine_w), reach)
    found = _head.lookup(baked.maps, hit.x, hit.y)
    view = F.normalize(eye, dim=1)
    shader = _paint.Shader(p, people.detail_seed, key, to_head(axis[1].expand(n, 3)), view, 1 / half)

    def some(mask: Tensor) -> tuple[Tensor, _head.Hit, dict[str, Tensor]]:
        index = _head.compact(mask)
        values = _head.pick(found, index)
        return index, hit.pick(index), {name: values[:, i] for i, name in enumerate(_head.MAPS)}

    cx = 0.345 + 0.02 * p["eye_spacing"]
    mouth = _head.mouth_shape(p)
    zero = torch.zeros_like(cx)
    corner = mouth.y + mouth.curve
    lx = torch.cat((-cx, cx, zero, -mouth.half_width, mouth.half_width, zero), 1)
    ly = torch.cat((zero + _head.EYE_Y, zero + _head.EYE_Y, zero + _head.NOSE_TIP_Y, corner, corner, zero - 0.98), 1)
    landmarks = _on_surface(baked.radius, lx, ly)

    # each material is worked out only where it can show
    hairy, lift = found[:, _head.MAPS.index("hair")], _head.to_chart(hit.px, hit.py, hit.pz)[2] - found[:, _head.MAPS.index("bald")]
    rgb = torch.zeros(n, 3, at.shape[1], device=device)
    index, part, maps = some(hairy < 0.25)
    rgb = _head.put(rgb, index, _paint.skin(shader, part, maps))
    index, part, maps = some(((hit.x.abs() - 0.35).abs() < 0.30) & ((hit.y - 0.07).abs() < 0.27))
    ball = 0.150
    to = [(eye[:, i] - landmarks[:, :2, i].T).T for i in range(3)]  # [N, 2]: from each eyeball's centre to the camera
    to[2] = to[2] + ball * 0.96
    to = [torch.where(part.x < 0, c[:, :1], c[:, 1:]) for c in to]
    d = (part.dx, part.dy, part.dz)
    dd, td, tt = sum(c * c for c in d), sum(c * v for c, v in zip(d, to, strict=True)), sum(v * v for v in to)
    t = (-td - (td * td - dd * (tt - ball**2)).clamp(min=0).sqrt()) / dd
    local = {name: (v + t * c) / ball for name, v, c in zip(("nx", "ny", "nz"), to, d, strict=True)}
    local["shadow"] = maps["shadow"]
    rgb = _head.put(rgb, index, _paint.brows_and_eyes(shader, part.x, part.y, _head.pick(rgb, index), local))
    index, part, maps = some((hit.x.abs() < 0.38) & ((hit.y + 0.58).abs() < 0.28))
    rgb = _head.put(rgb, index, _paint.mouth(shader, part.x, part.y, _head.pick(rgb, index), maps))
    index, part, maps = some((hairy > -0.25) | (lift > 0.005))
    strands, cover, fly = _paint.hair(shader, part, maps)
    rgb = _head.put(rgb, index, mix(_head.pick(rgb, index), strands, cover[:, None]))
    nowhere = torch.zeros_like(hit.x)
    loose = nowhere.scatter(1, index, cover * (0.008 + 0.011 * fly.clamp(min=-0.5)))  # hairs stand off the silhouette
    cover = nowhere.scatter(1, index, cover)
    if bool((p["glasses"] > 0.45).any()):
        index, part, _ = some((hit.y.abs() < 0.40) & (hit.x.abs() < 1.6) & (p["glasses"] > 0.45))
        front = landmarks[:, :2, 2].mean(1, keepdim=True)
        rgb = _head.put(rgb, index, _paint.glasses(shader, part, eye, front, _head.pick(rgb, index)))
    alpha = smooth(1.0, -0.6, (hit.gap * (1 - hit.deep) - 0.004 - loose) * half)

    base = torch.einsum("nij,j->ni", turn, torch.tensor([0.0, -0.55, -0.12], device=device)) + offset
    chin = torch.einsum("nij,nj->ni", turn, landmarks[:, 5]) + offset
    back = _paint.backdrop(shader, wx, wy)
    rows = int((wy[0, : fine_h * fine_w] > _paint.NECK_TOP).sum()) // 256 * 256  # the body is below
    torso, torso_cover, torso_z = _paint.body(shader, wx[:, rows:], wy[:, rows:], base[:, 0, None], chin[:, 1, None])
    back[:, :, rows:] = mix(back[:, :, rows:], torso, torso_cover[:, None])
    nearer = F.pad(torso_z, (rows, 0), value=-9.0).gather(1, at) - (DISTANCE - hit.t * reach)
    alpha = alpha * (1 - F.pad(torso_cover, (rows, 0)).gather(1, at) * smooth(-0.02, 0.02, nearer))
    rgb = _head.put(back, at, mix(_head.pick(back, at), rgb, alpha[:, None]))
    nowhere = torch.zeros_like(back[:, 0])
    depth, cover = nowhere.scatter(1, at, hit.t * reach), nowhere.scatter(1, at, alpha * cover)
    alpha = nowhere.scatter(1, at, alpha)

    def shrink(value: Tensor) -> Tensor:
        value = value.reshape(n, -1, fine_h * fine_w + fill)[:, :, : fine_h * fine_w].reshape(n, -1, fine_h, fine_w)
        k = supersample  # a sum of strided views: much faster than avg_pool2d here
        return sum(value[:, :, i::k, j::k] for i in range(k) for j in range(k)) * (1 / k**2)

    linear = shrink(rgb)
    grey = F.pad(linear.flatten(2).clamp(min=0), (0, -(height * width) % 256))
    toned = grey * (1 + grey * 0.10) / (1 + 0.32 * grey)  # a gentle shoulder
    image = toned.clamp(min=1e-5).pow(1 / 2.2)[:, :, : height * width].reshape(n, 3, height, width)
    rows, cols = torch.arange(height, device=device), torch.arange(width, device=device)
    s = people.detail_seed[:, None, None]
    grain = hash01(s, rows[:, None], cols) + hash01(s + 77, rows[:, None], cols) - 1
    image = ((image + 0.030 * grain[:, None]) * 2 - 1).clamp(-1, 1)
    mask = shrink(alpha)
    depth = shrink(depth)
    nothing = torch.full_like(depth, float("nan"))
    return Truth(
        image=image,
        head_mask=mask,
        hair_mask=shrink(cover),
        depth=torch.where(mask > 0.5, depth, nothing),
        camera=camera(people, (height, width)),
        landmarks=landmarks,
    )


def render_with_truth(people: Portraits, size: int | tuple[int, int] = 128, supersample: int = 2, *, chunk: int = 4) -> Truth:
    """Render portraits with their masks, depth, camera and landmarks.

    Args:
        size: side in pixels, or (height, width); the shorter side shows the head as in a square picture.
        supersample: rays a pixel along each axis; the mean of their light is the pixel.
        chunk: portraits drawn at once (memory is about 60 MB each at 128 pixels; the result does not depend on it).
    """
    height, width = _size(size)
    if supersample < 1:
        raise ShapeError(f"supersample {supersample}", expected="a whole number from 1", do="2 is a good choice")
    with torch.no_grad():
        parts = [_draw(people[i : i + chunk], height, width, supersample) for i in range(0, len(people), chunk)]
    return Truth(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Truth)))


def render(people: Portraits, size: int | tuple[int, int] = 128, supersample: int = 2, *, chunk: int = 4) -> Tensor:
    """[N, 3, H, W] pictures in [-1, 1]; arguments as in `render_with_truth`."""
    return render_with_truth(people, size, supersample, chunk=chunk).image
