"""A judge behind a local HTTP server that behaves well, badly and slowly."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import edit_config, files_of, tiny_model, write_micro
from typer.testing import CliRunner

from clues.cli.program import app
from clues.config import JudgeSettings, LoraSettings, ModelSettings, TokenSettings, validate
from clues.data.samples import Message
from clues.data.tokens import RowEncoder
from clues.errors import CluesError, ConfigError, UsageError
from clues.evaluation.generation import generate
from clues.evaluation.judge.endpoint import Endpoint, EndpointError
from clues.evaluation.judge.figures import pairwise_figures, reference_figures
from clues.evaluation.judge.panel import ask_all
from clues.evaluation.judge.prompts import Verdict, about_pair, about_reference
from clues.model.adapters import LoraModel, load_tokenizer

KEY = "sk-marker-7f3a"
PROMPT = (Message("user", "Which organ pumps blood?"),)
Behave = Callable[[dict[str, Any], int], Any]


class Judge:
    """A server; `behave` gets the request and its number, and returns words or (status, body)."""

    def __init__(self) -> None:
        self.behave: Behave = lambda request, n: good(request)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.url = ""
        self.wait_ms = 10


def good(request: dict[str, Any]) -> str:
    asked, _ = json.JSONDecoder().raw_decode(request["messages"][1]["content"])
    if "answer" in asked:
        return json.dumps({"reason": "as said", "score": 0.75})
    # Longer is better, so that both orders agree.
    first, second = len(asked["first"]), len(asked["second"])
    better = "tie" if first == second else "first" if first > second else "second"
    return json.dumps({"reason": "as said", "better": better})


@contextmanager
def serving() -> Iterator[Judge]:
    judge, lock = Judge(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                judge.requests.append(request)
                judge.keys.add(self.headers["authorization"])
                n = len(judge.requests)
            found = judge.behave(request, n)
            if found == "cut":
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choi')
                return
            if found == "trickle":
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                for _ in range(100):
                    time.sleep(0.05)
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return
                return
            message = {"choices": [{"message": {"content": found}}], "usage": {"total_tokens": 9}}
            status, body = found if isinstance(found, tuple) else (200, json.dumps(message))
            self.send_response(status)
            # The wait that the client is asked for, so that a test takes no longer.
            self.send_header("retry-after-ms", str(judge.wait_ms))
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def judge() -> Iterator[Judge]:
    pytest.importorskip("openai", reason="needs the extra clues[judge]")
    with serving() as found:
        yield found


def settings(judge: Judge, **changes: Any) -> JudgeSettings:
    usual = {"retries": 2, "concurrency": 2, "timeout_s": 30.0}
    return JudgeSettings(base_url=judge.url, model="m", **(usual | changes))


def inquiries(n: int = 3) -> list[Any]:
    return [about_reference(i, "clues", PROMPT, "The heart.", f"Answer {i}") for i in range(n)]


def ask(judge: Judge, folder: Path, asked: list[Any] | None = None, **how: Any) -> list[Verdict]:
    return ask_all(Endpoint(settings(judge, **how), folder), asked or inquiries())


def test_answers_are_asked_for_once_and_never_again(judge, tmp_path):
    found = ask(judge, tmp_path)
    assert found == [Verdict(0.75)] * 3
    assert judge.requests[0]["response_format"]["type"] == "json_schema"
    assert ask(judge, tmp_path) == found
    assert len(judge.requests) == 3


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("The answer is fine.", "not JSON"),
        ("[0.5]", "not a JSON object"),
        ('{"score": 1.5}', "between"),
        ('{"score": NaN}', "between"),
        ('{"score": true}', "no number"),
        ('{"score": "0.5"}', "no number"),
        ('{"better": "first"}', "no number"),
        (None, "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_reply_that_is_no_verdict_is_repaired_once_or_counted_and_never_averaged(
    judge, tmp_path, words, problem
):
    judge.behave = lambda request, n: words if n == 1 else good(request)
    assert ask(judge, tmp_path / "a", inquiries(1)) == [Verdict(0.75, repaired=True)]
    judge.behave = lambda request, n: words
    asked = inquiries(1)
    [verdict] = ask(judge, tmp_path / "b", asked)
    assert len(judge.requests) == 4
    assert verdict.value is None
    assert problem in str(verdict.problem)
    figures = reference_figures([(asked[0], verdict), (asked[0], Verdict(1.0))], seed=0)
    assert (figures["clues"].mean, figures["clues"].invalid) == (1.0, 1)


def test_an_endpoint_without_schemas_is_asked_in_words(judge, tmp_path):
    judge.behave = lambda r, n: (400, "{}") if "response_format" in r else good(r)
    assert ask(judge, tmp_path, concurrency=1) == [Verdict(0.75)] * 3
    # One refusal tells it for all.
    assert len(judge.requests) == 4


@pytest.mark.parametrize(
    "failure", [(429, "{}"), (500, "oops"), "cut", (200, "<html>"), (200, "{}")]
)
def test_failures_that_pass_are_waited_for_and_lasting_ones_lose_nothing(judge, tmp_path, failure):
    judge.behave = lambda r, n: failure if n == 1 else good(r)
    assert ask(judge, tmp_path / "a") == [Verdict(0.75)] * 3
    judge.requests.clear()
    judge.behave = lambda r, n: good(r) if n <= 2 else failure
    with pytest.raises(EndpointError, match="2 of 3 verdicts are stored"):
        ask(judge, tmp_path / "b", concurrency=1)
    judge.behave = lambda r, n: good(r)
    judge.requests.clear()
    assert ask(judge, tmp_path / "b") == [Verdict(0.75)] * 3
    assert len(judge.requests) == 1


@pytest.mark.parametrize("slow", ["hang", "trickle"])
def test_an_endpoint_that_hangs_is_left_after_the_timeout(judge, tmp_path, slow):
    judge.behave = lambda r, n: time.sleep(3) or "late" if slow == "hang" else "trickle"
    with pytest.raises(EndpointError, match=r"no reply within 0\.3 s; retries: 1"):
        ask(judge, tmp_path, inquiries(1), timeout_s=0.3, retries=1)


def test_one_refused_request_is_counted_and_the_others_are_answered(judge, tmp_path):
    judge.behave = lambda r, n: (400, KEY) if "Answer 1" in str(r) else good(r)
    found = ask(judge, tmp_path)
    assert [v.value for v in found] == [0.75, None, 0.75]
    assert found[1].problem == "refused: HTTP 400"


def test_a_wrong_key_stops_at_once_and_its_error_repeats_nothing_of_the_reply(
    judge, tmp_path, monkeypatch
):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge.behave = lambda r, n: (401, json.dumps({"error": f"bad key {KEY}"}))
    with pytest.raises(EndpointError, match="does not accept the key") as error:
        ask(judge, tmp_path, api_key_env="JUDGE_KEY", concurrency=1)
    assert KEY not in str(error.value)
    assert len(judge.requests) == 1


def test_the_limit_of_calls_stops_before_the_first_and_counts_retries(judge, tmp_path):
    with pytest.raises(UsageError, match="3 calls are needed and max_calls is 2"):
        ask(judge, tmp_path, max_calls=2)
    assert not judge.requests
    judge.behave = lambda r, n: "rubbish"
    with pytest.raises(EndpointError, match="repairs and retries"):
        ask(judge, tmp_path, max_calls=4)
    assert len(judge.requests) == 4


def test_retries_are_counted_and_a_busy_endpoint_says_how_long_to_wait(judge, tmp_path):
    judge.behave = lambda r, n: (429, "{}") if n <= 2 else good(r)
    judge.wait_ms = 700
    endpoint = Endpoint(settings(judge), tmp_path)
    started = time.monotonic()
    assert ask_all(endpoint, inquiries(1)) == [Verdict(0.75)]
    assert time.monotonic() - started >= 1.4, "asked again too early"
    assert (endpoint.n_calls, endpoint.n_tokens) == (len(judge.requests), 9) == (3, 9)


def test_the_limit_of_calls_stops_between_two_retries(judge, tmp_path):
    judge.behave = lambda r, n: (500, "{}")
    with pytest.raises(EndpointError, match="2 requests are made"):
        ask(judge, tmp_path, inquiries(1), max_calls=2, retries=5)
    assert len(judge.requests) == 2


def test_both_orders_count_and_the_favoured_place_shows():
    pairs = [about_pair(i, "clues", PROMPT, "ref", ("a", "b")) for i in range(4)]
    first, second = pairs[0]
    texts = [json.loads(p.messages[1]["content"]) for p in (first, second)]
    assert [(t["first"], t["second"]) for t in texts] == [("a", "b"), ("b", "a")]
    values = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.5), (1.0, None)]
    judged = [
        (i, Verdict(v, problem=None if v is not None else "it is not JSON"))
        for pair, vs in zip(pairs, values, strict=True)
        for i, v in zip(pair, vs, strict=True)
    ]
    found = pairwise_figures(judged, {"clues": 1})["clues"]
    # Row 3 is invalid in one order, so it is in no rate; one identical pair is a tie.
    assert (found.wins, found.ties, found.losses, found.n) == (1, 2, 1, 4)
    assert found.win_rate == 0.5
    assert (found.contradictory, found.invalid) == (1, 1)
    # First wins in (1, .), (1, .), (., 0) and (1, .); second in (., 1) and (0, .).
    assert found.first_place == pytest.approx(4 / 6)
    assert pairwise_figures([], {"clues": 0})["clues"].win_rate is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"base_url": "http://example.org/v1"}, "unencrypted"),
        ({"base_url": "http://127.0.0.1.example.org/v1"}, "unencrypted"),
        ({"base_url": "https://user:pass@example.org/v1"}, "no key"),
        ({"base_url": "example.org"}, "must look like"),
        ({"api_key_env": "sk-not a name"}, "api_key_env"),
    ],
)
def test_an_unsafe_endpoint_is_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        validate(JudgeSettings, {"base_url": "https://h/v1", "model": "m"} | changes, where="x")
    for url in ("http://localhost:1/v1", "http://[::1]:1/v1", "https://example.org/v1"):
        JudgeSettings(base_url=url, model="m")


def test_a_missing_key_is_named_before_anything_starts(judge, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="no JUDGE_KEY in the environment"):
        ask(judge, tmp_path, api_key_env="JUDGE_KEY")


def test_answers_do_not_depend_on_the_batch_and_are_the_likeliest_words(tmp_path, samples):
    recipe = ModelSettings(name=str(tiny_model(tmp_path / "model")))
    model = LoraModel.load(recipe, LoraSettings(rank=2, alpha=4), seed=1)
    tokenizer = load_tokenizer(recipe)
    encoder = RowEncoder(tokenizer, TokenSettings(max_length=384))
    prompts = [encoder.encode_prompt(sample) for sample in samples[:4]]
    state = {k: torch.randn_like(t) if "lora_B" in k else t for k, t in model.initial.items()}
    together = generate(model, tokenizer, prompts, state, max_tokens=6)
    alone = [generate(model, tokenizer, [p], state, max_tokens=6)[0] for p in prompts]
    assert together == alone
    ids = list(prompts[0])
    with torch.no_grad(), model.evaluating() as peft:
        for _ in range(6):
            following = int(peft(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(following)
            if following == tokenizer.eos_token_id:
                break
    written = ids[len(prompts[0]) :]
    assert together[0] == str(tokenizer.decode(written, skip_special_tokens=True)).strip()


@pytest.mark.walk
def test_a_run_is_judged_by_one_command_and_the_key_is_written_nowhere(
    judge, tmp_path, monkeypatch
):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    config = write_micro(tmp_path, tiny_model(tmp_path / "model"))
    content = {"base_url": judge.url, "model": "m", "api_key_env": "JUDGE_KEY", "n_prompts": 8}
    content |= {"max_answer_tokens": 12}
    # Half of the rows away, and long steps: models of two arms must not answer alike.
    recipe = {"threshold": {"rule": "ratio", "ratio": 0.5}}
    judged = {"arms": ["mixed", "clues"], "judge": content}
    steps = {"learning_rate": 0.1}
    edit_config(config, {"recipe": recipe, "combine": steps, "evaluate": judged})
    root = tmp_path / "run"
    command = ["judge", str(config), "--out", str(root), "--allow-degenerate", "-q", "--json"]
    cost = json.loads(CliRunner().invoke(app, [*command, "--dry-run"]).stdout)
    assert (cost["prompts"], cost["calls"]) == (8, 32)
    assert not judge.requests
    assert not root.exists()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["judge"]
    identical = found["pairwise"]["clues"]["identical"]
    assert identical < 8, "no pair was judged"
    assert len(judge.requests) == 8 * 2 + 2 * (8 - identical)
    assert judge.keys == {f"Bearer {KEY}"}
    assert found["reference"]["clues"]["mean"] == 0.75
    assert found["pairwise"]["clues"]["n"] == 8
    lines = (root / "coordinator/judge/reference.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["arm"] for line in lines) == {"mixed": 8, "clues": 8}
    assert all(KEY.encode() not in path.read_bytes() for path in files_of(root))
    assert "## Judge" in (root / "results.md").read_text()
    judge.requests.clear()
    assert json.loads(CliRunner().invoke(app, command).stdout)["judge"] == found
    assert not judge.requests
    # Other settings make the stored figures someone else's.
    edit_config(config, {"evaluate": {"judge": {"model": "another"}}})
    again = CliRunner().invoke(app, ["report", str(config), "--out", str(root), "-q"])
    assert again.exit_code == 0, again.output
    assert "## Judge" not in (root / "results.md").read_text()


def test_rows_that_are_not_the_public_ones_need_a_word(judge, tmp_path):
    config = write_micro(tmp_path, tiny_model(tmp_path / "model"))
    content = {"base_url": judge.url, "model": "m", "prompts": "silos/north.jsonl"}
    edit_config(config, {"evaluate": {"judge": content}})
    refused = CliRunner().invoke(app, ["judge", str(config), "--dry-run"])
    assert isinstance(refused.exception, CluesError)
    assert "--allow-private-prompts" in str(refused.exception)
    command = ["judge", str(config), "--dry-run", "--allow-private-prompts"]
    assert CliRunner().invoke(app, command).exit_code == 0
