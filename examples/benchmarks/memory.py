"""Peak memory of a piece of work above the level before it; for a fair comparison, each in its own process.

On a GPU it is the peak of torch's allocator. On a CPU it is that of the resident set: every block of more than 64 KiB
is returned when it is freed, memory left over from imports cannot hide anything, and autograd's own bookkeeping counts
too. Linux only.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).parents[2]


def in_own_process(script: str, argv: list[str], threads: int = 1) -> str:
    """The last line that a script of this repository prints, run by a fresh interpreter."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, script, *argv], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def peak_above(work: Callable[[], object], device: str = "cpu") -> int:
    """Peak memory of `work` in bytes, above the level before it; run similar work first, which loads libraries."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # returns heap memory that the work could reuse unnoticed
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak, to VmRSS: proc(5)
    work()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def in_mib(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"
