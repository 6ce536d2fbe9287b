"""The state of the code that a result was produced with."""

import subprocess
from pathlib import Path

EXAMPLES = Path(__file__).parents[1]
# Git pathspecs that exclude what write_report.py itself writes.
WRITTEN = [f":(top,exclude){name}" for name in ("README.md", "model_card.md", "examples/results/published")]


def code_state() -> dict:
    """The commit of this file's repository, and whether tracked files differ from it; `None` outside a clone."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *WRITTEN)
    return {"commit": commit, "changed": None if commit is None else bool(changes)}


def state_name(state: dict) -> str:
    """A short name for a state from [`code_state`]."""
    commit = state.get("commit")
    return "an unknown commit" if commit is None else commit[:7] + (" with changes" if state["changed"] else "")


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(EXAMPLES), *words], capture_output=True, text=True, check=True
        ).stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return None
