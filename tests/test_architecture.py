"""The structure that ARCHITECTURE.md describes, held by tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {"cli", "analysis", "figures", "training"}
# Who may import whom, first path component below ibvit; ibvit_kernels is imported by name, lazily, and only by these.
ALLOWED = {
    "arguments": set(),
    "errors": set(),
    "kinds": set(),
    "files": set(),
    "progress": set(),
    "run_folder": set(),
    "registration": {"models"},
    "config": set(),
    "ops": {"ops"},
    "models": {"models", "ops"},
    "data": {"data", "ops", "config"},
    "information": {"information"},
    "training": {"training", "models", "data", "ops", "config", "information"},
    "analysis": {"analysis", "models", "data", "ops", "config", "information", "training"},
    "figures": {"figures", "analysis"},
}
GROUND = {"arguments", "errors", "files", "kinds", "progress", "run_folder"}  # all may import them
KERNEL_USERS = {"ops", "information"}


def imports(path: Path, lazily: bool = True) -> set[str]:
    """Absolute module names that a file imports; ``lazily=False`` leaves out those inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazily else iter(_top_level(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "ibvit":
                found |= {f"ibvit.{alias.name}" for alias in node.names}
    return found


def _top_level(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _top_level(node)


def layer(path: Path) -> str:
    return path.relative_to(ROOT / "ibvit").parts[0].removesuffix(".py")


SOURCES = sorted(path for path in (ROOT / "ibvit").rglob("*.py") if layer(path) in ALLOWED)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    allowed = ALLOWED[layer(path)]
    for name in imports(path):
        if name == "ibvit":
            continue  # `from ibvit import ops`: the submodule is checked under its own name
        if name.startswith("ibvit."):
            assert name.split(".")[1] in {*allowed, *GROUND}, f"{layer(path)} must not import {name}"
        if name.split(".")[0] == "ibvit_kernels":
            assert layer(path) in KERNEL_USERS
    assert not any(name.startswith("ibvit_kernels") for name in imports(path, lazily=False))


DATA = ("files", "plans", "cache", "loaders", "sets")  # folders of ibvit/data; each imports those before it


@pytest.mark.parametrize("folder", DATA)
def test_imports_run_one_way_within_data(folder):
    later = DATA[DATA.index(folder) + 1 :]
    for path in (ROOT / "ibvit" / "data" / folder).glob("*.py"):
        for name in imports(path):
            assert name.split(".")[:2] != ["ibvit", "data"] or name.split(".")[2] not in (*later, "build"), (path, name)


def test_kernels_know_nothing_of_ibvit():
    for path in (ROOT / "kernels" / "ibvit_kernels").rglob("*.py"):
        assert not any(name.split(".")[0] == "ibvit" for name in imports(path)), path
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_benchmarks_need_no_tests():
    """They start without pytest, also where only their own sources are; nothing but tests imports them."""
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"tests", "pytest"}, path
    for path in [*(ROOT / "ibvit").rglob("*.py"), *(ROOT / "kernels" / "ibvit_kernels").rglob("*.py")]:
        assert not any(name.split(".")[0] == "benchmarks" for name in imports(path)), path


def test_the_reference_knows_no_backend():
    assert imports(ROOT / "ibvit" / "ops" / "reference.py") <= {
        "__future__", "typing", "torch", "torch.nn.functional", "ibvit.ops.noise",
    }  # fmt: skip


def test_no_source_file_is_long():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    sources = [ROOT / name for name in tracked if name.endswith((".py", ".cpp", ".cu", ".h"))]
    long = {
        str(path): lines for path in sources if path.exists() and (lines := len(path.read_text().splitlines())) > 400
    }
    assert sources
    assert not long


# None in sys.modules: the import fails, while torch's own questions whether a module exists get a plain no.
BLOCKED = """
import sys
blocked = ["nvidia.dali", "matplotlib", "tyro", "ibvit_kernels", "triton", "sklearn", "safetensors", "scipy"]
sys.modules.update(dict.fromkeys(blocked))
import torch, timm, ibvit
model = timm.create_model("ibvit_tiny_patch16_224", num_classes=10, depth=2)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
for _ in range(2):
    logits, kl = model(torch.randn(1, 3, 224, 224), return_kl=True)
    (logits.square().mean() + kl.mean()).backward()
    optimizer.step()
print(torch.isfinite(kl).all().item(), [name for name in blocked if sys.modules[name]])
"""


# Each script prints whether timm knows the models; torch may be loaded only once timm is.
REGISTERED = {
    "ibvit first": "import sys, ibvit; assert 'torch' not in sys.modules; import timm",
    "timm first": "import timm, ibvit",
    "a part of timm": "import ibvit; from timm.layers import Mlp; import timm",
}


@pytest.mark.parametrize("script", REGISTERED.values(), ids=REGISTERED)
def test_timm_knows_the_models_whatever_is_imported_first(script):
    script += "; print(timm.is_model('ibvit_tiny_patch16_224'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_names_of_the_package():
    import ibvit

    assert {*ibvit.__all__, "models", "information"} <= set(dir(ibvit))
    for name in ibvit.__all__:
        assert getattr(ibvit, name).__doc__
    with pytest.raises(AttributeError, match="module 'ibvit' has no attribute 'absent'"):
        ibvit.absent  # noqa: B018
    # What the type checker reads, and what is imported at run time.
    typed = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse((ROOT / "ibvit" / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in ("ibvit", "ibvit.information", "ibvit.models")
        for alias in node.names
    }
    assert typed == {*ibvit.__all__, *ibvit._MODULES}


def test_import_is_light_and_the_reference_trains_alone():
    """`import ibvit` needs torch, timm and numpy: two training steps with everything else blocked."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "[]"], done.stderr[-2000:]
