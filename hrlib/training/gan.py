"""GAN training of StyleGAN2 and Style-INR-GAN (Sec. IV-A), from scratch or from a source model, on any data set.

The recipe is StyleGAN2-ADA's: non-saturating loss, lazy R1, style mixing, moving average, w_avg tracking, mirrored
pictures, adaptive augmentation; without path-length regularisation, as in the paper. Two things are cheaper than in
the reference: both networks learn from the same generated batch, and R1 is taken at the augmented pictures.

The paper trains for 25 million images on eight GPUs. Some 10^5 images on one core are enough with what only a
procedural world has: the parameters of every picture. The latent z of a picture is its (Gaussianised) parameter vector:

1. A warm start regresses G(z) on the picture, at reduced resolutions only. What the parameters do not explain (strands,
   pores, grain) is random, and regressing it would teach the generator to switch its noise inputs off.
2. Adversarial training follows, with a small share of the regression kept as an anchor.

From a source model, the warm start regresses the new domain's pictures from the z of the same people in the source's
domain. This keeps the layout of the latent space.

A source of half the resolution grows (growth.py).

With `backbone_from`, only the layers below RGB come from another network. The new RGB layers then first learn to draw
that network's own pictures (`teach_images`): otherwise the critic, which already knows faces, wins before they begin.

`train` is a generator of steps; `run` follows it in a folder (loop.py). All draws depend on (seed, step, process), so
that a resumed run is the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid

from .. import fid, nets, weights
from ..errors import InvalidValue, LayoutMismatch, ShapeError, UnknownName, nearest, number
from ..nets import Discriminator
from ..store import fingerprint
from . import augment, checkpoints, growth, loop
from .gan_measures import CHUNK, drawn, pooled_features
from .picture_sets import PictureSet
from .recipe import MOST, GanRecipe
from .updates import average, fallen, gradient_penalty

if TYPE_CHECKING:
    from accelerate import Accelerator

ARCHITECTURE = (
    "resolution",
    "z_dim",
    "w_dim",
    "channels",
    "mapping_layers",
    "conv_clamp",
)  # of GanRecipe and Generator
TEACH_GAIN = 5.0  # times lr for the RGB layers during the first `teach_images`


@dataclass
class State:
    """Networks, their moving average and optimisers at a step."""

    G: nn.Module
    G_ema: nn.Module
    D: Discriminator
    opt_G: torch.optim.Adam
    opt_D: torch.optim.Adam
    ada: Tensor = field(default_factory=lambda: torch.zeros(3))  # see augment.adjust
    step: int = 0
    origin: str = "random weights"  # where the networks began, in words, with a hash

    @property
    def parts(self) -> checkpoints.Parts:
        """What a checkpoint holds."""
        return {name: getattr(self, name) for name in ("ada", "G", "G_ema", "D", "opt_G", "opt_D")}


# --- where a run begins -----------------------------------------------------------------------------------------------


def like(source: str) -> dict[str, Any]:
    """The fields of a `GanRecipe` that fine-tunes the generator `source` (name or file): its architecture."""
    G = weights.load_generator(source)
    fields = {k: G.config[k] for k in (*ARCHITECTURE, "inr_hidden") if k in G.config}
    return fields | {"network": _architecture(G), "source": source}


def _architecture(G: nn.Module) -> str:
    return next(name for name, kind in nets.ARCHITECTURES.items() if type(G) is kind)


def pair(name_or_path: str) -> tuple[nn.Module, Discriminator]:
    """A generator and its discriminator: NAME and NAME_discriminator, or both from one foreign checkpoint."""
    if name_or_path.endswith((".pkl", *weights.TORCH_SUFFIXES)):
        other = name_or_path
    else:
        path = Path(name_or_path)
        other = str(path.with_name(f"{path.stem}_discriminator{path.suffix}"))
    return weights.load_generator(name_or_path), weights.load_discriminator(other)


def start(recipe: GanRecipe, *, device: str | torch.device = "cpu") -> State:
    """The networks that a recipe starts from (random, its `source`, or its `backbone_from`), with new optimisers."""
    if recipe.network not in ("style_inr", "stylegan2"):
        raise UnknownName(
            f"network {recipe.network!r}",
            expected='"style_inr" or "stylegan2"',
            do=nearest(recipe.network, ["style_inr", "stylegan2"]) or "set network to one of them",
        )
    if recipe.source and recipe.backbone_from:
        raise InvalidValue("both source and backbone_from", expected="one of them", do="leave out the other")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        config = {k: getattr(recipe, k) for k in ARCHITECTURE}
        G = nets.build(recipe.network, config | ({"inr_hidden": recipe.inr_hidden} if _is_inr(recipe) else {}))
        with torch.no_grad():
            for name in G.synthesis.conv_names():
                G.synthesis.get_parameter(f"{name}.noise_strength").fill_(recipe.noise_strength)
        G_ema = nets.build(recipe.network, G.config)
        D = Discriminator(resolution=recipe.resolution, channels=recipe.channels, conv_clamp=recipe.conv_clamp)
    origin = _begin(recipe, G, D)
    G_ema.load_state_dict(G.state_dict())
    G_ema.requires_grad_(False)
    G.mapping.requires_grad_(recipe.train_mapping)
    for net in (G, G_ema, D):
        net.to(device=device, memory_format=torch.channels_last)
    # Noise strengths are a group of their own with a small learning rate. At the full rate, the first adversarial steps
    # switched the noise off before the weights had learnt to turn it into strands and grain, and a strength of zero has
    # no gradient, on average over the noise, to recover with.
    strengths = [p for name, p in G.synthesis.named_parameters() if name.endswith("noise_strength")]
    others = [p for name, p in G.synthesis.named_parameters() if not name.endswith("noise_strength")]
    adam = lambda *groups: torch.optim.Adam([{"params": list(g)} for g in groups], lr=recipe.lr, betas=(0.0, 0.99))
    opt_G, opt_D = adam(G.mapping.parameters(), others, strengths), adam(D.parameters())
    return State(G, G_ema, D, opt_G, opt_D, origin=origin)


def _is_inr(recipe: GanRecipe) -> bool:
    return recipe.network == "style_inr"


def _is_head(name: str) -> bool:
    """Whether a parameter belongs to the layers that make RGB, which StyleGAN2 and Style-INR-GAN do not share."""
    return ".torgb." in name or "inr." in name


def _begin(recipe: GanRecipe, G: nn.Module, D: Discriminator) -> str:
    """Fill G and D from the recipe's source or backbone; return, in words, where they came from."""
    name = recipe.source or recipe.backbone_from
    if not name:
        return "random weights"
    source, critic = pair(name)
    named = f"{name} ({fingerprint(source.state_dict())[:8]}, {fingerprint(critic.state_dict())[:8]})"
    if recipe.source and source.resolution != recipe.resolution:
        growth.check(source, recipe.resolution, name)
        growth.enlarge(source, G, name)
        growth.reduce(critic, D, name)
        return f"all layers from {named}, grown to {recipe.resolution} px"
    weights.load_strictly(D, critic.state_dict(), f"the discriminator of {name}")
    if recipe.source:
        if type(source) is not type(G):
            raise LayoutMismatch(
                f"source {name} is a {_architecture(source)}",
                expected=f"a {recipe.network}",
                do=f"set network to {_architecture(source)}, or use backbone_from for the layers that both share",
            )
        weights.load_strictly(G, source.state_dict(), name)
        return f"all layers from {named}"
    own, theirs = G.state_dict(), source.state_dict()
    heads = lambda keys: {k for k in keys if _is_head(k)}
    shared = {k: v for k, v in theirs.items() if k not in heads(theirs)}
    weights.load_strictly(G, shared | {k: own[k] for k in heads(own)}, f"the backbone of {name}")
    with torch.no_grad():
        for key, tensor in G.synthesis.named_parameters():
            if key.endswith("torgb.weight"):  # random ones would add their colours, and Adam unlearns slowly
                tensor.zero_()
    return f"{len(shared)} tensors and the discriminator from {named}; {len(heads(own))} new tensors of the RGB head"


