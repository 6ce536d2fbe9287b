"""Ablation of ingredients that no option can remove: runs a script with a part of the package replaced.

    python examples/results/changes.py mean_pooling pretrain.py --config recipe.yaml

The arguments after the name of the script are its options.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from modeling_calm import CalmModel
from modeling_calm.spectran_calm import CalmAudioPooling, masked_mean

sys.path.append(str(Path(__file__).parents[1]))
import discriminant  # noqa: E402
import finetune  # noqa: E402
import pretrain  # noqa: E402


def mean_of_window(pooling: CalmAudioPooling, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of a window's real sub-tokens (W, S, hidden), instead of attentive pooling."""
    return masked_mean(pooling.layernorm(hidden_states), mask) + 0.0 * pooling.head_scores.weight.sum()


@torch.no_grad()
def statistics_about_zero(model: CalmModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of an aligned space that is not centred on the mean of the word embeddings."""
    words = model.get_input_embeddings().weight.float()
    return torch.zeros(words.shape[1]), words.square().sum(-1).mean().sqrt()


WITHOUT_BANDS_AND_SILENCE = replace(
    pretrain.WAVEFORM_AUGMENTATION, band_limit_probability=0.0, silence_probability=0.0
)
SCRIPTS = {"pretrain.py": pretrain.main, "finetune.py": finetune.main}
# Replacements by name: an object, its attribute, and the new value.
CHANGES = {
    "mean_pooling": [(CalmAudioPooling, "forward", mean_of_window)],
    "no_centring": [(CalmModel, "vocabulary_statistics", statistics_about_zero)],
    "no_spec_augment": [(pretrain, "SPEC_AUGMENT", None)],
    "no_bands_or_silence": [(pretrain, "WAVEFORM_AUGMENTATION", WITHOUT_BANDS_AND_SILENCE)],
    "shrinkage_of_0.1": [(discriminant, "SHRINKAGE", 0.1)],
    "shrinkage_of_0.9": [(discriminant, "SHRINKAGE", 0.9)],
    "one_pass": [(discriminant, "PASSES", 1)],
}


@contextmanager
def changed(name: str | None) -> Iterator[None]:
    """Apply the replacements of `name`, if any; in this process only, and for all of its threads."""
    with ExitStack() as stack:
        for place, attribute, value in CHANGES[name] if name else []:
            stack.enter_context(patch.object(place, attribute, value))
        yield


def main(argv: list[str] | None = None) -> None:
    name, script, *options = sys.argv[1:] if argv is None else argv
    if name not in CHANGES:
        raise ValueError(f"There is no change '{name}'; there are {list(CHANGES)}.")
    with changed(name):
        SCRIPTS[script](options)


if __name__ == "__main__":
    main()
