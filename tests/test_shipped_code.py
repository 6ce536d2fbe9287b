"""The files that travel with a checkpoint: what they import decides whether another machine can load it.

They are copied flat into one folder, by a regular expression over their source that sees docstrings too, and every
package that they import must be installed where they are loaded.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(file for folder in ("modeling_calm", "processing") for file in (ROOT / folder).glob("*_calm.py"))
# What whoever runs transformers with torch has installed.
AT_HAND = {"huggingface_hub", "numpy", "safetensors", "torch", "transformers"} | sys.stdlib_module_names
OURS = {"examples", "modeling_calm", "processing"}
# How the library looks for the files to copy along, in `dynamic_module_utils.get_relative_imports`.
SEEN = (
    re.compile(r"^\s*import\s+\.(\S+)\s*$", re.MULTILINE),
    re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE),
)


def imports(source: str) -> tuple[set[str], set[str]]:
    """Modules imported absolutely (their first name) and relatively (with the dots after the first).

    What a `try` tries to import may be missing, unless it is ours, which is never there.
    """
    tree = ast.parse(source)
    tried = {inner for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    absolute, relative = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            relative.add("." * (node.level - 1) + (node.module or ""))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            firsts = {name.partition(".")[0] for name in names}
            absolute |= firsts & OURS if node in tried else firsts
    return absolute, relative


def faults(source: str, folder: Path) -> list[str]:
    """Why a file of `folder` with this source could not be saved with a checkpoint, or not be loaded elsewhere."""
    absolute, relative = imports(source)
    siblings = {file.stem for file in folder.glob("*_calm.py")}
    seen = {name for pattern in SEEN for name in re.findall(pattern, source)}
    found = [f"imports {name}, which may not be installed" for name in sorted(absolute - AT_HAND)]
    found += [f"imports '.{name}', which does not travel with it" for name in sorted(relative - siblings)]
    return found + [f"seems to import '.{name}' in a text" for name in sorted(seen - relative)]


def test_there_is_code_to_ship():
    names = {file.stem for file in SHIPPED}
    assert {"configuration_calm", "modeling_calm", "feature_extraction_calm", "processing_calm"} <= names


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_file_needs_nothing_that_stays_behind(file):
    assert not faults(file.read_text(), file.parent)


def test_no_shipped_file_overwrites_another():
    """They come from two folders and end in one."""
    names = [file.name for file in SHIPPED]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "line",
    [
        "from processing.log_mel_calm import patchify",
        "from modeling_calm import CalmModel",
        "from ..processing.log_mel_calm import patchify",
        "from .sub.module import x",
        "from . import log_mel_calm",
        "from .audio import load_audio",
        "import soundfile",
        "try:\n    from processing.audio import load_audio\nexcept ImportError:\n    pass",
        '"""A docstring with a line that begins like this one:\n\n    from .elsewhere import something\n"""',
    ],
)
def test_what_would_break_a_checkpoint_is_found(line):
    """Each of these fails when saved or loaded, tried with transformers 5.23."""
    assert faults(line, ROOT / "processing")


@pytest.mark.parametrize(
    "line",
    [
        '"""Says `from .x import y` within a line."""',
        "import os.path, torch\nfrom .log_mel_calm import patchify",
        "try:\n    import soundfile\nexcept ImportError:\n    soundfile = None",
    ],
)
def test_what_works_is_not_blamed(line):
    assert not faults(line, ROOT / "processing")
