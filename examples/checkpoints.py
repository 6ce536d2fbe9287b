"""Intact checkpoints: sealed with the hashes of their files, which are written last, and checked before use.

A checkpoint without `SHA256SUMS` was being written when its run ended; one whose files do not match it was damaged
later. Neither is loaded. The seal has the format of coreutils: `cd checkpoint-100 && sha256sum --check SHA256SUMS`.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed import DistError
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    get_last_checkpoint,
    rotate_checkpoints,
    sort_checkpoints,
)

SEAL = "SHA256SUMS"
logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """Raised if weights cannot be written; the message names the last intact checkpoint."""


def write_atomically(file: Path, text: str) -> None:
    """Write a small file atomically; it is flushed to disk when this returns."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete, once all its files are flushed to disk."""
    lines = []
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL):
        with file.open("r+b") as stream:  # Windows flushes only files that are open for writing
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{digest}  {file.relative_to(checkpoint).as_posix()}\n")
    write_atomically(checkpoint / SEAL, "".join(lines))


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or `None` if it is intact."""
    if not (checkpoint / SEAL).is_file():
        return f"it has no {SEAL}: it was being written when the run ended"
    sums = (checkpoint / SEAL).read_text(errors="replace")
    if not sums.endswith("\n"):
        return f"'{SEAL}' is cut short"
    for line in sums.splitlines():
        digest, _, name = line.partition("  ")
        try:
            with (checkpoint / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            return f"'{name}' cannot be read ({error.strerror})"
        if found != digest:
            return f"'{name}' is not what was written there"
    return None


def refuse_damaged(folder: Path) -> None:
    """Refuse to start from a run's checkpoint that does not match its seal.

    Raises:
        ValueError: says what is wrong.
    """
    if folder.name.startswith(PREFIX_CHECKPOINT_DIR) and folder.is_dir() and (damage := find_damage(folder)):
        raise ValueError(f"'{folder}' is damaged: {damage}. Give an older checkpoint, or the folder of the run.")


def last_whole_checkpoint(run: Path) -> str | None:
    """The newest checkpoint of a run to resume from; damaged ones are reported and renamed.

    They become `_torn-checkpoint-*`, a name that the library does not upload to the Hub.
    All are checked, since the best one may be older than the last.
    """
    for folder in map(Path, sort_checkpoints(str(run))):
        damage = find_damage(folder)
        if damage is not None:
            aside = folder.with_name(f"_torn-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning("'%s' is not used: %s. It is now '%s', which may be deleted.", folder, damage, aside.name)
    return get_last_checkpoint(run)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Context for writing a checkpoint, or the model in the run's own folder: removes partial weights on failure.

    Raises:
        CheckpointError: if they cannot be written, e.g. on a full disk; names the last intact checkpoint.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, (torch.OutOfMemoryError, DistError)):  # which are not disk errors
            raise
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            run = folder.parent
            shutil.rmtree(folder, ignore_errors=True)
        else:
            run = folder
            for file in folder.glob("*.safetensors"):
                file.unlink(missing_ok=True)  # possibly removed by another rank
        last = get_last_checkpoint(run) if run.is_dir() else None
        standing = "there is no whole checkpoint" if last is None else f"the last whole checkpoint is '{last}'"
        room = f" {shutil.disk_usage(run).free / 2**30:.2f} GiB are free there." if run.is_dir() else ""
        raise CheckpointError(
            f"'{folder}' could not be written: {error}.{room} The weights that were written of it are removed;"
            f" {standing}. Make room, and see that the folder may be written; then go on by `--resume`."
        ) from error


class SealingTrainer(Trainer):
    """`Trainer` whose checkpoints are complete before an older one is removed, and hold no pickled arguments."""

    def _save_checkpoint(self, model, trial):
        """Save, seal, and only then remove older checkpoints.

        Raises:
            CheckpointError: if it cannot be written, e.g. on a full disk; the last intact one is kept.
        """
        run, limit = Path(self._get_output_dir(trial)), self.args.save_total_limit
        checkpoint = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.args.save_total_limit = None
        try:
            with writing(checkpoint):
                for callback in self.callback_handler.callbacks:  # adds those that are new since the run was resumed
                    if isinstance(callback, ExportableState):
                        self.state.stateful_callbacks.setdefault(type(callback).__name__, {})
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # every rank writes its RNG states
                if self.args.should_save:
                    seal(checkpoint)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(str(run), limit, self.state.best_model_checkpoint, use_mtime=True)
        # If a rank exited now, on SIGTERM, the launcher would kill the one that is still sealing.
        self.accelerator.wait_for_everyone()

    def _finalize_training(self, *args, **kwargs):
        # The library would remove the last checkpoint and keep the best, from which `--resume` would train again.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _load_callback_state(self):
        super()._load_callback_state()
        best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_model_checkpoint is None and best.is_dir():  # the saved path is the run's former location
            self.state.best_model_checkpoint = str(best)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        # The options are in config.yaml as text; a pickle file would invite unsafe loading.
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
