"""Peak memory of a pretraining step by batch size, with and without `contrastive_chunk_size`.

    python examples/benchmarks/contrastive_memory.py
    python examples/benchmarks/contrastive_memory.py --batches 256 4096 --chunk 64 --audio_config base --device cuda

A point is the forward and backward pass of the objectives of stage `fuse` on random clips of one length, whose words
are drawn from a whole vocabulary, in its own process. It reports the peak above the level just before the step, so
that inputs, weights and gradients do not count; `memory.py` says how it is measured.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from memory import in_mib, in_own_process, peak_above
from random_batches import add_geometry, build_model, describe, draw_batch

from modeling_calm import CalmForPreTraining

sys.path.append(str(Path(__file__).parents[1]))
from pretrain import PretrainingArguments, objectives  # noqa: E402


def main(argv: list[str] | None = None) -> dict:
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    if options.point:
        print(peak_of_a_step(options))
        return {}
    result = {"geometry": describe(options), "device": options.device, "chunk": options.chunk, "points": []}
    print({name: value for name, value in result.items() if name != "points"})
    print(f"\n| batch | chunks of {options.chunk} | beside the first | whole batch |\n|---|---|---|---|")
    for batch in options.batches:
        peak = measure(batch, options.chunk, argv)
        whole = measure(batch, batch, argv) if batch <= options.largest_whole else None
        result["points"].append({"batch": batch, "chunked_bytes": peak, "whole_bytes": whole})
        ratio = peak / result["points"][0]["chunked_bytes"]
        print(f"| {batch} | {in_mib(peak)} | {ratio:.2f} | {in_mib(whole) if whole else ''} |", flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return result


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--chunk", type=int, default=128, help="Clips in a chunk.")
    parser.add_argument("--largest_whole", type=int, default=1024, help="No larger batch is tried without chunks.")
    add_geometry(parser, audio_config="small", text_layers=2, text_width=384, seconds=2.0, words=12)
    parser.add_argument("--transcript", type=float, default=1.0, help="Weight of the transcript's term.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    parser.add_argument("--point", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure(batch: int, chunk: int, argv: list[str]) -> int:
    """`peak_of_a_step` in its own process."""
    return int(in_own_process(__file__, [*argv, "--batches", str(batch), "--chunk", str(chunk), "--point"]))


def peak_of_a_step(options: argparse.Namespace) -> int:
    """Peak memory of a step in bytes, above the level before it."""
    torch.manual_seed(0)
    weights = objectives(PretrainingArguments(stage="fuse", transcript_loss_weight=options.transcript))
    model = build_model(options, contrastive_chunk_size=options.chunk, **weights).to(options.device).train()
    batches = [draw_batch(options, clips) for clips in (8, options.batches[0])]
    small, batch = ({key: value.to(options.device) for key, value in batch.items()} for batch in batches)
    del batches
    step(model, small)  # allocates the gradients, and loads what libraries load lazily
    return peak_above(lambda: step(model, batch), options.device)


def step(model: CalmForPreTraining, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward; the gradients reuse the memory of the last step's."""
    model.zero_grad(set_to_none=False)
    model(**batch).loss.backward()


if __name__ == "__main__":
    main()
