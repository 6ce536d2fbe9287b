"""What publish.py writes, and what it refuses, before any network: `test_hub.py` pushes and pulls."""

import re
import shutil
from pathlib import Path

import evaluate
import finetune
import publish
import pytest
import torch
from example_helpers import load_json, run
from huggingface_hub import ModelCard
from model_card import TEMPLATE, fill, way_of_use
from options import weights_digest

from modeling_calm import CalmAudioModel, CalmForPreTraining, CalmForSequenceClassification

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
REQUIRED = {"--repo_id": "owner/calm", "--license": "mit", "--training_data": "Tones: CC0"}


def write(folder, output: Path, *options: str, **replaced: str) -> ModelCard:
    """The card in the folder that publish.py writes."""
    given = {**REQUIRED, "--model": str(folder), "--output_dir": str(output)}
    given |= {f"--{name}": value for name, value in replaced.items()}
    publish.main([word for option in given.items() for word in option] + list(options))
    return ModelCard.load(output / "README.md")


def entries(card: ModelCard) -> dict[str, float]:
    """The figures in the metadata, by name."""
    return {entry.metric_name: entry.metric_value for entry in card.data.eval_results or []}


@pytest.fixture(scope="module")
def evaluated(folder, corpus, aligned, fitted) -> Path:
    """A classifier that is worse than `fitted`, evaluated together with it."""
    output = folder / "second"
    run(finetune, corpus, output, "--model", aligned, "--modalities", "audio", "--seed", "1", steps=1)
    report = str(output / "evaluation.json")
    evaluate.main(["--models", fitted, str(output), "--egemaps", "--dataset", corpus, "--output", report])
    return output


@pytest.mark.parametrize("modalities", ["both", "audio", "text"])
def test_the_examples_of_a_card_give_what_the_classifier_was_trained_on(modalities):
    """The first thing that is copied from a card may not be refused."""
    text = way_of_use(TEMPLATE.read_text(encoding="utf-8"), modalities)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
        assert ("speech.wav" in block) is (modalities != "text")
        assert ("kids are talking" in block) is (modalities != "audio")
    assert ("alone" in text) is (modalities == "both")


def test_the_card_of_a_classifier_tells_its_own_figures(evaluated, tmp_path):
    """Not the mean over the seeds it was evaluated with: whoever downloads it gets these weights."""
    options = [
        "--language",
        "en",
        "--base_model",
        "owner/bert",
        "--training_data",
        "owner/tones: CC0",
        "Noise: CC BY 4.0",
    ]
    card = write(evaluated, tmp_path, *options, results=f"Tones={evaluated / 'evaluation.json'}")
    own = load_json(evaluated / "evaluation.json")["results"]["seeds"][1]
    assert entries(card) == {
        "unweighted average recall": round(own["unweighted_average_recall"], 4),
        "weighted accuracy": round(own["weighted_accuracy"], 4),
        "macro F1": round(own["macro_f1"], 4),
        "weighted F1": round(own["weighted_f1"], 4),
    }
    assert own["unweighted_average_recall"] < 1  # unlike the other's
    entry = card.data.eval_results[0]
    assert (entry.task_type, entry.dataset_name, entry.dataset_split) == ("audio-classification", "Tones", "test")
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", ["en"], "owner/bert")
    assert card.data.datasets == ["owner/tones"]
    for told in (
        "| Noise | CC BY 4.0 |",
        "`egemaps_svm` a linear",
        "Means over 2 trainings",
        "the voice alone",
        "calm, noisy",
    ):
        assert told in card.text, told
    assert "nearest_tokens" not in card.text


def test_the_card_of_an_aligned_model_tells_its_retrieval(aligned, tmp_path):
    card = write(aligned, tmp_path, results=str(Path(aligned) / "results.json"))
    found = load_json(Path(aligned) / "results.json")["validation"]
    assert entries(card)["audio to text, recall@1"] == round(found["eval_audio_to_text_recall@1"], 4)
    assert entries(card)["text to audio, mean average precision@10"] == round(found["eval_text_to_audio_map@10"], 4)
    assert card.data.eval_results[0].dataset_split == "validation"
    assert "nearest_tokens" in card.text and "AutoModelForSequenceClassification" not in card.text
    assert "`stage: align`" in card.text


