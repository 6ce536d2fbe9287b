"""Collect all results of a folder in one file, and write their tables into the README and the model card.

    python examples/results/write_report.py --results runs/results

The folder holds the JSON files of `evaluate.py` as `retrieval*.json`, `emotion*.json` and `untrained*.json` (compared
with classifiers on a randomly initialised SpecTran), one per corpus, and those of the other scripts in this folder as
`probes*.json`, `equal_time*.json` (probes compared with peers), `robustness*.json`, `alignment*.json` and
`ablations*.json`; and, from `reproduce.py`, `steps.json` with the seconds each step took and `notes` with the commits.
Missing files are skipped and listed. `results.json` gets everything with the commits, the machine and the library
versions, but no local paths; it is copied to `published`, next to this script, with the figures that show no clips.
The text between `<!-- begin results -->` and `<!-- end results -->` in README.md and model_card.md is replaced.
"""

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from provenance import EXAMPLES, code_state, state_name
from robustness import as_table as robustness_table
from tables import (
    ablations_table,
    emotion_table,
    equal_time_table,
    length_table,
    rates_table,
    space_table,
    targets_table,
)
from targets import judge

sys.path += [str(EXAMPLES), str(EXAMPLES / "benchmarks")]
from checkpoints import write_atomically  # noqa: E402
from model_card import BLOCK, data_name  # noqa: E402
from options import parse_arguments, weights_digest, write_json  # noqa: E402
from report import cpu_name  # noqa: E402

PARTS = ("retrieval", "emotion", "untrained", "probes", "equal_time", "robustness", "alignment", "ablations")
FIGURES = {
    "alignment-similarity.png": "Cosines of clips and transcripts before and after CALP",
    "alignment-length.png": "Recall over the length of the clips",
    "alignment-rates.png": "What each rate carries",
    "ablations.png": "Ablations",
    "ablations-classifier.png": "Ablations of the classifier",
}
LIBRARIES = (
    "torch", "transformers", "accelerate", "datasets", "numpy", "scikit-learn", "soundfile", "soxr", "opensmile",
)  # fmt: skip


@dataclass
class ReportArguments:
    """What is read and what is written."""

    results: str = field(default="runs/results", metadata={"help": "Folder of the JSON files; gets results.json."})
    readme: str = field(default=str(EXAMPLES.parent / "README.md"), metadata={"help": "Its results are rewritten."})
    model_card: str = field(default=str(EXAMPLES.parent / "model_card.md"), metadata={"help": "Likewise."})
    published: str = field(
        default=str(EXAMPLES / "results" / "published"),
        metadata={"help": "Folder beside README for results.json and the figures that show no clips."},
    )


def read_results(folder: Path) -> tuple[dict[tuple[str, str], dict], list[str]]:
    """The reports by part and name of their data, and the parts that have no file.

    Raises:
        ValueError: if the folder holds none, or a file is not a report, not of a test split, or of weights that have
            changed since.
    """
    found, missing = {}, []
    for part in PARTS:
        files = sorted(folder.glob(f"{part}*.json"))
        missing += [] if files else [part]
        for file in files:
            try:
                report = json.loads(file.read_text())
                key = part, data_name(report["dataset"])
                split = report["arguments"].get("split", "test")
                report["results"].keys()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"'{file}' is no results file of the scripts in examples/. Write it anew.") from error
            if split != "test":
                raise ValueError(f"'{file}' is of split '{split}'; results are those of the test split.")
            changed = [run for run, digest in report.get("weights", {}).items() if is_other(run, digest)]
            if changed:
                raise ValueError(f"'{file}' is of weights that {changed} no longer hold. Remove it and measure again.")
            if key in found:
                raise ValueError(f"Two files in '{folder}' hold `{part}` of {key[1]}. Remove the older one.")
            found[key] = report
    if not found:
        raise ValueError(f"'{folder}' holds none of {[f'{part}*.json' for part in PARTS]}.")
    return found, missing


def is_other(folder: str, digest: str) -> bool:
    """Whether a folder that still exists holds weights other than those of a digest."""
    return Path(folder).is_dir() and weights_digest(folder) != digest


