"""What the engine makes of what a server says, on a server that says what it is told to."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_msrl.adapters import LoRA
from lit_msrl.engines import Sampling, VLLMServerEngine, transfer
from lit_msrl.engines.vllm_client import Server
from lit_msrl.policy import GenerativeRMPolicy
from tests.conftest import picture_prompt, text_prompt, tiny_internvl
from tests.experiments.made import REPOSITORY

PROMPTS = [text_prompt(), picture_prompt()]
EXTENSION = "lit_msrl.engines.vllm_sums.AdapterSums"


class Fake:
    """Says it has what it was sent, and writes the end of turn."""

    def __init__(self, policy: GenerativeRMPolicy) -> None:
        self.policy, self.asked, self.version = policy, [], "default"
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/server_info": lambda body: {"vllm_config": self.config},
            "/v1/models": lambda body: {"data": [{"id": "base"}]},
            "/collective_rpc": self.reload,
            "/weight_checker": lambda body: {"checksums": self.held},
            "/reset_prefix_cache": lambda body: {"success": True},
            "/reset_mm_cache": lambda body: {},
            "/reset_encoder_cache": lambda body: {},
            "/update_weight_version": self.rename,
            "/inference/v1/generate": self.write,
        }
        self.config: dict[str, Any] = {
            "model_config": {
                "logprobs_mode": "processed_logprobs",
                "max_model_len": 4096,
                "dtype": "torch.float32",
            },
            "parallel_config": {"worker_extension_cls": ""},
            "lora_config": None,
        }

    def reload(self, body: dict[str, Any]) -> Any:
        folder = Path(body["kwargs"]["weights_path"])
        self.files = sorted(path.name for path in folder.iterdir())
        self.weights = {name: t for file in self.files for name, t in load_file(folder / file).items()}
        digests = transfer.write_shards(iter(self.weights.items()), folder, torch.float32)
        self.held = {name: digest for digest, name in digests.items() if "vision" in name or "norm" in name}
        return {"results": [None]}

    def rename(self, body: dict[str, Any]) -> Any:
        self.version = body["new_version"]
        return {}

    def write(self, body: dict[str, Any]) -> Any:
        prompt = PROMPTS[1 if body["content_parts"] else 0]
        end = {"token_id": self.policy.tokenizer.eos_token_id, "logprob": -0.5}
        spans = [{"version": self.version, "start": 0, "end": 1}]
        choice = {"token_ids": [end["token_id"]], "weight_versions": spans}
        ids = self.policy.encode([prompt]).input_ids[0].tolist()
        choices = [
            choice | {"index": i, "logprobs": {"content": [end | {"logprob": -0.5 - i}]}} for i in (1, 0)
        ]
        return {"prompt_token_ids": ids, "choices": choices}

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL, while it is there."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                fake.asked.append((path, json.loads(body) if body else {}))
                answer = fake.answers.get(path)
                said = answer(fake.asked[-1][1]) if answer else None
                status, content = said if isinstance(said, tuple) else (200 if answer else 404, said)
                payload = json.dumps(content).encode()
                with contextlib.suppress(BrokenPipeError):  # who asked has given up
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()
            http.server_close()


@pytest.fixture
def policy() -> GenerativeRMPolicy:
    policy = tiny_internvl(max_length=1024)
    policy.train_only(["language", "vision"])
    return policy


def generate(engine: VLLMServerEngine, policy: GenerativeRMPolicy):
    sampling = Sampling(group_size=2, max_length=4, temperature=0.7)
    return engine.generate(policy, PROMPTS, policy.encode(PROMPTS), sampling=sampling, seed=1)


def step(policy: GenerativeRMPolicy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1


def test_a_group_is_asked_for_once_with_its_pictures(policy, tmp_path) -> None:
    fake = Fake(policy)
    with fake.serving() as url:
        engine = VLLMServerEngine(url, check=False, folder=str(tmp_path))
        drawn = generate(engine, policy)
    assert drawn.ids.tolist() == [[policy.tokenizer.eos_token_id]] * 4
    assert drawn.logprobs.tolist() == [[-0.5], [-1.5]] * 2, "in order"
    bodies = [body for path, body in fake.asked if path == "/inference/v1/generate"]
    bodies.sort(key=lambda body: bool(body["content_parts"]))
    placeholder = policy.tokenizer.convert_tokens_to_ids(policy.backbone.placeholder)
    assert [body["token_ids"].count(placeholder) for body in bodies] == [0, 2], "unexpanded"
    parts = bodies[1]["content_parts"]
    assert [part["type"] for part in parts] == ["image_url"] * 2
    assert all(part["url"].startswith("data:image/png;base64,") for part in parts)
    params = [body["sampling_params"] for body in bodies]
    assert params[0]["seed"] != params[1]["seed"]
    assert (params[0]["n"], params[0]["max_tokens"], params[0]["temperature"]) == (2, 4, 0.7)
    assert sorted(map(int, params[0]["logit_bias"])) == sorted(policy.suppressed.tolist())


def test_weights_are_sent_whole_once_and_nothing_stays(policy, tmp_path, monkeypatch) -> None:
    fake = Fake(policy)
    monkeypatch.setattr(transfer, "SHARD", 50_000)
    with fake.serving() as url:
        engine = VLLMServerEngine(url, check=False, folder=str(tmp_path))
        generate(engine, policy)
        paths = [path for path, _ in fake.asked]
        order = ["/collective_rpc", "/weight_checker", "/reset_prefix_cache", "/reset_mm_cache"]
        assert [path for path in paths if path in order] == order
        assert paths.index("/update_weight_version") < paths.index("/inference/v1/generate")
        first = fake.version
        generate(engine, policy)
        assert fake.version == first, "nothing has changed, nothing is sent"
        step(policy)
        generate(engine, policy)
    assert fake.version != first
    assert len(fake.files) > 2, "in parts"
    own = dict(policy.model.named_parameters(remove_duplicate=False))
    assert fake.weights.keys() == own.keys()
    assert "lm_head.weight" in fake.weights
    assert all(fake.weights[name].equal(own[name]) for name in own)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("model_config", "logprobs_mode", "raw_logprobs", "start it with --logprobs-mode processed_logprobs"),
        ("model_config", "max_model_len", 512, "has max_model_len 512: start it with --max-model-len 1024"),
        ("lora_config", "max_lora_rank", 2, "start it with --enable-lora --max-lora-rank 8"),
        ("parallel_config", "worker_extension_cls", "", f"--worker-extension-cls {EXTENSION}"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(section, name, value, message) -> None:
    policy = tiny_internvl(max_length=1024, lora=LoRA(4, 8))
    fake = Fake(policy)
    fake.config["lora_config"] = {"max_lora_rank": 8}
    fake.config["parallel_config"] = {"worker_extension_cls": EXTENSION}
    fake.config[section][name] = value
    with fake.serving() as url, pytest.raises(ValueError, match=message):
        generate(VLLMServerEngine(url), policy)


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        (
            "/server_info",
            (404, {}),
            r"asked for its settings \(VLLM_SERVER_DEV_MODE=1\), refuses with status 404",
        ),
        ("/collective_rpc", (500, {"message": "x"}), "weights from .* 500: .*; start it again"),
        ("/reset_prefix_cache", {"success": False}, "is writing for someone else"),
        ("/weight_checker", {"checksums": {"a": "b"}}, r"holds other weights than it was sent \(all\)"),
        ("/inference/v1/generate", (400, {"message": "too long"}), "completions, refuses with status 400"),
        ("/inference/v1/generate", {"prompt_token_ids": [1], "choices": []}, "reads example 't' as 1 tokens"),
    ],
)
def test_what_a_server_may_say(policy, path, answer, message) -> None:
    fake = Fake(policy)
    fake.answers[path] = lambda body: answer
    with fake.serving() as url, pytest.raises(ValueError, match=message):
        generate(VLLMServerEngine(url, check=False), policy)


def test_weights_that_stayed_as_they_were_are_found(policy) -> None:
    fake = Fake(policy)
    with torch.no_grad():
        policy.model.model.language_model.norm.weight += 0.1  # else it is equal to others
    with fake.serving() as url:
        engine = VLLMServerEngine(url, check=False)
        generate(engine, policy)
        fake.answers["/collective_rpc"] = lambda body: {"results": [None]}  # it does nothing
        with torch.no_grad():
            policy.model.model.language_model.norm.weight += 0.1  # all else is as it was
        with pytest.raises(ValueError, match=r"than it was sent \(model.language_model.norm.weight\)"):
            generate(engine, policy)


def test_a_server_that_was_started_again_is_found(policy) -> None:
    fake = Fake(policy)
    with fake.serving() as url:
        engine = VLLMServerEngine(url, check=False)
        generate(engine, policy)
        fake.version = "default"
        with pytest.raises(
            ValueError, match=r"wrote with weights default instead of lit_msrl_.*started again"
        ):
            generate(engine, policy)


def test_a_server_that_is_gone_or_hangs(policy) -> None:
    fake = Fake(policy)
    with fake.serving() as url:
        engine = VLLMServerEngine(url, check=False, timeout=0.3)
        fake.answers["/inference/v1/generate"] = lambda body: time.sleep(1) or {}
        with pytest.raises(
            TimeoutError, match=r"has not finished completions after 0.3 s: .*--ckpt_path=last"
        ):
            generate(engine, policy)
    with pytest.raises(ConnectionError, match=rf"vLLM at {url} was lost at completions .*--ckpt_path=last"):
        generate(engine, policy)


def test_weights_that_cannot_be_written_are_one_line(policy, tmp_path, monkeypatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "save_file", full)
    with Fake(policy).serving() as url:
        engine = VLLMServerEngine(url, folder=str(tmp_path))
        with pytest.raises(OSError, match=r"could not be written to .*No space left.*the engine's folder"):
            generate(engine, policy)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("url", ["localhost:8000", "http://localhost:8000/v2", "ftp://x"])
def test_an_address_that_is_none(url) -> None:
    with pytest.raises(ValueError, match="is no URL such as"):
        VLLMServerEngine(url)


def test_an_address_may_end_as_openais_do() -> None:
    assert VLLMServerEngine("http://localhost:8000/v1/").server.url == "http://localhost:8000"


def test_after_a_failure_nothing_more_is_asked() -> None:
    asked: list[int] = []

    class Refusing(Server):
        def post(self, path: str, what: str, body: dict[str, Any] | None = None) -> Any:
            assert body is not None
            asked.append(body["number"])
            time.sleep(0.2 * body["number"])
            raise ValueError(f"refused {body['number']}")

    bodies = [{"number": number} for number in (5, 1, 2, 3, 4)]
    with pytest.raises(ValueError, match="refused 1"):
        Refusing("http://localhost:8000", 5).post_all("/", "completions", bodies, at_once=2)
    assert asked[:2] == [5, 1]
    assert len(asked) <= 3, "one may have begun before it was known"


@pytest.mark.slow
def test_of_two_ranks_the_first_sends_and_both_hear_of_a_failure(policy, tmp_path) -> None:
    fake = Fake(policy)

    def refuse(body: dict[str, Any]) -> Any:
        no = (400, {"message": "no text"})
        fake.answers["/inference/v1/generate"] = lambda b: fake.write(b) if b["content_parts"] else no
        return {}

    def puzzle(body: dict[str, Any]) -> Any:
        fake.answers["/collective_rpc"] = lambda body: {"odd": 1}
        return {}

    def stop(body: dict[str, Any]) -> Any:
        fake.answers["/collective_rpc"] = lambda body: (500, {"message": "no more"})
        return {}

    fake.answers |= {"/refuse": refuse, "/puzzle": puzzle, "/break": stop}
    with fake.serving() as url:
        command = [sys.executable, "-m", "tests.engines.server_rank", url, str(tmp_path / "store")]
        options = {"cwd": REPOSITORY, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ranks = [subprocess.Popen([*command, str(rank)], **options) for rank in range(2)]  # type: ignore[call-overload]
        try:
            said = [rank.communicate(timeout=300) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    eos = policy.tokenizer.eos_token_id
    for out, err in said:
        assert f"drawn [[{eos}], [{eos}]]" in out, err[-3000:]
        assert re.search(r"refuse ValueError.*vLLM at .* status 400", out), out + err[-3000:]
        assert re.search(r"puzzle (KeyError|RuntimeError.*another rank failed: KeyError).*results", out)
        assert re.search(r"break ValueError.*vLLM at .* 500", out)
    assert [path for path, _ in fake.asked].count("/collective_rpc") == 3, "once, and twice in vain"
    assert [path for path, _ in fake.asked].count("/inference/v1/generate") == 4
    own = dict(policy.model.named_parameters(remove_duplicate=False))
    assert all(fake.weights[name].equal(own[name]) for name in own), "put together again"
