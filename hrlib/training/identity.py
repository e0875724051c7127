"""The shipped identity network: ArcFace (Deng et al. 2019) on people of the portrait world, photo domain.

    hrlab train identity --force  # renders build/training/identity, trains, measures, replaces data/weights' network

Half of the people come in families of look-alikes, who share skin, hair, beard, glasses and age and differ only in
their proportions, and hue and saturation vary strongly: so colours alone do not identify anybody. Pictures are also
blurred, shifted, noisy and partly covered, because the network has to recognise reconstructions by a GAN.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import retrieval
from ..errors import SEED, InvalidValue, number
from ..nets.identity import Identity
from ..worlds import portraits
from . import loop, shipping
from .checkpoints import Parts
from .identity_set import CHUNK, FAMILY, half_lookalikes, load_views, lookalikes, render_views, view
from .recipe import Recipe
from .set_files import from_bytes
from .updates import one_cycle, set_rate

NAME = "identity_thin"
EVERY = 100  # steps between two checkpoints
AIM = 0.98  # top-1 rate among 200 unseen people, photograph to photograph
TEST_SEED = 52_000  # of the people whom only `measure` sees


@dataclass(frozen=True)
class IdentityRecipe(Recipe):
    """AdamW with a one-cycle learning rate, cycle after cycle."""

    config: dict = field(default_factory=dict)  # of `nets.identity.Identity`
    identities: int = 2400  # a multiple of 2 * FAMILY; the second half is in families
    views: int = 5  # the first is rendered with 2x2 rays a pixel, the others with one, which is twice as fast
    resolution: int = 96  # of the renders
    # steps and highest learning rate of each; the second and third were added after looking at the results so far
    cycles: tuple[tuple[int, float], ...] = ((4000, 2e-3), (1500, 1e-3), (2500, 2e-3))
    batch: int = 64  # a multiple of 2 * FAMILY
    weight_decay: float = 0.05
    scale: float = 32.0  # ArcFace's s
    margin: float = 0.3  # ArcFace's m in radians, reached half-way through the first cycle
    explain: float = 10.0  # weight of the regression of the people's parameters
    data_seed: int = 41_000  # of the people and their views
    seed: int = 0  # of the initial weights and the batches

    INTERVALS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("identities", "views", "batch"), "whole [1, inf)"),
        **dict.fromkeys(("weight_decay", "explain"), "[0, inf)"),
        "resolution": "whole [8, inf)",
        "scale": "(0, inf)",
        "margin": "[0, 3.14]",
        **dict.fromkeys(("data_seed", "seed"), SEED),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for steps, lr in self.cycles:
            number("steps of a cycle", steps, "whole [2, inf)")
            number("lr of a cycle", lr, "(0, inf)")
        for name in ("identities", "batch"):
            if (value := getattr(self, name)) % (2 * FAMILY):
                near = max(value // (2 * FAMILY), 1) * 2 * FAMILY
                raise InvalidValue(f"{name} = {value}", expected=f"a multiple of {2 * FAMILY}", do=f"take {near}")

    @property
    def steps(self) -> int:
        """Steps of all cycles together."""
        return sum(steps for steps, _ in self.cycles)

    def rate(self, step: int) -> tuple[float, float]:
        """Learning rate and beta1 of a step, in the cycle that it is in."""
        for steps, lr in self.cycles:
            if step < steps:
                return one_cycle(step, steps, lr)
            step -= steps
        raise IndexError(f"{step} steps after the last cycle")

    @property
    def what(self) -> dict[str, int]:
        """The rendered set of `identity_set.render_views` that belongs to it, but for its seed."""
        return {"identities": self.identities, "views": self.views, "resolution": self.resolution}


SHIPPED = IdentityRecipe()


# --- training ---------------------------------------------------------------------------------------------------------


class ArcFace(nn.Module):
    """Additive angular margin loss (Deng et al. 2019, Eq. 3): logits of a classifier of directions.

        L = -log( e^{s cos(theta_y + m)} / ( e^{s cos(theta_y + m)} + sum_{j != y} e^{s cos theta_j} ) )

    theta_j is the angle between an embedding and the direction of class j. As in the authors' code, past
    theta_y = pi - m, where cos(theta + m) would rise again, cos theta_y - m sin m continues it.
    """

    def __init__(self, classes: int, dim: int, *, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(classes, dim) * dim**-0.5), scale

    def forward(self, embedding: Tensor, label: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Unit vectors [N, dim], labels [N] -> (mean loss, logits without margin [N, classes])."""
        cosine = embedding @ F.normalize(self.weight, dim=1).T
        own = cosine.gather(1, label[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
        moved = own * math.cos(margin) - (1 - own.square()).sqrt() * math.sin(margin)
        moved = torch.where(own > -math.cos(margin), moved, own - margin * math.sin(margin))
        loss = F.cross_entropy(self.scale * cosine.scatter(1, label[:, None], moved), label)
        return loss, self.scale * cosine.detach()


def draw(recipe: IdentityRecipe, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of the training set and people of a batch, int64 [batch] each: half unrelated people, half families."""
    half, n = recipe.batch // 2, recipe.identities // 2
    single = torch.randint(n, (half,), generator=rng)
    family = torch.randint(n // FAMILY, (half // FAMILY, 1), generator=rng) * FAMILY + torch.arange(FAMILY)
    label = torch.cat([single, n + family.flatten()])
    return label + recipe.identities * torch.randint(recipe.views, (len(label),), generator=rng), label


def augment(x: Tensor, edge: int, rng: torch.Generator) -> Tensor:
    """[N, 3, R, R] in [-1, 1] -> [N, 3, edge, edge]: random changes that leave the person the same.

    Zoom, turn, shift and mirror; low resolution on half of the pictures; brightness, contrast and saturation, any
    change of hue on 15 % and grey on 10 %; noise on a third; a covered part on a fifth.
    """
    n, edges = len(x), (edge, edge)
    u = lambda lo, hi, *shape: lo + (hi - lo) * torch.rand(n, *shape, generator=rng)
    some = lambda p, *shape: torch.rand(n, *shape, generator=rng) < p
    zoom, turn, flip = 2 ** u(-0.3, 0.25), u(-0.12, 0.12), torch.where(some(0.5), -1.0, 1.0)
    rows = [zoom * flip * turn.cos(), -zoom * turn.sin(), u(-0.1, 0.1), zoom * flip * turn.sin(), zoom * turn.cos()]
    where = F.affine_grid(torch.stack([*rows, u(-0.1, 0.1)], 1).view(n, 2, 3), list(x.shape), align_corners=False)
    parts = list(F.grid_sample(x, where, padding_mode="reflection", align_corners=False).split(max(n // 8, 1)))
    for i, part in enumerate(parts):
        small = int(torch.randint(edge // 2, edge, (), generator=rng)) if i % 2 else edge
        part = F.interpolate(part, (small, small), mode="bilinear", antialias=True)
        parts[i] = F.interpolate(part, edges, mode="bilinear") if i % 2 else part
    x = torch.cat(parts)

    hue = torch.where(some(0.15), u(-math.pi, math.pi), u(-0.15, 0.15))
    saturation = torch.where(some(0.1), torch.zeros(n), u(0.5, 1.4))
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    c, s = (saturation * f(hue) for f in (torch.cos, torch.sin))  # a rotation of the colours about the grey axis
    colour = grey + c[:, None, None] * (torch.eye(3) - grey) + s[:, None, None] * cross
    x = torch.einsum("nij,njhw->nihw", colour, x) * u(0.75, 1.25, 3, 1, 1).lerp(u(0.75, 1.25, 1, 1, 1), 0.7)
    strength = u(0.0, 0.15, 1, 1, 1) * some(1 / 3, 1, 1, 1)
    x = x + u(-0.2, 0.2, 1, 1, 1) + strength * torch.randn(x.shape, generator=rng)

    place = (torch.arange(edge) + 0.5) / edge
    middle, side = u(0, 1, 2), u(0.05, 0.2, 2) * some(0.2, 1)
    inside = (place - middle[..., None]).abs() < side[..., None]  # [N, 2, edge]
    covered = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(covered[:, None], u(-1, 1, 3, 1, 1), x).clamp(-1, 1)


def explanation(recipe: IdentityRecipe) -> Tensor:
    """[identities, 37] parameters of the people in training, each of zero mean and unit variance.

    A linear regression of them from the embedding, dropped after training, tells the network what to look at, where
    ArcFace offers only names. The parting is left out, because mirrored pictures count as the same person.
    """
    keep = [i for i, name in enumerate(portraits.IDENTITY_NAMES) if name != "hair_part"]
    values = half_lookalikes(recipe.identities, seed=recipe.data_seed)[:, keep]
    return (values - values.mean(0)) / values.std(0).clamp(min=1e-3)


class State:
    """The network, what only training needs (ArcFace's directions, the regression), and the optimiser, at a step."""

    def __init__(self, recipe: IdentityRecipe) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.net = Identity(**recipe.config).to(memory_format=torch.channels_last).train()
            self.arcface = ArcFace(recipe.identities, self.net.dim, scale=recipe.scale)
            self.known = explanation(recipe)  # [identities, 37]
            self.explain = nn.Linear(self.net.dim, self.known.shape[1])
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        every = (*self.net.parameters(), *self.arcface.parameters(), *self.explain.parameters())
        plain = [p for p in every if all(p is not q for q in decay)]
        groups = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        self.step = 0

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds."""
        return {"net": self.net, "arcface": self.arcface, "explain": self.explain, "adam": self.adam}


def train(recipe: IdentityRecipe, folder: Path, state: State) -> Iterator[dict[str, float]]:
    """Advance `state` to the recipe's end, on the CPU; yield {"step", "images", "loss", "accuracy"} after every step.

    All draws depend on (seed, step), so a resumed run is the same run.

    Args:
        folder: filled by `render_views` with the same recipe.
        state: is changed in place.

    Raises:
        StoreError: the set is missing or incomplete.
    """
    images, net = load_views(folder), state.net
    while state.step < recipe.steps:
        draws = recipe.seed * 1_000_003 + state.step
        rng = torch.Generator().manual_seed(draws)
        rows, label = draw(recipe, rng)
        x = augment(from_bytes(images[rows.numpy()]), net.edge, rng)
        margin = recipe.margin * min(1.0, 2 * state.step / recipe.cycles[0][0])
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(draws)  # for the dropout
            embedding = net.embed(x.contiguous(memory_format=torch.channels_last))
        loss, logits = state.arcface(embedding, label, margin)
        loss = loss + recipe.explain * F.mse_loss(state.explain(embedding * net.dim**0.5), state.known[label])
        state.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        set_rate(state.adam, *recipe.rate(state.step))
        state.adam.step()
        state.step += 1
        accuracy = (logits.argmax(1) == label).float().mean().item()
        yield {
            "step": state.step,
            "images": state.step * recipe.batch,
            "loss": loss.item(),
            "accuracy": accuracy,
        }


# --- measures and shipping --------------------------------------------------------------------------------------------


@torch.inference_mode()
def embed(
    net: Identity, people: portraits.Portraits, *, size: int = 128, domain: str = "photo", low: int = 0
) -> Tensor:
    """Identity vectors [N, dim] of rendered portraits; with `low`, of pictures first shrunk to that edge."""
    vectors = []
    for i in range(0, len(people), CHUNK):
        x = portraits.render(people[i : i + CHUNK], size, domain=domain)
        if low:
            x = F.interpolate(x, (low, low), mode="bilinear", antialias=True)
            x = F.interpolate(x, (size, size), mode="bicubic").clamp(-1, 1)
        vectors.append(net.embed(x))
    return torch.cat(vectors)


def measure(
    net: Identity, *, n: int = 200, seeds: Sequence[int] = range(5), domains: Sequence[str] = portraits.DOMAINS
) -> dict[str, list[float]]:
    """Top-1 rates of ID retrieval among n unseen people at 128 px, one for each seed (other people, other views).

    Contents are photographs. Other views of the same people are looked up among them: photographs, photographs with the
    paper's threshold, photographs of a third of the resolution, look-alikes, and the other domains (by their names).
    """
    rates: dict[str, list[float]] = {}
    for seed in seeds:
        first = TEST_SEED + 10 * seed
        who, alike = portraits.sample(n, seed=first).identity, lookalikes(n, seed=first + 1)
        content, again = embed(net, view(who, seed=first + 3)), view(who, seed=first + 4)
        photo = embed(net, again)
        tests = {
            "photo": (content, photo, None),
            "photo, squared distance below 1.5": (content, photo, 1.5),
            "photo at 42 px": (content, embed(net, again, low=42), None),
            "look-alikes": (*(embed(net, view(alike, seed=first + s)) for s in (5, 6)), None),
            **{d: (content, embed(net, again, domain=d), None) for d in domains if d != "photo"},
        }
        for name, (a, b, threshold) in tests.items():
            rates.setdefault(name, []).append(retrieval.id_retrieval(a, b, range(n), threshold).rate)
    return rates


def table(rates: dict[str, list[float]], n: int) -> str:
    """The rates of `measure` among n people as a Markdown table: mean, standard deviation and least over the seeds."""
    rows = ["| looked up | top-1 | spread | least | seeds | chance |", "|---|---|---|---|---|---|"]
    for what, v in rates.items():
        spread = f"{np.std(v, ddof=1):.1%}" if len(v) > 1 else "–"
        rows.append(f"| {what} | {np.mean(v):.1%} | {spread} | {min(v):.1%} | {len(v)} | {1 / n:.1%} |")
    return "\n".join(rows)


def run(
    folder: str | Path = "build/training/identity",
    out: str | Path | None = None,
    *,
    recipe: IdentityRecipe = SHIPPED,
    threads: int = 1,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Render, train, measure and ship the network; an interrupted run resumes.

    Args:
        folder: for this training only (see `loop.follow`); views/ in it holds the rendered set.
        out: the .safetensors file to write, with its card beside it; None is the shipped one,
            data/weights/identity_thin.safetensors.
        recipe: of the training.
        threads: of PyTorch. The numbers depend on it in the last digits.
        force: replace `out` and its card.
        tell: called with a line for each row of the log.

    Returns:
        The rates of `measure`, for the network as the file holds it.

    Raises:
        InvalidValue: a number is out of range.
        StoreError: `out` exists, the folder holds something else, or they cannot be written.
    """
    torch.set_num_threads(number("threads", threads, "whole [1, 1024]"))
    folder, file, state = Path(folder), shipping.free(shipping.place(NAME, out), force=force), State(recipe)

    def prepare() -> None:
        for done in render_views(folder / "views", **recipe.what, seed=recipe.data_seed):
            if done % 1200 == 0:
                tell(f"{done} portraits")

    last = loop.follow(
        folder,
        "identity network",
        recipe,
        state,
        train(recipe, folder / "views", state),
        data=recipe.what,
        every=EVERY * recipe.batch,
        prepare=prepare,
        tell=tell,
    )
    net = shipping.as_stored(state.net.to(memory_format=torch.contiguous_format))
    tested = 200
    rates = measure(net, n=tested, seeds=range(5))
    sentence = (
        f"thin IR-SE, trained with ArcFace on {recipe.identities} people of the portrait world, seed {recipe.seed}"
    )
    shipping.ship(net, file, card=card(net, recipe, last, rates, tested, threads=threads), sentence=sentence)
    return rates


def card(
    net: Identity, recipe: IdentityRecipe, last: loop.Row, rates: dict[str, list[float]], tested: int, *, threads: int
) -> str:
    """The model card, Markdown: the last row of the log, and the rates of `measure` among `tested` people."""
    reached = "is reached."
    if np.mean(rates["photo"]) < AIM:
        reached = "is not reached; longer `IdentityRecipe.cycles` should help."
    rates_of = " and then ".join(f"{lr:g} over {steps:,}" for steps, lr in recipe.cycles)
    r, config, edge = recipe, net.config, net.edge
    return f"""# identity_thin

A thin IR-SE network: pictures of any size, resized whole to {edge}x{edge} (bilinear, antialiased), to unit vectors of
{config["dim"]} numbers. {sum(q.numel() for q in net.parameters()):,} parameters, `{json.dumps(config)}`.

- **For**: ID retrieval (Sec. III-D) at the `laptop` profile, in place of the paper's IR-SE50.
- **Data**: portraits of `hrlib.worlds.portraits`, photo domain only: {r.identities:,} people, {r.views} views each
  (pose, expression, light, background and detail differ), {r.resolution} px, seeds from {r.data_seed:,}. Half of the
  people come in families of {FAMILY} look-alikes: same skin, hair, beard, glasses and age, other proportions.
- **Recipe**: ArcFace (s = {r.scale:g}, m = {r.margin:g}) and, with weight {r.explain:g}, a linear regression of the
  people's parameters from the embedding (dropped afterwards); {r.steps:,} steps of {r.batch} pictures (half of them
  whole families), AdamW, one-cycle learning rates of {rates_of} steps, weight decay
  {r.weight_decay}, bfloat16 autocast. Augmented by zoom, turn, shift, mirror, brightness, contrast,
  saturation, hue, low resolution, noise and covered parts.
- **Command**: `hrlab train identity --force`, seed {r.seed} ({threads} thread,
  {last["seconds"] / 60:.0f} minutes of training on a shared {platform.machine()} machine,
  {torch.backends.cpu.get_cpu_capability()}; rendering comes before it).
- **ID retrieval** among {tested} unseen people at 128 px, from another view each; contents are photographs; mean,
  standard deviation and least over the seeds (other people each). `python benchmarks/identity.py` measures it again:

{indent(table(rates, tested), "  ")}

- **In training**: {last["accuracy"]:.1%} of the augmented pictures in the last {EVERY} steps were nearest to their own
  class out of {r.identities:,}; loss {last["loss"]:.3f}.
- **Limits**: the aim of {AIM:.0%}, photograph to photograph, {reached}
  It tells skin, hair, beards and glasses apart better than proportions of the face (see the look-alikes). It was
  trained on these heads alone, never on a photograph of a real person or on another domain. A person is the identity
  vector, hair, beard and glasses included: with another beard it is another person. Mirrored pictures count as the
  same person. There is no face detection: the head has to fill the picture as in the renders.
- **Licence**: MIT, like the code that made it.
"""
