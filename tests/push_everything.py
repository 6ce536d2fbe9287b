"""Push to the Hub by every way there is: run as a script with HF_ENDPOINT set, by `test_hub.py`.

`python push_everything.py FOLDER ALIGNED FITTED` pushes two runs and writes FOLDER/pushed.json: commits, refusals, and
what the Auto classes make of a repository where this project is imported.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import huggingface_hub  # noqa: E402
import publish  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from hub_stub import OWNER, STRANGER  # noqa: E402
from transformers import AutoProcessor, Trainer, TrainingArguments  # noqa: E402
from without_package import AUTO_CLASSES  # noqa: E402

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification  # noqa: E402
from processing import DataCollatorForCalmClassification  # noqa: E402

LICENCES = ["--license", "cc-by-nc-4.0", "--training_data", "Tones: CC BY-NC 4.0", "owner/noise: CC0"]


def train(folder: Path, fitted: str) -> None:
    """One step of the library's own Trainer, with `push_to_hub=True`."""
    model, processor = CalmForSequenceClassification.from_pretrained(fitted), AutoProcessor.from_pretrained(fitted)
    waveform = torch.linspace(0, 2000, 4000).sin().numpy()
    arguments = TrainingArguments(
        output_dir=str(folder / "trained"), push_to_hub=True, hub_model_id="owner/trained", hub_private_repo=True,
        max_steps=1, save_steps=1, per_device_train_batch_size=2, remove_unused_columns=False, disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"audio": waveform, "text": "red cat", "label": i} for i in range(2)],
        data_collator=DataCollatorForCalmClassification(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub()
    model.save_pretrained(folder / "trained-reference")


def attempt(model: str, repo_id: str, *options: str) -> str:
    """What publish.py says: an address, or why not."""
    try:
        return publish.main(["--model", model, "--repo_id", repo_id, *LICENCES, *options])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(folder: Path, aligned: str, fitted: str) -> None:
    report = {}
    model, processor = CalmForPreTraining.from_pretrained(aligned), AutoProcessor.from_pretrained(aligned)
    model.push_to_hub("owner/model")
    report["older"] = processor.push_to_hub("owner/model").oid
    with torch.no_grad():
        model.calm.audio_projection.weight.add_(0.1)
    report["newer"] = model.push_to_hub("owner/model", commit_message="Move it").oid
    model.save_pretrained(folder / "newer")
    model.push_to_hub("owner/model", revision="sharded", max_shard_size="50KB")
    processor.push_to_hub("owner/base")
    model.calm.push_to_hub("owner/base")
    model.calm.audio_model.push_to_hub("owner/spectran")
    processor.feature_extractor.push_to_hub("owner/spectran")

    train(folder, fitted)

    report["published"] = attempt(fitted, "owner/published")
    report["private"] = attempt(aligned, "owner/private", "--private", "--revision", "v1", "--commit_message", "First")
    # Over what the Trainer left, in several files.
    report["over"] = attempt(fitted, "owner/trained", "--max_shard_size", "50KB", "--token", OWNER)
    report["public"] = attempt(fitted, "owner/published", "--private")
    report["foreign"] = attempt(fitted, "owner/published", "--token", STRANGER)
    report["unknown token"] = attempt(fitted, "owner/published", "--token", "hf_nobody")
    endpoint, huggingface_hub.constants.ENDPOINT = huggingface_hub.constants.ENDPOINT, "http://127.0.0.1:9"
    report["no network"] = attempt(fitted, "owner/published")
    huggingface_hub.constants.ENDPOINT = endpoint
    token = os.environ.pop("HF_TOKEN")
    report["no token"] = attempt(fitted, "owner/published")
    os.environ["HF_TOKEN"] = token

    loaded = {auto: type(getattr(transformers, auto).from_pretrained("owner/model")) for auto in AUTO_CLASSES}
    report["with package"] = {auto: f"{kind.__module__}.{kind.__name__}" for auto, kind in loaded.items()}
    (folder / "pushed.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
