"""The studies' configurations that come with the package: all load, and each names an output of its own."""

from pathlib import Path

import pytest

from rrm_jax.studies.run import STUDIES, study_config

CONFIGS = Path(__file__).parents[2] / "configs" / "studies"
PATHS = sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_is_a_study_with_an_output_of_its_own(path: Path):
    assert study_config(path.stem, str(path)).output == f"runs/studies/{path.parent.name}/{path.stem}"
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("scale", ["tiny", "rrm-7b", "rrm-32b"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_every_scale(name: str, scale: str):
    assert study_config(name, scale) == study_config(name, str(CONFIGS / scale / f"{name}.yaml"))
