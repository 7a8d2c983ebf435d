"""The peer of `sampling.py`: google-tunix's sampler on JAX, in an interpreter of its own.

    python benchmarks/tunix_generate.py

Says which version it is; then, for each job on standard input (a JSON object on a line), draws and answers with a JSON
object on a line: seconds, CPU-seconds, and the texts as token ids. A job: `directory` (a Hugging Face model directory,
whose weights it loads), `prompts` (equally long, a power of two of tokens), `new`, `temperature` (0: greedy), `top_p`,
and `columns`, what the cache is allocated for. The first run of a job compiles.
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2 import model, params


class Ids:
    """Stands for a tokenizer: texts are token ids already, and no id that can be drawn pads or ends one."""

    def encode(self, text: list[int]) -> list[int]:
        return text

    def decode(self, ids: list[int]) -> str:
        return ""

    def bos_id(self) -> int:
        return -3

    def eos_id(self) -> int:
        return -2

    def pad_id(self) -> int:
        return -1


class IdSampler(Sampler):
    def tokenize(self, text: list[int]) -> np.ndarray:
        return np.asarray(text, np.int32)


def load(directory: str) -> tuple[model.Qwen2, dict]:
    hf = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    config = model.ModelConfig(
        num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        embed_dim=width,
        hidden_dim=hf["intermediate_size"],
        num_heads=heads,
        head_dim=hf.get("head_dim", width // heads),
        num_kv_heads=hf["num_key_value_heads"],
        rope_theta=hf["rope_theta"],
        norm_eps=hf["rms_norm_eps"],
        use_tied_embedding=hf["tie_word_embeddings"],
    )
    loaded = params.create_model_from_safe_tensors(directory, config, dtype=jnp.float32)
    return loaded, {"num_layers": config.num_layers, "num_kv_heads": config.num_kv_heads, "head_dim": config.head_dim}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print(f"tunix {metadata.version('google-tunix')}", file=answers, flush=True)
    loaded, samplers = {}, {}
    for line in sys.stdin:
        job = json.loads(line)
        directory, columns = job["directory"], job["columns"]
        if directory not in loaded:
            loaded[directory] = load(directory)
        if (directory, columns) not in samplers:
            decoder, shape = loaded[directory]
            samplers[directory, columns] = IdSampler(decoder, Ids(), CacheConfig(cache_size=columns, **shape))
        how = {"temperature": job["temperature"], "top_p": job["top_p"]} if job["temperature"] else {}
        start, cpu = time.perf_counter(), time.process_time()
        drawn = samplers[directory, columns](
            job["prompts"], job["new"], max_prompt_length=len(job["prompts"][0]), seed=job["seed"], **how
        )
        answer = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        answer["texts"] = [[int(token) for token in text] for text in drawn.tokens]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
