import json

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.studies.run import run_study, study_config
from tests.studies.conftest import write_rows


def test_a_study_of_runs(tmp_path):
    for name, last in (("one", 0.9), ("two", 0.5)):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text("steps: 2\n")
        write_rows(run / "metrics.jsonl", [
            {"kind": "eval", "step": 0, "accuracy": 0.5, "order_consistency": 0.4, "pairs": 100.0},
            {"kind": "train", "step": 1, "reward_mean": 0.1, "entropy": 2.0},
            {"kind": "train", "step": 2, "reward_mean": -0.2, "entropy": 1.0},
            {"kind": "eval", "step": 2, "accuracy": last, "order_consistency": 0.8, "pairs": 100.0},
        ])  # fmt: skip
    config = tmp_path / "c.yaml"
    runs = {name: str(tmp_path / name) for name in ("one", "two")}
    config.write_text(f"output: {tmp_path / 'out'}\nruns: {json.dumps(runs)}\n")
    text, *_ = run_study("dynamics", study_config("dynamics", str(config)), lambda *a, **k: None)
    curves = json.loads((tmp_path / "out" / "data.json").read_text())["found"]["curves"]
    accuracy = next(one for one in curves if one["run"] == "one" and one["metric"] == "accuracy")
    assert accuracy["steps"] == [0, 2]
    assert accuracy["values"] == [0.5, 0.9]
    assert accuracy["intervals"][1]["n"] == 100
    assert not any(one["metric"] == "invalid_rate" for one in curves)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| Reward")
    ]
    assert [row[1:] for row in rows] == [[name, "0.1", "0.1", "1", "-0.2", "2"] for name in ("one", "two")]
    with pytest.raises(RrmError, match=r"there is no file .*three/metrics.jsonl"):
        run_study(
            "dynamics",
            study_config("dynamics", str(config), [f"runs.three={tmp_path / 'three'}"]),
            lambda *a, **k: None,
        )
