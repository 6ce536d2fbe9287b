"""Placing a model: `device_map="auto"` finds a place for every tensor, and what is offloaded computes the same."""

import pytest
import torch
from model_helpers import INPUTS, LANGUAGE_MODELS, language_model_config

from modeling_calm import CalmAudioModel, CalmConfig, CalmForPreTraining, CalmForSequenceClassification, CalmModel
from modeling_calm.loading_calm import check_devices

accelerate = pytest.importorskip("accelerate", reason="placing a model takes the package accelerate")


@pytest.mark.parametrize("kind", [CalmAudioModel, CalmModel, CalmForPreTraining, CalmForSequenceClassification])
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_every_tensor_finds_a_place(kind, share, config):
    """A module that is split leaves its own buffers out of the map, and loading stops; a block that is split computes
    with tensors of two devices.
    """
    model = kind(config.audio_config if kind is CalmAudioModel else config)
    size = accelerate.utils.compute_module_sizes(model)[""]
    places = accelerate.infer_auto_device_map(
        model,
        max_memory={"cpu": round(share * size), "disk": 2 * size},
        no_split_module_classes=model._no_split_modules,
    )
    for name in model.state_dict():
        assert any(place == "" or name == place or name.startswith(f"{place}.") for place in places), name
    whole = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    for name in filter(None, whole):
        assert not any(place.startswith(f"{name}.") for place in places), name


@pytest.mark.parametrize("kind", [CalmModel, CalmForSequenceClassification])
@pytest.mark.parametrize("name", sorted(set(LANGUAGE_MODELS) - {"deberta-v2"}))  # its own encoder cannot be offloaded
@torch.no_grad()
def test_what_is_offloaded_computes_the_same(kind, name, audio_config, batch, tmp_path):
    """Weights that lie on disk are there only while their module runs: to read one past its module finds nothing."""
    model = kind(CalmConfig(audio_config=audio_config, text_config=language_model_config(name))).eval()
    expected = model(**batch)
    model.save_pretrained(tmp_path / "model")
    size = accelerate.utils.compute_module_sizes(model)[""]
    if kind is CalmModel:
        options = [{"device_map": "auto", "max_memory": {"cpu": round(share * size)}} for share in (0.3, 0.7)]
        options.append({"device_map": "auto"})
    else:
        options = [{"device_map": {"calm": "disk", "dropout": "cpu", "classifier": "cpu"}}]
        options.append({"device_map": "auto", "max_memory": {"cpu": round(0.5 * size)}})
    for option in options:
        loaded = kind.from_pretrained(tmp_path / "model", offload_folder=tmp_path / "disk", **option).eval()
        offloaded = "disk" in getattr(loaded, "hf_device_map", {}).values()
        assert offloaded is (option != {"device_map": "auto"})
        output = loaded(**batch)
        for key, value in expected.items():
            assert torch.equal(output[key], value), key
        if kind is CalmModel:
            nearest = loaded.nearest_tokens(*[batch[key] for key in INPUTS[2:]])
            assert torch.equal(nearest.token_ids, model.nearest_tokens(*[batch[key] for key in INPUTS[2:]]).token_ids)
            features = loaded.get_text_features(*[batch[key] for key in INPUTS[:2]])
            assert torch.equal(features.pooler_output, expected.text_embeds)


def test_a_model_spread_over_several_accelerators_is_refused(config):
    """Its first batch would end in an error about devices, from somewhere inside; a head may stand apart."""
    for kind in (CalmAudioModel, CalmModel):
        model = kind(config.audio_config if kind is CalmAudioModel else config)
        for apart in ({"layers": 0, "pooling": 1}, {"layers": "cuda:0", "pooling": "cuda:1", "layernorm": "cpu"}):
            model.hf_device_map = apart
            with pytest.raises(ValueError, match=f'spread {kind.__name__} over .*`device_map={{"": 0}}`'):
                check_devices(model)
        for together in ({"": 0}, {"layers": 0, "pooling": "cpu", "layernorm": "disk"}):
            model.hf_device_map = together
            check_devices(model)
    classifier = CalmForSequenceClassification(config)
    classifier.hf_device_map = {"calm": 0, "classifier": 1}
    check_devices(classifier)