def environment() -> dict:
    """What the results are valid for: commit of the report, machine, library versions."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # part of an extra
            continue
    return {
        **code_state(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def measured_at(folder: Path, reports: dict[tuple[str, str], dict]) -> dict[str, list[str]]:
    """The steps of `reproduce.py`, and the ablations, by the state of the code that they ran with."""
    found: dict[str, set[str]] = {}
    for note in folder.glob("notes/*.json"):
        found.setdefault(state_name(json.loads(note.read_text())), set()).add(note.stem.rpartition("-")[0])
    for (part, _), report in reports.items():
        for state in report.get("states", ["an unknown commit"]) if part == "ablations" else []:
            found.setdefault(state, set()).add(part)
    return {state: sorted(names) for state, names in sorted(found.items())}


def tell_trainings(report: dict) -> None:
    """Add details of the trainings to the systems of an `equal_time` report, if available.

    These are the number of clips trained on, and retrieval on validation.
    """
    for folder in (*report["arguments"].get("models", []), *report["arguments"].get("peers", [])):
        file = Path(folder) / "results.json"
        training = json.loads(file.read_text()) if file.is_file() else {}
        if "clips_seen" in training:
            results = report["results"]
            system = results if training["encoder"] == "calm" else results[training["encoder"]]
            system.setdefault("clips_seen", []).append(training["clips_seen"])
            system.setdefault("validation_recall", []).append(training["validation"]["eval_audio_to_text_recall@10"])


def without_paths(value: Any, folder: Path) -> Any:
    """The same JSON with file names instead of local paths."""
    if isinstance(value, dict):
        return {without_paths(key, folder): without_paths(entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry, folder) for entry in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path = Path(value)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def publish(report: dict, results: Path, published: Path) -> list[str]:
    """Write results.json and copy the figures without clips to a folder of the repository; returns their names."""
    published.mkdir(parents=True, exist_ok=True)
    write_json(published / "results.json", report)
    found = [name for name in FIGURES if (results / name).is_file()]
    for name in found:
        shutil.copy(results / name, published / name)
    return found


def sections(reports: dict[tuple[str, str], dict]) -> list[str]:
    """Every table except that of the targets, under a line that says what it shows."""
    found = []
    emotions, untrained = (
        {data: report["results"] for (part, data), report in reports.items() if part == wanted}
        for wanted in ("emotion", "untrained")
    )
    if emotions:
        found.append(f"**Emotions** beside baselines and chance:\n\n{emotion_table(emotions, untrained)}")
    for (part, data), report in reports.items():
        results = report["results"]
        if part == "alignment":
            found.append(f"**Before and after CALP**, {data}:\n\n{space_table(results)}")
            found.append(
                "**What each rate carries**, by linear maps from mean and deviation over time, before and after CALP;"
                f" words of {data}:\n\n"
                f"{rates_table(results)}"
            )
            found.append(f"**Over the length of the clips**, {data}, by embeddings:\n\n{length_table(results)}")
        elif part == "equal_time":
            found.append(
                "**After equal time** on the same clips from random weights, one training each; linear probes,"
                f" {data}, and R@10 on the validation split of the training:\n\n"
                f"{equal_time_table(results)}"
            )
        elif part == "robustness":
            found.append(
                f"**Perturbed recordings**: UAR on {data}, R@1 on"
                f" {data_name(report['arguments'].get('retrieval_dataset') or data)}. Training, of CALM and from"
                " scratch, varies speed, silence, band, noise and level: of these perturbations only the crops are of"
                " another kind. Probes, which are those after equal time, and eGeMAPS were fitted on clean clips. In"
                f" brackets the interval of clean clips, and of the others the change:\n\n{robustness_table(results)}"
            )
        elif part == "ablations":
            seeds, base = len(next(iter(results["base"].values()))["seeds"]), report["recipes"]["base"]
            what = f"of pretraining, at {base['max_steps']} steps" if "max_steps" in base else "of the classifier"
            probed = report["arguments"].get("emotion_dataset")
            found.append(
                f"**Ablations** {what}, on the validation split of {data}, seeds: {seeds}"
                + (f"; UAR is that of a linear probe on {data_name(probed)}" if probed else "")
                + f". Variants by their difference to the base:\n\n{ablations_table(results)}"
            )
    return found


def rewrite(file: Path, content: str) -> None:
    """Replace the Markdown between the markers of a file, which stay.

    Raises:
        ValueError: if the file does not have them exactly once.
    """
    text = file.read_text(encoding="utf-8")
    blocks = [match for match in BLOCK.finditer(text) if match["name"] == "results"]
    if len(blocks) != 1:
        raise ValueError(f"'{file}' must hold `<!-- begin results -->` and `<!-- end results -->` once, on own lines.")
    start, end = blocks[0].span("content")
    write_atomically(file, f"{text[:start]}{content}\n{text[end:]}")


def main(argv: list[str] | None = None) -> dict:
    (arguments,) = parse_arguments(ReportArguments, arguments=argv)
    folder = Path(arguments.results)
    reports, missing = read_results(folder)
    for (part, _), found in reports.items():
        if part == "equal_time":
            tell_trainings(found)
    rows, unjudged = judge({key: report["results"] for key, report in reports.items()})
    steps = folder / "steps.json"
    made_on = environment()
    report = {
        "environment": made_on,
        "measured_at": measured_at(folder, reports),
        "seconds": json.loads(steps.read_text()) if steps.is_file() else None,
        "missing": missing + unjudged,
        "targets": rows,
        "results": {f"{part}, {data}": report for (part, data), report in reports.items()},
    }
    report = without_paths(report, folder.resolve())
    write_json(folder / "results.json", report)
    figures = publish(report, folder, Path(arguments.published))
    states = [f"{', '.join(names)} at {state}" for state, names in report["measured_at"].items()]
    libraries = " and ".join(f"{name} {made_on['versions'][name]}" for name in ("torch", "transformers"))
    intro = (
        f"Written by `examples/results/write_report.py` at {state_name(made_on)} with {libraries}, on"
        f" {made_on['gpu'] or made_on['cpu']}, {made_on['cores']} cores."
        " Test splits, speakers that no training saw; 95 % bootstrap intervals over the clips:"
        " what other clips of these speakers would change, not what other speakers or trainings would. Multiples of a"
        " baseline are judged by the estimates alone."
    )
    if report["seconds"]:
        intro += f" The steps took {sum(report['seconds'].values()) / 60:.0f} minutes."
    if states:
        intro += f" Measured: {'; '.join(states)}."
    place = os.path.relpath(arguments.published, Path(arguments.readme).parent)
    drawn = ["\n".join(f"![{FIGURES[name]}]({place}/{name})" for name in figures)] if figures else []
    lacking = [f"Not measured: {'; '.join(report['missing'])}."] if report["missing"] else []
    judged = [targets_table(rows)] if rows else []
    rewrite(Path(arguments.model_card), "\n\n".join([intro, *judged, *lacking]))
    rewrite(Path(arguments.readme), "\n\n".join([intro, *judged, *lacking, *sections(reports), *drawn]))
    print("\n\n".join([*judged, *lacking]))
    return report


if __name__ == "__main__":
    main()
