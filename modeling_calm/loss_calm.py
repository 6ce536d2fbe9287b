"""CALM's pretraining losses, exact over any number of ranks, and its classification loss, over each rank's own clips.

Every pretraining term is a sum over items divided by the number of items on all ranks. A rank sums its own items
against the keys of all ranks and multiplies by the number of ranks; data-parallel training then averages the gradients
over ranks, which yields the gradient of a single process with the whole batch.

Dimensions: N queries, K keys, E width of the embeddings.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers.utils import logging
from transformers.utils.generic import maybe_autocast

logger = logging.get_logger(__name__)

MAX_LOGIT_SCALE = 4.6052  # ln 100, beyond which training is unstable (Radford et al. 2021, section 2.5)


def num_ranks() -> int:
    """The world size; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    """Concatenate equally shaped rows of all ranks; the gradient of a rank's rows is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # other branches may share the incoming one
        dist.all_reduce(gradient)
        size = len(gradient) // dist.get_world_size()
        return gradient[dist.get_rank() * size :][:size]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the (N, ...) of all ranks, whose N may differ, to (sum of N, ...) in rank order, with gradient."""
    if num_ranks() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(num_ranks())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    counts = torch.cat(counts).tolist()
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    blocks = _GatherRows.apply(torch.cat([rows, padding])).unflatten(0, (len(counts), max(counts)))
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def largest_over_ranks(count: int, device: torch.device) -> int:
    """The largest `count` over all ranks."""
    if num_ranks() == 1:
        return count
    largest = torch.tensor(count, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_ids(ids: torch.Tensor) -> torch.Tensor:
    """Gather (N, L) token ids of all ranks, padded with -1 on either side, to (sum of N, longest L), right-padded."""
    ids = ids.gather(1, (ids < 0).long().argsort(dim=1, stable=True))
    longest = largest_over_ranks(ids.shape[1], ids.device)
    return gather_rows(nn.functional.pad(ids, (0, longest - ids.shape[1]), value=-1))


def mean_over_ranks(total: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """This rank's share of a mean over the items of all ranks; zero, but still in the graph, without items."""
    if isinstance(count, torch.Tensor):
        count = count.to(torch.float32, copy=True)
    else:
        count = total.new_full((), count, dtype=torch.float32)  # not `torch.tensor`, which recompiles for each count
    if num_ranks() > 1:
        dist.all_reduce(count)
    return total * num_ranks() / count.clamp(min=1)


def inverse_temperature(logit_scale: torch.Tensor) -> torch.Tensor:
    """The factor (1,) on cosines: the exponential of its learned logarithm, capped at 100, in float32."""
    return logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()


def scaled_cosines(queries: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(..., N, K) logits `scale * <query, key>` in float32, also under autocast.

    At a scale of 100, bfloat16 would round them to steps of 0.5.
    """
    with maybe_autocast(queries.device.type, enabled=False):
        return scale.float() * queries.float() @ keys.float().mT


def in_tiles(
    function: Callable[..., torch.Tensor],
    tile_size: int | None,
    rows: tuple[torch.Tensor, ...],
    shared: tuple[torch.Tensor, ...],
) -> list[torch.Tensor]:
    """Apply a function to `tile_size` rows at a time, recomputed in the backward pass; to all at once if None.

    The function must draw no random numbers. It receives the `shared` tensors with every tile: captured in its
    closure, they would stay in memory even inside a larger checkpointed part.
    """
    if tile_size is None or len(rows[0]) <= tile_size:
        return [function(*rows, *shared)]
    tiles = zip(*(each.split(tile_size) for each in rows), strict=True)
    return [checkpoint(function, *tile, *shared, use_reentrant=False, preserve_rng_state=False) for tile in tiles]


def contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    query_groups: torch.Tensor,
    key_groups: torch.Tensor,
    scale: torch.Tensor,
    tile_size: int | None = None,
) -> torch.Tensor:
    """Sum over the queries of InfoNCE with several positives.

    For query i with positives P(i), the keys of its group, the term is the mean over P(i) of
    `-log softmax_k(scale * <q_i, k>)`: van den Oord et al. 2018, eq. 4, averaged over the positives as in Khosla et
    al. 2020, eq. 2.

    Args:
        queries: (N, E), L2-normalised.
        keys: (K, E), L2-normalised.
        query_groups: (N,) long; a query's positives are the keys of its group.
        key_groups: (K,) long.
        scale: scalar, the inverse temperature.
        tile_size: rows of the N x K matrix in memory at once; they are recomputed in the backward pass.

    Returns:
        Scalar sum; divide by the number of queries.
    """

    def tile(
        queries: torch.Tensor,
        query_groups: torch.Tensor,
        keys: torch.Tensor,
        key_groups: torch.Tensor,
        scale: torch.Tensor,
    ) -> torch.Tensor:
        log_probabilities = scaled_cosines(queries, keys, scale).log_softmax(-1)  # (n, K)
        positives = query_groups[:, None] == key_groups
        return -((log_probabilities * positives).sum(-1) / positives.sum(-1)).sum()

    return torch.stack(in_tiles(tile, tile_size, (queries, query_groups), (keys, key_groups, scale))).sum()


def audio_text_loss(
    audio: torch.Tensor,
    text: torch.Tensor,
    ids: torch.Tensor,
    scale: torch.Tensor,
    tile_size: int | None,
    gather: bool,
) -> torch.Tensor:
    """Contrastive loss between clips and transcripts, the mean of both directions; equal transcripts are positives.

    Args:
        audio, text: (N, E), L2-normalised; row i of both belongs to one clip.
        ids: (N, L) unmasked token ids, used to find equal transcripts.
        scale: scalar, the inverse temperature.
        tile_size: see `contrast`.
        gather: whether to use the keys of all ranks.
    """
    rank, keys_audio, keys_text, all_ids = 0, audio, text, ids
    if gather and num_ranks() > 1:
        counts = gather_rows(torch.tensor([[len(ids)]], device=ids.device))
        rank = int(counts[: dist.get_rank()].sum())
        keys_audio, keys_text, all_ids = gather_rows(audio), gather_rows(text), gather_ids(ids)
    groups = torch.unique(all_ids, dim=0, return_inverse=True)[1] if len(all_ids) else all_ids.new_zeros(0)
    own = groups[rank : rank + len(ids)]
    total = contrast(audio, keys_text, own, groups, scale, tile_size) / 2
    total = total + contrast(text, keys_audio, own, groups, scale, tile_size) / 2
    return mean_over_ranks(total, len(ids)) if gather else total / max(len(ids), 1)


def pair_loss(
    queries: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor, tile_size: int | None, gather: bool
) -> torch.Tensor:
    """InfoNCE in which key i is the only positive of query i, among the keys of all ranks if `gather`.

    Args:
        queries, keys: (N, E), L2-normalised.
        scale: scalar, the inverse temperature.
        tile_size: see `contrast`.
        gather: whether to use the keys of all ranks.
    """
    first = 0
    if gather and num_ranks() > 1:
        counts = gather_rows(torch.tensor([[len(keys)]], device=keys.device))
        first = int(counts[: dist.get_rank()].sum())
        keys = gather_rows(keys)
    own = torch.arange(first, first + len(queries), device=queries.device)
    total = contrast(queries, keys, own, torch.arange(len(keys), device=keys.device), scale, tile_size)
    return mean_over_ranks(total, len(queries)) if gather else total / max(len(queries), 1)


def concordance_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus the concordance correlation coefficient (Lin 1989), averaged over the targets.

    Args:
        predictions, targets: (N, K). For a single clip the loss is 1 and its gradient 0, whatever the predictions.
    """
    if len(predictions) < 2 and predictions.requires_grad:
        logger.warning_once("A batch of one clip has no concordance: nothing is learned of it. Raise the batch size.")
    predictions, targets = predictions.float(), targets.float()
    mean_p, mean_t = predictions.mean(0), targets.mean(0)
    covariance = ((predictions - mean_p) * (targets - mean_t)).mean(0)
    spread = predictions.var(0, correction=0) + targets.var(0, correction=0) + (mean_p - mean_t).square()
    return (1 - 2 * covariance / spread.clamp(min=1e-8)).mean()


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """The loss of `config.problem_type`, which, as in transformers, is inferred from the labels and stored if unset.

    One rule is ours: with `regression_loss="ccc"`, float labels are regression targets, not multi-label ones.

    Args:
        logits: (B, K).
        labels: (B,) classes, or (B, K) multi-label or regression targets.

    Raises:
        ValueError: for a class outside [0, K), or labels whose shape does not fit the problem.
    """
    logits = logits.float()
    if config.problem_type is None:
        if config.num_labels == 1 or (config.regression_loss == "ccc" and labels.is_floating_point()):
            config.problem_type = "regression"
        else:
            several = labels.is_floating_point()
            config.problem_type = f"{'multi' if several else 'single'}_label_classification"
    weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    if config.problem_type == "single_label_classification":
        if not torch.compiler.is_compiling() and ((labels < 0) | (labels >= config.num_labels)).any():
            raise ValueError(f"Labels must lie in [0, {config.num_labels}); these reach {labels.tolist()}.")
        return cross_entropy(logits, labels.view(-1).long(), weight=weights)
    if labels.shape not in (logits.shape, logits.squeeze(-1).shape):
        raise ValueError(f"Labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}.")
    targets = labels.view_as(logits).to(logits.dtype)
    if config.problem_type == "multi_label_classification":
        return binary_cross_entropy_with_logits(logits, targets, weight=weights)
    return concordance_loss(logits, targets) if config.regression_loss == "ccc" else mse_loss(logits, targets)
