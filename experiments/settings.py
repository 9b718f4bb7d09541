"""A stage's settings, read as the stage reads them, without its weights: for what looks before a run."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from data_modules import PreferenceDataModule
from lit_msrl.budget import Budget, candidate_turns, judging_turns
from lit_msrl.cli import MSRLCLI
from lit_msrl.plan import GIB
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy
from lit_msrl.prompts import View

STAGES = ("stage1_sft", "stage1", "stage2", "cmkd", "stage3", "baseline_sft", "baseline", "discriminative")


class Settings(MSRLCLI):
    """The command line of a stage that makes nothing but the data.

    Attributes:
        data: The data module.
        model: Options of the stage's module.
        trainer: Options of the trainer.
        checkpoints: How many checkpoints are kept.
        outputs: Where the run would write.
        stage: Its name.
    """

    def instantiate_classes(self) -> None:
        """Make the data module."""
        config = self.config["fit"]
        data = instantiate_module(self.datamodule_class, config["data"].as_dict())  # type: ignore[arg-type]
        assert isinstance(data, PreferenceDataModule)
        self.data: PreferenceDataModule = data
        self.model: dict[str, Any] = config["model"].as_dict()
        self.trainer: dict[str, Any] = config["trainer"].as_dict()
        self.checkpoints: int = config["checkpoint"]["keep"]
        self.outputs = Path(config["outputs"]).absolute()
        self.stage: str = self.model_class.name  # type: ignore[union-attr, attr-defined]

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing; Lightning has no public way to say so and keep the subcommand's options."""


def read_settings(args: list[str], stage: str | None = None) -> Settings:
    """The settings of a stage.

    Args:
        args: Its options.
        stage: Its name; by default that of the last ``--config`` file called like a stage.

    Raises:
        ValueError: No stage is named.
    """
    script = importlib.import_module(f"experiments.{stage or _stage_of(args)}")
    return script.main(["fit", *args], cli=Settings)


def _stage_of(args: list[str]) -> str:
    files = [value for option, value in zip(args, args[1:], strict=False) if option == "--config"]
    files += [option.partition("=")[2] for option in args if option.startswith("--config=")]
    named = [Path(file).stem for file in files if Path(file).stem in STAGES]
    if not named:
        raise ValueError(f"which stage? --stage={'|'.join(STAGES)}, or --config with a file called like one")
    return named[-1]


def policy_of(model: dict[str, Any]) -> GenerativeRMPolicy:
    """A policy that can read but not judge: its weights are on the meta device and take no memory."""
    options = model["policy"]["init_args"]
    name, trust = options["model_name"], {"trust_remote_code": options["trust_remote_code"]}
    source = str(EMBEDDED) if name == "tiny" else name
    config = AutoConfig.from_pretrained(source, **trust)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **trust)
    image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **trust)
    with torch.device("meta"):
        plain = AutoModelForImageTextToText.from_config(config, **trust)
        return GenerativeRMPolicy.from_parts(
            plain, tokenizer, image_processor, max_length=options["max_length"]
        )


def budget_of(policy: GenerativeRMPolicy, model: dict[str, Any]) -> Budget:
    """What of an example the stage would show, as the stages' ``budget`` has it."""
    views: list[View] = [model["view"]] if "view" in model else ["caption", "visual"]  # CMKD has both
    if "style" not in model:
        return Budget(policy, candidate_turns(views[0]), policy.max_length)
    return Budget(policy, judging_turns(views, model["style"]), policy.max_length - model["max_completion"])


def device_gib(trainer: dict[str, Any]) -> float:
    """Memory of what the trainer would use on this machine; 0 if that is not here."""
    gpu = torch.cuda.is_available()
    if trainer["accelerator"] == "cpu" or (trainer["accelerator"] == "auto" and not gpu):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return torch.cuda.get_device_properties(0).total_memory / GIB if gpu else 0.0
