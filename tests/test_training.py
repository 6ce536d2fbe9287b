"""The Trainer: one rate a part, no decay of gains and biases, every clip scored, and the gradient of a mean."""

import copy
import functools
import json

import pretrain
import pytest
import torch
from example_helpers import load_json, read, run
from finetune import fit_labels
from model_helpers import TERMS
from options import CalmTrainingArguments
from pretrain import retrieval
from torch import nn
from training import CalmTrainer, ModelArguments
from transformers import TrainerCallback

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification
from processing import (
    DataCollatorForCalmClassification,
    DataCollatorForCalmPreTraining,
    SpecAugment,
    WaveformAugmentation,
)

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


class Recorder(TrainerCallback):
    """Keeps the gradient that the optimizer is given, and does not let it step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def arguments(new_model) -> ModelArguments:
    return ModelArguments(text_model=new_model[1], audio_config=new_model[3])


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path, config, processor):
    """The head alone may start anew: an encoder of random numbers would be trained without a word."""
    folder = tmp_path / "run"
    CalmForPreTraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = load_json(folder / "config.json")
    settings["audio_config"]["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="do not fit its config.json: calm.audio_model"):
        ModelArguments(model=str(folder)).load_model(CalmForSequenceClassification)


@pytest.fixture
def make_trainer(arguments, corpus, tmp_path):
    """`make_trainer(kind, **settings of the training)`: a trainer of eight clips, its collator keeping the batches."""

    def make(kind: type, augment: bool = False, **settings) -> CalmTrainer:
        torch.manual_seed(0)
        processor, dataset = arguments.load_processor(), read(corpus)
        augmentation = (WaveformAugmentation(), SpecAugment()) if augment else (None, None)
        if kind is CalmForPreTraining:
            model = arguments.load_model(kind, transcript_loss_weight=1.0)
            collator = DataCollatorForCalmPreTraining(processor, *augmentation)
            plain = DataCollatorForCalmPreTraining(processor, mlm_probability=0, mask_time_prob=0, draw_pairs=False)
            settings |= {"label_names": ["input_ids"]}
        else:
            names = {"calm": 0, "noisy": 1}
            problem = "single_label_classification"
            model = arguments.load_model(kind, problem_type=problem, label2id=names, classifier_dropout=0.0)
            dataset = fit_labels(dataset, problem, names, "train")
            collator = DataCollatorForCalmClassification(processor, *augmentation)
            plain = DataCollatorForCalmClassification(processor)
        options = CalmTrainingArguments(
            output_dir=str(tmp_path), remove_unused_columns=False, save_strategy="no",
            dataloader_drop_last=True, disable_tqdm=True, dataloader_num_workers=0, max_grad_norm=0.0,
            **{"per_device_eval_batch_size": 3, "report_to": "none", **settings},
        )  # fmt: skip
        batches = []

        def collate(rows, generator):
            batches.append(collator(rows, generator))
            return batches[-1]

        trainer = CalmTrainer(
            model=model, args=options, data_collator=collate, eval_collator=plain, train_dataset=dataset,
            eval_dataset=dataset, processing_class=processor,
            compute_metrics=functools.partial(retrieval, processor.tokenizer) if kind is CalmForPreTraining else None,
        )  # fmt: skip
        trainer.seen_batches = batches
        return trainer

    return make


def test_a_push_that_fails_leaves_the_weights(make_trainer, tmp_path, monkeypatch):
    """The Hub's errors are the system's by class, and a full disk is not what they mean."""
    trainer = make_trainer(CalmForPreTraining)
    trainer.args.push_to_hub = True
    monkeypatch.setattr(trainer, "_plot", lambda: None)
    monkeypatch.setattr(trainer, "push_to_hub", lambda **_: (_ for _ in ()).throw(OSError("403 Forbidden")))
    with pytest.raises(OSError, match="403 Forbidden"):
        trainer.finish({"validation": {}})
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "results.json").is_file()


def test_every_parameter_learns_at_the_rate_of_its_part(make_trainer):
    rates = {"learning_rate": 1e-3, "text_learning_rate": 1e-5, "head_learning_rate": 1e-2, "weight_decay": 0.1}
    for kind, heads in (
        (CalmForPreTraining, ("lm_head.", "acoustic_head.")),
        (CalmForSequenceClassification, ("classifier.",)),
    ):
        trainer = make_trainer(kind, **rates)
        trainer.model.get_input_embeddings().requires_grad_(False)
        groups = trainer.create_optimizer().param_groups
        place = {id(p): group for group in groups for p in group["params"]}
        trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        assert sum(len(group["params"]) for group in groups) == len(place) == len(trained)
        assert not any(id(p) in place for p in trainer.model.get_input_embeddings().parameters())
        for name, parameter in trained.items():
            part = "text" if ".text_model." in name else "head" if name.startswith(heads) else "spectran"
            expected = {"text": 1e-5, "head": 1e-2, "spectran": 1e-3}[part]
            assert place[id(parameter)]["lr"] == expected, name
        assert {group["lr"] for group in groups} == {1e-5, 1e-2, 1e-3}


def test_gains_biases_and_scales_do_not_decay(make_trainer):
    trainer = make_trainer(CalmForPreTraining, weight_decay=0.1)
    decay = {
        id(p): group["weight_decay"] for group in trainer.create_optimizer().param_groups for p in group["params"]
    }
    norms = {id(p) for m in trainer.model.modules() if "norm" in type(m).__name__.lower() for p in m.parameters()}
    assert norms
    for name, parameter in trainer.model.named_parameters():
        spared = id(parameter) in norms or name.endswith("bias") or parameter.ndim < 2
        assert decay[id(parameter)] == (0.0 if spared else 0.1), name
    for module in trainer.model.modules():
        if isinstance(module, nn.Linear):
            assert decay[id(module.weight)] == 0.1


@pytest.mark.parametrize("kind", [CalmForPreTraining, CalmForSequenceClassification])
def test_every_clip_is_scored_as_it_is(make_trainer, kind):
    """`dataloader_drop_last` and the augmentation are for training; the library would keep both in every split."""
    trainer = make_trainer(kind, augment=True)
    first, second = (trainer.predict(trainer.eval_dataset) for _ in range(2))
    embeds = [p.predictions[0] if kind is CalmForPreTraining else p.predictions for p in (first, second)]
    assert len(embeds[0]) == len(first.label_ids) == 8
    assert (embeds[0] == embeds[1]).all()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(first.metrics["test_loss"])
    assert kind is CalmForSequenceClassification or metrics["eval_num_clips"] == 8
    assert trainer.seen_batches == []
    assert trainer.args.dataloader_drop_last and len(trainer.get_train_dataloader()) == 1


@pytest.mark.parametrize("kind", [CalmForPreTraining, CalmForSequenceClassification])
def test_accumulation_gives_the_gradient_of_the_mean_loss(make_trainer, kind):
    """The library takes a model whose forward has `**kwargs` for one that divides by the batches itself."""
    trainer = make_trainer(kind, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1)
    model = copy.deepcopy(trainer.model).train()
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    assert [len(batch["input_ids"]) for batch in trainer.seen_batches] == [4, 4]
    torch.stack([model(**batch).loss for batch in trainer.seen_batches]).mean().backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == recorder.gradient.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(recorder.gradient[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_the_log_names_the_terms_and_the_loss_of_chance(make_trainer):
    trainer = make_trainer(CalmForPreTraining, per_device_train_batch_size=4, max_steps=2, logging_steps=2)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    config = trainer.model.config
    total = sum(getattr(config, f"{term}_weight") * entry[term] for term in TERMS)
    assert total == pytest.approx(entry["loss"], abs=1e-3)
    assert entry["chance_loss"] == pytest.approx(1.3863, abs=1e-4)  # ln 4


def test_a_run_that_stopped_goes_on(corpus, new_model, tmp_path):
    options = [*new_model, "--save_steps", "1", "--eval_steps", "1"]
    run(pretrain, corpus, tmp_path, *options, steps=2)
    with pytest.raises(ValueError, match="already holds a run"):
        run(pretrain, corpus, tmp_path, *options, steps=3)
    run(pretrain, corpus, tmp_path, *options, "--resume", steps=3)
    history = load_json(tmp_path / "trainer_state.json")["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]


def test_a_run_that_is_over_is_not_trained_anew(corpus, new_model, tmp_path):
    """`--resume` stays in a command that is repeated; without checkpoints it would replace the model."""
    options = [*new_model, "--save_strategy", "no", "--load_best_model_at_end", "false", "--resume"]
    run(pretrain, corpus, tmp_path, *options, steps=1)
    weights = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="a run that is over, and no checkpoint"):
        run(pretrain, corpus, tmp_path, *options, steps=2)
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_a_run_that_is_over_keeps_its_last_checkpoint_beside_the_best(corpus, new_model, tmp_path):
    """With the defaults the library removes it, and `--resume` would train again from the best."""
    options = [*new_model, "--save_steps", "1", "--eval_steps", "1", "--metric_for_best_model", "eval_num_clips"]
    options += ["--save_total_limit", "1", "--resume"]
    run(pretrain, corpus, tmp_path / "run", *options, steps=3)
    assert sorted(folder.name for folder in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-3",
    ]
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run").rename(tmp_path / "moved")
    run(pretrain, corpus, tmp_path / "moved", *options, steps=3)
    assert (tmp_path / "moved" / "model.safetensors").read_bytes() == weights
    state = load_json(tmp_path / "moved" / "trainer_state.json")
    assert state["global_step"] == 3 and state["best_model_checkpoint"].endswith("moved/checkpoint-1")


def test_early_stopping_can_be_given_when_a_run_goes_on(corpus, new_model, tmp_path):
    options = [*new_model, "--save_steps", "1", "--eval_steps", "1", "--metric_for_best_model", "eval_num_clips"]
    run(pretrain, corpus, tmp_path, *options, steps=1)
    run(pretrain, corpus, tmp_path, *options, "--resume", "--early_stopping_patience", "5", steps=2)
    run(pretrain, corpus, tmp_path, *options, "--resume", "--early_stopping_patience", "2", steps=9)
    assert load_json(tmp_path / "trainer_state.json")["global_step"] == 3  # the clips grow no more in number


def test_training_does_not_start_from_a_damaged_checkpoint(corpus, new_model, tmp_path):
    """Zeros where the weights were load without an error."""
    run(pretrain, corpus, tmp_path / "run", *new_model, steps=1)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes([1, 2, 3, 4]))
    with pytest.raises(ValueError, match="checkpoint-1' is damaged: 'model.safetensors'"):
        run(pretrain, corpus, tmp_path / "next", "--model", str(checkpoint), steps=1)


def test_a_tracker_gets_plain_numbers(make_trainer):
    """Trackers take what `Trainer.log` reports, and drop or refuse what is no number."""
    reported = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            reported.append(dict(logs))

    trainer = make_trainer(CalmForPreTraining, per_device_train_batch_size=4, max_steps=2, logging_steps=1)
    trainer.add_callback(Tracker)
    trainer.train()
    names = {
        "loss", "grad_norm", "learning_rate", *TERMS, "chance_loss", "audio_embeds_cosine", "audio_seconds_per_second",
        "real_patch_share", "real_position_share", "peak_memory_gib", "skipped_steps", "epoch",
    }  # fmt: skip
    assert [set(logs) for logs in reported[:2]] == [names, names]
    assert all(isinstance(value, (int, float)) for logs in reported for value in logs.values())
    share = trainer.seen_batches[0]["input_features_mask"].float().mean().item()
    assert reported[0]["real_patch_share"] == pytest.approx(share, abs=1e-4)


def test_tensorboard_shows_the_log(make_trainer, tmp_path):
    pytest.importorskip("tensorboard", reason="needs `pip install tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(
        CalmForPreTraining, per_device_train_batch_size=4, max_steps=2, logging_steps=1, report_to="tensorboard"
    )
    trainer.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    written = EventAccumulator(str(events)).Reload()
    shown = [event.value for event in written.Scalars("train/audio_seconds_per_second")]
    logged = [entry["audio_seconds_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    assert shown == pytest.approx(logged)


def test_weights_are_trained_in_float32_however_they_were_stored(arguments, tmp_path):
    """Most language models of the Hub are stored in half precision, and a step of training is lost on half weights."""
    model = arguments.load_model(CalmForSequenceClassification).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "classifier")
    model.calm.text_model.save_pretrained(tmp_path / "language")
    arguments.load_processor().tokenizer.save_pretrained(tmp_path / "language")
    for found in (
        ModelArguments(model=str(tmp_path / "classifier")),
        ModelArguments(text_model=str(tmp_path / "language"), audio_config=arguments.audio_config),
    ):
        assert {weight.dtype for weight in found.load_model(CalmForSequenceClassification).parameters()} == {
            torch.float32
        }


@pytest.mark.parametrize("frozen", [False, True])
def test_an_encoder_that_stays_is_run_as_it_will_be_used(make_trainer, frozen):
    """Trained on states that dropout has shaken, a classifier did not know those of the evaluation."""
    trainer = make_trainer(CalmForSequenceClassification, max_steps=1, per_device_train_batch_size=4)
    trainer.model.calm.requires_grad_(not frozen)
    modes = []
    trainer.model.calm.register_forward_pre_hook(lambda module, _: modes.append(module.audio_model.training))
    trainer.train()
    assert modes == [not frozen] and trainer.model.dropout.training
