"""`CalmForSequenceClassification`: whatever the labels, a clip is judged by itself."""

import pytest
import torch
from model_helpers import INPUTS, close, gradients, lengthen, spoil

from modeling_calm import CalmConfig, CalmForSequenceClassification


def test_classifier_rows_alone_and_together(config, batch, select):
    """The emotion of a clip may not depend on the clips it is scored with."""
    model = CalmForSequenceClassification(config).eval()
    batch["attention_mask"][1] = 0
    batch["input_features_mask"][3] = 0
    together = model(**spoil(batch)).logits
    assert together.shape == (4, 2)
    close(model(**spoil(lengthen(batch))).logits, together)
    close(model(**select(batch, [0])).logits, together[:1])
    close(model(**{key: batch[key][1:2] for key in INPUTS[2:]}).logits, together[1:2])
    close(model(**{key: batch[key][3:4] for key in INPUTS[:2]}).logits, together[3:])


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2, 1, 0])),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.ones(4, 3)),
        ({"num_labels": 3, "problem_type": "regression", "regression_loss": "ccc"}, torch.rand(4, 3)),
        ({"num_labels": 1}, torch.rand(4)),
    ],
)
def test_every_problem_trains_the_whole_classifier(audio_config, text_config, batch, settings, labels):
    """Whatever the labels, the gradient reaches every layer, and the configuration tells a pipeline what it is."""
    config = CalmConfig(audio_config=audio_config, text_config=text_config, **settings)
    model = CalmForSequenceClassification(config).train()
    before = config.to_dict()
    guess = "regression" if config.num_labels == 1 else "single_label_classification"
    output = model(**batch, labels=labels)
    output.loss.backward()
    # An idle parameter stops distributed training; the mask vector takes part although fine-tuning hides no window.
    assert [name for name, slope in gradients(model).items() if slope is None] == []
    assert config.to_dict() == before | {"problem_type": settings.get("problem_type", guess)}
