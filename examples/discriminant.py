"""A classifier's head in closed form: linear discriminants of what the frozen encoders make of the training split.

With few speakers, gradient steps on the encoders learn these speakers, and on the head alone they end at a worse one.

Dimensions: N utterances times passes, F inputs of the head, K classes.
"""

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training import CalmTrainer

PASSES = 5  # over the training split, augmented anew each time; our choice
# Of the covariance within the classes towards a sphere (Friedman 1989); our choice, by validation on other speakers.
SHRINKAGE = 0.5


def fit_classifier(trainer: CalmTrainer, columns: slice, balanced: bool) -> None:
    """Set the head of a single-label classifier to the discriminants of the classes.

    Args:
        trainer: of the model, whose collator augments the training split.
        columns: the inputs of the head that are used; the weights of the others become 0.
        balanced: whether the classes count as equally frequent.
    """
    head, (inputs, labels) = trainer.model.classifier, head_inputs(trainer)
    weights, biases = discriminants(inputs[:, columns], labels, head.out_features, balanced)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, columns] = torch.as_tensor(weights).to(head.weight)
        head.bias.copy_(torch.as_tensor(biases))


@torch.no_grad()
def head_inputs(trainer: CalmTrainer) -> tuple[np.ndarray, np.ndarray]:
    """What the head sees of the training split, (N, F), and the classes (N,), on every rank those of all."""
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
    """Weights (K, F) and biases (K,) whose logits are the log-posteriors of the classes, but for a constant.

    Args:
        inputs: (N, F); they are standardised first.
        labels: (N,), every class among them.
        num_labels: K.
        balanced: whether the classes count as equally frequent.
    """
    priors = np.full(num_labels, 1 / num_labels) if balanced else None
    analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=priors)
    scaler, analysis = make_pipeline(StandardScaler(), analysis).fit(inputs, labels).named_steps.values()
    weights, biases = analysis.coef_, analysis.intercept_
    if num_labels == 2:  # where the library keeps the difference alone
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    weights = weights / scaler.scale_
    return weights, biases - weights @ scaler.mean_
