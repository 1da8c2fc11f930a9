"""Virtual CUDA: runs the PTX that nvcc makes on the CPU, bit for bit, without a GPU.

``launch_info`` turns a lowered TileLang artifact into a plain dict, ``compile_ptx`` makes the PTX, ``lint_ptx`` refuses
what exact mode forbids, and ``VirtualKernel`` runs it on NumPy arrays or CPU tensors.
"""

from kernelforge_cuda.virtual.build import compile_ptx
from kernelforge_cuda.virtual.describe import launch_info
from kernelforge_cuda.virtual.launch import Schedule, VirtualKernel
from kernelforge_cuda.virtual.lint import Finding
from kernelforge_cuda.virtual.lint import lint as lint_ptx

__all__ = ["Finding", "Schedule", "VirtualKernel", "compile_ptx", "launch_info", "lint_ptx"]
