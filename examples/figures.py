"""The figures of plot_run.py: curves from a run's log, matrices and a spectrogram from its model and results.

Each `draw_*` returns a figure, or None if the run did not log its data; draw and save inside `style()`.
"""

import numpy as np
import torch
from datasets import Dataset
from meters import LOSS_TERMS
from scoring import embed, unused_pieces
from transformers.audio_utils import hertz_to_mel

from modeling_calm import CalmForPreTraining
from processing import CalmProcessor
from processing.log_mel_calm import LOWEST_FREQUENCY

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
except ImportError as error:
    raise ImportError('The plots need matplotlib: pip install -e ".[plot]".') from error

# Okabe & Ito's colours, which readers with any colour vision can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
GREY = "#6B6B6B"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "savefig.dpi": 160, "figure.constrained_layout.use": True,
}  # fmt: skip
MAX_CLIPS = 64  # in the similarity matrix
MAX_TOKENS = 24  # in the spectrogram: more wordpieces would be illegible
NEAREST = 3  # wordpieces per token
LEVELS = 80  # range of the colours in dB below the peak
METRICS = ("unweighted_average_recall", "ccc", "weighted_f1")  # the first that was logged is drawn


def style():
    """A context with the common style of the figures."""
    return matplotlib.rc_context(STYLE)


