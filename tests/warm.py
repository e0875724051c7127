"""Python processes forked from one that has already imported everything: they start in milliseconds, not in seconds.

`warm.py serve SOCKET` is that process. `warm.py run SOCKET MODULE ARGUMENTS` stands where `python -m MODULE ARGUMENTS`
would be started: it passes its environment, folder and streams on, and lives as long as the forked process, which in
turn ends, with all that it started, when the one that stands for it is gone.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

HERE = str(Path(__file__).resolve())
LAZY = ("imagecodecs", "ipywidgets", "pandas", "skimage.data", "timm", "torchvision")  # imported where they are used


@contextmanager
def server() -> Iterator[Callable[[pytest.MonkeyPatch], None]]:
    """Run the process to fork from; yields what makes this one fork `python -m hrlib...` and notebooks' kernels."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # short: a socket's path has 108 bytes at most
        address, kernel = f"{folder}/socket", Path(folder) / "kernels" / "python3"
        kernel.mkdir(parents=True)
        argv = [*_standing(address), "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python", "language": "python"}))
        env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONHASHSEED": "0"}
        process = subprocess.Popen([sys.executable, HERE, "serve", address], stdout=subprocess.PIPE, env=env)

        def use(patch: pytest.MonkeyPatch) -> None:
            patch.setattr(subprocess, "Popen", _popen(address))
            patch.setenv("JUPYTER_PATH", folder)  # looked through before the environment's own kernels

        try:
            assert process.stdout.readline() == b"ready\n"
            yield use
        finally:
            process.terminate()
            process.wait()


def _standing(address: str) -> list[str]:
    return [sys.executable, "-S", "-E", HERE, "run", address]


def _popen(address: str) -> type[subprocess.Popen]:
    class Forked(subprocess.Popen):
        """Forks `python -m hrlib...`, starts everything else."""

        def __init__(self, args: list[str], **options: object) -> None:
            words = [str(a) for a in args] if isinstance(args, list) else []
            if words[:2] == [sys.executable, "-m"] and words[2].startswith("hrlib."):
                args = [*_standing(address), *words[2:]]
            super().__init__(args, **options)

    return Forked


def serve(address: str) -> None:
    """Import what this repository imports, then fork for everyone who asks."""
    import gc
    import importlib
    import pkgutil

    import hrlib
    from hrlib.lab import provenance

    run_as_main = ("hrlib.cli.__main__", "hrlib.runner.execute", "hrlib.experiments.table1")
    for module in pkgutil.walk_packages(hrlib.__path__, "hrlib."):
        if module.name not in run_as_main:
            importlib.import_module(module.name)
    for name in ("ipykernel.kernelapp", "papermill", "matplotlib_inline.backend_inline", *LAZY):
        importlib.import_module(name)
    provenance.closure([Path(hrlib.experiments.table3.__file__)])  # parsed and remembered, too
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what has ended leaves no zombie
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    gc.freeze()
    print("ready", flush=True)
    while True:
        asking, _ = listener.accept()
        with asking:
            text, streams, _, _ = socket.recv_fds(asking, 1 << 20, 3)
            if os.fork() == 0:
                listener.close()
                subprocess.Popen = _popen(address)
                _become(asking, streams, **json.loads(text))
            for stream in streams:
                os.close(stream)


def _become(asking: socket.socket, streams: list[int], argv: list[str], env: dict[str, str], cwd: str) -> None:
    """In the forked process: be `python -m *argv`. Never returns."""
    import matplotlib
    import torch

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.environ.pop("JPY_PARENT_PID", None)  # a kernel would look for a parent that is not its own
    os.chdir(cwd)
    sys.argv, sys.path[0] = argv, ""
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if argv[0] != "ipykernel_launcher":
        matplotlib.rcParams["backend"] = env.get("MPLBACKEND", "agg")
    threading.Thread(target=_end_with, args=(asking,), daemon=True).start()
    status = 1
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        asking.send(bytes([status % 256]))
        os._exit(status)


def _end_with(asking: socket.socket) -> None:
    """Wait until the other side is gone: it never says a word."""
    import psutil

    asking.recv(1)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def run(address: str, *argv: str) -> None:
    """Ask for a process and end as it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address)
        wanted = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}
        socket.send_fds(asking, [json.dumps(wanted).encode()], [0, 1, 2])
        said = asking.recv(1)
    sys.exit(said[0] if said else 1)


if __name__ == "__main__":
    {"serve": serve, "run": run}[sys.argv[1]](*sys.argv[2:])
