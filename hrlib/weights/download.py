"""Verified, resumable downloads: pooch checks and places the file, requests fetches it, and HTTP ranges resume it."""

from __future__ import annotations

import os
from pathlib import Path

import pooch
import requests
from tqdm.auto import tqdm

from .. import store
from ..errors import DamagedFile, MissingWeights

CHUNK = 1 << 16  # a dropped connection loses at most this many bytes
ATTEMPTS = 4
TIMEOUT = 30.0  # seconds without a byte


def download(url: str, target: Path, *, sha256: str | None, size: int | None, by_hand: str) -> Path:
    """Fetch `url` to `target`; the file appears there only when it is whole and its SHA-256 is right.

    An interrupted download leaves `target.part`, and the next call goes on from there (only where the hash is known:
    otherwise two versions of a file could be glued together unnoticed). A file that is there is never replaced.

    Args:
        sha256: 64 hex digits, or None where the origin publishes none.
        size: bytes, or None.
        by_hand: what the reader can do instead; ends the error messages.

    Raises:
        StoreError: something is there already, or nobody may write there.
        MissingWeights: the server cannot be reached or does not have the file.
        DamagedFile: what came is a web page or has the wrong hash.
    """
    target = store.new(target)

    def fetch(url: str, output_file: str, pooch: object) -> None:
        if sha256 is None:  # into pooch's own temporary file
            return _fetch_part(url, Path(output_file), resume=False, size=size, by_hand=by_hand)
        part = target.with_name(target.name + ".part")
        _fetch_part(url, part, resume=True, size=size, by_hand=by_hand)
        os.replace(part, output_file)

    try:
        pooch.retrieve(url, known_hash=sha256, fname=target.name, path=target.parent, downloader=fetch)
    except ValueError as e:  # pooch: the hash differs; its temporary file is gone already
        raise DamagedFile(
            f"{url} gave another file than expected ({e})", expected=f"SHA-256 {sha256}", do=by_hand
        ) from e
    return target


def _fetch_part(url: str, part: Path, *, resume: bool, size: int | None, by_hand: str) -> None:
    """Complete `part`, going on after dropped connections."""
    if not resume:
        part.unlink(missing_ok=True)
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            if _stream(url, part, size, by_hand):
                return
            failure = ConnectionError("the connection ended early")
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as e:
            failure = e
        except requests.RequestException as e:
            raise MissingWeights(f"cannot download {url} ({e})", expected="a file behind that link", do=by_hand) from e
    raise MissingWeights(f"cannot download {url} ({failure})", expected="a network connection", do=by_hand) from failure


def _stream(url: str, part: Path, size: int | None, by_hand: str) -> bool:
    """One request, appended to `part`; True when the server's announced end was reached."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # a compressed stream could not be resumed by byte position
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing behind that position: the part is whole, or of another version
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2] == str(have)
            if not whole:
                part.unlink()
            return whole
        answer.raise_for_status()
        going_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if going_on else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise _web_page(url, by_hand)
        if size is not None and total is not None and total != size:
            raise DamagedFile(f"{url} offers {total} bytes", expected=f"{size} bytes", do=by_hand)
        done = start
        with (
            open(part, "ab" if going_on else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=url.rpartition("/")[2], disable=None
            ) as bar,
        ):
            for chunk in answer.iter_content(CHUNK):
                if done == 0 and chunk.lstrip()[:1] == b"<":
                    raise _web_page(url, by_hand)
                file.write(chunk)
                done += len(chunk)
                bar.update(len(chunk))
                if size is not None and done > size:
                    part.unlink()
                    raise DamagedFile(f"{url} sends more than {size} bytes", expected=f"{size} bytes", do=by_hand)
            file.flush()
            os.fsync(file.fileno())
    return total is None or done == total


def _web_page(url: str, by_hand: str) -> DamagedFile:
    return DamagedFile(f"{url} answers with a web page", expected="a binary file", do=by_hand)
