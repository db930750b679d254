"""Checks the image at the end of its build: its packages, their versions, and that they can be imported.

``python check.py VERSION VARIANT`` prints each problem on a line and exits with 1 if there is any.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def unmet(distribution: metadata.Distribution) -> list[str]:
    """Requirements of an installed package that are missing, or installed in a version that it does not accept."""
    found = []
    for text in distribution.requires or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            if not wanted.specifier.contains(metadata.version(wanted.name), prereleases=True):
                found.append(f"{distribution.name} requires {text}, found {metadata.version(wanted.name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{distribution.name} requires {text}, not found")
    return found


def stale(module: str) -> bool:
    """Whether the module's bytecode is missing or out of date: Python would compile it at every start."""
    source = Path(importlib.import_module(module).__file__ or "")
    compiled = Path(importlib.util.cache_from_source(str(source)))
    if not compiled.is_file():
        return True
    head = compiled.read_bytes()[:16]
    # https://peps.python.org/pep-0552/: flags 0, then time and size of the source.
    made_of = int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")
    state = source.stat()
    return head[4:8] != bytes(4) or made_of != (int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF)


def check(version: str, variant: str) -> list[str]:
    """The problems, one line each."""
    # Without the package, any folder named mlflow could be imported.
    import mlflow
    import torch
    import torchvision

    found = [line for each in metadata.distributions() for line in unmet(each)]
    found += [
        f"{each} has no up-to-date bytecode"
        for each in ("cnn_jobs.runs.train", "mlflow", "torch", "numpy")
        if stale(each)
    ]
    if metadata.version("cnn-jobs") != version:
        found.append(f"cnn-jobs is {metadata.version('cnn-jobs')}, but the label would be {version}")
    if (torch.version.cuda is not None) != (variant == "cuda"):
        found.append(f"torch {torch.__version__} has CUDA {torch.version.cuda}, the variant is {variant}")
    if mlflow.__version__ != metadata.version("mlflow"):
        found.append(f"mlflow is {mlflow.__version__}, but its package is {metadata.version('mlflow')}")
    if not torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).numel():
        found.append("torchvision's own operators do not work")
    return found


if __name__ == "__main__":
    wrong = check(*sys.argv[1:])
    sys.exit("\n".join(wrong) if wrong else 0)
