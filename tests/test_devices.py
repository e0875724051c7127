"""One place decides where tensors live."""

import pytest
import torch

from hrlib import devices
from hrlib.errors import UnknownName


def test_the_devices_that_are_here():
    assert devices.choose("cpu") == devices.choose(torch.device("cpu")) == torch.device("cpu")
    assert devices.choose().type == ("cuda" if torch.cuda.is_available() else "cpu")


NOT_HERE = ["gpu", "cuda:77", "", "auto ", None, *([] if torch.cuda.is_available() else ["cuda"])]


@pytest.mark.parametrize("name", NOT_HERE)
def test_devices_that_are_not_are_one_error(name):
    with pytest.raises(UnknownName, match="'auto', 'cpu'"):
        devices.choose(name)
