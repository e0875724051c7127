"""Pre-training of the thin perceptual networks at low resolution, by classifying procedural images.

Each network learns three labels: what is shown, the colour of each quadrant, and the kind of grain over the picture.
ImageNet's classes depend on colour, brightness and fine texture; the procedural ones do not. A VGG16 that learnt only
these was blind to brightness and colour: a uniform change of brightness cost it 230 times less than white noise of the
same energy, and inversions came out in the wrong colours.

The paper's networks saw ImageNet at 224x224 and are used at 1024x1024 (Sec. III-B). Ours see `worlds.textures` at 32 to
48 pixels and are used at 128x128 and more, so their scale inconsistency is as real as the paper's. One CPU thread
trains each in eight to fifteen minutes::

    hrlab train perceptual vgg16 --out my_vgg16.safetensors    # without --out, and with --force: the shipped file
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import features, weights
from ..errors import SEED, UnknownName, nearest, number
from ..nets import perceptual as nets
from ..worlds import textures
from . import loop, shipping
from .checkpoints import Parts
from .recipe import Recipe
from .set_files import from_bytes
from .updates import one_cycle, set_rate

HOME_SIZES = (32, 40, 48)  # input edges seen in training
RENDER_SIZE = 48
HELD_OUT = 50  # images a class
TEST_SIZES = (32, 40, 48, 64, 128)
EVERY = 100  # steps between two checkpoints

LEVELS = 4  # of each colour channel in the second label
COLOURS = 4 * LEVELS**3  # one class a quadrant and colour
# The third label: none, or white noise, rows, columns or a checkerboard along one of three axes of colour.
AXES = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
GRAINS = 1 + 4 * len(AXES)

# The rms that the conv taps of the shipped VGG16 are scaled to, before the factor for its fewer channels: the order of
# magnitude of an ImageNet VGG16, from fine to coarse. See `match_activation_scale`.
TAP_RMS = {"features_2": 2.0, "features_7": 5.0, "features_14": 7.0, "features_21": 5.0, "features_28": 1.0}


@dataclass(frozen=True)
class PerceptualRecipe(Recipe):
    """AdamW with a one-cycle learning rate and label smoothing 0.1."""

    which: str  # "vgg16", "resnet50" or "deit"
    config: dict
    steps: int
    lr: float
    weight_decay: float = 0.05
    bf16: bool = True  # five times faster for convolutions on a CPU with AMX, slower for the small ViT
    batch: int = 128
    per_class: int = 2000  # training images
    seed: int = 0  # of the initial weights, the images and the batches

    INTERVALS: ClassVar[dict[str, str]] = {
        "steps": "whole [2, inf)",
        **dict.fromkeys(("batch", "per_class"), "whole [1, inf)"),
        "lr": "(0, inf)",
        "weight_decay": "[0, inf)",
        "seed": SEED,
    }


SHIPPED: dict[str, PerceptualRecipe] = {
    "vgg16": PerceptualRecipe("vgg16", {"channels": list(nets.THIN_CHANNELS)}, steps=4000, lr=4e-3),
    "resnet50": PerceptualRecipe("resnet50", {"channels": [8, 16, 32, 64]}, steps=10_000, lr=3e-3),
    "deit": PerceptualRecipe(
        "deit",
        {"img_size": 40, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3},
        steps=3200,
        lr=1.5e-3,
        bf16=False,
    ),
}

TITLES = {"vgg16": "VGG16", "resnet50": "ResNet50", "deit": "DeiT"}
NAMING = {"vgg16": "torchvision's", "resnet50": "timm's", "deit": "timm's"}
NOTES = {
    "vgg16": """- **Note**: trained with batch normalisation, folded into the convolutions. Successive layers are
  rescaled without changing the function, so that the taps' rms (on 448 procedural images) is 2, 5, 7, 5, 1 from
  features_2 to features_28, times sqrt(full / thin channels) of each. These are rough magnitudes of an ImageNet
  VGG16, for which the paper's lambdas were chosen; they were set from experience, not measured on that network.
""",
    "deit": """- **Note**: position embeddings belong to 5x5 patches (40 px) and are interpolated elsewhere.