def draw_loss(log: list[dict], pretraining: bool) -> Figure | None:
    """The loss over steps: its terms by name, or training and validation."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats)" if pretraining else "loss")
    curves = dict(zip(LOSS_TERMS, (BLUE, ORANGE, SKY, GREEN, PURPLE), strict=True)) | {"chance_loss": BLUE}
    labels = {"chance_loss": "ln(batch): audio_text_loss by chance"}
    if not pretraining:
        curves, labels = {"loss": BLUE, "eval_loss": ORANGE}, {"loss": "training", "eval_loss": "validation"}
    for name, colour in curves.items():
        points = [(entry["step"], entry[name]) for entry in _first_per_step(log, name)]
        if points:
            line = ":" if name == "chance_loss" else "-"
            marker = "." if len(points) < 30 and line == "-" else None
            axes.plot(*zip(*points, strict=True), line, color=colour, marker=marker, label=labels.get(name, name))
    if not axes.lines:
        return None
    axes.set_title("Training loss" if pretraining else "Loss")
    axes.legend()
    return figure


def _first_per_step(log: list[dict], name: str) -> list[dict]:
    """The entries that log `name`, without the evaluation of the restored checkpoint after the last step."""
    found = {}
    for entry in log:
        if name in entry:
            found.setdefault(entry["step"], entry)
    return list(found.values())


def _epoch_axis(axes, log: list[dict], state: dict) -> None:
    """Label whole epochs, and mark the one whose checkpoint was kept."""
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for entry in log:
        if entry["step"] == state.get("best_global_step"):
            axes.axvline(entry["epoch"], color=GREY, linewidth=0.8, linestyle="--", zorder=0)
            axes.annotate(
                "kept", (entry["epoch"], 1), (-3, -2), xycoords=("data", "axes fraction"), color=GREY, fontsize=8,
                textcoords="offset points", ha="right", va="top",
            )  # fmt: skip


def draw_retrieval(state: dict) -> Figure | None:
    """Recall@1, 5 and 10 over epochs, in both directions."""
    log = _first_per_step(state["log_history"], "eval_audio_to_text_recall@1")
    if not log:
        return None
    figure = Figure(figsize=(8.4, 3.4))
    left, right = figure.subplots(1, 2, sharey=True)
    epochs, num_texts = [entry["epoch"] for entry in log], log[0]["eval_num_texts"]
    for axes, direction in ((left, "audio_to_text"), (right, "text_to_audio")):
        for k, colour in ((10, GREEN), (5, ORANGE), (1, BLUE)):
            recalls = [entry[f"eval_{direction}_recall@{k}"] for entry in log]
            axes.plot(epochs, recalls, marker="." if len(log) < 30 else None, color=colour, label=f"recall@{k}")
            axes.axhline(min(1.0, k / num_texts), color=colour, linewidth=0.8, linestyle=":")
        axes.set(ylim=(0, 1), title=direction.replace("_", " "))
        _epoch_axis(axes, log, state)
    left.set_ylabel("share of queries")
    lines, names = left.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center", title=f"dotted: chance,\nk / {num_texts} texts")
    figure.suptitle(f"Retrieval on validation, {log[0]['eval_num_clips']} clips", x=0.01, ha="left")
    return figure


def draw_similarity(
    models: dict[str, CalmForPreTraining], processor: CalmProcessor, clips: Dataset, told: bool = True
) -> Figure:
    """Cosines of clips and transcripts, both in alphabetical order of the transcripts; one matrix per model.

    Args:
        models: by the title of their matrix; all share one colour scale.
        told: whether the rows are labelled with transcripts; figures of third-party data are published without.
    """
    rows = {text: row for row, text in reversed(list(enumerate(clips["text"])))}
    rows = dict(sorted(sorted(rows.items(), key=lambda item: item[1])[:MAX_CLIPS]))
    clips, number = clips.select(list(rows.values())), len(rows)
    side = 0.105 * number
    figure = Figure(figsize=(side * len(models) + 2.9, side + 0.8))
    matrices = [embed(model, processor, clips, batch_size=16) for model in models.values()]
    matrices = [embeds["audio_embeds"] @ embeds["text_embeds"].T for embeds in matrices]  # (clips, texts)
    limit = max(np.abs(cosines).max() for cosines in matrices)
    columns = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, title, cosines in zip(columns, models, matrices, strict=True):
        image = axes.imshow(cosines, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.grid(False)
        axes.set(xticks=[], yticks=[], xlabel="transcript, same order")
        match, rest = cosines.diagonal().mean(), cosines[~np.eye(number, dtype=bool)].mean()
        axes.set_title(f"{title}\nmean cosine: matches {match:.2f}, others {rest:.2f}")
    if told:
        columns[0].set_yticks(range(number), [_shorten(text, 30) for text in rows], fontsize=5.5)
    columns[0].set_ylabel("clip, by what it says")
    columns[0].tick_params(length=0)
    figure.colorbar(image, ax=columns, label="cosine", shrink=0.7, aspect=30, pad=0.01)
    return figure


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def draw_tokens(model: CalmForPreTraining, processor: CalmProcessor, clips: Dataset, number: int = 1) -> Figure:
    """Log-mel spectrograms with the wordpieces nearest to each acoustic token at its window, on a shared time axis.

    Args:
        number: how many clips are drawn, one below the other: the longest ones of at most `MAX_TOKENS` acoustic
            tokens, in the order of the split.
    """
    seconds_per_token = processor.feature_extractor.seconds_per_token
    durations = np.asarray(clips["duration"])
    order = np.where(durations <= MAX_TOKENS * seconds_per_token, durations, -durations).argsort()[::-1]
    chosen = sorted(order[:number].tolist())
    tokens = np.ceil(durations[chosen].max() / seconds_per_token)
    figure = Figure(figsize=(max(6.0, 1.2 + 0.55 * tokens), 0.6 + 3.0 * len(chosen)))
    rows = figure.subplots(len(chosen), 1, squeeze=False, sharex=True)[:, 0]
    for axes, row in zip(rows, chosen, strict=True):
        image = _draw_words(axes, model, processor, clips[row])
    rows[0].set(xlim=(0, tokens * seconds_per_token))
    figure.colorbar(image, ax=rows, label="level (dB below peak)", pad=0.01, aspect=15 * len(chosen))
    figure.supxlabel(f"{NEAREST} nearest wordpieces of each acoustic token; bold: in the transcript", fontsize=8)
    return figure


def _draw_words(axes: Axes, model: CalmForPreTraining, processor: CalmProcessor, clip: dict) -> AxesImage:
    """One clip: its transcript above, its spectrogram, and the wordpieces below."""
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    batch = processor(audio=clip["audio"], sampling_rate=extractor.sampling_rate, return_tensors="pt")
    nearest = model.calm.nearest_tokens(
        **batch.to(model.device), top_k=NEAREST, excluded_token_ids=unused_pieces(tokenizer)
    )
    said = set(tokenizer(clip["text"], add_special_tokens=False)["input_ids"])
    log_mel = extractor.log_mel(torch.as_tensor(clip["audio"])[None])[0][0] * 10 / np.log(10)  # (F, M), dB
    log_mel = log_mel - log_mel.max()
    seconds, bins = len(log_mel) * extractor.hop_length / extractor.sampling_rate, log_mel.shape[1]
    image = axes.imshow(
        log_mel.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, -0.5, bins - 0.5),
        interpolation="nearest", vmin=-LEVELS, vmax=0,
    )  # fmt: skip
    axes.grid(False)
    ticks = [hertz for hertz in (250, 500, 1000, 2000, 4000, 8000) if hertz < extractor.sampling_rate / 2]
    low, top, *heights = hertz_to_mel(np.array([LOWEST_FREQUENCY, extractor.sampling_rate / 2, *ticks]), "kaldi")
    axes.set_yticks([(mel - low) / (top - low) * (bins + 1) - 1 for mel in heights], [f"{h / 1000:g}" for h in ticks])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(labeltop=True)
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    axes.set_title(f"“{clip['text']}”", pad=10)
    for (start, end), pieces in zip(nearest.time_spans.tolist(), nearest.token_ids[0].tolist(), strict=True):
        if start > 0:
            axes.axvline(start, color="white", linewidth=0.5, alpha=0.6)
        for rank, piece in enumerate(pieces):
            axes.annotate(
                tokenizer.convert_ids_to_tokens(piece), ((start + end) / 2, 0), (0, -8 - 11 * rank),
                xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", va="center",
                fontsize=7.5 if rank == 0 else 6.5, color=BLUE if piece in said else GREY,
                fontweight="bold" if piece in said else "normal", annotation_clip=False,
            )  # fmt: skip
    return image


def draw_metric(state: dict, num_labels: int) -> Figure | None:
    """The classifier's metric on validation over epochs."""
    logs = {name: _first_per_step(state["log_history"], f"eval_{name}") for name in METRICS}
    name, log = next(((name, log) for name, log in logs.items() if log), (None, None))
    if log is None:
        return None
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot(ylabel=name.replace("_", " "), title="Validation")
    points = [(entry["epoch"], entry[f"eval_{name}"]) for entry in log]
    axes.plot(*zip(*points, strict=True), marker="." if len(log) < 30 else None, color=BLUE)
    if name == "unweighted_average_recall":
        axes.axhline(1 / num_labels, color=GREY, linewidth=0.8, linestyle=":", label=f"chance, 1 / {num_labels}")
        axes.set_ylim(0, 1)
        axes.legend()
    _epoch_axis(axes, log, state)
    return figure


def draw_confusion(test: dict) -> Figure:
    """The confusion matrix of the test clips, one row per true class; colours are row shares, numbers are counts."""
    counts, names = np.array(test["confusion_matrix"]), test["class_names"]
    support = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(support, 1)
    side = 2.2 + 0.48 * len(names)
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class (clips)")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name} ({n})" for name, n in zip(names, support[:, 0], strict=True)])
    axes.tick_params(length=0)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="share of the true class", shrink=0.7, aspect=25)
    axes.set_title(f"Test, UAR {test['unweighted_average_recall']:.2f} over {test['num_clips']} clips")
    return figure
