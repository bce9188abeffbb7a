"""The package as a whole: a light import, a true list of names, imports that go down only, and what is refused."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kindgene

SOURCE = Path(kindgene.__file__).parent
FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
NEEDS = {
    # package or module -> what of kindgene it may import; all may import themselves and BASE
    "core": set(),
    "models": set(),
    "data": set(),
    "diffusion": set(),
    "pool": {"core", "models"},
    "training": {"core", "models", "diffusion"},
    "transfer": {"core", "models", "pool"},
    "evaluation": {"core", "models", "data", "diffusion", "pool", "training"},
    "interop": {"core", "models", "diffusion", "pool", "pipeline"},
    "pipeline": {"core", "models", "data", "diffusion", "pool", "interop"},
    "recipes": {"training"},
    "benchmarks": {"core", "models", "diffusion", "pool", "training", "interop"},
    "studies": {"core", "models", "data", "diffusion", "pool", "training", "transfer", "evaluation", "interop"},
}
BASE = {"_version", "files", "progress", "random"}  # these import nothing of kindgene
TOP = {"cli", "__init__", "__main__"}
PICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UPWARD = {("core/decomposable.py", "kindgene.pool.pool")}  # the public API puts the verb on the model
TENSORS_ALONE = "interop/checkpoint.py"  # reads others' .pt files with weights_only=True; pickle, for its exception


def unit(path):
    """The package, or the module at the top, that a file belongs to."""
    return path.parts[0].removesuffix(".py")


def imports(path):
    """Modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((SOURCE / path).read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "kindgene":  # names of the public API, or modules at the top
                yield from (f"kindgene.{alias.name}" for alias in node.names)
            else:
                yield node.module


def calls(path):
    return [node for node in ast.walk(ast.parse((SOURCE / path).read_bytes())) if isinstance(node, ast.Call)]


def name_of(call):
    return ast.unparse(call.func)


def test_there_is_something_to_look_at():
    assert len(FILES) > 50
    assert {unit(path) for path in FILES} == {*NEEDS, *BASE, *TOP}


@pytest.mark.parametrize("package", [*NEEDS, *sorted(BASE)])
def test_imports_go_down_only(package):
    allowed = NEEDS[package] | BASE | {package} if package in NEEDS else set()
    wrong = [
        (str(path), module)
        for path in FILES
        if unit(path) == package
        for module in imports(path)
        if module.split(".")[0] == "kindgene" and module.split(".")[1] not in allowed
    ]
    assert set(wrong) == {entry for entry in UPWARD if entry[0].startswith(f"{package}/")}


def test_the_upward_import_is_lazy():
    """For types, and within the function that needs it."""
    tree = ast.parse((SOURCE / "core" / "decomposable.py").read_bytes())
    at_the_top = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert "kindgene.pool.pool" not in at_the_top


def test_core_needs_torch_alone():
    """And Triton, in two files, which are imported where there is a CUDA device to run it."""
    found = {
        (module.split(".")[0], path.as_posix() if module.split(".")[0] == "triton" else "")
        for path in FILES
        if path.parts[0] == "core"
        for module in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names
    }
    kernels = {("triton", "core/product_triton.py"), ("triton", "core/triton_kernels.py")}
    assert found == {("torch", ""), ("kindgene", ""), *kernels}


def test_nothing_but_itself_imports_the_command_line():
    for path in FILES:
        if path.parts[0] not in ("cli", "__main__.py"):
            assert not [module for module in imports(path) if module.startswith("kindgene.cli")], path


def test_no_prints_no_pickle_no_lenient_loading():
    for path in FILES:
        modules = {module.split(".")[0] for module in imports(path)}
        assert modules & PICKLE == ({"pickle"} if path.as_posix() == TENSORS_ALONE else set()), path
        for call in calls(path):
            name = name_of(call)
            assert name not in ("print", "exec", "eval", "torch.save"), (path, call.lineno)
            if name == "torch.load":
                assert path.as_posix() == TENSORS_ALONE, (path, call.lineno)
                assert "weights_only=True" in ast.unparse(call), (path, call.lineno)
            lenient = [
                keyword.arg
                for keyword in call.keywords
                if isinstance(keyword.value, ast.Constant)
                and (keyword.arg, keyword.value.value) in (("strict", False), ("allow_pickle", True))
            ]
            if name not in ("zip", "torch.export.export"):  # where strict is another matter
                assert not lenient, (path, call.lineno)
            if name.endswith("load_state_dict"):
                assert any(keyword.arg == "strict" for keyword in call.keywords), (path, call.lineno)


@pytest.mark.parametrize("statement", ["import kindgene", "import kindgene; dir(kindgene); kindgene.__version__"])
def test_the_import_is_light(statement):
    code = f"import sys; {statement}; print(*sorted({{'torch', 'diffusers', 'numpy', 'triton'}} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "\n"


def test_every_public_name_is_there():
    assert set(kindgene._HOME) < set(kindgene.__all__)
    assert len(set(kindgene.__all__)) == len(kindgene.__all__)
    for name in kindgene.__all__:
        value = getattr(kindgene, name)
        if name in kindgene._HOME:
            assert value is getattr(import_module(kindgene._HOME[name]), name)
    assert dir(kindgene) == sorted(kindgene.__all__)


def test_names_for_type_checkers_are_the_same():
    """What a type checker sees imported is what __getattr__ gives."""
    tree = ast.parse((SOURCE / "__init__.py").read_bytes())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == kindgene._HOME


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'kindgene' has no attribute 'Elephant'"):
        kindgene.Elephant  # noqa: B018
    assert not hasattr(kindgene, "_HOMES")


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert kindgene.__version__ == version("kindgene")