# --- steps ------------------------------------------------------------------------------------------------------------


def train(
    recipe: GanRecipe, data: PictureSet, state: State, accelerator: Accelerator | None = None
) -> Iterator[dict[str, float]]:
    """Advance `state` in place until `recipe.total_images`; yield {"step", "images", loss terms} after every step.

    accelerator: of a run in several processes. Each works on its share of every batch; gradients and the few statistics
    are averaged over all processes, so they hold the same parameters. The loss terms are those of this process.
    """
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    check(recipe, data, ranks)
    G, D, B = state.G, state.D, recipe.batch // ranks
    device = next(G.parameters()).device
    amp = lambda: torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16)
    teacher = pair(recipe.backbone_from)[0].to(device) if recipe.teach_images else None
    while state.step * recipe.batch < recipe.total_images:
        teaching = state.step * recipe.batch < recipe.teach_images
        if recipe.teach_images:
            for name, parameter in G.synthesis.named_parameters():
                parameter.requires_grad_(not teaching or _is_head(name))
        rng = torch.Generator().manual_seed(recipe.seed * 10_000_019 + state.step + rank * 1_000_000_007)
        warm = state.step * recipe.batch < recipe.teach_images + recipe.warm_images
        count = min(recipe.warm_set or len(data), len(data)) if warm else len(data)
        data.wait_for(count)
        x, z = data.batch(torch.randint(count, (B,), generator=rng))
        chance = lambda p, rng=rng: p > 0 and float(torch.rand([], generator=rng)) < p
        # The pictures' latents cover only part of N(0, I) (beards on men); samples come from all of it.
        fresh = z is None or (not warm and chance(recipe.fresh_prob))
        z = torch.randn(B, recipe.z_dim, generator=rng) if fresh else z
        x, z = x.to(device), z.to(device)
        noise = {k: torch.randn(B, *v.shape, generator=rng).to(device) for k, v in G.noise_maps().items()}
        mixed = not warm and chance(recipe.mixing_prob)
        _set_rates(state, recipe, warm, teaching)

        with amp():
            w = G.mapping.w(z)
            G.mapping.w_avg.lerp_(_mean(w.detach().float().mean(0), accelerator), 0.01)
            ws = w.unsqueeze(1).repeat(1, G.num_ws, 1)
            if mixed:
                cut = int(torch.randint(1, G.num_ws, (1,), generator=rng))
                ws = torch.cat([ws[:, :cut], ws.flip(0)[:, cut:]], dim=1)
            fake = G.synthesis(ws.detach() if teaching else ws, noise)
        terms = {}
        if teaching:
            with torch.no_grad(), amp():
                lesson = teacher.synthesis(ws, noise)
            loss = terms["lesson"] = F.l1_loss(fake, lesson)
        elif warm:
            loss = terms["regression"] = pyramid_l1(fake, x, (2, 4, 8, 16))
        else:
            p = float(state.ada[0])
            real = augment.mirror(x, generator=rng) if recipe.mirror else x
            real = augment.augment(real, p, generator=rng)
            seen = augment.augment(fake, p, generator=rng)
            terms |= _discriminator_step(state, recipe, real, seen.detach(), amp, accelerator)
            D.requires_grad_(False)
            with amp():
                loss = terms["adversarial"] = F.softplus(-D(channels_last(seen))).mean()
            D.requires_grad_(True)
            if recipe.anchor and not (mixed or fresh):  # against the picture itself, neither mirrored nor augmented
                terms["anchor"] = pyramid_l1(fake, x, (4, 8))
                loss = loss + recipe.anchor * terms["anchor"]
        _descend(state.opt_G, loss, accelerator)
        _update_ema(state, recipe)
        state.step += 1
        numbers = {k: float(v.detach()) for k, v in terms.items()}
        yield {"step": state.step, "images": state.step * recipe.batch} | numbers


