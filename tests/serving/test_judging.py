"""Verdicts, rankings and rewards over HTTP: what the judge, the tournament and the reward function give offline."""

import dataclasses
import json
import math

import pytest

from rrm_jax.data.records import Candidates, Pair
from rrm_jax.evaluation.tournament import comparer, rank
from rrm_jax.evaluation.tournament_rewards import tournament_rewards
from rrm_jax.judging.judge import content_digest
from rrm_jax.judging.store import digest
from rrm_jax.serving import client
from rrm_jax.serving.engine import Engine
from rrm_jax.serving.gathering import question_of, response_of
from rrm_jax.serving.jobs import SharedLog
from tests.serving.common import NAME, PAIR, World, events, live, post

pytestmark = pytest.mark.usefixtures("quick_compiles")
RESPONSES = ["2", "3", "it is 2", "no idea", "2.0"]


def offline_judge(home: World, **how):
    return home.judge(home.sampler(), **how)


def test_a_verdict_is_the_offline_judges_row(home, url):
    answer = post(url, "/judge", PAIR | {"votes": 3, "seed": 5, "order": "both"}).json()
    pair = Pair("", PAIR["query"], PAIR["response_1"], PAIR["response_2"])
    pair = dataclasses.replace(pair, id=content_digest(pair))
    (judgment,) = offline_judge(home, votes=3, seed=5, order="both").judge([pair])
    expected = json.loads(json.dumps(judgment.to_row()))
    for vote, wanted in zip(answer["votes"], expected["votes"], strict=True):
        assert vote.pop("probability") == pytest.approx(wanted.pop("probability"), abs=1e-5)
    assert answer.pop("probability") == pytest.approx(expected.pop("probability"), abs=1e-5)
    assert answer == expected


def test_the_order_belongs_to_the_id(home, url):
    def shown(name: str | None) -> list[str]:
        named = {} if name is None else {"id": name}
        return [vote["order"] for vote in post(url, "/judge", PAIR | named | {"votes": 12}).json()["votes"]]

    assert shown(None) == shown(None)
    assert len({tuple(shown(name)) for name in ("a", "b", None)}) == 3


def test_a_streamed_verdict_shows_its_votes_as_they_are_drawn(url):
    body = PAIR | {"votes": 2, "seed": 5, "order": "both"}
    told = [(name, json.loads(data)) for name, data in events(post(url, "/judge", body | {"stream": True}))]
    assert [name for name, _ in told[-1:]] == ["verdict"]
    verdict = told[-1][1]
    assert verdict == post(url, "/judge", body).json()
    texts: dict[int, str] = {}
    for name, data in told[:-1]:
        assert name == "tokens"
        texts[data["sample"]] = texts.get(data["sample"], "") + data["text"]
    assert sorted(texts.values()) == sorted(vote["text"] for vote in verdict["votes"])


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", ["knockout", "round-robin", "swiss:rounds=2"])
def test_a_ranking_is_the_offline_one(home, url, strategy):
    body = {"query": PAIR["query"], "responses": RESPONSES, "id": "query", "strategy": strategy, "seed": 2, "votes": 2}
    answer = post(url, "/rank", body).json()
    expected = rank(offline_judge(home, votes=2, seed=2), PAIR["query"], RESPONSES, strategy, seed=2)
    assert answer["ranking"] == list(expected.ranking)
    assert answer["best"] == expected.best
    assert answer["ratings"] == pytest.approx([r if math.isfinite(r) else None for r in expected.ratings], abs=1e-3)
    assert answer["comparisons"] == expected.comparisons == len(answer["matches"])
    assert {match["round"] for match in answer["matches"]} == {
        "knockout": {1, 2, 3}, "round-robin": {1}, "swiss:rounds=2": {1, 2},
    }[strategy]  # fmt: skip


def test_a_streamed_ranking_tells_every_match(url):
    body = {"query": PAIR["query"], "responses": RESPONSES, "strategy": "knockout", "seed": 2}
    told = [(name, json.loads(data)) for name, data in events(post(url, "/rank", body | {"stream": True}))]
    assert told[0] == ("started", {"id": told[-1][1]["id"], "candidates": 5, "strategy": "knockout"})
    assert told[-1] == ("ranking", post(url, "/rank", body).json())
    met = {(d["i"], d["j"]): d["winner"] for name, d in told if name == "match"}
    turned = {1: 2, 2: 1, None: None}
    expected = {
        (min(m["i"], m["j"]), max(m["i"], m["j"])): m["winner"] if m["i"] < m["j"] else turned[m["winner"]]
        for m in told[-1][1]["matches"]
    }
    assert met == expected
    assert {(d["i"], d["j"]) for name, d in told if name == "tokens"} == set(met)


