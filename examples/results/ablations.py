"""Ablations: variants of one recipe, several seeds, on the validation split.

    python examples/results/ablations.py --dataset SPEECH --emotion_dataset EMOTION --output_dir runs/ablations \
        --output runs/results/ablations.json
    python examples/results/ablations.py --recipes examples/configs/classifier_ablations.yaml --dataset EMOTION \
        --output_dir runs/ablations/classifier --output runs/results/ablations-classifier.json

A YAML file defines the recipe and its variants: options of `pretrain.py`, or of the `script` that it names; what no
option can remove is a `change` of `changes.py`. Every run is a single-threaded process, `--jobs` of them in parallel;
its folder in `--output_dir` keeps its measurements, `facts.json`, and a finished run is not repeated. Results are on
the validation split: retrieval and word reading, the UAR of a classifier, or that of a linear probe, whose C and
representation are selected there for every variant alike.

A difference from the base is a mean over seeds with a paired 95 % bootstrap interval over the clips; the differences
of the individual seeds, whose variation the interval does not cover, are reported too.
"""

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from ablation_runs import carry_out
from changes import CHANGES, SCRIPTS
from drawing import draw_ablations
from provenance import state_name

sys.path.append(str(Path(__file__).parents[1]))
from evaluate import recall_at, share_of_tokens  # noqa: E402
from figures import style  # noqa: E402
from options import parse_arguments, write_json  # noqa: E402
from speech_data import DataArguments  # noqa: E402
from training import CONFIGS  # noqa: E402

from processing.bootstrap import paired_bootstrap  # noqa: E402
from processing.metrics import unweighted_average_recall  # noqa: E402

BASE = "base"


@dataclass
class AblationArguments:
    """What is varied, and where the results go."""

    recipes: str = field(default=str(CONFIGS / "ablations.yaml"), metadata={"help": "YAML of the base and variants."})
    variants: list[str] = field(default_factory=list, metadata={"help": "Those to run; by default all."})
    emotion_dataset: str | None = field(default=None, metadata={"help": "Labelled speech for the linear probe."})
    seeds: int = field(default=3, metadata={"help": "Trainings of each variant."})
    jobs: int = field(default=2, metadata={"help": "Trainings side by side, on one thread each."})
    batch_size: int = field(default=32, metadata={"help": "Clips at once when measuring."})
    output_dir: str = field(default="runs/ablations", metadata={"help": "Folder of the runs."})
    output: str = field(default="runs/results/ablations.json", metadata={"help": "JSON file; the figure beside it."})


class Measure(NamedTuple):
    """A metric as a function of one fact (N, k) about each of N clips."""

    fact: str
    metric: Callable[[np.ndarray], float]


def average_precision(ranks: np.ndarray) -> float:
    """mAP@10 of ranks: a clip has one correct transcript, so its average precision is the reciprocal rank."""
    return float(np.where(ranks <= 10, 1 / ranks, 0.0).mean())


MEASURES = {
    **{f"audio_to_text_recall@{k}": Measure("ranks", recall_at(k)) for k in (1, 5, 10)},
    "audio_to_text_map@10": Measure("ranks", average_precision),
    "audio_to_text_reading_recall@1": Measure("reading_ranks", recall_at(1)),
    "word_reading": Measure("words", share_of_tokens),
    "unweighted_average_recall": Measure("emotion", lambda found: unweighted_average_recall(*found.T)),
}


