"""The last step of the image's build: is everything in it, and does it start as the user who will run it?

``python check.py VERSION VARIANT`` ends with one line and exit code 1 where something is not as it has to be.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def unmet(distribution: metadata.Distribution) -> list[str]:
    """Requirements of an installed package that are not there, or not in a version it takes."""
    found = []
    for text in distribution.requires or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            if not wanted.specifier.contains(metadata.version(wanted.name), prereleases=True):
                found.append(f"{distribution.name} wants {text}, found {metadata.version(wanted.name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{distribution.name} wants {text}, not found")
    return found


def stale(module: str) -> bool:
    """Whether Python would compile this module anew at each start, for it could not keep what it made."""
    source = Path(importlib.import_module(module).__file__ or "")
    compiled = Path(importlib.util.cache_from_source(str(source)))
    if not compiled.is_file():
        return True
    head = compiled.read_bytes()[:16]
    # https://peps.python.org/pep-0552/: flags 0 means time and size of the source.
    made_of = int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")
    state = source.stat()
    return head[4:8] != bytes(4) or made_of != (int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF)


def check(version: str, variant: str) -> list[str]:
    """What is wrong, a line each."""
    # Without the package, the name would be that of any folder called mlflow.
    import mlflow
    import torch
    import torchvision

    found = [line for each in metadata.distributions() for line in unmet(each)]
    found += [
        f"{each} has no bytecode that fits"
        for each in ("cnn_jobs.runs.train", "mlflow", "torch", "numpy")
        if stale(each)
    ]
    if metadata.version("cnn-jobs") != version:
        found.append(f"cnn-jobs is {metadata.version('cnn-jobs')}, the label would say {version}")
    if (torch.version.cuda is not None) != (variant == "cuda"):
        found.append(f"torch {torch.__version__} has CUDA {torch.version.cuda}, the variant is {variant}")
    if mlflow.__version__ != metadata.version("mlflow"):
        found.append(f"mlflow says {mlflow.__version__}")
    if not torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).numel():
        found.append("torchvision's own operators do not work")
    return found


if __name__ == "__main__":
    wrong = check(*sys.argv[1:])
    sys.exit("\n".join(wrong) if wrong else 0)
