"""Shared by pretraining and fine-tuning: the source of the weights, per-module learning rates, the Trainer."""

import importlib.util
import logging
import math
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from checkpoints import SealingTrainer, refuse_damaged, writing
from demo_corpus import demo_language_model
from fsdp import shard_layers
from guards import SkipNonFinite, StopOnSigterm, WarnOfCollapse, isolate_workers
from meters import TermMeter, WorkMeter
from options import weights_digest, write_json
from scoring import load_processor
from torch.utils.data import IterableDataset
from transformers import AutoTokenizer, EarlyStoppingCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from modeling_calm import CalmAudioConfig
from modeling_calm.loading_calm import shown
from processing import CalmFeatureExtractor, CalmProcessor, SeededCollator, SpecAugment, WaveformAugmentation

CONFIGS = Path(__file__).parent / "configs"
logger = logging.getLogger(__name__)

# Bands and silence were tuned on validation for telephone recordings and pauses, at some cost on clean recordings.
# Longer silence makes a step a third slower.
WAVEFORM_AUGMENTATION = WaveformAugmentation(
    noise_probability=0.3, band_limit_probability=0.25, lowest_hz=(0.0, 400.0), highest_hz=(3000.0, 7000.0),
    silence_probability=0.3, silence_s=(0.0, 0.5),
)  # fmt: skip
# Weaker than in the SpecAugment paper: with few hours of speech, a masked short word must stay recognisable.
SPEC_AUGMENT = SpecAugment(num_time_masks=1, max_time_frames=20, num_frequency_masks=1, max_frequency_bins=10)


@dataclass
class ModelArguments:
    """Where the weights come from."""

    model: str | None = field(default=None, metadata={"help": "CALM checkpoint to go on with."})
    text_model: str = field(
        default="demo", metadata={"help": "Without --model: the language model to start from; 'demo' is MiniLM."}
    )
    audio_config: str = field(
        default="small", metadata={"help": "Without --model: SpecTran; tiny, small, base, or a YAML file."}
    )

    def spectran(self) -> CalmAudioConfig:
        """The configuration of a new SpecTran."""
        file = CONFIGS / f"{self.audio_config}.yaml"
        file = file if file.exists() else Path(self.audio_config)
        if not file.is_file():
            raise ValueError(f"`--audio_config {file}` is no file, and none of tiny, small and base.")
        return CalmAudioConfig(**yaml.safe_load(file.read_text()))

    def language_model(self) -> str:
        """Folder or Hub name of the language model to start from."""
        return demo_language_model() if self.text_model == "demo" else self.text_model

    def load_processor(self) -> CalmProcessor:
        """The checkpoint's processor, or one for a new model."""
        if self.model is not None:
            return load_processor(self.model)
        extractor = CalmFeatureExtractor.from_audio_config(self.spectran())
        return CalmProcessor(extractor, AutoTokenizer.from_pretrained(self.language_model()))

    def load_model(self, kind: type, **settings):
        """A model of class `kind`, from a CALM checkpoint or newly built around a language model.

        Always in float32, since half-precision weights lose small updates; `--bf16` computes in half precision.

        Raises:
            ValueError: if weights below the head do not fit the checkpoint's configuration, or are damaged.
        """
        settings.setdefault("dtype", torch.float32)
        if self.model is not None:
            refuse_damaged(Path(self.model))
            options = {"ignore_mismatched_sizes": True, "output_loading_info": True, **settings}
            model, report = kind.from_pretrained(self.model, **options)
            # Training may continue from a classifier of other classes: only its head mismatches, and is reinitialised.
            misfits = [key for key, *_ in report["mismatched_keys"] if key.startswith(f"{model.base_model_prefix}.")]
            if misfits:
                raise ValueError(f"The weights of '{self.model}' do not fit its config.json: {shown(misfits)}.")
            return model
        return kind.from_text_pretrained(self.language_model(), audio_config=self.spectran(), **settings)


