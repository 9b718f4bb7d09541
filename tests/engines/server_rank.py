"""One rank of two that share a server; run as ``python -m tests.engines.server_rank URL STORE RANK``.

Prints its completions, and then what it says when the server refuses the second rank, answers the first with
what no one expects, and takes no weights any more.
"""

from __future__ import annotations

import sys
import urllib.request

import torch
from torch.distributed.device_mesh import init_device_mesh

from lit_msrl.engines import Sampling, VLLMServerEngine
from lit_msrl.strategies import shard
from tests.conftest import picture_prompt, text_prompt, tiny_internvl

if __name__ == "__main__":
    url, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    policy = tiny_internvl(max_length=1024)
    policy.train_only(["language", "vision"])
    shard(policy, init_device_mesh("cpu", (2,)))
    prompts = [text_prompt() if rank else picture_prompt()]
    engine, sampling = VLLMServerEngine(url, check=False), Sampling(group_size=2, max_length=4)
    drawn = engine.generate(policy, prompts, policy.encode(prompts), sampling=sampling, seed=rank)
    print("drawn", drawn.ids.tolist())
    for failure in ("refuse", "puzzle", "break"):
        torch.distributed.barrier()
        urllib.request.urlopen(f"{url}/{failure}").read()
        try:
            engine.generate(policy, prompts, policy.encode(prompts), sampling=sampling, seed=rank)
        except (ValueError, LookupError, RuntimeError) as error:
            print(failure, repr(error))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.1
    torch.distributed.destroy_process_group()
