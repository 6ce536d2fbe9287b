"""Training steps against CLAP and a dual encoder of the same size: seconds of audio trained on per second.

    python examples/benchmarks/training_steps.py
    python examples/benchmarks/training_steps.py --device cuda --dtype bfloat16 --profile

A step is forward, loss, backward and AdamW (fused, as in `Trainer`) on a batch of 8 clips of 10 s with transcripts of
24 tokens, from random weights, with precomputed features. In bfloat16 it runs under autocast.

- CALM, `align`: the base SpecTran against the word embeddings of a base-size BERT. **That BERT does not run**, neither
  forward nor backward: it is frozen, and the text target is the mean of word embeddings. This is the method itself,
  and accounts for most of the difference.
- CALM, `fuse`: SpecTran and that BERT, on all objectives, of which the peers have one.
- `ClapModel`, its own loss: the published configuration, HTS-AT and RoBERTa of base size, both trained.
- dual encoder: `Wav2Vec2Model` and `BertModel` of base size with symmetric InfoNCE over projected means. As
  transformers recommends for fine-tuning, the convolutions are frozen and so have no backward pass; LayerDrop stays on
  as published; no SpecAugment, which is not part of our step either.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from peers import RATE, size_of
from random_batches import FIRST_WORD, VOCABULARY, build_model, draw_batch
from report import line, parse, rate_lines, run
from timing import MATMUL, count_operations, interleave, matrix_product, share_of_peak
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.profiler import profile
from transformers import BertConfig, BertModel, ClapConfig, ClapModel, Wav2Vec2Config, Wav2Vec2Model

sys.path.append(str(Path(__file__).parents[1]))
from pretrain import STAGES, PretrainingArguments, freeze, objectives  # noqa: E402

GOAL = 3.0
CLIPS, SECONDS, WORDS = 8, 10, 24


def main(argv: list[str] | None = None) -> dict:
    return run(parse(__doc__, argv), measure)


class DualEncoder(nn.Module):
    """`Wav2Vec2Model` and `BertModel` with the symmetric InfoNCE of Radford et al. 2021 over their projected means."""

    def __init__(self, size: dict, projection_dim: int = 512):
        super().__init__()
        self.audio = Wav2Vec2Model(Wav2Vec2Config(**size, apply_spec_augment=False))
        self.audio.freeze_feature_encoder()
        self.text = BertModel(BertConfig(**size), add_pooling_layer=False)
        self.projections = nn.ModuleList(nn.Linear(size["hidden_size"], projection_dim) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, input_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        states = self.audio(input_values).last_hidden_state, self.text(input_ids).last_hidden_state
        audio, text = (
            normalize(project(state.mean(1)), dim=-1) for project, state in zip(self.projections, states, strict=True)
        )
        logits = self.logit_scale.exp() * audio @ text.T  # (B, B)
        places = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, places) + cross_entropy(logits.T, places)) / 2


def calm(stage: str, options: argparse.Namespace) -> tuple[nn.Module, dict]:
    """CALM with everything that its stage does not train frozen, as in `pretrain.py`, and a batch."""
    width = size_of(options)["hidden_size"]
    geometry = argparse.Namespace(
        audio_config="tiny" if options.quick else "base", text_width=width,
        text_layers=size_of(options)["num_hidden_layers"], seconds=options.seconds, words=WORDS,
    )  # fmt: skip
    arguments = PretrainingArguments(stage=stage)
    model = build_model(geometry, **objectives(arguments))
    freeze(model, arguments)
    batch = draw_batch(geometry, options.clips)
    if stage == "align":  # nothing is masked
        batch["input_ids"] = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])
        del batch["labels"], batch["mask_time_indices"]
    return model, batch


def clap(options: argparse.Namespace) -> tuple[nn.Module, dict]:
    size = size_of(options)
    toy = {"depths": (1, 1), "num_attention_heads": (2, 2), "patch_embeds_hidden_size": 16, "hidden_size": 32}
    model = ClapModel(ClapConfig(text_config=size, audio_config=toy) if options.quick else ClapConfig())
    batch = {
        "input_ids": words(options), "input_features": torch.randn(options.clips, 1, 100 * options.seconds + 1, 64),
        "return_loss": True,
    }  # fmt: skip
    return model, batch


def dual(options: argparse.Namespace) -> tuple[nn.Module, dict]:
    batch = {"input_values": torch.randn(options.clips, options.seconds * RATE), "input_ids": words(options)}
    return DualEncoder(size_of(options)), batch


def words(options: argparse.Namespace) -> torch.Tensor:
    return torch.randint(FIRST_WORD, VOCABULARY, (options.clips, WORDS))


def on_device(value, device: str):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def loss_of(model: nn.Module, batch: dict) -> torch.Tensor:
    output = model(**batch)
    return output if isinstance(output, torch.Tensor) else output.loss


def prepare(model: nn.Module, options: argparse.Namespace) -> Callable[[dict], None]:
    """A function that runs one training step on a given batch: forward, backward, AdamW."""
    model = model.train().to(options.device)
    forward = torch.compile(model) if options.compile else model
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    half = options.dtype == "bfloat16"

    def step(batch: dict) -> None:
        optimizer.zero_grad()
        with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=half):
            loss = loss_of(forward, batch)
        loss.backward()
        optimizer.step()

    return step


def measure(options: argparse.Namespace) -> list[dict]:
    options.clips, options.seconds = (2, 2) if options.quick else (CLIPS, SECONDS)
    device, dtype = options.device, getattr(torch, options.dtype)
    ours = {stage: calm(stage, options) for stage in STAGES}
    operations = {}
    for stage, (model, batch) in ours.items():
        model.set_attn_implementation("eager")
        operations[stage] = count_operations(lambda model=model, batch=batch: loss_of(model.train(), batch).backward())
        model.zero_grad()
        model.set_attn_implementation("sdpa")
    pairs = ours | {"ClapModel": clap(options), "Wav2Vec2 + BERT": dual(options)}
    steps = {
        name: partial(prepare(model, options), {key: on_device(value, device) for key, value in batch.items()})
        for name, (model, batch) in pairs.items()
    }
    peers = [name for name in pairs if name not in STAGES]
    product, matmul_operations = matrix_product(device, dtype, 256 if options.quick else 4096)
    taken = interleave(steps | {MATMUL: product}, options.rounds, device=device)
    lines, audio = [], options.clips * options.seconds
    for stage in STAGES:
        seconds = {"CALM": taken[stage], **taken}
        case = f"step of {stage}, {options.clips} clips of {options.seconds} s"
        lines += rate_lines("training", case, seconds, audio, peers, GOAL)
        share, rates = share_of_peak(taken, stage, operations[stage], matmul_operations)
        peak = median(matmul_operations / one for one in taken[MATMUL]) / 1e9
        goal = ("at least", 0.4) if device.startswith("cuda") else None
        lines.append(
            line(
                "training", f"share of FLOP/s, {stage}", f"a {MATMUL}", median(rates) / 1e9, peak, "GFLOP/s", share,
                goal, operations=operations[stage],
            )
        )  # fmt: skip
        if options.profile:
            with profile() as record:
                steps[stage]()
            print(f"\n{stage}\n{record.key_averages().table(sort_by='self_cpu_time_total', row_limit=25)}")
    return lines


if __name__ == "__main__":
    main()
