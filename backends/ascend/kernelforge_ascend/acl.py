"""CANN's runtime, libascendcl, by ctypes: loading a binary and launching a kernel of it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

from kernelforge.backends import DeviceUnavailable

from .marshal import Memory

DYNAMIC_UB = 2
"""Launch attribute: bytes of UB that the kernel addresses dynamically."""


class _AttributeValue(ctypes.Union):
    _fields_ = [("dynamic_ub_bytes", ctypes.c_uint32), ("reserved", ctypes.c_uint32 * 4)]


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("value", _AttributeValue)]


class _Configuration(ctypes.Structure):
    _fields_ = [("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_size_t)]


class AclError(RuntimeError):
    """A call of CANN's runtime failed."""


def pack(values: Sequence[Memory | int], dtypes: Sequence[str]) -> bytes:
    """Kernel arguments in host memory: pointers of 8 bytes, integers of 4 or 8, each at a multiple of its size."""
    packed = bytearray()
    for value, dtype in zip(values, dtypes, strict=True):
        number, size = (value.address, 8) if isinstance(value, Memory) else (value, 8 if "64" in dtype else 4)
        packed += bytes(-len(packed) % size)
        packed += number.to_bytes(size, "little", signed=number < 0)
    return bytes(packed + bytes(-len(packed) % 8))


class Runtime:
    """The calls that a launch needs.

    Args:
        library: path or name of libascendcl.

    Raises:
        DeviceUnavailable: the library cannot be loaded.
    """

    def __init__(self, library: str | Path = "libascendcl.so") -> None:
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise DeviceUnavailable(f"CANN's runtime cannot be loaded ({error}); source CANN's set_env.sh") from error

    def load(self, image: bytes) -> int:
        """Put a binary on the current device; returns its handle."""
        binary = ctypes.c_void_p()
        self._call("aclrtBinaryLoadFromData", image, ctypes.c_size_t(len(image)), None, ctypes.byref(binary))
        return int(binary.value or 0)

    def function(self, binary: int, name: str) -> int:
        """A kernel of a loaded binary."""
        found = ctypes.c_void_p()
        self._call("aclrtBinaryGetFunction", ctypes.c_void_p(binary), name.encode(), ctypes.byref(found))
        return int(found.value or 0)

    def launch(self, function: int, blocks: int, stream: int, arguments: bytes, dynamic_ub_bytes: int = 0) -> None:
        """Enqueue a kernel; the arguments are copied before this returns."""
        attribute = _Attribute(DYNAMIC_UB, _AttributeValue(dynamic_ub_bytes))
        configuration = _Configuration(ctypes.pointer(attribute), 1)
        self._call(
            "aclrtLaunchKernelWithHostArgs",
            ctypes.c_void_p(function),
            ctypes.c_uint32(blocks),
            ctypes.c_void_p(stream),
            ctypes.byref(configuration) if dynamic_ub_bytes else None,
            arguments,
            ctypes.c_size_t(len(arguments)),
            None,
            ctypes.c_size_t(0),
        )

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            raise AclError(f"{name} failed with ACL error {result}: {self._last_message()}")

    def _last_message(self) -> str:
        try:
            report = self._library.aclGetRecentErrMsg
        except AttributeError:
            return "this CANN gives no further message"
        report.restype = ctypes.c_char_p
        return (report() or b"no further message").decode(errors="replace")


@functools.cache
def system_runtime() -> Runtime:
    """The installed libascendcl."""
    return Runtime()
