"""The peer of `sampling.py`: `transformers`' generate on PyTorch, in an interpreter of its own.

    python benchmarks/transformers_generate.py

Says which version it is; then, for each job on standard input (a JSON object on a line), draws and answers with a JSON
object on a line: seconds, CPU-seconds, and the texts as token ids. A job: `directory` (a Hugging Face model directory,
whose weights it loads), `prompts` (equally long), `new`, `temperature` (0: greedy), `top_p`, `seed`.
"""

import json
import os
import sys
import time

import torch
import transformers


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print(f"transformers {transformers.__version__} (torch {torch.__version__})", file=answers, flush=True)
    models = {}
    for line in sys.stdin:
        job = json.loads(line)
        directory, new = job["directory"], job["new"]
        if directory not in models:
            models[directory] = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        how = {"do_sample": False}
        if job["temperature"]:
            how = {"do_sample": True, "temperature": job["temperature"], "top_p": job["top_p"], "top_k": 0}
        prompts = torch.tensor(job["prompts"])
        torch.manual_seed(job["seed"])
        start, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            drawn = models[directory].generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                pad_token_id=0,
                min_new_tokens=new,
                max_new_tokens=new,
                **how,
            )
        texts = drawn[:, prompts.shape[1] :].tolist()
        answer = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "texts": texts}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
