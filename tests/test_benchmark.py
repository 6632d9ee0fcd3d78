"""The benchmark compares like with like; what it measures is nobody's pass or fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from study.benchmark import Comparison, main, one_group
from trainables.matching import activation_moments
from trainables.models import MODELS, build_model
from trainables.permutations import permutation_spec


@pytest.mark.parametrize("name", ["resnet8", "vgg11", "mlp"])
def test_both_ways_of_matching_collect_the_same_moments(name: str) -> None:
    options = {"image_size": 8} if "image_size" in MODELS[name].options else {}
    model_a, model_b = (build_model(name, width=0.25, **options) for _ in range(2))
    batches = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    spec = permutation_spec(model_a)
    together = activation_moments(model_a, model_b, spec, batches)
    assert len(together) == len(spec.groups)
    for group in spec.groups:
        alone = activation_moments(model_a, model_b, one_group(spec, group), batches)
        assert alone.keys() == {group}
        assert torch.equal(alone[group].correlation(), together[group].correlation())


def test_a_ratio_says_how_many_times_faster_ours_is() -> None:
    comparison = Comparison(name="a thing", ours=(1.0, 2.0, 4.0), other=(8.0, 8.0, 8.0))
    assert comparison.ratios == (8.0, 4.0, 2.0)
    assert "4.0x [2.0, 8.0]" in comparison.line()


def test_results_are_kept_with_the_machine_they_were_measured_on(tmp_path: Path) -> None:
    out = tmp_path / "new" / "benchmark.json"
    assert main(["matching", "--model=resnet8", "--width=0.25", "--images=4", "--repeats=2", f"--out={out}"]) == 0
    document = json.loads(out.read_text())
    assert document["machine"]["torch"] == torch.__version__
    (result,) = document["results"]
    assert len(result["ours"]) == len(result["other"]) == len(result["ratios"]) == 2


@pytest.mark.parametrize("wrong", ["--model=resnet21", "--width=0.3", "--images=0"])
def test_wrong_requests_are_refused(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([wrong, f"--out={tmp_path / 'x.json'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "x.json").exists()