def test_equal_answers_are_not_compared(url):
    body = {"query": "q", "responses": RESPONSES, "answers": ["2", "3", "2", None, "2"]}
    answer = post(url, "/rank", body).json()
    assert answer["spared"] == 3 == sum(not match["judged"] for match in answer["matches"])


@pytest.mark.thorough
def test_rewards_are_those_of_the_offline_tournament(home, url):
    groups = [
        {"query": "1 + 1?", "responses": [f"x</think>{text}" for text in RESPONSES], "seed": 3},
        {"query": "2 + 2?", "responses": ["no end", "a</think>4"], "seed": 3, "votes": 2},
    ]
    answers = post(url, "/compare", groups).json()
    for group, answer in zip(groups, answers, strict=True):
        row = Candidates(
            digest([group["query"], *sorted(group["responses"])]), group["query"], tuple(group["responses"])
        )
        (expected,) = tournament_rewards(
            offline_judge(home, seed=3, votes=group.get("votes", 1)), [row], strategy="random:opponents=4", seed=3
        )
        assert answer["rewards"] == pytest.approx(expected.rewards)
        assert answer["comparisons"] == expected.comparisons
        assert sum(answer["rewards"]) == pytest.approx(0.5 * len(group["responses"]))
        assert post(url, "/compare", group).json() == answer
    assert len(answers[0]["matches"]) == 20  # each of five meets the other four
    turned = groups[0] | {"responses": groups[0]["responses"][::-1]}
    assert [answer["rewards"] for answer in post(url, "/compare", [turned, groups[0], turned]).json()] == [
        answers[0]["rewards"][::-1], answers[0]["rewards"], answers[0]["rewards"][::-1],
    ]  # fmt: skip


def test_the_clients_reward_functions_have_trls_and_verls_shapes(url):
    prompts = ["q1"] * 3 + ["q2"] * 3
    completions = [f"</think>{text}" for text in "abcabc"]
    trl = client.trl_reward(url, seed=1)
    rewards = trl(
        prompts=prompts, completions=completions, completion_ids=[[1]] * 6, trainer_state=None, answer=[1] * 6
    )
    assert len(rewards) == 6
    assert all(isinstance(reward, float) for reward in rewards)
    turns = [[{"role": "system", "content": "s"}, {"role": "user", "content": prompt}] for prompt in prompts]
    spoken = [[{"role": "assistant", "content": text}] for text in completions]
    assert trl(prompts=turns, completions=spoken) == rewards
    shuffled = [0, 3, 1, 4, 2, 5]  # a batch need not be in the order of its groups
    again = trl(prompts=[prompts[at] for at in shuffled], completions=[completions[at] for at in shuffled])
    assert again == [rewards[at] for at in shuffled]
    verl = client.verl_compute_score(url, seed=1)
    scores = verl(
        data_sources=["d"] * 6, solution_strs=completions, ground_truths=[None] * 6,
        extra_infos=[{"question": prompt} for prompt in prompts],
    )  # fmt: skip
    assert [score["score"] for score in scores] == rewards


def test_the_client_says_what_the_server_said(url):
    with pytest.raises(client.ServerError, match=r"400.*strategy 'best' is not one of"):
        client.Client(url).rank("q", ["a", "b"], strategy="best")
    asked = client.Client(url)
    assert asked.judge("q", "a", "b", votes=2)["votes"][1]["verdict"] in (1, 2)
    assert asked.chat([{"role": "user", "content": "hi"}], model=NAME, max_tokens=3)["usage"]["completion_tokens"] <= 3


