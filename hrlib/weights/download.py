"""Verified, resumable downloads.

pooch checks the hash and places the file. The fetching is ours because pooch starts every download from the beginning:
this one resumes by HTTP range, retries, and recognises a log-in page that comes instead of the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import pooch
import requests
from tqdm.auto import tqdm

from .. import store
from ..errors import DamagedFile, MissingWeights

CHUNK = 1 << 16  # bytes; the most that a dropped connection loses
ATTEMPTS = 4
TIMEOUT = 30.0  # seconds without a byte


def download(url: str, target: Path, *, sha256: str | None, size: int | None, by_hand: str) -> Path:
    """Fetch `url` to `target`; the file appears only once it is complete and its SHA-256 matches.

    An interrupted download leaves `target.part`, which the next call resumes. Without a known hash it starts again,
    since parts of two versions could otherwise be joined unnoticed. An existing file is never replaced.

    Args:
        sha256: 64 hex digits, or None if the origin publishes none.
        size: bytes, or None if unknown.
        by_hand: what the user can do instead; every error message ends with it.

    Raises:
        StoreError: `target` exists, or cannot be written.
        MissingWeights: the server cannot be reached or does not have the file.
        DamagedFile: the server sent a web page or a file with the wrong hash.
    """
    target = store.new(target)

    def fetch(url: str, output_file: str, pooch: object) -> None:
        if sha256 is None:  # straight into pooch's temporary file
            return _fetch_part(url, Path(output_file), resume=False, size=size, by_hand=by_hand)
        part = target.with_name(target.name + ".part")
        _fetch_part(url, part, resume=True, size=size, by_hand=by_hand)
        os.replace(part, output_file)

    try:
        pooch.retrieve(url, known_hash=sha256, fname=target.name, path=target.parent, downloader=fetch)
    except ValueError as e:  # pooch found another hash, and has deleted its temporary file
        raise DamagedFile(f"{url} is not the expected file ({e})", expected=f"SHA-256 {sha256}", do=by_hand) from e
    return target


def _fetch_part(url: str, part: Path, *, resume: bool, size: int | None, by_hand: str) -> None:
    """Complete `part`, resuming after dropped connections."""
    if not resume:
        part.unlink(missing_ok=True)
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            if _stream(url, part, size, by_hand):
                return
            failure = ConnectionError("the connection closed early")
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as e:
            failure = e
        except requests.RequestException as e:
            raise MissingWeights(f"cannot download {url} ({e})", expected="a file at that link", do=by_hand) from e
    raise MissingWeights(f"cannot download {url} ({failure})", expected="a network connection", do=by_hand) from failure


def _stream(url: str, part: Path, size: int | None, by_hand: str) -> bool:
    """Make one request and append the answer to `part`; True once the announced length has arrived."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # a compressed stream cannot be resumed at a byte position
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing beyond that position: the part is complete, or of another version
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2] == str(have)
            if not whole:
                part.unlink()
            return whole
        answer.raise_for_status()
        resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise _web_page(url, by_hand)
        if size is not None and total is not None and total != size:
            raise DamagedFile(f"{url} offers {total} bytes", expected=f"{size} bytes", do=by_hand)
        done = start
        with (
            open(part, "ab" if resumed else "wb") as file,
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
    return DamagedFile(f"{url} returned a web page", expected="a binary file", do=by_hand)