class CalmTrainer(SealingTrainer):
    """`Trainer` with per-module learning rates, the loss terms by name, and every clip of the other splits scored.

    An interrupted run resumes as if it had never stopped: checkpoints are sealed, the data order and the random draws
    of the collator are functions of seed, epoch and row, and evaluation does not touch the training's random state.
    See `guards.py` for what stops a run or skips a step.

    Args:
        data_collator: for training; called with rows and a `numpy.random.Generator`, see [`SeededCollator`].
        eval_collator: for every other split.
        args, kwargs: those of `Trainer`.

    Raises:
        ValueError: if the training split is smaller than one batch and incomplete batches are dropped.
    """

    def __init__(self, *args, data_collator, eval_collator, **kwargs):
        super().__init__(*args, data_collator=data_collator, **kwargs)
        self.data_collator, self.eval_collator = SeededCollator(data_collator, self.args.seed), eval_collator
        self.terms, self.work, self.stop = TermMeter(), WorkMeter(self.model.config.audio_config), StopOnSigterm()
        for callback in (SkipNonFinite(), WarnOfCollapse(), self.work, self.stop):
            self.add_callback(callback)
        self._order = None  # of clips grouped by length
        if self.is_fsdp_enabled:
            shard_layers(self.accelerator.state.fsdp_plugin, self.model)
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        clips, batch = self.train_dataset.num_rows, self.args.train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and clips < batch:
            raise ValueError(
                f"The training split has {clips} clips, fewer than the {batch} of one batch, and incomplete batches"
                " are dropped. Lower `--per_device_train_batch_size`."
            )

    def _callback(self, kind: type):
        """The current callback of a class; resuming replaces those whose state is restored."""
        return next((callback for callback in self.callback_handler.callbacks if isinstance(callback, kind)), None)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    # Scalars and vectors are gains, biases and learned placeholders, which should not decay to zero.
                    groups[self._rate(name), name in decayed and parameter.ndim > 1].append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(
                [
                    {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if decay else 0.0}
                    for (rate, decay), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def _rate(self, name: str) -> float:
        if ".text_model." in name:
            return self.args.text_learning_rate
        with_spectran = ("audio_model.", "audio_projection.", "logit_scale", "reader.")
        in_spectran = any(part in name for part in with_spectran)
        return self.args.learning_rate if in_spectran else self.args.head_learning_rate

    def train(self, *args, **kwargs):
        with self.stop.listening():
            return super().train(*args, **kwargs)

    def get_train_dataloader(self):
        if isinstance(self.train_dataset, IterableDataset):  # a stream, already split among the ranks
            self.train_dataset.batch_size = self._train_batch_size  # which `auto_find_batch_size` lowers
            fused = any(parameter.requires_grad for parameter in self.model.calm.text_model.parameters())
            limit = self.model.calm.max_tokens() if fused else None
            loader = self.train_dataset.dataloader(self.data_collator, self.processing_class, self.args, limit)
            return isolate_workers(loader)
        return super().get_train_dataloader()

    def num_examples(self, dataloader):
        return getattr(dataloader.dataset, "num_rows", None) or super().num_examples(dataloader)  # of all ranks

    def _get_dataloader(self, *args, **kwargs):
        return isolate_workers(super()._get_dataloader(*args, **kwargs))

    def _get_train_sampler(self, *args):
        sampler = super()._get_train_sampler(*args)
        if isinstance(sampler, LengthGroupedSampler):
            # It would use the RNG of dropout, whose state differs on other ranks and in a resumed run.
            sampler.generator = self._order = torch.Generator()
        return sampler

    def _run_epoch(self, **kwargs):
        early = self._callback(EarlyStoppingCallback)
        if early is not None:  # restored with the patience that it was saved with
            early.early_stopping_patience = self.args.early_stopping_patience
        if self.state.global_step >= self.state.max_steps or (
            early is not None and early.early_stopping_patience_counter >= early.early_stopping_patience
        ):
            self.control.should_training_stop = True  # a run interrupted after its last step trains no further
            return
        self.data_collator.set_epoch(kwargs["epoch"])
        if self._order is not None:
            self._order.manual_seed(self.args.seed + kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        with self._for_scoring():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._for_scoring():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _for_scoring(self):
        # The library would drop the last rows if training does, apply the training's augmentation, and shuffle if
        # training groups clips by length.
        scoring = {"dataloader_drop_last": False, "train_sampling_strategy": "random"}
        training = {name: getattr(self.args, name) for name in scoring}
        collator, self.data_collator = self.data_collator, self.eval_collator
        vars(self.args).update(scoring)
        try:
            yield
        finally:
            self.data_collator = collator
            vars(self.args).update(training)

    def evaluation_loop(self, *args, **kwargs):
        device = self.args.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return super().evaluation_loop(*args, **kwargs)

    def finish(self, results: dict) -> None:
        """Complete the run folder: checkpoint, processor, state, `results.json`, and plots if matplotlib is installed.

        Raises:
            CheckpointError: if it cannot be written, e.g. on a full disk.
        """
        with writing(Path(self.args.output_dir)):
            self.save_model(_internal_call=True)
            self.save_state()
        if self.args.should_save:
            results = {"weights": weights_digest(self.args.output_dir), **results}
            write_json(Path(self.args.output_dir) / "results.json", results)
            self._plot()
        if self.args.push_to_hub:  # on all ranks; the local files stay, whatever the Hub answers
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _plot(self) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            logger.info('No plots: they need `pip install -e ".[plot]"`.')
            return
        from plot_run import plot_run  # imports matplotlib immediately

        plot_run(Path(self.args.output_dir))

    def training_step(self, model, inputs, num_items_in_batch=None):
        clips = inputs.pop("clips")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._callback(SkipNonFinite).see(loss, clips)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        step, limit = self.state.global_step + 1, self.args.max_skipped_steps
        self._callback(SkipNonFinite).judge(model, grad_norm, step, limit)
        return grad_norm

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        encoder = self.model.base_model
        if not any(weight.requires_grad for weight in encoder.parameters()):
            encoder.eval()  # train a head on what it will see: dropout alone would inflate the deviations
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self.work.see(inputs)
            self.terms.see(outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            del logs["loss"]  # in which a skipped step is filled with a guess
            logs |= self.terms.report(self.args.device)
            if "audio_text_loss" in logs:
                # The loss of a model that knows nothing: all candidates of a batch are equally likely.
                logs["chance_loss"] = round(
                    math.log(self.args.per_device_train_batch_size * self.accelerator.num_processes), 4
                )
            if not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]
            logs |= self.work.report(self.args.device)
            logs["skipped_steps"] = self._callback(SkipNonFinite).skipped_steps
        super().log(logs, start_time)
