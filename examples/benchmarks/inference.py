"""What a user waits for: an hour of audio in one call, imports, the first embedding.

    python examples/benchmarks/inference.py

- An hour in one call of `get_audio_features` (small SpecTran, MiniLM's sizes, features given), against one minute:
  time and peak memory above the level before, per second of audio.
- Imports, in fresh interpreters in turn: `import modeling_calm`, which itself needs torch and transformers and
  registers with the Auto classes, against `import torch, transformers`, which loads next to nothing of transformers,
  since its imports are lazy; and against the same with `AutoModel` and `PreTrainedModel`, without which no
  transformers model can be used or defined. The second shows what CALM adds; the goal applies to both.
- From the start of a fresh interpreter to the embedding of a clip of 10 s, from a folder with weights and processor:
  CALM with base SpecTran and a base-size BERT against `ClapModel` at its published size, both with random weights.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from statistics import median

import torch
import yaml
from memory import ROOT, in_own_process, peak_above
from peers import BASE, TOY
from random_batches import CONFIGS
from report import line, parse, run
from timing import interleave, ratio, spread
from transformers import (
    BertConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
)

from modeling_calm import CalmConfig, CalmModel
from processing import CalmFeatureExtractor

HOUR, MINUTE = 3600, 60  # s
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SMALL = yaml.safe_load((CONFIGS / "small.yaml").read_text())
IMPORTS = {
    "modeling_calm": "import modeling_calm",
    "torch, transformers": "import torch, transformers",
    "torch, transformers with AutoModel, PreTrainedModel": "import torch\n"
    "from transformers import AutoModel, PreTrainedModel",
}
FIRST_EMBEDDING = """
import sys, numpy
clip = numpy.random.default_rng(0).normal(scale=0.1, size=160000).astype("float32")
"""
CALM = (
    FIRST_EMBEDDING
    + """
from modeling_calm import CalmModel
from processing import CalmFeatureExtractor
extractor, model = (kind.from_pretrained(sys.argv[1]) for kind in (CalmFeatureExtractor, CalmModel))
model.get_audio_features(**extractor(clip, sampling_rate=16000, return_tensors="pt")).pooler_output.tolist()
"""
)
CLAP = (
    FIRST_EMBEDDING
    + """
from transformers import ClapFeatureExtractor, ClapModel
extractor, model = (kind.from_pretrained(sys.argv[1]) for kind in (ClapFeatureExtractor, ClapModel))
model.get_audio_features(**extractor(clip, sampling_rate=16000, return_tensors="pt")).pooler_output.tolist()
"""
)


def main(argv: list[str] | None = None) -> dict:
    return run(parse(__doc__, argv), measure)


def measure(options: argparse.Namespace) -> list[dict]:
    return hour(options) + imports(options) + first_embedding(options)


def small_model() -> CalmModel:
    return CalmModel(CalmConfig(audio_config=SMALL, text_config=BertConfig(**MINILM))).eval()


def patches(model: CalmModel, seconds: float) -> torch.Tensor:
    """Random patches, (1, P, D)."""
    config = model.config.audio_config
    tokens = round(seconds / config.seconds_per_token)
    return torch.randn(1, tokens * config.patches_per_token, config.patch_dim)


def hour(options: argparse.Namespace) -> list[dict]:
    long, short = (24, 6) if options.quick else (HOUR, MINUTE)
    model = small_model().to(options.device, getattr(torch, options.dtype))
    given = {seconds: patches(model, seconds).to(options.device, model.dtype) for seconds in (long, short)}

    def embed(seconds: int):
        with torch.no_grad():
            return model.get_audio_features(given[seconds]).pooler_output

    calls = {str(seconds): lambda seconds=seconds: embed(seconds) for seconds in given}
    taken = interleave(calls, options.rounds, device=options.device)
    cost = ratio(taken, str(short), str(long)) / (long / short)
    memory = {seconds: peak_in_process(seconds, options) for seconds in given}
    times = {seconds: median(taken[str(seconds)]) for seconds in given}
    case = f"{long} s in one call, "
    return [
        line("inference", case + "time for each second", f"CALM, {short} s", times[long], times[short], "s", cost),
        line(
            "inference", case + "peak memory for each second", f"CALM, {short} s", memory[long] / 2**20,
            memory[short] / 2**20, "MiB", memory[long] / memory[short] / (long / short),
        ),
    ]  # fmt: skip


def peak_in_process(seconds: int, options: argparse.Namespace) -> int:
    """[`peak_of_call`] in its own process."""
    return int(in_own_process(__file__, ["point", str(seconds), options.device, options.dtype], options.threads))


def peak_of_call(seconds: int, device: str, dtype: str) -> int:
    """Peak memory of one call of `get_audio_features` in bytes, above the level before it."""
    model = small_model().to(device, getattr(torch, dtype))
    first, given = (patches(model, length).to(device, model.dtype) for length in (1, seconds))
    with torch.no_grad():
        model.get_audio_features(first)
        return peak_above(lambda: model.get_audio_features(given), device)


def fresh(code: str, *argv: str) -> None:
    """Run Python code in a fresh interpreter that finds this repository's packages."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run([sys.executable, "-c", code, *argv], env=os.environ | {"PYTHONPATH": path}, check=True)


def imports(options: argparse.Namespace) -> list[dict]:
    taken = interleave({name: lambda code=code: fresh(code) for name, code in IMPORTS.items()}, options.rounds)
    ours, *peers = IMPORTS
    return [
        line(
            "inference", "imports in a fresh interpreter", peer, median(taken[ours]), median(taken[peer]), "s",
            ratio(taken, peer, ours), ("at most", 1.15),
            spread={name: spread(taken[name]) for name in (ours, peer)},
        )
        for peer in peers
    ]  # fmt: skip


def first_embedding(options: argparse.Namespace) -> list[dict]:
    """Time from the start of a fresh interpreter to the first embedding."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = f"{folder}/calm", f"{folder}/clap"
        text = BertConfig(**(TOY if options.quick else BASE))
        CalmModel(CalmConfig(audio_config=SMALL if options.quick else {}, text_config=text)).save_pretrained(ours)
        CalmFeatureExtractor().save_pretrained(ours)
        ClapModel(ClapConfig(text_config=TOY) if options.quick else ClapConfig()).save_pretrained(theirs)
        ClapFeatureExtractor(sampling_rate=16000, truncation="rand_trunc").save_pretrained(theirs)
        taken = interleave(
            {"CALM": lambda: fresh(CALM, ours), "ClapModel": lambda: fresh(CLAP, theirs)}, options.rounds
        )
    return [
        line(
            "inference", "fresh interpreter to first embedding", "ClapModel", median(taken["CALM"]),
            median(taken["ClapModel"]), "s", ratio(taken, "CALM", "ClapModel"),
            spread={name: spread(values) for name, values in taken.items()},
        )
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["point"]:
        print(peak_of_call(int(sys.argv[2]), *sys.argv[3:]))
    else:
        main()