""",
}


def shipped_recipe(which: str) -> PerceptualRecipe:
    """The recipe of the shipped "vgg16", "resnet50" or "deit"; any other name raises `UnknownName`."""
    if which not in SHIPPED:
        raise UnknownName(
            f"perceptual network {which!r}",
            expected=f"one of {', '.join(SHIPPED)}",
            do=nearest(which, list(SHIPPED)) or "choose one of these architectures",
        )
    return SHIPPED[which]


def build(recipe: PerceptualRecipe) -> nn.Module:
    """The untrained thin network with its classifier (and, for VGG16, batch normalisation)."""
    classes = len(textures.CLASSES) + COLOURS + GRAINS
    if recipe.which == "vgg16":
        return nets.VGG16(**recipe.config, num_classes=classes, batch_norm=True)
    return {"resnet50": nets.resnet50, "deit": nets.deit}[recipe.which](**recipe.config, num_classes=classes)


def batch_of(images: Tensor, labels: Tensor, *, n: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The augmented batch of a step, a pure function of (seed, step): random crop or shrink, and mirror.

    images: uint8 [N, 3, 48, 48]. Returns float32 [n, 3, S, S] in [-1, 1] with S one of `HOME_SIZES`, labels [n].
    """
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    pick = torch.randint(len(images), (n,), generator=rng)
    size = HOME_SIZES[step % len(HOME_SIZES)]
    x, edge = images[pick], min(40, size + 8) if size < RENDER_SIZE else RENDER_SIZE
    offset = torch.randint(RENDER_SIZE - edge + 1, (2, n), generator=rng)
    rows = (offset[0, :, None] + torch.arange(edge))[:, None, :, None]
    columns = (offset[1, :, None] + torch.arange(edge))[:, None, None, :]
    mirror = torch.rand(n, 1, 1, 1, generator=rng) < 0.5
    columns = torch.where(mirror, columns.flip(-1), columns)
    x = x[torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]
    x = from_bytes(x)
    if edge != size:
        x = F.interpolate(x, (size, size), mode="area")
    return x, labels[pick]


def grained(x: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """x [N, 3, H, W] with pixel-fine grain of rms 0.03 to 0.3 on a third of the pictures, and the kinds, int64 [N]."""
    n, _, h, w = x.shape
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step + 500_009)
    kind = torch.randint(GRAINS, (n,), generator=rng) * (torch.rand(n, generator=rng) < 1 / 3)
    strength = 0.03 * 10 ** torch.rand(n, 1, 1, 1, generator=rng) * (kind > 0)[:, None, None, None]
    rows, columns = (-1.0) ** torch.arange(h)[:, None].expand(h, w), (-1.0) ** torch.arange(w).expand(h, w)
    patterns = torch.stack([rows, columns, rows * columns]).expand(n, 3, h, w)
    patterns = torch.cat([torch.randn(n, 1, h, w, generator=rng), patterns], dim=1)  # [N, 4, H, W]
    pattern, axis = (kind - 1).clamp(min=0) % 4, (kind - 1).clamp(min=0) // 4
    colour = F.normalize(AXES, dim=1)[axis][:, :, None, None] * 3**0.5
    return x + strength * colour * patterns[torch.arange(n), pattern][:, None], kind


def colour_labels(x: Tensor) -> Tensor:
    """The mean colour of each quadrant in `LEVELS` levels a channel: [N, 3, H, W] in [-1, 1] -> classes [N, 4]."""
    levels = ((F.adaptive_avg_pool2d(x, 2).flatten(2) + 1) / 2 * LEVELS).long().clamp(0, LEVELS - 1)  # [N, 3, 4]
    return (levels * torch.tensor([LEVELS**2, LEVELS, 1])[:, None]).sum(1)


class State:
    """The network with its classifier, and the optimiser, at a step."""

    def __init__(self, recipe: PerceptualRecipe) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.net = build(recipe).to(memory_format=torch.channels_last).train()
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay)
        self.step = 0

    @property
    def parts(self) -> Parts:
        """What a checkpoint holds."""
        return {"net": self.net, "adam": self.adam}


