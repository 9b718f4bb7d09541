"""A checkpoint as a plain Hugging Face folder, with a model card.

python experiments/export.py outputs/stage3/version_0 exported/stage3 [--merge=false]
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, auto_cli
from transformers.utils.hub import cached_file

from lit_msrl.adapters import LoRA, is_adapter
from lit_msrl.cli import run
from lit_msrl.curves import read_curves
from lit_msrl.engines.weights import adapter_weights
from lit_msrl.evaluation import read_checkpoint, take_weights
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy

UNCHANGED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
MEASURED = ("validation/", "accuracy/", "reward/", "sft/")
CARD = """---
base_model: {base}
library_name: {library}
pipeline_tag: image-text-to-text
tags: [reward-model, lit-msrl]
---

# {title}

A generative reward model: it reads a request and two candidates, writes its reasons, and names the better
one. Exported by lit-msrl from stage `{stage}`, step {step}. Base model: `{base}`. {content}

```python
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{folder}")
```

It expects the prompts it was trained on: `lit_msrl.prompts.render` with `style="{style}"`, `view="{view}"`.

## Data

```yaml
{data}```

## Measured in training

{numbers}

## Configuration

```yaml
{config}```

The base model and the data have licences of their own.
"""


def export(run_or_checkpoint: str, folder: str, *, merge: bool = True) -> Path:
    """Write a trained model as transformers and vLLM load it.

    Args:
        run_or_checkpoint: A run's folder (its newest checkpoint), or a checkpoint in one.
        folder: Gets the model; must not exist.
        merge: Add LoRA adapters to the weights of the base model as it was published, never to 4-bit weights.
            Otherwise the folder gets the adapters alone, and needs the base model beside it.

    Returns:
        The folder.

    Raises:
        ValueError: There is no such checkpoint or configuration, the folder exists, or adapters were asked
            for where other weights were trained too.
    """
    checkpoint, config = find(Path(run_or_checkpoint))
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{target} exists already; choose another folder")
    policy, lora = policy_of(config)
    content = read_checkpoint(checkpoint)
    take_weights(policy, content, checkpoint)
    base = config["model"]["policy"]["init_args"]["model_name"]
    source = str(EMBEDDED) if base == "tiny" else base
    others = sorted(name for name in policy.departed if not is_adapter(name))
    if not merge and (lora is None or others):
        what = "has no adapters" if lora is None else f"trained {len(others)} other weights too ({others[0]})"
        raise ValueError(f"{checkpoint} {what}: adapters alone are not the model; leave out --merge=false")
    target.mkdir(parents=True)
    if merge:
        if lora is not None:
            LoRA.merge(policy.model)
        policy.model.save_pretrained(target)
    elif lora is not None:
        lora.save(dict(adapter_weights(policy)), str(target), source)
    for name in UNCHANGED:
        if path := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
            shutil.copyfile(path, target / name)
    (target / "README.md").write_text(card(config, content, checkpoint.parent.parent, target, merge=merge))
    print(f"{checkpoint} (stage {content['stage']}) is in {target}")
    return target


def find(path: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint and the configuration of its run.

    Raises:
        ValueError: One of them is not there.
    """
    checkpoint = path / "checkpoints" / "last.ckpt" if (path / "checkpoints").is_dir() else path
    file = checkpoint.parent.parent / "config.yaml"
    if not checkpoint.exists():
        raise ValueError(f"{path}: no such run or checkpoint")
    if not file.is_file():
        raise ValueError(f"{file} is missing: it says which model the checkpoint belongs to")
    return checkpoint, yaml.safe_load(file.read_text())


def policy_of(config: dict[str, Any]) -> tuple[GenerativeRMPolicy, LoRA | None]:
    """The policy of a run, its base model as it was published, and its adapters."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(GenerativeRMPolicy, "policy")
    wanted = dict(config["model"]["policy"])
    wanted["init_args"] = wanted["init_args"] | {"quantization": None}
    policy = parser.instantiate(parser.parse_object({"policy": wanted})).policy
    lora = wanted["init_args"]["lora"]
    return policy, None if lora is None else LoRA(**lora)


def card(
    config: dict[str, Any], content: dict[str, Any], run_folder: Path, folder: Path, *, merge: bool
) -> str:
    """The model card: data, configuration, and what the run measured."""
    return CARD.format(
        base=config["model"]["policy"]["init_args"]["model_name"],
        library="transformers" if merge else "peft",
        title=folder.name,
        stage=content["stage"],
        step=content["global_step"],
        content="" if merge else "These are its LoRA adapters alone.",
        folder=folder,
        style=config["model"].get("style", "full"),
        view=config["model"].get("view", "visual"),
        data=yaml.safe_dump(config["data"], sort_keys=False),
        numbers=numbers(run_folder),
        config=yaml.safe_dump({key: config[key] for key in ("model", "trainer")}, sort_keys=False),
    )


def numbers(folder: Path) -> str:
    """The last value of each curve of a run that says how good it is, as a table."""
    curves = read_curves(folder)
    rows = [
        f"| {tag} | {values[-1]:.4f} | {steps[-1]} |"
        for tag, (steps, values) in sorted(curves.items())
        if tag.startswith(MEASURED)
    ]
    if not rows:
        return "Nothing: the run left no curves."
    return "\n".join(
        ["The last value of each curve.", "", "| what | value | step |", "| --- | --- | --- |", *rows]
    )


if __name__ == "__main__":
    run(lambda: auto_cli(export, exit_on_error=False))
