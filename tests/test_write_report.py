"""The report tells what the results files say, and puts it where README and model card have their marks."""

import json
import shutil
from pathlib import Path

import evaluate
import pytest
import tables
import write_report
from example_helpers import load_json
from perturbations import PERTURBATIONS

pytest_plugins = ["example_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")
ROOT = Path(write_report.__file__).parents[2]
INTERVAL = {"estimate": 0.5, "low": 0.4, "high": 0.6}
FIGURES = {"unweighted_average_recall": 0.5, "unweighted_average_recall_interval": INTERVAL}
PEER = FIGURES | {"difference": {"estimate": -0.1, "low": -0.2, "high": 0.1}, "above": False}
LENGTH = {"clips": 9, "shortest": 1.0, "longest": 2.5, "recall@1": INTERVAL}
SPACE = dict.fromkeys(tables.SPACE, 0.25) | {"by_length": [LENGTH]}
RATE = {when: {"audio_to_text_recall@1_interval": INTERVAL} for when in ("before", "after")}
HEARD = {when: {"unweighted_average_recall_interval": INTERVAL} for when in ("before", "after")}
GAIN = {"gain": {"estimate": 0.05, "low": -0.03, "high": 0.12}}
BASE = {"mean": 0.5, "standard_deviation": 0.1, "seeds": [0.4, 0.6]}
CHANGES = {change: {"interval": INTERVAL, "change": INTERVAL} for change in ("clean", *PERTURBATIONS)}
OTHERS = {
    "untrained": ("emotion_en", FIGURES | {"compared": PEER}),
    "probes": ("emotion_en", FIGURES | {"egemaps_svm": PEER}),
    "equal_time": ("emotion_en", FIGURES | {"ast": PEER, "wav2vec2": PEER}),
    "robustness": ("emotion_en", {"unweighted_average_recall": {"calm": CHANGES}}),
    "alignment": (
        "speech_commands",
        {
            "before": SPACE,
            "after": SPACE,
            "words_by_rate": {"patches": RATE},
            "emotion_by_rate": {"patches": HEARD | GAIN},
        },
    ),
    "ablations": (
        "speech_commands",
        {
            "base": {"word_reading": BASE},
            "variants": {"no_context": {"word_reading": BASE | {"difference": INTERVAL | {"seeds": [0, 1]}}}},
        },
    ),
}


@pytest.fixture(scope="module")
def evaluated(folder, corpus, aligned, fitted) -> Path:
    """What evaluate.py writes of toys, on a corpus by the name of those that have targets."""
    pytest.importorskip("opensmile")
    output = folder / "results"
    for part, name, options in (
        ("retrieval", "speech_commands", ["--models", aligned]),
        ("emotion-en", "emotion_en", ["--models", fitted, "--compare_models", fitted, "--egemaps"]),
    ):
        data = shutil.copytree(corpus, folder / name)
        evaluate.main([*options, "--dataset", str(data), "--output", str(output / f"{part}.json")])
    return output


@pytest.fixture
def files(evaluated, tmp_path) -> tuple[Path, list[str]]:
    """A folder of results, copies of README and model card, and the options that name them."""
    results = shutil.copytree(evaluated, tmp_path / "results")
    options = ["--results", str(results), "--published", str(tmp_path / "published")]
    for option, name in (("--readme", "README.md"), ("--model_card", "model_card.md")):
        shutil.copy(ROOT / name, tmp_path / name)
        options += [option, str(tmp_path / name)]
    return results, options


def add(results: Path, part: str, steps: int = 5) -> None:
    data, found = OTHERS[part]
    report = {"arguments": {}, "dataset": f"/some/where/{data}", "recipes": {"base": {"max_steps": steps}}}
    (results / f"{part}.json").write_text(json.dumps(report | {"results": found}))


def test_what_there_is_is_told_and_what_lacks_is_named(files):
    """The figures of evaluate.py itself, those of toys that know their corpus by heart."""
    results, options = files
    found = write_report.main(options)
    kept = load_json(results / "results.json")
    assert kept["missing"] == found["missing"] and kept["targets"] == json.loads(json.dumps(found["targets"]))
    retrieval = kept["results"]["retrieval, speech_commands"]
    assert retrieval["results"] == load_json(results / "retrieval.json")["results"]
    assert retrieval["dataset"] == "speech_commands"
    assert kept == load_json(Path(options[3]) / "results.json")
    rows = {(row["data"], row["measure"], row["baseline"]): row for row in found["targets"]}
    recall = rows["speech_commands", "audio to text R@1, by embeddings", None]
    assert recall["met"] and recall["interval"]["estimate"] == recall["value"] == 1.0
    assert not rows["emotion_en", "UAR, classifier on frozen encoders", "eGeMAPS + linear SVM"]["met"], (
        "1.0 is not 1.5 times 1.0"
    )
    assert found["missing"][:6] == ["untrained", "probes", "equal_time", "robustness", "alignment", "ablations"]
    assert "UAR, classifier on frozen encoders on emotion_pl" in found["missing"]
    for option in (5, 7):
        text = Path(options[option]).read_text()
        assert "| speech_commands | audio to text R@1, by embeddings | 1.000 [1.000, 1.000] |" in text
        assert "Not measured: untrained; probes" in text and "| emotion_pl | UAR" not in text


