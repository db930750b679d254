"""Writes the locks of the two images: each package in one version, with the digests of its files.

``make lock`` asks the package index that uv is set to, PyPI if nothing is said. ``make lock-cpu`` asks PyTorch's own
index for its builds without CUDA, which PyPI does not have for Linux.
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
# What comes with torch's CUDA build and with nothing else: a layer of its own, large and seldom new.
OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-.+|cuda-.+)==")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
HEAD = "# Written by 'make {target}' from {source}: do not edit.\n"


def compile_(wanted: tuple[Path, ...], platform: str, *options: str) -> list[str]:
    """What uv makes of lists of requirements: one text a package, version and digests. Raises if uv fails."""
    words = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--generate-hashes"]
    words += ["--no-header", "--no-annotate", "--python-version", "3.11", "--python-platform", platform]
    ran = subprocess.run([*words, *options, *map(str, wanted)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return re.findall(r"^\S.*(?:\n .*)*\n", ran.stdout, flags=re.MULTILINE)


def one_for_all(*wanted: Path, options: tuple[str, ...] = ()) -> list[str]:
    """The same lock for every platform of ``PLATFORMS``. Raises ``ValueError`` where they differ."""
    locks = [compile_(wanted, platform, *options) for platform in PLATFORMS]
    for lock in locks[1:]:
        if lock != locks[0]:
            different = sorted({text.split()[0] for text in set(lock) ^ set(locks[0])})
            raise ValueError(f"{wanted[0].name}: not the same on {' and '.join(PLATFORMS)}: {', '.join(different)}")
    return locks[0]


def write(path: Path, texts: list[str], source: str, target: str = "lock") -> None:
    """Replaces a lock as a whole."""
    path.write_text(HEAD.format(target=target, source=source) + "".join(texts))
    print(f"{path.relative_to(ROOT)}: {len(texts)} packages")


def lock() -> None:
    """Both images. The server has the versions of the jobs wherever both have a package."""
    texts = one_for_all(ROOT / "setup.cfg", MORE)
    write(CUDA, [text for text in texts if OF_TORCH.match(text)], "setup.cfg")
    write(PACKAGES, [text for text in texts if not OF_TORCH.match(text)], "setup.cfg and packages.in")
    write(SERVER, one_for_all(SERVER_WANTS, options=("--constraint", str(PACKAGES))), SERVER_WANTS.name)


def lock_cpu(index: str) -> None:
    """torch and torchvision without CUDA, in the versions of ``torch-cuda.txt``; what they need is in ``PACKAGES``."""
    wanted = re.findall(r"^(torch|torchvision)==(\S+)", CUDA.read_text(), flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "torch.in"
        path.write_text("".join(f"{name}=={version}+cpu\n" for name, version in wanted))
        texts = one_for_all(path, options=("--no-deps", "--default-index", index))
    write(CPU, texts, "torch-cuda.txt and PyTorch's index", target="lock-cpu")


def main() -> None:
    """Exit code 1 and one line where there is no lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", metavar="INDEX", help="only torch-cpu.txt, from this index")
    index = parser.parse_args().cpu
    try:
        if index:
            lock_cpu(index)
        else:
            lock()
    except subprocess.CalledProcessError as error:
        # uv has said why.
        sys.exit(f"no lock written: uv ended with exit code {error.returncode}")
    except ValueError as error:
        sys.exit(f"no lock written: {error}")


if __name__ == "__main__":
    main()
