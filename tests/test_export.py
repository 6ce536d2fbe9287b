"""Deployment runs the graph: it must be the model, for one clip or many, short or long, with a modality or without."""

import json
import re
from pathlib import Path

import export
import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from example_helpers import save_language_model
from model_helpers import LANGUAGE_MODELS, language_model_config, spoil
from transformers import AutoConfig, AutoTokenizer

from modeling_calm import (
    CalmAudioConfig,
    CalmAudioModel,
    CalmConfig,
    CalmForPreTraining,
    CalmForSequenceClassification,
    CalmModel,
)
from processing import CalmFeatureExtractor, CalmProcessor

SHAPES = [(clips, words, tokens) for clips in (1, 4) for words, tokens in ((1, 1), (9, 2), (4, 7))]
TOLERANCE = 1e-4
README = Path(__file__).resolve().parents[1] / "examples" / "README.md"


@pytest.fixture(scope="module")
def small(audio_config_values) -> CalmConfig:
    """One layer of each kind: what takes time is the exporter."""
    torch.manual_seed(0)
    values = {**audio_config_values, "num_hidden_layers": 1, "num_context_layers": 1}
    text = language_model_config("bert", num_hidden_layers=1)
    return CalmConfig(audio_config=values, text_config=text, special_token_ids=[0, 1, 2, 3, 4])


def batches(graph, least: int = 1):
    """Three lengths and two sizes, with padding, NaN in it, and rows that lack a modality; then all rows lack one."""
    for clips, words, tokens in SHAPES:
        inputs = graph.draw(clips, words, max(tokens, least))
        yield spoil(inputs) if "input_features" in inputs else inputs
    if len(graph.inputs) == 4:
        for lacking in ("attention_mask", "input_features_mask"):  # in the whole batch
            yield {**graph.draw(2, 4, 3), lacking: torch.zeros_like(graph.draw(2, 4, 3)[lacking])}


def assert_is_the_model(run, graph, least: int = 1) -> None:
    for inputs in batches(graph, least):
        with torch.no_grad():
            expected = graph.model(**inputs)
        for name, value in zip(graph.outputs, run(inputs), strict=True):
            np.testing.assert_allclose(value, expected[name].numpy(), atol=TOLERANCE, rtol=0, err_msg=name)


@pytest.fixture(scope="module", params=[CalmAudioModel, CalmModel], ids=lambda kind: kind.__name__)
def traced(request, small):
    """A graph of a model with all its inputs and outputs, and its program."""
    alone = request.param is CalmAudioModel
    model = request.param(small.audio_config if alone else small).eval()
    graph = export.Graph(model, "audio" if alone else "both")
    return graph, graph.trace()


def test_onnx_is_the_model(traced, tmp_path):
    """In ONNX Runtime, one clip of one acoustic token included, for everything that the model gives."""
    graph, program = traced
    run = export.write_onnx(program, graph, tmp_path / "model.onnx")
    assert_is_the_model(run, graph)
    written = onnx.load(tmp_path / "model.onnx").graph
    assert [entry.name for entry in written.input] == list(graph.inputs)
    assert [entry.name for entry in written.output] == graph.outputs
    axes = [[axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim] for entry in written.input]
    assert axes[-2:] == [["clips", "patches", 8], ["clips", "patches"]]


def test_a_program_is_the_model(traced, tmp_path):
    """Saved and loaded, from two acoustic tokens on; fewer are refused, not answered wrongly."""
    graph, program = traced
    run = export.write_pt2(program, graph, tmp_path / "model.pt2")
    assert_is_the_model(run, graph, least=2)
    with pytest.raises(AssertionError, match="Guard failed"):
        run(graph.draw(2, 4, 1))


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    """The folder of a classifier, exported by the script, and the model."""
    folder = tmp_path_factory.mktemp("export")
    small.id2label = {0: "calm", 1: "angry"}
    model = CalmForSequenceClassification(small).eval()
    model.save_pretrained(folder / "run")
    extractor = CalmFeatureExtractor.from_audio_config(small.audio_config)
    tokenizer = AutoTokenizer.from_pretrained(save_language_model(folder / "bert"))
    CalmProcessor(extractor, tokenizer).save_pretrained(folder / "run")
    results = export.main(["--model", str(folder / "run"), "--output_dir", str(folder / "runs" / "onnx")])
    return folder, model, results


def test_the_script_exports_a_classifier(exported):
    """The file is the model, and its folder is all that deployment needs."""
    folder, model, results = exported
    graph = export.Graph(model, "both")
    session = onnxruntime.InferenceSession(folder / "runs" / "onnx" / "model.onnx")

    def run(inputs):
        return session.run(None, {name: value.numpy() for name, value in inputs.items()})

    assert_is_the_model(run, graph)
    assert results["outputs"] == ["logits"] and results["max_tokens"] == 48
    assert results["largest_difference"]["onnx"] < TOLERANCE
    assert json.loads((folder / "runs" / "onnx" / "export.json").read_text())["inputs"] == list(graph.inputs)
    assert AutoConfig.from_pretrained(folder / "runs" / "onnx").id2label == {0: "calm", 1: "angry"}


