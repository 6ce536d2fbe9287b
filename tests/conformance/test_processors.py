"""The library's own tests of processors and feature extractors, on the classes of `processing`."""

import unittest
from functools import partialmethod
from unittest.mock import patch

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers_tests.test_processing_common import ProcessorTesterMixin
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from processing import CalmFeatureExtractor, CalmProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "lower", "newer", "upper", "older", "longer", "string"]


class CalmFeatureExtractorTester:
    """Seven clips of 40 to 160 patches. What the mixin calls a feature is a value of a patch."""

    batch_size, min_seq_length, seq_length_diff, max_seq_length = 7, 40, 20, 160
    feature_size = 2 * 4

    def prepare_feat_extract_dict(self):
        return {
            "feature_size": 8, "patch_frames": 2, "patch_bins": 4, "token_frames": 8, "sampling_rate": 8000,
            "padding_value": 0.0, "return_attention_mask": False,
        }  # fmt: skip

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = range(self.min_seq_length, self.max_seq_length + 1, self.seq_length_diff)
        draw = np.random.default_rng(0).normal
        clips = [draw(size=(self.max_seq_length if equal_length else n, self.feature_size)) for n in lengths]
        return clips if numpify else [clip.tolist() for clip in clips]


class CalmFeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = CalmFeatureExtractor
    feat_extract_tester = CalmFeatureExtractorTester()


class CalmProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = CalmProcessor

    def setUp(self):
        # The mixin gives sounds without their rate. CALM asks for it, since another one would pass unheard.
        call = partialmethod(CalmFeatureExtractor.__call__, sampling_rate=16000)
        self.enterContext(patch.object(CalmFeatureExtractor, "__call__", call))
        # Where a class is registered to travel with its code, the library writes so on the processor that it saves.
        self.enterContext(patch.object(CalmProcessor, "_auto_class", None))

    @classmethod
    def _setup_feature_extractor(cls):
        return CalmFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
