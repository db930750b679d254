"""Writes the locks of the two images: one version of each package, with the digests of its files.

``make lock`` uses the package index that uv is configured for, PyPI by default. ``make lock-cpu`` uses PyTorch's own
index, which has the builds without CUDA that PyPI does not have for Linux.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s/image"
MORE = FOLDER / "packages.in"
PACKAGES, CUDA, CPU = FOLDER / "packages.txt", FOLDER / "torch-cuda.txt", FOLDER / "torch-cpu.txt"
SERVER_WANTS, SERVER = ROOT / "mlflow/requirements.in", ROOT / "mlflow/requirements.txt"
# The packages of torch's CUDA build only: they are a layer of their own, large and rarely changed.
OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-.+|cuda-.+)==")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
HEAD = "# Written by 'make {target}' from {source}: do not edit.\n"


def compile_(wanted: tuple[Path, ...], platform: str, *options: str) -> list[str]:
    """The packages that uv resolves from files of requirements: one text each, version and digests.

    Raises ``CalledProcessError`` if uv fails.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--python-version", "3.11", "--python-platform", platform]
    command += [*options, *map(str, wanted)]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return re.findall(r"^\S.*(?:\n .*)*\n", ran.stdout, flags=re.MULTILINE)


def one_for_all(*wanted: Path, options: tuple[str, ...] = ()) -> list[str]:
    """The lock that all ``PLATFORMS`` share. Raises ``ValueError`` if theirs differ."""
    locks = [compile_(wanted, platform, *options) for platform in PLATFORMS]
    for lock in locks[1:]:
        if lock != locks[0]:
            different = sorted({text.split()[0] for text in set(lock) ^ set(locks[0])})
            raise ValueError(f"{wanted[0].name}: not the same on {' and '.join(PLATFORMS)}: {', '.join(different)}")
    return locks[0]


def write(path: Path, texts: list[str], source: str, target: str = "lock") -> None:
    """Replaces a lock."""
    path.write_text(HEAD.format(target=target, source=source) + "".join(texts))
    print(f"{path.relative_to(ROOT)}: {len(texts)} packages")


def lock() -> None:
    """Locks both images. Packages that both have are in the same version."""
    texts = one_for_all(ROOT / "setup.cfg", MORE)
    write(CUDA, [text for text in texts if OF_TORCH.match(text)], "setup.cfg")
    write(PACKAGES, [text for text in texts if not OF_TORCH.match(text)], "setup.cfg and packages.in")
    write(SERVER, one_for_all(SERVER_WANTS, options=("--constraint", str(PACKAGES))), SERVER_WANTS.name)


def lock_cpu(index: str) -> None:
    """Locks torch and torchvision without CUDA, in the versions of ``CUDA``; ``PACKAGES`` has their requirements."""
    wanted = re.findall(r"^(torch|torchvision)==(\S+)", CUDA.read_text(), flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "torch.in"
        path.write_text("".join(f"{name}=={version}+cpu\n" for name, version in wanted))
        texts = one_for_all(path, options=("--no-deps", "--default-index", index))
    write(CPU, texts, "torch-cuda.txt and PyTorch's index", target="lock-cpu")


def main() -> None:
    """Exits with 1 and one line if no lock was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", metavar="INDEX", help="only torch-cpu.txt, from this index")
    index = parser.parse_args().cpu
    try:
        if index:
            lock_cpu(index)
        else:
            lock()
    except subprocess.CalledProcessError as error:
        # uv has printed the reason.
        sys.exit(f"no lock written: uv ended with exit code {error.returncode}")
    except ValueError as error:
        sys.exit(f"no lock written: {error}")


if __name__ == "__main__":
    main()
