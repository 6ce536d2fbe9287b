"""Generated folders: complete or absent, and built once per recipe."""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path


def describe_recipe(settings: dict, sources: Sequence[Path], wheels: Sequence[str]) -> dict:
    """Everything that determines the bytes of a folder, with its hash.

    Args:
        settings: must be serialisable as JSON.
        sources: files of code and text whose content matters.
        wheels: packages whose versions matter.
    """
    recipe = settings | {
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources},
        "versions": {name: importlib.metadata.version(name) for name in wheels},
    }
    return recipe | {"recipe_hash": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()}


def build_once(output_dir: Path, recipe: dict, write: Callable[[Path], None]) -> Path:
    """Write a folder, or return the existing one of the same recipe.

    It is written under a hidden name next to `output_dir` and renamed at the end, so that an interrupted build never
    looks finished.

    Args:
        output_dir: the folder to create.
        recipe: from [`describe_recipe`]; saved in the folder as `recipe.json`.
        write: creates and fills the folder that it is given.

    Raises:
        FileExistsError: if `output_dir` holds anything else.
    """
    if _is_finished(output_dir, recipe):
        return output_dir
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not of this recipe: give another folder or delete it.")
    partial = output_dir.with_name(f".{output_dir.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        (partial / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        if output_dir.exists():
            output_dir.rmdir()
        try:
            partial.rename(output_dir)
        except OSError:  # another process may have finished first
            if not _is_finished(output_dir, recipe):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output_dir


def _is_finished(output_dir: Path, recipe: dict) -> bool:
    try:
        found = json.loads((output_dir / "recipe.json").read_text(encoding="utf-8"))
        return found["recipe_hash"] == recipe["recipe_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
