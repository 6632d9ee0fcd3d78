"""Tables of a report as LaTeX sets them in papers of one and of two columns."""

import dataclasses
import re
import shutil
import subprocess

import pandas as pd
import pytest
import synthetic_runs as synthetic
import synthetic_spaces
from waiting import HANG_SECONDS

from analysis import load
from analysis.drawing import files
from analysis.figures.__main__ import MODULES
from analysis.figures.table import loader
from search_spaces import SPACES

pytestmark = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")

POINTS = {"one column": 5.5 * 72.27, "two columns": 6.75 * 72.27}
PAPERS = {
    "one column": r"\documentclass{article}\setlength{\textwidth}{5.5in}",
    "two columns": r"\documentclass[twocolumn]{article}\setlength{\textwidth}{6.75in}\setlength{\columnsep}{0.25in}",
}


VARIED = ("mode_connectivity", "ensemble_diversity_cifar100", "mask_controls")
"""Spaces with tables of planes, of ensembles, and of controls."""
SMALLEST = 7.0
"""Points of a table's letters in a text of 5.5 inches, at least."""
SHRUNK = r"\ifdim\wd0>\linewidth"
SAYS_ITS_SIZE = r"\typeout{table of \the\dimexpr\wd0\relax\space at \csname f@size\endcsname}"


def sizes(log, room):
    """Points of the letters of each table, which is shrunk to the room (points) where it is wider."""
    said = re.findall(r"table of ([\d.]+)pt at ([\d.]+)", log)
    return [float(size) * min(1.0, room / float(width)) for width, size in said]


def check_set(folder, tables, smallest=SMALLEST):
    """Assert that papers with these tables compile, that nothing in them sticks out, and that all can be read."""
    for name, head in PAPERS.items():
        text = "\n".join([head, r"\usepackage{booktabs,graphicx}", r"\begin{document}", "Text."])
        told = [table.replace(SHRUNK, SAYS_ITS_SIZE + SHRUNK) for table in tables]
        text += "".join(f"\n{table}\n\\clearpage" for table in told) + "\n\\end{document}\n"
        (folder / "paper.tex").write_text(text, encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=HANG_SECONDS)
        log = (folder / "paper.log").read_text(encoding="latin-1")
        assert done.returncode == 0, f"{name}: {log[-3000:]}"
        assert (folder / "paper.pdf").exists()
        for sign in ("Overfull", "Missing character", "multiply defined"):
            assert sign not in log, f"{name}: {log[log.find(sign) :][:300]}"
        found = sizes(log, POINTS[name])
        assert len(found) == sum(table.count(SHRUNK) for table in tables)
        assert min(found) >= smallest, f"{name}: {found}"


def written_tables(space, uri, out):
    """Write the tables of a study and return those in LaTeX."""
    frames = {}
    for name, module in MODULES.items():
        load_frame = loader(module)
        if load_frame not in frames:
            frames[load_frame] = load_frame(space, uri)
        files.write_tables(module, name, frames[load_frame], out)
    return [path.read_text(encoding="utf-8") for path in sorted(out.glob("*.tex"))]


@pytest.mark.slow
def test_tables_of_a_study(tmp_path):
    synthetic.write_study(tmp_path, "small")
    check_set(tmp_path, written_tables("small", synthetic.tracking_uri(tmp_path), tmp_path / "out"))


def test_names_and_signs_of_all_kinds_and_tables_of_all_sizes(tmp_path):
    odd = "a_b {c} $x^2$ # ~ % \\input{x} & é 中 \N{ROCKET} ±→π≥… <|> [x] -- \N{NO-BREAK SPACE}*"
    table = pd.DataFrame({"method": [odd, "[x]", "*"], odd: [odd] * 3, "width": ["1", "2", "3"]})
    wide = table.assign(**{f"measure {number} [95 % CI] (n)": "+0.44 ± 0.10 (3)" for number in range(30)})
    long = pd.concat([table] * 40)
    tables = {"odd": table, "wide": wide, "long": long}
    written = [files.latex(each, caption=odd, label=name) for name, each in tables.items()]
    check_set(tmp_path, written, smallest=0)  # names of any length


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in VARIED else pytest.mark.exhaustive) for name in SPACES],
)
def test_tables_of_every_space(tmp_path, name):
    few = {axis: getattr(SPACES[name], axis)[:3] for axis in ("width", "sparsity", "rewind_epoch", "seeds")}
    space = dataclasses.replace(SPACES[name], rewind_epochs_of_width=(), **few)
    synthetic_spaces.write_space(tmp_path, space)
    assert len(load.runs(name, synthetic.tracking_uri(tmp_path)))
    check_set(tmp_path, written_tables(name, synthetic.tracking_uri(tmp_path), tmp_path / "out"))
