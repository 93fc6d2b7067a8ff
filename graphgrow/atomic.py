"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from graphgrow.errors import FileError

UNFINISHED = ".graphgrow-stream.json"  # is in a folder that an interrupted run can go on with
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_BLOCK = 4096  # bytes; a write that failed for want of space leaves less than one block free


@contextmanager
def atomic_file(path: str | Path, *, needed: int | None = None) -> Generator[Path, None, None]:
    """A temporary path beside `path`, with its suffix; it becomes `path` when the block completes.

    On any exception, KeyboardInterrupt too, the temporary file is removed and `path` is as it was. `needed`
    is the number of bytes to be written, where known: too little room is refused before the block runs.

    Raises FileError: `path` can't be written there, or the disk is full.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        thing = "a folder" if target.is_dir() else "not an ordinary file"
        raise FileError(found=f"{thing} where a file is to be written", where=str(path), fix="name a file")
    with _beside(target, needed) as temporary:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)


@contextmanager
def atomic_folder(
    path: str | Path, *, overwrite: bool = False, needed: int | None = None
) -> Generator[Path, None, None]:
    """A new temporary folder beside `path`; it becomes `path` when the block completes (see `atomic_file`).

    Raises FileError: also where `path` is a folder with something in it, unless `overwrite`.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise FileError(found="a file where a folder is to be written", where=str(path), fix="name a folder")
    if not overwrite and _has_entries(target):
        raise FileError(
            found="a folder that is not empty", where=str(path), fix="name a new folder, or allow overwriting"
        )
    with _beside(target, needed) as temporary:
        temporary.mkdir()
        yield temporary
        for entry in temporary.rglob("*"):
            _flush(entry)
        _flush(temporary)
        _replace_folder(temporary, target)


@contextmanager
def _beside(target: Path, needed: int | None) -> Generator[Path, None, None]:
    """A free name next to `target`, cleared away on the way out; errors of the disk become FileErrors."""
    if not target.parent.is_dir():
        raise FileError(found=f"no folder {target.parent}", where=str(target), fix="make it, or name another one")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise _denied(target)
    if needed is not None and needed > shutil.disk_usage(target.parent).free:
        raise _no_space(target, needed)
    temporary = _hidden(target)
    try:
        yield temporary
        _flush(target.parent)
    except Exception as error:
        if _is_full(error, target.parent):
            raise _no_space(target, needed) from error
        if isinstance(error, OSError) and error.errno in _DENIED and _concerns(error, temporary):
            raise _denied(target) from error
        raise
    finally:
        _remove(temporary)


def _denied(target: Path) -> FileError:
    return FileError(
        found="no permission to write", where=str(target), fix="name another place, or change its permissions"
    )


def _hidden(target: Path) -> Path:
    """An unused hidden name in the target's folder, with its suffix: some writers choose a format by it."""
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")


def _replace_folder(temporary: Path, target: Path) -> None:
    """Move a folder to its name. A filled one there first steps aside, and back again if the move fails."""
    if not _has_entries(target):
        os.replace(temporary, target)
        return
    aside = _hidden(target)
    os.replace(target, aside)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(aside, target)
        raise
    _remove(aside)


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _flush(path: Path) -> None:
    """Wait until the disk holds a file's bytes, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _concerns(error: OSError, temporary: Path) -> bool:
    names = (error.filename, error.filename2)
    return any(Path(os.fsdecode(name)).is_relative_to(temporary) for name in names if isinstance(name, str | bytes))


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether a full disk is behind an error: writers outside Python say it each in its own way.

    safetensors has it in its text only; torch.save raises a RuntimeError about positions, with nothing free.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _FULL:
            return True
        link = link.__cause__ or link.__context__
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _BLOCK


def _no_space(target: Path, needed: int | None) -> FileError:
    free = f"{amount(shutil.disk_usage(target.parent).free)} free"
    amounts = free if needed is None else f"{amount(needed)} needed, {free}"
    return FileError(
        found=f"no space left on the disk ({amounts})",
        where=str(target),
        fix="make room, or write to another disk; nothing was written",
    )


def amount(count: int) -> str:
    """A number of bytes for people: `512 bytes`, `1.5 GB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
