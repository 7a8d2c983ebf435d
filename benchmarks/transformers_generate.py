"""The peer of `sampling.py`: `transformers`' generate on PyTorch, in an interpreter of its own.

    python benchmarks/transformers_generate.py MODEL_DIR PROMPTS.json NEW_TOKENS TEMPERATURE TOP_P

Loads the model, says "ready", then for each line on standard input generates once for all prompts and prints the
seconds it took.
"""

import json
import sys
import time

import torch
import transformers


def main() -> None:
    directory, prompts, new, temperature, top_p = sys.argv[1:]
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with open(prompts, encoding="utf-8") as file:
        ids = torch.tensor(json.load(file))
    how = {"do_sample": float(temperature) > 0, "min_new_tokens": int(new), "max_new_tokens": int(new)}
    if how["do_sample"]:
        how |= {"temperature": float(temperature), "top_p": float(top_p), "top_k": 0}

    def generate() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **how)
        return time.perf_counter() - start

    generate()
    print(f"ready {torch.__version__} {transformers.__version__}", flush=True)
    for _ in sys.stdin:
        print(generate(), flush=True)


if __name__ == "__main__":
    main()
