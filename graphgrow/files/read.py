"""What a file is, told from its bytes without running any of them; and the error that says so."""

from __future__ import annotations

import pickletools
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from io import SEEK_CUR, BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from graphgrow.errors import FileError

What: TypeAlias = Literal[
    "program", "state-dict", "pickle", "legacy-pickle", "pt2", "torchscript", "safetensors", "truncated",
    "empty", "directory", "missing", "unknown",
]  # fmt: skip

FORMAT = "graphgrow program"
_SCANNED = 64 * 2**20  # bytes of a pickle looked at
_OPCODES = 5_000_000
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before 1.6
_ZIP, _ENTRY, _END64, _WHERE, _END = (b"PK" + mark for mark in (b"\3\4", b"\1\2", b"\6\6", b"\6\7", b"\5\6"))
# The end of an archive that torch wrote (size and place of its directory, place of this), and an entry of a directory
# (compression, checksum, size, lengths of name and the like, place).
_ENDING = struct.Struct("<4s36x2Q4s4xQ4x4s18x")
_MEMBER = struct.Struct("<4s6xH4xL4xL3H8xL")
# What torch.load(weights_only=True) builds in a state dict; anything else named in a pickle is code to run.
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch (Size|device|Tensor)|torch \w+Storage|torch\.storage \w+Storage"
    r"|torch (bool|u?int\d+|b?float\w+|complex\d+|q\w+)|torch\._utils _rebuild_\w+"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout|_codecs encode"
    r"|(builtins|__builtin__) (set|bytearray|complex)"
)
_TRUST = (
    "if you trust whoever made it: graphgrow trace {path} --trust-pickle -o model.pt\n"
    "(the flag lets the file run any code, with your rights, on this machine)"
)
_ERRORS: dict[What, tuple[str, str]] = {
    "state-dict": (
        "a state dict: weights alone, without the model that uses them",
        "load it into its model, then: gg.trace(model, example_inputs).save('model.pt')",
    ),
    "pickle": ("a pickled object{detail}, not a program: loading it would run code from the file", _TRUST),
    "legacy-pickle": (
        "a pickle without a zip archive around it{detail}, not a program: loading it would run code from the file",
        _TRUST,
    ),
    "pt2": ("a .pt2 of torch.export, not a program: torch.export.load runs code from the file", _TRUST),
    "torchscript": (
        "a TorchScript archive, which holds no graph that can be traced",
        "trace the Python model it was made from: graphgrow trace pkg.module:factory -o model.pt",
    ),
    "safetensors": (
        "a safetensors file: weights alone, without the model that uses them",
        "beside its config.json: graphgrow trace FOLDER -o model.pt",
    ),
    "truncated": (
        "the beginning of a zip archive whose end is missing or damaged: a .pt file that was cut off",
        "copy or download it again, or save it again",
    ),
    "empty": ("an empty file", "save it again: its last writer did not come to an end"),
    "directory": ("a folder, not a program file", "a Hugging Face folder: graphgrow trace {path} -o model.pt"),
    "missing": ("no file of this name", "check the path{detail}"),
    "unknown": ("a file that is nothing graphgrow can read{detail}", "name a program file (.pt)"),
}  # fmt: skip
# What Python's zipfile raises for archives that were damaged.
_BROKEN = (
    BadZipFile, EOFError, LookupError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip


def identify(path: str | Path) -> What:
    """What the file at `path` is. Reads its ends and its pickle's opcodes; unpickles nothing.

    Raises FileError only where the file can't be opened at all.
    """
    return examine(Path(path))[0]


def examine(path: Path) -> tuple[What, str]:
    """What the file at `path` is, and what is wrong with it where it is a program that torch would map wrongly."""
    try:
        if path.is_dir():
            return "directory", ""
        if not path.is_file():
            return "unknown" if path.exists() else "missing", ""
        with path.open("rb") as file:
            return _identified(file, path.stat().st_size)
    except OSError as error:
        found, fix = f"a file that can't be read: {error.strerror}", "check its name and permissions"
        raise FileError(found=found, where=str(path), fix=fix) from error


def refusal(path: str | Path, what: What) -> FileError:
    """The error for a file that should be a program and is `what` instead."""
    found, fix = _ERRORS[what]
    detail = _detail(Path(path), what)
    fix = fix.format(path=path, detail=detail)
    return FileError(found=found.format(detail=detail), where=str(path), fix=fix)


def _identified(file: BinaryIO, length: int) -> tuple[What, str]:
    head = file.read(16)
    if not head:
        return "empty", ""
    if head.startswith(_ZIP) or head.startswith(_END):
        return _archive(file, length)
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= length - 8:
        return "safetensors", ""
    file.seek(0)
    pickled = re.match(rb"\x80[\x00-\x05]", head) or _complete(file.read(_SCANNED))
    return _legacy(file) if pickled else "unknown", ""


def _archive(file: BinaryIO, length: int) -> tuple[What, str]:
    """What a zip archive is, from the names of its members and the opcodes of its pickle."""
    try:
        if length > _ENDING.size and _is_saved_program(file, length - _ENDING.size):
            return "program", ""
        with ZipFile(file) as archive:
            data = _pickle(archive)
            what = "program" if _is_program(data) else _inside(archive.namelist(), data)
            packed = any(member.compress_type != ZIP_STORED for member in archive.infolist())
    except _BROKEN:
        return "truncated", ""
    if what != "program":
        return what, ""
    return what, "that was compressed" if packed else "with a header too long" if len(data) == _SCANNED else ""


def _is_saved_program(file: BinaryIO, end: int) -> bool:
    """Whether an archive is a program just as `torch.save` wrote it: no member compressed, the pickle first and whole.

    `ZipFile` reads other forms too, and takes ten times as long: a program has a member for each of its tensors.
    """
    file.seek(end)
    mark, size, start, where, place, last = _ENDING.unpack(file.read())
    if (mark, where, last) != (_END64, _WHERE, _END) or not start + size == place == end:
        return False
    file.seek(start)
    directory, position = file.read(size), 0
    while position < size:
        mark, method, _, _, *lengths, _ = _MEMBER.unpack_from(directory, position)
        if mark != _ENTRY or method != ZIP_STORED:
            return False
        position += _MEMBER.size + sum(lengths)
    _, _, checksum, size, name, _, _, place = _MEMBER.unpack_from(directory)
    if directory[_MEMBER.size :][:name].partition(b"/")[2] != b"data.pkl" or size >= _SCANNED:
        return False
    file.seek(place + 26)  # its name there, and what fills up to a round address
    file.seek(sum(struct.unpack("<2H", file.read(4))), SEEK_CUR)
    data = file.read(size)
    return zlib.crc32(data) == checksum and _is_program(data)


def _inside(names: list[str], data: bytes) -> What:
    """What an archive is that is no program, by the names of its members and its `data.pkl`, if it has one."""
    known = {*names, *(name.partition("/")[2] for name in names)}
    if known & {"archive_format", "serialized_exported_program.json"}:
        return "pt2"
    if "constants.pkl" in known:
        return "torchscript"
    if ".data/extern_modules" in known:
        return "pickle"
    if not data:
        return "unknown"
    return "pickle" if _foreign(data) is not None else "state-dict"


def _pickle(archive: ZipFile) -> bytes:
    """The pickle that torch.load would read, `data.pkl` beside the first member, or b''. Compares its checksum."""
    names = archive.namelist()
    name = f"{names[0].partition('/')[0]}/data.pkl" if names else ""
    if name not in names:
        return b""
    with archive.open(name) as member:
        return member.read(_SCANNED)


def _is_program(data: bytes) -> bool:
    """Whether the pickle begins as `save` writes it: a dictionary whose first entry is its format."""
    strings: list[object] = []
    for name, argument in _opcodes(data):
        if name not in ("PROTO", "EMPTY_DICT", "MARK", "BINPUT", "BINUNICODE"):
            break
        if name == "BINUNICODE":
            strings.append(argument)
        if len(strings) == 2:
            break
    return strings == ["format", FORMAT]


def _opcodes(data: bytes) -> Iterator[tuple[str, object]]:
    """The opcodes of a pickle with their arguments, read and not run; 'BROKEN' where it can't be read."""
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(BytesIO(data[:_SCANNED])):
            yield opcode.name, argument
            count += 1
            if count > _OPCODES:
                return
    except (ValueError, OverflowError):
        yield "BROKEN", None


def _foreign(data: bytes) -> str | None:
    """The first thing a pickle names that is no part of a state dict ('' where it can't be told), or None."""
    strings: list[str] = []
    for name, argument in _opcodes(data):
        if name in ("GLOBAL", "INST") and not _PLAIN.fullmatch(str(argument)):
            return str(argument).replace(" ", ".")
        if name == "STACK_GLOBAL":
            return ".".join(strings[-2:])
        if name in ("EXT1", "EXT2", "EXT4", "BROKEN"):
            return ""
        if isinstance(argument, str):
            strings.append(argument)
    return None


def _legacy(file: BinaryIO) -> What:
    """A pickle on its own: what torch wrote before 1.6, or Python's own `pickle.dump`."""
    file.seek(0)
    head = file.read(_SCANNED)
    plain = head.startswith(_MAGIC) and _foreign(_last(head)) is None
    return "state-dict" if plain else "legacy-pickle"


def _last(head: bytes) -> bytes:
    """The pickle of the saved object: torch once wrote four in a row, the last of them this one."""
    stream = BytesIO(head)
    with suppress(ValueError, OverflowError):
        for _ in range(3 if head.startswith(_MAGIC) else 0):
            deque(pickletools.genops(stream), maxlen=0)
    return head[stream.tell() :]


def _complete(data: bytes) -> bool:
    """Whether bytes without a pickle's first mark are one all the same: the oldest protocol is plain text."""
    names = [name for name, _ in _opcodes(data)]
    return len(names) > 1 and names[-1] == "STOP"


def _detail(path: Path, what: What) -> str:
    """What an error adds from the file itself."""
    if what == "missing":
        folder = path.parent if path.parent.is_dir() else Path()
        near: list[str] = []
        with suppress(OSError):  # a folder that may be entered but not listed
            near = get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.75)
        return f": {folder / near[0]} exists" if near else ""
    if what == "unknown" and path.is_file():
        with path.open("rb") as file:
            return f": it begins with {file.read(8)!r}"
    name = foreign(path) if what in ("pickle", "legacy-pickle") else None
    return f" (it names {name})" if name else ""


def foreign(path: Path) -> str | None:
    """The first thing the pickle in a file names that only code can make, where there is one that can be told."""
    try:
        with path.open("rb") as file:
            if file.read(4) == _ZIP:
                with ZipFile(file) as archive:
                    name = _foreign(_pickle(archive))
            else:
                file.seek(0)
                name = _foreign(_last(file.read(_SCANNED)))
    except _BROKEN:
        return None
    return name if name and len(name) < 200 and name.isprintable() else None
