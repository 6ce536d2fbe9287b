"""Plot the contents of a run's folder.

    python examples/plot_run.py runs/pretrain

The figures go to `RUN/plots/`. Pretraining: `loss.png`, `retrieval.png`, `similarity.png`, `tokens.png`; a classifier:
`loss.png`, `metric.png`, `confusion.png`. Plots without logged data are omitted.
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path

import yaml
from figures import draw_confusion, draw_loss, draw_metric, draw_retrieval, draw_similarity, draw_tokens, style
from scoring import load_checkpoint
from speech_data import DataArguments, read_split

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification


def plot_run(folder: Path) -> list[Path]:
    """Plot everything that a run's folder holds.

    Args:
        folder: output folder of pretrain.py or finetune.py.

    Returns:
        The PNG files in `folder/plots`.

    Raises:
        ValueError: if the folder holds no finished run, or its validation clips can no longer be read.
    """
    folder = Path(folder)
    missing = [name for name in ("trainer_state.json", "config.yaml", "results.json") if not (folder / name).exists()]
    if missing:
        raise ValueError(f"'{folder}' holds no finished run of pretrain.py or finetune.py: {missing} are missing.")
    state = json.loads((folder / "trainer_state.json").read_text())
    options = yaml.safe_load((folder / "config.yaml").read_text())
    results = json.loads((folder / "results.json").read_text())
    pretraining = "stage" in options
    kind = CalmForPreTraining if pretraining else CalmForSequenceClassification
    model, processor = load_checkpoint(str(folder), kind)
    with style():
        figures = {"loss": draw_loss(state["log_history"], pretraining)}
        if pretraining:
            figures["retrieval"] = draw_retrieval(state)
            data = DataArguments(**{f.name: options[f.name] for f in fields(DataArguments) if f.name in options})
            data.dataset = options.get("validation_dataset") or data.dataset
            if options.get("features_column") is None:  # these two need the audio itself
                clips = read_split(data, data.validation_split, processor.feature_extractor.sampling_rate)
                figures["similarity"] = draw_similarity(
                    {"Clips and transcripts of validation": model}, processor, clips
                )
                figures["tokens"] = draw_tokens(model, processor, clips)
        else:
            test = results["test"]
            figures["metric"] = draw_metric(state, model.config.num_labels)
            figures["confusion"] = draw_confusion(test) if "confusion_matrix" in test else None
        plots = folder / "plots"
        plots.mkdir(exist_ok=True)
        files = {plots / f"{name}.png": figure for name, figure in figures.items() if figure is not None}
        for file, figure in files.items():
            figure.savefig(file)
    return list(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of pretrain.py or finetune.py")
    for file in plot_run(parser.parse_args().run):
        print(file)


if __name__ == "__main__":
    main()
