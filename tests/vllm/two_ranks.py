"""What one rank of two does; run as ``python -m tests.vllm.two_ranks FILE`` with ``RANK`` set.

A sharded policy is sent to the vLLM of each rank, which draws for other prompts than its neighbour's.
"""

from __future__ import annotations

import atexit
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lit_msrl.adapters import LoRA
from lit_msrl.engines import VLLMEngine
from lit_msrl.strategies import gathered, local, shard
from tests.vllm.made import PROMPTS, draw, model


def main(store: str) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    atexit.register(dist.destroy_process_group)  # as Lightning does
    mesh = init_device_mesh("cpu", (2,))
    mine = PROMPTS[:1] if rank == 0 else PROMPTS[1:]
    for lora in (None, LoRA(4, 8)):
        policy, engine = model(lora=lora), VLLMEngine(timeout=600)
        policy.train_only(["language"])
        shard(policy, mesh)
        for _ in range(2):
            drawn = draw(engine, policy, mine, max_length=6 + 6 * rank)
            with gathered(policy), torch.no_grad():
                learned, _ = type(policy).logprobs(policy, policy.encode(mine), drawn.ids, drawn.mask)
            error = float((drawn.logprobs - learned).abs().max())
            print(f"rank {rank} lora {lora is not None}: {error:.1e}", flush=True)
            assert error < 1e-4
            with torch.no_grad():
                for parameter in policy.parameters():
                    if parameter.requires_grad:
                        local(parameter).add_(0.05 * torch.randn_like(local(parameter)))
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
