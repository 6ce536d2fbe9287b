"""From files to batches: audio, features, transcripts, masks. `modeling_calm` registers classes and pipeline."""

from .audio import AudioError, load_audio
from .augmentation import SpecAugment, WaveformAugmentation
from .collation import DataCollatorForCalmClassification, DataCollatorForCalmPreTraining
from .feature_extraction_calm import CalmFeatureExtractor
from .pipeline_calm import AudioTextClassificationPipeline
from .processing_calm import CalmProcessor
from .seeded_collation import SeededCollator

CalmFeatureExtractor.register_for_auto_class()
CalmProcessor.register_for_auto_class()

__all__ = [
    "AudioError",
    "AudioTextClassificationPipeline",
    "CalmFeatureExtractor",
    "CalmProcessor",
    "DataCollatorForCalmClassification",
    "DataCollatorForCalmPreTraining",
    "SeededCollator",
    "SpecAugment",
    "WaveformAugmentation",
    "load_audio",
]
