"""Runs around a learner that costs nothing: retention, stopping, traces, and what may change."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.checkpoints.store import read_meta
from rrm_jax.errors import RrmError
from rrm_jax.training.run import Run
from rrm_jax.training.stopping import StopSignals

from .stub_run import embedding, loop, settings, steps_of
from .world import make_base

pytestmark = pytest.mark.usefixtures("stub_learner")
ROOT = Path(__file__).parent.parent.parent


def test_the_last_and_the_best_checkpoints_stay(home, tmp_path):
    accuracy = [0.5, 0.6, 0.9, 0.9, 0.7, None, 0.8]
    config = settings(home, tmp_path / "run")
    loop(config, accuracy=accuracy)
    assert steps_of(config) == [2, 5, 6]  # 2 was the first to have 0.9
    for name, value in (("", 6), ("checkpoints/best", 2), ("checkpoints/5", 5)):
        path = tmp_path / "run" / name
        assert embedding(path) == value
        assert open_source(path).facts["step"] == value
    with pytest.raises(RrmError, match=r"no complete checkpoint of step 3; there are 2, 5, 6"):
        open_source(tmp_path / "run" / "checkpoints" / "3")


def test_a_judge_that_goes_on_with_another_prompt_is_told_of(home, tmp_path):
    first, said = tmp_path / "first", []
    loop(settings(home, first, steps=1), said=said)
    loop(settings(home, tmp_path / "same", steps=1, model__path=str(first)), said=said)
    assert not [line for line in said if "warning" in line]
    loop(settings(home, tmp_path / "other", steps=1, model__path=str(first), judge__template="default"), said=said)
    [warning] = [line for line in said if "warning" in line]
    assert "were trained with the judge template" in warning
    assert warning.endswith(f": judge.template={first / 'assets' / 'judge_template.toml'}")


def test_without_a_metric_or_an_evaluation_no_other_stays(home, tmp_path):
    off = settings(home, tmp_path / "off", checkpoint__best=None)
    loop(off, accuracy=[0, 0.9])
    assert steps_of(off) == [5, 6]
    with pytest.raises(RrmError, match=r"checkpoint\.best is null"):
        open_source(tmp_path / "off" / "checkpoints" / "best")
    never = settings(home, tmp_path / "never")
    loop(never)
    assert steps_of(never) == [5, 6]
    with pytest.raises(RrmError, match="has a held-out accuracy"):
        open_source(tmp_path / "never" / "checkpoints" / "best")


def test_a_metric_that_is_not_there_is_refused_at_the_first_evaluation(home, tmp_path):
    with pytest.raises(RrmError, match="'acuracy' is not a held-out metric; there are accuracy"):
        loop(settings(home, tmp_path / "run", checkpoint__best="acuracy"), accuracy=[0, 0.9])


def fail(run, step, at):
    if step == at:
        raise KeyboardInterrupt


def test_what_is_best_is_known_after_a_resume(home, tmp_path):
    config = settings(home, tmp_path / "run")
    accuracy = [0, 0.9, 0.5, 0.5, 0.5, 0.95, 0.6]
    with pytest.raises(KeyboardInterrupt):
        loop(config, accuracy=accuracy, during=lambda run, step: fail(run, step, 5))
    assert steps_of(config) == [1, 3, 4]
    run = loop(config, resume=True, accuracy=accuracy)
    assert steps_of(config) == [5, 6]
    assert run.meta == {"step": 4, "position": 40, "version": 4, "facts": run.meta["facts"]}
    assert [row["loss"] for row in read_metrics(config.output, "train")] == [1, 2, 3, 4, 5, 6]


def test_rows_of_steps_that_are_made_again_are_dropped(home, tmp_path):
    config = settings(home, tmp_path / "run", checkpoint__every=3)
    with pytest.raises(KeyboardInterrupt):
        loop(config, accuracy=[0.1] * 7, during=lambda run, step: fail(run, step, 6))
    with open(Path(config.output) / "traces.jsonl", "ab") as file:
        file.write(b'{"step": 5, "torn')
    with Run(config, True, print) as run:
        assert run.first_step == 4
        assert [run.metrics.has("eval", step) for step in (2, 3, 4)] == [True, True, False]
    traces = (Path(config.output) / "traces.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in traces] == [1, 2, 3]
    loop(config, resume=True)
    assert [row["step"] for row in read_metrics(config.output, "train")] == [1, 2, 3, 4, 5, 6]


HOSTILE = '\u2028\r\n\x00\ud800</script>\\"' + "\U0001f600"


def test_traces_hold_any_text(home, tmp_path):
    config = settings(home, tmp_path / "run", steps=1)
    with Run(config, False, print) as run:
        run.write_traces(1, [{"prompt": HOSTILE}, {"prompt": "plain"}])
    rows = [json.loads(line) for line in (tmp_path / "run" / "traces.jsonl").read_bytes().split(b"\n")[:-1]]
    assert [row["prompt"] for row in rows] == [HOSTILE, "plain"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_phases_saves_the_last_finished_step(home, tmp_path, number):
    """Every third step is saved: the signal comes while step 5 is sampled, and step 4 is saved then."""
    config, said = settings(home, tmp_path / "run", checkpoint__every=3), []
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def during(run, step):
        if step == 5:
            os.kill(os.getpid(), number)
            assert not run.stopping
            run.check_stop()
            pytest.fail("the step went on")

    run = loop(config, during=during, said=said)
    assert run.stopping
    assert steps_of(config) == [3, 4]
    assert embedding(config.output) == 4
    assert f"stopped by {signal.Signals(number).name} after step 4, which is saved" in said[-1]
    assert "--resume" in said[-1]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    run = loop(config, resume=True)
    assert run.first_step == 5
    assert run.meta["position"] == 40
    assert steps_of(config) == [4, 6]


def test_a_signal_within_the_update_waits_for_the_step(home, tmp_path):
    config, said = settings(home, tmp_path / "run", checkpoint__every=100), []
    loop(config, during=lambda run, step: step == 2 and os.kill(os.getpid(), signal.SIGTERM), said=said)
    assert steps_of(config) == [2]
    assert "after step 2, which is saved" in said[-1]


def test_a_signal_before_the_first_step_saves_nothing_and_the_run_begins_again(home, tmp_path):
    config, said = settings(home, tmp_path / "run"), []

    def during(run, step):
        os.kill(os.getpid(), signal.SIGTERM)
        run.check_stop()

    loop(config, during=during, said=said)
    assert steps_of(config) == []
    assert "before a step was finished" in said[-1]
    assert loop(config, resume=True).first_step == 1


def test_an_asynchronous_run_is_saved_with_its_rollouts_or_not_at_all(home, tmp_path):
    ahead = {"rollout__asynchronous": True, "grpo__importance_cap": 2.0}
    config, along = settings(home, tmp_path / "run", checkpoint__every=2, **ahead), []
    with Run(config, False, print) as run:
        for step in range(1, 6):
            run.check_stop()
            run.learner.update()
            run.finish_step(step, before_saving=lambda step=step: along.append(step))
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                run.check_stop()  # step 3 is not saved, and its rollouts may be gone
    assert along == steps_of(config) == [2, 4]


def test_a_loop_that_only_finishes_its_steps_stops_as_well(home, tmp_path):
    config = settings(home, tmp_path / "run", checkpoint__every=100)
    with Run(config, False, print) as run:
        for step in range(1, 7):
            run.learner.update()
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            run.finish_step(step)
    assert steps_of(config) == [2]


def test_a_signal_in_the_last_step_changes_nothing(home, tmp_path):
    config, said = settings(home, tmp_path / "run", checkpoint__every=100), []
    loop(config, during=lambda run, step: step == 6 and os.kill(os.getpid(), signal.SIGTERM), said=said)
    assert steps_of(config) == [6]
    assert not any("stopped" in line for line in said)


@pytest.mark.thorough
def test_all_processes_stop_after_the_same_step_when_one_is_told_to(home, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.training.two_processes"]
    both = [
        subprocess.Popen(
            [*command, str(rank), port, str(home), str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[0].splitlines()[-1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    after = "after step 3, which is saved; go on with the same command and --resume"
    assert said == [f"stopped by {by} {after}" for by in ("a signal to another process", "SIGTERM")]
    config = settings(home, tmp_path / "run")
    assert steps_of(config) == [2, 3]
    assert embedding(config.output) == 3
    assert [row["step"] for row in read_metrics(config.output, "train")] == [1, 2, 3]  # written once
    assert loop(config, resume=True).first_step == 4


def test_a_second_interrupt_is_one():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert (signals.noted, signals.agreed, signals.agree(), signals.agreed) == ("SIGINT", False, True, True)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is before


def test_what_may_change_is_recorded_and_what_may_not_is_refused(home, tmp_path):
    config = settings(home, tmp_path / "run", steps=2, optimizer__schedule="cosine")
    loop(config)
    refuse = {"seed": 1, "rollout__temperature": 0.9, "grpo__kl_coef": 0.5, "eval__temperature": 1.0}
    for key, value in refuse.items():
        other = settings(home, tmp_path / "run", steps=2, optimizer__schedule="cosine", **{key: value})
        with pytest.raises(RrmError, match=rf"{key.replace('__', '.')} changed from .* to {value}"):
            loop(other, resume=True)
    allow = {
        "steps": 4, "pack__row_tokens": 64, "mesh__data": 2, "checkpoint__keep": 9, "eval__every": 3,
        "log__traces": 0, "rollout__batch_size": 8, "model__remat": "dots", "optimizer__learning_rate": 1e-5,
    }  # fmt: skip
    said, config = [], settings(home, tmp_path / "run", optimizer__schedule="cosine", **allow)
    loop(config, resume=True, said=said)
    assert "resuming with steps 4, where the learning rate's decay now ends; it was 2" in said
    assert steps_of(config) == [1, 2, 3, 4]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == config.model_dump(mode="json")
    (resumed,) = json.loads((tmp_path / "run" / "run.json").read_text())["resumed"]
    assert resumed["after_step"] == 2
    assert resumed["changed"]["steps"] == [2, 4]
    assert set(resumed["changed"]) == {key.replace("__", ".") for key in allow}
    assert resumed["versions"]["jax"] == jax.__version__
    with pytest.raises(RrmError, match="has reached step 4; steps=3 is below that"):
        loop(settings(home, tmp_path / "run", optimizer__schedule="cosine", **allow | {"steps": 3}), resume=True)


def test_data_may_move_but_not_change(home, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_bytes((home / "pairs.jsonl").read_bytes())
    loop(settings(home, tmp_path / "run", steps=1, data__train=str(data)))
    moved = settings(home, tmp_path / "run", steps=2)
    assert loop(moved, resume=True).first_step == 2
    data.write_bytes(data.read_bytes() + b"\n")
    with pytest.raises(RrmError, match=r"pairs\.jsonl is not the file that the run began with"):
        loop(settings(home, tmp_path / "run", steps=3, data__train=str(data)), resume=True)
    with pytest.raises(RrmError, match=r"data\.eval changed from .* to None"):
        loop(settings(home, tmp_path / "run", steps=3, data__eval=None), resume=True)


def test_another_model_is_refused(home, tmp_path):
    loop(settings(home, tmp_path / "run", steps=1))
    make_base(tmp_path / "other")
    with pytest.raises(RrmError, match=r"is not the model that .* began with"):
        loop(settings(home, tmp_path / "run", steps=2, model__path=str(tmp_path / "other")), resume=True)


def test_checkpoints_say_what_they_are_of(home, tmp_path):
    config = settings(home, tmp_path / "run", steps=1)
    run = loop(config)
    assert read_meta(tmp_path / "run" / "checkpoints" / "1")["facts"] == {
        "judge_template_sha256": run.template.sha256,
        "judge_thinking": True,
        "judge_max_new_tokens": config.rollout.max_new_tokens,
        "base_fingerprint": "base of " + config.model.path,
    }
    assert np.isfinite(embedding(config.output))


def test_a_prompt_that_was_edited_is_not_taken_over(home, tmp_path):
    template = tmp_path / "template.toml"
    template.write_bytes((home / "template.toml").read_bytes())
    loop(settings(home, tmp_path / "run", steps=1, judge__template=str(template)))
    moved = settings(home, tmp_path / "run", steps=2)
    assert loop(moved, resume=True).first_step == 2
    text = template.read_text(encoding="utf-8")
    template.write_text(text.replace("{query}", "Q: {query}"), encoding="utf-8")
    with pytest.raises(RrmError, match=r"with another prompt: judge\.template=.*; give judge\.template=.*assets"):
        loop(settings(home, tmp_path / "run", steps=3, judge__template=str(template)), resume=True)


def test_a_run_that_an_earlier_version_began_has_the_defaults_of_newer_settings(home, tmp_path):
    loop(settings(home, tmp_path / "run", steps=1))
    path = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    del tree["grpo"]["importance_cap"], tree["optimizer"]["stop_norm"]
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert loop(settings(home, tmp_path / "run", steps=2), resume=True).first_step == 2


def test_checkpoints_of_nobody_knows_what_are_not_gone_on_from(home, tmp_path):
    loop(settings(home, tmp_path / "run", steps=1))
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(RrmError, match=r"holds checkpoints, but no config\.yaml"):
        loop(settings(home, tmp_path / "run", steps=2))


def test_a_prompt_has_the_room_that_the_answer_leaves(home, tmp_path):
    """The base has 128 positions."""
    said = []
    run = loop(settings(home, tmp_path / "run", steps=1, rollout__max_new_tokens=28), said=said)
    assert run.max_prompt_tokens == 100
    assert "the model has 128 positions: prompts are cut to 100 tokens, not 4096, to leave 28 for the answer" in said
    run = loop(settings(home, tmp_path / "less", steps=1, judge__max_prompt_tokens=64), said=said)
    assert run.max_prompt_tokens == 64
    with pytest.raises(RrmError, match=r"rollout\.max_new_tokens=128 leaves no room for a prompt"):
        loop(settings(home, tmp_path / "none", steps=1, rollout__max_new_tokens=128))
    assert not (tmp_path / "none").exists()
