"""Fetch the tests of the installed transformers: they stand in its source distribution and not in its wheel.

They are third-party code and never committed. `make conformance` unpacks them into `.conformance/VERSION`, once.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

VERSION = version("transformers")
ROOT = Path(__file__).resolve().parents[2] / ".conformance"
PACKAGE = ROOT / VERSION / "transformers_tests"  # not `tests`, the name of this project's own


def fetch() -> None:
    """Download the source distribution through pip, which does not build it, and unpack its tests.

    Raises:
        subprocess.CalledProcessError: if pip finds no source distribution of the installed version.
    """
    PACKAGE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT) as scratch:
        options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--dest", scratch]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, f"transformers=={VERSION}"], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as content:
            content.extractall(scratch, [name for name in content if "/tests" in name.name], filter="data")
        (tests,) = Path(scratch).glob("*/tests")
        (tests / "__init__.py").touch()  # one of the modules reads it
        tests.rename(PACKAGE)


if __name__ == "__main__" and not PACKAGE.is_dir():
    fetch()