def test_the_card_of_an_aligned_model_explains_its_intervals(aligned, corpus, tmp_path):
    """And no baseline that is not in the table."""
    report = tmp_path / "evaluation.json"
    evaluate.main(["--models", aligned, "--dataset", corpus, "--output", str(report)])
    card = write(aligned, tmp_path / "card", results=f"Tones={report}")
    assert "| audio_to_text_recall@1_interval | " in card.text and "Intervals are 95 % bootstrap" in card.text
    assert "`egemaps_svm`" not in card.text


def test_a_card_without_results_says_so(fitted, tmp_path):
    copy = shutil.copytree(fitted, tmp_path / "run", ignore=shutil.ignore_patterns("*results.json", "evaluation.json"))
    card = write(copy, tmp_path / "output")
    assert card.data.eval_results is None
    assert "## Results\n\nNone were given" in card.text


def template_figures() -> list[str]:
    """The intervals that the template tells of its own checkpoints."""
    found = re.findall(r"0\.\d{3} \[0\.\d{3}, \d\.\d{3}\]", TEMPLATE.read_text(encoding="utf-8"))
    assert len(found) > 5
    return found


def test_nothing_of_the_template_is_left_in_a_card(fitted, aligned, tmp_path):
    """Its figures, data and paths are those of other checkpoints."""
    for model in (fitted, aligned):
        text = str(write(model, tmp_path / Path(model).name))
        for left in ("<!--", "NAMESPACE/NAME", "runs/", "RAVDESS", "AN4", *template_figures(), "make "):
            assert left not in text, left
        assert text.count('"owner/calm", trust_remote_code=True') == 3


def test_no_published_file_names_a_place_of_this_machine(fitted, folder, tmp_path):
    write(fitted, tmp_path)
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        for place in (folder, tmp_path, Path.home()):
            assert str(place).encode() not in content, file.name


def test_shards_hold_the_same_weights(fitted, tmp_path):
    write(fitted, tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = CalmForSequenceClassification.from_pretrained(fitted).state_dict()
    for name, value in CalmForSequenceClassification.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_template_is_a_card_itself():
    """It is read in the repository as it stands, and its examples are Python."""
    card = ModelCard(TEMPLATE.read_text())
    assert card.data.license and card.data.tags
    code = [block.partition("```")[0] for block in card.text.split("```python\n")[1:]]
    assert len(code) == 4
    for block in code:
        compile(block, "model_card.md", "exec")


def test_a_mark_that_nothing_fills_is_an_error():
    with pytest.raises(KeyError, match="unknown"):
        fill("<!-- begin unknown -->\ntext\n<!-- end unknown -->\n", {"known": ""})


@pytest.mark.parametrize(
    ("license", "data", "fits"),
    [
        ("apache-2.0", "RAVDESS: CC BY-NC-SA 4.0", False),
        ("mit", "Calls: for non-commercial use", False),
        ("cc-by-4.0", "Calls: academic research only", False),
        ("cc-by-nc-4.0", "RAVDESS: CC BY-NC-SA 4.0", False),
        ("apache-2.0", "Speech: CC BY, share-alike", False),
        ("cc-by-nc-sa-4.0", "RAVDESS: CC BY-NC-SA 4.0", True),
        ("cc-by-sa-4.0", "Speech: CC BY-SA 4.0", True),
        ("cc-by-nc-sa-4.0", "Speech: CC BY-SA 4.0", False),
        ("other", "RAVDESS: CC BY-NC-SA 4.0", True),
        ("apache-2.0", "Once: free with its notice", True),
    ],
)
def test_weights_are_not_freer_than_their_data(license, data, fits):
    entries = ["CMU AN4: free with notice", data]
    if fits:
        assert len(publish.parse_training_data(entries, license)) == 2
    else:
        with pytest.raises(ValueError, match=f"--license {license}.*{data.partition(': ')[2]}"):
            publish.parse_training_data(entries, license)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"repo_id": "calm"}, "--repo_id calm. has no namespace"),
        ({"repo_id": "owner/a/calm"}, "owner/a/calm. is no name of a repository"),
        ({"repo_id": "owner/two words"}, "owner/two words. is no name of a repository"),
        ({"training_data": "RAVDESS"}, "--training_data 'RAVDESS'.*NAME: LICENCE"),
        ({"results": "nothing.json"}, "no results in 'nothing.json'.*examples/evaluate.py"),
        ({"model": "nothing"}, "'nothing' is no folder"),
    ],
)
def test_what_cannot_be_published(fitted, tmp_path, replaced, message):
    with pytest.raises(ValueError, match=message):
        write(fitted, tmp_path / "output", **replaced)
    assert not (tmp_path / "output").exists()


