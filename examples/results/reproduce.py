"""Reproduce all tables: synthetic speech, pretraining, classifiers, baselines, measurements, the report.

    python examples/results/reproduce.py --data ../shared/data --recipe cpu

A recipe (`examples/configs/results_*.yaml`) holds the options of every script. Steps run one after another; those with
many trainings run them as several processes in parallel. Each command leaves its output, its log and a note in the
results folder, `notes/STEP-NUMBER.json`: its options, the commit, and the seconds it took once it is done. Finished
commands are not run again, so to resume after an interruption, repeat the same call; other options are rejected, and
the report lists which steps ran at which commits. All choices are made on validation splits. Test splits are read by
the measurements at the end, and by `finetune.py`, which scores its last weights on them; those scores are not used
here.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from provenance import code_state

EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))
from checkpoints import write_atomically  # noqa: E402

CORPORA = ("speech_commands", "speech_read", "emotion_en", "emotion_pl")
EMOTIONS = ("emotion_en", "emotion_pl")
logger = logging.getLogger(__name__)


@dataclass
class Command:
    """A script and its options.

    Args:
        script: path below `examples/`.
        options: by name; a list becomes several words, and None is omitted.
        output: the file that a finished command leaves.
        resumable: whether the script continues with `--resume` after an interruption.
        restarts: whether the folder of `output`, left by an interrupted run, must be removed first.
    """

    script: str
    options: dict
    output: Path
    resumable: bool = False
    restarts: bool = False

    def words(self) -> list[str]:
        """The command line."""
        words = [sys.executable, str(EXAMPLES / self.script)]
        for name, value in self.options.items():
            values = value if isinstance(value, list) else [value]
            words += [] if value is None else [f"--{name}", *map(str, values)]
        return words + ["--resume", "true"] * self.resumable


@dataclass
class Step:
    """Commands that do not depend on each other."""

    name: str
    commands: list[Command] = field(default_factory=list)
    alone: bool = False  # one after another, on all cores


def with_config(settings: dict) -> dict:
    """Settings, merged over those of the file in `examples/configs` that they name as `config`, if any."""
    file = settings.get("config")
    found = {} if file is None else yaml.safe_load((EXAMPLES / "configs" / file).read_text())
    return found | {name: value for name, value in settings.items() if name != "config"}


def steps(recipe: dict, data: Path, folder: Path) -> Iterator[Step]:
    """All steps, in the order of their dependencies."""
    corpora = {name: str(data / name) for name in CORPORA}
    commands, read, words, aligned = (
        corpora["speech_commands"],
        corpora["speech_read"],
        folder / "words",
        folder / "calm",
    )
    options = {"transcripts": [commands, read], "output": str(words), **recipe["words"]}
    yield Step("words", [Command("word_corpus.py", options, words / "train" / "metadata.csv")])
    added = [commands, *[read, commands] * (recipe["real_share"] - 1), str(words)]
    mixture = {"dataset": read, "added_datasets": added}  # checkpoints are selected on the harder corpus
    options = {**mixture, "output_dir": str(aligned), **recipe["pretrain"]}
    yield Step("calm", [Command("pretrain.py", options, aligned / "results.json", resumable=True)], alone=True)
    for corpus in EMOTIONS:
        trainings = []
        for system, settings in (
            ("calm", {**with_config(recipe["finetune"]), "model": str(aligned)}),
            ("scratch", with_config(recipe["scratch"])),
            ("untrained", with_config(recipe["untrained"])),
        ):
            for seed in range(recipe["seeds"]):
                run = folder / corpus / f"{system}-{seed}"
                options = {"dataset": corpora[corpus], "output_dir": str(run), "seed": seed, **settings}
                trainings.append(Command("finetune.py", options, run / "results.json", resumable=True))
        yield Step(corpus, trainings)
    peers = {name: folder / "peers" / name for name in ("calm", "ast", "wav2vec2")}
    yield Step("peers", [
        Command(
            "results/pretrain_peers.py",
            {"encoder": name, **mixture, "output_dir": str(run), **recipe["peers"]},
            run / "results.json", restarts=True,
        )
        for name, run in peers.items()
    ], alone=True)  # fmt: skip

    def seeds(corpus: str, system: str) -> list[str]:
        return [str(folder / corpus / f"{system}-{seed}") for seed in range(recipe["seeds"])]

    def measure(name: str, script: str, options: dict) -> Command:
        output = folder / f"{name}.json"
        return Command(script, {**options, "output": str(output)}, output)

    spectran, others = str(peers["calm"]), [str(peers["ast"]), str(peers["wav2vec2"])]
    labels = {"dataset": corpora["emotion_en"], "label_column": "emotion"}
    yield Step("measurements", [
        measure("robustness", "results/robustness.py", {
            "models": seeds("emotion_en", "calm"), "compare_models": seeds("emotion_en", "scratch"),
            "probes": [spectran, *others], **labels,
            "retrieval_models": str(aligned), "retrieval_dataset": commands,
        }),  # the longest of them
        *(
            measure(f"retrieval-{corpus}", "evaluate.py", {"models": str(aligned), "dataset": corpora[corpus]})
            for corpus in ("speech_commands", "speech_read")
        ),
        *(
            measure(f"emotion-{corpus}", "evaluate.py", {
                "models": seeds(corpus, "calm"), "compare_models": seeds(corpus, "scratch"), "egemaps": "true",
                "dataset": corpora[corpus], "label_column": "emotion",
            })
            for corpus in EMOTIONS
        ),
        *(
            measure(f"untrained-{corpus}", "evaluate.py", {
                "models": seeds(corpus, "calm"), "compare_models": seeds(corpus, "untrained"),
                "dataset": corpora[corpus], "label_column": "emotion",
            })
            for corpus in EMOTIONS
        ),
        measure("probes", "results/probes.py", {"models": str(aligned), **labels}),
        measure("equal_time", "results/probes.py", {"models": spectran, "peers": others, **labels}),
        measure("alignment", "results/alignment.py", {
            "model": str(aligned), "dataset": commands, "emotion_dataset": corpora["emotion_en"],
        }),
    ])  # fmt: skip


def is_done(command: Command, note: Path) -> bool:
    """Whether a note records that the command succeeded.

    Raises:
        ValueError: if the note is of a command with other options.
    """
    if not note.exists():
        return False
    told = json.loads(note.read_text())
    if told["script"] != command.script or told["options"] != command.options:
        raise ValueError(
            f"'{note}' tells of {told['script']} with other options. Remove it with what that command made, in"
            f" '{command.output.parent}', and whatever was made of that; or choose another `--output`."
        )
    return told["seconds"] is not None and command.output.exists()


def run(command: Command, note: Path, threads: int) -> None:
    """Run a command unless it is done.

    Raises:
        RuntimeError: if it fails; names its log.
        ValueError: see `is_done`.
    """
    if is_done(command, note):
        return
    if command.restarts:
        shutil.rmtree(command.output.parent, ignore_errors=True)
    if command.resumable:
        command.output.unlink(missing_ok=True)  # its completion was not noted
    log = note.with_suffix(".txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    told = {"script": command.script, "options": command.options, **code_state(), "seconds": None}
    write_atomically(note, json.dumps(told, indent=2) + "\n")
    started = time.monotonic()
    with log.open("a") as stream:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
        code = subprocess.run(command.words(), stdout=stream, stderr=subprocess.STDOUT, env=environment).returncode
    if code or not command.output.exists():
        raise RuntimeError(f"{' '.join(command.words())}\nended with code {code}; its last words stand in '{log}'.")
    told["seconds"] = round(time.monotonic() - started, 2)
    write_atomically(note, json.dumps(told, indent=2) + "\n")


def reproduce(all_steps: Iterator[Step], folder: Path, jobs: int) -> None:
    """Run the steps; `steps.json` gets the seconds each took, summed over all calls.

    Raises:
        RuntimeError, ValueError: see [`run`]; commands running in parallel with the one that failed end first.
    """
    file, cores = folder / "steps.json", os.cpu_count() or 1
    seconds = json.loads(file.read_text()) if file.exists() else {}
    for step in all_steps:
        notes = [folder / "notes" / f"{step.name}-{number}.json" for number in range(len(step.commands))]
        if all(map(is_done, step.commands, notes)):
            continue
        logger.info("%s: %d commands", step.name, len(step.commands))
        started, at_once = time.monotonic(), 1 if step.alone else jobs
        try:
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(run, step.commands, notes, [max(cores // at_once, 1)] * len(notes)))
        finally:
            seconds[step.name] = round(seconds.get(step.name, 0.0) + time.monotonic() - started, 2)
            write_atomically(file, json.dumps(seconds, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"Folder of the corpora {', '.join(CORPORA)}.")
    parser.add_argument("--recipe", default="cpu", help="cpu, gpu, or a YAML file.")
    parser.add_argument("--output", type=Path, default=Path("runs/results"), help="Folder of results.")
    parser.add_argument("--jobs", type=int, default=2, help="Trainings side by side in steps that have many.")
    parser.add_argument("--until", help="Name of the last step to run; by default all, and the report.")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    missing = [name for name in CORPORA if not (options.data / name).is_dir()]
    if missing:
        print(f"Skipped: '{options.data}' lacks the corpora {missing}; examples/README.md tells what they are.")
        return
    shipped = EXAMPLES / "configs" / f"results_{options.recipe}.yaml"
    recipe = yaml.safe_load((shipped if shipped.exists() else Path(options.recipe)).read_text())
    expected = yaml.safe_load((EXAMPLES / "configs" / "results_cpu.yaml").read_text())
    if set(recipe) != set(expected):
        raise ValueError(f"The recipe '{options.recipe}' has the parts {sorted(recipe)}; it needs {sorted(expected)}.")
    planned = list(steps(recipe, options.data, options.output))
    names = [step.name for step in planned]
    if options.until not in (None, *names):
        raise ValueError(f"There is no step '{options.until}'; the steps are {names}.")
    last = names.index(options.until) + 1 if options.until else len(names)
    options.output.mkdir(parents=True, exist_ok=True)
    reproduce(iter(planned[:last]), options.output, options.jobs)
    if options.until is None:
        report = [sys.executable, str(EXAMPLES / "results" / "write_report.py"), "--results", str(options.output)]
        subprocess.run(report, check=True)


if __name__ == "__main__":
    main()
