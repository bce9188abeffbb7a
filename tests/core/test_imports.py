"""The method stands on torch alone: no other part of kindgene, nothing else that is installed.

The kernels for a GPU need Triton, which comes with torch's builds for CUDA; without it the layers do without them.
"""

import subprocess
import sys

SCRIPT = """
import sys
import torch, torch.func, torch.utils.checkpoint  # with whatever torch itself imports


class Refuse:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top == "kindgene":
            allowed = rest in ("", "_version", "core") or rest.startswith("core.")
        else:
            allowed = top in ("torch", "numpy") or top in sys.stdlib_module_names
        if not allowed:
            raise ImportError(f"kindgene.core imports {name}")


sys.modules["triton"] = None  # as where it is not installed
sys.meta_path.insert(0, Refuse())
import importlib, pkgutil
import kindgene.core

names = [module.name for module in pkgutil.walk_packages(kindgene.core.__path__, "kindgene.core.")]
for name in ("product_triton", "triton_kernels"):
    names.remove(f"kindgene.core.{name}")
for name in names:
    importlib.import_module(name)
print(len(names))
try:
    import kindgene.models
except ImportError:
    print("refused")
"""


def test_every_module_of_the_core_imports_torch_alone():
    run = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    count, refused = run.stdout.split()
    assert int(count) >= 10
    assert refused == "refused"
