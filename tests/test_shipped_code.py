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
# What whoever runs transformers with torch has installed; the pipeline reads files besides.
AT_HAND = {"huggingface_hub", "numpy", "safetensors", "torch", "transformers"} | sys.stdlib_module_names
READS_FILES = {"pipeline_calm", "audio"}
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


def faults(source: str, folder: Path, installed: set[str] = AT_HAND) -> list[str]:
    """Why a file of `folder` with this source could not be saved with a checkpoint, or not be loaded elsewhere."""
    absolute, relative = imports(source)
    siblings = {file.stem for file in folder.glob("*.py")}
    seen = {name for pattern in SEEN for name in re.findall(pattern, source)}
    found = [f"imports {name}, which may not be installed" for name in sorted(absolute - installed)]
    found += [f"imports '.{name}', which does not travel with it" for name in sorted(relative - siblings)]
    return found + [f"seems to import '.{name}' in a text" for name in sorted(seen - relative)]


def shipped() -> list[Path]:
    """The files called `*_calm.py`, and what they import of their folder."""
    files = [file for folder in ("modeling_calm", "processing") for file in sorted((ROOT / folder).glob("*_calm.py"))]
    for file in files:
        needed = [file.with_name(f"{name}.py") for name in sorted(imports(file.read_text())[1])]
        files += [sibling for sibling in needed if sibling not in files and sibling.is_file()]
    return files


SHIPPED = shipped()


def test_there_is_code_to_ship():
    names = {file.stem for file in SHIPPED}
    assert {"configuration_calm", "modeling_calm", "feature_extraction_calm", "processing_calm"} <= names


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_file_needs_nothing_that_stays_behind(file):
    installed = AT_HAND | ({"soundfile", "soxr"} if file.stem in READS_FILES else set())
    assert not faults(file.read_text(), file.parent, installed)


def test_model_and_processor_need_no_reader_of_files():
    """They load where neither soundfile nor soxr is installed, as on a machine that gets its audio as arrays."""
    for file in SHIPPED:
        if file.stem not in READS_FILES:
            assert not imports(file.read_text())[1] & READS_FILES, file


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
        "from .nowhere import load_audio",
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
