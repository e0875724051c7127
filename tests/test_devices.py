"""One place decides where tensors live."""

import subprocess
import sys

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


KEPT = """
import resource, sys
import torch
from hrlib import devices

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(16 << 20)  # 64 MB, more than malloc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults(), devices.keep_memory(), [faults() for _ in range(6)][-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_that_is_freed_is_kept():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    before, kept, after = done.stdout.split()
    if kept == "False":
        pytest.skip("another C library than glibc")
    assert int(before) > 10_000 and int(after) < int(before) / 2
