"""What CALP does to the aligned space, and what each rate encodes: a checkpoint before and after training.

    python examples/results/alignment.py --model runs/commands --dataset SPEECH --emotion_dataset EMOTION \
        --output runs/results/alignment.json

"Before" is the initial state of its pretraining: the same language model, and a SpecTran initialised from the same
seed. Measured for both: retrieval, alignment, uniformity, modality gap and word reading; accuracy by length of the
audio; and what each rate encodes, see `rates.py`. The figures are saved next to the JSON: `-similarity.png`,
`-words.png`, `-length.png` and `-rates.png`.
"""

import logging
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from transformers import set_seed

sys.path.append(str(Path(__file__).parents[1]))
from drawing import draw_length, draw_rates  # noqa: E402
from evaluate import AlignedSpace, measure_space, recall_at  # noqa: E402
from figures import draw_similarity, draw_tokens, style  # noqa: E402
from finetune import describe_labels, encode_labels  # noqa: E402
from model_card import run_options  # noqa: E402
from options import CalmTrainingArguments, parse_arguments, weights_digest, write_json  # noqa: E402
from rates import emotion_by_rate, words_by_rate  # noqa: E402
from scoring import load_checkpoint  # noqa: E402
from speech_data import DataArguments, read_split  # noqa: E402
from training import ModelArguments  # noqa: E402

from modeling_calm import CalmForPreTraining  # noqa: E402
from processing.bootstrap import bootstrap_interval  # noqa: E402


@dataclass
class AlignmentArguments:
    """What is measured."""

    model: str | None = field(default=None, metadata={"help": "Folder of a run of pretrain.py."})
    split: str | None = field(
        default=None, metadata={"help": "Split to measure on, of both data sets; by default the test split."}
    )
    emotion_dataset: str | None = field(
        default=None, metadata={"help": "Labelled speech for the probes of the rates."}
    )
    length_bins: int = field(default=4, metadata={"help": "Groups of clips by their length, of like size."})
    drawn_clips: int = field(default=4, metadata={"help": "Spectrograms on the page of words."})
    batch_size: int = field(default=32, metadata={"help": "Clips at once."})
    output: str = field(default="runs/results/alignment.json", metadata={"help": "JSON file; figures go beside it."})


def before_training(folder: str) -> CalmForPreTraining:
    """The model that a run's pretraining began with, recreated from its options and its seed.

    A run that continued from another (`--model`) began where that one did.

    Raises:
        ValueError: if the folder belongs to no run, or its options no longer give a model of its shape.
    """
    options, first = run_options(Path(folder)), folder
    while options.get("model"):
        first = options["model"]
        options = run_options(Path(first))
    if "text_model" not in options:
        raise ValueError(
            f"'{first}' holds no `config.yaml` of pretrain.py, and nothing else tells with what '{folder}' began. Give"
            " the folder of a run, beside those it went on from."
        )
    seed = next(entry.default for entry in fields(CalmTrainingArguments) if entry.name == "seed")
    set_seed(options.get("seed", seed))
    arguments = ModelArguments(text_model=options["text_model"], audio_config=options["audio_config"])
    return arguments.load_model(CalmForPreTraining).eval()


def refuse_other_shapes(before: CalmForPreTraining, after: CalmForPreTraining, folder: str) -> None:
    """Refuse to compare models of different shapes.

    Raises:
        ValueError: names a weight in which they differ.
    """
    shapes = [{name: tuple(weight.shape) for name, weight in m.state_dict().items()} for m in (before, after)]
    other = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    if other:
        raise ValueError(
            f"The options in '{folder}' give a model of another shape than its weights have (`{other[0]}`): the file"
            " of `audio_config` or the language model has changed since."
        )


def by_length(space: AlignedSpace, durations: np.ndarray, bins: int) -> list[dict]:
    """Audio-to-text accuracy in groups of clips between quantiles of their length.

    All groups share the same candidates, so longer clips do not have fewer.

    Args:
        durations: (N,), in seconds.
        bins: number of groups; clips of equal length stay together, so that there may be fewer.
    """
    groups = np.searchsorted(np.quantile(durations, np.linspace(0, 1, bins + 1)[1:-1]), durations, side="right")
    found = []
    for group in np.unique(groups):
        ranks, seconds = space.ranks[groups == group], durations[groups == group]
        found.append(
            {
                "clips": len(ranks),
                "shortest": seconds.min(),
                "longest": seconds.max(),
                "mean": seconds.mean(),
                "recall@1": bootstrap_interval(recall_at(1), ranks)._asdict(),
                "reciprocal_rank": bootstrap_interval(lambda ranks: float((1 / ranks).mean()), ranks)._asdict(),
            }
        )
    return found


def main(argv: list[str] | None = None) -> dict:
    arguments, data = parse_arguments(AlignmentArguments, DataArguments, arguments=argv)
    logging.basicConfig(level=logging.INFO)
    if arguments.model is None:
        raise ValueError("Name the run with `--model`.")
    after, processor = load_checkpoint(arguments.model, CalmForPreTraining)
    before = before_training(arguments.model).to(after.device)
    refuse_other_shapes(before, after, arguments.model)
    models, rate = {"before": before, "after": after}, processor.feature_extractor.sampling_rate
    arguments.split = arguments.split or data.test_split
    speech = read_split(data, arguments.split, rate)
    durations, results = np.asarray(speech["duration"]), {}
    for name, model in models.items():
        space = measure_space(model, processor, speech, arguments.batch_size)
        results[name] = {**space.scores, "by_length": by_length(space, durations, arguments.length_bins)}
    splits = {"train": read_split(data, data.train_split, rate), "test": speech}
    results["words_by_rate"] = words_by_rate(models, processor, splits, arguments.batch_size)
    if arguments.emotion_dataset is not None:
        labelled = replace(data, dataset=arguments.emotion_dataset)
        names = {"train": data.train_split, "validation": data.validation_split, "test": arguments.split}
        splits = {part: read_split(labelled, name, rate, label=True) for part, name in names.items()}
        label2id = describe_labels(splits["train"], data.label_columns())["label2id"]
        splits = {part: encode_labels(dataset, label2id, names[part]) for part, dataset in splits.items()}
        results["emotion_by_rate"] = emotion_by_rate(models, processor, splits, arguments.batch_size)
    report = {
        "arguments": asdict(arguments),
        "dataset": data.dataset,
        "weights": {arguments.model: weights_digest(arguments.model)},
        "results": results,
    }
    output = Path(arguments.output)
    write_json(output, report)
    with style():
        drawn = {
            "similarity": draw_similarity({"Before CALP": before, "After CALP": after}, processor, speech, False),
            "words": draw_tokens(after, processor, speech, arguments.drawn_clips),
            "length": draw_length(results),
            "rates": draw_rates(results),
        }
        for name, figure in drawn.items():
            figure.savefig(output.with_name(f"{output.stem}-{name}.png"))
    return report


if __name__ == "__main__":
    main()