def test_folders_that_are_no_checkpoint(aligned, new_model, audio_config, tmp_path):
    """Nothing, a language model, SpecTran alone, a model without its processor."""
    (tmp_path / "empty").mkdir()
    CalmAudioModel(audio_config).save_pretrained(tmp_path / "spectran")
    CalmForPreTraining.from_pretrained(aligned).save_pretrained(tmp_path / "bare")
    for model, message in (
        (tmp_path / "empty", "empty' holds no checkpoint"),
        (new_model[1], "bert' holds BertModel, and no checkpoint of CALM"),
        (tmp_path / "spectran", "spectran' holds CalmAudioModel"),
        (tmp_path / "bare", "bare' holds no processor"),
    ):
        with pytest.raises(ValueError, match=message):
            write(model, tmp_path / "output")


def test_results_of_other_weights_are_refused(fitted, aligned, tmp_path):
    """Those of another run, and those of this folder before it was trained anew."""
    with pytest.raises(ValueError, match="results.json' are those of another model"):
        write(fitted, tmp_path / "output", results=str(Path(aligned) / "results.json"))
    copy = shutil.copytree(fitted, tmp_path / "run")
    assert write(copy, tmp_path / "same").data.eval_results
    model = CalmForSequenceClassification.from_pretrained(copy)
    model.classifier.bias.data.add_(1)
    model.save_pretrained(copy)
    assert weights_digest(copy) != weights_digest(fitted)
    with pytest.raises(ValueError, match="before it was trained anew.*examples/evaluate.py"):
        write(copy, tmp_path / "output")


def test_a_file_of_something_else_is_no_results_file(fitted, tmp_path):
    for content in ("{", "[]", '{"accuracy": 1}'):
        (tmp_path / "own.json").write_text(content)
        with pytest.raises(ValueError, match="own.json' is no results file"):
            write(fitted, tmp_path / "output", results=str(tmp_path / "own.json"))


def test_a_folder_with_other_files_is_not_written_to(fitted, tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(ValueError, match="is not empty.*--output_dir"):
        write(fitted, tmp_path)


def test_a_checkpoint_within_a_run_is_described_by_its_options(fitted, tmp_path):
    """Its folder has no `config.yaml` of its own."""
    checkpoint = next(Path(fitted).glob("checkpoint-*"))
    text = write(checkpoint, tmp_path).text
    assert "trained on the voice alone" in text and "`modalities: audio`" in text


@pytest.mark.parametrize("option", ["--license", "--training_data"])
def test_the_licence_is_never_guessed(fitted, option, capsys):
    given = {"--model": fitted, **REQUIRED}
    del given[option]
    with pytest.raises(SystemExit):
        publish.main([word for pair in given.items() for word in pair])
    assert option in capsys.readouterr().err


def test_help_is_printed(capsys):
    """A per cent sign in a help text is enough to break it."""
    with pytest.raises(SystemExit) as caught:
        publish.main(["--help"])
    assert caught.value.code == 0 and "--training_data" in capsys.readouterr().out


def test_without_a_network_nothing_is_published(fitted, monkeypatch):
    """The tests run offline, as a machine may that has the library's switch set."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    with pytest.raises(ConnectionError, match="Nothing was published.*HF_HUB_OFFLINE.*--output_dir"):
        publish.main([word for pair in {"--model": fitted, **REQUIRED}.items() for word in pair])
