"""The tfds builder that records are written by; a data set of one's own is a subclass with a name and a licence."""

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_TEXT = tfds.features.Text
_FEATURES: dict[str, dict[str, Any]] = {
    "pairs": {
        "id": _TEXT, "source": _TEXT, "query": _TEXT, "response_1": _TEXT, "response_2": _TEXT, "label": np.int64,
    },
    "questions": {
        "id": _TEXT, "source": _TEXT, "query": _TEXT, "answer": _TEXT, "has_answer": np.bool_, "verifier": _TEXT,
    },
    "candidates": {
        "id": _TEXT, "source": _TEXT, "query": _TEXT, "responses": [_TEXT], "correct": [np.bool_], "answers": [_TEXT],
        "has_answers": [np.bool_],
    },
    "verdicts": {
        "key": _TEXT, "settings": _TEXT, "verdict": np.int64, "text": _TEXT, "tokens": np.int64,
        "finish_reason": _TEXT, "truncated_input": np.bool_, "forced": np.bool_, "probability": _TEXT,
        "has_asked": np.bool_, "texts": _TEXT, "vote": np.int64, "query": _TEXT, "shown": [_TEXT],
    },
}  # fmt: skip


class _OwnInfo(tfds.core.DatasetInfo):
    """What is known of a data set that is written here, and of which no server knows anything."""

    def initialize_from_bucket(self) -> None:
        """Nothing: tfds would leave an empty directory among the temporary files each time."""


class RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes rows of features (`prepared.to_features`) in their order, as ArrayRecord: no other format of tfds does
    without TensorFlow and keeps every row. One split, "train": which part of a data set it holds, its directory says.

    Subclasses set `DESCRIPTION`, `HOMEPAGE`, `CITATION` and `LICENCE`.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Records of rrm_jax."
    HOMEPAGE = CITATION = LICENCE = ""

    def __init__(self, rows: Iterable[dict[str, Any]] = (), *, kind: str, data_dir: Path):
        self._rows, self._kind = rows, kind
        super().__init__(file_format="array_record", data_dir=str(data_dir))

    def _info(self) -> tfds.core.DatasetInfo:
        return _OwnInfo(
            builder=self,
            features=tfds.features.FeaturesDict({name: _feature(of) for name, of in _FEATURES[self._kind].items()}),
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            license=self.LICENCE,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterable:
        yield from enumerate(self._rows)

    def write(self) -> int:
        """Writes everything; returns how many records tfds counted."""
        tfds.disable_progress_bar()  # the caller shows its own
        with contextlib.redirect_stdout(io.StringIO()):  # tfds speaks of downloads
            self.download_and_prepare()
        return self.info.splits["train"].num_examples


def _feature(of: Any) -> Any:
    if isinstance(of, list):
        return tfds.features.Sequence(_feature(of[0]))
    return of() if of is _TEXT else tfds.features.Scalar(of)
