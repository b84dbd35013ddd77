"""Whole files and content keys: what makes a second run do only what is missing.

A file appears under its final name only when it is complete. A *receipt* beside the
outputs of a piece of work holds the key of what it was made from (content and options,
never time) and the digest of what it made; the work is current while both still hold.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from cellmap_core.errors import BusyError, DiskFullError
from cellmap_core.models import Frozen

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABANDONED_SECONDS = 24 * 3600
# Names of what is being written, and of a folder that makes way for its successor. Earlier
# versions gave the process alone.
_TEMPORARY = re.compile(
    r"\.(?:(?P<writer>.*)-)?(?P<process>\d+)\.(?P<kind>partial|before)\.(?P<name>.+)", re.DOTALL
)


def _writer() -> str:
    """A name of this host and its process namespace.

    With it a process number means something in a folder that many hosts write to, and
    containers that share the name of their host.
    """
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())
    with suppress(OSError):
        return f"{host}_{Path('/proc/self/ns/pid').stat().st_ino}"
    return host


_WRITER = _writer()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that becomes ``path`` when the block succeeds.

    The name keeps all suffixes of ``path``, because readers choose a format by them. The first
    write of a process to a folder also removes what killed writers left there; see `sweep`.

    Raises
    ------
    DiskFullError
        No space is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent)
    temporary = _temporary(path, "partial")
    try:
        with _named_if_full(path):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that is removed when the block ends.

    What a killed process leaves of it is removed by `sweep`.

    Raises
    ------
    DiskFullError
        No space is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary(path, "partial")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with _named_if_full(path):
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder ``new`` to ``path``, in the place of a folder that is there.

    Killed between the two renames, it leaves the old folder under a temporary name, from which
    `sweep` brings it back.
    """
    before = _temporary(path, "before")
    shutil.rmtree(before, ignore_errors=True)
    with suppress(FileNotFoundError):
        # Its age tells other hosts whether the process that set it aside still runs.
        os.utime(path)
        path.rename(before)
    try:
        new.rename(path)
    except OSError:
        if before.exists():
            before.rename(path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _temporary(path: Path, kind: str) -> Path:
    """A name beside ``path`` that tells who uses it."""
    return path.with_name(f".{_WRITER}-{os.getpid()}.{kind}.{path.name}")


@contextmanager
def _named_if_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            f"{path} cannot be written ({error.strerror})", "", "free some space and start again"
        ) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for one run: two that write the same files would vouch for each other's.

    The hold ends with the process, however that ends.

    Raises
    ------
    BusyError
        Another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".run.lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another run is writing into {folder}", "", "wait for it, or name another folder"
            ) from error
        except OSError as error:
            # Some cluster file systems know no locks; that is no reason not to work on them.
            logger.warning("%s cannot be held for this run alone (%s)", folder, error)
        yield


@cache
def _sweep_once(folder: Path) -> None:
    """Sweep a folder; no second time in one process."""
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what killed writers left under temporary names in a folder.

    Another run may be writing there: only what a dead process of this host left goes, and
    from other hosts what nobody has touched for a day. A folder that was set aside, and whose
    successor never came, gets its name back.
    """
    for path in folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or not _is_abandoned(path, match["writer"], int(match["process"])):
            continue
        target = path.with_name(match["name"])
        # Another run may sweep at the same time, and another user's files may not be removed.
        with suppress(OSError):
            if match["kind"] == "before" and not target.exists():
                path.rename(target)
                logger.warning("%s is restored: a killed run had set it aside", target)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _is_abandoned(path: Path, writer: str | None, process: int) -> bool:
    """Whether nobody writes to a temporary file or folder any more."""
    if writer == _WRITER and not _runs(process):
        return True
    oldest = time.time() - _ABANDONED_SECONDS
    try:
        # The newest file tells how old a folder is: its own time is that of its first entries.
        return not any(p.stat().st_mtime > oldest for p in chain([path], path.rglob("*")))
    except OSError:
        # Somebody moved it meanwhile.
        return False


def _runs(process: int) -> bool:
    """Whether a process of this host is there, whoever's it is."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that the file is whole or absent; see ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that the file is whole or absent.

    A file that holds it already is not touched: whoever watches it sees no change.
    """
    with suppress(OSError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def key_of(*parts: Any) -> str:
    """Digest of JSON-able parts, the same for the same content in any process.

    Paths count by their text; give content digests where the content matters.
    """
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


class _Output(Frozen):
    path: str
    size_bytes: int
    mtime_ns: int
    digest: str


class Receipt(Frozen):
    """What was made, from what: ``key`` of the inputs, and each output's digest.

    Attributes
    ----------
    key : str
        Digest of everything the outputs depend on.
    outputs : tuple
        Outputs by path relative to the receipt's folder, with size, time and digest. The
        time only saves reading a file again; where it differs the digest decides.
    result : dict
        What the work reported, so that a later run can report it again.
    """

    key: str
    outputs: tuple[_Output, ...]
    result: dict[str, Any] = {}


def write_receipt(path: Path, key: str, outputs: Iterable[Path], result: dict[str, Any]) -> None:
    """Write the receipt of finished work; call it last.

    Parameters
    ----------
    path : Path
        Where the receipt goes. Outputs are kept relative to its folder.
    key : str
        Digest of the inputs and options.
    outputs : iterable of Path
        Files that must stay as they are for the work to count as done.
    result : dict
        JSON-able report of the work.
    """
    rows = []
    for output in outputs:
        status = output.stat()
        rows.append(
            _Output(
                path=os.path.relpath(output, path.parent),
                size_bytes=status.st_size,
                mtime_ns=status.st_mtime_ns,
                digest=file_digest(output),
            )
        )
    receipt = Receipt(key=key, outputs=tuple(rows), result=result)
    write_json(path, receipt.model_dump(mode="json"))


def read_receipt(path: Path, key: str, outputs: Sequence[Path] | None = None) -> Receipt | None:
    """The receipt at ``path`` if it is for ``key`` and every output is as it was left.

    Parameters
    ----------
    path : Path
        Of the receipt.
    key : str
        Digest of the inputs and options.
    outputs : sequence of Path, optional
        Where the outputs have to be; by default where the receipt says. One that lies
        elsewhere than that counts as it was left if its content is the same.
    """
    try:
        receipt = Receipt.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        # Absent or unreadable is the same to a reader: the work is not known to be done.
        return None
    if receipt.key != key:
        return None
    left = [path.parent / output.path for output in receipt.outputs]
    there = left if outputs is None else list(outputs)
    same = len(there) == len(left) and all(
        _unchanged(file, output, trust_time=os.path.abspath(file) == os.path.abspath(at))  # noqa: PTH100 - no link is followed
        for file, at, output in zip(there, left, receipt.outputs, strict=True)
    )
    return receipt if same else None


def _unchanged(file: Path, output: _Output, trust_time: bool) -> bool:
    try:
        status = file.stat()
        if status.st_size != output.size_bytes:
            return False
        if trust_time and status.st_mtime_ns == output.mtime_ns:
            return True
        return file_digest(file) == output.digest
    except OSError:
        return False
