"""Contrastive audio-language pretraining.

    accelerate launch examples/pretrain.py                                     # the demo: no data, no network needed
    accelerate launch examples/pretrain.py --config examples/configs/pretrain_commands.yaml --dataset FOLDER
    accelerate launch examples/pretrain.py --dataset SHARDS --streaming        # more than can be decoded beforehand

Stage `align` trains SpecTran against the word embeddings of a language model that never runs; stage `fuse` continues
from `--model ALIGNED_RUN` and trains SpecTran and the language model on all objectives.
"""

import logging
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from datasets import Dataset
from options import CalmTrainingArguments, parse_arguments, start_run, write_options
from scoring import evaluation_collator
from shards import find_shards
from speech_data import DataArguments, join, read_features, read_split, refuse_long, warn_of_shared_speakers
from speech_features import check_extractor
from speech_stream import SpeechStream
from streaming import StreamCallback, StreamingArguments, open_stream
from training import SPEC_AUGMENT, WAVEFORM_AUGMENTATION, CalmTrainer, ModelArguments
from transformers import set_seed

from modeling_calm import CalmForPreTraining
from processing import CalmProcessor, DataCollatorForCalmPreTraining
from processing.retrieval import audio_text_retrieval

STAGES = {
    "align": {
        "audio_text": 1.0,
        "audio_audio": 0.1,
        "transcript": 1.0,
        "masked_language": 0.0,
        "masked_acoustic": 0.0,
    },
    "fuse": {"audio_text": 1.0, "audio_audio": 0.1, "transcript": 1.0, "masked_language": 1.0, "masked_acoustic": 1.0},
}


@dataclass
class PretrainingArguments(ModelArguments):
    """What is trained, and on which objectives."""

    stage: str = field(default="align", metadata={"help": "align or fuse.", "choices": sorted(STAGES)})
    train_word_embeddings: bool = field(default=False, metadata={"help": "Ablation: do not freeze them in fuse."})
    added_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets whose training split joins that of --dataset; one named twice counts twice."},
    )
    augment: bool = field(default=True, metadata={"help": "Speed, silence, bands, noise, level and SpecAugment."})
    audio_text_loss_weight: float | None = field(default=None, metadata={"help": "Instead of the stage's."})
    audio_audio_loss_weight: float | None = field(default=None, metadata={"help": "Instead of the stage's."})
    transcript_loss_weight: float | None = field(default=None, metadata={"help": "Instead of the stage's."})
    masked_language_loss_weight: float | None = field(default=None, metadata={"help": "Instead of the stage's."})
    masked_acoustic_loss_weight: float | None = field(default=None, metadata={"help": "Instead of the stage's."})
    contrastive_chunk_size: int | None = field(
        default=None, metadata={"help": "Clips whose activations are held at once, so that a batch can be large."}
    )


def objectives(arguments: PretrainingArguments) -> dict[str, float]:
    """The loss weights of the stage, overridden by those given."""
    weights = {f"{name}_loss_weight": weight for name, weight in STAGES[arguments.stage].items()}
    return weights | {name: value for name in weights if (value := getattr(arguments, name)) is not None}


def freeze(model: CalmForPreTraining, arguments: PretrainingArguments) -> None:
    """Freeze everything that is unused in the stage or because of a loss weight of 0."""
    config = model.config
    fused = bool(config.masked_language_loss_weight or config.masked_acoustic_loss_weight)
    model.calm.text_model.requires_grad_(fused)
    contrasts = (config.audio_text_loss_weight, config.audio_audio_loss_weight, config.masked_acoustic_loss_weight)
    model.logit_scale.requires_grad_(any(contrasts))
    model.lm_head.requires_grad_(bool(config.masked_language_loss_weight))
    model.acoustic_head.requires_grad_(bool(config.masked_acoustic_loss_weight))
    model.calm.audio_model.mask_embedding.requires_grad_(bool(config.masked_acoustic_loss_weight))
    model.get_input_embeddings().requires_grad_(fused and arguments.train_word_embeddings)


def refuse_unreadable(dataset: Dataset, tokenizer, split: str) -> None:
    """Reject transcripts of which the tokenizer knows no piece: they have no position in the aligned space.

    Raises:
        ValueError: lists the rows whose transcript consists of special tokens only, such as [UNK].
    """
    special = set(tokenizer.all_special_ids)
    texts = list(dataset["text"])
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = {i: texts[i] for i, row in enumerate(ids) if special.issuperset(row)}
    if rows:
        raise ValueError(
            f"The tokenizer of the language model knows no piece of these transcripts of split '{split}', by row:"
            f" {rows}. Correct them, or choose a language model of their language and script."
        )


