"""Checkpoints with something missing, foreign, broken or newer: one clear error each."""

import json
import os
import shutil
import subprocess
import sys

import evaluate
import finetune
import pytest
import torch
from safetensors.torch import load_file, save_file
from scoring import load_processor
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)

from modeling_calm import (
    CalmAudioConfig,
    CalmAudioModel,
    CalmConfig,
    CalmForPreTraining,
    CalmForSequenceClassification,
    CalmModel,
)
from modeling_calm.checks_calm import CONFIG_VERSION
from processing import CalmFeatureExtractor, CalmProcessor

HEAD = ["classifier.weight", "classifier.bias"]


def drop_weights(folder, gone) -> None:
    """Take the weights whose name `gone` accepts out of a checkpoint's files."""
    for file in folder.glob("*.safetensors"):
        save_file({k: v for k, v in load_file(file).items() if not gone(k)}, file, metadata={"format": "pt"})


def edit_config(folder, **values) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for name, value in values.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(content))


@pytest.fixture
def classifier(config, processor, tmp_path):
    """The folder of a classifier of two classes, with its processor."""
    CalmForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    processor.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture
def pretrained(config, processor, tmp_path):
    """The folder of a pretraining checkpoint, with its processor."""
    CalmForPreTraining(config).save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


# The head and the body


def test_a_classifier_that_lost_its_head_is_refused(classifier):
    """The library would start the head anew with a warning, and every score would be that of a coin."""
    drop_weights(classifier, lambda key: key in HEAD)
    for kind in (CalmForSequenceClassification, AutoModelForSequenceClassification):
        with pytest.raises(RuntimeError, match=r"lacks 2 weights of .*: classifier\.bias, classifier\.weight"):
            kind.from_pretrained(classifier)
    assert CalmModel.from_pretrained(classifier)  # the body is whole
    with pytest.raises(RuntimeError, match=r"classifier\.weight"):
        evaluate.main(["--models", str(classifier), "--dataset", "never read"])


def test_a_foreign_head_is_refused_by_both_names(classifier):
    """Heads of other packages are called otherwise; what is there helps to see which."""
    weights = load_file(classifier / "model.safetensors")
    weights["score.weight"] = weights.pop("classifier.weight")
    save_file(weights, classifier / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"lacks 1 .*classifier\.weight\. It holds others instead: score\.weight"):
        CalmForSequenceClassification.from_pretrained(classifier)


@pytest.mark.parametrize("kind", [CalmModel, CalmForPreTraining, CalmForSequenceClassification])
def test_a_missing_part_of_the_body_is_refused_by_every_class(pretrained, kind):
    """A new head is how fine-tuning begins; a SpecTran half random never is."""
    drop_weights(pretrained, lambda key: "audio_model.pooling" in key)
    with pytest.raises(RuntimeError, match=r"lacks 4 weights of .*audio_model\.pooling\.layernorm\.bias"):
        kind.from_pretrained(pretrained)


def test_spectran_does_not_start_anew_from_a_checkpoint_that_holds_it_elsewhere(pretrained, config, batch, tmp_path):
    """Its weights have longer names under a head, and none was found; the base model's checkpoint gives them."""
    with pytest.raises(RuntimeError, match=r"lacks \d+ weights of CalmAudioModel.*It holds others"):
        CalmAudioModel.from_pretrained(pretrained)
    model = CalmModel.from_pretrained(pretrained)
    model.save_pretrained(tmp_path / "base")
    loaded = CalmAudioModel.from_pretrained(tmp_path / "base")
    assert torch.equal(loaded(batch["input_features"])[0], model.audio_model(batch["input_features"])[0])


@pytest.mark.parametrize("options", [{}, {"output_loading_info": True}, {"device_map": "cpu"}])
def test_whole_checkpoints_load_as_before(classifier, pretrained, options):
    """In one file and in many, by every class that may begin on them."""
    CalmForSequenceClassification.from_pretrained(classifier).save_pretrained(classifier, max_shard_size="30KB")
    assert len(list(classifier.glob("model-*.safetensors"))) > 2
    (classifier / "model.safetensors").unlink(missing_ok=True)
    for folder, kind in (
        (classifier, CalmForSequenceClassification),
        (classifier, CalmModel),
        (pretrained, CalmForPreTraining),
        (pretrained, CalmForSequenceClassification),
    ):
        loaded = kind.from_pretrained(folder, **options)
        model, report = loaded if options.get("output_loading_info") else (loaded, {"missing_keys": set()})
        assert isinstance(model, kind)
        assert set(report["missing_keys"]) <= set(HEAD)


