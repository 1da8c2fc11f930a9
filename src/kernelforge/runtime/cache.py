"""Disk cache of compiled kernels: keyed by content, published atomically, verified on every load."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

MANIFEST = "manifest.json"
LOCK_TIMEOUT = 900.0
"""Seconds to wait for another process that compiles the same kernel."""

FULL = 1 << 20
"""A file system with fewer free bytes counts as full when a build fails on it."""


class CacheError(RuntimeError):
    """Neither the cache nor a temporary directory can hold a compiled kernel."""


def default_root() -> Path:
    """``$KERNELFORGE_CACHE``, else the user's cache directory."""
    override = os.environ.get("KERNELFORGE_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("kernelforge", appauthor=False))


class Cache:
    """Directories of compiled files, one per key.

    An entry is built in a private directory and renamed into place, so a reader sees all of it or nothing. Its manifest
    holds a SHA-256 per file; an entry that does not match, file by file, is rebuilt. Entries are data and shared
    libraries, nothing is unpickled.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._turn = threading.Lock()

    @property
    def root(self) -> Path:
        """Where entries live: the configured directory, or a private one when that cannot be written."""
        if self._private is not None:
            return Path(self._private.name)
        return self._root if self._root is not None else default_root()

    def entry(self, key: str, build: Callable[[Path], None]) -> Path:
        """The directory for ``key``, built by ``build(directory)`` when it is missing or corrupt.

        Raises:
            CacheError: nothing can be written anywhere.
            Exception: whatever ``build`` raises; nothing is left behind then.
        """
        if _is_intact(self.root / key):
            return self.root / key
        try:
            return self._locked_build(key, build)
        except OSError as error:
            if error.errno not in _STORAGE_ERRORS:
                raise CacheError(f"cannot store a compiled kernel in {self.root}: {error}") from error
            return self._build_privately(key, build, error)

    def _locked_build(self, key: str, build: Callable[[Path], None]) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        with _lock(self.root / f"{key}.lock"):
            target = self.root / key
            if not _is_intact(target):
                _build(target, build)
            return target

    def _build_privately(self, key: str, build: Callable[[Path], None], error: OSError) -> Path:
        try:
            with self._turn:
                if self._private is None:
                    warnings.warn(
                        f"kernel cache {self.root} cannot be written ({error.strerror}); compiling into a temporary "
                        "directory. Set KERNELFORGE_CACHE to a writable directory to keep compiled kernels.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    self._private = tempfile.TemporaryDirectory(prefix="kernelforge-")
            return self._locked_build(key, build)
        except OSError as second:
            raise CacheError(
                f"cannot store a compiled kernel: {error}; the temporary directory fails too: {second}. "
                "Free some space or set KERNELFORGE_CACHE to a writable directory."
            ) from second


shared = Cache()
"""The process's cache."""

_STORAGE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path, timeout=LOCK_TIMEOUT)
    try:
        lock.acquire()
    except filelock.Timeout:
        # Publication is atomic: at worst two processes compile the same kernel.
        warnings.warn(f"waited {LOCK_TIMEOUT:.0f} s for {path}; compiling without it", RuntimeWarning, stacklevel=3)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _build(target: Path, build: Callable[[Path], None]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=target.parent))
    try:
        _run(build, staging)
        files = {path.name: _sha256(path) for path in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
        if target.exists():  # corrupt: take it out of the way before publishing
            doomed = Path(tempfile.mkdtemp(prefix=".corrupt-", dir=target.parent))
            os.replace(target, doomed / "entry")
            shutil.rmtree(doomed, ignore_errors=True)
        try:
            os.rename(staging, target)
        except OSError:  # whoever compiled it without the lock was faster
            if not _is_intact(target):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _run(build: Callable[[Path], None], staging: Path) -> None:
    """Run ``build``; a compiler that failed for want of space is a full disk, whatever it said."""
    try:
        build(staging)
    except OSError:
        raise
    except Exception as error:
        if _free_bytes(staging) < FULL:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} while compiling", str(staging)) from error
        raise


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def _is_intact(directory: Path) -> bool:
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        if not files or {path.name for path in directory.iterdir()} != {MANIFEST, *files}:
            return False
        return all(_sha256(directory / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A compiled kernel on disk; ``modified`` is a time stamp in seconds."""

    name: str
    nbytes: int
    modified: float


@dataclass(frozen=True)
class State:
    """The cache as ``kernelforge doctor`` shows it; ``problem`` says why it cannot be written."""

    root: Path
    entries: int
    nbytes: int
    problem: str | None


def entries(root: Path | None = None) -> list[Entry]:
    """Published entries below ``root`` (by default the cache directory)."""
    root = default_root() if root is None else root
    found = []
    for manifest in sorted(root.glob(f"*/{MANIFEST}")) if root.is_dir() else []:
        if not manifest.parent.name.startswith("."):
            nbytes = sum(path.stat().st_size for path in manifest.parent.iterdir())
            found.append(Entry(manifest.parent.name, nbytes, manifest.stat().st_mtime))
    return found


def state(root: Path | None = None) -> State:
    """Size of the cache, and whether it can be written, which is tried."""
    root = default_root() if root is None else root
    problem = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, prefix=".probe-"):
            pass
    except OSError as error:
        problem = error.strerror or str(error)
    found = entries(root)
    return State(root, len(found), sum(entry.nbytes for entry in found), problem)


def clear(root: Path | None = None) -> int:
    """Remove every entry; return how many. Processes that have loaded a kernel keep it."""
    root = default_root() if root is None else root
    found = entries(root)
    if root.is_dir():
        for path in root.iterdir():
            if path.name in {entry.name for entry in found} or path.name.startswith((".staging-", ".corrupt-")):
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".lock":
                path.unlink(missing_ok=True)
    return len(found)


def digest_of_files(roots: list[Path]) -> str:
    """SHA-256 over the names and contents of source files below ``roots``."""
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.suffix in _SOURCES and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root.parent)}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


_SOURCES = {".py", ".h", ".hpp", ".cpp", ".json"}
