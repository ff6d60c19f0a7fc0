"""The public surface: the names of the package, and what importing it costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import spherediff as sd


def test_every_public_name_resolves_and_is_listed() -> None:
    for name in sd.__all__:
        assert getattr(sd, name) is not None
        assert name in dir(sd)
    assert set(sd.__all__) == {*sd._MODULES, *sd._HOME}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sd.nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_import_alone_loads_no_heavy_library() -> None:
    heavy = ("torch", "matplotlib", "xarray", "healpy", "scipy")
    code = f"import sys, spherediff; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_modules_use_only_those_above_them_in_the_list_of_modules() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs" / "api.md").read_text(encoding="utf-8")
    order = re.findall(r"^   (spherediff\.[\w.]+)$", page, re.MULTILINE)
    assert len(order) > 40

    def listed(name: str) -> str:
        """The module or package of the list that a name is in; empty if there is none."""
        while name and name not in order:
            name = name.rpartition(".")[0]
        return name

    for path in (root / "spherediff").rglob("*.py"):
        user = listed(".".join(path.relative_to(root).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                for used in {listed(f"{node.module}.{alias.name}") for alias in node.names}:
                    related = f"{user}.".startswith(f"{used}.") or used.startswith(f"{user}.")
                    if user and used and not related:
                        assert order.index(used) < order.index(user), f"{path} uses {used}"


def test_the_readme_example_runs_as_written() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n")[1].split("```")[0].replace("lmax=127", "lmax=31")
    names: dict[str, torch.Tensor] = {}
    try:
        exec(compile(code, "README.md", "exec"), names)
    finally:
        plt.close("all")
    assert names["x"].shape == (8, 1024)
    assert names["maps"].shape == (8, 49152)
    assert names["y"].shape == (16, 1024)


PAGES = [
    page
    for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    if "```python\n" in page.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_the_pages_run_as_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = page.read_text(encoding="utf-8").split("```python\n")[1:]
    code = "\n".join(block.split("```")[0] for block in blocks)
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(code, page.name, "exec"), {})
    finally:
        plt.close("all")
