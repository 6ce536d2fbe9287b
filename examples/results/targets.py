"""The targets of the results, all in one place, and by how much they were met or missed.

Targets are for the test splits of the named corpora, on speakers unseen in training. They were set before training; a
missed one stays in the table.
"""

from typing import NamedTuple

NAMES = {
    "egemaps_svm": "eGeMAPS + linear SVM",
    "compared": "the same network, SpecTran from scratch",
    "untrained": "randomly initialised SpecTran, the same classifier",
    "ast": "ASTModel, same size and time",
    "wav2vec2": "Wav2Vec2Model, same size and time",
    "word_reading_other_transcript": "another clip's transcript",
}


class Target(NamedTuple):
    """A metric and the value it should reach.

    Args:
        part: kind of results file that contains it.
        data: the corpus.
        measure: its name in that file.
        title: its display name.
        least: the value it should reach.
        times: by baseline in the same file, the multiple of it that it should reach.
        above: systems in the same file that it should outperform: the paired interval excludes 0.
    """

    part: str
    data: str
    measure: str
    title: str
    least: float | None = None
    times: dict[str, float] = {}  # noqa: RUF012
    above: tuple[str, ...] = ()


UAR = "unweighted_average_recall"
TARGETS = (
    *(
        Target("retrieval", corpus, f"audio_to_text_{way}recall@{k}", f"audio to text R@{k}, {name}", least)
        for corpus, k, least in (
            ("speech_commands", 1, 0.90), ("speech_commands", 5, 0.98),
            ("speech_read", 1, 0.50), ("speech_read", 10, 0.85),
        )
        for way, name in (("reading_", "by reading"), ("", "by embeddings"))
    ),
    Target(
        "retrieval", "speech_commands", "word_reading", "word reading", 0.40,
        times={"word_reading_other_transcript": 4.0},
    ),
    Target(
        "emotion", "emotion_en", UAR, "UAR, classifier on frozen encoders", 0.65,
        times={"egemaps_svm": 1.5, "compared": 1.25},
    ),
    Target("probes", "emotion_en", UAR, "UAR, linear probe", times={"egemaps_svm": 1.1}),
    Target(
        "equal_time", "emotion_en", UAR, "UAR, linear probe after equal time", above=("ast", "wav2vec2"),
    ),
    Target("emotion", "emotion_pl", UAR, "UAR, classifier on frozen encoders", 0.60),
)  # fmt: skip


def judge(results: dict[tuple[str, str], dict]) -> tuple[list[dict], list[str]]:
    """A row for each requirement of the targets, and what could not be judged.

    Args:
        results: the `results` of each file, by its part and the name of its data.
    """
    rows, missing = [], []
    for target in TARGETS:
        found = results.get((target.part, target.data))
        if found is None or target.measure not in found:  # not every model was trained to read
            missing.append(f"{target.title} on {target.data}")
            continue
        if target.least is not None:
            rows.append(_row(target, found, None, target.least, f"at least {target.least:.2f}"))
        for name in (*target.times, *target.above):
            if name not in found:
                missing.append(f"{target.title} on {target.data} beside {NAMES[name]}")
            elif name in target.times:
                factor = target.times[name]
                needed = factor * _value(found[name], target.measure)
                rows.append(_row(target, found, name, needed, f"at least {factor:g} times that, {needed:.3f}"))
            else:
                needed = _value(found[name], target.measure)
                rows.append(_row(target, found, name, needed, "above", found[name]["difference"]))
    return rows, missing


def _value(baseline: float | dict, measure: str) -> float:
    """A baseline's value, given either alone or with its interval."""
    return baseline[f"{measure}_interval"]["estimate"] if isinstance(baseline, dict) else baseline


def _row(
    target: Target, found: dict, baseline: str | None, needed: float, wanted: str, difference: dict | None = None
) -> dict:
    """One row of the table; `margin` is how far the value exceeds the target, negative if it is missed."""
    value = found[target.measure]
    margin = difference or {"estimate": value - needed}
    return {
        "data": target.data,
        "measure": target.title,
        "value": value,
        "interval": found.get(f"{target.measure}_interval"),
        "baseline": baseline and NAMES[baseline],
        "baseline_value": baseline and _value(found[baseline], target.measure),
        "target": wanted,
        "margin": margin,
        "met": margin["estimate"] >= 0 if difference is None else difference["low"] > 0,
    }