def test_only_what_stands_between_the_marks_changes(files):
    """Twice gives the same, and the marks stay, by which publish.py finds its place."""
    results, options = files
    write_report.main(options)
    once = [Path(options[i]).read_text() for i in (5, 7)]
    write_report.main(options)
    assert [Path(options[i]).read_text() for i in (5, 7)] == once
    for text, name in zip(once, ("README.md", "model_card.md"), strict=True):
        original = (ROOT / name).read_text()
        for mark in ("<!-- begin results -->\n", "<!-- end results -->\n"):
            assert text.count(mark) == 1
        assert text.partition("<!-- begin results -->")[0] == original.partition("<!-- begin results -->")[0]
        assert text.partition("<!-- end results -->")[2] == original.partition("<!-- end results -->")[2]
    Path(options[5]).write_text("no marks")
    with pytest.raises(ValueError, match=r"README\.md' must hold .*begin results"):
        write_report.main(options)


def test_every_part_has_its_table(files):
    results, options = files
    for part in OTHERS:
        add(results, part)
    (results / "steps.json").write_text('{"retrieval": 12.5}')
    (results / "notes").mkdir()
    for number, note in enumerate(({"commit": "1234567890", "changed": False}, {"seconds": 3.0})):
        (results / "notes" / f"calm-{number}.json").write_text(json.dumps(note))
    report = load_json(results / "equal_time.json")
    for kind, encoder, clips in (("models", "calm", 19424), ("peers", "ast", 2416)):
        (results / encoder).mkdir()
        (results / encoder / "results.json").write_text(
            json.dumps(
                {"encoder": encoder, "clips_seen": clips, "validation": {"eval_audio_to_text_recall@10": 0.125}}
            )
        )
        report["arguments"][kind] = [str(results / encoder)]
    (results / "equal_time.json").write_text(json.dumps(report))
    (results / "alignment-length.png").write_bytes(b"drawn")
    (results / "alignment-words.png").write_bytes(b"of clips")
    report = write_report.main(options)
    assert report["seconds"] == {"retrieval": 12.5}
    assert sorted(file.name for file in Path(options[3]).iterdir()) == ["alignment-length.png", "results.json"]
    assert {"commit", "cpu", "cores", "gpu", "versions"} <= set(report["environment"])
    assert report["environment"]["versions"]["torch"]
    assert report["measured_at"] == {"1234567": ["calm"], "an unknown commit": ["ablations", "calm"]}
    text = Path(options[5]).read_text()
    for line in (
        "| modality gap | 0.250 | 0.250 |",
        "| patches | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] |"
        " 0.500 [0.400, 0.600] | +0.050 [-0.030, +0.120] |",
        "| no context | +0.500 [+0.400, +0.600] |",
        "| base | 0.500 ± 0.100 |",
        "**Ablations** of pretraining, at 5 steps, on the validation split of speech_commands, seeds: 2. Variants",
        "| clean | 0.500 [0.400, 0.600] |",
        "| 1.0 to 2.5 s | 9 | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] |",
        "| SpecTran | 19,424 | 0.125 | 0.500 [0.400, 0.600] |  |",
        "| ASTModel | 2,416 | 0.125 | 0.500 [0.400, 0.600] | -0.100 [-0.200, +0.100] |",
        "| emotion_en | randomly initialised SpecTran, the same classifier | 0.500 [0.400, 0.600] | -0.100 [",
        "](published/alignment-length.png)",
        "**missed**: -0.100 [-0.200, +0.100] |",
    ):
        assert line in text, line
    for hidden in ("/some/where", str(results)):
        for shown in (text, (Path(options[3]) / "results.json").read_text()):
            assert hidden not in shown, "paths of a machine have no place in the repository"


def test_files_that_tell_something_else_are_refused(files, tmp_path):
    """Figures of validation beside targets for the test split would be the wrong ones, unseen."""
    results, options = files
    report = load_json(results / "retrieval.json")
    report["arguments"]["split"] = "validation"
    (results / "retrieval.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"retrieval\.json' is of split 'validation'"):
        write_report.main(options)
    shutil.copy(results / "emotion-en.json", results / "emotion-again.json")
    (results / "retrieval.json").unlink()
    with pytest.raises(ValueError, match="Two files .*`emotion` of emotion_en"):
        write_report.main(options)
    (results / "emotion-again.json").write_text("[]")
    with pytest.raises(ValueError, match="no results file"):
        write_report.main(options)
    with pytest.raises(ValueError, match="holds none of"):
        write_report.main(["--results", str(tmp_path / "empty")])


def test_figures_of_weights_that_have_changed_are_refused(files, aligned):
    """A training that was repeated leaves the measurements of the one before it where they were."""
    results, options = files
    report = load_json(results / "retrieval.json")
    assert set(report["weights"]) == {aligned}
    (results / "retrieval.json").write_text(json.dumps(report | {"weights": {aligned: "0" * 64}}))
    with pytest.raises(ValueError, match="retrieval.json' is of weights that .* no longer hold"):
        write_report.main(options)
