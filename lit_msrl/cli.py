"""The command line of a stage: Lightning's, the stage's default configuration, where the weights start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import _typehints
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import lit_msrl.losses  # noqa: F401 - so that the command line finds the classes by their short names
from lit_msrl.callbacks import Checkpoints, NonFiniteSteps
from lit_msrl.callbacks.checkpoints import LAST
from lit_msrl.evaluation import load_weights, read_checkpoint
from lit_msrl.stages.base import StageModule
from lit_msrl.stages.rlvr import RLVRModule

AUTO, BASE, NEWEST = "auto", "base", "last"
EXPECTED = (
    ValueError,
    OSError,
    ArgumentError,
    MisconfigurationException,
    subprocess.CalledProcessError,
)
_discard = _typehints.discard_init_args_on_class_path_change


def _discard_all_of_a_loss(parser_or_action: Any, before: Any, now: Any) -> None:
    """Let a loss that replaces another one start from its own defaults.

    jsonargparse keeps what the class before had, defaults included, wherever the new class has an option of
    that name: GSPO would clip as GRPO does. It has no setting for this; `test_configs` sees if it changes.
    """
    if before and before["class_path"] != now["class_path"] and "lit_msrl.losses." in before["class_path"]:
        for name in list(before["init_args"].keys() if "init_args" in before else ()):
            before["init_args"].pop(name)
    _discard(parser_or_action, before, now)


_typehints.discard_init_args_on_class_path_change = _discard_all_of_a_loss


class MSRLCLI(LightningCLI):
    """The command line of one stage.

    Args:
        stage: The stage's module class.
        data: Its data module class.
        scripts: The folder of the stage scripts and of their ``configs/``.
        after: The stage whose newest checkpoint this one starts from; ``None`` starts from the base model.
        args: Arguments instead of ``sys.argv``.
    """

    def __init__(
        self,
        stage: type[StageModule],
        data: type[LightningDataModule],
        *,
        scripts: Path,
        after: str | None,
        args: ArgsType = None,
    ) -> None:
        self.scripts, self.after = scripts, after
        configs = [scripts / "configs" / "trainer" / "cpu.yaml", scripts / "configs" / f"{stage.name}.yaml"]
        options = {"default_config_files": [str(path) for path in configs], "exit_on_error": False}
        super().__init__(
            stage,
            data,
            args=args,
            parser_kwargs={"fit": options, "validate": options, "exit_on_error": False},
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            trainer_defaults={"plugins": [{"class_path": "lit_msrl.checkpoint_io.WholeCheckpoints"}]},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` and ``validate``."""
        wanted = ("fit", "validate")
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in wanted}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--outputs``, ``--start_from``, ``--checkpoint`` and ``--non_finite``."""
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(NonFiniteSteps, "non_finite")
        parser.add_argument("--outputs", type=str, default="outputs", help="Folder of logs and checkpoints.")
        newest_one = f"the newest checkpoint of {self.after} under --outputs, made first if there is none"
        help_text = (
            f"Weights to start from: a checkpoint; '{BASE}', the model of model.policy; or '{AUTO}', "
            f"{newest_one if self.after else 'the same as base'}."
        )
        parser.add_argument("--start_from", type=str, default=AUTO, help=help_text)
        parser.link_arguments("outputs", "trainer.logger.init_args.save_dir")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse ``args`` if given, else the command line; the pipeline does both in one process."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        options = self.config[self.config["subcommand"]]
        if options["ckpt_path"] == NEWEST:
            found = newest(options["outputs"], self.model_class.name)  # type: ignore[union-attr]
            print(f"Going on from {found}." if found else "No checkpoint yet: starting anew.", flush=True)
            options["ckpt_path"] = found and str(found)

    def _parse_ckpt_path(self) -> None:
        """Lightning would read the whole checkpoint for hyperparameters; ours hold none."""

    def before_fit(self) -> None:
        """Load the weights to start from; a resumed run needs them where the loss compares with them."""
        config = self.config["fit"]
        compares = isinstance(self.model, RLVRModule) and self.model.loss.needs_reference
        if config["ckpt_path"] is None or compares:
            start(self.model, config["start_from"], self._predecessor)
        if config["ckpt_path"] is not None and self.model.policy.adapted:
            held = read_checkpoint(Path(config["ckpt_path"]))["state_dict"]  # maybe more than trains now
            self.model.policy.departed |= {name.removeprefix("policy.") for name in held}

    def _predecessor(self) -> Path | None:
        """The newest checkpoint of the stage before; made with the same policy and seed if there is none."""
        if self.after is None:
            return None
        config = self.config["fit"]
        found = newest(config["outputs"], self.after)
        if found is None and self.trainer.world_size > 1:
            raise ValueError(
                f"no checkpoint of {self.after} under {config['outputs']}/, and on several devices it is not "
                f"made here: run {self.after}.py first, or say --start_from"
            )
        if found is None:
            print(f"No checkpoint of {self.after} under {config['outputs']}/: making it first.", flush=True)
            policy = {k: v for k, v in config["model"]["policy"].as_dict().items() if k != "__path__"}
            options = [
                f"--outputs={config['outputs']}",
                f"--seed_everything={int(config['seed_everything'])}",
                f"--model.policy={json.dumps(policy)}",
            ]
            subprocess.run(
                [sys.executable, str(self.scripts / f"{self.after}.py"), "fit", *options], check=True
            )
            found = newest(config["outputs"], self.after)
        return found


def newest(outputs: str | Path, stage: str) -> Path | None:
    """The newest checkpoint of a stage."""
    found = Path(outputs).glob(f"{stage}/version_*/checkpoints/{LAST}")
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def start(model: StageModule, start_from: str, predecessor: Callable[[], Path | None]) -> None:
    """Load the policy's weights from a checkpoint of any stage.

    Raises:
        ValueError: The file is no checkpoint of ours, or of another model.
    """
    path = predecessor() if start_from == AUTO else None if start_from == BASE else Path(start_from)
    if path is None:
        print(f"{model.name} starts from the base model.", flush=True)
        return
    print(f"{model.name} starts from {path} (stage {load_weights(model.policy, path)}).", flush=True)


def run(main: Callable[[], Any]) -> None:
    """Run a script; expected errors end in one line and exit code 1 (``LIT_MSRL_DEBUG=1``: the traceback)."""
    try:
        main()
    except Exception as error:
        said = one_line(error)
        if said is None or os.environ.get("LIT_MSRL_DEBUG"):
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(1) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise  # Lightning turns an interruption into exit code 1
        print(
            "interrupted; run the same command again to go on (a single stage: with --ckpt_path=last)",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def one_line(error: Exception) -> str | None:
    """What an expected error says, also one that a loader's worker or torch raised; ``None`` for a bug."""
    text = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of memory ({text.partition('.')[0]}); lower model.micro_batch_size, model.group_size, "
            "model.max_completion or data.batch_size, and go on with --ckpt_path=last"
        )
    if isinstance(error, torch.distributed.DistError) or "gloo" in text:
        reason = " ".join(text.split())
        return f"another rank died or hangs ({reason}); look at its output, and go on with --ckpt_path=last"
    if not isinstance(error, EXPECTED):
        return None
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())
