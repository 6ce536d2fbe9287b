"""Figures of the results, from their JSON alone; draw and save inside `figures.style()`."""

import sys
from pathlib import Path

import numpy as np
from tables import ABLATIONS, RATES

sys.path.append(str(Path(__file__).parents[1]))
from figures import BLUE, GREY, ORANGE, Axes, Figure  # noqa: E402

COLOURS = {"before": GREY, "after": BLUE}
NAMES = {"before": "before CALP", "after": "after CALP"}


def whiskers(intervals: list[dict]) -> tuple[list[float], np.ndarray]:
    """Estimates, and how far their intervals extend below and above them, (2, N)."""
    estimates = [interval["estimate"] for interval in intervals]
    reach = [(one["estimate"] - one["low"], one["high"] - one["estimate"]) for one in intervals]
    return estimates, np.clip(np.transpose(reach), 0, None)


def draw_length(results: dict) -> Figure:
    """R@1 and reciprocal rank by length of the clips, before and after CALP."""
    figure = Figure(figsize=(8.4, 3.6))
    for axes, measure in zip(figure.subplots(1, 2, sharey=True), ("recall@1", "reciprocal_rank"), strict=True):
        for name, colour in COLOURS.items():
            groups = results[name]["by_length"]
            estimates, reach = whiskers([group[measure] for group in groups])
            seconds = [group["mean"] for group in groups]
            axes.errorbar(seconds, estimates, reach, fmt=".-", color=colour, capsize=2, label=NAMES[name])
        axes.set(
            title=f"audio to text, {measure.replace('_', ' ')}", ylim=(0, 1), xlabel="mean length of the clips (s)"
        )
        axes.set_xlim(left=0)
    for group in groups:
        axes.annotate(f"{group['clips']} clips", (group["mean"], 0.98), ha="center", va="top", color=GREY, fontsize=7)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.92))
    return figure


def draw_rates(results: dict) -> Figure:
    """What each rate encodes: the words of the clip and, if measured, the emotion of the voice."""
    panels = {part: names for part, names in RATES.items() if part in results}
    figure = Figure(figsize=(4.4 * len(panels), 3.4))
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (part, (title, measure)) in zip(columns, panels.items(), strict=True):
        rates = results[part]
        for name, shift in (("before", -0.2), ("after", 0.2)):
            estimates, reach = whiskers([rate[name][measure] for rate in rates.values()])
            places = np.arange(len(rates)) + shift
            axes.bar(places, estimates, 0.4, yerr=reach, color=COLOURS[name], capsize=2, label=NAMES[name])
        names = [rate.replace("_", "\n") for rate in rates]
        axes.set(title=title, ylim=(0, 1), xticks=range(len(rates)), xticklabels=names)
        axes.grid(False, axis="x")
    axes.legend()
    return figure


def draw_ablations(ablations: dict) -> Figure:
    """The loss or gain of each variant against the base, one panel per measure: paired interval, and every seed."""
    variants = ablations["variants"]
    measures = {name: title for name, title in ABLATIONS.items() if name in ablations["base"]}
    figure = Figure(figsize=(1.6 + 2.3 * len(measures), 1.2 + 0.34 * len(variants)))
    columns = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, (measure, title) in zip(columns, measures.items(), strict=True):
        draw_differences(axes, [variant[measure] for variant in variants.values()])
        base = ablations["base"][measure]
        axes.set_title(f"{title}\nbase {base['mean']:.3f}")
    columns[0].set_yticks(range(len(variants)), [name.replace("_", " ") for name in variants])
    columns[0].invert_yaxis()
    figure.supxlabel(
        "difference to the base: mean of the seeds, 95 % interval over clips; dots: each seed", fontsize=8
    )
    return figure


def draw_differences(axes: Axes, found: list[dict]) -> None:
    """Bars from 0, orange if the interval lies below 0."""
    differences = [one["difference"] for one in found]
    estimates, reach = whiskers(differences)
    colours = [ORANGE if one["high"] < 0 else BLUE if one["low"] > 0 else GREY for one in differences]
    places = np.arange(len(found))
    axes.barh(places, estimates, 0.6, xerr=reach, color=colours, alpha=0.7, capsize=2)
    for place, one in zip(places, found, strict=True):
        axes.plot(
            one["difference"]["seeds"], [place] * len(one["difference"]["seeds"]), ".", color="black", markersize=3
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(False, axis="y")
