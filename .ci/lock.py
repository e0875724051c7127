"""Write requirements.lock from pip's installation report (see `make lock`).

Only names and versions go in: no index address, no local build tag ("+cpu"), and none of the GPU runtime packages,
which pip brings along with torch on the machines that have a use for them.
"""

import json
import re
import sys

GPU_RUNTIME = re.compile(r"^(nvidia|cuda|triton|pytorch[-_]triton)([-_].*)?$")
HEADER = """\
# Exact versions of everything the project needs; made by `make lock` from pyproject.toml, not by hand.
"""


def lock(report: dict) -> str:
    """The text of the lock file for a parsed `pip install --report` file."""
    pins = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if name != "hrlib" and not GPU_RUNTIME.match(name):
            pins[name] = item["metadata"]["version"].split("+")[0]
    return HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


if __name__ == "__main__":
    sys.stdout.write(lock(json.load(sys.stdin)))