def lr(recipe: GanRecipe, step: int) -> float:
    """The learning rate of a step: constant, then falling linearly to a tenth over the last `lr_fall` of the run."""
    return recipe.lr * fallen(1 - step * recipe.batch / recipe.total_images, recipe.lr_fall)


def _set_rates(state: State, recipe: GanRecipe, warm: bool, teaching: bool) -> None:
    """Set the learning rates of the groups: mapping, other weights, noise strengths; discriminator."""
    # With lr_mul 0.01 the mapping would hardly move in a warm start, and what z encodes would stay scrambled.
    gains = (recipe.warm_mapping_gain, 1.0, 0.0) if warm else (1.0, 1.0, recipe.noise_strength_gain)
    if teaching:  # the RGB layers start from zero, and nothing else moves
        gains = (0.0, TEACH_GAIN, 0.0)
    for group, gain in zip((*state.opt_G.param_groups, *state.opt_D.param_groups), (*gains, 1.0), strict=True):
        group["lr"] = gain * lr(recipe, state.step)


def check(recipe: GanRecipe, data: PictureSet, ranks: int = 1) -> None:
    """Raise `ShapeError` or `InvalidValue` unless this recipe can be trained on this data in so many processes."""
    if data.resolution != recipe.resolution:
        raise ShapeError(
            f"pictures of {data.resolution} px",
            expected=f"{recipe.resolution} px, as the recipe says",
            do=f"render or pack the set with --resolution {recipe.resolution}",
        )
    if recipe.teach_images and not recipe.backbone_from:
        raise InvalidValue(
            f"teach_images={recipe.teach_images} without backbone_from",
            expected="a generator whose pictures the new RGB layers learn to draw",
            do="name that generator as backbone_from, or set teach_images=0",
        )
    if data.z is None and (recipe.warm_images or recipe.anchor):
        raise InvalidValue(
            f"a warm start or an anchor on {data.folder}, whose pictures have no latents",
            expected="warm_images=0 and anchor=0, or a set with latents",
            do="leave both out, or render a set: only rendered sets know the latent of a picture",
        )
    if data.z is not None and data.z.shape[1] != recipe.z_dim:
        raise ShapeError(
            f"latents of {data.z.shape[1]} numbers",
            expected=f"z_dim {recipe.z_dim}",
            do=f"render the set with --z-dim {recipe.z_dim}",
        )
    if recipe.batch % ranks or recipe.batch // ranks % 4:  # the group size of the minibatch statistic
        raise InvalidValue(
            f"batch = {recipe.batch} in {ranks} processes",
            expected=f"a multiple of {4 * ranks}: 4 for each process",
            do="change the batch or the number of processes",
        )


