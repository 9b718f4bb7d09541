"""Makes the embedded base model from scratch: reading, seeing and the answer format, no preference labels.

python experiments/make_base.py    # about half an hour on two free cores; seeded
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from jsonargparse import auto_cli
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import trange

from data_modules.world.preferences import make_example
from data_modules.world.pretraining import Document, make_document
from lit_msrl.backbones.tiny import build_image_processor, build_model, build_tokenizer
from lit_msrl.cli import run
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy, PromptBatch, pad_right
from lit_msrl.prompts import MEDIA_MARK, render, target

TAG = re.compile(r"</?\w+>")


def make_base(
    outputs: str = str(EMBEDDED),
    *,
    steps: int = 2800,
    batch_size: int = 64,
    micro_batch_size: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
    reading_steps: int = 700,
) -> None:
    """Train the tiny InternVL on documents of the world and write it as a Hugging Face folder.

    Args:
        outputs: Where to; by default the place the policy's model ``tiny`` is loaded from.
        steps: Optimizer steps.
        batch_size: Documents per step.
        micro_batch_size: Documents per forward, of similar length.
        lr: Peak learning rate (AdamW, 50 steps of warm-up, cosine to 2 %).
        seed: Of weights and documents.
        reading_steps: Of them the first that have text only.
    """
    policy = newborn(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / 50) * (0.49 * (1 + math.cos(math.pi * s / steps)) + 0.02),
    )
    bar = trange(steps, desc="base")
    for step in bar:
        lessons = "reading" if step < reading_steps else "all"
        first = step * batch_size
        documents = [make_document(first + i, seed=seed, lessons=lessons) for i in range(batch_size)]
        loss = backward(policy, documents, micro_batch_size)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        bar.set_postfix(loss=f"{loss:.4f}")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(policy, Path(outputs))


def backward(policy: GenerativeRMPolicy, documents: list[Document], micro_batch_size: int) -> float:
    """Add the gradient of the documents' mean loss of a token; returns the loss."""
    documents = sorted(documents, key=lambda d: (len(d.media) > 0, len(d.turns[0][0])))
    batches = [
        encode(policy, documents[i : i + micro_batch_size])
        for i in range(0, len(documents), micro_batch_size)
    ]
    tokens = sum(mask.sum() for _, _, mask in batches)
    loss = 0.0
    for batch, ids, mask in batches:
        part = -policy.logprobs(batch, ids, mask)[0].sum() / tokens
        part.backward()
        loss += part.item()
    return loss


def newborn(seed: int) -> GenerativeRMPolicy:
    """Random weights, and a tokenizer trained on the world's text."""
    tokenizer = build_tokenizer(corpus())
    model = build_model(tokenizer, seed=seed)
    return GenerativeRMPolicy.from_parts(model, tokenizer, build_image_processor())


def corpus() -> Iterator[str]:
    """Text for the tokenizer: documents and requests of the train split, without tags and pictures."""
    for index in range(6000):
        for turn in make_document(10**6 + index, seed=7).turns:
            yield from (
                re.sub(r"</?(type|caption|think|answer)>", " ", text.replace(MEDIA_MARK, " "))
                for text in turn
            )
    for index in range(2000):
        prompt = render(
            make_example("text", index, seed=7, split="train", annotators="hasty"), style="compact"
        )
        yield TAG.sub(" ", prompt.text + target(prompt))


def encode(policy: GenerativeRMPolicy, documents: list[Document]) -> tuple[PromptBatch, Tensor, Tensor]:
    """Documents as prompt, following tokens and the mask of the assistant's among them."""
    batch = policy.encode_turns(
        [(d.turns[0][0], d.media) for d in documents], [d.turns[0][0] for d in documents]
    )
    rows, masks = zip(*[continuation(policy, document) for document in documents], strict=True)
    ids, _ = pad_right(rows, policy.tokenizer.pad_token_id, policy.device)
    mask, _ = pad_right(masks, 0, policy.device)
    return batch, ids, mask.bool()


def continuation(policy: GenerativeRMPolicy, document: Document) -> tuple[list[int], list[int]]:
    """Tokens after the first user turn, 1 where the assistant speaks; no chat markers after the first."""
    tokenizer, ids, mask = policy.tokenizer, [], []
    for i, (user, assistant) in enumerate(document.turns):
        asked = tokenizer(f"\n{user}\n", add_special_tokens=False)["input_ids"] if i else []
        told = tokenizer(assistant, add_special_tokens=False)["input_ids"]
        ids += asked + told
        mask += [0] * len(asked) + [1] * len(told)
    return [*ids, tokenizer.eos_token_id], [*mask, 1]


def save(policy: GenerativeRMPolicy, folder: Path) -> None:
    """Write the folder: half precision, so that it is small, and a checksum."""
    policy.model.save_pretrained(folder)
    policy.backbone.write_processor(policy.tokenizer, folder)
    weights = folder / "model.safetensors"
    save_file(
        {name: tensor.half() for name, tensor in load_file(weights).items()},
        weights,
        metadata={"format": "pt"},
    )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
    print(f"{folder}: {weights.stat().st_size / 2**20:.1f} MiB, sha256 {digest}")


if __name__ == "__main__":
    run(lambda: auto_cli(make_base))