def read_data(
    arguments: PretrainingArguments,
    data: DataArguments,
    streaming: StreamingArguments,
    training: CalmTrainingArguments,
    processor: CalmProcessor,
) -> tuple[Dataset | SpeechStream, Dataset]:
    """The training split, decoded in advance or as a stream, and the validation split.

    Raises:
        ValueError: if data sets are added to a stream; see also [`read_split`] and [`refuse_unreadable`].
    """
    if streaming.streaming and arguments.added_datasets:
        raise ValueError(
            "`--added_datasets` join what is decoded beforehand; for a stream put all shards in one folder."
        )
    held_out = replace(data, dataset=streaming.validation_dataset or data.dataset)
    training_sources = [data] * (not streaming.streaming) + [
        replace(data, dataset=n) for n in arguments.added_datasets
    ]
    sources = [(held_out, data.validation_split), *((source, data.train_split) for source in training_sources)]
    column, extractor = streaming.features_column, processor.feature_extractor
    if column is not None:
        asked = {(source.dataset, split) for source, split in [*sources, (data, data.train_split)]}
        for source, name in {(source, part.partition("[")[0]) for source, split in asked for part in split.split("+")}:
            for file in find_shards(source, name, data.dataset_config):
                check_extractor(file, extractor)
    with training.main_process_first(desc="reading the audio"):
        validation, *train = [
            read_features(source, split, column) if column else read_split(source, split, extractor.sampling_rate)
            for source, split in sources
        ]
    for dataset, (_, split) in zip((validation, *train), sources, strict=True):
        refuse_unreadable(dataset, processor.tokenizer, split)
    if streaming.streaming:
        return open_stream(data, streaming, training), validation
    train = join(train)
    warn_of_shared_speakers({data.train_split: train, data.validation_split: validation})
    return train, validation


def retrieval(tokenizer, prediction) -> dict[str, float]:
    """Retrieval metrics on the validation split; the token ids of the transcripts are passed as labels."""
    audio, text = prediction.predictions
    ids = np.where(prediction.label_ids < 0, tokenizer.pad_token_id, prediction.label_ids)
    return audio_text_retrieval(audio, text, tokenizer.batch_decode(ids, skip_special_tokens=True))


def main(argv: list[str] | None = None) -> dict:
    kinds = (PretrainingArguments, DataArguments, StreamingArguments, CalmTrainingArguments)
    arguments, data, streaming, training = parse_arguments(*kinds, arguments=argv, defaults=DEFAULTS)
    logging.basicConfig(level=logging.INFO if training.should_log else logging.WARNING)
    # The token ids of the transcripts serve as labels: `compute_metrics` identifies equal transcripts by them.
    training.label_names, training.remove_unused_columns = ["input_ids"], False
    training.dataloader_drop_last = True
    checkpoint = start_run(training)
    set_seed(training.seed)
    processor = arguments.load_processor()
    model = arguments.load_model(
        CalmForPreTraining, contrastive_chunk_size=arguments.contrastive_chunk_size, **objectives(arguments)
    )
    freeze(model, arguments)
    train, validation = read_data(arguments, data, streaming, training, processor)
    augmentation = WAVEFORM_AUGMENTATION if arguments.augment and not streaming.features_column else None
    if any(parameter.requires_grad for parameter in model.calm.text_model.parameters()) and not streaming.streaming:
        limit = model.calm.max_tokens()
        refuse_long(train, data.train_split, processor, limit, augmentation)
        refuse_long(validation, data.validation_split, processor, limit)

    collator = DataCollatorForCalmPreTraining(
        processor,
        waveform_augmentation=augmentation,
        spec_augment=SPEC_AUGMENT if arguments.augment else None,
        mlm_probability=0.15 if model.config.masked_language_loss_weight else 0.0,
        mask_time_prob=0.15 if model.config.masked_acoustic_loss_weight else 0.0,
    )
    trainer = CalmTrainer(
        model=model,
        args=training,
        data_collator=collator,
        eval_collator=evaluation_collator(processor),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=[StreamCallback()] if streaming.streaming else [],
        compute_metrics=partial(retrieval, processor.tokenizer),
    )
    write_options(training, DEFAULTS, arguments, data, streaming)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.finish({"validation": metrics})
    return metrics


# Without arguments, these and the default data set run the demo.
DEFAULTS = {
    "output_dir": "runs/pretrain", "num_train_epochs": 20, "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
    "weight_decay": 0.01, "max_grad_norm": 1.0, "logging_steps": 10, "eval_strategy": "epoch",
    "save_strategy": "epoch", "save_total_limit": 1, "load_best_model_at_end": True,
    "metric_for_best_model": "audio_to_text_map@10", "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True, "dataloader_pin_memory": False, "length_column_name": "duration",
}  # fmt: skip


if __name__ == "__main__":
    main()
