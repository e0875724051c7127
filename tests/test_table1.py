"""Rows of Table I, measured in a process of their own."""

import json
import subprocess
import sys

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


TAKES = """
import json, torch
from hrlib.experiments import table1

def takes(*_):
    while True:
        yield torch.ones(50_000_000)  # 200 MB

large = torch.ones(60_000_000)  # 240 MB
table1._generation = takes
print(json.dumps(table1._measure("generation", "", 1, 1, "cpu", "", 1)), large.numel())
"""


def test_the_peak_does_not_count_what_came_before(generator):
    """Neither in the measuring process nor in the one that started it."""
    large = torch.ones(60_000_000)  # 240 MB
    assert table1.cost("generation", generator, steps=1).memory < 150e6 and large.numel()
    done = subprocess.run([sys.executable, "-c", TAKES], capture_output=True, text=True, check=True)
    assert 150e6 < json.loads(done.stdout.rpartition("}")[0] + "}")["memory"] < 450e6


@pytest.mark.usefixtures("forked")
def test_errors_are_told(generator):
    with pytest.raises(UnknownName, match="generation"):
        table1.cost("generatoin", generator, steps=1)
    with pytest.raises(BatchError, match="no_such_network"):
        table1.cost("generation", "no_such_network", steps=1)
