"""The vision-language model that judges, and the only place where text and pictures become tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
)

from lit_msrl import attention
from lit_msrl.adapters import NF4, LoRA, is_adapter
from lit_msrl.backbones import PARTS, Part, backbone_for
from lit_msrl.batch import Prefix, PromptBatch
from lit_msrl.functional import token_logprobs
from lit_msrl.prompts import MEDIA_MARK, JudgingPrompt
from lit_msrl.recompute import recompute
from lit_msrl.sharing import Sharing, completion_states
from lit_msrl.types import Media

SUPPRESSED = -1e4  # a logit that is never sampled; finite, so that entropies are
HALF = (torch.bfloat16, torch.float16)
SIGHT: tuple[Part, ...] = ("projector", "vision")
EMBEDDED = Path(__file__).parent / "assets" / "tiny_internvl"


class GenerativeRMPolicy(nn.Module):
    """A vision-language model with its tokenizer and image processor.

    Args:
        model_name: Hub id or folder of an InternVL(3.5)-HF, Qwen2.5-VL or Qwen3-VL model; ``tiny`` is the
            embedded tiny InternVL, which reads and sees the drawn world.
        lora: Train low-rank adapters in the language model instead of its weights.
        quantization: Keep the frozen weights in 4 bits (QLoRA); needs ``lora``, and one device.
        gradient_checkpointing: Run the language model's layers again in the backward pass instead of keeping
            what they computed: a third more work, far less memory.
        dtype: Weights are loaded as ``float32``, ``bfloat16`` or ``float16``.
        max_length: Longest prompt plus completion in tokens; longer prompts are refused, never cut.
        trust_remote_code: Run model code from the hub. Off unless you trust it.
    """

    def __init__(
        self,
        model_name: str = "tiny",
        lora: LoRA | None = None,
        quantization: NF4 | None = None,
        *,
        gradient_checkpointing: bool = False,
        dtype: str = "float32",
        max_length: int = 8192,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if quantization is not None and lora is None:
            raise ValueError("4-bit weights cannot be trained; set model.policy.lora beside quantization")
        source = str(EMBEDDED) if model_name == "tiny" else model_name
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        self.tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
        weights: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        if quantization is not None:
            family = backbone_for(AutoConfig.from_pretrained(source, **options), image_processor)
            parts = [prefix for prefix, _ in family.prefixes]
            weights["quantization_config"] = quantization.config(weights["dtype"], parts)
        model = AutoModelForImageTextToText.from_pretrained(source, **weights, **options)
        if quantization is not None:
            quantization.keep_trainable(model)
        self._assemble(model, self.tokenizer, image_processor, lora, max_length)
        self.quantized = quantization is not None
        if gradient_checkpointing:
            recompute(self.layers())

    @classmethod
    def from_parts(
        cls,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        lora: LoRA | None = None,
        max_length: int = 8192,
    ):
        """A policy around a model that is already in memory (tests, `make_base.py`)."""
        policy = cls.__new__(cls)
        nn.Module.__init__(policy)
        policy._assemble(model, tokenizer, image_processor, lora, max_length)
        return policy

    def _assemble(
        self, model: Any, tokenizer: Any, image_processor: Any, lora: LoRA | None, max_length: int
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.backbone = backbone_for(model.config, image_processor)
        self.lora, self.quantized = lora, False
        self.compute: torch.dtype | None = None  # other than that of the weights: set when it is sharded
        self.departed: set[str] = set()  # parameters that differ, or may come to, from the base model's
        self.sharing: Sharing = "auto"
        model.set_attn_implementation({"text_config": attention.NAME})
        self.model = lora.inject(model) if lora is not None else model
        self.head = self.model.get_output_embeddings()
        special = set(tokenizer.all_special_ids) | set(self.backbone.image_token_ids())
        suppressed = torch.tensor(sorted(special - {tokenizer.eos_token_id}), device=self.head.weight.device)
        self.register_buffer("suppressed", suppressed, persistent=False)
        self._specials = sorted({tokenizer.decode([i]) for i in special}, key=len, reverse=True)

    suppressed: Tensor

    @property
    def adapted(self) -> bool:
        """Whether the language model has adapters."""
        return self.lora is not None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.suppressed.device  # not that of the weights, which may be offloaded

    @property
    def arithmetic(self) -> torch.dtype:
        """What it computes in: autocast's type where that is on, or a sharded policy's, or the weights'."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.compute or self.head.weight.dtype

    @property
    def half(self) -> bool:
        """Whether it computes in 16 bits, so that other kernels give other log-probabilities."""
        return self.arithmetic in HALF

    # ---- parts ---------------------------------------------------------------------------------------------

    def parts(self) -> dict[Part, list[tuple[str, nn.Parameter]]]:
        """Named parameters of each part; with LoRA the language part is its adapters alone."""
        grouped: dict[Part, list[tuple[str, nn.Parameter]]] = {part: [] for part in PARTS}
        for name, parameter in self.named_parameters():
            part = self.backbone.part(_original_name(name))
            if not (self.adapted and part == "language" and not is_adapter(name)):
                grouped[part].append((name, parameter))
        return grouped

    def train_only(self, parts: Sequence[Part]) -> None:
        """Freeze all but these parts."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for part in parts:
            for name, parameter in self.parts()[part]:
                parameter.requires_grad_(True)
                self.departed.add(name)

    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers of the language model."""
        return self.backbone.layers(self.model)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load a stage's weights; with adapters they may be only those that differ from the base model's.

        Raises:
            RuntimeError: They belong to another model, or an adapter is missing; the second line says which.
        """
        found = self.load_state_dict(weights, strict=False)
        missing = [name for name in found.missing_keys if is_adapter(name) or not self.adapted]
        wrong = [f"{n} is not known" for n in found.unexpected_keys] + [f"{n} is missing" for n in missing]
        if wrong:
            raise RuntimeError(f"{len(wrong)} weights do not fit\n{wrong[0]}")
        self.departed |= weights.keys() & {name for name, _ in self.named_parameters()}

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The model without its LoRA adapters: the reference policy.

        Raises:
            RuntimeError: There are no adapters.
        """
        if not self.adapted:
            raise RuntimeError(
                "this policy has no LoRA adapters to switch off; keep a frozen copy as reference instead"
            )
        with LoRA.off(self.model):
            yield

    # ---- text and pictures to tensors ----------------------------------------------------------------------

    def encode(self, prompts: Sequence[JudgingPrompt]) -> PromptBatch:
        """Judging requests as tensors, on the policy's device.

        Raises:
            ValueError: A prompt is longer than ``max_length``; it names the example.
        """
        return self.encode_turns(
            [(prompt.text, prompt.media) for prompt in prompts], [p.example.id for p in prompts]
        )

    def encode_turns(self, turns: Sequence[tuple[str, Sequence[Media]]], names: Sequence[str]) -> PromptBatch:
        """User turns (text with media marks, and the media) as tensors; `encode` is the usual door."""
        images = [[frame for medium in media for frame in medium.frames] for _, media in turns]
        flat = [image for row in images for image in row]
        pixels = self.backbone.preprocess(flat) if flat else {}
        expansions = iter(self.backbone.expansions(pixels) if flat else [])
        texts = [self._with_pictures(self.chat(text, media), expansions) for text, media in turns]
        batch = self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        longest = int(batch["attention_mask"].sum(-1).max())
        if longest > self.max_length:
            name = names[int(batch["attention_mask"].sum(-1).argmax())]
            raise ValueError(
                f"prompt of example {name!r} has {longest} tokens, more than max_length={self.max_length}; "
                "use fewer or smaller frames, or raise model.policy.max_length"
            )
        media, media_rows = self._media(pixels, [len(row) for row in images])
        return PromptBatch(batch["input_ids"], batch["attention_mask"], media, media_rows).to(self.device)

    def chat(self, text: str, media: Sequence[Media]) -> str:
        """The user turn in the model's chat template, up to where the assistant begins."""
        content: list[dict[str, str]] = []
        media_left = iter(media)
        for i, piece in enumerate(text.split(MEDIA_MARK)):
            if i:
                content += [{"type": "image"} for _ in next(media_left).frames]
            if piece:
                content.append({"type": "text", "text": self._plain(piece)})
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def encode_targets(self, targets: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Completions to imitate, each with its end-of-turn token: ids and mask ``(P, T)``."""
        ids = [
            self.tokenizer(t, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id]
            for t in targets
        ]
        return pad_right(ids, self.tokenizer.pad_token_id, self.device)

    def decode(self, completion_ids: Tensor, completion_mask: Tensor) -> list[str]:
        """Completions as text, without end-of-turn and padding."""
        rows = [ids[mask.bool()] for ids, mask in zip(completion_ids, completion_mask, strict=True)]
        return self.tokenizer.batch_decode([row[row != self.tokenizer.eos_token_id] for row in rows])

    def _plain(self, text: str) -> str:
        """Text in which no control token of the model can be read."""
        for special in self._specials:
            text = text.replace(special, special[0] + " " + special[1:])
        return text

    def _with_pictures(self, text: str, expansions: Iterator[str]) -> str:
        pieces = text.split(self.backbone.placeholder)
        return pieces[0] + "".join(next(expansions) + piece for piece in pieces[1:])

    def _media(
        self, pixels: Mapping[str, Tensor], counts: list[int]
    ) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        if not pixels:
            return {}, {}
        media = self.backbone.model_inputs(pixels)
        rows_per_picture = self.backbone.rows_per_picture(pixels)
        per_prompt: dict[str, list[int]] = {}
        for name, rows in rows_per_picture.items():
            cut = iter(rows)
            per_prompt[name] = [sum(next(cut) for _ in range(count)) for count in counts]
        return {
            name: tensor.to(self.head.weight.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in media.items()
        }, per_prompt

    # ---- the model -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def see(self, batch: PromptBatch) -> PromptBatch:
        """The prompts with what a frozen vision tower and projector make of their pictures in place of these.

        So sampling, learning and the reference policy look once. Unchanged if either part trains.
        """
        parts = self.parts()
        trains = any(p.requires_grad for part in SIGHT for _, p in parts[part])
        if trains or not batch.media or "features" in batch.media:
            return batch
        features = self.backbone.features(self.model, batch.media)
        tokens = (batch.input_ids == self.model.config.image_token_id).sum(dim=1).tolist()
        media, rows = batch.media | {"features": features}, batch.media_rows | {"features": tokens}
        del media["pixel_values"], rows["pixel_values"]
        return replace(batch, media=media, media_rows=rows)

    def read(self, batch: PromptBatch) -> Prefix:
        """Run the prompts, pictures included, once, to be continued."""
        cache = DynamicCache(config=self.model.config)
        states, positions = self._run(batch, past_key_values=cache, use_cache=True)
        return Prefix(cache, states[:, -1], positions, batch.attention_mask)

    def states(self, batch: PromptBatch) -> Tensor:
        """Last hidden states of whole rows, ``(P, L, D)``."""
        return self._run(batch, use_cache=False)[0]

    def _run(self, batch: PromptBatch, **options: Any) -> tuple[Tensor, Tensor]:
        positions = self.backbone.position_ids(self.model, batch.input_ids, batch.attention_mask, batch.media)
        with self.backbone.shown(self.model, batch.media) as media:
            out = self.model.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=positions,
                **media,
                **options,
            )
        return out.last_hidden_state, positions

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits ``(..., V)`` of hidden states; control and picture tokens are always out of reach."""
        return self.head(hidden).index_fill(-1, self.suppressed, SUPPRESSED)

    def logprobs(
        self, batch: PromptBatch, completion_ids: Tensor, completion_mask: Tensor, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of completions; each prompt is read once and shared by its group.

        Args:
            batch: ``P`` prompts.
            completion_ids: ``(B, T)``, the ``G`` completions of a prompt adjacent.
            completion_mask: ``(B, T)``, True where a token counts.
            temperature: Logits are divided by it, as when sampling.

        Returns:
            Log-probabilities and (detached) entropies ``(B, T)``, zero where the mask is False.
        """
        counted = completion_mask.bool()
        states = completion_states(self, batch, completion_ids, counted) + self._unseen(batch)
        logprobs, entropy = token_logprobs(
            states, self.scores, completion_ids[counted], temperature=temperature
        )
        blank = torch.zeros(completion_ids.shape, device=completion_ids.device, dtype=logprobs.dtype)
        return blank.masked_scatter(counted, logprobs), blank.masked_scatter(counted, entropy)

    def _unseen(self, batch: PromptBatch) -> Tensor:
        """Zero, made of the trained vision parameters that prompts without pictures leave out.

        So every backward reaches the same parameters, on every rank, whatever its micro-batch holds.
        """
        zero = torch.zeros((), device=self.device, dtype=self.head.weight.dtype)
        if batch.media or not torch.is_grad_enabled():
            return zero
        left_out = [p for part in SIGHT for _, p in self.parts()[part] if p.requires_grad]
        return sum((0.0 * parameter.sum() for parameter in left_out), start=zero)


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as ids and mask ``(N, T)``."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids.to(device), mask.to(device)


def _original_name(parameter: str) -> str:
    """The name a parameter has in the plain Hugging Face model."""
    return parameter.removeprefix("model.").removeprefix("base_model.model.")
