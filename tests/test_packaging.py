"""What users install: the source distribution, the wheel, and an editable checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import numpy as np
import pytest

import ibvit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
for tool in ("build", "scikit_build_core", "twine", "check_wheel_contents", "mypy"):
    pytest.importorskip(tool, reason=f"{tool} is not installed (extra dev)")


def run(*command: object, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that knows nothing of this checkout."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=known | environment, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def environment(folder: Path) -> Path:
    """The Python of a new environment that has the dependencies of this one and no ibvit."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def pip_install(python: Path, *what: object) -> None:
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", *what, cwd=python.parent,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files under version control."""
    folder = tmp_path_factory.mktemp("second") / "checkout"
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", out, cwd=checkout)
    return out


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel."""
    python = environment(tmp_path_factory.mktemp("installed") / "env")
    pip_install(python, *distributions.glob("*.whl"))
    return python


def test_one_wheel_serves_every_python(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    assert wheel.name.startswith(f"ibvit-{PROJECT['version']}-py3-none-")
    assert PROJECT["version"] == ibvit.__version__
    assert f"version: {ibvit.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_a_package_index_takes_the_distributions(distributions: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir(), cwd=distributions)
    run(sys.executable, "-m", "check_wheel_contents", *distributions.glob("*.whl"), cwd=ROOT)


def test_the_readme_shows_its_picture_on_a_package_index(checkout: Path, tmp_path: Path) -> None:
    from readme_renderer import markdown

    shutil.copy(ROOT / "README.md", tmp_path)
    base = "https://example.org/ibvit/v1"
    run("make", "-f", checkout / "Makefile", "links-for-package-index", f"BASE={base}", cwd=tmp_path)
    page = markdown.render((tmp_path / "README.md").read_text())
    assert page is not None
    assert f'src="{base}/docs/' in page
    assert 'src="docs/' not in page
    assert 'href="benchmarks/' not in page


def test_the_wheel_works_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    where = "import ibvit, ibvit_kernels; print(ibvit.__file__, ibvit_kernels.__file__)"
    for path in run(installed, "-c", where, cwd=tmp_path).stdout.split():
        assert Path(path).is_relative_to(installed.parents[1])
    mu = np.random.default_rng(0).normal(size=(200, 1))
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, mu=mu, logvar=np.full_like(mu, -2.0))
    ibvit_command = installed.with_name("ibvit")
    assert "NMI 1.000000" in run(ibvit_command, "nmi", "a.npz", "b.npz", cwd=tmp_path).stdout
    assert "estimator, CPU" in run(ibvit_command, "env", cwd=tmp_path).stdout
    listed = (
        "from importlib.resources import files; print([p.name for p in (files('ibvit') / 'figures/page').iterdir()])"
    )
    for name in ("report.html", "report.css", "report.js"):
        assert name in run(installed, "-c", listed, cwd=tmp_path).stdout


def test_a_type_checker_sees_the_types_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import ibvit\nreveal_type(ibvit.nmi)\nibvit.load(3)\nibvit.absent\n")
    shown = run(installed, "-m", "mypy", "script.py", cwd=tmp_path, check=False).stdout
    assert "Estimate" in shown.splitlines()[0]
    assert "untyped" not in shown
    assert 'Argument 1 to "load" has incompatible type "int"' in shown
    assert 'Module has no attribute "absent"' in shown


def test_an_editable_checkout_gives_way_to_the_one_in_the_path(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    python = environment(tmp_path_factory.mktemp("editable") / "env")
    pip_install(python, "-e", checkout)
    where = "import ibvit, ibvit_kernels; print(ibvit.__file__, ibvit_kernels.__file__)"
    for path in run(python, "-c", where, cwd=tmp_path).stdout.split():
        assert Path(path).is_relative_to(checkout)
    built = (checkout / "kernels" / "ibvit_kernels" / "ibvit_native.so").exists()
    assert built == (ROOT / "kernels" / "ibvit_kernels" / "ibvit_native.so").exists()
    first = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    for path in run(python, "-c", where, cwd=tmp_path, PYTHONPATH=first).stdout.split():
        assert Path(path).is_relative_to(ROOT)


def test_without_a_compiler_the_installation_says_so(checkout: Path, tmp_path: Path) -> None:
    done = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir", tmp_path,
        cwd=checkout, CXX="/nowhere/c++",
    )  # fmt: skip
    assert "installing without the CPU library" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    python = environment(tmp_path / "env")
    pip_install(python, wheel)
    mutual = "import ibvit, torch; print(ibvit.mutual_information(torch.randn(50, 1), torch.zeros(50, 1)).value > 0)"
    assert run(python, "-c", mutual, cwd=tmp_path).stdout.strip() == "True"
    assert "it was not built" in run(python, "-m", "ibvit", "env", cwd=tmp_path).stdout