def pyramid_l1(a: Tensor, b: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Mean absolute difference after area reduction by each factor in `levels`, averaged over the levels."""
    return torch.stack([(F.avg_pool2d(a, k) - F.avg_pool2d(b, k)).abs().mean() for k in levels]).mean()


def channels_last(x: Tensor) -> Tensor:
    """Convolutions on a CPU are about twice as fast in this memory format."""
    return x.contiguous(memory_format=torch.channels_last)


def _discriminator_step(
    state: State, recipe: GanRecipe, real: Tensor, fake: Tensor, amp, accelerator: Accelerator | None
) -> dict[str, Tensor]:
    D = state.D
    with amp():
        on_fake = D(channels_last(fake))
        on_real = D(channels_last(real))
    terms = {"D_fake": F.softplus(on_fake).mean(), "D_real": F.softplus(-on_real).mean()}
    loss = terms["D_fake"] + terms["D_real"]
    terms["accuracy"] = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
    if state.step % recipe.r1_every == 0:  # lazy R1: gamma / 2 ||grad D(x)||^2, its weight multiplied by the interval
        terms["R1"] = gradient_penalty(D, channels_last(real), amp)
        loss = loss + recipe.r1_gamma / 2 * recipe.r1_every * terms["R1"]
    _descend(state.opt_D, loss, accelerator)
    if recipe.ada_target:
        terms["sign"] = on_real.detach().sign().mean()
        signs = _mean(terms["sign"], accelerator).cpu() * recipe.batch
        signs = torch.stack([signs, torch.tensor(float(recipe.batch))])
        augment.adjust(state.ada, signs, target=recipe.ada_target, images=recipe.ada_images, step=state.step)
        terms["augment_p"] = state.ada[0].clone()
    return terms


def _descend(optimiser: torch.optim.Adam, loss: Tensor, accelerator: Accelerator | None) -> None:
    """One step down the gradient of `loss`, averaged over all processes."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if accelerator and accelerator.num_processes > 1:
        grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        mean = accelerator.reduce(torch.cat([g.flatten() for g in grads]), "mean")  # one exchange
        for grad, part in zip(grads, mean.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))
    optimiser.step()


def _mean(x: Tensor, accelerator: Accelerator | None) -> Tensor:
    """x, averaged over all processes."""
    return accelerator.reduce(x, "mean") if accelerator and accelerator.num_processes > 1 else x


@torch.no_grad()
def _update_ema(state: State, recipe: GanRecipe) -> None:
    memory = recipe.ema_images
    if not recipe.source:  # forget random initial weights soon
        memory = min(memory, 0.05 * (state.step + 1) * recipe.batch)
    average(state.G_ema, state.G, 0.5 ** (recipe.batch / memory))
    state.G_ema.mapping.w_avg.copy_(state.G.mapping.w_avg)


