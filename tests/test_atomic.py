"""Files and folders appear complete or not at all, whatever goes wrong in between."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import safetensors
import torch

from graphgrow.atomic import atomic_file, atomic_folder
from graphgrow.errors import FileError, Refusal

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES = [
    KeyboardInterrupt(),
    Refusal(found="13 heads"),
    ValueError("a bug"),
    OSError(errno.EIO, os.strerror(errno.EIO)),
]


@pytest.fixture
def full_disk(monkeypatch):
    """A disk with no room, whatever the real one has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_appears_when_the_block_completes(tmp_path):
    target = tmp_path / "model.widen.pt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".pt"
        assert not target.exists()

    assert names(tmp_path) == ["model.widen.pt"]
    assert target.read_text() == "new"


def test_file_replaces_an_older_one_only_at_the_end(tmp_path):
    target = tmp_path / "model.pt"
    target.write_text("old")
    with atomic_file(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"

    assert target.read_text() == "new"
    assert names(tmp_path) == ["model.pt"]


def test_file_through_a_link_replaces_what_it_names(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "model.pt"
    target.write_text("old")
    link = tmp_path / "latest.pt"
    link.symlink_to(target)
    with atomic_file(link) as temporary:
        temporary.write_text("new")

    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    target = tmp_path / "model.pt"
    target.write_text("old")
    with pytest.raises(type(failure)) as caught, atomic_file(target) as temporary:
        temporary.write_text("half")
        raise failure

    assert caught.value is failure
    assert target.read_text() == "old"
    assert names(tmp_path) == ["model.pt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "model.pt"):
        pass

    assert names(tmp_path) == []


def test_full_disk_is_said_plainly(tmp_path):
    target = tmp_path / "model.pt"
    with pytest.raises(FileError) as caught, atomic_file(target, needed=1) as temporary:
        temporary.write_text("half")
        raise FULL

    assert "no space left on the disk (1 bytes needed" in caught.value.found
    assert caught.value.where == str(target)
    assert caught.value.__cause__ is FULL
    assert names(tmp_path) == []


def test_full_disk_found_at_the_flush(tmp_path, monkeypatch):
    def fsync(_: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(FileError, match="no space left"), atomic_file(tmp_path / "model.pt") as temporary:
        temporary.write_text("whole")

    assert names(tmp_path) == []


def test_full_disk_behind_another_error(tmp_path):
    with pytest.raises(FileError, match="no space left"), atomic_file(tmp_path / "model.pt"):
        try:
            raise FULL
        except OSError:
            raise RuntimeError("failed while saving")  # noqa: B904


def test_full_disk_in_the_words_of_safetensors(tmp_path):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(FileError, match="no space left"), atomic_file(tmp_path / "model.safetensors"):
        raise safetensors.SafetensorError(said)


def test_full_disk_in_the_words_of_torch(tmp_path, full_disk):
    with pytest.raises(FileError, match="0 bytes free"), atomic_file(tmp_path / "model.pt"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def test_torch_error_with_room_left_is_itself(tmp_path):
    with pytest.raises(RuntimeError, match="unexpected pos"), atomic_file(tmp_path / "model.pt"):
        raise RuntimeError("unexpected pos 576 vs 534")


@pytest.mark.parametrize("error", [ValueError("a bug"), Refusal(found="13 heads")])
def test_full_disk_hides_no_other_error(tmp_path, full_disk, error):
    with pytest.raises(type(error)), atomic_file(tmp_path / "model.pt"):
        raise error


@pytest.mark.parametrize("opened", [atomic_file, atomic_folder])
def test_too_little_room_is_refused_before_anything_is_written(tmp_path, full_disk, opened):
    room = pytest.raises(FileError, match=r"1\.5 GB needed, 0 bytes free")
    with room, opened(tmp_path / "model", needed=1_500_000_000):
        pytest.fail("the block ran")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_device_is_not_replaced():
    with pytest.raises(FileError, match="not an ordinary file"), atomic_file("/dev/full"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("opened", [atomic_file, atomic_folder])
def test_no_folder_to_write_in(tmp_path, opened):
    with pytest.raises(FileError, match="no folder"), opened(tmp_path / "missing" / "model"):
        pytest.fail("the block ran")


def test_no_permission(tmp_path):
    with pytest.raises(FileError, match="no permission"), atomic_file(tmp_path / "model.pt") as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))


def test_no_permission_elsewhere_is_another_error(tmp_path):
    with pytest.raises(PermissionError), atomic_file(tmp_path / "model.pt"):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/input.pt")


def test_file_where_a_folder_is(tmp_path):
    with pytest.raises(FileError, match="a folder where a file"), atomic_file(tmp_path):
        pytest.fail("the block ran")


def test_folder_where_a_file_is(tmp_path):
    (tmp_path / "model").write_text("old")
    with pytest.raises(FileError, match="a file where a folder"), atomic_folder(tmp_path / "model"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("exists", [False, True])
def test_folder_appears_when_the_block_completes(tmp_path, exists):
    target = tmp_path / "model"
    if exists:
        target.mkdir()
    with atomic_folder(target) as temporary:
        (temporary / "weights").mkdir()
        (temporary / "weights" / "a.bin").write_bytes(b"1")
        assert not (target / "weights").exists()

    assert (target / "weights" / "a.bin").read_bytes() == b"1"
    assert names(tmp_path) == ["model"]


def filled(folder: Path) -> Path:
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


def test_filled_folder_is_refused(tmp_path):
    target = filled(tmp_path / "model")
    with pytest.raises(FileError, match="not empty"), atomic_folder(target):
        pytest.fail("the block ran")

    assert names(target) == ["old"]


def test_filled_folder_is_replaced_when_allowed(tmp_path):
    target = filled(tmp_path / "model")
    with atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        assert names(target) == ["old"]

    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_failure_leaves_the_old_folder_and_nothing_else(tmp_path, failure):
    target = filled(tmp_path / "model")
    with pytest.raises(type(failure)), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("half")
        raise failure

    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_move_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = filled(tmp_path / "model")
    real = os.replace
    moves: list[Path] = []

    def replace(source: Path, destination: Path) -> None:
        moves.append(source)
        if len(moves) == 2:
            raise KeyboardInterrupt
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("new")

    assert len(moves) == 3
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_real_write_without_room(tmp_path):
    full = pytest.raises(FileError, match="no space left")
    with full, atomic_file(tmp_path / "model.pt"), Path("/dev/full").open("wb") as handle:
        torch.save({"weight": torch.zeros(100_000)}, handle)
