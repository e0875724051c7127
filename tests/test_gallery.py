"""Galleries: what is stored is what comes back, and a bad picture costs only itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hrlib import gallery, image, weights
from hrlib.cli import app
from hrlib.errors import BatchError, DamagedFile, ImageError, LayoutMismatch, ShapeError, StoreError, UnknownName
from hrlib.gallery import Gallery
from hrlib.inversion import fingerprint
from hrlib.lab import galleries

FAST = dict(num_steps=2, perceptual="shipped")


def pictures(folder: Path, *names: str, size=(32, 32)) -> None:
    folder.mkdir(exist_ok=True)
    g = torch.Generator().manual_seed(0)
    for name in names:
        image.write(torch.rand(1, 3, *size, generator=g) * 2 - 1, folder / name)


def test_what_is_saved_comes_back(tmp_path):
    ws = torch.randn(3, 8, 4)
    saved = Gallery(("a", "b", "c"), ws, "f" * 64, "how").save(tmp_path / "g.safetensors")
    found = gallery.load(saved)
    assert found.names == ("a", "b", "c") and found.made == "how" and len(found) == 3
    assert torch.equal(found["b"], ws[1:2])
    with pytest.raises(UnknownName, match="no picture 'bb'"):
        found["bb"]


def test_names_and_codes_belong_together():
    for names, ws in ((("a",), torch.zeros(2, 8, 4)), (("a", "a"), torch.zeros(2, 8, 4)), (("a",), torch.zeros(1, 8))):
        with pytest.raises(ShapeError, match="names"):
            Gallery(names, ws, "")


def test_a_gallery_belongs_to_one_generator(tmp_path, tiny):
    G, same = (weights.load_generator(tiny(seed)) for seed in (1, 2))
    other = weights.load_generator(tiny(3, w_dim=6))
    path = Gallery(("a",), torch.zeros(1, G.num_ws, G.w_dim), fingerprint(G.state_dict())).save(
        tmp_path / "g.safetensors"
    )
    assert gallery.load(path, G).names == ("a",)
    with pytest.raises(LayoutMismatch, match="of the same shape"):
        gallery.load(path, same)
    with pytest.raises(LayoutMismatch, match="8 x 8 for 8 x 6"):
        gallery.load(path, other)


def test_files_that_are_no_galleries(tmp_path):
    with pytest.raises(StoreError, match="no file"):
        gallery.load(tmp_path / "none.safetensors")
    whole = Gallery(("a",), torch.zeros(1, 8, 4), "").save(tmp_path / "g.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:100])
    weights.save_state({"ws": torch.zeros(1, 8, 4)}, tmp_path / "other.safetensors")
    for name in ("cut", "other"):
        with pytest.raises(DamagedFile, match="is not a gallery"):
            gallery.load(tmp_path / f"{name}.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two good pictures among one of another size, a transparent one and a broken one."""
    where = tmp_path / "styles"
    pictures(where, "a.png", "z.png")
    pictures(where, "wide.png", size=(32, 48))
    clear = Image.open(where / "a.png").convert("RGBA")
    clear.putalpha(100)
    clear.save(where / "clear.png")
    (where / "broken.png").write_bytes((where / "z.png").read_bytes()[:900])
    return where


def test_bad_pictures_cost_only_themselves(repo, folder, tiny):
    names = [f"file:{folder}/{n}.png" for n in ("a", "broken", "clear", "wide", "z", "missing")]
    made = dict(generator=tiny(1), path=repo / "g.safetensors", **FAST)
    built = galleries.build(names, **made)
    errors = dict(zip(("a", "broken", "clear", "wide", "z", "missing"), built.table["error"], strict=True))
    assert built.gallery.names == (names[0], names[4]) and built.images.shape == (2, 3, 32, 32)
    assert errors["a"] == errors["z"] == "" and "truncated" in errors["broken"] and "no file" in errors["missing"]
    assert "transparent" in errors["clear"] and "32x48 pixels" in errors["wide"] and "--fit" in errors["wide"]
    again = galleries.build(names, **made)
    assert again.performed == 4 and torch.equal(again.gallery.ws, built.gallery.ws)  # the bad ones are tried again
    fitted = galleries.build(names[:4], **made, fit=True)
    assert len(fitted.gallery) == 3


def test_not_one_good_picture(repo, folder, tiny):
    with pytest.raises(BatchError, match="none of 1 pictures"):
        galleries.build([f"file:{folder}/broken.png"], generator=tiny(1), path=repo / "g.safetensors", **FAST)
    assert not (repo / "g.safetensors").exists()


def test_a_missing_generator_is_one_error(repo, folder):
    with pytest.raises(UnknownName, match="did you mean 'anime_inr128'"):
        galleries.build([f"file:{folder}/a.png"], generator="anime_inr12", path=repo / "g.safetensors")


def test_pictures_that_are_no_files_come_in_the_generators_size(folder):
    assert galleries.exact("anime:3", 32).shape == (1, 3, 32, 32)
    with pytest.raises(ImageError, match="transparent"):
        galleries.exact(f"file:{folder}/clear.png", 32)


def test_the_command(repo, folder, tiny):
    generator = tiny(1)
    arguments = ["gallery", "build", str(folder), "--generator", generator, "--num-steps", "2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    out = folder / "tiny1.gallery.safetensors"
    assert done.exit_code == 1 and "2 of 5 pictures" in done.stdout and "broken.png: ImageError" in done.stderr
    assert len(gallery.load(out, weights.load_generator(generator))) == 2
    for name in ("broken", "clear", "wide"):
        (folder / f"{name}.png").unlink()
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "2 of 2 pictures" in done.stdout
