"""Peak memory of SpecTran and of transformers encoders, and how SpecTran's grows with the length.

    python examples/benchmarks/encoder_memory.py

A forward pass in eval mode, batch 4, at 10 s and at 60 s; then one clip of 60 s and one of 600 s, which show whether
memory is linear in the length. Measured is the peak above the level before the pass, so that weights and inputs do not
count, each in its own process after a pass over a quarter of the batch: see `memory.py`.
"""

import argparse
import sys

import torch
from memory import in_own_process, peak_above
from peers import BATCH, ENCODERS, OURS, encoders_for, prepare, size_of
from report import line, parse, run


def main(argv: list[str] | None = None) -> dict:
    return run(parse(__doc__, argv), measure)


def measure(options: argparse.Namespace) -> list[dict]:
    lines = []
    for seconds in (2, 4) if options.quick else (10, 60):
        peaks = {name: in_process(name, seconds, BATCH, options) for name in encoders_for(seconds)}
        ours = peaks.pop(OURS)
        least = min(peaks, key=peaks.get)
        for name, theirs in peaks.items():
            lines.append(
                line(
                    "memory", f"peak, {BATCH} clips of {seconds} s", name, ours / 2**20, theirs / 2**20, "MiB",
                    theirs / ours, ("at least", 1.0) if name == least else None,
                )
            )  # fmt: skip
    short, long = (2, 8) if options.quick else (60, 600)
    few, many = (in_process(OURS, seconds, 1, options) for seconds in (short, long))
    growth = many / few / (long / short)
    case = f"peak of a clip of {long} s, for each second"
    return [
        *lines,
        line("memory", case, f"CALM, {short} s", many / 2**20, few / 2**20, "MiB", growth, ("at most", 1.1)),
    ]


def in_process(name: str, seconds: int, batch: int, options: argparse.Namespace) -> int:
    """[`peak_of_forward`] in its own process."""
    point = [name, str(seconds), str(batch), "--device", options.device, "--dtype", options.dtype]
    return int(in_own_process(__file__, ["point", *point, *["--quick"] * options.quick], options.threads))


def peak_of_forward(name: str, seconds: int, batch: int, options: argparse.Namespace) -> int:
    """Peak memory of a forward pass in bytes, above the level before it."""
    torch.manual_seed(0)
    encoder = ENCODERS[name](seconds, batch, size_of(options))
    few = {name: value[: max(1, len(value) // BATCH)] for name, value in encoder.inputs.items()}
    dtype = getattr(torch, options.dtype)
    prepare(encoder._replace(inputs=few), options.device, dtype)()
    return peak_above(prepare(encoder, options.device, dtype), options.device)


if __name__ == "__main__":
    if sys.argv[1:2] == ["point"]:
        print(peak_of_forward(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), parse("", sys.argv[5:])))
    else:
        main()
