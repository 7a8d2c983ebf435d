"""The judge that rewards a policy: its weights where rollouts are drawn, in turn with the policy's, or at a server."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE, read_json
from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.template import as_trained, check_chat, check_template
from rrm_jax.parallel.offload import to_device, to_host
from rrm_jax.sampling.opening import sampler_of
from rrm_jax.sampling.protocol import Decoding, Generator
from rrm_jax.sampling.remote import RemoteGenerator
from rrm_jax.sampling.sampler import position_limit, room_for_prompt
from rrm_jax.training.policy_config import TournamentJudgeConfig
from rrm_jax.training.run import Report, Run

JUDGE = "judge.json"


class PolicyJudge:
    """`with turn() as judge`: its weights are where sampling reads them inside, and wait as `idle` says outside."""

    def __init__(self, run: Run, settings: TournamentJudgeConfig, report: Report):
        source = open_source(settings.model)
        for note in source.notes:
            report(note)
        own = source.assets / JUDGE_TEMPLATE
        template, thinking = as_trained(own, source.facts, settings.template, settings.thinking)
        if warning := check_template(template, source.facts, [str(source.path)], thinking):
            report(f"warning: {warning}")
        given = f"policy.judge.max_new_tokens={settings.max_new_tokens}"
        room = room_for_prompt(position_limit(source.config), settings.max_new_tokens, given)
        tokenizer = Tokenizer.load(source.assets)
        identity = settings.backend_model or f"{source.fingerprint()} in {run.config.model.compute_dtype}"
        _keep_same(run, {"model": identity, "template": template.sha256, "prefix": template.prefix(thinking)})
        decoding = Decoding(settings.temperature, max_new_tokens=settings.max_new_tokens)
        self._weights: _Weights | None = None
        generator: Generator
        if settings.backend is None:
            self._weights = _Weights(run, settings)
            generator = self._weights.sampler
        else:
            remote = RemoteGenerator(
                settings.backend,
                settings.backend_model or "",
                tokenizer,
                api=settings.backend_api,
                concurrency=settings.concurrency,
            )
            remote.check(decoding)
            if settings.backend_api == "chat" and (warning := check_chat(tokenizer, template.prefix(thinking))):
                report(f"warning: {warning} (policy.judge.backend_api=completions)")
            generator = remote
        self._judge = Judge(
            generator,
            tokenizer,
            template,
            decoding,
            seed=run.config.seed,
            votes=settings.votes,
            order=settings.order,
            thinking=thinking,
            max_prompt_tokens=min(settings.max_prompt_tokens, room),
            model=identity,
        )

    @property
    def remote(self) -> bool:
        """Whether it is asked at a server."""
        return self._weights is None

    @contextlib.contextmanager
    def turn(self) -> Iterator[Judge]:
        """The judge, to be asked inside the `with` alone. Not to be entered twice."""
        if self._weights is None:
            yield self._judge
            return
        with self._weights.in_use():
            yield self._judge


def _keep_same(run: Run, asked: dict[str, str]) -> None:
    """Writes who judges and how it is asked to RUN/judge.json; RrmError where the run began with another."""
    path = run.directory / JUDGE

    def begin() -> None:  # whether it is there, the first process says for all: the others might already see it
        if not path.exists():
            write_whole(path, json.dumps(asked, indent=2) + "\n")

    run.on_one_process(begin)
    began = read_json(path)
    if different := [name for name in asked if began.get(name) != asked[name]]:
        raise RrmError(
            f"cannot resume {run.directory} with another judge: not the same are its {', '.join(different)} ({path}); "
            "put that back, or train anew with another output="
        )


class _Weights:
    """A judge's weights on the mesh of the rollouts."""

    def __init__(self, run: Run, settings: TournamentJudgeConfig):
        mesh, dtype = run.learner.rollout_mesh, jnp.dtype(run.config.model.compute_dtype)
        # On one device there is nothing to split: what waited there would be a second copy.
        self._idle = "ready" if settings.idle == "sharded" and mesh.size == 1 else settings.idle
        loaded = load_model(settings.model, mesh=mesh, dtype=dtype, stacked=True)
        self.sampler = sampler_of(loaded, mesh, dtype, settings.batch_size)
        if self._idle == "ready":
            return
        self.sampler.release()
        self._at: Any = jax.tree.map(lambda x: x.sharding, loaded.params)
        self._waiting = to_host(loaded.params) if self._idle == "host" else loaded.params

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        if self._idle == "ready":
            yield
            return
        if self._idle == "host":
            here = to_device(self._waiting, self._at)
            self.sampler.update(here)
            self._waiting = to_host(here)
            del here
        else:
            self.sampler.update(self._waiting)
        try:
            yield
        finally:
            self.sampler.release()
