"""Tables and figures as files."""

import re
import types
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis.drawing import files, style
from analysis.drawing.signs import ALPHA, DASH, MINUS, TIMES

TABLE = pd.DataFrame(
    {
        "method": ["Layerwise random", "Permuted (t=5)"],
        "width": [f"{TIMES}0.5", f"{TIMES}16"],
        "stream_taps & more": ["a_b {c}", r"10 % \ #3 ~ $"],
        f"Permuted {MINUS} naive": ["+0.44 ± 0.10 (3)", DASH],
    }
)


def body(text):
    """Return the lines between the rules of a LaTeX table."""
    return text.split(r"\midrule")[-1].split(r"\bottomrule")[0].strip().splitlines()


def parts(table, label="x"):
    """Return the floats of a LaTeX table."""
    text = files.latex(table, caption="c", label=label)
    return re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}\n", text, re.DOTALL)


def test_latex_is_a_table_of_booktabs():
    text = files.latex(TABLE, caption="50 % of A_i", label="x")
    assert text.startswith("\\begin{table*}")
    assert text.endswith("\\end{table*}\n")
    assert r"\caption{50~\% of A\_i}\label{tab:x}" in text
    assert r"\begin{tabular}{@{}lrrr@{}}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert len(body(text)) == len(TABLE)
    assert all(line.endswith(r" \\") for line in body(text))


def test_latex_escapes_what_it_reserves():
    first, second = body(files.latex(TABLE, caption="", label="x"))
    assert first == r"Layerwise random & $\times$0.5 & a\_b \{c\} & +0.44\,$\pm$\,0.10 (3) \\"
    assert second == r"Permuted (t=5) & $\times$16 & 10~\% \textbackslash{} \#3 \textasciitilde{} \$ & -- \\"
    greek = files.latex(pd.DataFrame({"x": [f"{ALPHA}, π, A→B"]}), caption="", label="x")
    assert body(greek) == [r"$\alpha$, $\pi$, A$\rightarrow$B \\"]
    assert greek.isascii()


def test_letters_that_latex_lacks_become_their_code_points():
    assert body(files.latex(pd.DataFrame({"x": ["naïve 中"]}), caption="", label="x")) == [r"naïve U+4E2D \\"]


def test_the_number_of_runs_of_a_whole_column_stands_in_its_heading_in_latex():
    table = pd.DataFrame(
        {
            "width": ["1 (2)", "4 (2)", "8 (2)"],
            "Dense": ["90.00 ± 0.10 (3)", "91.00 ± 0.20 (3)", ""],
            "Naive": ["80.00 (1)", "81.00 ± 0.20 (3)", "82.00 ± 0.20 (3)"],
            "Gain [95 % CI] (n)": ["+0.44 [+0.10, +0.78] (12)"] * 3,
        }
    )
    text = files.latex(table, caption="c (number of runs).", label="x")
    assert r"\caption{c (number of runs). n in a heading: that of the whole column.}" in text
    assert r"Dense\\{}(n~=~3)" in text
    assert r"Gain [95~\%~CI]\\{}(n~=~12)" in text
    assert body(text)[1] == r"4 (2) & 91.00\,$\pm$\,0.20 & 81.00\,$\pm$\,0.20 (3) & +0.44 [+0.10, +0.78] \\"
    assert body(text)[2] == r"8 (2) &  & 82.00\,$\pm$\,0.20 (3) & +0.44 [+0.10, +0.78] \\"


def test_a_long_heading_is_broken_to_the_width_of_its_column():
    text = files.latex(pd.DataFrame({"a long heading & more": ["0.123456"]}), caption="", label="x")
    assert r"\begin{tabular}[b]{@{}r@{}}a long\\{}heading\\{}\& more\end{tabular} \\" in text


def test_a_long_latex_table_is_several_floats():
    long = pd.concat([TABLE] * files.MOST_LINES, ignore_index=True)
    texts = parts(long)
    assert [line for text in texts for line in body(text)] == body(parts(TABLE)[0]) * files.MOST_LINES
    assert max(len(body(text)) for text in texts) == files.MOST_LINES
    assert [re.findall(r"\\caption\{(.*?)\}\\label\{(.*?)\}", text) for text in texts] == [
        [("c Part 1 of 2.", "tab:x")],
        [("c Part 2 of 2.", "tab:x-2")],
    ]


def test_a_wide_latex_table_is_several_that_say_what_their_lines_are_about():
    wide = TABLE.assign(**{f"measure {number}": ["+0.44 ± 0.10 (3)"] * 2 for number in range(15)})
    texts = parts(wide)
    assert len(texts) == 3
    assert all(r"\toprule" "\nmethod & width & " in text for text in texts)
    assert re.findall(r"measure \d+", "".join(texts)) == [f"measure {number}" for number in range(15)]


def module(**parts):
    return types.SimpleNamespace(CAPTION="What it shows.", table=lambda frame: frame, **parts)


def test_numbers_are_written_and_forms_only_where_there_are_any(tmp_path):
    bare = files.write_tables(module(), "bare", TABLE, tmp_path)
    empty = files.write_tables(module(formatted=lambda frame: pd.DataFrame()), "empty", TABLE, tmp_path)
    assert [path.name for path in bare + empty] == ["bare.csv", "empty.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(bare[0]), TABLE)


def test_every_form_is_in_both_kinds_of_file(tmp_path):
    both = module(
        formatted=lambda frame: frame.head(1), controls=lambda frame: frame.tail(1), MORE={"controls": "More."}
    )
    paths = {path.suffix: path.read_text(encoding="utf-8") for path in files.write_tables(both, "t", TABLE, tmp_path)}
    assert set(paths) == {".csv", ".md", ".tex"}
    for text in (paths[".md"], paths[".tex"]):
        assert text.index("Layerwise random") < text.index("Permuted (t=5)")
        assert text.index("What it shows.") < text.index("More.")
    assert re.findall(r"\\label\{(.*?)\}", paths[".tex"]) == ["tab:t", "tab:t-controls"]


@pytest.fixture
def figure():
    drawn, panels = style.panels(1, 1)
    numbers = pd.DataFrame({"mean": [1.0, 2.0], "std": [0.1, 0.2]})
    style.errorbars(panels[0][0], [0, 1], numbers, style.look("permuted"))
    panels[0][0].set_xlabel("Rewind epoch")
    return drawn


def test_a_figure_is_written_in_three_formats(figure, tmp_path):
    paths = files.write_figure(lambda: figure, "rewind", tmp_path)
    starts = {path.name: path.read_bytes()[:4] for path in paths}
    assert starts == {"rewind.png": b"\x89PNG", "rewind.svg": b"<svg", "rewind.pdf": b"%PDF"}
    drawing = ElementTree.parse(tmp_path / "rewind.svg").getroot()
    texts = ["".join(text.itertext()) for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "Rewind epoch" in texts  # as text, which can be searched and edited


def test_a_figure_written_twice_is_the_same_file(figure, tmp_path):
    once = [path.read_bytes() for path in files.write_figure(lambda: figure, "rewind", tmp_path / "before")]
    again = [path.read_bytes() for path in files.write_figure(lambda: figure, "rewind", tmp_path)]
    assert once == again


def test_on_a_page_a_figure_takes_the_page_s_colours(figure):
    drawing = style.svg(figure, "fig-x")
    assert style.INK in drawing
    assert "background" in drawing
    shown = style.on_page(drawing)
    assert style.INK not in shown
    assert "background" not in shown
    assert shown.count("currentColor") >= drawing.count(style.INK)
