"""How much memory a training step takes on one device: arithmetic, no model needed.

Counts what autograd saves in transformers' Qwen-style layers and what this project's sampling and learning
keep beside it. What an allocator wastes, and what CUDA and its libraries take, is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

NF4_BYTES, NF4_DOUBLE_BYTES = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
LOGIT_CHUNK = 1024  # tokens whose logits exist at once, `functional.token_logprobs`
LOGIT_COPIES = 6  # logits, scaled, log-softmax, its exponential, their product, a gradient
USABLE = 0.9  # of a device; the rest is for what is not counted
STEP_COPIES = 1  # what AdamW makes of all gradients at once on a GPU


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What of a model decides how much memory it takes.

    Attributes:
        layers: Decoder layers.
        layer_parameters: Weights of all decoder layers.
        other_parameters: Embeddings, head and last norm.
        projector_parameters: Of the projector.
        vision_parameters: Of the vision tower.
        adapter_parameters: Of LoRA, 0 without.
        width: ``D``.
        queries: Query heads x their width.
        keys: Key heads x their width; values are as wide.
        has_query_norm: Queries and keys are normalised per head (Qwen3).
        inner: Width of the feed-forward layers.
        vocabulary: ``V``.
        vision_layers: Layers of the vision tower.
        vision_width: Their width.
        vision_inner: Width of their feed-forward layers.
        patches_per_token: Vision tokens that become one token of the prompt.
    """

    layers: int
    layer_parameters: int
    other_parameters: int
    projector_parameters: int
    vision_parameters: int
    adapter_parameters: int
    width: int
    queries: int
    keys: int
    has_query_norm: bool
    inner: int
    vocabulary: int
    vision_layers: int
    vision_width: int
    vision_inner: int
    patches_per_token: int

    @property
    def parameters(self) -> int:
        """All weights, adapters aside."""
        language = self.layer_parameters + self.other_parameters
        return language + self.projector_parameters + self.vision_parameters


@dataclass(frozen=True, kw_only=True)
class Step:
    """What of a run decides how much memory it takes.

    Attributes:
        prompts: Per device and step, ``P``.
        micro_batch: Prompts per forward and backward.
        group: Completions per prompt, ``G``.
        prompt_tokens: Of the longest prompt, ``L``.
        picture_tokens: How many of those stand for pictures.
        completion_tokens: Of the longest completion, ``T``.
        weight_bytes: Of a weight as it is kept.
        compute_bytes: Of a number as it is computed.
        trained: Which of ``language``, ``projector``, ``vision`` train.
        optimizer_bytes: Optimizer state per trained weight.
        devices: That share the work.
        is_sharded: They also share weights, gradients and optimizer state (FSDP2).
        is_offloaded: What is shared waits in host memory.
        is_recomputed: Decoder layers run again in the backward pass.
        layer_bytes: Of a decoder layer's weight, if it is not ``weight_bytes`` (4-bit).
        vision_bytes: Of a weight of vision tower and projector, likewise.
        samples: Completions are sampled (RL); otherwise they are given (SFT).
        has_reference: A frozen copy of the model is kept.
        is_accelerator: A GPU's optimizer makes temporaries of all gradients at once.
    """

    prompts: int
    micro_batch: int
    group: int
    prompt_tokens: int
    picture_tokens: int
    completion_tokens: int
    weight_bytes: float = 4.0
    compute_bytes: float = 4.0
    trained: frozenset[str] = frozenset({"language"})
    optimizer_bytes: float = 8.0
    devices: int = 1
    is_sharded: bool = False
    is_offloaded: bool = False
    is_recomputed: bool = False
    layer_bytes: float | None = None
    vision_bytes: float | None = None
    samples: bool = True
    has_reference: bool = False
    is_accelerator: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        always: Name and size of what is there all the time.
        phases: What is there beside it while the step goes on, phase after phase.
    """

    always: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak(self) -> float:
        """The most at any time."""
        return sum(self.always.values()) + max(sum(phase.values()) for phase in self.phases.values())

    def fits(self, available: float) -> bool:
        """Whether a device of so many bytes has room for it, and for what is not counted."""
        return self.peak <= USABLE * available


def estimate(model: ModelSize, step: Step) -> Memory:
    """Memory of one device through a step."""
    weights, trained = _weights(model, step), trained_weights(model, step)
    kept = 0.0 if step.is_offloaded else 1.0 / (step.devices if step.is_sharded else 1)
    always = {"weights": weights * kept, "optimizer": trained * step.optimizer_bytes * kept}
    if step.has_reference:
        always["reference"] = weights * kept
    if step.devices > 1 and not step.is_sharded:
        always["gradient buckets"] = trained * step.weight_bytes
    gradients = trained * step.weight_bytes * kept
    phases = _sampling(model, step) if step.samples else {}
    phases |= {"forward": _forward(model, step), "backward": _backward(model, step, trained)}
    if step.prompts > step.micro_batch:
        phases["forward"]["gradients so far"] = gradients
    phases["backward"]["gradients"] = gradients
    temporaries = STEP_COPIES * gradients if step.is_accelerator else 0.0
    phases["optimizer step"] = {"gradients": gradients, "temporaries": temporaries}
    return Memory(always, phases)


def _weights(model: ModelSize, step: Step) -> float:
    layer_bytes = step.weight_bytes if step.layer_bytes is None else step.layer_bytes
    vision_bytes = step.weight_bytes if step.vision_bytes is None else step.vision_bytes
    return (
        model.layer_parameters * layer_bytes
        + model.other_parameters * step.weight_bytes
        + (model.projector_parameters + model.vision_parameters) * vision_bytes
        + model.adapter_parameters * 4.0
    )


def trained_weights(model: ModelSize, step: Step) -> int:
    """How many weights have a gradient."""
    language = model.adapter_parameters or model.layer_parameters + model.other_parameters
    vision = {"projector": model.projector_parameters, "vision": model.vision_parameters}
    return sum(({"language": language} | vision)[part] for part in step.trained)


def _gathered(model: ModelSize, step: Step, *, everything: bool) -> float:
    """Weights that a sharded model puts together for a while: all, or all but the layers and two of these."""
    if not step.is_sharded:
        return 0.0
    other = model.other_parameters + model.projector_parameters + model.vision_parameters
    layers = model.layer_parameters * (1.0 if everything else 2.0 / model.layers)
    return (other + layers) * step.compute_bytes


def _cache(model: ModelSize, columns: float, step: Step) -> float:
    return 2 * model.keys * columns * model.layers * step.compute_bytes


def _sampling(model: ModelSize, step: Step) -> dict[str, dict[str, float]]:
    """All prompts of the step at once; completions are columns of their prompt's row (`engines.hf`)."""
    prompts = step.prompts * step.prompt_tokens
    columns = prompts + step.prompts * step.group * step.completion_tokens
    patches = step.prompts * step.picture_tokens * model.patches_per_token
    reading = prompts * (3 * model.inner + 2 * model.width + 4 * model.queries)
    seeing = patches * (3 * model.vision_inner + 4 * model.vision_width)
    gathered = {"gathered weights": _gathered(model, step, everything=True)}
    return {
        "reading prompts": gathered
        | {
            "KV cache": _cache(model, prompts, step),
            "activations": max(reading, seeing) * step.compute_bytes,
        },
        "sampling": gathered
        | {
            "KV cache": _cache(model, columns + prompts, step),  # the prompts' own is kept beside it
            "mask": 2 * columns * step.group * step.compute_bytes,
            "logits": 4 * step.prompts * step.group * model.vocabulary * 4.0,
        },
    }


