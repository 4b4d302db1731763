"""The tables on the pages are those of the stored runs, and each has its place."""

import re
from pathlib import Path

import pytest
from retract.errors import RetractError
from studies import reports, runs, summary
from studies.methods import Method, load
from tiny_study import Tiny

TABLES = [*reports.tables(runs.RESULTS)]


@pytest.mark.parametrize(("page", "name", "text"), TABLES, ids=[f"{page}: {name}" for page, name, _ in TABLES])
def test_a_table_on_a_page_is_that_of_the_stored_runs(page, name, text):
    before = (reports.DOCS / page).read_text()
    assert reports.filled(before, name, text) == before, (
        "the page is older than the runs: `docs/studies report` writes it"
    )


def test_every_mark_on_a_page_has_a_table():
    marks = {
        (path.relative_to(reports.DOCS).as_posix(), name)
        for path in reports.DOCS.glob("**/*.md")
        for name in re.findall(r"<!-- table (\S+): docs/studies report -->", path.read_text())
    }
    assert marks == {(page, name) for page, name, _ in TABLES}


def test_a_page_without_the_marks_is_told():
    with pytest.raises(RetractError, match="has the table batchnorm 0 times"):
        reports.filled("# A page", "batchnorm", "a table")


def test_every_study_with_stored_runs_is_known():
    known = {study.name for study in reports.STUDIES} | {"mechanism"}
    assert {path.parent.name for path in Path(runs.RESULTS).glob("*/*.json")} <= known
    assert len({study.name for study in reports.STUDIES}) == len(reports.STUDIES)


def test_a_table_is_written_between_its_marks_and_a_second_time_alike(tmp_path, monkeypatch):
    other = "\n<!-- end -->\n\nAfter.\n\n<!-- table other: docs/studies report -->\nold\n<!-- end -->\n"
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n<!-- table one: docs/studies report -->\nmine{other}")
    monkeypatch.setattr(reports, "tables", lambda _: iter([("page.md", "one", r"| a \1 |")]))
    monkeypatch.setattr(reports, "STUDIES", ())
    for _ in range(2):
        reports.write(tmp_path, tmp_path)
        assert (
            page.read_text() == rf"# Page{chr(10) * 2}<!-- table one: docs/studies report -->{chr(10)}| a \1 |{other}"
        )


def test_the_summary_says_what_the_interval_does(stored):
    """PSI-SGDM is better by 1.02 points in `stored`, with an error of 0.02; then worse by as much, then apart by luck."""
    folder, after = stored / "tiny", {}
    for change in (0.0, 2.04, None):
        found = runs.read(stored / "tiny", "psi_sgdm")
        for record in found:
            if record["phase"] == "final":
                record["test accuracy"] -= change if change is not None else 2.0 * (-1) ** record["seed"]
        (stored / f"{change}").mkdir()
        runs.store(stored / f"{change}", Method("psi_sgdm", "", load("psi_sgdm").knobs, list), found)
        runs.store(stored / f"{change}", load("sgd_decay"), runs.read(folder, "sgd_decay"))
        after[change] = summary.generated(Tiny, stored / f"{change}")
    assert "| PSI-SGDM | lr 0.2, rest 0.2 | 63.02 ± 0.69 | **+1.02 [+0.96, +1.08]** | ahead |" in after[0.0]
    assert "| SGD with decay | lr 0.2, rest 0.2, decay 0.002 | 62.00 ± 0.71 | – | baseline |" in after[0.0]
    assert "**-1.02 [-1.08, -0.96]** | behind |" in after[2.04]
    assert any(line.endswith("] | not distinguishable |") for line in after[None].splitlines())
    assert summary.generated(Tiny, stored / "none") == "Being measured."
