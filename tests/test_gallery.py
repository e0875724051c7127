"""Galleries: what is stored is what comes back, and a bad picture costs only itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

from hrlib import gallery, image, weights
from hrlib.cli import app
from hrlib.errors import (
    BatchError,
    DamagedFile,
    ImageError,
    InvalidValue,
    LayoutMismatch,
    ShapeError,
    StoreError,
    UnknownName,
)
from hrlib.experiments import galleries, syntheses
from hrlib.gallery import Gallery
from hrlib.store import fingerprint

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
    with pytest.raises(StoreError, match="there already"):
        Gallery(("a",), ws[:1], "").save(saved)
    assert len(gallery.load(saved)) == 3
    assert len(gallery.load(Gallery(("a",), ws[:1], "").save(saved, force=True))) == 1


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
    made["force"] = True
    again = galleries.build(names, **made)
    assert again.performed == 4 and torch.equal(again.gallery.ws, built.gallery.ws)  # the bad ones are tried again
    fitted = galleries.build(names[:4], **made, fit=True)
    assert len(fitted.gallery) == 3


def test_recorded_codes_are_read_and_belong_to_one_generator(repo, tiny):
    names, made = ["portrait:1", "portrait:2"], dict(generator=tiny(1), path=repo / "g", **FAST, force=True)
    built = galleries.build(names, **made, record=True)
    again = galleries.build([*names, "portrait:3"], **made)
    assert (built.performed, again.performed) == (2, 1)
    assert torch.equal(again.gallery.ws[:2], built.gallery.ws) and torch.equal(again.images[:2], built.images)
    kept = next((repo / "data" / "recorded" / galleries.SHELF).rglob(galleries.CODES))
    with pytest.raises(LayoutMismatch, match="of another generator"):
        galleries._read(kept, "f" * 64)


def test_codes_of_a_batch_are_those_of_single_pictures(tiny):
    runs = galleries.grid(["portrait:1", "portrait:2"], generator=tiny(1), num_steps=4)
    alone = [run for r in runs for run in galleries.together([r])]
    for one, other in zip(alone, galleries.together(runs), strict=True):
        ws = [safetensors.torch.load(found.files[galleries.CODES])["ws"] for found in (one, other)]
        torch.testing.assert_close(*ws, rtol=1e-4, atol=1e-4)


def test_files_are_named_from_any_directory(repo, folder, tiny, monkeypatch):
    """A synthesis looks them up on a worker, whose current directory may be another."""
    monkeypatch.chdir(folder)
    styles = {"cartoon": {"generator": tiny(2), "styles": ["file:a.png"]}}
    stage = syntheses.prepare(["portrait:1"], styles, source=tiny(1), perceptual="shipped", num_steps=1)
    pairs = {"cartoon": [("portrait:1", "file:a.png")]}
    made = syntheses.synthesise(stage, {"mixed": {"num_steps": 0}}, {"loss": "loss"}, pairs=pairs)
    assert made.table["error"][0] == "" and made.image("cartoon", "mixed", *pairs["cartoon"][0]) is not None
    codes = stage.styles["cartoon"].gallery
    code = codes["file:a.png"]
    monkeypatch.chdir(repo)
    assert torch.equal(codes[f"file:{folder}/a.png"], code)
    with pytest.raises(UnknownName, match="no picture"):
        codes["file:a.png"]


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
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, StoreError) and "there already" in str(done.exception)
    done = CliRunner().invoke(app, [*arguments, "--force"], catch_exceptions=False)
    assert done.exit_code == 0 and "2 of 2 pictures" in done.stdout


def test_where_a_gallery_goes_is_tried_before_anything_is_inverted(repo, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(galleries, "sweep", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "file.safetensors").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    made = dict(generator=tiny(1), **FAST)
    for path, match in (
        (tmp_path / "file", "there already"),
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "file.safetensors" / "g.safetensors", "cannot be written"),
    ):
        with pytest.raises(StoreError, match=match):
            galleries.build(["portrait:1"], path=path, **made)
    assert (tmp_path / "file.safetensors").read_text() == "mine"
    for bad in ({"num_steps": 0}, {"lr": float("nan")}, {"lam_mse": -1.0}, {"seed": -1}):
        with pytest.raises(InvalidValue, match=next(iter(bad))):
            galleries.build(["portrait:1"], path=tmp_path / "g.safetensors", **{**made, **bad})


def test_a_gallery_never_replaces_its_pictures(repo, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(galleries, "sweep", lambda *_, **__: pytest.fail("work began"))
    pictures(tmp_path, "a.png")
    picture = (tmp_path / "a.png").rename(tmp_path / "a.safetensors")
    for path in (tmp_path / "a", picture):
        with pytest.raises(StoreError, match="is the source itself"):
            galleries.build([f"file:{picture}"], path=path, generator=tiny(1), **FAST, force=True)
    made = Gallery((f"file:{picture}",), torch.zeros(1, 4, 8), "abc")
    with pytest.raises(StoreError, match="is the source itself"):
        made.save(tmp_path / "a", force=True)
    assert made.save(tmp_path / "lr_0.1") == tmp_path / "lr_0.1.safetensors"


def test_the_default_name_keeps_what_follows_a_dot(repo, tmp_path, tiny, monkeypatch):
    asked = []

    class Asked(Exception):
        pass

    def build(_, *, path, **__):
        asked.append(path.name)
        raise Asked

    monkeypatch.setattr(galleries, "build", build)
    pictures(tmp_path / "s", "a.png")
    file = Path(tiny(1)).rename(tmp_path / "net_v1.5.safetensors")
    for generator in ("net_v1.5", str(file)):
        arguments = ["gallery", "build", str(tmp_path / "s"), "--generator", generator]
        assert isinstance(CliRunner().invoke(app, arguments).exception, Asked)
    assert asked == ["net_v1.5.gallery.safetensors"] * 2
