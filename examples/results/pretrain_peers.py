"""Contrastive audio-language pretraining of SpecTran or a peer, for the same wall-clock time on the same machine.

    for encoder in calm ast wav2vec2; do
        python examples/results/pretrain_peers.py --encoder $encoder --seconds 1800 --dataset FOLDER \
            --output_dir runs/peers/$encoder-0
    done

Only the encoders differ. All else is the same: data, augmentation, batch size, optimizer, learning rates, word
embeddings as the target, and the contrast of clips and transcripts as the only objective. SpecTran's other objectives
have no meaning for a peer and are disabled for SpecTran too. `peer_encoders.py` describes the peers' configuration.

**The budget** is seconds of training: waiting for data and worker startup count; reading the data set and building the
model do not. First a step is timed, on a copy of the model and outside the budget. This determines the number of
steps, 95 % of what fits, so that the learning-rate schedule ends in time; if the machine slows down, training stops
before the step that would exceed the budget. `results.json` records all of it. The weights are the last ones: the cost
of selecting a checkpoint would differ between encoders.

The run's folder holds an encoder that `AutoModel` loads, or a CALM checkpoint for `--encoder calm`.
"""

import copy
import logging
import platform
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peer_encoders import PEERS, build_peer
from transformers import TrainerCallback, set_seed

from modeling_calm import CalmForPreTraining
from processing import CalmProcessor

sys.path.append(str(Path(__file__).parents[1]))
from options import (  # noqa: E402
    CalmTrainingArguments,
    parse_arguments,
    start_run,
    weights_digest,
    write_json,
    write_options,
)
from pretrain import DEFAULTS as PRETRAINING_DEFAULTS  # noqa: E402
from pretrain import PretrainingArguments, freeze, read_data, retrieval  # noqa: E402
from scoring import evaluation_collator  # noqa: E402
from speech_data import DataArguments  # noqa: E402
from streaming import StreamingArguments  # noqa: E402
from training import SPEC_AUGMENT, WAVEFORM_AUGMENTATION, CalmTrainer, ModelArguments  # noqa: E402

WARMUP_STEPS = 3  # before the timing: buffers are allocated, workers are starting
PLANNED_SHARE = 0.95  # of the budget; the rest allows for a machine that slows down
OBJECTIVES = {
    "audio_text_loss_weight": 1.0, "audio_audio_loss_weight": 0.0, "masked_language_loss_weight": 0.0,
    "masked_acoustic_loss_weight": 0.0,
}  # fmt: skip
logger = logging.getLogger(__name__)


@dataclass
class PeerArguments(ModelArguments):
    """Which encoder, how large, for how long."""

    encoder: str = field(
        default="calm", metadata={"help": "calm, ast or wav2vec2.", "choices": ["calm", *sorted(PEERS)]}
    )
    seconds: float = field(default=600.0, metadata={"help": "Wall-clock time of training."})
    calibration_steps: int = field(default=20, metadata={"help": "Steps timed beforehand."})
    added_datasets: list[str] = field(default_factory=list, metadata={"help": "As in pretrain.py."})
    augment: bool = field(default=True, metadata={"help": "As in pretrain.py."})

    def __post_init__(self):
        if self.model is not None:
            raise ValueError("Every encoder starts from random weights; leave out `--model`.")
        if self.seconds <= 0 or self.calibration_steps < 1:
            raise ValueError("`--seconds` must be positive, and `--calibration_steps` at least 1.")


class Stopwatch(TrainerCallback):
    """Seconds of training, step by step; stops training if the next step would exceed `budget` seconds."""

    def __init__(self, budget: float = float("inf")):
        self.budget, self.ends = budget, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.ends = time.perf_counter(), []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter() - self.start)
        if self.ends[-1] * (1 + 1 / len(self.ends)) > self.budget:
            control.should_training_stop = True

    def seconds_per_step(self) -> float:
        """The mean over the steps after the warmup, waiting for data included."""
        return (self.ends[-1] - self.ends[WARMUP_STEPS - 1]) / (len(self.ends) - WARMUP_STEPS)


def steps_for(stopwatch: Stopwatch, seconds: float) -> int:
    """The steps that fit into the planned share of `seconds`, given the timed ones.

    Raises:
        ValueError: if not even one fits.
    """
    each = stopwatch.seconds_per_step()
    beginning = stopwatch.ends[WARMUP_STEPS - 1] - WARMUP_STEPS * each
    steps = int((PLANNED_SHARE * seconds - max(beginning, 0.0)) / each)
    if steps < 1:
        raise ValueError(f"A step takes {each:.3g} s: raise `--seconds` {seconds:g} or lower the batch size.")
    return steps


