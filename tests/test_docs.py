"""The pages: their code runs and prints what they say, their links lead somewhere, and the site is built without a warning."""

import contextlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def without_noise(text):
    """Without what rounding decides, numbers below 1e-9, and without ends of lines that nobody sees."""
    lines = re.sub(r"\d+(\.\d+)?e-(09|[1-9]\d)", "…", text).strip().splitlines()
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_of_the_pages_runs_and_prints_what_they_say(page, tmp_path, monkeypatch):
    """Every ```python block, one after the other in one namespace; a ```text block is what the one before it prints."""
    monkeypatch.chdir(tmp_path)
    namespace, printed = {}, None
    for kind, block in re.findall(r"^```(python|text)\n(.*?)^```", page.read_text(), re.M | re.S):
        if kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, str(page), "exec"), namespace)
        else:
            assert without_noise(printed.getvalue()) == without_noise(block)


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_generated_parts_are_what_the_code_says():
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    for path, text in generated.pages().items():
        assert path.read_text() == text, "run docs/generated.py"


def test_the_site_is_built_without_a_warning(tmp_path):
    """All but the outcomes of the gallery, which `make docs` computes; an undocumented public name is a warning."""
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("auto_gallery"))
    for page in ROOT.glob("*.md"):
        shutil.copy(page, tmp_path)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-D",
        "plot_gallery=0",
        docs,
        tmp_path / "site",
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in (tmp_path / "site" / "api").glob("*.html"):  # where an attribute's text was taken for its type
        assert not re.search(r"<dt[^>]*>Type<", page.read_text()), page.name
