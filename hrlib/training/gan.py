"""Training a Style-INR-GAN on rendered portraits, in a budget that a CPU can pay.

The paper trains for 25 million images on eight GPUs (Sec. IV-A). This recipe spends some 10^5 images on one core, and
buys the difference with what only a procedural world has: the parameters of every picture. Each picture's latent z is
its (Gaussianised) parameter vector, so that

1. a warm start regresses G(z) on the picture, at reduced resolutions only: what remains unexplained (strands, pores,
   grain) is random, and regressing it would teach the generator to switch its noise inputs off;
2. adversarial training follows (non-saturating loss, lazy R1, style mixing, EMA, w_avg tracking as in StyleGAN2; no
   path-length regularisation, as the paper), with a small share of the regression kept as an anchor.

`train` is a generator of steps; logs, snapshots and sample sheets are its consumers' business (cli.py). All draws
depend on (seed, step), so that a resumed run is the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets import Discriminator, StyleINR
from .data import PortraitSet


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run. Lengths are in images seen by the generator."""

    resolution: int = 128
    z_dim: int = 64
    w_dim: int = 128
    channels: dict[int, int] = field(default_factory=lambda: {4: 96, 8: 96, 16: 96, 32: 64, 64: 32, 128: 16})
    mapping_layers: int = 4
    inr_hidden: int = 32
    batch: int = 16
    warm_images: int = 48_000
    warm_set: int = 4_000  # the warm start draws from the first pictures only, so that rendering can go on beside it
    total_images: int = 130_000
    lr: float = 0.003
    warm_mapping_gain: float = 30.0  # times lr for the mapping network in the warm start, to undo most of its lr_mul
    r1_gamma: float = 0.5
    r1_every: int = 16
    ema_images: int = 4_000  # half-life of the moving average
    mixing_prob: float = 0.25
    anchor: float = 1.0  # weight of the regression kept during adversarial training
    noise_strength: float = 0.12  # initial; held there in the warm start, learnt slowly afterwards, see `start`
    noise_strength_gain: float = 0.01  # times lr for the noise strengths in adversarial training
    bf16: bool = True
    seed: int = 0