def _forward(model: ModelSize, step: Step) -> dict[str, float]:
    """A micro-batch: a prompt is read once, its group continues it in one row (`sharing`)."""
    prompts = step.micro_batch * step.prompt_tokens
    written = step.group * step.completion_tokens
    tokens = prompts + step.micro_batch * written
    chunk = min(LOGIT_CHUNK, step.micro_batch * written)
    mask = 0 if step.is_accelerator else written * (step.prompt_tokens + written) * step.micro_batch
    return {
        "activations": _activations(model, step, tokens) + _vision_activations(model, step),
        "KV cache": _cache(model, prompts + tokens, step),
        "mask": mask * step.compute_bytes,  # FlexAttention needs none
        "logits": LOGIT_COPIES * chunk * model.vocabulary * 4.0,
        "gathered weights": _gathered(model, step, everything=False),
    }


def _backward(model: ModelSize, step: Step, trained: int) -> dict[str, float]:
    """When the completions are done and the prompts are not: a weight's gradient waits for both."""
    prompts = step.micro_batch * step.prompt_tokens
    tokens = prompts + step.micro_batch * step.group * step.completion_tokens
    gathered = _gathered(model, step, everything=False)
    waiting = trained * step.weight_bytes
    return {
        "activations": _activations(model, step, prompts) + _vision_activations(model, step),
        "KV cache": _cache(model, prompts, step),
        "gradients of keys and values": _cache(model, tokens, step),
        "gradients not yet added": min(waiting, gathered) if step.is_sharded else waiting,
        "gathered weights": gathered,
    }


def _activations(model: ModelSize, step: Step, tokens: float) -> float:
    """Bytes that the decoder layers save: all, or of each its input, and all of the one that runs again."""
    one = _saved_per_token(model, step)
    each = model.width * model.layers + one if step.is_recomputed else model.layers * one
    return tokens * each * step.compute_bytes


def _vision_activations(model: ModelSize, step: Step) -> float:
    """Bytes that the vision tower saves: none where it is frozen."""
    if "vision" not in step.trained:
        return 0.0
    patches = step.micro_batch * step.picture_tokens * model.patches_per_token
    per_patch = 12 * model.vision_width + 2 * model.vision_inner
    return patches * per_patch * model.vision_layers * step.compute_bytes


def _saved_per_token(model: ModelSize, step: Step) -> float:
    """Numbers that one decoder layer saves per token for the backward pass, but for keys and values."""
    norm = 3 if step.compute_bytes >= 4 else 4  # of the input: in 32 bits, normalised, scaled
    norm -= 1 if model.adapter_parameters else 0  # a frozen scale needs no normalised input
    heads = 3 * (model.queries + model.keys) if model.has_query_norm else 0
    attention = heads + 3 * model.queries  # turned queries, output, output of all heads in one row
    return 2 * norm * model.width + attention + 4 * model.inner
