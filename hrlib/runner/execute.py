"""Run one notebook in a process of its own: `python -m hrlib.runner.execute SPEC.json` (started by `batch`).

A process, because the kernel inherits its environment, and because it can be killed together with its children.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from .. import store

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main(spec_path: str) -> None:
    """Execute the notebook that the JSON file describes and write {"error": null | {...}} to its `result`."""
    spec = json.loads(Path(spec_path).read_text())
    _end_with_parent()
    store.write_json(spec["result"], {"error": _execute(spec)})


def _execute(spec: dict[str, Any]) -> dict[str, Any] | None:
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillExecutionError
    from traitlets import default

    class KernelManager(AsyncKernelManager):
        @default("transport")
        def _transport(self) -> str:  # over TCP, kernels that start together compete for ports
            return "ipc" if os.name == "posix" else "tcp"

        @default("ip")
        def _ip(
            self,
        ) -> str:  # for ipc, the prefix of the sockets' paths; Jupyter's default is the same for all kernels
            return spec["socket"] if os.name == "posix" else "127.0.0.1"

    try:
        papermill.execute_notebook(
            spec["notebook"],
            spec["output"],
            parameters=spec["parameters"],
            kernel_name="python3",
            kernel_manager_class=KernelManager,
            cwd=str(Path(spec["notebook"]).parent),
            progress_bar=False,
        )
    except PapermillExecutionError as e:
        trace, cell = _ANSI.sub("", "\n".join(e.traceback)), _in_source(spec, e.cell_index)
        return {"name": e.ename, "message": _ANSI.sub("", e.evalue), "cell": cell, "trace": trace}
    except Exception as e:  # a dead kernel, a timeout, a damaged file: whatever it is, the batch reports it
        return {"name": type(e).__name__, "message": str(e), "cell": None, "trace": ""}
    return None


def _in_source(spec: dict[str, Any], index: int) -> int:
    """A cell's index in the source notebook; papermill adds a cell with the parameters below the tagged one."""
    cells = json.loads(Path(spec["notebook"]).read_text(encoding="utf-8"))["cells"]
    tagged = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ()))
    return index - (bool(spec["parameters"]) and index > tagged)


def _end_with_parent() -> None:
    """End this process and its kernel as soon as the batch run that started it is gone, even if it was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        kill_tree(os.getpid())

    threading.Thread(target=watch, daemon=True).start()


def kill_tree(pid: int) -> None:
    """Kill a process and everything it started, leaves first."""
    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True)[::-1], process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    main(sys.argv[1])
