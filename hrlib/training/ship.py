"""From a training folder to data/weights: the averaged generator, its discriminator, and a model card with measures."""

from __future__ import annotations

import csv
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import features, metrics, weights
from .._catalogue import DATA
from ..store import read_json
from ..worlds import portraits
from . import gan

POOL_TAPS = ("features_14", "features_21", "features_28")


@torch.inference_mode()
def pooled_features(images: Tensor) -> Tensor:
    """Means over positions of three conv taps of the shipped thin VGG16: [N, 3, H, W] -> [N, C]."""
    vgg = features.vgg16("shipped", tap="conv")
    parts = [vgg(x, POOL_TAPS) for x in images.split(32)]
    return torch.cat([torch.cat([p[t].mean((2, 3)) for t in POOL_TAPS], dim=1) for p in parts])


@torch.inference_mode()
def draw(G: nn.Module, n: int, *, seed: int) -> Tensor:
    """n samples [n, 3, R, R] from z ~ N(0, I), each with its own noise maps."""
    g, out = torch.Generator().manual_seed(seed), []
    for start in range(0, n, 32):
        b = min(32, n - start)
        z = torch.randn(b, G.z_dim, generator=g)
        noise = {k: torch.randn(b, *m.shape, generator=g) for k, m in G.noise_maps().items()}
        out.append(G.synthesis(G.mapping(z), noise=noise).clamp(-1, 1))
    return torch.cat(out)


@torch.inference_mode()
def ladder(G: nn.Module, *, n: int = 1000, seed: int = 1) -> dict[str, float]:
    """Frechet distances (thin VGG16 features) from n unseen renders to: other renders, blurred renders, samples of G.

    Blur by a Gaussian of sigma 0.5, 1 and 2 pixels gives the distances a meaning.
    """
    a, b = (portraits.render(portraits.sample(n, seed=s), G.resolution) for s in (seed, seed + 1))
    reference = pooled_features(a)
    distance = lambda x: float(metrics.frechet_distance(reference, pooled_features(x)))
    rungs = {"other renders": distance(b)}
    for sigma in (0.5, 1.0, 2.0):
        rungs[f"renders, blur {sigma:g} px"] = distance(blur(b, sigma))
    return rungs | {"generator": distance(draw(G, n, seed=seed))}


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, separable, borders replicated."""
    radius = int(4 * sigma + 0.5)
    t = torch.arange(-radius, radius + 1).float()
    k = torch.exp(-t.square() / (2 * sigma**2))
    k = (k / k.sum()).repeat(x.shape[1], 1)
    x = F.pad(x, (radius,) * 4, mode="replicate")
    x = F.conv2d(x, k[:, None, None, :], groups=x.shape[1])
    return F.conv2d(x, k[:, None, :, None], groups=x.shape[1])


def ship(folder: Path, *, name: str = "portraits_inr128", n: int = 1000) -> dict[str, float]:
    """Save G_ema and D of a training folder under data/weights with cards; return the ladder of Frechet distances."""
    facts, recipe = read_json(folder / "checkpoint.json"), read_json(folder / "recipe.json")
    state = gan.start(gan.Recipe(**recipe | {"channels": {int(k): v for k, v in recipe["channels"].items()}}))
    state.load(load_file(folder / "checkpoint.safetensors"), facts["step"])
    G, D = state.G_ema.eval(), state.D.eval()
    rungs = ladder(G, n=n)
    with open(folder / "log.csv", newline="") as f:
        log = list(csv.DictReader(f))
    strengths = {k: float(G.synthesis.get_parameter(f"{k}.noise_strength")) for k in G.synthesis.conv_names()}
    minutes, seen = facts["seconds"] / 60, facts["step"] * recipe["batch"]
    common = f"""
- **Data:** rendered portraits of `hrlib.worlds.portraits`, photo domain, {recipe["resolution"]} px, seed 0; people of
  any other seed are unseen.
- **Command:** `hrlab train render && hrlab train portraits && hrlab train ship`, seed {recipe["seed"]}.
- **Hardware and time:** one thread of a {platform.machine()} CPU, bfloat16 autocast, {minutes:.0f} minutes on a
  shared machine.
- **Images seen:** {seen:,}, of which {recipe["warm_images"]:,} in the warm start.
- **Licence:** MIT, as everything it was made from.
"""
    rung_list = "\n".join(f"  - {k}: {v:.3f}" for k, v in rungs.items())
    card_g = f"""# {name}

Style-INR-GAN (Sec. III-A) of the shipped portraits, {recipe["resolution"]} px and any canvas.

{G.num_ws} codes of {G.w_dim}, {sum(p.numel() for p in G.parameters()):,} parameters; the moving average of training.
{common}
- **Recipe, and what is unusual about it:** z is the Gaussianised parameter vector of a rendered picture, so the
  generator was warm-started by regressing each picture from its own z, at 1/2, 1/4, 1/8 and 1/16 resolution only. Noise
  strengths began at {recipe["noise_strength"]} and were held there during the warm start, because regression would have
  switched the noise off. Then adversarial training: non-saturating loss, R1 (gamma {recipe["r1_gamma"]}) every
  {recipe["r1_every"]} steps, style mixing with probability {recipe["mixing_prob"]}, no path-length regularisation, and
  a share ({recipe["anchor"]}) of the regression at 1/4 and 1/8 resolution kept as an anchor. It is not a GAN trained
  from scratch, as the paper's was.
- **Frechet distances** to {n} unseen renders in pooled features of `vgg16_thin` (comparable only among themselves):
{rung_list}
- **Learned noise strengths:** {", ".join(f"{k} {v:+.3f}" for k, v in strengths.items())}.
- **Limits:** trained on a CPU for a short time: glasses, beards and extreme poses are softer than in the renders.
  Portraits only. Canvases of another shape keep colour and texture, not the layout of a face.
"""
    card_d = f"""# {name}_discriminator

StyleGAN2's residual discriminator, trained against `{name}`; a perceptual network as well (Sec. IV-G-a).
{common}
- **At the end:** {float(log[-1]["accuracy"]):.0%} of real and generated pictures told apart.
- **Limits:** a logit depends on its batch (minibatch standard deviation); block features do not.
"""
    for net, key, card in ((G, name, card_g), (D, f"{name}_discriminator", card_d)):
        file = weights.save_network(net, DATA / "weights" / f"{key}.safetensors", card=card.strip().splitlines()[2])
        weights.register(key, file, card=card)
    return rungs
