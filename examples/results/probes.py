"""Linear probes on frozen representations: CALM, peers of its size, eGeMAPS, the spectrogram itself.

    python examples/results/probes.py --models runs/peers/calm-* --peers runs/peers/ast-* runs/peers/wav2vec2-* \
        --dataset FOLDER --output results/probes.json

Several `--models` are seeds of CALM, several `--peers` of one kind are seeds of that peer. A probe is trained on the
training split, its C and the place to read from are selected on the validation split (see `frozen.py`), and the test
split is scored once. UAR is the mean over seeds, with a 95 % bootstrap interval over the clips of the test split; CALM
is above another system if the paired interval of the difference excludes 0.
"""

import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from frozen import Clips, FittedProbe, egemaps, fit_system, from_checkpoint, group, log_mel_statistics, read_clips

from processing.bootstrap import bootstrap_interval, paired_bootstrap
from processing.metrics import unweighted_average_recall

sys.path.append(str(Path(__file__).parents[1]))
from evaluate import as_table  # noqa: E402
from options import parse_arguments, weights_digest, write_json  # noqa: E402
from speech_data import DataArguments  # noqa: E402

logger = logging.getLogger(__name__)


@dataclass
class ProbeArguments:
    """What is probed, and what it is compared with."""

    models: list[str] = field(default_factory=list, metadata={"help": "Pretrained CALM checkpoints; seeds."})
    peers: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoints of pretrain_peers.py; those of one kind are seeds."}
    )
    egemaps: bool = field(default=True, metadata={"help": "The baseline eGeMAPS; needs opensmile."})
    batch_size: int = field(default=32, metadata={"help": "Clips at once."})
    output: str = field(default="runs/results/probes.json", metadata={"help": "JSON file."})


def systems(arguments: ProbeArguments) -> dict[str, list]:
    """The representations of every system, one per seed; `"calm"` first.

    Raises:
        ValueError: if no CALM checkpoint is named, or checkpoints are given to the wrong option.
    """
    models, peers = group(arguments.models), group(arguments.peers)
    if list(models) != ["calm"] or "calm" in peers:
        raise ValueError(
            f"`--models` takes checkpoints of CALM and `--peers` those of other encoders; found {models} and {peers}."
        )
    found = {
        name: [from_checkpoint(folder, arguments.batch_size) for folder in folders]
        for name, folders in (models | peers).items()
    }
    return found | ({"egemaps_svm": [egemaps]} if arguments.egemaps else {}) | {"log_mel": [log_mel_statistics]}


def describe(fitted: list[FittedProbe], validated: dict[str, float], predictions: np.ndarray, labels: np.ndarray):
    """The results of one system, whose predictions are (seeds, N)."""
    interval = bootstrap_interval(unweighted_average_recall, labels, predictions)
    seeds = [
        {"c": one.probe.c, "validation": one.probe.validation, "test": unweighted_average_recall(labels, found)}
        for one, found in zip(fitted, predictions, strict=True)
    ]
    return {
        "unweighted_average_recall": interval.estimate,
        "unweighted_average_recall_interval": interval._asdict(),
        "representation": fitted[0].place,
        "validation": validated,
        "seeds": seeds,
    }


def compare(found: dict[str, list], splits: tuple[Clips, Clips, Clips]) -> dict:
    """The results of CALM, and those of each other system with CALM's gain over it."""
    train, validation, test = splits
    figures, predictions = {}, {}
    for name, seeds in found.items():
        fitted, validated = fit_system(seeds, train, validation)
        logger.info("%s: '%s', UAR on validation %.3f", name, fitted[0].place, validated[fitted[0].place])
        predictions[name] = np.stack([one.predict(test.waveforms) for one in fitted])
        figures[name] = describe(fitted, validated, predictions[name], test.labels)
    results = figures.pop("calm")
    for name, other in figures.items():
        gain = paired_bootstrap(unweighted_average_recall, test.labels, predictions["calm"], predictions[name])
        ratio = results["unweighted_average_recall"] / max(other["unweighted_average_recall"], 1e-9)
        results[name] = other | {"difference": gain._asdict(), "above": gain.above_zero, "ratio": ratio}
    return results


def main(argv: list[str] | None = None) -> dict:
    arguments, data = parse_arguments(ProbeArguments, DataArguments, arguments=argv)
    logging.basicConfig(level=logging.INFO)
    found = systems(arguments)
    names = (data.train_split, data.validation_split, data.test_split)
    clips, classes = read_clips(data, *names)
    results = compare(found, tuple(clips[name] for name in names))
    results |= {"classes": classes, "num_clips": len(clips[data.test_split].labels)}
    checkpoints = [*arguments.models, *arguments.peers]
    weights = {folder: weights_digest(folder) for folder in checkpoints if Path(folder).is_dir()}
    report = {"arguments": asdict(arguments), "dataset": data.dataset, "weights": weights, "results": results}
    write_json(Path(arguments.output), report)
    print(as_table(results))
    return results


if __name__ == "__main__":
    main()
