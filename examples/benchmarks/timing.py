"""Interleaved timing of candidates that do the same work in one run: other load on the machine affects all alike.

A round runs every candidate once, A B C A B C ..., and ratios are computed within a round, before the median over
rounds. A noisy minute affects numerator and denominator alike; the medians of two runs would not share it.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

Seconds = dict[str, list[float]]  # by candidate, one per round
MATMUL = "matrix product"


def interleave(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 7, warmups: int = 1, device: str = "cpu"
) -> Seconds:
    """Time every candidate once per round, in the order given, after `warmups` rounds that do not count.

    Raises:
        ValueError: if there is nothing to time.
    """
    if not candidates or rounds < 1:
        raise ValueError(f"There is nothing to time: {len(candidates)} candidates, {rounds} rounds.")
    seconds = {name: [] for name in candidates}
    for number in range(-warmups, rounds):
        for name, candidate in candidates.items():
            synchronize(device)
            start = time.perf_counter()
            candidate()
            synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: str) -> None:
    """Wait for pending GPU work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ratio(seconds: Seconds, ours: str, peer: str) -> float:
    """How many times as long the peer takes: the median over rounds of peer / ours within a round."""
    return median(theirs / own for theirs, own in zip(seconds[peer], seconds[ours], strict=True))


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def matrix_product(
    device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 4096
) -> tuple[Callable, float]:
    """A product of two (size, size) matrices and its operations, to measure the speed that the machine can reach."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right, 2.0 * size**3


def count_operations(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products; a multiply-add counts as two.

    torch counts attention kernels on GPUs only: use `eager` attention, which does the same work in plain matrix
    products.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def share_of_peak(
    seconds: Seconds, ours: str, operations: float, matmul_operations: float
) -> tuple[float, list[float]]:
    """The candidate's FLOP/s as a share of those of `MATMUL`, median of rounds; and its FLOP/s in every round."""
    rates = [operations / taken for taken in seconds[ours]]
    peaks = [matmul_operations / taken for taken in seconds[MATMUL]]
    return median(rate / peak for rate, peak in zip(rates, peaks, strict=True)), rates


@contextmanager
def threads(number: int):
    """Let torch compute on `number` threads, and restore the previous number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
