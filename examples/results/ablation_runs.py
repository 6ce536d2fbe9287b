"""One run of an ablation: trained in its own process, measured on the validation split."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import yaml
from changes import changed
from frozen import fit_system, from_checkpoint, read_clips
from provenance import code_state

EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))
from evaluate import measure_space  # noqa: E402
from finetune import encode_labels  # noqa: E402
from options import write_json  # noqa: E402
from scoring import checkpoint_kind, classify, load_checkpoint  # noqa: E402
from speech_data import DataArguments, read_split  # noqa: E402

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification  # noqa: E402

CHANGES_SCRIPT = Path(__file__).with_name("changes.py")
logger = logging.getLogger(__name__)
measuring = threading.Lock()  # one thread of this process at a time


def train(folder: Path, options: dict) -> None:
    """Run the script in its own process, on one thread.

    Raises:
        RuntimeError: if it fails; names its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script, change = options["script"], options.get("change")
    options = {name: value for name, value in options.items() if name not in ("script", "change")}
    if isinstance(options.get("audio_config"), dict):
        spectran = folder / "spectran.yaml"
        spectran.write_text(yaml.safe_dump(options["audio_config"]))
        options = options | {"audio_config": str(spectran)}
    recipe, log = folder / "recipe.yaml", folder / "log.txt"
    recipe.write_text(yaml.safe_dump(options | {"output_dir": str(folder)}))
    command = [sys.executable, *([str(CHANGES_SCRIPT), change, script] if change else [str(EXAMPLES / script)])]
    command += ["--config", str(recipe), "--resume", "true", "--disable_tqdm", "true"]
    with log.open("w") as stream:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise RuntimeError(f"The run in '{folder}' ended with code {code}; its last words stand in '{log}'.")


def measure(folder: Path, data: DataArguments, emotion: DataArguments | None, batch_size: int) -> dict[str, list]:
    """The facts about each clip from which all measures are computed, (N, k) each, on validation clips only."""
    if checkpoint_kind(str(folder)) == CalmForSequenceClassification.__name__:
        return {"emotion": classified(folder, data, batch_size).tolist()}
    model, processor = load_checkpoint(str(folder), CalmForPreTraining)
    clips = read_split(data, data.validation_split, processor.feature_extractor.sampling_rate)
    space = measure_space(model, processor, clips, batch_size)
    facts = {"ranks": space.ranks[:, None], "words": space.words}
    # A model that was not trained to read gets the last rank.
    last = np.full(len(space.ranks), len(space.ranks) + 1)
    facts["reading_ranks"] = (last if space.reading_ranks is None else space.reading_ranks)[:, None]
    if emotion is not None:
        labelled, _ = read_clips(emotion, emotion.train_split, emotion.validation_split)
        training, validation = labelled.values()
        (probe,), _ = fit_system([from_checkpoint(str(folder), batch_size)], training, validation)
        facts["emotion"] = np.stack((validation.labels, probe.predict(validation.waveforms)), axis=1)
    return {name: fact.tolist() for name, fact in facts.items()}


def classified(folder: Path, data: DataArguments, batch_size: int) -> np.ndarray:
    """True and predicted classes of a classifier, (N, 2)."""
    model, processor = load_checkpoint(str(folder), CalmForSequenceClassification)
    modalities, rate = model.config.modalities, processor.feature_extractor.sampling_rate
    clips = read_split(data, data.validation_split, rate, text=modalities != "audio", label=True)
    clips = encode_labels(clips, model.config.label2id, data.validation_split)
    answers = classify(model, processor, clips, batch_size, modalities).argmax(-1)
    return np.stack((np.asarray(clips["label"]), answers), axis=1)


def carry_out(
    folder: Path, options: dict, data: DataArguments, emotion: DataArguments | None, batch_size: int
) -> dict:
    """The facts of one run: trained and measured, or loaded if that was done before.

    Args:
        folder: the run's.
        options: of the script, plus `script` itself and the `change`, if any.
        data: what it is trained on.
        emotion: labelled speech for the linear probe of a pretrained model.
        batch_size: clips at once when measuring.

    Raises:
        ValueError: if the folder holds the facts of a run with other options.
    """
    file, asked = folder / "facts.json", options | {"emotion_dataset": emotion and emotion.dataset}
    if file.exists():
        found = json.loads(file.read_text())
        if found["options"] != asked:
            raise ValueError(
                f"'{folder}' holds a run with other options. Remove it, or choose another `--output_dir`."
            )
        return found
    start, state = time.perf_counter(), code_state()
    train(folder, options)
    seconds = time.perf_counter() - start
    with measuring, changed(options.get("change")):
        facts = measure(folder, data, emotion, batch_size)
    write_json(file, {"options": asked, **state, "seconds": seconds, **facts})
    logger.info("%s: trained in %.0f s and measured", folder.name, seconds)
    return json.loads(file.read_text())
