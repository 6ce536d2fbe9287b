"""What a run logs besides its loss: the loss terms, embedding similarity, throughput, padding and memory.

All values are aggregated over all ranks and the micro-batches since the last log.
"""

import sys
import time
from collections import Counter

import torch
from accelerate.utils import gather
from torch.nn.functional import normalize
from transformers import TrainerCallback

from modeling_calm import CalmAudioConfig

try:
    import resource
except ImportError:  # Windows
    resource = None

LOSS_TERMS = (
    "audio_text_loss", "audio_audio_loss", "transcript_loss", "masked_language_loss", "masked_acoustic_loss",
)  # fmt: skip


class TermMeter:
    """Means of the loss, of its terms, and of the cosine between the audio embeddings of different clips."""

    NAMES = ("loss", *LOSS_TERMS, "audio_embeds_cosine")

    def __init__(self):
        self.sums = {}  # by name, total and count

    def see(self, outputs: dict[str, torch.Tensor]) -> None:
        """Record the model's outputs for a micro-batch."""
        given = {name: outputs.get(name) for name in ("loss", *LOSS_TERMS)}
        found = {name: value.detach().float() for name, value in given.items() if value is not None}
        if outputs.get("audio_embeds") is not None:
            found["audio_embeds_cosine"] = mean_cosine(outputs["audio_embeds"].detach())
        for name, value in found.items():
            finite = value.isfinite()
            self.sums[name] = self.sums.get(name, 0) + torch.stack([value.where(finite, 0), finite])

    def report(self, device: torch.device) -> dict[str, float]:
        """The means since the last report, excluding non-finite values: those steps were skipped."""
        sums = torch.zeros(len(self.NAMES), 2, device=device)  # total and count
        for place, name in enumerate(self.NAMES):
            if name in self.sums:
                sums[place] = self.sums[name]
        self.sums.clear()
        totals = gather(sums[None]).sum(0).tolist()
        return {name: total / count for name, (total, count) in zip(self.NAMES, totals, strict=True) if count}


def mean_cosine(embeds: torch.Tensor) -> torch.Tensor:
    """The mean cosine between different rows of (N, E), in linear time."""
    embeds = normalize(embeds.float(), dim=-1)
    count = len(embeds)
    return (embeds.sum(0).square().sum() - count) / max(count * (count - 1), 1)


class WorkMeter(TrainerCallback):
    """Seconds of speech trained on per second, the share of the batches that is not padding, and peak memory.

    Waiting for data counts as training; evaluation and saving do not.

    Args:
        config: SpecTran's, which gives the duration of a patch.
    """

    def __init__(self, config: CalmAudioConfig):
        self.config = config
        self.work, self.seconds, self.mark = Counter(), 0.0, time.perf_counter()

    def see(self, batch: dict[str, torch.Tensor]) -> None:
        """Count a micro-batch: patches, and the positions it occupies in the language model."""
        work = {"real_positions": 0, "positions": 0}
        words, patches = batch.get("attention_mask"), batch.get("input_features_mask")
        if words is not None:
            work = {"real_positions": words.sum(), "positions": words.numel()}
        if patches is not None:
            tokens = patches.unflatten(1, (-1, self.config.patches_per_token)).any(-1)  # (B, T)
            work["real_positions"] += tokens.sum()
            work["positions"] += tokens.numel()
            work |= {"real_patches": patches.sum(), "patches": patches.numel()}
        self.work.update(work)

    def report(self, device: torch.device) -> dict[str, float]:
        """The work of all ranks since the last report, and the highest peak memory of any rank in GiB."""
        names = ("real_patches", "patches", "real_positions", "positions")
        values = [float(self.work[name]) for name in names] + [self.seconds, peak_memory(device)]
        ranks = gather(torch.tensor([values], dtype=torch.float32, device=device))  # (ranks, 6)
        self.work, self.seconds = Counter(), 0.0
        real_patches, patches, real_positions, positions = ranks[:, :4].sum(0).tolist()
        report = {
            "real_position_share": real_positions / max(positions, 1),
            "peak_memory_gib": ranks[:, 5].max().item(),
        }
        if patches:
            seconds_of_speech = real_patches / self.config.patches_per_token * self.config.seconds_per_token
            report["audio_seconds_per_second"] = seconds_of_speech / ranks[:, 4].mean().item()
            report["real_patch_share"] = real_patches / patches
        return {name: round(value, 4) for name, value in report.items()}

    def on_train_begin(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.seconds, self.mark = self.seconds + now - self.mark, now

    def on_evaluate(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GiB: GPU memory if it trains on a GPU, else main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, KiB elsewhere
