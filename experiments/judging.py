"""Who judges in an evaluation: the options of ``evaluate.py`` that say it, and the judge they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

from lit_msrl.endpoint import Endpoint
from lit_msrl.engines import HFEngine, RolloutEngine
from lit_msrl.evaluation import load_weights
from lit_msrl.judges import EndpointJudge, Judge, PolicyJudge
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Style, View


@dataclass(frozen=True)
class Asking:
    """Who judges, and how.

    Attributes:
        out: Folder of the records and the scores. Run the same command again to go on where it stopped.
        model: ``tiny``, a hub id or folder of a model, or a ``.ckpt`` of a stage; with an endpoint, the name
            it has there.
        endpoint: Base URL of an OpenAI-compatible API, such as ``http://localhost:8000/v1``. The key is read
            from ``OPENAI_API_KEY``.
        votes: Samples of every question, for a majority vote.
        orders: ``both``, or one order per example by its seeded hash (``random``).
        early_stop: Stop sampling an example when its vote is decided.
        temperature: Of sampling; by default 0 for one vote and 1 for several. ``server`` leaves it to the
            endpoint.
        view: Evidence as pixels (``visual``) or captions; by default as the checkpoint was trained.
        style: Prompt wording, ``full`` or ``compact``; by default as the checkpoint was trained.
        max_completion: Longest judgement in tokens; by default as the checkpoint was trained, else 1024.
        max_length: Longest prompt plus judgement in tokens.
        num_frames: Frames of a clip.
        batch_size: Examples at a time.
        concurrency: Requests at the same time.
        retries: How often a failed request is repeated.
        timeout: Seconds for one request.
        device: Where the model runs; by default a GPU if there is one.
        dtype: Of its weights; by default bfloat16 on a GPU, else float32.
        seed: Of sampling.
        engine: What samples in this process, e.g. ``VLLMEngine``; by default ``HFEngine``.
        json: Print the scores as JSON instead of tables.
    """

    out: str
    model: str
    endpoint: str | None = None
    votes: int = 1
    orders: Literal["both", "random"] = "both"
    early_stop: bool = False
    temperature: float | Literal["server"] | None = None
    view: View | None = None
    style: Style | None = None
    max_completion: int | None = None
    max_length: int = 8192
    num_frames: int = 8
    batch_size: int = 8
    concurrency: int = 8
    retries: int = 4
    timeout: float = 300.0
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    engine: RolloutEngine | None = None
    json: bool = False

    def __post_init__(self) -> None:
        refuse_both(self.endpoint, self.engine)


def refuse_both(endpoint: str | None, engine: RolloutEngine | None) -> None:
    """One of the two would not be used.

    Raises:
        ValueError: Both are given.
    """
    if endpoint is not None and engine is not None:
        raise ValueError("--engine samples in this process, --endpoint elsewhere; give one of them")


def placed(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Where a model runs and the form of its weights: as given, else a GPU if there is one, 16 bits there."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype or ("bfloat16" if device.startswith("cuda") else "float32")


def sampler(asking: Asking) -> dict[str, str | None]:
    """What samples in this process, and the form of the weights; with an endpoint that is its own affair."""
    if asking.endpoint is not None:
        return {"engine": None, "dtype": None}
    engine = type(asking.engine or HFEngine()).__name__
    return {"engine": engine, "dtype": placed(asking.device, asking.dtype)[1]}


def trained_as(asking: Asking) -> dict[str, Any]:
    """The model settings of a checkpoint's stage, from the configuration beside it."""
    if asking.endpoint is not None or not asking.model.endswith(".ckpt"):
        return {}
    checkpoint = Path(asking.model)
    config = checkpoint.parent.parent / "config.yaml"
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint}: no such checkpoint")
    if not config.is_file():
        raise ValueError(f"{config} is missing; a stage writes it, and it says what model {checkpoint} is of")
    return yaml.safe_load(config.read_text(encoding="utf-8"))["model"]


def judge_for(asking: Asking, trained: dict[str, Any], longest: int, temperature: float | str) -> Judge:
    """The judge that the options ask for.

    Args:
        asking: The options.
        trained: What ``trained_as`` found.
        longest: Longest judgement in tokens.
        temperature: Of sampling, or ``server``.

    Raises:
        ValueError: The options contradict each other, or the model cannot be loaded.
    """
    if asking.endpoint is not None:
        endpoint = Endpoint(asking.endpoint, asking.model, asking.concurrency, asking.retries, asking.timeout)
        chosen = None if isinstance(temperature, str) else temperature
        return EndpointJudge(endpoint, max_completion=longest, temperature=chosen)
    if isinstance(temperature, str):
        raise ValueError("temperature 'server' is for endpoints; give a number")
    policy = _policy(asking, trained)
    engine = asking.engine or HFEngine()
    return PolicyJudge(policy, engine, max_completion=longest, temperature=temperature, seed=asking.seed)


def _policy(asking: Asking, trained: dict[str, Any]) -> GenerativeRMPolicy:
    device, dtype = placed(asking.device, asking.dtype)
    policy = {"class_path": "lit_msrl.policy.GenerativeRMPolicy", "init_args": {"model_name": asking.model}}
    policy = trained.get("policy", policy)
    policy["init_args"] |= {"dtype": dtype, "max_length": asking.max_length}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(GenerativeRMPolicy, "policy")
    found = parser.instantiate(parser.parse_object({"policy": policy}))["policy"]
    if trained:
        load_weights(found, Path(asking.model))
    return found.to(device).eval()
