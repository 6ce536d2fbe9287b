"""Guards of a long run: a step that is not finite changes nothing and is told of; a collapse is warned of."""

import copy
import math

import pretrain
import pytest
import torch
from example_helpers import load_json, read, run
from guards import SkipNonFinite, WarnOfCollapse
from meters import mean_cosine
from options import CalmTrainingArguments
from process_helpers import forked, forked_ranks
from torch.nn.functional import normalize
from training import CalmTrainer, ModelArguments
from transformers import TrainerCallback, TrainerControl, TrainerState

from modeling_calm import CalmForPreTraining
from processing import DataCollatorForCalmPreTraining

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


class Snapshots(TrainerCallback):
    """Weights, optimizer and learning rate before the first step and after every step."""

    def __init__(self):
        self.weights, self.optimizers, self.rates = [], [], []

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.on_step_end(args, state, control, model, optimizer)

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        self.weights.append(copy.deepcopy(model.state_dict()))
        self.optimizers.append(copy.deepcopy(optimizer.state_dict()["state"]))
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def trained(new_model, corpus, tmp_path):
    """`trained(bad_batches, spoil, **settings)`: a trainer after four steps, with NaN in the batches of these numbers.

    `spoil(trainer)` is called before.
    """

    def make(bad_batches=(), spoil=None, **settings) -> tuple[CalmTrainer, Snapshots]:
        torch.manual_seed(0)
        arguments = ModelArguments(text_model=new_model[1], audio_config=new_model[3])
        processor, dataset = arguments.load_processor(), read(corpus)
        collator, count = DataCollatorForCalmPreTraining(processor), iter(range(100))

        def collate(rows, generator):
            batch = collator(rows, generator)
            if next(count) in bad_batches:
                batch["input_features"][1, 0, 0] = math.nan
            return batch

        options = CalmTrainingArguments(
            output_dir=str(tmp_path), remove_unused_columns=False, report_to="none", save_strategy="no",
            dataloader_drop_last=True, disable_tqdm=True, dataloader_num_workers=0, logging_steps=1, max_steps=4,
            per_device_train_batch_size=2, use_cpu=True, **settings,
        )  # fmt: skip
        model = arguments.load_model(CalmForPreTraining)
        trainer = CalmTrainer(
            model=model, args=options, data_collator=collate, eval_collator=collator, train_dataset=dataset,
            processing_class=processor,
        )  # fmt: skip
        snapshots = Snapshots()
        trainer.add_callback(snapshots)
        if spoil is not None:
            spoil(trainer)
        trainer.train()
        return trainer, snapshots

    return make


