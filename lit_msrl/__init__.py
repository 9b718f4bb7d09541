"""Generative multimodal reward models, trained by multi-stage reinforcement learning."""
