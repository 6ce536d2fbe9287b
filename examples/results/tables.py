"""Results as Markdown."""

from targets import NAMES

UAR = "unweighted_average_recall"

SPACE = {
    "audio_to_text_recall@1": "audio to text R@1",
    "audio_to_text_recall@5": "audio to text R@5",
    "audio_to_text_map@10": "audio to text mAP@10",
    "text_to_audio_recall@1": "text to audio R@1",
    "audio_to_text_reading_recall@1": "audio to text R@1, by reading",
    "alignment": "alignment, 0 is best",
    "uniformity_audio": "uniformity of audio, less is more even",
    "uniformity_text": "uniformity of text",
    "modality_gap": "modality gap",
    "word_reading": "word reading",
    "word_reading_other_transcript": "word reading, another clip's transcript",
}
ABLATIONS = {
    "audio_to_text_recall@1": "R@1",
    "audio_to_text_recall@5": "R@5",
    "audio_to_text_recall@10": "R@10",
    "audio_to_text_map@10": "mAP@10",
    "audio_to_text_reading_recall@1": "R@1, by reading",
    "word_reading": "word reading",
    "unweighted_average_recall": "UAR",
}
# By their names in the results files.
SYSTEMS = {
    "calm": "SpecTran", "ast": "ASTModel", "wav2vec2": "Wav2Vec2Model", "egemaps_svm": NAMES["egemaps_svm"],
    "log_mel": "mean and deviation of the spectrogram",
}  # fmt: skip
CLASSIFIERS = {"calm": "CALM"} | {name: NAMES[name] for name in ("untrained", "compared", "egemaps_svm")}
RATES = {
    "words_by_rate": ("words, R@1", "audio_to_text_recall@1_interval"),
    "emotion_by_rate": ("emotion, UAR", "unweighted_average_recall_interval"),
}


def table(rows: list[list[str]]) -> str:
    """A Markdown table from rows of cells, the first of which is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(interval: dict, sign: str = "") -> str:
    """An estimate and its interval; use `sign="+"` for a difference."""
    numbers = [f"{interval[name]:{sign}.3f}" for name in ("estimate", "low", "high")]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def targets_table(rows: list[dict]) -> str:
    """The results and their targets, from `targets.judge`."""
    lines = [["data", "measure", "value", "beside", "target", "outcome"]]
    for row in rows:
        beside = "" if row["baseline"] is None else f"{row['baseline']}: {row['baseline_value']:.3f}"
        value = f"{row['value']:.3f}" if row["interval"] is None else with_interval(row["interval"])
        lines.append([row["data"], row["measure"], value, beside, row["target"], outcome(row)])
    return table(lines)


def outcome(row: dict) -> str:
    """Met or missed, and by how much."""
    if "low" in row["margin"]:
        return f"{'met' if row['met'] else '**missed**'}: {with_interval(row['margin'], '+')}"
    return f"{'met' if row['met'] else '**missed**'} by {abs(row['margin']['estimate']):.3f}"


def space_table(results: dict) -> str:
    """Retrieval and geometry before and after CALP, from `alignment.py`."""
    head = ["measure", "before CALP", "after CALP"]
    before, after = results["before"], results["after"]
    cells = [[f"{part[name]:.3f}" if name in part else "" for part in (before, after)] for name in SPACE]
    return table([head, *([title, *row] for title, row in zip(SPACE.values(), cells, strict=True) if any(row))])


def length_table(results: dict) -> str:
    """Recall by length of the clips before and after CALP, from `alignment.py`."""
    rows = [["length", "clips", "R@1, before", "R@1, after"]]
    for before, after in zip(results["before"]["by_length"], results["after"]["by_length"], strict=True):
        recall = (with_interval(one["recall@1"]) for one in (before, after))
        rows.append([f"{after['shortest']:.1f} to {after['longest']:.1f} s", str(after["clips"]), *recall])
    return table(rows)


def emotion_table(results: dict[str, dict], untrained: dict[str, dict]) -> str:
    """Classifiers and their baselines, from `evaluate.py`, and chance level.

    Args:
        results: by the name of the corpus.
        untrained: likewise, compared with classifiers on a randomly initialised SpecTran.
    """
    rows = [["data", "system", "UAR", "CALM's gain"]]
    for data, report in results.items():
        systems = {"calm": report, "untrained": untrained.get(data, {}).get("compared")}
        for name, title in CLASSIFIERS.items():
            found = systems.get(name) or report.get(name)
            if found is not None:
                rows.append([data, title, with_interval(found[f"{UAR}_interval"]), gain(found)])
        classes = report["seeds"][0]["class_names"]
        rows.append([data, f"chance, {len(classes)} classes", f"{1 / len(classes):.3f}", ""])
    return table(rows)


def gain(found: dict) -> str:
    """CALM's gain over a system that it was compared with."""
    return with_interval(found["difference"], "+") if "difference" in found else ""


def equal_time_table(results: dict) -> str:
    """Probes of CALM and of peers, from `probes.py`, and how far each training got, from `pretrain_peers.py`."""
    rows = [["system", "clips it got through", "R@10, validation", "UAR", "CALM's gain"]]
    for name, title in SYSTEMS.items():
        found = results if name == "calm" else results.get(name)
        if found is not None:
            seen = ", ".join(f"{clips:,}" for clips in found.get("clips_seen", []))
            recall = ", ".join(f"{one:.3f}" for one in found.get("validation_recall", []))
            rows.append([title, seen, recall, with_interval(found[f"{UAR}_interval"]), gain(found)])
    return table(rows)


def rates_table(results: dict) -> str:
    """What each rate encodes before and after CALP, and the paired gain in UAR, from `alignment.py`."""
    parts = {part: names for part, names in RATES.items() if part in results}
    rows = [["rate", *(f"{title}, {when}" for title, _ in parts.values() for when in ("before", "after"))]]
    if "emotion_by_rate" in parts:
        rows[0].append("gain")
    for rate in results["words_by_rate"]:
        cells = [
            with_interval(results[part][rate][when][measure])
            for part, (_, measure) in parts.items()
            for when in ("before", "after")
        ]
        if "emotion_by_rate" in parts:
            cells.append(with_interval(results["emotion_by_rate"][rate]["gain"], "+"))
        rows.append([rate.replace("_", " "), *cells])
    return table(rows)


def ablations_table(results: dict) -> str:
    """The base's means, and each variant's differences from them, from `ablations.py`."""
    measures = {name: title for name, title in ABLATIONS.items() if name in results["base"]}
    rows = [["variant", *measures.values()], ["base", *(spread(results["base"][name]) for name in measures)]]
    for variant, found in results["variants"].items():
        cells = [with_interval(found[name]["difference"], "+") for name in measures]
        rows.append([variant.replace("_", " "), *cells])
    return table(rows)


def spread(found: dict) -> str:
    """A mean over seeds and their standard deviation, which a single seed does not have."""
    deviation = found["standard_deviation"]
    return f"{found['mean']:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
