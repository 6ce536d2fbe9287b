"""Robustness to recordings unlike those of training: UAR and R@1 under perturbations of the test clips.

    python examples/results/robustness.py --models runs/emotion/calm-* --compare_models runs/emotion/scratch-* \
        --probes runs/peers/calm-* runs/peers/ast-* runs/peers/wav2vec2-* --dataset EMOTION \
        --retrieval_models runs/commands --retrieval_dataset SPEECH --output runs/results/robustness.json

The systems: fine-tuned classifiers, linear probes on frozen encoders and on eGeMAPS, and audio-to-text retrieval, by
embeddings and by reading. Networks were trained with augmentation of speed, silence, band, noise and level, as in
`training.py`; probes and eGeMAPS were fitted on clean clips. The test split is read once, and all systems get the same
perturbed clips; noise is seeded with the number of the clip. Results are means over seeds with a 95 % bootstrap
interval over the clips, and changes are paired differences from the clean clips. `perturbations.py` defines the
perturbations. The table is also saved as Markdown, next to the JSON.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from frozen import SAMPLING_RATE, egemaps, fit_system, from_checkpoint, group, read_clips
from perturbations import PERTURBATIONS

from modeling_calm import CalmConfig, CalmForPreTraining, CalmForSequenceClassification
from processing import CalmProcessor
from processing.bootstrap import bootstrap_interval, paired_bootstrap
from processing.metrics import unweighted_average_recall
from processing.retrieval import audio_text_ranks, retrieval_ranks

sys.path.append(str(Path(__file__).parents[1]))
from finetune import encode_labels  # noqa: E402
from options import parse_arguments, weights_digest, write_json  # noqa: E402
from scoring import classify, embed, load_checkpoint, read_by_tokenizer, read_transcripts  # noqa: E402
from speech_data import DataArguments, read_split  # noqa: E402

CLEAN = "clean"
SYSTEMS = {
    "calm": "CALM", "calm_reading": "CALM by reading", "compared": "from scratch",
    "calm_probe": "SpecTran, probe", "ast_probe": "ASTModel, probe",
    "wav2vec2_probe": "Wav2Vec2Model, probe", "egemaps_svm": "eGeMAPS + linear SVM",
}  # fmt: skip
TITLES = {"unweighted_average_recall": "UAR", "audio_to_text_recall@1": "R@1"}
# Maps rows of clips to answers (seeds, N): classes, or the rank of each clip's transcript.
System = Callable[[Sequence[dict]], np.ndarray]
logger = logging.getLogger(__name__)


@dataclass
class RobustnessArguments:
    """Which systems are tested; every list except that of the probes holds seeds of one system."""

    models: list[str] = field(default_factory=list, metadata={"help": "Fine-tuned classifiers."})
    compare_models: list[str] = field(default_factory=list, metadata={"help": "Classifiers to compare with."})
    probes: list[str] = field(
        default_factory=list, metadata={"help": "Pretrained encoders, CALM's or peers'; of one kind they are seeds."}
    )
    egemaps: bool = field(default=True, metadata={"help": "The baseline eGeMAPS; needs opensmile."})
    retrieval_models: list[str] = field(default_factory=list, metadata={"help": "Pretrained CALM checkpoints."})
    retrieval_dataset: str | None = field(default=None, metadata={"help": "Their data set; as `--dataset`."})
    batch_size: int = field(default=32, metadata={"help": "Clips at once."})
    output: str = field(default="runs/results/robustness.json", metadata={"help": "JSON file."})

    def __post_init__(self):
        if bool(self.retrieval_models) != bool(self.retrieval_dataset):
            raise ValueError("`--retrieval_models` and `--retrieval_dataset` go together.")

    def checkpoints(self) -> list[str]:
        """All checkpoints that are named."""
        return list(dict.fromkeys([*self.models, *self.compare_models, *self.probes, *self.retrieval_models]))


def perturbed(rows: Sequence[dict], name: str) -> list[dict]:
    """The rows with their clips perturbed, each seeded with its row number."""
    change = PERTURBATIONS[name]
    return [{**row, "audio": change(row["audio"], SAMPLING_RATE, np.random.default_rng(row["row"]))} for row in rows]


def open_all(folders: Sequence[str], kind: type) -> list[tuple]:
    """The models of one kind and their processors.

    Raises:
        ValueError: if one expects a sampling rate other than that of the clips.
    """
    opened: list[tuple] = [load_checkpoint(folder, kind) for folder in folders]
    for folder, (_, processor) in zip(folders, opened, strict=True):
        rate = processor.feature_extractor.sampling_rate
        if rate != SAMPLING_RATE:
            raise ValueError(f"'{folder}' reads clips of {rate} Hz, and these have {SAMPLING_RATE} Hz.")
    return opened


def classifiers(folders: Sequence[str], classes: list[str], batch_size: int) -> System:
    """A system of fine-tuned seeds.

    Raises:
        ValueError: if their classes are not those of the data set.
    """
    opened = open_all(folders, CalmForSequenceClassification)
    for folder, (model, _) in zip(folders, opened, strict=True):
        if model.config.label2id != {name: i for i, name in enumerate(classes)}:
            raise ValueError(f"'{folder}' tells {list(model.config.label2id)}, and the data set holds {classes}.")
    return lambda rows: np.stack(
        [
            classify(model, processor, rows, batch_size, model.config.modalities).argmax(-1)
            for model, processor in opened
        ]
    )


def emotion_systems(arguments: RobustnessArguments, data: DataArguments) -> tuple[dict[str, System], dict[str, int]]:
    """The classifiers and probes by name, and the classes."""
    clips, classes = read_clips(data, data.train_split, data.validation_split)
    systems = {}
    for name, folders in (("calm", arguments.models), ("compared", arguments.compare_models)):
        if folders:
            systems[name] = classifiers(folders, classes, arguments.batch_size)
    frozen = {
        f"{kind}_probe": [from_checkpoint(folder, arguments.batch_size) for folder in folders]
        for kind, folders in group(arguments.probes).items()
    }
    for name, seeds in (frozen | ({"egemaps_svm": [egemaps]} if arguments.egemaps else {})).items():
        fitted, _ = fit_system(seeds, clips[data.train_split], clips[data.validation_split])
        systems[name] = lambda rows, fitted=fitted: np.stack(
            [one.predict([row["audio"] for row in rows]) for one in fitted]
        )
    return systems, {name: i for i, name in enumerate(classes)}


def searches(opened: Sequence[tuple[CalmForPreTraining, CalmProcessor]], batch_size: int) -> System:
    """The rank of each clip's transcript among those of the split, for every seed."""

    def search(rows: Sequence[dict]) -> np.ndarray:
        ranks = []
        for model, processor in opened:
            embeds = embed(model, processor, rows, batch_size)
            texts = read_by_tokenizer(processor, [row["text"] for row in rows])
            ranks.append(audio_text_ranks(embeds["audio_embeds"], embeds["text_embeds"], texts))
        return np.stack(ranks)

    return search


