"""Small files of the columns that data sets' cards give, and the way through an adapter."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rrm_jax.data.records import Pair, Question
from rrm_jax.data.snapshot import open_snapshot
from rrm_jax.data.sources.base import Source
from rrm_jax.data.sources.prepare import Preparation, Skipped

MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
VERL = {
    "data_source": pa.string(),
    "prompt": MESSAGES,
    "ability": pa.string(),
    "reward_model": pa.struct([("ground_truth", pa.string()), ("style", pa.string())]),
}
DIFFICULTY = pa.struct([(f"DeepSeek-R1-Distill-Qwen-{size}", pa.int64()) for size in ("1.5B", "32B", "7B")])
PUBLISHED = {
    "skywork-reward": (
        "data/train-00000-of-00001.parquet",
        {"chosen": MESSAGES, "rejected": MESSAGES, "source": pa.string()},
    ),
    "tulu3-preferences": (
        "data/train-00000-of-00001.parquet",
        {"prompt": pa.string(), "chosen": MESSAGES, "rejected": MESSAGES, "chosen_rating": pa.float64(),
         "rejected_rating": pa.float64(), "chosen_model": pa.string(), "rejected_model": pa.string(),
         "source": pa.string(), "id": pa.string()},
    ),
    "webinstruct-verified": (
        "data/train-00000-of-00001.parquet",
        dict.fromkeys(("id", "question", "answer", "answer_type", "category", "difficulty"), pa.string()),
    ),
    "skywork-or1": (
        "data/math-00000-of-00001.parquet",
        {**VERL, "extra_info": pa.struct([("index", pa.int64()), ("model_difficulty", DIFFICULTY)])},
    ),
    "big-math": (
        "data/train-00000-of-00001.parquet",
        {"problem": pa.string(), "answer": pa.string(), "source": pa.string(), "domain": pa.list_(pa.string()),
         "llama8b_solve_rate": pa.float64()},
    ),
    "dapo-math": ("data/dapo-math-17k.parquet", {**VERL, "extra_info": pa.struct([("index", pa.string())])}),
}  # fmt: skip
"""The file and the columns that the data sets' cards give."""
PUBLISHED["tulu3-prompts"] = PUBLISHED["tulu3-preferences"]


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"content": system, "role": "system"}]
    return first + [{"content": text, "role": ("user", "assistant")[at % 2]} for at, text in enumerate(contents)]


def publish(directory: Path, name: str, rows: list[dict]) -> Path:
    file, columns = PUBLISHED[name]
    path = directory / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), path)
    return directory / name


def prepare(source: Source, path: Path, split: str | None = None, **options):
    """(Records, tally, the rows that are listed as skipped)."""
    snapshot = open_snapshot(path, split, source.split)
    snapshot.check_columns(source.columns, source.describe())
    skipped: list[Skipped] = []
    preparation = Preparation(source, snapshot, skip=skipped.append, **options)
    records = list(preparation)
    return records, preparation.tally, skipped


def pair(query: str = "q", chosen: str = "good", rejected: str = "bad", source: str = "offsetbias") -> dict:
    return {"chosen": turns(query, chosen), "rejected": turns(query, rejected), "source": source}


def bare(record: Pair | Question) -> tuple:
    return tuple(value for name, value in dataclasses.asdict(record).items() if name != "id")


def tulu(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict:
    return {
        "prompt": prompt, "chosen": turns(prompt, chosen), "rejected": turns(prompt, rejected), "chosen_rating": None,
        "rejected_rating": 1.0, "chosen_model": "m", "rejected_model": "n", "source": "ai2/if", "id": "one id for all",
    }  # fmt: skip
