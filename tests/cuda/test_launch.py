"""What a launch hands to the CUDA driver, checked with a driver that records it."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import cuda_kernels as kernels

from kernelforge.backends import Argument, DeviceUnavailable, LaunchInfo, Parameter
from kernelforge_cuda.driver import CudaError, Driver, TensorMap
from kernelforge_cuda.launch import CudaExecutable, Marshaller

HERE = Path(__file__).parent
STREAM = 0x57000
TMA = {
    "dtype": 0,
    "rank": 2,
    "buffer": "A",
    "dims": [256, "M"],
    "strides": [1, "(M * 2)"],
    "box": [64, 32],
    "element_strides": [1, 1],
    "interleave": 0,
    "swizzle": 3,
    "l2": 2,
    "oob": 0,
}


def small_info(**changes) -> LaunchInfo:
    fields = {
        "entry": "small",
        "arguments": (Argument("A", "uint8", ("M", 256)), Argument("out", "float32", ("M", 4))),
        "parameters": (
            Parameter("A_desc", "descriptor", "handle"),
            Parameter("out", "tensor", "handle"),
            Parameter("M", "extent", "int32"),
        ),
        "grid": ("4", "(M + 31) // 32"),
        "threads": (128, 1, 1),
        "shared_bytes": 1000,
        "extra": {"tma": {"A_desc": TMA}, "writes": ["out"]},
    }
    return LaunchInfo(**{**fields, **changes})


def tensors(M: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(M, 256, dtype=torch.uint8), torch.zeros(M, 4)


class FakeTensor(torch.Tensor):
    """A CPU tensor that says it lives on GPU 1."""

    def get_device(self) -> int:
        return 1


def on_gpu_1(*values: torch.Tensor) -> list[torch.Tensor]:
    return [value.as_subclass(FakeTensor) for value in values]


# Marshalling: no driver at all.


def test_values_follow_the_order_of_the_compiled_parameters():
    A, out = tensors(70)
    call = Marshaller(small_info()).call((A, out))
    assert call.grid == (4, 3, 1)
    assert call.values == (
        TensorMap(0, A.data_ptr(), (256, 70), (1, 140), (64, 32), (1, 1), 0, 3, 2, 0),
        out.data_ptr(),
        70,
    )


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("experts", [0, 3])
def test_lowered_gemm_marshals(arch, experts):
    info = kernels.lower_gemm(arch, "e4m3_e8m0", experts, N=192, K=416).info
    info = LaunchInfo.from_json(json.loads(json.dumps(info.to_json())))
    assert info.extra["writes"] == ["out"]
    # Scales are read beside the products, so no warps are set apart for copies (``warp_specialization``).
    assert info.threads == (128, 1, 1)
    M, groups = 100, max(experts, 1)
    by_name = {
        "A": torch.zeros(M, 416, dtype=torch.uint8),
        "A_scale": torch.zeros(M, 13, dtype=torch.uint8),
        "W": torch.zeros(groups * 192, 208, dtype=torch.uint8),
        "W_scale": torch.zeros(groups * 192, 13, dtype=torch.uint8),
        "offsets": torch.zeros(groups + 1, dtype=torch.int32),
        "out": torch.zeros(M, 192, dtype=torch.uint16),
    }
    call = Marshaller(info).call([by_name[argument.name] for argument in info.arguments])
    assert call.grid == (2 + experts, 3, 1)  # rows along x, which may be long
    for parameter, value in zip(info.parameters, call.values, strict=True):
        if parameter.kind == "tensor":
            assert value == by_name[parameter.name].data_ptr()
        else:
            assert (parameter.name, value) == ("M", M)


def test_lowered_tensor_maps_marshal():
    info = kernels.lowered_pipelined("none").info
    by_name = {
        "A": torch.zeros(64, 256, dtype=torch.int8),
        "B": torch.zeros(64, 256, dtype=torch.int8),
        "S": torch.zeros(64, 256, dtype=torch.int32),
        "C": torch.zeros(64, 64, dtype=torch.int32),
    }
    call = Marshaller(info).call([by_name[argument.name] for argument in info.arguments])
    maps = {p.name: value for p, value in zip(info.parameters, call.values, strict=True) if p.kind == "descriptor"}
    assert {"A_desc", "B_desc"} <= set(maps)
    for name, value in maps.items():
        tensor = by_name[name.removesuffix("_desc")]
        assert isinstance(value, TensorMap)
        assert value.address == tensor.data_ptr()
        assert value.dims == (tensor.shape[1], tensor.shape[0])
        assert value.strides == (1, tensor.shape[1] * tensor.element_size())


def test_nothing_is_launched_where_nothing_is_written():
    assert Marshaller(small_info()).call(tensors(0)) is None
    # Even when the grid is not empty, as in a grouped GEMM without rows: a tensor map of no rows cannot be made.
    assert Marshaller(small_info(grid=("4", "M + 8"))).call(tensors(0)) is None


def test_wrong_number_of_tensors():
    with pytest.raises(TypeError, match="small takes 2 tensors, given 1"):
        Marshaller(small_info()).call(tensors(4)[:1])


def test_misaligned_tensors_are_moved_and_results_brought_back():
    marshaller = Marshaller(small_info())
    A, out = tensors(8)
    assert marshaller.aligned((A, out)) == ((A, out), ())
    odd = torch.arange(8 * 256 + 1).to(torch.uint8)[1:].view(8, 256)
    (moved, same), copies = marshaller.aligned((odd, out))
    assert same is out
    assert copies == []
    assert moved.data_ptr() % 16 == 0
    assert torch.equal(moved, odd)
    odd_out = torch.zeros(8 * 4 + 1)[1:].view(8, 4)
    (_, moved_out), copies = marshaller.aligned((A, odd_out))
    assert len(copies) == 1
    assert copies[0][0] is odd_out
    assert copies[0][1] is moved_out


def test_strided_tensor_is_named():
    A, _ = tensors(8)
    with pytest.raises(ValueError, match=r"out: given \[8, 4\] with strides \[8, 1\], wanted it contiguous"):
        Marshaller(small_info()).call((A, torch.zeros(8, 8)[:, :4]))


def test_extent_beyond_32_bits_is_refused():
    huge = torch.empty(2**31, 0, dtype=torch.uint8)
    info = small_info(
        arguments=(Argument("A", "uint8", ("M", 0)),),
        parameters=(Parameter("M", "extent", "int32"),),
        grid=("1",),
        extra={"tma": {}, "writes": []},
    )
    with pytest.raises(ValueError, match="extent M is 2147483648; at most 2147483647"):
        Marshaller(info).call((huge,))


def test_more_blocks_than_cuda_launches_are_refused():
    rows = torch.empty(65536 * 32, 0, dtype=torch.uint8)
    info = small_info(arguments=(Argument("A", "uint8", ("M", 0)),), extra={"tma": {"A_desc": TMA}, "writes": []})
    info = replace(info, parameters=info.parameters[2:])
    assert Marshaller(info).call((rows[:-32],)).grid == (4, 65535, 1)
    with pytest.raises(ValueError, match=r"small: needs \(4, 65536, 1\) blocks .* at most 65535 along the second"):
        Marshaller(info).call((rows,))
    assert Marshaller(replace(info, grid=info.grid[::-1])).call((rows,)).grid == (65536, 4, 1)


def test_parameter_that_cuda_does_not_provide_is_refused():
    info = small_info(parameters=(Parameter("kf_block_x", "block", "int32"),))
    with pytest.raises(ValueError, match="no parameter of kind 'block'"):
        Marshaller(info)


# The driver API, through the same ctypes signatures as on a GPU.


class MapCall(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("dims", ctypes.c_uint64 * 5),
        ("strides", ctypes.c_uint64 * 5),
        ("box", ctypes.c_uint32 * 5),
        ("element_strides", ctypes.c_uint32 * 5),
        ("modes", ctypes.c_int32 * 4),
    ]


class LaunchCall(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_uint64),
        ("context", ctypes.c_uint64),
        ("values", ctypes.c_uint64 * 16),
    ]


class Recorder:
    """The recording driver's variables."""

    def __init__(self, path: Path) -> None:
        self.driver = Driver(str(path))
        self._library = ctypes.CDLL(str(path))

    def number(self, name: str) -> int:
        return ctypes.c_int32.in_dll(self._library, name).value

    def set(self, name: str, value: int) -> None:
        ctypes.c_int32.in_dll(self._library, name).value = value

    def text(self, name: str) -> bytes:
        return (ctypes.c_char * 64).in_dll(self._library, name).value

    @property
    def depth(self) -> int:
        return self._library.current_depth()

    @property
    def launch(self) -> LaunchCall:
        return LaunchCall.in_dll(self._library, "last_launch")

    @property
    def map(self) -> MapCall:
        return MapCall.in_dll(self._library, "last_map")


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / "libfakecuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", str(HERE / "fake_driver.c"), "-o", str(library)], check=True)
    return Recorder(library)


