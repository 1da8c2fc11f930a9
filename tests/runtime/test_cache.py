"""The kernel cache under every failure a file system and a neighbour can produce."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest
import slow_build

from kernelforge.runtime import Cache, CacheError, cache


def _builder(content: bytes = b"code"):
    calls = []

    def build(directory: Path) -> None:
        calls.append(directory)
        (directory / "kernel.so").write_bytes(content)
        (directory / "launch.json").write_text("{}")

    return build, calls


def test_an_entry_is_built_once(tmp_path):
    build, calls = _builder()
    first = Cache(tmp_path).entry("k", build)
    assert Cache(tmp_path).entry("k", build) == first == tmp_path / "k"
    assert len(calls) == 1


def _truncate(entry: Path) -> None:
    (entry / "kernel.so").write_bytes(b"co")


def _edit(entry: Path) -> None:
    (entry / "kernel.so").write_bytes(b"edoc")


def _delete(entry: Path) -> None:
    (entry / "kernel.so").unlink()


def _add(entry: Path) -> None:
    (entry / "stray.so").write_bytes(b"")


def _drop_from_manifest(entry: Path) -> None:
    manifest = json.loads((entry / cache.MANIFEST).read_text())
    del manifest["files"]["kernel.so"]
    (entry / cache.MANIFEST).write_text(json.dumps(manifest))


def _garble_manifest(entry: Path) -> None:
    (entry / cache.MANIFEST).write_text('{"files": 3')


def _odd_manifest(entry: Path) -> None:
    (entry / cache.MANIFEST).write_text('["files"]')


def _no_manifest(entry: Path) -> None:
    (entry / cache.MANIFEST).unlink()


@pytest.mark.parametrize(
    "damage",
    [_truncate, _edit, _delete, _add, _drop_from_manifest, _garble_manifest, _odd_manifest, _no_manifest],
    ids=lambda f: f.__name__.strip("_"),
)
def test_a_damaged_entry_is_rebuilt(tmp_path, damage):
    build, calls = _builder()
    entry = Cache(tmp_path).entry("k", build)
    damage(entry)
    assert (Cache(tmp_path).entry("k", build) / "kernel.so").read_bytes() == b"code"
    assert len(calls) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"k", "k.lock"}


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def build(directory: Path) -> None:
        (directory / "half").write_text("")
        raise ValueError("compiler")

    with pytest.raises(ValueError, match="compiler"):
        Cache(tmp_path).entry("k", build)
    assert {path.name for path in tmp_path.iterdir()} == {"k.lock"}


def test_a_file_in_place_of_the_directory_falls_back_with_a_warning(tmp_path):
    (tmp_path / "cache").write_text("not a directory")
    store = Cache(tmp_path / "cache")
    build, calls = _builder()
    with pytest.warns(RuntimeWarning, match="cannot be written.*KERNELFORGE_CACHE"):
        entry = store.entry("k", build)
    assert (entry / "kernel.so").read_bytes() == b"code"
    assert store.entry("k", build) == entry
    assert len(calls) == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_storage_errors_fall_back_to_a_temporary_directory(tmp_path, monkeypatch, code):
    real = cache.tempfile.mkdtemp

    def refuse(suffix: str | None = None, prefix: str | None = None, dir: Path | None = None) -> str:
        if dir is not None and Path(dir) == tmp_path:
            raise OSError(code, os.strerror(code))
        return real(suffix, prefix, dir)

    monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    build, _ = _builder()
    store = Cache(tmp_path)
    with pytest.warns(RuntimeWarning, match="temporary directory"):
        entry = store.entry("k", build)
    assert tmp_path not in entry.parents
    assert (entry / "kernel.so").read_bytes() == b"code"


def test_a_disk_that_fills_up_while_compiling_falls_back(tmp_path, monkeypatch):
    """Compilers say it in their own words, and exit with an error of their own."""
    monkeypatch.setattr(cache, "_free_bytes", lambda directory: 0 if tmp_path in directory.parents else 1 << 40)

    def build(directory: Path) -> None:
        if tmp_path in directory.parents:
            raise RuntimeError("as: kernel.o: write error")
        (directory / "kernel.so").write_bytes(b"code")

    store = Cache(tmp_path)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        entry = store.entry("k", build)
    assert (entry / "kernel.so").read_bytes() == b"code"


def test_a_compiler_error_on_a_disk_with_room_stays_a_compiler_error(tmp_path):
    def build(directory: Path) -> None:
        raise RuntimeError("syntax error")

    with pytest.raises(RuntimeError, match="syntax error"):
        Cache(tmp_path).entry("k", build)


def test_no_place_at_all_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    build, _ = _builder()
    with (
        pytest.warns(RuntimeWarning, match="cannot be written"),
        pytest.raises(CacheError, match="Free some space or set KERNELFORGE_CACHE"),
    ):
        Cache(tmp_path).entry("k", build)


def test_two_processes_build_an_entry_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=slow_build.run, args=(str(tmp_path), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert queue.get(timeout=5)
    assert queue.empty()
    assert (tmp_path / "k" / "kernel.so").read_bytes() == b"code"


def test_a_lock_held_for_too_long_does_not_stop_a_build(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LOCK_TIMEOUT", 0.05)
    build, calls = _builder()
    with cache.filelock.FileLock(tmp_path / "k.lock"), pytest.warns(RuntimeWarning, match="compiling without it"):
        entry = Cache(tmp_path).entry("k", build)
    assert (entry / "kernel.so").exists()
    assert len(calls) == 1


def test_clear_removes_entries_locks_and_remains_but_nothing_else(tmp_path):
    build, _ = _builder()
    Cache(tmp_path).entry("k", build)
    (tmp_path / ".staging-abc").mkdir()
    (tmp_path / "mine.txt").write_text("")
    assert cache.clear(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