def test_a_shard_without_its_head_and_a_missing_shard(classifier):
    """A checkpoint of many files breaks one file at a time."""
    CalmForSequenceClassification.from_pretrained(classifier).save_pretrained(classifier, max_shard_size="30KB")
    (classifier / "model.safetensors").unlink(missing_ok=True)
    whole = classifier.with_name("whole")
    shutil.copytree(classifier, whole)
    index = json.loads((classifier / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key: file for key, file in index["weight_map"].items() if key not in HEAD}
    (classifier / "model.safetensors.index.json").write_text(json.dumps(index))
    drop_weights(classifier, lambda key: key in HEAD)
    with pytest.raises(RuntimeError, match=r"classifier\.bias, classifier\.weight"):
        CalmForSequenceClassification.from_pretrained(classifier)
    missing = sorted(whole.glob("model-*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(OSError, match=missing.name):
        CalmForSequenceClassification.from_pretrained(whole)


def test_weights_of_other_sizes_name_the_remedy(classifier):
    """A head of another number of classes is either a slip or a new beginning; the error offers both."""
    message = r"classifier\.bias \(2,\) instead of \(5,\).*leave out `num_labels`.*`ignore_mismatched_sizes=True`"
    for kind in (CalmForSequenceClassification, AutoModelForSequenceClassification):
        with pytest.raises(RuntimeError, match=message):
            kind.from_pretrained(classifier, num_labels=5)
    model, report = CalmForSequenceClassification.from_pretrained(
        classifier, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.classifier.out_features == 5 and model.classifier.weight.std() < 0.1
    assert {key for key, *_ in report["mismatched_keys"]} == set(HEAD)
    edit_config(classifier, audio_config={"intermediate_size": 48})
    with pytest.raises(RuntimeError, match=r"mlp\.fc1\.bias \(64,\) instead of \(48,\).*config\.json is missing"):
        CalmForSequenceClassification.from_pretrained(classifier)


def test_weights_given_by_hand_may_be_partial(config):
    """Tests and tools build a model from a state dict; what it lacks is theirs to know."""
    model = CalmForSequenceClassification.from_pretrained(None, config=config, state_dict={})
    assert all(value.isfinite().all() for value in model.parameters())


# Files


@pytest.mark.parametrize("content", ["nothing", "the first bytes", "half", "a pointer of git-lfs"])
def test_weights_that_cannot_be_read(classifier, content):
    """Copies that broke off, full disks, clones without large files: the error says so."""
    file = classifier / "model.safetensors"
    whole = file.read_bytes()
    broken = {
        "nothing": b"", "the first bytes": whole[:100], "half": whole[: len(whole) // 2],
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 110356\n",
    }  # fmt: skip
    file.write_bytes(broken[content])
    for kind in (CalmModel, AutoModelForSequenceClassification):
        with pytest.raises(OSError, match=f"'{classifier}' cannot be read: .*truncated.*git lfs pull"):
            kind.from_pretrained(classifier)


def test_a_checkpoint_without_its_processor(classifier, config, tokenizer):
    """The weights are of no use without; the error names the file and the line that makes it."""
    (classifier / "processor_config.json").rename(classifier / "elsewhere.json")
    for load in (AutoProcessor.from_pretrained, CalmProcessor.from_pretrained):
        with pytest.raises(OSError, match=r"lacks processor_config\.json \(.*CalmProcessor\(CalmFeature"):
            load(classifier)
    with pytest.raises(ValueError, match=r"no processor\..*lacks processor_config\.json"):
        evaluate.main(["--models", str(classifier), "--dataset", "never read"])
    (classifier / "elsewhere.json").rename(classifier / "processor_config.json")
    for file in classifier.glob("tokenizer*"):
        file.unlink()
    for load in (AutoProcessor.from_pretrained, CalmProcessor.from_pretrained):
        with pytest.raises(OSError, match=r"lacks tokenizer_config\.json, tokenizer\.json \((.|\n)*AutoTokenizer"):
            load(classifier)
    # The remedy works.
    CalmProcessor(CalmFeatureExtractor.from_audio_config(config.audio_config), tokenizer).save_pretrained(classifier)
    assert type(AutoProcessor.from_pretrained(classifier)) is CalmProcessor


@pytest.mark.parametrize("setting", [{"token_frames": 16}, {"patch_frames": 4, "patch_bins": 2}, {"hop_length": 80}])
def test_a_processor_of_other_patches_is_refused_before_any_clip_is_read(classifier, pretrained, config, setting):
    """Some of these give tensors that fit: the model would read noise without a word."""
    other = CalmAudioConfig(**{**config.audio_config.to_dict(), **setting})
    extractor = CalmFeatureExtractor.from_audio_config(other)
    CalmProcessor(extractor, AutoTokenizer.from_pretrained(classifier)).save_pretrained(classifier)
    name, value = next(iter(setting.items()))
    message = rf"other patches: .*`{name}` {value} and {getattr(config.audio_config, name)}.*from_audio_config"
    with pytest.raises(ValueError, match=message):
        extractor.check_geometry(config.audio_config)
    with pytest.raises(ValueError, match=message):
        load_processor(str(classifier))
    with pytest.raises(ValueError, match=message):
        evaluate.main(["--models", str(classifier), "--dataset", "never read"])
    with pytest.raises(ValueError, match=message):
        finetune.main(["--model", str(classifier), "--dataset", "never read", "--output_dir", str(classifier / "new")])
    CalmFeatureExtractor.from_audio_config(config.audio_config).check_geometry(config.audio_config)
    assert load_processor(str(pretrained))


# Configurations


@pytest.mark.parametrize("part", ["whole", "audio_config"])
def test_a_checkpoint_of_a_newer_package_asks_for_it(classifier, part):
    version = {"config_version": CONFIG_VERSION + 1}
    edit_config(classifier, **(version if part == "whole" else {part: version}))
    for load in (CalmModel.from_pretrained, AutoModel.from_pretrained, AutoModelForPreTraining.from_pretrained):
        with pytest.raises(ValueError, match=f"has version {CONFIG_VERSION + 1}.*Upgrade the package"):
            load(classifier)
    with pytest.raises(ValueError, match="Upgrade the package"):
        evaluate.main(["--models", str(classifier), "--dataset", "never read"])


@pytest.mark.parametrize(
    ("typo", "kind", "nearest"),
    [
        ({"clasifier_dropout": 0.5}, "CalmConfig", "classifier_dropout"),
        ({"audio_config": {"hidden_droput_prob": 0.5}}, "CalmAudioConfig", "hidden_dropout_prob"),
    ],
)
def test_a_typo_is_refused_wherever_it_stands(classifier, typo, kind, nearest):
    """In the file, in a keyword of the configuration, in one of the model: it would train with the default."""
    message = f"`{kind}` has no setting.*Did you mean `{nearest}`"
    for load in (CalmConfig, CalmModel, CalmForSequenceClassification, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=message):
            load.from_pretrained(classifier, **typo)
    edit_config(classifier, **typo)
    for load in (CalmConfig, CalmModel, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=message):
            load.from_pretrained(classifier)


def test_keywords_that_are_meant_for_others_pass(classifier):
    """The Auto classes show every keyword to the configuration first, also the tokenizer's and the loading's."""
    config, unused = CalmConfig.from_pretrained(
        classifier, return_unused_kwargs=True, classifier_dropout=0.5, do_lower_case=True, device_map="cpu"
    )
    assert config.classifier_dropout == 0.5
    assert set(unused) == {"do_lower_case", "device_map"}
    assert AutoTokenizer.from_pretrained(classifier, model_max_length=9).model_max_length == 9
    assert AutoProcessor.from_pretrained(classifier, padding_side="left").tokenizer.padding_side == "left"


# Without the package


REMOTE = """
import sys
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor

for auto, options in (
    (AutoModel, {}),
    (AutoModelForSequenceClassification, {}),
    (AutoModelForSequenceClassification, {"clasifier_dropout": 0.5}),
    (AutoProcessor, {}),
):
    try:
        print(type(auto.from_pretrained(sys.argv[1], trust_remote_code=True, **options)).__name__)
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
assert not {"modeling_calm", "processing"} & set(sys.modules)
"""


def test_the_errors_travel_with_the_checkpoint(classifier, tmp_path):
    """Most people load from the Hub by `trust_remote_code`, without the package; they meet the same errors."""
    drop_weights(classifier, lambda key: key == "classifier.weight")
    (classifier / "processor_config.json").unlink()
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(classifier)],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    body, head, typo, processor = done.stdout.strip().splitlines()
    assert body == "CalmModel"
    assert "RuntimeError" in head and "lacks 1 weights" in head and "classifier.weight" in head
    assert "Did you mean `classifier_dropout`?" in typo
    assert "OSError" in processor and "lacks processor_config.json" in processor
