"""Small AscendC programs for the tests of single calls."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernelforge_ascend.virtual import Schedule, build, launch

HEADER = "#include <tl_templates/ascend/common.h>\n#include <tl_templates/ascend/gemm.h>\n"
L2 = "static_cast<asc_load_l2_cache_mode>(0)"


def mixed(parameters: str, cube: str, vector: str, functions: str = "") -> str:
    """A kernel with code for the cube core and for each vector core (``sid``)."""
    return f"""{HEADER}{functions}
extern "C" __global__ __mix__(1, 2) void main_kernel({parameters}) {{
  asc_init();
  __ubuf__ uint8_t *ub = (__ubuf__ uint8_t *)0;
  __cbuf__ uint8_t *l1 = (__cbuf__ uint8_t *)0;
  __cc__ int32_t *l0c = (__cc__ int32_t *)0;
  if ASC_IS_AIC {{
{cube}
  }}
  if ASC_IS_AIV {{
    int32_t sid = asc_get_sub_block_id();
{vector}
  }}
}}
"""


def vector(parameters: str, body: str, functions: str = "") -> str:
    """A kernel of one vector core per block."""
    return f"""{HEADER}{functions}
extern "C" __global__ __vector__ void main_kernel({parameters}) {{
  asc_init();
  __ubuf__ uint8_t *ub = (__ubuf__ uint8_t *)0;
{body}
}}
"""


def then(source: str, target: str, event: int = 0) -> str:
    """``target`` waits for what ``source`` has been given so far."""
    return (
        f"    asc_sync_notify(PIPE_{source}, PIPE_{target}, static_cast<event_t>({event}));\n"
        f"    asc_sync_wait(PIPE_{source}, PIPE_{target}, static_cast<event_t>({event}));\n"
    )


def load(name: str, nbytes: int, at: int = 0) -> str:
    """Bytes of an argument to UB."""
    return (
        f"    asc_copy_gm2ub_align((__ubuf__ uint8_t*)(ub + {at}), (__gm__ uint8_t*)({name}), 1, {nbytes}, 0, 0, 0, "
        f"{L2}, {nbytes}, {nbytes});\n"
    )


def store(name: str, nbytes: int, at: int = 0) -> str:
    """Bytes of UB to an argument."""
    return (
        f"    asc_copy_ub2gm_align((__gm__ uint8_t*)({name}), (__ubuf__ uint8_t*)(ub + {at}), 1, {nbytes}, "
        f"static_cast<asc_store_l2_cache_mode>(0), {nbytes}, {nbytes});\n"
    )


@functools.cache
def _workplace() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kernelforge-virtual-test-")


@functools.cache
def library(source: str, checked: bool = True) -> Path:
    return build(source, Path(tempfile.mkdtemp(dir=_workplace().name)), checked=checked)


CHECKED = (
    Schedule("late", check=True),
    Schedule("early", check=True),
    *(Schedule("random", seed, check=True) for seed in range(3)),
)


def run(
    source: str,
    arguments: Sequence[np.ndarray],
    grid: int = 1,
    schedules: Sequence[Schedule] = CHECKED,
    rounded: bool = False,
) -> None:
    """Execute under every schedule, with the checkers."""
    for schedule in schedules:
        launch(library(source, schedule.check), arguments, grid, schedule, rounded=rounded)