def executable(recorder: Recorder, info: LaunchInfo) -> CudaExecutable:
    recorder.set("parameter_count", len(info.parameters))
    return CudaExecutable(b"\x7fELF image", info, recorder.driver, lambda device: STREAM + device)


def test_launch_reaches_the_driver(recorder):
    A, out = tensors(70)
    run = executable(recorder, small_info())
    run(*on_gpu_1(A, out))
    launch = recorder.launch
    assert (list(launch.grid), list(launch.block)) == ([4, 3, 1], [128, 1, 1])
    assert launch.shared_bytes == 1000
    assert recorder.number("dynamic_shared") == 0
    assert launch.stream == STREAM + 1
    assert launch.context == 0xC0000 + 101  # of the tensors' device
    assert launch.function == 0xF0001
    assert recorder.text("last_image") == b"\x7fELF image"
    assert recorder.text("last_entry") == b"small"
    assert launch.values[0] == 0xA0A0A0A0A0A0A0A0  # the encoded map itself, by value
    assert launch.values[1] == out.data_ptr()
    assert launch.values[2] & 0xFFFFFFFF == 70
    assert recorder.depth == 0


def test_tensor_map_reaches_the_driver(recorder):
    A, out = tensors(70)
    executable(recorder, small_info())(*on_gpu_1(A, out))
    encoded = recorder.map
    assert (encoded.dtype, encoded.rank, encoded.address) == (0, 2, A.data_ptr())
    assert list(encoded.dims) == [256, 70, 0, 0, 0]
    assert list(encoded.strides) == [140, 0, 0, 0, 0]  # the innermost stride is implied
    assert list(encoded.box)[:2] == [64, 32]
    assert list(encoded.element_strides)[:2] == [1, 1]
    assert list(encoded.modes) == [0, 3, 2, 0]


