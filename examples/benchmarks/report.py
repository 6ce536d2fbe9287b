"""Shared by the scripts of `make bench`: their options, a line of the table, the table, the JSON."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from timing import Seconds, ratio, spread, threads

COLUMNS = ("subject", "case", "peer", "ours", "peer's", "ratio", "goal", "met")


def parse(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="In each of which every candidate runs once.")
    parser.add_argument("--threads", type=int, default=2, help="Of a CPU, for all candidates.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="Compile the models, ours and the peers'.")
    parser.add_argument("--profile", action="store_true", help="Print where the time of our training steps goes.")
    parser.add_argument("--quick", action="store_true", help="Toy sizes: shows that it runs, and no figure counts.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    options = parser.parse_args(argv)
    if options.rounds < 5 and not options.quick:
        print(f"{options.rounds} rounds: a trial. A figure is a median of at least 5.")
    return options


def line(
    subject: str,
    case: str,
    peer: str,
    ours: float,
    theirs: float | None,
    unit: str,
    value: float | None = None,
    goal: tuple[str, float] | None = None,
    **details,
) -> dict:
    """One measurement.

    Args:
        ours, theirs: in `unit`.
        value: what the goal applies to; a ratio unless the case says otherwise.
        goal: `("at least", 3.0)` or `("at most", 1.1)`; None if the measurement is only for information.
        details: whatever else a reader of the JSON needs.
    """
    met = None
    if goal is not None:
        met = value >= goal[1] if goal[0] == "at least" else value <= goal[1]
    return {
        "subject": subject, "case": case, "peer": peer, "ours": ours, "theirs": theirs, "unit": unit, "ratio": value,
        "goal": goal and {"sense": goal[0], "value": goal[1]}, "met": met, **details,
    }  # fmt: skip


def rate_lines(
    subject: str, case: str, seconds: Seconds, audio: float, peers: list[str], goal: float | None
) -> list[dict]:
    """SpecTran or CALM against each peer, in seconds of audio per second; the goal applies to the fastest peer.

    Args:
        seconds: of `"CALM"` and each of `peers`, from [`interleave`].
        audio: audio that each of them was given, without padding, in seconds.
    """
    found = []
    fastest = min(peers, key=lambda name: ratio(seconds, "CALM", name))
    for peer in peers:
        rates = {name: spread([audio / taken for taken in seconds[name]]) for name in ("CALM", peer)}
        found.append(
            line(
                subject, case, peer, rates["CALM"]["median"], rates[peer]["median"], "s of audio / s",
                ratio(seconds, "CALM", peer), ("at least", goal) if goal and peer == fastest else None,
                spread={"ours": rates["CALM"], "theirs": rates[peer]}, rounds=len(seconds[peer]),
                fastest=peer == fastest,
            )
        )  # fmt: skip
    return found


def table(lines: list[dict]) -> str:
    """The measurements as a Markdown table."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for entry in lines:
        goal = f"{entry['goal']['sense']} {entry['goal']['value']:g}" if entry["goal"] else ""
        rows.append(
            (
                entry["subject"], entry["case"], entry["peer"], f"{in_words(entry['ours'])} {entry['unit']}",
                in_words(entry["theirs"]), in_words(entry["ratio"]), goal,
                {True: "met", False: "missed", None: ""}[entry["met"]],
            )
        )  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def in_words(value: float | None) -> str:
    return "" if value is None else f"{float(f'{value:.3g}'):,.10g}"


def environment(options: argparse.Namespace) -> dict:
    """What the measurements are valid for."""
    cuda = options.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "dtype": options.dtype, "compiled": options.compile, "threads": options.threads, "rounds": options.rounds,
        "quick": options.quick, "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def cpu_name() -> str:
    """The name that Linux reports; else "CPU"."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), "CPU")


def run(options: argparse.Namespace, *subjects: Callable[[argparse.Namespace], list[dict]]) -> dict:
    """Measure, write the JSON after every subject, print the table."""
    torch.manual_seed(0)
    result = {"environment": environment(options), "figures": []}
    print(result["environment"], flush=True)
    with threads(options.threads):
        for subject in subjects:
            result["figures"] += subject(options)
            if options.quick:  # meaningless for toy sizes
                result["figures"] = [entry | {"met": None} for entry in result["figures"]]
            if options.output is not None:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    print(f"\n{table(result['figures'])}", flush=True)
    return result
