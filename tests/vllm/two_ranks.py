"""What one rank of two does: ``python -m tests.vllm.two_ranks FILE WHERE [MODEL]`` with ``RANK`` set.

A sharded policy is sent to the vLLM of each rank (``WHERE`` is 1), to the one that both run together (2), or
to a server that serves ``MODEL`` (its URL). Each draws for other prompts than its neighbour, and not as many.
"""

from __future__ import annotations

import atexit
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lit_msrl.adapters import LoRA
from lit_msrl.engines import VLLMEngine, VLLMServerEngine
from lit_msrl.engines.vllm_sampler import Sampler
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.strategies import gathered, local, shard
from tests.vllm.made import PROMPTS, draw, garbled, model


def main(store: str, where: str, served: str | None = None) -> None:
    """Draw before and after a step, each time with the policy's log-probabilities; then with a slice
    of the second rank that was changed on the way."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    atexit.register(dist.destroy_process_group)  # as Lightning does
    mesh = init_device_mesh("cpu", (2,))
    mine = PROMPTS[:1] if rank == 0 else PROMPTS[1:]
    for lora in (LoRA(4, 8), None):
        if served is None:
            policy = model(lora=lora, key_heads=1)  # which both must have
            engine = VLLMEngine(timeout=600, tensor_parallel=int(where))
        else:
            policy = GenerativeRMPolicy(served, max_length=1024, lora=lora)
            engine = VLLMServerEngine(where, timeout=300)
        policy.train_only(["language"])
        shard(policy, mesh)
        for _ in range(2):
            drawn = draw(engine, policy, mine, max_length=12, seed=rank)
            assert len(drawn.ids) == 3 * len(mine)
            with gathered(policy), torch.no_grad():
                learned, _ = type(policy).logprobs(policy, policy.encode(mine), drawn.ids, drawn.mask)
            error = float((drawn.logprobs - learned).abs().max())
            print(f"rank {rank} lora {lora is not None}: {error:.1e}", flush=True)
            assert error < 1e-4
            with torch.no_grad():
                for parameter in policy.parameters():
                    if parameter.requires_grad:
                        local(parameter).add_(0.05 * torch.randn_like(local(parameter)))
    if where == "2":  # else the first rank would wait for the second, which ends
        if rank == 1:
            Sampler.reload = garbled(Sampler.reload)  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=r"layers\.1\.mlp\.gate_up_proj\.weight adds up to"):
            draw(engine, policy, mine)
    dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
