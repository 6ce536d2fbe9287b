"""Export a checkpoint to ONNX or to a `torch.export` program, checked against the model before it is kept.

    python examples/export.py --model runs/emotion/calm-0 --output_dir runs/emotion/onnx

The graph takes any number of clips, words and acoustic tokens. Its folder also holds the processor, which prepares the
inputs, and the configuration, which names the classes; examples/README.md shows how to run it.
"""

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from options import parse_arguments, write_json
from scoring import checkpoint_kind, load_processor
from torch import nn
from torch.export import Dim, ExportedProgram

from modeling_calm import CalmAudioModel, CalmForSequenceClassification, CalmModel
from processing import CalmFeatureExtractor

logger = logging.getLogger(__name__)

# A pretraining checkpoint is exported for inference: features and embeddings, without the objectives.
KINDS = {
    "CalmAudioModel": CalmAudioModel,
    "CalmModel": CalmModel,
    "CalmForPreTraining": CalmModel,
    "CalmForSequenceClassification": CalmForSequenceClassification,
}
TEXT, AUDIO = ("input_ids", "attention_mask"), ("input_features", "input_features_mask")
INPUTS = {"both": TEXT + AUDIO, "audio": AUDIO, "text": TEXT}
FOREIGN_OUTPUTS = {"both": (), "audio": ("text_",), "text": ("audio_", "acoustic_")}  # constant without that input
TRACED = (3, 7, 4)  # clips, words and acoustic tokens of the batch that the graph is traced with
CHECKED = [(clips, words, tokens) for words, tokens in ((1, 1), (6, 5), (13, 9)) for clips in (1, 3)]
LEAST_TOKENS = {"onnx": 1, "pt2": 2}  # acoustic tokens; `torch.export` treats a length of 1 as a constant
TOLERANCE = 1e-4  # relative to the largest absolute value, but at least to 1


@dataclass
class ExportArguments:
    """What is exported, and how."""

    model: str | None = field(default=None, metadata={"help": "Run's folder or Hub name."})
    output_dir: str = field(default="runs/export", metadata={"help": "Folder of the graph and what it needs."})
    formats: list[str] = field(
        default_factory=lambda: ["onnx"], metadata={"help": "onnx, pt2 or both.", "choices": ["onnx", "pt2"]}
    )
    modalities: str | None = field(
        default=None, metadata={"help": "Inputs of the graph: both, audio or text; by default as trained."}
    )
    outputs: list[str] = field(
        default_factory=list,
        metadata={"help": "Outputs, such as audio_embeds; the graph holds what they need. By default all."},
    )


