"""Rows of Table I, measured in a process of their own."""

import time

import pytest
import torch

from hrlib import nets, weights
from hrlib.errors import BatchError, UnknownName
from hrlib.experiments import table1


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    file = tmp_path_factory.mktemp("g") / "tiny.safetensors"
    channels = {4: 8, 8: 8, 16: 8, 32: 8}
    net = nets.StyleINR(z_dim=8, w_dim=8, resolution=32, channels=channels, mapping_layers=2, inr_hidden=8)
    weights.save_network(net, file)
    return str(file)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("row", table1.ROWS)
def test_rows_have_a_duration_and_a_peak(row, generator):
    found = table1.cost(row, generator, steps=2, batch=4)
    assert 0 < found.seconds < 60 and found.steps == 2
    assert 1e5 < found.memory < 2e9


def test_the_peak_is_that_of_the_block_and_not_of_what_came_before():
    large = torch.zeros(60_000_000)  # 240 MB
    with table1._Peak("cpu") as small:
        torch.zeros(1000)
    assert small.bytes < 60e6
    with table1._Peak("cpu") as peak:
        more = torch.ones(50_000_000)
        time.sleep(0.05)
    assert 150e6 < peak.bytes < 300e6 and large.numel() and more.numel()


@pytest.mark.usefixtures("forked")
def test_errors_are_told(generator):
    with pytest.raises(UnknownName, match="generation"):
        table1.cost("generatoin", generator, steps=1)
    with pytest.raises(BatchError, match="no_such_network"):
        table1.cost("generation", "no_such_network", steps=1)
