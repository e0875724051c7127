"""The names that other code relies on are where they are promised to be, and say their settings in their signatures."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SURFACE = {
    "image": "read write",
    "weights": "load_generator load_discriminator",
    "features": "vgg16 efficientnet_lite0 timm_network",
    "losses": "Perceptual HRINVERSION HIGH_LEVEL EFFICIENTNET named",
    "inversion": "invert Result load",
    "mixing": "lerp_generators lerp_ws swap_layers",
    "directions": "closed_form",
    "lso": "optimise",
    "metrics": "psnr ssim lpips frechet_distance id_retrieval",
}
SETTINGS = {  # of the three optimisations, with their published defaults
    "inversion.invert": dict(num_steps=1000, space="w+", optimise_noise=True, lam_mse=0.0, lr=0.1, seed=0),
    "lso.optimise": dict(num_steps=50, layers=None, directions=None, lr=0.1, seed=0),
    "inversion3d.invert": dict(
        pose_steps=200, latent_steps=0, num_steps=1000, decoder_steps=0, space="w+", lam_mse=0.0
    ),
}


@pytest.mark.parametrize("module", SURFACE)
def test_stable_names_are_reachable(module):
    home = import_module(f"hrlib.{module}")
    assert [name for name in SURFACE[module].split() if not hasattr(home, name)] == []


@pytest.mark.parametrize("name", SETTINGS)
def test_a_signature_shows_every_setting_with_its_default(name):
    module, function = name.split(".")
    parameters = inspect.signature(getattr(import_module(f"hrlib.{module}"), function)).parameters
    assert {k: parameters[k].default for k in SETTINGS[name]} == SETTINGS[name]
    assert all(parameters[k].kind is inspect.Parameter.KEYWORD_ONLY for k in SETTINGS[name])


ALLOWED = {
    "weights/files.py: compute",  # a decorator's wrapper, which has the signature of what it wraps
    "weights/files.py: look_up",
    "worlds/scenes.py: replace",  # names of a scene's parameters, which are data
}


def test_no_public_function_hides_its_settings():
    hidden = set()
    for path in sorted((ROOT / "hrlib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg and not node.name.startswith("_"):
                hidden.add(f"{path.relative_to(ROOT / 'hrlib').as_posix()}: {node.name}")
    assert hidden - ALLOWED == set()