def test_openrlhfs_rewards(url):
    prompts = ["<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n", "plain"] * 2
    written = ["</think>a<|im_end|>", "</think>b", "</think>c", "</think>d"]
    body = {"query": [p + w for p, w in zip(prompts, written, strict=True)], "prompts": prompts, "labels": [None] * 4}
    answer = post(url, "/get_reward", body).json()
    groups = [{"query": "What?", "responses": [written[0][:-10], written[2]]}]
    groups += [{"query": "plain", "responses": [written[1], written[3]]}]
    one, two = (each["rewards"] for each in post(url, "/compare", groups).json())
    assert answer["rewards"] == answer["scores"] == [one[0], two[0], one[1], two[1]]
    assert answer["extra_logs"].keys() == {"rating", "invalid"}
    assert post(url, "/get_reward", body | {"prompts": prompts[:3]}).status_code == 422


def test_rollouts_that_come_alone_are_gathered_into_groups(home):
    import concurrent.futures

    service = home.service()
    bodies = [{"query": [f"q{text}"], "prompts": ["q"], "labels": [""], "thinks": False} for text in "abcd"]
    with live(service, group=3, group_seconds=0.5) as url, concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: post(url, "/get_reward", body).json()["rewards"][0], bodies[:3]))
        group = {"query": "q", "responses": ["a", "b", "c"], "thinks": False}
        assert sum(answers) == pytest.approx(1.5)
        assert sorted(answers) == sorted(post(url, "/compare", group).json()["rewards"])
        alone = post(url, "/get_reward", bodies[3]).json()  # nobody else comes
        assert alone["rewards"] == [0.5]


def test_what_a_trainer_sends_is_read():
    assert question_of("<｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜><think>\n") == "Why?"
    assert question_of(
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA\nB<|im_end|>\n<|im_start|>assistant\n"
    ) == ("A\nB")
    assert question_of("a <b> c") == "a <b> c"
    assert response_of("p: yes <|im_end|>\n", "p: ") == "yes"
    assert response_of("other", "p: ") == response_of("other", "") == "other"
    assert response_of("p: ", "p: ") == ""


def test_a_rollout_of_blanks_is_read_in_no_time():
    """Quadratic time would be hours here."""
    blanks = "\n" * 1_000_000
    assert response_of(f"p{blanks}x{blanks}", "p") == f"{blanks}x"
    assert response_of("p" + "a" + "<|im_end|>" * 100_000, "p") == "a"


def test_a_batch_of_any_size_is_rewarded_in_requests_that_the_server_takes(monkeypatch):
    asked: list[list[dict]] = []

    def post(self, route, body):
        asked.append(body)
        return [{"rewards": [float(len(text)) for text in group["responses"]]} for group in body]

    monkeypatch.setattr(client.Client, "post", post)
    queries = [f"q{at // 2}" for at in range(1200)]
    responses = ["x" * (at % 7) for at in range(1200)]
    assert client.Client("http://x").rewards(queries, responses) == [float(at % 7) for at in range(1200)]
    assert [len(body) for body in asked] == [256, 256, 88]
    asked.clear()
    client.Client("http://x").rewards(["a", "a", "b", "c"], ["x" * 700_000] * 4)
    assert [len(body) for body in asked] == [1, 1, 1]


def test_too_many_rollouts_of_one_prompt_are_the_askers_fault(url):
    body = {"query": ["p"] * 300, "prompts": ["p"] * 300, "labels": [""] * 300}
    answer = post(url, "/get_reward", body)
    assert answer.status_code == 400
    assert "300 rollouts of one prompt; a group has 256 at most" in answer.text


def test_votes_are_drawn_once_however_often_they_are_asked_for(home, tmp_path):
    log = SharedLog(tmp_path / "votes.jsonl")
    engine = Engine(home.sampler())
    service = home.service(log=log, engine=engine)
    body = {"query": "q", "responses": RESPONSES, "votes": 2, "id": "x"}
    with live(service) as url:
        first = post(url, "/rank", body).json()
        assert log.written == 20
        drawn = engine.tokens
        assert post(url, "/rank", body).json() == first
        assert (engine.tokens, log.written) == (drawn, 20)
        text = httpx_metrics(url)
    assert 'rrm_verdicts_total{verdict="1"}' in text
    with SharedLog(tmp_path / "votes.jsonl") as again:
        assert len(again) == 20
        compare = comparer(offline_judge(home, votes=2), again, {"x": Candidates("x", "q", tuple(RESPONSES))})
        assert compare([]) == []


def httpx_metrics(url: str) -> str:
    import httpx2

    return httpx2.get(url + "/metrics").text
