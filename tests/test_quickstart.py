"""What README.md says of the quickstart holds on the machine of the test, whatever its digits are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_study import python
from waiting import HANG_SECONDS

from analysis import cells, load
from analysis.gains import block
from trainables import schema
from trainables.host.databases import default_tracking_uri

SPACE = "digits_quickstart"


@pytest.mark.slow
def test_the_quickstart_finds_what_the_readme_claims(tmp_path: Path) -> None:
    with python("-m", "study.run", "--space", SPACE, cwd=str(tmp_path)) as process:
        out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, err
    assert re.search(r"^296 jobs run, 0 were published before", out, re.MULTILINE)
    assert out.index("first result: ") < out.index("296 jobs run"), "something to read while it runs"
    frame = load.runs(SPACE, default_tracking_uri(tmp_path / "outputs"))
    scored = cells.scores(frame)
    accuracy = scored.groupby(cells.ROW)[schema.TEST_ACCURACY].mean()
    assert accuracy["dense"] > accuracy["lth"] > accuracy["permuted"] > accuracy["naive"]
    gain = block(scored, cells.axes(frame), cells.PERMUTED, cells.NAIVE).gain()
    assert gain.n == 4
    assert gain.low > 0, "the interval of the mean gain leaves zero out"
    barrier = frame[frame["stage"] == schema.CONNECT].groupby(["width", "matcher"])[schema.ERROR_BARRIER].mean()
    for width in frame[schema.PARAM_WIDTH].dropna().unique():
        assert barrier[width, "activation"] < barrier[width, "identity"] / 2
