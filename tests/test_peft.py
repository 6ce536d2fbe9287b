"""Low-rank adapters by `peft`: the few weights that are trained are the right ones, and come back from a file."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from model_helpers import ALIGN, close, quiet
from options import CalmTrainingArguments
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from training import CalmTrainer
from transformers import AutoModelForSequenceClassification, Trainer

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification, CalmModel
from processing import DataCollatorForCalmClassification

SPECTRAN = ["q_proj", "k_proj", "v_proj", "o_proj"]
BERT = ["query", "key", "value"]
HEAD = {"classifier.weight", "classifier.bias"}
LABELS = torch.tensor([0, 1, 1, 0])


@pytest.fixture
def folder(config, tmp_path):
    """A checkpoint to adapt, of two classes, without dropout."""
    CalmForSequenceClassification(quiet(config)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapted(folder):
    """That checkpoint with fresh adapters on every attention, for the task of classification."""
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=SPECTRAN + BERT, r=4, lora_alpha=8)
    return get_peft_model(CalmForSequenceClassification.from_pretrained(folder), lora)


def fit(model, batch, steps: int = 12) -> list[float]:
    """The loss of every step, on one batch."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def trained(model) -> set[str]:
    """Names of the parameters that have a gradient, as the model without adapters would call them."""
    found = (name for name, value in model.named_parameters() if value.grad is not None)
    return {
        name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", "")
        for name in found
    }


def test_only_the_adapters_and_the_head_learn(adapted, batch):
    """The head is found by its name; a second layer of that name would be trained and shipped whole."""
    before = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    losses = fit(adapted, {**batch, "labels": LABELS})
    assert losses[-1] < 0.5 * losses[0]
    names = trained(adapted)
    assert {name for name in names if ".lora_" not in name} == HEAD
    layers = {name.split(".lora_")[0] for name in names - HEAD}
    assert len(layers) == 4 * (2 + 2) + 3 * 2  # SpecTran's layers within and across windows, BERT's
    assert {layer.rsplit(".", 1)[1] for layer in layers} == set(SPECTRAN + BERT)
    assert before and all(torch.equal(adapted.get_parameter(name), value) for name, value in before.items())


def test_an_adapter_comes_back_to_the_bit(adapted, folder, batch, tmp_path):
    """By every way that people load one: onto the model, by `peft`'s Auto class, by the library's."""
    fit(adapted, {**batch, "labels": LABELS}, 3)
    expected = adapted(**batch).logits
    adapted.save_pretrained(tmp_path / "adapter")
    kept = {
        name.removeprefix("base_model.model.") for name in load_file(tmp_path / "adapter/adapter_model.safetensors")
    }
    assert {name for name in kept if ".lora_" not in name} == HEAD
    base = CalmForSequenceClassification.from_pretrained(folder)
    assert not torch.equal(base(**batch).logits, expected)
    for loaded in (
        PeftModel.from_pretrained(base, tmp_path / "adapter"),
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter"),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter"),
        CalmForSequenceClassification.from_pretrained(tmp_path / "adapter"),
    ):
        assert torch.equal(loaded.eval()(**batch).logits, expected)


def test_a_merged_adapter_is_an_ordinary_checkpoint(adapted, batch, tmp_path):
    """Deployment and export want no `peft`: the weights take the adapters in, and outputs stay."""
    fit(adapted, {**batch, "labels": LABELS}, 3)
    expected = adapted(**batch).logits
    merged = adapted.merge_and_unload()
    assert type(merged) is CalmForSequenceClassification
    close(merged(**batch).logits, expected)
    merged.save_pretrained(tmp_path / "merged")
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(loaded(**batch).logits, merged(**batch).logits)


@pytest.mark.parametrize("given", ["audio", "text"])
def test_an_adapter_needs_no_second_modality(adapted, batch, given):
    """`peft` hands on `input_ids=None` and `inputs_embeds=None`, which are no inputs."""
    names = {"audio": ("input_features", "input_features_mask"), "text": ("input_ids", "attention_mask")}[given]
    losses = fit(adapted, {**{name: batch[name] for name in names}, "labels": LABELS})
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="`inputs_embeds` are made here"):
        adapted(inputs_embeds=torch.zeros(4, 3, 24), input_ids=batch["input_ids"])


def test_a_classifier_of_other_classes_begins_on_a_pretraining_checkpoint(config, batch, tmp_path):
    """The usual way: pretrained weights as they are, adapters, and a new head; the file of the adapter holds both."""
    CalmForPreTraining(quiet(config)).save_pretrained(tmp_path / "pretrained")

    def base():
        return CalmForSequenceClassification.from_pretrained(tmp_path / "pretrained", num_labels=3)

    model = get_peft_model(base(), LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj", "v_proj"]))
    fit(model, {**batch, "labels": torch.tensor([0, 1, 2, 0])}, 3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()  # the head of `base()` is another one
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("stage", ["align", "fuse"])
def test_pretraining_goes_on_with_adapters(config, pretraining_batch, tmp_path, stage):
    """A corpus of another kind of speech, a few thousand weights: all four terms reach them."""
    for name, value in (ALIGN if stage == "align" else {}).items():
        setattr(config, name, value)
    model = CalmForPreTraining(quiet(config))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(target_modules=SPECTRAN + BERT, r=4))
    drawn = pretraining_batch()
    losses = fit(adapted, drawn, 20)
    assert losses[-1] < losses[0]
    parts = {name.split(".")[1] for name in trained(adapted)}
    assert parts == ({"audio_model"} if stage == "align" else {"audio_model", "text_model"})
    assert all(".lora_" in name for name in trained(adapted))
    expected = adapted(**drawn).loss
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = CalmForPreTraining(config)
    fresh.load_state_dict(state)
    close(PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(**drawn).loss, expected, 0.0)
    merged = adapted.merge_and_unload()
    close(merged(**drawn).loss, expected)
    merged.save_pretrained(tmp_path / "merged")
    features = {key: drawn[key] for key in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    close(CalmModel.from_pretrained(tmp_path / "merged")(**features), merged.calm(**features), 0.0)


@pytest.mark.parametrize("kind", [Trainer, CalmTrainer])
def test_the_trainers_train_and_save_adapters(kind, adapted, folder, processor, noise, tone, tmp_path):
    """Both the library's and ours: the loss falls, the checkpoint is the adapter, and it loads."""
    clips = [tone(400 + 300 * i, 0.4) if i % 2 else noise(0.4, seed=i) for i in range(6)]
    columns = {"row": range(6), "audio": clips, "text": ["cat", "dog"] * 3, "label": [0, 1] * 3}
    rows = Dataset.from_dict(columns).with_format("numpy")
    collator = DataCollatorForCalmClassification(processor)
    arguments = CalmTrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=8, per_device_train_batch_size=3, learning_rate=1e-2,
        remove_unused_columns=False, report_to="none", disable_tqdm=True, logging_steps=2, save_strategy="no",
        dataloader_pin_memory=False, label_names=["labels"],
    )  # fmt: skip
    options = {"eval_collator": collator} if kind is CalmTrainer else {}
    trainer = kind(
        model=adapted, args=arguments, data_collator=collator, train_dataset=rows, eval_dataset=rows,
        processing_class=processor, **options,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.7 * before
    trainer.save_model()
    saved = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json"} <= saved
    assert "model.safetensors" not in saved
    loaded = PeftModel.from_pretrained(CalmForSequenceClassification.from_pretrained(folder), tmp_path / "run").eval()
    inputs = collator([rows[i] for i in range(6)])
    with torch.no_grad():
        assert np.isclose(loaded(**inputs).loss.item(), after, atol=1e-5)
