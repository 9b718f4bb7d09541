"""What weights in vLLM add up to: it has them under other names, packed together, or in another layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_msrl.adapters import LoRA

PACKED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"} | {
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}

EXACT = 1e-12  # of the magnitudes: what adding up in another order in double precision may do


class Sum(NamedTuple):
    """What a weight adds up to.

    Attributes:
        total: The sum of its numbers.
        size: The sum of their magnitudes.
    """

    total: float
    size: float

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Sum:
        """The sum of all."""
        pairs = [(t.sum(dtype=torch.float64), t.abs().sum(dtype=torch.float64)) for t in tensors]
        return cls(float(sum(total for total, _ in pairs)), float(sum(size for _, size in pairs)))

    @classmethod
    def together(cls, sums: Iterable[Sum]) -> Sum:
        """The sum of sums."""
        return cls(*map(sum, zip(*sums, strict=True)))

    def times(self, count: int) -> Sum:
        """The same numbers so many times."""
        return Sum(count * self.total, count * self.size)

    def compare(self, held: float, rounding: float, problem: str, remedy: str) -> None:
        """Compare what was sent with what is held.

        Args:
            held: The sum of it.
            rounding: Of that sum, in parts of the magnitudes.
            problem: What it means if they differ.
            remedy: What is to be done then.

        Raises:
            ValueError: They differ.
        """
        if not abs(held - self.total) <= rounding * self.size:  # also where it is NaN
            raise ValueError(f"{problem} adds up to {held:.9g}, not to {self.total:.9g}; {remedy}")


class Held(NamedTuple):
    """A weight of vLLM's model, or this rank's slice of it.

    Attributes:
        copies: The weights of the Hugging Face model that it is made of, and on how many of the ranks that
            run vLLM together each of their numbers is.
        total: The sum of its numbers.
        rounding: Of that sum, in parts of its magnitudes.
    """

    copies: dict[str, int]
    total: float
    rounding: float


def held_weights(model: nn.Module, names: Iterable[str], ranks: int = 1) -> dict[str, Held]:
    """What vLLM's model holds, by its own names.

    Args:
        model: vLLM's.
        names: Of the weights that it was sent, as in the Hugging Face model.
        ranks: How many run vLLM together.

    Raises:
        ValueError: The two have different weights.
    """
    modules = {name.replace(".base_layer", ""): module for name, module in model.named_modules()}
    rename = model.hf_to_vllm_mapper.get_rename_mapper()  # type: ignore[union-attr, operator]
    copies: dict[str, dict[str, int]] = {}
    for name in names:
        (new,) = rename.apply_list([name])
        owner, _, leaf = new.rpartition(".")
        above, _, last = owner.rpartition(".")
        if owner not in modules:
            owner = f"{above}.{PACKED.get(last, last)}"
        if owner not in modules:
            raise ValueError(f"vLLM's model has no place for {name}; sample with HFEngine")
        copies.setdefault(f"{owner}.{leaf}", {})[name] = _copies(modules[owner], last, leaf, ranks)
    own = {name.replace(".base_layer", "") for name, _ in model.named_parameters(remove_duplicate=False)}
    if left_out := own - copies.keys():
        raise ValueError(f"vLLM's model has a weight that was not sent: {min(left_out)}")
    return {name: Held(those, *_total(modules, name)) for name, those in copies.items()}


def _copies(module: Any, part: str, leaf: str, ranks: int) -> int:
    """On how many ranks each number of a weight is: on one where the layer is split, else on all."""
    if ranks == 1:
        return 1
    from vllm.model_executor.layers import linear, vocab_parallel_embedding  # pyright: ignore

    split = linear.ColumnParallelLinear | linear.RowParallelLinear
    if not isinstance(module, split | vocab_parallel_embedding.VocabParallelEmbedding):
        return ranks
    if isinstance(module, linear.RowParallelLinear) and leaf == "bias":
        return ranks
    several = isinstance(module, linear.QKVParallelLinear) and part in ("k_proj", "v_proj")
    return ranks // module.tp_size * (module.num_kv_head_replicas if several else 1)


@torch.inference_mode()
def _total(modules: Mapping[str, nn.Module], name: str) -> tuple[float, float]:
    """The sum of a weight, and its rounding; of one that is packed for the CPU, as what it makes of ones."""
    owner, _, leaf = name.rpartition(".")
    module = modules[owner]
    tensor: Tensor = getattr(module, leaf)
    if leaf != "weight" or "cpu_linear" not in vars(module):
        return Sum.of([tensor]).total, EXACT
    width = module.embedding_dim if "embedding_dim" in vars(module) else module.input_size_per_partition
    ones = torch.ones(1, width, dtype=tensor.dtype)  # type: ignore[arg-type]
    out = module.cpu_linear(ones, tensor, None)  # type: ignore[operator]
    return float(out.sum(dtype=torch.float64)), float(torch.finfo(tensor.dtype).eps)


def sent_adapters(lora: LoRA, adapters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Sum]:
    """What ``held_adapter`` must find: vLLM scales the second matrices when it reads them.

    Args:
        lora: Its options.
        adapters: As they were sent.
        dtype: What vLLM computes in.
    """
    return {
        letter: Sum.of(scale * t.to(dtype) for name, t in adapters.items() if f"lora_{letter}" in name)
        for letter, scale in (("A", 1.0), ("B", lora.alpha / lora.rank))
    }


def held_adapter(runner: Any, number: int) -> dict[str, Sum]:
    """The sums of all first (``A``) and all second (``B``) matrices of adapters, these scaled."""
    layers = runner.lora_manager._adapter_manager.get_adapter(number).loras.values()
    first, second = [_several(one.lora_a) for one in layers], [_several(one.lora_b) for one in layers]
    return {"A": Sum.of(chain.from_iterable(first)), "B": Sum.of(chain.from_iterable(second))}


def _several(matrices: Any) -> list[Tensor]:
    """A matrix, or those of a packed layer."""
    return [m for m in matrices if m is not None] if isinstance(matrices, list) else [matrices]


class AdapterSums:
    """Makes ``vllm serve`` say what its newest adapters add up to, for ``--worker-extension-cls``."""

    model_runner: Any

    def adapter_sums(self) -> dict[str, float]:
        """The sum of all first (``A``) and of all second (``B``) matrices, these scaled."""
        newest = max(self.model_runner.lora_manager.list_adapters())
        return {letter: total for letter, (total, _) in held_adapter(self.model_runner, newest).items()}
