"""Reinforcement learning of reasoning on LoRA adapters."""

__version__ = "0.1.0"
