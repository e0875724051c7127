"""The model cards of GANs, written only from the facts that `ship_gan` keeps in `<name>.json`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .recipe import GanRecipe

LIMITS = {
    "photo": "glasses, beards, strands of hair and extreme poses are softer than in the renders",
    "cartoon": "fine outlines and accessories are less sharp than in the renders",
    "caricature": "strong exaggerations, extreme poses and pencil strokes are milder than in the renders",
    "anime": "outlines are less even than in the renders, above all around glasses and hair",
    "scenes": "leaves and twigs are textures rather than trees, and layouts are less clear than in the renders",
}


def generator(name: str, facts: dict[str, Any]) -> str:
    """The generator's card, Markdown."""
    recipe = GanRecipe.read(facts["recipe"])
    kind = "Style-INR-GAN (Sec. III-A)" if recipe.network == "style_inr" else "StyleGAN2"
    canvas = "px and any canvas" if recipe.network == "style_inr" else "px"
    of = "the shipped landscapes" if facts["world"] == "scenes" else f"the shipped portraits, {_domain(facts)} domain"
    num_ws, w_dim = facts["codes"]
    by_size = sorted(facts["noise_strengths"].items(), key=lambda item: (int(item[0].split(".")[0][1:]), item[0]))
    strengths = ", ".join(f"{k} {v:+.3f}" for k, v in by_size)
    sections = "".join(section(facts["measures"][key]) for key, section in SECTIONS.items() if key in facts["measures"])
    missing = [key for key in ("ladder", *(["layout"] if shares_layout(facts) else [])) if key not in facts["measures"]]
    unmeasured = f"\nNot yet measured of these weights: {', '.join(missing)}.\n" if missing else ""
    return f"""# {name}

{kind} of {of}, {recipe.resolution} {canvas}.

{num_ws} codes of {w_dim}, {facts["parameters"]["G"]:,} parameters; the moving average of training.

{_common(name, facts, recipe)}
{_item("Recipe", _sentences(_recipe(facts, recipe)))}
{_item("Learned noise strengths", f"{strengths}.")}
{_item("Limits", f"{recipe.resolution} px, {_length(facts)}: {LIMITS[_domain(facts)]}. {_canvases(facts, recipe)}")}
{unmeasured}{sections}"""


def discriminator(name: str, facts: dict[str, Any]) -> str:
    """The discriminator's card, Markdown."""
    recipe = GanRecipe.read(facts["recipe"])
    told = "" if facts["accuracy"] is None else f"\n- **At the end:** {facts['accuracy']:.0%} of real and generated "
    told += told and "pictures told apart (over the last row of the log)."
    return f"""# {name}_discriminator

StyleGAN2's residual discriminator, trained against `{name}`; also a perceptual network (Sec. IV-G-a).

{facts["parameters"]["D"]:,} parameters.

{_common(name, facts, recipe)}{told}
- **Limits:** a logit depends on its batch (minibatch standard deviation); block features do not.
"""


def _common(name: str, facts: dict[str, Any], recipe: GanRecipe) -> str:
    count, n = facts["people"]
    of_n = "" if count == n else f", the first {count:,} of {n:,}"
    things = "landscapes" if facts["world"] == "scenes" else f"portraits, {_domain(facts)} domain"
    module = "scenes" if facts["world"] == "scenes" else "portraits"
    stored = "16 bits per number" if facts["half"] else "32 bits per number"
    if facts["half_psnr"] is not None:
        stored += f" (PSNR {facts['half_psnr']:.0f} dB between pictures with 16-bit and 32-bit weights)"
    warm = f", of which {recipe.warm_images:,} in the warm start" if recipe.warm_images else ""
    lines = [
        f"- **Data:** {count:,} rendered {things} (`hrlib.worlds.{module}`), {recipe.resolution} px, seed 0{of_n}; any "
        "other seed is unseen.",
        f"- **Command:** `hrlab train network {name} --force`, seed {recipe.seed}. Its log: `{name}.log.csv`.",
        f"- **Hardware and time:** {facts['hardware']}, {'bfloat16 autocast' if recipe.bf16 else 'float32'}, "
        f"{facts['seconds'] / 60:.0f} minutes on a shared machine.",
        *([facts["history"]] if facts["history"] else []),
        f"- **Images seen:** {facts['images']:,}{warm}.",
        f"- **Stored in:** {stored}.",
        "- **Licence:** MIT, as everything it was made from.",
    ]
    return "\n".join(lines)


