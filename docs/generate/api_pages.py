"""The reference of the Python modules that others build on: a page a room, from the docstrings."""

import functools

FOLDER = "reference/api"
ROOMS = {
    "rrm_jax": ("What those need who only use a judge; also at the top, as `rrm_jax.open_judge`, `rank` and `Pair`.",
                ["api"]),
    "judging": ("A judge, its votes and its prompt.",
                ["judging.judge", "judging.template", "judging.prompt", "judging.verdict", "judging.store"]),
    "ranking": ("Strategies, ratings and stop rules, for whoever can compare i with j.",
                ["ranking.protocol", "ranking.entry", "ranking.tournament", "ranking.strategies", "ranking.adaptive",
                 "ranking.rating", "ranking.elo", "ranking.bradley_terry", "ranking.stopping", "ranking.intransitivity",
                 "ranking.simulator", "ranking.replay"]),
    "evaluation": ("Where judging meets ranking, rewards by tournament, benchmarks and their intervals.",
                   ["evaluation.tournament", "evaluation.tournament_rewards", "evaluation.benchmarks",
                    "evaluation.evaluate", "evaluation.statistics"]),
    "rl": ("Rewards, advantages, log-probabilities and losses: pure functions.",
           ["rl.rewards", "rl.advantages", "rl.logprobs", "rl.losses"]),
    "training": ("A run, and what it can be told; configuration.md has the keys as tables.",
                 ["training.config", "training.policy_config", "training.train", "training.grpo", "training.dpo",
                  "training.supervised"]),
    "sampling": ("What every generator takes and gives, the sampler, and servers behind the same protocol.",
                 ["sampling.protocol", "sampling.sampler", "sampling.opening", "sampling.remote"]),
    "data": ("Rows, files and tokenizers.",
             ["data.records", "data.jsonl", "data.pairs", "data.stream", "data.tokenizer", "data.verifiers",
              "data.answers"]),
    "checkpoints": ("Hugging Face's layout, Orbax checkpoints, and the state of training runs.",
                    ["checkpoints.load", "checkpoints.convert", "checkpoints.hf", "checkpoints.store",
                     "checkpoints.training_state", "checkpoints.run_files"]),
    "models": ("The decoder.",
               ["models.config", "models.presets", "models.decoder", "models.attention", "models.cache"]),
    "parallel": ("Meshes, and processes that are one job.", ["parallel.mesh", "parallel.distributed"]),
    "serving": ("The client of `rrm serve` for other trainers.", ["serving.client"]),
    "errors": ("What wrong input raises.", ["errors", "config"]),
}  # fmt: skip


@functools.cache
def pages() -> dict[str, str]:
    """Markdown by its path below docs/."""
    index = ["# The Python modules", "", "By room; how they fit together is in "
             "[How it is laid out](../../architecture.md).", "", "| room | |", "|---|---|"]  # fmt: skip
    index += [f"| [`{room}`]({room}.md) | {about} |" for room, (about, _) in ROOMS.items()]
    made = {f"{FOLDER}/index.md": "\n".join(index) + "\n"}
    for room, (about, modules) in ROOMS.items():
        parts = [f"# {room}", about, *(f"::: rrm_jax.{module}" for module in modules)]
        made[f"{FOLDER}/{room}.md"] = "\n\n".join(parts) + "\n"
    return made
