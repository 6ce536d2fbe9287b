"""Features precomputed by prepare_data.py: how they are stored, and which extractor produced them."""

import json
from io import BytesIO

import numpy as np
from shards import file_metadata

from processing import CalmFeatureExtractor

FEATURES_METADATA = b"calm_feature_extractor"  # key in the metadata of a parquet file
# Settings that the values of a patch depend on; padding does not affect them.
SETTINGS = (
    "feature_size", "sampling_rate", "n_fft", "win_length", "hop_length", "patch_frames", "patch_bins", "token_frames",
    "do_normalize", "dynamic_range",
)  # fmt: skip


def extractor_settings(extractor: CalmFeatureExtractor) -> dict:
    """The settings that the features depend on."""
    return {name: getattr(extractor, name) for name in SETTINGS}


def encode_features(extractor: CalmFeatureExtractor, waveform: np.ndarray, dtype: str) -> bytes:
    """The real patches of one clip, (P, D), as a `.npy` file, which stores its dtype and shape.

    A column of lists of numbers would take 3 ms per clip to read, and 27 ms in float16; bytes take 0.1 ms.
    """
    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="np")
    stream = BytesIO()
    np.save(stream, inputs["input_features"][0, inputs["input_features_mask"][0] > 0].astype(dtype))
    return stream.getvalue()


def check_extractor(file: str, extractor: CalmFeatureExtractor) -> None:
    """Reject features of another extractor: with the right width, they would train a model that misreads audio.

    Raises:
        ValueError: names the settings that differ.
    """
    stored = file_metadata(file).get(FEATURES_METADATA) if file.endswith(".parquet") else None
    if stored is None:
        raise ValueError(f"'{file}' does not tell how its features were computed, as `prepare_data.py` would write.")
    stored, own = json.loads(stored), extractor_settings(extractor)
    differing = [f"{name} is {stored.get(name)} and not {own[name]}" for name in own if stored.get(name) != own[name]]
    if differing:
        raise ValueError(
            f"The features of '{file}' do not fit the model: {', '.join(differing)}. Compute them anew by"
            " `prepare_data.py --features` with its `--audio_config`, or `--model`."
        )