def train(recipe: PerceptualRecipe, state: State) -> Iterator[dict[str, float]]:
    """Advance `state` in place to the recipe's end, on the CPU; yield {"step", "images", "loss", "accuracy"} a step.

    All draws depend on (seed, step), so a resumed run is the same run.
    """
    net = state.net
    if state.step < recipe.steps:
        images, labels = textures.dataset(recipe.per_class, size=RENDER_SIZE, seed=recipe.seed)
    while state.step < recipe.steps:
        x, y = batch_of(images, labels, n=recipe.batch, seed=recipe.seed, step=state.step)
        x, grain = grained(x, seed=recipe.seed, step=state.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            inputs = features.imagenet_normalise(x).contiguous(memory_format=torch.channels_last)
            out = net(inputs).float()
        logits, colours, grains = out.split([len(textures.CLASSES), COLOURS, GRAINS], dim=1)
        loss = F.cross_entropy(logits, y, label_smoothing=0.1)
        loss = loss + 0.5 * F.cross_entropy(colours.reshape(-1, LEVELS**3, 4), colour_labels(x))
        loss = loss + 0.1 * F.cross_entropy(grains, grain)
        state.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        set_rate(state.adam, *one_cycle(state.step, recipe.steps, recipe.lr))
        state.adam.step()
        state.step += 1
        top1 = (logits.argmax(1) == y).float().mean().item()
        yield {"step": state.step, "images": state.step * recipe.batch, "loss": loss.item(), "accuracy": top1}


@torch.no_grad()
def accuracy(net: nn.Module, *, edge: int, seed: int = 0, per_class: int = HELD_OUT) -> float:
    """Top-1 accuracy on held-out images (part 1 of `textures.dataset`), brought to `edge` x `edge` pixels."""
    images, labels = textures.dataset(per_class, size=RENDER_SIZE, seed=seed, part=1)
    net.eval()
    hits = 0
    for x, y in zip(images.split(100), labels.split(100), strict=True):
        x = from_bytes(x)
        if edge != RENDER_SIZE:
            x = F.interpolate(x, (edge, edge), mode="bicubic" if edge > RENDER_SIZE else "area").clamp(-1, 1)
        logits = net(features.imagenet_normalise(x))[:, : len(textures.CLASSES)]
        hits += (logits.argmax(1) == y).sum().item()
    return hits / len(labels)


@torch.no_grad()
def match_activation_scale(net: nets.VGG16, x: Tensor) -> dict[str, float]:
    """Rescale successive convolutions so that the conv taps have the rms `TAP_RMS` on x; the function is preserved.

    A ReLU is positively homogeneous: multiplying a convolution by s and the next one's weight by 1/s changes nothing
    but the activations in between. The paper's lambdas (Eq. 3) assume the activations of an ImageNet VGG16, which has
    more channels; so the rms of each tap is `TAP_RMS` times sqrt(full channels / our channels), and the sum
    of squares at a position has the full network's order of magnitude. Edits `net`; returns the factors.

    x: ImageNet-normalised images [N, 3, H, W].
    """
    factors, owed = {}, 1.0  # `owed` is the gain of the previous convolution, to be taken back by the next weight
    for i in nets.CONV_INDICES:
        conv, name = net.features[i], f"features_{i}"
        conv.weight.div_(owed)
        owed = 1.0
        if name in TAP_RMS:
            full = nets.FULL_CHANNELS[list(TAP_RMS).index(name)]
            rms = net.features[: i + 1](x).square().mean().sqrt().item()
            owed = factors[name] = TAP_RMS[name] * (full / conv.out_channels) ** 0.5 / rms
            conv.weight.mul_(owed)
            conv.bias.mul_(owed)
    return factors


def save(recipe: PerceptualRecipe, net: nn.Module, path: str | Path, *, card: str) -> Path:
    """Write the network without its classifier in the library's safetensors layout; VGG16 is folded and rescaled."""
    if recipe.which == "vgg16":
        images = textures.dataset(8, size=RENDER_SIZE, seed=recipe.seed, part=2)[0]
        net = net.eval().folded()
        match_activation_scale(net, features.imagenet_normalise(from_bytes(images)))
    classifier = "fc." if recipe.which == "resnet50" else "head."
    state = {k: v for k, v in net.state_dict().items() if not k.startswith(classifier)}
    facts = {"architecture": recipe.which, "config": json.dumps(recipe.config), "card": card}
    return weights.save_state(state, path, facts, force=True)


def run(
    which: str,
    out: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train one network, measure it and ship it; an interrupted run resumes.

    Args:
        which: "vgg16", "resnet50" or "deit".
        out: the .safetensors file to write, with its card beside it; None is the shipped one,
            data/weights/<which>_thin.safetensors.
        folder: for this training only (see `loop.follow`); None is build/training/<which>_thin.
        steps: None takes the shipped network's.
        seed: see `PerceptualRecipe`.
        threads: of PyTorch. The numbers depend on it in the last digits.
        force: replace `out` and its card.
        tell: called with a line for each row of the log.

    Returns:
        steps, seconds, top-1 accuracy in training and on held-out images of several sizes.

    Raises:
        InvalidValue, UnknownName: a number is out of range; there is no such network.
        StoreError: `out` exists, the folder holds something else, or they cannot be written.
    """
    torch.set_num_threads(number("threads", threads, "whole [1, 1024]"))
    recipe = replace(shipped_recipe(which), seed=seed)
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    name = f"{which}_thin"
    file, state = shipping.free(shipping.place(name, out), force=force), State(recipe)
    last = loop.follow(
        folder or f"build/training/{name}",
        f"perceptual network {which}",
        recipe,
        state,
        train(recipe, state),
        data={"classes": len(textures.CLASSES), "size": RENDER_SIZE},
        every=EVERY * recipe.batch,
        tell=tell,
    )
    report = {"steps": last["step"], "seconds": round(last["seconds"]), "train_top1": round(last["accuracy"], 4)}
    report["heldout_images"] = HELD_OUT * len(textures.CLASSES)
    report |= {f"heldout_top1_at_{e}px": round(accuracy(state.net, edge=e, seed=seed), 4) for e in TEST_SIZES}
    save(recipe, state.net, file, card=f"thin {which}, trained by classifying procedural images, seed {seed}")
    shipping.enter(file, card(recipe, report, threads=threads))
    return report


def card(recipe: PerceptualRecipe, report: dict[str, float], *, threads: int) -> str:
    """The model card of a trained network, Markdown."""
    r, which, seed, patterns = recipe, recipe.which, recipe.seed, len(textures.PATTERNS)
    top1 = " | ".join(f"{report[f'heldout_top1_at_{e}px']:.1%}" for e in TEST_SIZES)
    return f"""# {which}_thin

A thin {TITLES[which]}, `{json.dumps(r.config)}`, without its classifier. Parameter names are {NAMING[which]}.

- **For**: perceptual losses and LPIPS (thin) of the `laptop` profile, in place of the ImageNet network of the paper.
- **Data**: {len(textures.CLASSES)} classes of procedural images (`hrlib.worlds.textures`: {patterns} patterns and
  materials, {len(textures.OBJECTS)} objects), {r.per_class} rendered images a class at {RENDER_SIZE} px, seed {seed}.
  No photograph, no person.
- **Recipe**: classification of what is shown, and, with weights 0.5 and 0.1, of each quadrant's mean colour
  ({LEVELS**3} classes) and of grain laid over a third of the pictures ({GRAINS} kinds),
  at {", ".join(map(str, HOME_SIZES))} px in turn (random crop and mirror), {report["steps"]} steps of {r.batch} images,
  AdamW, learning rate {r.lr} (one cycle), weight decay {r.weight_decay}, label
  smoothing 0.1, {"bfloat16 autocast" if r.bf16 else "float32"}.
- **Command**: `hrlab train perceptual {which} --seed {seed} --force` ({threads} thread,
  {report["seconds"] / 60:.0f} minutes on {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}).
- **Held-out top-1**, {report["heldout_images"]} images (chance {1 / len(textures.CLASSES):.1%}):

  | {" | ".join(f"{e} px" for e in TEST_SIZES)} |
  |{"---|" * len(TEST_SIZES)}
  | {top1} |

  The larger sizes show the same pictures, bicubically enlarged (so smoother, too). The fall at 128 px is the scale
  inconsistency of Sec. III-B: the network was trained at {HOME_SIZES[0]} to {HOME_SIZES[-1]} px and the notebooks use
  it at 128 px, as the paper's was trained at 224 and is used at 1024.
- **Limits**: it has never seen a photograph or a face; its distances are no model of human judgement, and
  its numbers compare only with numbers of the same network.
- **Licence**: MIT, like the code that made it.
{NOTES.get(which, "")}"""
