"""CALM: contrastive aligned audio-language representations. Importing registers the classes and the pipeline."""

from collections import OrderedDict

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.pipelines import PIPELINE_REGISTRY

from processing import AudioTextClassificationPipeline, CalmFeatureExtractor, CalmProcessor

from .configuration_calm import CalmAudioConfig, CalmConfig
from .modeling_calm import CalmForPreTraining, CalmForSequenceClassification, CalmModel
from .spectran_calm import CalmAudioModel

AutoConfig.register("calm_audio_model", CalmAudioConfig, exist_ok=True)
AutoConfig.register("calm", CalmConfig, exist_ok=True)
AutoModel.register(CalmAudioConfig, CalmAudioModel, exist_ok=True)
AutoModel.register(CalmConfig, CalmModel, exist_ok=True)
AutoModelForPreTraining.register(CalmConfig, CalmForPreTraining, exist_ok=True)
AutoModelForSequenceClassification.register(CalmConfig, CalmForSequenceClassification, exist_ok=True)
AutoModelForAudioClassification.register(CalmConfig, CalmForSequenceClassification, exist_ok=True)
AutoFeatureExtractor.register(CalmAudioConfig, CalmFeatureExtractor, exist_ok=True)
AutoFeatureExtractor.register(CalmConfig, CalmFeatureExtractor, exist_ok=True)
AutoProcessor.register(CalmConfig, CalmProcessor, exist_ok=True)


class AutoModelForAudioTextClassification(_BaseAutoModelClass):
    """Loads the class that a checkpoint was saved from, so that no head is dropped or randomly initialised."""

    _model_mapping = _LazyAutoMapping(OrderedDict(), OrderedDict())


# Given several classes, an Auto class picks the one named in the checkpoint's `architectures`.
AutoModelForAudioTextClassification.register(
    CalmConfig, (CalmForSequenceClassification, CalmForPreTraining, CalmModel), exist_ok=True
)
PIPELINE_REGISTRY.register_pipeline(
    "audio-text-classification",
    AudioTextClassificationPipeline,
    pt_model=AutoModelForAudioTextClassification,
    type="multimodal",
)

# Saving a registered class copies its source next to the weights, for `trust_remote_code=True` to load.
CalmAudioConfig.register_for_auto_class()
CalmConfig.register_for_auto_class()
CalmAudioModel.register_for_auto_class("AutoModel")
CalmModel.register_for_auto_class("AutoModel")
CalmForPreTraining.register_for_auto_class("AutoModelForPreTraining")
CalmForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "CalmAudioConfig",
    "CalmAudioModel",
    "CalmConfig",
    "CalmForPreTraining",
    "CalmForSequenceClassification",
    "CalmModel",
]
