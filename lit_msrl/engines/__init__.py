"""Rollout engines; one file each."""

from lit_msrl.engines.base import Completions, RolloutEngine, Sampling
from lit_msrl.engines.hf import HFEngine
from lit_msrl.engines.vllm import VLLMEngine
from lit_msrl.engines.vllm_server import VLLMServerEngine

__all__ = ["Completions", "HFEngine", "RolloutEngine", "Sampling", "VLLMEngine", "VLLMServerEngine"]