def longest_input(durations: list[float], frames_per_second: float) -> int:
    """Frames that AST reads at once: enough for 95 % of the training clips at the slowest speed; at most 1024."""
    slowest = min(WAVEFORM_AUGMENTATION.speed)
    frames = np.quantile(durations, 0.95) / slowest * frames_per_second
    return min(1024, 16 + 10 * max(0, int(np.ceil((frames - 16) / 10))))  # patches of 16 with stride 10


def build(
    arguments: PeerArguments, processor: CalmProcessor, durations: list[float]
) -> tuple[CalmForPreTraining, CalmProcessor]:
    """A model with a randomly initialised encoder and a frozen language model, and the processor of its inputs.

    Args:
        processor: SpecTran's.
        durations: of the training clips, in seconds.
    """
    model = arguments.load_model(CalmForPreTraining, **OBJECTIVES)
    freeze(model, PretrainingArguments())
    if arguments.encoder in PEERS:
        extractor, audio_config = processor.feature_extractor, model.config.audio_config
        length = longest_input(durations, extractor.sampling_rate / extractor.hop_length)
        peer = build_peer(arguments.encoder, audio_config, length)
        peer.encoder.config.apply_spec_augment = arguments.augment  # used by Wav2Vec2 only
        model.calm.audio_model = peer
        processor = CalmProcessor(peer.extractor, processor.tokenizer)
    return model, processor


def trainer_for(model, processor, arguments, training, stopwatch, train, validation) -> CalmTrainer:
    evaluation = evaluation_collator(processor)
    collator = copy.copy(evaluation)
    if arguments.augment:
        collator.waveform_augmentation = WAVEFORM_AUGMENTATION
        collator.spec_augment = None if arguments.encoder == "wav2vec2" else SPEC_AUGMENT  # which has its own
    return CalmTrainer(
        model=model,
        args=training,
        data_collator=collator,
        eval_collator=evaluation,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=[stopwatch],
        compute_metrics=partial(retrieval, processor.tokenizer),
    )


def main(argv: list[str] | None = None) -> dict:
    arguments, data, training = parse_arguments(
        PeerArguments, DataArguments, CalmTrainingArguments, arguments=argv, defaults=DEFAULTS
    )
    logging.basicConfig(level=logging.INFO)
    if training.resume:
        raise ValueError("A run that was interrupted has not had its time in one piece; leave out `--resume`.")
    start_run(training)
    training.label_names, training.remove_unused_columns = ["input_ids"], False
    training.dataloader_drop_last, training.save_strategy, training.eval_strategy = True, "no", "no"
    spectrograms = arguments.load_processor()
    train, validation = read_data(arguments, data, StreamingArguments(), training, spectrograms)
    set_seed(training.seed)
    model, processor = build(arguments, spectrograms, train["duration"])
    write_options(training, DEFAULTS, arguments, data)

    timed, timing = Stopwatch(), copy.copy(training)
    timing.max_steps = WARMUP_STEPS + arguments.calibration_steps
    trainer_for(copy.deepcopy(model), processor, arguments, timing, timed, train, validation).train()
    training.max_steps = steps_for(timed, arguments.seconds)
    logger.info("%.3g s a step: %d steps in %g s", timed.seconds_per_step(), training.max_steps, arguments.seconds)

    stopwatch = Stopwatch(arguments.seconds)
    set_seed(training.seed)
    trainer = trainer_for(model, processor, arguments, training, stopwatch, train, validation)
    trainer.train()
    folder, encoder = Path(training.output_dir), model.calm.audio_model
    if arguments.encoder in PEERS:
        encoder.encoder.save_pretrained(folder)
        spectrograms.feature_extractor.save_pretrained(folder)
    else:
        trainer.save_model()
    results = {
        "encoder": arguments.encoder,
        "parameters": sum(weight.numel() for weight in encoder.parameters()),
        "budget_seconds": arguments.seconds,
        "seconds": stopwatch.ends[-1],
        "seconds_per_step_timed": timed.seconds_per_step(),
        "steps_planned": training.max_steps,
        "steps": trainer.state.global_step,
        "clips_seen": trainer.state.global_step * training.train_batch_size,
        "validation": trainer.evaluate(),
        "machine": {
            "device": str(training.device), "processor": platform.machine(), "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "weights": weights_digest(folder),
    }  # fmt: skip
    trainer.save_state()
    write_json(folder / "results.json", results)
    return results


# As in pretraining, but without evaluation and saving between the first step and the last.
DEFAULTS = PRETRAINING_DEFAULTS | {
    "output_dir": "runs/peer", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    "metric_for_best_model": None, "save_total_limit": None,
}  # fmt: skip


if __name__ == "__main__":
    main()
