"""SpecTran against transformers encoders: speed, cost by length, padding, share of the machine's FLOP/s.

    python examples/benchmarks/encoders.py
    python examples/benchmarks/encoders.py --device cuda --dtype bfloat16 --compile

Forward passes in eval mode with the default attention of transformers (sdpa), batch 4, at 10 s and at 60 s; `peers.py`
says how each is configured. In addition:

- cost by length: the same 600 s of audio as clips of 5, 60 and 600 s, ours only; a ratio to the clips of 60 s;
- padding: 16 clips of 1 to 20 s against 16 of 20 s, in time per real token;
- FLOP/s: those of the matrix products, with sdpa counted as the equivalent products, relative to those of one product
  of 4,096 x 4,096 matrices in the same rounds.
"""

import argparse
from statistics import median

import torch
from peers import BATCH, OURS, encoders_for, prepare, size_of, spectran
from report import line, parse, rate_lines, run
from timing import MATMUL, count_operations, interleave, matrix_product, share_of_peak, spread

GOAL = 3.0


def main(argv: list[str] | None = None) -> dict:
    return run(parse(__doc__, argv), measure)


def measure(options: argparse.Namespace) -> list[dict]:
    return beside_peers(options) + over_lengths(options) + mixed_batch(options) + share_of_flops(options)


def settings(options: argparse.Namespace) -> tuple:
    return options.device, getattr(torch, options.dtype), options.compile


def beside_peers(options: argparse.Namespace) -> list[dict]:
    lines = []
    for seconds in (2, 4) if options.quick else (10, 60):
        builders = encoders_for(seconds)
        forwards = {
            name: prepare(build(seconds, BATCH, size_of(options)), *settings(options))
            for name, build in builders.items()
        }
        taken = interleave(forwards, options.rounds, device=options.device)
        peers = [name for name in builders if name != OURS]
        lines += rate_lines("encoder", f"{BATCH} clips of {seconds} s", taken, BATCH * seconds, peers, GOAL)
    return lines


def over_lengths(options: argparse.Namespace) -> list[dict]:
    total, middle = (12, 6) if options.quick else (600, 60)
    model = spectran(1, 1, size_of(options)).model
    lengths = (total // 120 or 3, middle, total)
    forwards = {}
    for seconds in lengths:
        batch = spectran(seconds, total // seconds, size_of(options))
        forwards[f"{seconds} s"] = prepare(batch._replace(model=model), *settings(options))
    taken = interleave(forwards, options.rounds, device=options.device)
    lines = []
    for seconds in lengths:
        if seconds == middle:
            continue
        costs = [one / other for one, other in zip(taken[f"{seconds} s"], taken[f"{middle} s"], strict=True)]
        lines.append(
            line(
                "encoder", f"cost of {total} s of audio as clips of {seconds} s", f"CALM, clips of {middle} s",
                median(taken[f"{seconds} s"]), median(taken[f"{middle} s"]), "s", median(costs), ("at most", 1.1),
                spread=spread(costs),
            )
        )  # fmt: skip
    return lines


def mixed_batch(options: argparse.Namespace) -> list[dict]:
    clips, longest = (4, 4) if options.quick else (16, 20)
    full = spectran(longest, clips, size_of(options))
    width = full.model.config.patches_per_token
    windows = full.inputs["input_features"].shape[1] // width
    real = torch.linspace(windows / longest, windows, clips).round().long()  # acoustic tokens of clips from 1 s up
    mask = (torch.arange(windows * width) < real[:, None] * width).long()
    mixed = full._replace(inputs=full.inputs | {"input_features_mask": mask})
    taken = interleave(
        {name: prepare(batch, *settings(options)) for name, batch in {"full": full, "mixed": mixed}.items()},
        options.rounds, device=options.device,
    )  # fmt: skip
    share = real.sum().item() / (clips * windows)
    costs = [one / other / share for one, other in zip(taken["mixed"], taken["full"], strict=True)]
    return [
        line(
            "encoder", f"time for each real token, {clips} clips of 1 to {longest} s", f"CALM, {clips} x {longest} s",
            median(taken["mixed"]), median(taken["full"]), "s", median(costs), ("at most", 1.1),
            real_tokens=share, spread=spread(costs),
        )
    ]  # fmt: skip


def share_of_flops(options: argparse.Namespace) -> list[dict]:
    device, dtype, _ = settings(options)
    clips, seconds = (2, 2) if options.quick else (16, 10)
    encoder = spectran(seconds, clips, size_of(options))
    encoder.model.set_attn_implementation("eager")
    operations = count_operations(prepare(encoder, device, dtype))
    encoder.model.set_attn_implementation("sdpa")
    product, matmul_operations = matrix_product(device, dtype, 256 if options.quick else 4096)
    taken = interleave({OURS: prepare(encoder, *settings(options)), MATMUL: product}, options.rounds, device=device)
    share, rates = share_of_peak(taken, OURS, operations, matmul_operations)
    return [
        line(
            "encoder", f"share of FLOP/s, {clips} clips of {seconds} s", f"a {MATMUL}", median(rates) / 1e9,
            median(matmul_operations / one for one in taken[MATMUL]) / 1e9, "GFLOP/s", share,
            ("at least", 0.5 if device.startswith("cuda") else 0.6), operations=operations, rounds=options.rounds,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    main()