# --- a run in its folder ----------------------------------------------------------------------------------------------


def run(
    recipe: GanRecipe,
    data: PictureSet,
    folder: Path,
    *,
    checkpoint_every: int = 4_000,
    snapshot_every: int = 0,
    frechet_every: int = 0,
    frechet_n: int = 1_000,
    device: str | torch.device = "cpu",
    accelerator: Accelerator | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> State:
    """Train in a folder to the end of the recipe, or resume; return the final state. See `loop.follow`.

    Args:
        recipe: of the training.
        data: pictures, with latents for a warm start or an anchor.
        folder: see `loop.follow`.
        checkpoint_every: images between two checkpoints, each with a row of the log and a sample sheet; 0 for one at
            the end only.
        snapshot_every: images between two pairs of networks that are kept; 0 for never.
        frechet_every: images between two distances of `frechet_n` samples from as many training pictures, in features
            of the thin VGG16; 0 for never.
        frechet_n: 2 or more.
        device: of this process.
        accelerator: this process's place among several.
        force: see `loop.follow`.
        tell: called with a line for each row of the log.

    Raises:
        InvalidValue, ShapeError, UnknownName: the recipe cannot be trained on this data, or a number is out of range.
        StoreError, NonFiniteLoss: see `loop.follow`.
    """
    checkpoint_every = number("checkpoint_every", checkpoint_every, "whole [0, inf)")
    snapshot_every = number("snapshot_every", snapshot_every, "whole [0, inf)")
    frechet_every = number("frechet_every", frechet_every, "whole [0, inf)")
    frechet_n = number("frechet_n", frechet_n, f"whole [2, {MOST}]")
    check(recipe, data, accelerator.num_processes if accelerator else 1)
    state = start(recipe, device=device)

    def keep(images: int) -> loop.Row:
        snapshot(state, Path(folder) / loop.SNAPSHOTS, images)
        return {}

    distance = lambda _: {"frechet": frechet(state, data, frechet_n)}
    loop.follow(
        folder,
        recipe.network,
        recipe,
        state,
        train(recipe, data, state, accelerator),
        data=data.what,
        start=state.origin,
        every=checkpoint_every,
        sheet=lambda: sheet(state, data),
        hooks=((frechet_every, distance), (snapshot_every, keep)),
        accelerator=accelerator,
        force=force,
        tell=tell,
    )
    return state


def finished(trained: loop.Trained) -> State:
    """The state that a checkpoint holds, on the CPU."""
    recipe = GanRecipe.read(trained.recipe)
    state = start(replace(recipe, source=None, backbone_from=None))
    checkpoints.restore(state.parts, trained.tensors)
    state.step = trained.step
    return state


def snapshot(state: State, folder: Path, images: int) -> None:
    """Write G_ema and D as a pair of network files named by the images seen, ready to be a `source`."""
    card = f"snapshot of a training after {images} images; began from {state.origin}"
    weights.save_network(state.G_ema, folder / f"{images:09d}.safetensors", card=card, force=True)
    weights.save_network(state.D, folder / f"{images:09d}_discriminator.safetensors", card=card, force=True)


@torch.inference_mode()
def sheet(state: State, data: PictureSet) -> Tensor:
    """[1, 3, H, W]: a row of training pictures over two rows of samples, from the same latents if they are known."""
    index = torch.arange(24) % len(data)
    real, z = data.batch(index)
    if z is None:
        z = torch.randn(24, state.G_ema.z_dim, generator=torch.Generator().manual_seed(0))
    G = state.G_ema
    fake = G.synthesis(G.mapping(z.to(G.w_avg.device)), noise=G.noise_maps()).cpu()
    return make_grid(torch.cat([real[:12], fake]), nrow=12, padding=2)[None].clamp(-1, 1)


def frechet(state: State, data: PictureSet, n: int) -> float:
    """Frechet distance of n samples of G_ema from the first n pictures of the set (thin VGG16 features)."""
    count, device = min(n, len(data)), state.G_ema.w_avg.device
    data.wait_for(count)
    chunks = (data.batch(index)[0].to(device) for index in torch.arange(count).split(CHUNK))
    real, fake = ([pooled_features(x).cpu() for x in part] for part in (chunks, drawn(state.G_ema, n, seed=0)))
    return fid.frechet_distance(torch.cat(real), torch.cat(fake))
