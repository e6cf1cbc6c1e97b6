"""Imported once by the process that runs are forked from: everything that takes long to load."""

from rollout.loading import loading

with loading():
    import deepspeed  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    import trl  # noqa: F401
    import vllm.model_executor.models.qwen3
    import vllm.v1.worker.cpu_worker  # noqa: F401

    import evals.__main__  # noqa: F401
    import rl_engine.train.__main__
    import rl_engine.train.one_run  # noqa: F401
    import rollout.vllm.engine  # noqa: F401
