"""A classification head in closed form: linear discriminant analysis of frozen features of the training split.

With few speakers, gradient training overfits the encoders to them, and gives a worse head if it trains the head alone.

Dimensions: N utterances times passes, F inputs of the head, K classes.
"""

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training import CalmTrainer

PASSES = 5  # over the training split, with new augmentation each time; our choice
# Of the within-class covariance towards a sphere (Friedman 1989); our choice, by validation on other speakers.
SHRINKAGE = 0.5


def fit_classifier(trainer: CalmTrainer, columns: slice, balanced: bool) -> None:
    """Set the head of a single-label classifier to the linear discriminants of the classes.

    Args:
        trainer: that of the model; its collator augments the training split.
        columns: the inputs of the head that are used; the weights of the others become 0.
        balanced: whether to assume equal class priors.
    """
    head, (inputs, labels) = trainer.model.classifier, head_inputs(trainer)
    weights, biases = discriminants(inputs[:, columns], labels, head.out_features, balanced)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, columns] = torch.as_tensor(weights).to(head.weight)
        head.bias.copy_(torch.as_tensor(biases))


@torch.no_grad()
def head_inputs(trainer: CalmTrainer) -> tuple[np.ndarray, np.ndarray]:
    """The head's inputs (N, F) for the training split and the classes (N,), gathered on every rank."""
    model, seen, found = trainer.model.to(trainer.args.device).eval(), [], []
    hook = model.classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0].float()))
    loader = trainer.get_train_dataloader()
    for epoch in range(PASSES):
        trainer.data_collator.set_epoch(epoch)
        for batch in loader:
            labels = batch.pop("labels")
            del batch["clips"]
            model(**trainer._prepare_inputs(batch))
            gathered = trainer.accelerator.gather_for_metrics((seen.pop(), labels.to(trainer.args.device)))
            found.append([part.cpu().numpy() for part in gathered])
    hook.remove()
    inputs, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return inputs, labels


def discriminants(
    inputs: np.ndarray, labels: np.ndarray, num_labels: int, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, F) and biases (K,) whose logits are the log-posteriors of the classes, up to a constant.

    Args:
        inputs: (N, F); they are standardised first.
        labels: (N,), with every class present.
        num_labels: K.
        balanced: whether to assume equal class priors.
    """
    priors = np.full(num_labels, 1 / num_labels) if balanced else None
    analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=priors)
    scaler, analysis = make_pipeline(StandardScaler(), analysis).fit(inputs, labels).named_steps.values()
    weights, biases = analysis.coef_, analysis.intercept_
    if num_labels == 2:  # where scikit-learn stores only the difference
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    weights = weights / scaler.scale_
    return weights, biases - weights @ scaler.mean_