class Graph(nn.Module):
    """A model as a function from named tensors to named tensors.

    Raises:
        ValueError: if it lacks a requested output.
    """

    def __init__(self, model: nn.Module, modalities: str, outputs: list[str] | None = None):
        super().__init__()
        self.model = model
        self.inputs = INPUTS[modalities]
        self.audio_config = getattr(model.config, "audio_config", model.config)
        with torch.no_grad():
            output = model(**self.draw(*TRACED), return_dict=True)
        foreign = FOREIGN_OUTPUTS[modalities]
        known = [name for name, value in output.items() if torch.is_tensor(value) and not name.startswith(foreign)]
        unknown = sorted(set(outputs or ()) - set(known))
        if unknown:
            raise ValueError(f"This model has no output {unknown} of '{modalities}'; it has {known}.")
        self.outputs = outputs or known

    def forward(self, input_ids=None, attention_mask=None, input_features=None, input_features_mask=None):
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask,
            "input_features": input_features, "input_features_mask": input_features_mask,
        }  # fmt: skip
        output = self.model(**{name: given[name] for name in self.inputs}, return_dict=True)
        return {name: output[name] for name in self.outputs}

    def draw(self, clips: int, words: int, tokens: int) -> dict[str, torch.Tensor]:
        """A batch of random words and patches: one clip is padded; of three clips, one lacks text and one audio."""
        generator = torch.Generator().manual_seed(words)
        patches = tokens * self.audio_config.patches_per_token
        words_mask, patches_mask = torch.ones(clips, words).long(), torch.ones(clips, patches).long()
        words_mask[1:2, words // 2 + 1 :] = 0
        patches_mask[1:2, patches // 2 + 1 :] = 0
        if len(self.inputs) == 4 and clips > 2:
            words_mask[0], patches_mask[2] = 0, 0
        drawn = {
            "attention_mask": words_mask,
            "input_features": torch.randn(clips, patches, self.audio_config.patch_dim, generator=generator),
            "input_features_mask": patches_mask,
        }
        if "input_ids" in self.inputs:
            vocabulary = self.model.get_input_embeddings().num_embeddings
            drawn["input_ids"] = torch.randint(vocabulary, (clips, words), generator=generator)
        return {name: drawn[name] for name in self.inputs}

    def max_tokens(self) -> int | None:
        """The most lexical plus acoustic tokens of a row that the graph takes, with padding; `None` for no limit."""
        return None if isinstance(self.model, CalmAudioModel) else getattr(self.model, "calm", self.model).max_tokens()

    def trace(self) -> ExportedProgram:
        """The program, for any number of clips, words and acoustic tokens; P = T x S."""
        limit = self.max_tokens()
        if limit is not None and len(self.inputs) == 4:
            limit -= 2  # the minimum that the other modality takes
        clips, words, tokens = Dim("clips", min=2), Dim("words", min=2, max=limit), Dim("tokens", min=2, max=limit)
        text, audio = {0: clips, 1: words}, {0: clips, 1: self.audio_config.patches_per_token * tokens}
        with torch.no_grad():
            return torch.export.export(
                self,
                args=(),
                kwargs=self.draw(*TRACED),
                dynamic_shapes={name: text if name in TEXT else audio for name in self.inputs},
            )


def write_onnx(program: ExportedProgram, graph: Graph, file: Path) -> Callable:
    """Write the ONNX file; returns a function that runs it."""
    import onnxruntime

    axes = {name: {0: "clips", 1: "words" if name in TEXT else "patches"} for name in graph.inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, and inputs that share axis names
        torch.onnx.export(
            program, dynamo=True, input_names=graph.inputs, output_names=graph.outputs, dynamic_shapes=axes,
            verbose=False,
        ).save(file)  # fmt: skip
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(graph.outputs, {name: value.numpy() for name, value in inputs.items()})


def write_pt2(program: ExportedProgram, graph: Graph, file: Path) -> Callable:
    """Write the program; returns a function that runs it."""
    torch.export.save(program, file)
    module = torch.export.load(file).module()
    return lambda inputs: [value.detach().numpy() for value in module(**inputs).values()]


WRITERS = {"onnx": write_onnx, "pt2": write_pt2}


def compare(run: Callable, graph: Graph, least_tokens: int = 1) -> float:
    """The largest difference between a written graph and the model, over batches of shapes other than the traced one.

    Args:
        run: returns the outputs of `graph` as NumPy arrays, in the same order.
        graph: the model.
        least_tokens: acoustic tokens that `run` needs at least.

    Raises:
        RuntimeError: if they disagree.
    """
    largest = 0.0
    for clips, words, tokens in CHECKED:
        inputs = graph.draw(clips, words, max(tokens, least_tokens))
        with torch.no_grad():
            expected = graph(**inputs)
        for name, found in zip(graph.outputs, run(inputs), strict=True):
            truth = expected[name].numpy().astype(float)
            difference = np.abs(found - truth).max(initial=0) if found.shape == truth.shape else np.inf
            if not difference <= TOLERANCE * max(1.0, np.abs(truth).max(initial=0)):  # `not`, so that NaN fails
                raise RuntimeError(
                    f"The graph disagrees with the model on `{name}` by {difference:.2g} for {clips} clips of {words}"
                    f" words and {max(tokens, least_tokens)} acoustic tokens; {TOLERANCE:g} is allowed. Nothing was"
                    " written. Another language model or other versions of torch and onnxscript may do."
                )
            largest = max(largest, float(difference))
    return largest


def main(argv: list[str] | None = None) -> dict:
    (arguments,) = parse_arguments(ExportArguments, arguments=argv)
    logging.basicConfig(level=logging.INFO)
    for talkative in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    if arguments.model is None:
        raise ValueError("Name a checkpoint with `--model`.")
    absent = [name for name in ("onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent and "onnx" in arguments.formats:
        raise ValueError(f'{absent} not installed: `pip install -e ".[export]"`, or choose `--formats pt2`.')
    kind = checkpoint_kind(arguments.model)
    if kind not in KINDS:
        raise ValueError(f"'{arguments.model}' holds {kind}; {list(KINDS)} can be exported.")
    alone = kind == "CalmAudioModel"  # which has no tokenizer
    load = CalmFeatureExtractor.from_pretrained if alone else load_processor
    processor = load(arguments.model)
    model = KINDS[kind].from_pretrained(arguments.model, dtype=torch.float32).eval()
    modalities = "audio" if alone else arguments.modalities or model.config.modalities
    graph = Graph(model, modalities, arguments.outputs)

    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    program, differences = graph.trace(), {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name in arguments.formats:
            run = WRITERS[name](program, graph, Path(scratch) / f"model.{name}")
            differences[name] = compare(run, graph, LEAST_TOKENS[name])
            logger.info("%s agrees with the model at %d shapes, to %.1g", name, len(CHECKED), differences[name])
        for file in Path(scratch).iterdir():
            shutil.move(file, folder / file.name)
    processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    results = {
        "model": kind, "inputs": graph.inputs, "outputs": graph.outputs, "max_tokens": graph.max_tokens(),
        "largest_difference": differences,
    }  # fmt: skip
    write_json(folder / "export.json", results)
    return results


if __name__ == "__main__":
    main()