def test_the_readme_runs_it(exported, tone, monkeypatch, capsys):
    """The lines that users copy."""
    folder, model, _ = exported
    monkeypatch.chdir(folder)
    soundfile.write("speech.wav", tone(440), 16000)
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "onnx" in block
    )
    variables = {}
    exec(compile(code, README.name, "exec"), variables)
    assert capsys.readouterr().out.strip() in ("calm", "angry")
    inputs = {name: torch.from_numpy(np.asarray(variables["inputs"][name])) for name in export.INPUTS["both"]}
    with torch.no_grad():
        np.testing.assert_allclose(variables["logits"], model(**inputs).logits.numpy(), atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("modalities", "outputs"), [("audio", ["audio_embeds"]), ("audio", None), ("text", None)])
def test_a_graph_of_one_modality_holds_what_it_needs(small, tmp_path, modalities, outputs):
    """Search by sound runs on small machines: without the words' inputs, and without the language model."""
    graph = export.Graph(CalmModel(small).eval(), modalities, outputs)
    run = export.write_onnx(graph.trace(), graph, tmp_path / "model.onnx")
    assert_is_the_model(run, graph)
    held = {entry.name for entry in onnx.load(tmp_path / "model.onnx").graph.initializer}
    parts = {name.split(".")[1] for name in held if name.startswith("model.")}
    if outputs == ["audio_embeds"]:
        assert parts <= {"audio_model", "audio_projection", "word_embedding_norm"}
    else:
        assert "text_model" in parts and "last_hidden_state" in graph.outputs
        assert ("text_embeds" in graph.outputs) is (modalities == "text")
        assert ("audio_embeds" in graph.outputs) is (modalities == "audio")


@pytest.mark.parametrize("kind", [CalmAudioModel, CalmForPreTraining])
def test_every_checkpoint_is_exported_as_what_it_is_for(kind, small, tokenizer, monkeypatch, tmp_path):
    """SpecTran has no tokenizer, and a pretraining checkpoint gives embeddings; the exporter itself is left out."""
    alone = kind is CalmAudioModel
    kind(small.audio_config if alone else small).save_pretrained(tmp_path / "run")
    extractor = CalmFeatureExtractor.from_audio_config(small.audio_config)
    (extractor if alone else CalmProcessor(extractor, tokenizer)).save_pretrained(tmp_path / "run")

    def write(program, graph, file):
        file.write_bytes(b"a graph")
        return lambda inputs: [graph(**inputs)[name].detach().numpy() for name in graph.outputs]

    monkeypatch.setitem(export.WRITERS, "onnx", write)
    monkeypatch.setattr(export.Graph, "trace", lambda self: None)
    results = export.main(["--model", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")])
    assert results["inputs"] == export.INPUTS["audio" if alone else "both"]
    assert set(results["outputs"]) >= ({"last_hidden_state"} if alone else {"audio_embeds", "text_embeds"})
    assert "loss" not in results["outputs"] and results["max_tokens"] == (None if alone else 48)
    loaded = (CalmFeatureExtractor if alone else CalmProcessor).from_pretrained(tmp_path / "out")
    getattr(loaded, "feature_extractor", loaded).check_geometry(small.audio_config)


@pytest.mark.parametrize("fault", ["other numbers", "not a number", "another shape"])
def test_a_graph_that_disagrees_is_not_kept(exported, monkeypatch, tmp_path, fault):
    """Exporters have bugs; an application would be wrong without a word."""
    folder, _, _ = exported
    wrong = {
        "other numbers": lambda x: x + 1e-3,
        "not a number": lambda x: x * np.nan,
        "another shape": lambda x: x[:1],
    }

    def write(program, graph, file):
        file.write_bytes(b"a graph")
        return lambda inputs: [wrong[fault](graph(**inputs)[name].detach().numpy()) for name in graph.outputs]

    monkeypatch.setitem(export.WRITERS, "onnx", write)
    monkeypatch.setattr(export.Graph, "trace", lambda self: None)
    with pytest.raises(RuntimeError, match="disagrees with the model on `logits`.*Nothing was written"):
        export.main(["--model", str(folder / "run"), "--output_dir", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_exported_is_refused_first(exported, monkeypatch, tmp_path):
    folder, _, _ = exported
    with pytest.raises(ValueError, match="Name a checkpoint"):
        export.main([])
    with pytest.raises(ValueError, match=r"no output \['audio_embeds'\].*it has \['logits'\]"):
        export.main(["--model", str(folder / "run"), "--outputs", "audio_embeds"])
    with pytest.raises(ValueError, match=r"holds BertModel; \['CalmAudioModel'"):
        export.main(["--model", str(folder / "bert")])
    CalmAudioModel(CalmAudioConfig(hidden_size=24)).save_pretrained(tmp_path / "bare")
    with pytest.raises(OSError, match="feature extractor"):
        export.main(["--model", str(tmp_path / "bare")])
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[export\]"'):
        export.main(["--model", str(folder / "run")])


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_language_model_exports(small, name, tmp_path):
    """Their positions, masks and embeddings are written in nine ways; each must survive the exporter."""
    config = CalmConfig(audio_config=small.audio_config, text_config=language_model_config(name, num_hidden_layers=1))
    graph = export.Graph(CalmModel(config).eval(), "both")
    program = graph.trace()
    assert_is_the_model(export.write_onnx(program, graph, tmp_path / "model.onnx"), graph)
    assert_is_the_model(export.write_pt2(program, graph, tmp_path / "model.pt2"), graph, least=2)
