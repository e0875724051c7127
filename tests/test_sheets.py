import pytest
import torch

from hrlib import image
from hrlib.errors import InvalidValue, StoreError
from hrlib.worlds import sheets


def test_every_sheet_is_drawn_and_differs(tmp_path):
    files = sheets.make(tmp_path, size=16)
    assert [f.stem for f in files] == list(sheets.SHEETS)
    pictures = [image.read(f) for f in files]
    for name, x in zip(sheets.SHEETS, pictures, strict=True):
        assert x.std() > 0.1, f"{name} is nearly flat"
    photo, *others = pictures[:4]
    assert all((photo - x).abs().mean() > 0.1 for x in others), "two domains look the same"


def test_sheets_replace_nothing_unless_forced(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        sheets, "SHEETS", dict.fromkeys(("a", "b"), lambda size: drawn.append(size) or torch.zeros(1, 3, 8, 8))
    )
    (tmp_path / "b.webp").write_text("precious")
    with pytest.raises(StoreError, match=r"b\.webp is there already"):
        sheets.make(tmp_path)
    with pytest.raises(SystemExit, match=r"StoreError: .*b\.webp"):
        sheets.main([str(tmp_path)])
    with pytest.raises(InvalidValue, match="size"):
        sheets.make(tmp_path, size=0)
    assert not drawn and (tmp_path / "b.webp").read_text() == "precious"
    monkeypatch.setattr(sheets, "SHEETS", {"b": sheets.SHEETS["a"]})
    assert sheets.make(tmp_path, force=True) == [tmp_path / "b.webp"] and drawn == [128]
    assert image.read(tmp_path / "b.webp").shape == (1, 3, 8, 8)
