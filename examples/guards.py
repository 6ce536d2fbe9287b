"""Safeguards for long runs: a clean stop on SIGTERM, skipping of non-finite steps, and a warning on collapse."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager

import torch
from accelerate.utils import gather, gather_object
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

EXIT_TERMINATED = 128 + signal.SIGTERM  # 143, the shell's exit code for a process ended by SIGTERM
COLLAPSED = 0.99  # mean cosine above which embeddings count as collapsed; our choice
logger = logging.getLogger(__name__)


def on_any_rank(fact: bool, device: torch.device) -> bool:
    """Whether `fact` holds on any rank; all ranks get the same answer and so act alike."""
    return bool(gather(torch.tensor([float(fact)], device=device)).any())


class StopOnSigterm(TrainerCallback):
    """On SIGTERM, finish the step, save a checkpoint and leave with exit code 143.

    All ranks stop after the same step, whichever of them got the signal. Whatever is due at that step, such as
    evaluation or the end of an epoch, is done first, so that a resumed run misses nothing.

    `enable_jit_checkpoint` of `Trainer` is unsuitable: each rank would stop at a different step, an accumulated
    gradient would be dropped after its random numbers were drawn, and the script would continue as if training were
    done.
    """

    def __init__(self):
        self.received = self.stopping = self.nothing_due = False

    @contextmanager
    def listening(self):
        """Treat SIGTERM as a request; if it comes too late for a checkpoint, it ends the process afterwards."""

        def note(number, frame):
            self.received = True

        former = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)
        if self.received:
            signal.raise_signal(signal.SIGTERM)

    def on_step_end(self, args, state, control, **kwargs):
        self.stopping = on_any_rank(self.received, args.device)
        # After the last step of an epoch or of training, an evaluation may be due.
        self.nothing_due = not state.epoch.is_integer() and not control.should_training_stop
        if self.stopping and self.nothing_due:
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        self.nothing_due = True  # once this epoch is evaluated, which precedes saving
        if self.stopping:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.stopping and self.nothing_due:
            logger.warning("SIGTERM: step %d is saved; go on by `--resume`.", state.global_step)
            sys.exit(EXIT_TERMINATED)


class ShieldedWorker:
    """Starts a data worker that obeys SIGTERM from its parent process only.

    A scheduler sends SIGTERM to all processes, and torch would abort a run whose worker died before it could save.
    Only Linux reports the sender of a signal.
    """

    def __init__(self, start: Callable[[int], None] | None):
        self.start = start

    def __call__(self, worker_id: int) -> None:
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            parent = multiprocessing.parent_process()  # not always the process that forked this one
            sender = os.getppid() if parent is None else parent.pid
            threading.Thread(target=self._heed, args=[sender], daemon=True).start()
        if self.start is not None:
            self.start(worker_id)

    @staticmethod
    def _heed(sender: int) -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
            pass
        os._exit(0)


def isolate_workers(loader: DataLoader) -> DataLoader:
    """Keep an `accelerate` loader's workers from touching the training's random state or being stopped by others.

    Starting workers draws a seed, and a resumed run starts them at other steps: it must not use the RNG of dropout.
    """
    loader.base_dataloader.generator = torch.Generator()
    loader.base_dataloader.worker_init_fn = ShieldedWorker(loader.base_dataloader.worker_init_fn)
    return loader


class SkipNonFinite(TrainerCallback, ExportableState):
    """Skip a step whose loss or gradient is not finite: weights and optimizer stay as they were, on all ranks.

    The learning-rate schedule advances all the same. The counts are saved with a checkpoint.
    """

    def __init__(self):
        self.skipped_steps = self.skipped_in_a_row = 0
        self.losses, self.clips = [], []  # of the current step

    def see(self, loss: torch.Tensor, clips: list[str]) -> None:
        """Record a micro-batch."""
        self.losses.append(loss.detach())
        self.clips.extend(clips)

    def judge(self, model: torch.nn.Module, grad_norm: torch.Tensor | float, step: int, max_in_a_row: int) -> None:
        """Drop the accumulated gradient if it or a loss is not finite; without gradients the optimizer does nothing.

        Raises:
            FloatingPointError: after more than `max_in_a_row` such steps in a row.
        """
        norm = torch.as_tensor(grad_norm, device=self.losses[0].device)
        finite = torch.stack([*self.losses, norm]).isfinite()  # the norm is finite if every gradient is
        skip = on_any_rank(not finite.all().item(), norm.device)
        clips, self.losses, self.clips = self.clips, [], []
        if not skip:
            self.skipped_in_a_row = 0
            return
        model.zero_grad(set_to_none=True)
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        clips = gather_object(clips)  # the contrastive loss spans the clips of all ranks
        what = "loss" if on_any_rank(not finite[:-1].all().item(), norm.device) else "gradient"
        logger.warning("Step %d is skipped, its %s is not finite. Its clips: %s", step, what, ", ".join(clips))
        if self.skipped_in_a_row > max_in_a_row:
            raise FloatingPointError(
                f"{self.skipped_in_a_row} steps in a row had a loss or a gradient that is not finite, up to step"
                f" {step} with the clips {clips}. The weights are still those before them. Look at these clips, lower"
                " `--learning_rate`, or allow more by `--max_skipped_steps`; `--resume` goes on from the last"
                " checkpoint."
            )

    def state(self) -> dict:
        return {
            "args": {},
            "attributes": {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row},
        }


class WarnOfCollapse(TrainerCallback):
    """Warn if the audio embeddings of different clips are nearly identical after the warmup.

    Those of an untrained model are too, so the warmup is exempt.
    """

    def on_log(self, args, state, control, logs, **kwargs):
        cosine = logs.get("audio_embeds_cosine", 0.0)
        if cosine > COLLAPSED and state.global_step > args.get_warmup_steps(state.max_steps):
            logger.warning(
                "Step %d: the audio embeddings of different clips are alike (mean cosine %.3f), the model collapses."
                " Lower `--learning_rate` or raise `--per_device_train_batch_size`.",
                state.global_step,
                cosine,
            )