@dataclass
class State:
    """What a run consists of at a step, as modules and optimisers; see `tensors` for how it is saved."""

    G: StyleINR
    G_ema: StyleINR
    D: Discriminator
    opt_G: torch.optim.Adam
    opt_D: torch.optim.Adam
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """All state as one flat dict of tensors, for safetensors."""
        out = {}
        for name in ("G", "G_ema", "D"):
            out |= {f"{name}/{k}": v for k, v in getattr(self, name).state_dict().items()}
        for name in ("opt_G", "opt_D"):
            for i, moments in getattr(self, name).state_dict()["state"].items():
                out |= {f"{name}/{i}/{k}": v for k, v in moments.items()}
        return {k: v.contiguous().clone() for k, v in out.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore what `tensors` returned."""
        part = lambda name: {k.removeprefix(name + "/"): v for k, v in tensors.items() if k.startswith(name + "/")}
        for name in ("G", "G_ema", "D"):
            getattr(self, name).load_state_dict(part(name))
        for name in ("opt_G", "opt_D"):
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in part(name).items():
                i, what = key.split("/")
                moments.setdefault(int(i), {})[what] = value
            opt = getattr(self, name)
            opt.load_state_dict({"state": moments, "param_groups": opt.state_dict()["param_groups"]})
        self.step = step


def start(recipe: Recipe) -> State:
    """Freshly initialised networks and optimisers for a recipe."""
    torch.manual_seed(recipe.seed)
    shape = dict(resolution=recipe.resolution, channels=recipe.channels)
    G = StyleINR(
        z_dim=recipe.z_dim,
        w_dim=recipe.w_dim,
        mapping_layers=recipe.mapping_layers,
        inr_hidden=recipe.inr_hidden,
        **shape,
    )
    with torch.no_grad():
        for name in G.synthesis.conv_names():
            G.synthesis.get_parameter(f"{name}.noise_strength").fill_(recipe.noise_strength)
    G_ema = StyleINR(**G.config).requires_grad_(False)
    G_ema.load_state_dict(G.state_dict())
    D = Discriminator(**shape)
    for net in (G, G_ema, D):
        net.to(memory_format=torch.channels_last)
    # Noise strengths are a group of their own with a small learning rate. At the full rate the first adversarial steps
    # switched the noise off, before the weights had learnt to make strands and grain of it, and from zero a strength
    # has no gradient to come back by (on average over the noise).
    strengths = [p for name, p in G.synthesis.named_parameters() if name.endswith("noise_strength")]
    weights = [p for name, p in G.synthesis.named_parameters() if not name.endswith("noise_strength")]
    adam = lambda *groups: torch.optim.Adam([{"params": list(g)} for g in groups], lr=recipe.lr, betas=(0.0, 0.99))
    return State(G, G_ema, D, adam(G.mapping.parameters(), weights, strengths), adam(D.parameters()))


def pyramid_l1(a: Tensor, b: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Mean absolute difference after area reduction by each factor in `levels`, averaged over them."""
    return torch.stack([(F.avg_pool2d(a, k) - F.avg_pool2d(b, k)).abs().mean() for k in levels]).mean()


def train(recipe: Recipe, data: PortraitSet, state: State) -> Iterator[dict[str, float]]:
    """Advance `state` in place; yield {"step", "images", loss terms} after every step."""
    G, D, B = state.G, state.D, recipe.batch
    amp = lambda: torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16)
    while state.step * B < recipe.total_images:
        step = state.step
        rng = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step)
        warm = step * B < recipe.warm_images
        count = min(recipe.warm_set, len(data)) if warm else len(data)
        data.wait_for(count)
        x, z = data.batch(torch.randint(count, (B,), generator=rng))
        noise = {k: torch.randn(B, *v.shape, generator=rng) for k, v in G.noise_maps().items()}
        mixed = not warm and float(torch.rand([], generator=rng)) < recipe.mixing_prob

        with amp():
            w = G.mapping.w(z)
            G.mapping.w_avg.lerp_(w.detach().float().mean(0), 0.01)
            ws = w.unsqueeze(1).repeat(1, G.num_ws, 1)
            if mixed:
                cut = int(torch.randint(1, G.num_ws, (1,), generator=rng))
                ws = torch.cat([ws[:, :cut], ws.flip(0)[:, cut:]], dim=1)
            fake = G.synthesis(ws, noise)
        terms = {}
        if warm:
            loss = terms["regression"] = pyramid_l1(fake, x, (2, 4, 8, 16))
        else:
            terms |= _discriminator_step(state, recipe, x, fake.detach(), rng, amp)
            D.requires_grad_(False)
            with amp():
                loss = terms["adversarial"] = F.softplus(-D(channels_last(fake))).mean()
            D.requires_grad_(True)
            if not mixed:
                terms["anchor"] = pyramid_l1(fake, x, (4, 8))
                loss = loss + recipe.anchor * terms["anchor"]
        # With lr_mul 0.01 the mapping would hardly move in a warm start: what z says would stay scrambled.
        gains = (recipe.warm_mapping_gain, 1.0, 0.0) if warm else (1.0, 1.0, recipe.noise_strength_gain)
        for group, gain in zip(state.opt_G.param_groups, gains, strict=True):
            group["lr"] = recipe.lr * gain
        state.opt_G.zero_grad(set_to_none=True)
        loss.backward()
        state.opt_G.step()
        _update_ema(state, recipe)
        state.step += 1
        yield {"step": state.step, "images": state.step * B} | {k: float(v.detach()) for k, v in terms.items()}


def channels_last(x: Tensor) -> Tensor:
    """Convolutions on a CPU are about twice as fast in this memory format."""
    return x.contiguous(memory_format=torch.channels_last)


def _discriminator_step(state: State, recipe: Recipe, real: Tensor, fake: Tensor, rng, amp) -> dict[str, Tensor]:
    D = state.D
    with amp():
        on_fake = D(channels_last(fake))
        on_real = D(channels_last(real))
    terms = {"D_fake": F.softplus(on_fake).mean(), "D_real": F.softplus(-on_real).mean()}
    loss = terms["D_fake"] + terms["D_real"]
    terms["accuracy"] = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
    if state.step % recipe.r1_every == 0:  # lazy R1: gamma / 2 ||grad D(x)||^2, its weight multiplied by the interval
        x = channels_last(real).requires_grad_()
        with amp():
            logits = D(x)
        (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        terms["R1"] = grad.float().square().sum((1, 2, 3)).mean()
        loss = loss + recipe.r1_gamma / 2 * recipe.r1_every * terms["R1"]
    state.opt_D.zero_grad(set_to_none=True)
    loss.backward()
    state.opt_D.step()
    return terms


@torch.no_grad()
def _update_ema(state: State, recipe: Recipe) -> None:
    seen = (state.step + 1) * recipe.batch
    beta = 0.5 ** (recipe.batch / min(recipe.ema_images, max(0.05 * seen, 1)))  # short memory at the start
    for p, q in zip(state.G_ema.parameters(), state.G.parameters(), strict=True):
        p.lerp_(q, 1 - beta)
    state.G_ema.mapping.w_avg.copy_(state.G.mapping.w_avg)


def summary(recipe: Recipe) -> dict:
    """The recipe as JSON-able data."""
    return asdict(recipe)
