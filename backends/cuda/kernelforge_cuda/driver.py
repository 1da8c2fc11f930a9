"""The part of the CUDA driver API that a launch needs, through ctypes: running a compiled kernel needs no toolkit."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kernelforge.backends import DeviceUnavailable

TENSOR_MAP_BYTES = 128
_TENSOR_MAP_ALIGNMENT = 64
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_WITHOUT_OPT_IN = 48 * 1024
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_handle, _int, _uint = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [_uint],
    "cuDeviceGet": [ctypes.POINTER(_int), _int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(_handle), _int],
    "cuCtxPushCurrent_v2": [_handle],
    "cuCtxPopCurrent_v2": [ctypes.POINTER(_handle)],
    "cuModuleLoadData": [ctypes.POINTER(_handle), ctypes.c_char_p],
    "cuModuleGetFunction": [ctypes.POINTER(_handle), _handle, ctypes.c_char_p],
    "cuFuncSetAttribute": [_handle, _int, _int],
    "cuLaunchKernel": [_handle, *[_uint] * 7, _handle, ctypes.POINTER(_handle), ctypes.POINTER(_handle)],
    "cuTensorMapEncodeTiled": [
        _handle,  # map
        _int,  # element type
        _uint,  # rank
        _handle,  # global address
        ctypes.POINTER(ctypes.c_uint64),  # extents
        ctypes.POINTER(ctypes.c_uint64),  # strides in bytes, without the innermost
        ctypes.POINTER(ctypes.c_uint32),  # box
        ctypes.POINTER(ctypes.c_uint32),  # element strides
        *[_int] * 4,  # interleave, swizzle, L2 promotion, out-of-bounds fill
    ],
    "cuGetErrorName": [_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuGetErrorString": [_int, ctypes.POINTER(ctypes.c_char_p)],
}


class CudaError(RuntimeError):
    """The driver refused a call."""


@dataclass(frozen=True)
class TensorMap:
    """Arguments of ``cuTensorMapEncodeTiled``; innermost dimension first, numbers as in cuda.h."""

    dtype: int
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    interleave: int
    swizzle: int
    l2: int
    oob: int


class Driver:
    """Typed calls into one driver library.

    Args:
        library: its path; the system's own by default.

    Raises:
        DeviceUnavailable: there is no driver, or it is too old.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
            for name, arguments in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = arguments, ctypes.c_int
        except (OSError, AttributeError) as error:
            raise DeviceUnavailable(
                f"the CUDA driver {library} cannot be used: {error}; install an NVIDIA driver"
            ) from error
        self._launch = self._library.cuLaunchKernel
        self._contexts: dict[int, int] = {}
        self._call("cuInit", 0)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise CudaError(f"{name}: {self._describe(code)}")

    def _describe(self, code: int) -> str:
        text = ctypes.c_char_p()
        parts = [str(code)]
        for function in (self._library.cuGetErrorName, self._library.cuGetErrorString):
            if function(code, ctypes.byref(text)) == 0 and text.value:
                parts.append(text.value.decode(errors="replace"))
        return " ".join(parts)

    @contextmanager
    def on_device(self, index: int) -> Iterator[None]:
        """Make the primary context of device ``index``, the one PyTorch uses, current on this thread."""
        context = self._contexts.get(index)
        if context is None:
            device, handle = ctypes.c_int(), _handle()
            self._call("cuDeviceGet", ctypes.byref(device), index)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(handle), device)
            assert handle.value is not None
            context = self._contexts[index] = handle.value
        self._call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(_handle()))

    def load(self, image: bytes, entry: str, shared_bytes: int) -> int:
        """Load the kernel ``entry`` of a cubin into the current context; it may use ``shared_bytes`` dynamic bytes."""
        module, function = _handle(), _handle()
        self._call("cuModuleLoadData", ctypes.byref(module), image)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, entry.encode())
        if shared_bytes > _SHARED_WITHOUT_OPT_IN:
            self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        assert function.value is not None
        return function.value

    def launch(
        self,
        function: int,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        stream: int,
        parameters: ctypes.Array[ctypes.c_void_p],
    ) -> None:
        """Enqueue a kernel; ``parameters`` are the addresses of its parameters, which are copied by the call."""
        code = self._launch(function, *grid, *block, shared_bytes, stream, parameters, None)
        if code != 0:
            raise CudaError(f"cuLaunchKernel: {self._describe(code)}")

    def encode(self, tensor_map: TensorMap) -> EncodedTensorMap:
        """The opaque 128 bytes that a kernel takes for a tensor map."""
        encoded = EncodedTensorMap()
        rank = len(tensor_map.dims)
        self._call(
            "cuTensorMapEncodeTiled",
            encoded.address,
            tensor_map.dtype,
            rank,
            tensor_map.address,
            (ctypes.c_uint64 * rank)(*tensor_map.dims),
            (ctypes.c_uint64 * max(rank - 1, 1))(*tensor_map.strides[1:]),
            (ctypes.c_uint32 * rank)(*tensor_map.box),
            (ctypes.c_uint32 * rank)(*tensor_map.element_strides),
            tensor_map.interleave,
            tensor_map.swizzle,
            tensor_map.l2,
            tensor_map.oob,
        )
        return encoded


class EncodedTensorMap:
    """Memory for a ``CUtensorMap``, aligned as the driver wants it."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(TENSOR_MAP_BYTES + _TENSOR_MAP_ALIGNMENT)
        start = ctypes.addressof(self._memory)
        self.address = -(-start // _TENSOR_MAP_ALIGNMENT) * _TENSOR_MAP_ALIGNMENT


@functools.cache
def system_driver() -> Driver:
    """The machine's driver."""
    return Driver()
