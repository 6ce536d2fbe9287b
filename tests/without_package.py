"""What a machine without this project makes of a checkpoint: run as a script, in a process that cannot import it.

`python without_package.py FOLDER` reads FOLDER/jobs.json and writes FOLDER/report.json and FOLDER/report.safetensors.

A job has a `name`, a `source` (a folder, or a repository of the Hub) and `options` of `from_pretrained`. Its source is
loaded through every Auto class. With `resave`, what the Auto class `by` and `AutoProcessor` gave is saved to that
folder, and the folder loaded instead. With `card`, the Python of the source's README.md is run instead.
"""

import contextlib
import io
import json
import re
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file

AUTO_CLASSES = (
    "AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoModelForSequenceClassification",
    "AutoModelForAudioClassification", "AutoFeatureExtractor", "AutoTokenizer", "AutoProcessor",
)  # fmt: skip


class WithoutPackage(MetaPathFinder):
    """Nobody has installed this project here."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_calm", "processing"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def load(auto: str, source: str, **options):
    return getattr(transformers, auto).from_pretrained(source, trust_remote_code=True, **options)


@torch.no_grad()
def outputs(loaded, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model or a processor makes of the inputs."""
    if isinstance(loaded, transformers.ProcessorMixin):
        batch = loaded(audio=inputs["waveform"], text="red cat", sampling_rate=16000, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "input_features")}
    if not isinstance(loaded, transformers.PreTrainedModel):
        return {}
    base = getattr(loaded.eval(), "calm", loaded)
    names = ("input_features",) if loaded.main_input_name == "input_features" else ("input_features", "input_ids")
    batch = {name: inputs[name] for name in names}
    found = {"states": base(**batch).last_hidden_state}
    if base is not loaded:
        found["logits"] = (output := loaded(**batch)).get("logits", output.get("logits_per_audio"))
    return found


def run_card(source: str, **options) -> str:
    """What the examples of a model card print."""
    card = Path(hf_hub_download(source, "README.md", **options)).read_text()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            exec(block, {})
    return printed.getvalue()


def main(folder: Path) -> None:
    inputs, report, tensors = load_file(folder / "inputs.safetensors"), {}, {}
    for job in json.loads((folder / "jobs.json").read_text()):
        name, source, options = job["name"], job["source"], job.get("options", {})
        if "card" in job:
            report[name] = run_card(source, **options)
            continue
        if "resave" in job:
            for auto in (job["by"], "AutoProcessor"):
                load(auto, source, **options).save_pretrained(job["resave"])
            source, options = job["resave"], {}
        report[name] = {}
        for auto in AUTO_CLASSES:
            try:
                loaded = load(auto, source, **options)
            except Exception as error:
                report[name][auto] = f"{type(error).__name__}: {error}"
                continue
            report[name][auto] = f"{type(loaded).__module__.partition('.')[0]}.{type(loaded).__name__}"
            found = outputs(loaded, inputs)
            tensors |= {f"{name} {auto} {key}": value.contiguous() for key, value in found.items()}
    save_file(tensors, folder / "report.safetensors")
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.meta_path.insert(0, WithoutPackage())
    main(Path(sys.argv[1]))