def read_recipes(file: str, chosen: list[str]) -> dict[str, dict]:
    """The options of each run by the name of its variant, the base first.

    Raises:
        ValueError: if the file is not a mapping of a base and variants, lacks a chosen variant, names an unknown
            script or change, or sets the data, which is given on the command line.
    """
    recipes = yaml.safe_load(Path(file).read_text())
    if not isinstance(recipes, dict) or set(recipes) - {"script"} != {BASE, "variants"}:
        raise ValueError(f"'{file}' must map `{BASE}` to options of pretrain.py, and `variants` to what differs.")
    script = recipes.get("script", "pretrain.py")
    if script not in SCRIPTS:
        raise ValueError(f"'{file}' names the script '{script}'; there are {list(SCRIPTS)}.")
    base, variants = {"script": script} | recipes[BASE], recipes["variants"]
    empty = [name for name, options in variants.items() if name == BASE or not isinstance(options, dict)]
    if empty:
        raise ValueError(f"The variants {empty} of '{file}' must have names and options of their own.")
    unknown = sorted(set(chosen) - set(variants))
    if unknown:
        raise ValueError(f"'{file}' has no variants {unknown}; it has {list(variants)}.")
    reserved = {entry.name for entry in fields(DataArguments)}
    if given := sorted({option for options in (base, *variants.values()) for option in options} & reserved):
        raise ValueError(f"'{file}' sets {given}, which are options of ablations.py itself.")
    changes = {name: options["change"] for name, options in variants.items() if "change" in options}
    if not set(changes.values()) <= set(CHANGES):
        raise ValueError(f"'{file}' has the changes {changes}; there are {list(CHANGES)}.")
    found = {BASE: base}
    for name in chosen or variants:
        found[name] = base | variants[name]
        if isinstance(found[name].get("audio_config"), dict):
            spectran = yaml.safe_load((CONFIGS / f"{base['audio_config']}.yaml").read_text())
            found[name]["audio_config"] = spectran | found[name]["audio_config"]
    return found


def check_data(recipes: dict[str, dict]) -> None:
    """Reject variants whose added data is missing, before hours are spent on the others.

    Raises:
        ValueError: names the folders, and where those of the shipped recipes come from.
    """
    added = {folder for options in recipes.values() for folder in options.get("added_datasets", [])}
    absent = sorted(folder for folder in added if not Path(folder).exists())
    if absent:
        raise ValueError(
            f"{absent} are not there. `reproduce.py --until words` makes 'runs/results/words'; or choose `--variants`."
        )


def summarize(facts: dict[str, list[dict]]) -> dict:
    """Means and deviations of all measures over the seeds of each variant, and differences from the base."""
    results = {}
    for name, seeds in facts.items():
        results[name] = {}
        for title, (fact, metric) in MEASURES.items():
            if fact not in seeds[0]:
                continue
            own, base = (np.stack([np.asarray(seed[fact]) for seed in runs]) for runs in (seeds, facts[BASE]))
            each = [metric(run) for run in own]
            spread = float(np.std(each, ddof=1)) if len(each) > 1 else None
            results[name][title] = {"mean": float(np.mean(each)), "standard_deviation": spread, "seeds": each}
            if name != BASE:
                clips = np.zeros((own.shape[1], 1))  # a placeholder: a metric sees only the facts
                interval = paired_bootstrap(lambda _, found, metric=metric: metric(found), clips, own, base)
                by_seed = [one - other for one, other in zip(each, results[BASE][title]["seeds"], strict=True)]
                results[name][title]["difference"] = {**interval._asdict(), "seeds": by_seed}
    return {BASE: results.pop(BASE), "variants": results}


def main(argv: list[str] | None = None) -> dict:
    arguments, data = parse_arguments(AblationArguments, DataArguments, arguments=argv)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)  # measuring is one of the jobs
    recipes = read_recipes(arguments.recipes, arguments.variants)
    check_data(recipes)
    runs = [(name, seed) for seed in range(arguments.seeds) for name in recipes]

    def run(name: str, seed: int) -> dict:
        options = recipes[name] | asdict(data) | {"seed": seed}
        emotion = arguments.emotion_dataset and replace(data, dataset=arguments.emotion_dataset)
        folder = Path(arguments.output_dir) / f"{name}-{seed}"
        return carry_out(folder, options, data, emotion or None, arguments.batch_size)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = list(pool.map(lambda one: run(*one), runs))
    facts = {name: [one for (other, _), one in zip(runs, found, strict=True) if other == name] for name in recipes}
    seconds = {f"{name}-{seed}": one["seconds"] for (name, seed), one in zip(runs, found, strict=True)}
    report = {
        "arguments": asdict(arguments), "dataset": data.dataset, "recipes": recipes, "seconds": seconds,
        "states": sorted({state_name(one) for one in found}), "results": summarize(facts),
    }  # fmt: skip
    output = Path(arguments.output)
    write_json(output, report)
    with style():
        draw_ablations(report["results"]).savefig(output.with_suffix(".png"))
    return report


if __name__ == "__main__":
    main()