def readings(opened: Sequence[tuple[CalmForPreTraining, CalmProcessor]], batch_size: int) -> System:
    """Like [`searches`], but by `score_transcripts`."""

    def read(rows: Sequence[dict]) -> np.ndarray:
        said = [row["text"] for row in rows]
        return np.stack([retrieval_ranks(*read_transcripts(*one, rows, said, batch_size)) for one in opened])

    return read


def first_hits(best: np.ndarray, ranks: np.ndarray) -> float:
    """R@1 of ranks (N,), where `best` is 1 for all."""
    return float((ranks <= best).mean())


def measure(systems: dict[str, System], rows: Sequence[dict], metric: Callable, truth: np.ndarray) -> dict:
    """The metric of every system on clean and on perturbed clips, with its change."""
    results: dict[str, dict] = {name: {} for name in systems}
    clean = {}
    for change in (CLEAN, *PERTURBATIONS):
        logger.info("%s", change)
        heard = rows if change == CLEAN else perturbed(rows, change)
        for name, system in systems.items():
            answers = system(heard)  # (seeds, N)
            clean.setdefault(name, answers)
            difference = paired_bootstrap(metric, truth, answers, clean[name])
            results[name][change] = {
                "interval": bootstrap_interval(metric, truth, answers)._asdict(),
                "change": difference._asdict(),
            }
    return results


def as_table(results: dict) -> str:
    """One row per perturbation, one column per system: the metric, and its change with the interval."""
    systems = {
        f"{SYSTEMS[name]}, {TITLES[metric]}": found for metric, each in results.items() for name, found in each.items()
    }
    lines = ["| clips | " + " | ".join(systems) + " |", "|---" * (len(systems) + 1) + "|"]
    for change in (CLEAN, *PERTURBATIONS):
        cells = []
        for found in systems.values():
            value, moved = found[change]["interval"], found[change]["change"]
            interval = f"{value['low']:.3f}, {value['high']:.3f}"
            if change != CLEAN:
                interval = f"{moved['estimate']:+.3f}; {moved['low']:+.3f}, {moved['high']:+.3f}"
            cells.append(f"{value['estimate']:.3f} [{interval}]")
        lines.append(f"| {change} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    arguments, data = parse_arguments(RobustnessArguments, DataArguments, arguments=argv)
    logging.basicConfig(level=logging.INFO)
    results = {}
    if arguments.models or arguments.compare_models or arguments.probes:
        systems, label2id = emotion_systems(arguments, data)
        folders = [*arguments.models, *arguments.compare_models]
        text = any(CalmConfig.from_pretrained(folder).modalities != "audio" for folder in folders)
        test = read_split(data, data.test_split, SAMPLING_RATE, text=text, label=True)
        test = encode_labels(test, label2id, data.test_split)
        results["unweighted_average_recall"] = measure(
            systems, list(test), unweighted_average_recall, np.asarray(test["label"])
        )
    if arguments.retrieval_models:
        speech = read_split(replace(data, dataset=arguments.retrieval_dataset), data.test_split, SAMPLING_RATE)
        opened = open_all(arguments.retrieval_models, CalmForPreTraining)
        systems = {"calm": searches(opened, arguments.batch_size)}
        if all(model.config.transcript_loss_weight for model, _ in opened):
            systems["calm_reading"] = readings(opened, arguments.batch_size)
        results["audio_to_text_recall@1"] = measure(systems, list(speech), first_hits, np.ones(len(speech)))
    if not results:
        raise ValueError("Name what is tried: `--models`, `--probes` or `--retrieval_models`.")
    weights = {folder: weights_digest(folder) for folder in arguments.checkpoints() if Path(folder).is_dir()}
    dataset = data.dataset if "unweighted_average_recall" in results else arguments.retrieval_dataset
    report = {"arguments": asdict(arguments), "dataset": dataset, "weights": weights, "results": results}
    output = Path(arguments.output)
    write_json(output, report)
    output.with_suffix(".md").write_text(as_table(results) + "\n")
    print(as_table(results))
    return results


if __name__ == "__main__":
    main()
