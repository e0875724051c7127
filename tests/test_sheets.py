from hrlib import image
from hrlib.worlds import sheets


def test_every_sheet_is_drawn_and_differs(tmp_path):
    files = sheets.make(tmp_path, size=16)
    assert [f.stem for f in files] == list(sheets.SHEETS)
    pictures = [image.read(f) for f in files]
    for name, x in zip(sheets.SHEETS, pictures, strict=True):
        assert x.std() > 0.1, f"{name} is nearly flat"
    photo, *others = pictures[:4]
    assert all((photo - x).abs().mean() > 0.1 for x in others), "two domains look the same"