def test_tensor_maps_are_encoded_once_per_tensor_and_shape(recorder):
    run = executable(recorder, small_info())
    A, out = tensors(70)
    for _ in range(3):
        run(*on_gpu_1(A, out))
    assert (recorder.number("launches"), recorder.number("encodings"), recorder.number("loads")) == (3, 1, 1)
    run(*on_gpu_1(A[:64], out[:64]))
    assert recorder.number("encodings") == 2
    assert recorder.launch.values[0] == 0xA1A1A1A1A1A1A1A1
    run(*on_gpu_1(A, out))
    assert recorder.number("encodings") == 2
    assert recorder.launch.values[0] == 0xA0A0A0A0A0A0A0A0


def test_large_shared_memory_is_asked_for(recorder):
    executable(recorder, small_info(shared_bytes=100_000))(*on_gpu_1(*tensors(8)))
    assert recorder.number("dynamic_shared") == 100_000
    assert recorder.launch.shared_bytes == 100_000


def test_empty_launch_does_not_touch_the_driver(recorder):
    executable(recorder, small_info())(*on_gpu_1(*tensors(0)))
    assert recorder.number("launches") == recorder.number("loads") == 0


def test_driver_errors_carry_call_and_name_and_leave_the_context(recorder):
    run = executable(recorder, small_info())
    arguments = on_gpu_1(*tensors(8))
    run(*arguments)
    recorder.set("next_error", 201)
    with pytest.raises(CudaError, match="cuLaunchKernel: 201 CUDA_ERROR_INVALID_CONTEXT invalid device context"):
        run(*arguments)
    assert recorder.depth == 0
    recorder.set("next_error", 1)
    with pytest.raises(CudaError, match="cuTensorMapEncodeTiled: 1 CUDA_ERROR_INVALID_VALUE invalid argument"):
        run(*on_gpu_1(*tensors(9)))
    assert recorder.depth == 0
    run(*arguments)
    assert recorder.number("launches") == 3


def test_threads_do_not_share_parameter_memory(recorder):
    """Values of one thread's launch survive another thread's marshalling: each has its own block."""
    run = executable(recorder, small_info())
    run(*on_gpu_1(*tensors(8)))
    mine = ctypes.addressof(run._parameters.values)
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(ctypes.addressof(run._parameters.values)))
    thread.start()
    thread.join()
    assert other
    assert other[0] != mine


def test_missing_driver_says_what_to_install():
    with pytest.raises(DeviceUnavailable, match="install an NVIDIA driver"):
        Driver("libno-such-driver.so.1")