def _recipe(facts: dict[str, Any], recipe: GanRecipe) -> Iterable[str]:
    """What was done and what is unusual about it, sentence by sentence."""
    if recipe.source and Path(recipe.source).suffix:  # a file, not a name of the catalogue
        yield f"went on from an earlier state of generator and discriminator (`{recipe.source}`)"
    elif recipe.source:
        yield f"fine-tuned from `{recipe.source}` and its discriminator, all layers"
        if not recipe.train_mapping:
            yield "only the mapping network is kept as it is, so that a w means the same in both"
    elif recipe.backbone_from:
        yield f"everything below the RGB layers, and the discriminator, started from those of `{recipe.backbone_from}`"
        if not recipe.train_mapping:
            yield "the mapping network is kept as it is, so that a w means the same in both"
    if recipe.teach_images:
        yield (
            f"for the first {recipe.teach_images:,} images only the RGB layers were trained, to draw that generator's "
            "pictures of the same codes and noise"
        )
    if recipe.warm_images:
        things = "scene" if facts["world"] == "scenes" else "person"
        yield (
            f"z is the Gaussianised parameter vector of a rendered {things}, so the generator was warm-started by "
            f"regressing each picture from its own z, at 1/2, 1/4, 1/8 and 1/16 resolution only"
        )
        held = "Noise strengths" if recipe.source else f"Noise strengths began at {recipe.noise_strength:g} and"
        yield f"{held} were held during the warm start, because regression would have switched the noise off"
    fall = f", falling to a tenth over the last {recipe.lr_fall:.0%}" if recipe.lr_fall else ""
    yield (
        f"adversarial training: non-saturating loss, R1 (gamma {recipe.r1_gamma:g}) every {recipe.r1_every} steps, "
        f"style mixing with probability {recipe.mixing_prob:g}, no path-length regularisation, batch {recipe.batch}, "
        f"learning rate {recipe.lr:g}{fall}, half-life of the moving average {recipe.ema_images:,} images"
    )
    if recipe.fresh_prob:
        yield f"{recipe.fresh_prob:.0%} of these steps drew z from N(0, I) instead of using the pictures' own"
    yield "pictures were mirrored" if recipe.mirror else "pictures were not mirrored"
    if recipe.ada_target:
        yield f"adaptive augmentation with target {recipe.ada_target:g}"
    if recipe.anchor:
        yield (
            f"the regression at 1/4 and 1/8 resolution was kept as an anchor (weight {recipe.anchor:g}) in "
            "steps with neither z from N(0, I) nor style mixing"
        )
    if recipe.warm_images and not recipe.source:
        yield "it is not a GAN trained from scratch, as the paper's was"


def _canvases(facts: dict[str, Any], recipe: GanRecipe) -> str:
    if recipe.network != "style_inr":
        return "One size."
    if facts["world"] == "scenes":
        return "Larger canvases continue the textures, not the layout."
    return "Portraits only. Canvases of another shape keep colour and texture, not the layout of a face."


def _length(facts: dict[str, Any]) -> str:
    return f"{facts['images']:,} images where the paper saw 25 million"


def _domain(facts: dict[str, Any]) -> str:
    return facts["world"].removeprefix("portraits/")


def shares_layout(facts: dict[str, Any]) -> bool:
    """Whether the generator should draw its source's people: another portrait domain."""
    return facts["world"] not in ("portraits/photo", "scenes")


def _item(title: str, text: str) -> str:
    return textwrap.fill(f"- **{title}:** {text}", 120, subsequent_indent="  ", break_on_hyphens=False)


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(p[0].upper() + p[1:] + "." for p in parts)


# --- measures in cards ------------------------------------------------------------------------------------------------


def _ladder(value: dict[str, Any]) -> str:
    lines = [
        f"| {r['pictures']} | {r['frechet']:.2f} | {r['precision']:.3f} | {r['recall']:.3f} |" for r in value["rows"]
    ]
    others = "of the training set" if value["training_set"] else "unseen, too"
    return f"""
## Distance from the world

{value["n"]:,} unseen renders against the same number of other pictures, in pooled features of `vgg16_thin` (comparable
only with each other); precision and recall with k = 3. Other renders, and blurred ones, are {others}.

| against unseen renders | Frechet distance | precision | recall |
|---|---|---|---|
{chr(10).join(lines)}
"""


def _layout(value: dict[str, Any]) -> str:
    lines = [
        f"| {r['parameter']} | {r['correlation']:.2f} ({r['low']:.2f} to {r['high']:.2f}) | {r['renders']:.2f} "
        f"| {r['r2_source']:.2f} | {r['r2_target']:.2f} |"
        for r in value["rows"]
    ]
    return f"""
## The same w in `{value["source"]}`

Readings of two pictures of one w, by regressions fitted on renders of the two domains, correlated over {value["n"]}
codes (95 % bootstrap interval); for comparison, the same for one person rendered in both domains, and R^2 of the
readings on held-out renders.

| parameter | correlation | of renders | R^2 in `{value["source"]}`'s domain | R^2 in this domain |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def _inversion(value: dict[str, Any]) -> str:
    return f"""
## Inversion of unseen portraits

{value["n"]} people, w+ alone (noise maps are zero), {value["settings"]}: PSNR {value["psnr_mean"]:.2f} dB on
average (standard deviation {value["psnr_std"]:.2f}, least {value["psnr_min"]:.2f}). `identity_thin` finds the right
person among {value["gallery"]} in {value["same_photo"]:.0%} of the reconstructions when the gallery holds the
photographs themselves, in {value["other_view"]:.0%} when it holds another picture of each (chance
{1 / value["gallery"]:.0%}).
"""


SECTIONS = {"ladder": _ladder, "layout": _layout, "inversion": _inversion}
