"""`torch.compile`: the same results, and no second compilation however many clips and seconds come next."""

import pytest
import torch
from model_helpers import INPUTS, LANGUAGE_MODELS, close, gradients, language_model_config, quiet
from torch._dynamo.utils import counters

from modeling_calm import CalmAudioModel, CalmConfig, CalmForPreTraining, CalmForSequenceClassification, CalmModel

# Words and windows of batches of two clips and more, of two windows and more: one of either compiles once more.
SIZES = [
    ((3, 5), (2, 3)),
    ((4, 7, 2), (4, 1, 3)),
    ((9, 6, 1, 2), (2, 2, 1, 2)),
    ((2, 1), (7, 5)),
    ((3,) * 5, (6,) * 5),
]


@pytest.fixture
def dynamo():
    """A compiler that remembers nothing of other tests; yields the number of graphs compiled so far."""
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


def shallow(config: CalmConfig) -> CalmConfig:
    """One layer of each kind: tracing takes a second each."""
    config.audio_config.num_hidden_layers = config.audio_config.num_context_layers = 1
    config.text_config.num_hidden_layers = 1
    return config


def check(model, inputs: list[str], dynamo, pretraining_batch, backend: str = "eager", **options) -> None:
    """The compiled model gives what the model gives, and after the second size nothing is compiled any more."""
    compiled = torch.compile(model, dynamic=True, backend=backend, **options)
    graphs = []
    for words, windows in SIZES:
        drawn = pretraining_batch(words, windows)
        given = {key: drawn[key] for key in inputs}
        expected, output = model(**given), compiled(**given)
        assert list(output) == list(expected)
        for key, value in expected.items():
            close(output[key], value)
        graphs.append(dynamo())
    assert graphs[0] > 0
    assert graphs[1:] == [graphs[1]] * (len(graphs) - 1)


def test_spectran_is_compiled_once(config, dynamo, pretraining_batch):
    """In one graph, where the compiler is allowed shapes that depend on data: the number of real windows is one."""
    model = CalmAudioModel(shallow(config).audio_config).eval()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        check(model, INPUTS[2:], dynamo, pretraining_batch, fullgraph=True)
    assert dynamo() == 1


@pytest.mark.slow
def test_the_classifier_is_compiled_once(config, dynamo, pretraining_batch):
    """As users call it, no setting of the compiler changed: the parts between breaks are not compiled again either."""
    model = CalmForSequenceClassification(shallow(config)).eval()
    check(model, INPUTS, dynamo, pretraining_batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_language_model_is_compiled_once(name, audio_config, dynamo, pretraining_batch):
    """In one graph, its way to count positions included."""
    config = shallow(CalmConfig(audio_config=audio_config, text_config=language_model_config(name)))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        check(CalmModel(config).eval(), INPUTS, dynamo, pretraining_batch, fullgraph=True)
    assert dynamo() == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CalmAudioModel, CalmForSequenceClassification])
def test_generated_kernels_agree(kind, config, dynamo, pretraining_batch):
    """Traced is not yet translated: the default backend writes code for this processor."""
    spectran = kind is CalmAudioModel
    model = kind(shallow(config).audio_config if spectran else shallow(config)).eval()
    check(model, INPUTS[2:] if spectran else INPUTS, dynamo, pretraining_batch, backend="inductor")


@pytest.mark.slow
def test_a_training_step_is_compiled_once(config, dynamo, pretraining_batch):
    """Four objectives and their gradients; a count of clips that were compiled in would compile for every batch.

    None or one of anything compiles once more, and so do numbers that were alike in the first batch and then are not:
    here it has four clips, three pairs and two masked windows.
    """
    model = CalmForPreTraining(quiet(shallow(config))).train()
    compiled = torch.compile(model, dynamic=True, backend="eager")
    sizes = [
        ((3, 5, 2, 4), (3, 6, 2, 1)),
        ((4, 7, 2), (4, 3, 3)),
        ((9, 6, 1, 2, 3), (3, 4, 1, 5, 2)),
        ((2, 1), (7, 5)),
    ]
    graphs = []
    for words, windows in sizes:
        drawn, results = pretraining_batch(words, windows), []
        for step in (model, compiled):
            model.zero_grad()
            output = step(**drawn)
            output.loss.backward()
            results.append((output.loss, gradients(model)))
        close(results[1][0], results[0][0])
        for key, slope in results[1][1].items():
            torch.testing.assert_close(slope, results[0][1][key], atol=1e-5, rtol=1e-4, msg=key)
        graphs.append(dynamo())
    assert graphs[1:] == [graphs[1]] * (len(graphs) - 1)