def assert_only_step_2_changed_nothing(snapshots: Snapshots) -> None:
    """Steps are counted from 1; `weights[0]` are those before the first."""
    for step in range(1, 5):
        same = all(torch.equal(v, snapshots.weights[step - 1][k]) for k, v in snapshots.weights[step].items())
        assert same == (step == 2), step
    before, after = snapshots.optimizers[1:3]
    assert before.keys() == after.keys() and len(before) > 0
    for index, state in before.items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[index][k])) for k, v in state.items())
    assert all(weight.isfinite().all() for weight in snapshots.weights[-1].values())


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}, {"max_grad_norm": 0.0}])
def test_a_loss_that_is_not_finite_changes_nothing(trained, caplog, settings):
    """One NaN in an optimizer's state spoils every step after it. With accumulation, half a step would be another."""
    micro = settings.get("gradient_accumulation_steps", 1)
    trainer, snapshots = trained(bad_batches=[micro], **settings)  # the first of step 2
    assert_only_step_2_changed_nothing(snapshots)
    assert snapshots.rates[3] < snapshots.rates[2] < snapshots.rates[1]  # the schedule goes on
    (message,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert message.startswith("Step 2 is skipped, its loss is not finite. Its clips: clip_")
    assert message.count("clip_") == 2 * micro
    history = [entry for entry in trainer.state.log_history if "skipped_steps" in entry]
    assert [entry["skipped_steps"] for entry in history] == [0, 1, 1, 1]
    assert ["loss" in entry for entry in history] == [True, micro > 1, True, True]  # of the batches that have one
    assert all(math.isfinite(value) for entry in history for value in entry.values())


def test_a_gradient_that_is_not_finite_changes_nothing(trained, caplog):
    """An overflow in the backward pass leaves a loss that looks sound."""

    def spoil(trainer):
        def hook(gradient):
            return gradient / 0 if trainer.state.global_step == 1 else gradient

        trainer.model.calm.audio_projection.weight.register_hook(hook)

    _, snapshots = trained(spoil=spoil)
    assert_only_step_2_changed_nothing(snapshots)
    assert "Step 2 is skipped, its gradient is not finite." in caplog.text


def test_too_many_skipped_steps_in_a_row_stop_the_run(trained):
    trainer, _ = trained(bad_batches=[0, 1, 3], max_skipped_steps=2)  # two in a row, and one more
    assert trainer._callback(SkipNonFinite).skipped_steps == 3
    with pytest.raises(FloatingPointError, match=r"2 steps in a row .* up to step 3 .*clip_.*--max_skipped_steps"):
        trained(bad_batches=[1, 2], max_skipped_steps=1)


def test_the_counts_come_back_with_a_checkpoint():
    """But not the limit, which may be raised to go on."""
    guard = SkipNonFinite()
    guard.skipped_steps, guard.skipped_in_a_row = 7, 2
    again = SkipNonFinite.from_state(guard.state())
    assert (again.skipped_steps, again.skipped_in_a_row) == (7, 2)


def test_all_ranks_skip_together(corpus, new_model, tmp_path):
    """A rank that steps while another skips has other weights from then on. Only rank 1 meets what is not finite."""

    def task(rank):
        if rank == 1:
            forward = CalmForPreTraining.forward
            steps = iter(range(10))

            def spoiled(self, *arguments, **batch):
                output = forward(self, *arguments, **batch)
                if self.training and next(steps) == 1:
                    output["loss"] = output["loss"].detach() * math.nan + 0 * output["loss"]
                return output

            CalmForPreTraining.forward = spoiled
        options = ["--per_device_train_batch_size", "2", "--use_cpu", "true", "--save_strategy", "no"]
        run(pretrain, corpus, tmp_path / "run", *new_model, *options, "--load_best_model_at_end", "false", steps=3)

    assert forked_ranks(task) == [0, 0]
    history = load_json(tmp_path / "run" / "trainer_state.json")["log_history"]
    assert [entry["skipped_steps"] for entry in history if "skipped_steps" in entry] == [0, 1, 1]


def test_a_collapse_is_warned_of_after_the_warmup(caplog):
    """All clips at one place is a loss that falls, slowly, to that of chance: the log must say so."""
    state = TrainerState(max_steps=100, global_step=50)
    arguments = CalmTrainingArguments(output_dir="unused", warmup_steps=0.1)
    callback, control = WarnOfCollapse(), TrainerControl()
    callback.on_log(arguments, state, control, logs={"audio_embeds_cosine": 0.5})
    callback.on_log(arguments, state, control, logs={"eval_loss": 1.0})
    state.global_step = 10
    callback.on_log(arguments, state, control, logs={"audio_embeds_cosine": 0.999})
    assert not caplog.records
    state.global_step = 11
    callback.on_log(arguments, state, control, logs={"audio_embeds_cosine": 0.999})
    assert "Step 11: the audio embeddings of different clips are alike (mean cosine 0.999)" in caplog.text


def test_the_mean_cosine_is_that_of_all_pairs():
    embeds = normalize(torch.randn(7, 5), dim=-1)
    pairs = (embeds @ embeds.T)[~torch.eye(7, dtype=torch.bool)]
    torch.testing.assert_close(mean_cosine(embeds), pairs.mean())
    assert mean_cosine(embeds[:1].expand(4, -1)).item() == pytest.approx(1.0)
    assert mean_cosine(embeds[:1]).item() == pytest.approx(0.0, abs=1e-6)  # no pair


def test_full_determinism_runs_and_repeats(corpus, new_model, tmp_path):
    """`--full_determinism` refuses every operation that has no deterministic form: none may be in a training step."""

    def task(output):
        options = ["--stage", "fuse", "--full_determinism", "true", "--augment", "true"]
        run(pretrain, corpus, output, *new_model, *options, steps=2)
        assert torch.are_deterministic_algorithms_enabled()

    outputs = [tmp_path / "first", tmp_path / "second"]
    assert [forked(task, output) for output in outputs] == [0, 0]
    first, second = ((output / "model.safetensors").read_bytes() for output in outputs)
    assert first == second


def test_a_model_that_hears_nothing_is_told_of(trained, caplog):
    """End to end: every clip gets the same embedding, whatever it holds."""

    def spoil(trainer):
        projection = trainer.model.calm.audio_projection
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.ones_(projection.bias)

    trained(spoil=spoil, learning_rate=0.0, text_learning_rate=0.0, head_learning_rate=0.0)
    assert caplog.text.count("the model collapses") == 4
    caplog.clear()
    trained()
    assert "collapses" not in caplog.text
