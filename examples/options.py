"""Options from YAML and the command line, the folder of a run, and results as JSON."""

import argparse
import hashlib
import json
import logging
import math
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import yaml
from accelerate.utils import broadcast_object_list
from checkpoints import SEAL, last_whole_checkpoint, write_atomically
from transformers import HfArgumentParser, TrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class CalmTrainingArguments(TrainingArguments):
    """`TrainingArguments` with per-module learning rates; `learning_rate` is SpecTran's."""

    text_learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the language model."})
    head_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the heads."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better result before training stops."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last whole checkpoint in `output_dir`."})
    max_skipped_steps: int = field(
        default=10,
        metadata={"help": "Steps in a row that may be skipped because their loss or gradient is not finite."},
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume early stopping and the count of skipped steps where they were."}
    )
    given: dict = field(default_factory=dict, init=False, repr=False)  # every option as parsed

    def __post_init__(self):
        if self.bf16_full_eval or self.fp16_full_eval:
            raise ValueError(
                "`--bf16_full_eval` and `--fp16_full_eval` round the model itself, which is saved afterwards; `--bf16`"
                " and `--fp16` evaluate in half floats too, and leave it as it is."
            )
        super().__post_init__()
        if self.enable_jit_checkpoint:
            raise ValueError("SIGTERM is answered by a checkpoint anyway; leave out `--enable_jit_checkpoint`.")
        if self.n_gpu > 1:
            # The library would split each batch across them, and with it the negatives.
            logger.warning("One of %d GPUs is used; `accelerate launch` starts a process for each.", self.n_gpu)
            self._n_gpu = 1
        # torch rejects persistent workers without workers; `--dataloader_num_workers 0` alone should suffice.
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0


def parse_arguments(*types: type, arguments: list[str] | None = None, defaults: dict | None = None) -> tuple:
    """Options from `--config file.yaml` and the command line, which takes precedence.

    Raises:
        ValueError: if the YAML file is not a mapping, or has a key that is not an option.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = HfArgumentParser(types)
    parser.add_argument("--config", help="YAML file of options; the command line wins.")
    parser.set_defaults(**(defaults or {}))
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    file = first.parse_known_args(arguments)[0].config
    if file is not None:
        values = yaml.safe_load(Path(file).read_text()) or {}
        if not isinstance(values, dict):
            raise ValueError(f"'{file}' is not a mapping of options to values, one `option: value` a line.")
        known = {entry.name for kind in types for entry in fields(kind) if entry.init}
        unknown = sorted(map(str, set(values) - known))
        if unknown:
            raise ValueError(f"'{file}' sets {unknown}, which no option is called; `--help` lists the options.")
        unset = {name: value for name, value in values.items() if value is None or value == []}
        parser.set_defaults(**unset)
        # As command-line arguments, so that the values are converted (YAML reads 1e-3 as text) and checked likewise.
        arguments = _as_options({name: values[name] for name in values if name not in unset}) + arguments
    found = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)[: len(types)]
    for options in found:
        if isinstance(options, CalmTrainingArguments):  # which change their values after construction
            options.given = vars(parser.parse_args(arguments))
    return found


def _as_options(values: dict) -> list[str]:
    options = []
    for name, value in values.items():
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        else:
            options.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return options


def start_run(training: TrainingArguments) -> str | None:
    """Reject a folder that holds another run, and find the last intact checkpoint to resume from.

    Raises:
        ValueError: if `output_dir` already holds a run or a model and `--resume` is not given; if it holds a finished
            run without a checkpoint, or is not the folder in which the first rank found the checkpoint.
    """
    folder = Path(training.output_dir)
    if training.resume:
        found = [last_whole_checkpoint(folder) if training.process_index == 0 and folder.is_dir() else None]
        if training.world_size > 1:
            broadcast_object_list(found)
        if found[0] is not None and not (Path(found[0]) / SEAL).is_file():
            raise ValueError(
                f"Rank {training.process_index} does not see '{found[0]}', which the first rank goes on from. Let all"
                " nodes share `--output_dir`."
            )
        if found[0] is None and (folder / "results.json").exists():
            raise ValueError(
                f"'{folder}' holds a run that is over, and no checkpoint to go on from. Choose another `--output_dir`."
            )
        return found[0]
    if any(next(folder.glob(trace), None) for trace in ("config.yaml", "config.json", "checkpoint-*")):
        raise ValueError(
            f"'{folder}' already holds a run. Choose another `--output_dir`, go on by `--resume`, or remove it."
        )
    return None


def write_options(training: CalmTrainingArguments, defaults: dict, *options) -> None:
    """Write `config.yaml` into the run's folder; passed to `--config`, it repeats the run.

    Called after the data and the model have been loaded, so that an error in them leaves no run behind.

    Args:
        defaults: the script's own, written even if the value is the default of `TrainingArguments`.
        options: the other option dataclasses.
    """
    if not training.should_save:
        return
    settings = {name: value for option in options for name, value in asdict(option).items()}
    unset = {entry.name: entry.default for entry in fields(training) if entry.init}
    for name in unset.keys() - {"resume", "hub_token"}:
        value = training.given[name]
        if value != unset[name] or name in defaults:
            settings[name] = getattr(value, "value", value)
    folder = Path(training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=True))


def write_json(file: Path, results: dict) -> None:
    """Write results as JSON, which has neither NumPy numbers nor NaN: non-finite numbers become null."""

    def plain(value):
        if isinstance(value, dict):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(plain(results), indent=2, allow_nan=False) + "\n")


def weights_digest(folder: str | Path) -> str:
    """SHA-256 of a checkpoint's weights, by which a results file identifies them."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
