"""Examples → updates, by TRL's SFTTrainer. The only file that imports trl.

The loss of a step is the sum of −log p over its learned tokens, divided by their number in the whole step, however it
is split into micro-batches. Examples arrive with their labels, so TRL renders, tokenizes, truncates and drops nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig as TrlConfig
from trl.trainer.sft_trainer import SFTTrainer

from rl_engine.config.sft import SftConfig
from rl_engine.policy.logits import transform_of
from rl_engine.policy.logprobs import decoder_of, keep_evaluating, token_logprobs_of_trained_head
from rl_engine.policy.lora.linear import LoraLinear
from rl_engine.policy.trainable import TrainablePolicy
from rl_engine.sft.examples import IGNORED, Example


def rows_of(examples: Sequence[Example], max_tokens: int, *, packing: bool) -> Dataset:
    """The examples as the trainer's dataset; packed, rows of up to `max_tokens` with the lengths of their parts."""
    disable_progress_bars()
    rows = Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})
    return pack_dataset(rows, max_tokens, "bfd") if packing else rows


class _Trainer(SFTTrainer):
    """TRL's trainer, with the model in evaluation mode as in reinforcement learning."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        keep_evaluating(model, model.training)
        return self.loss(model, inputs, *args, **kwargs)

    def loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]


def _needs_own_loss(causal_lm: Any) -> bool:
    """Whether TRL's loss cannot handle the model: it would ignore an adapter on the output embedding, and it does not
    find the decoder of Llama 4."""
    return isinstance(causal_lm.get_output_embeddings(), LoraLinear) or causal_lm.base_model is causal_lm


class _OwnLoss(_Trainer):
    """Trainer for models that TRL's loss cannot handle."""

    def loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        labels_BT = inputs.pop("labels")
        hidden_BTH = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
        learned_BT = labels_BT[:, 1:] != IGNORED
        logprob_N, _ = token_logprobs_of_trained_head(
            hidden_BTH[:, :-1][learned_BT],
            model.get_output_embeddings(),
            labels_BT[:, 1:][learned_BT],
            1.0,
            transform_of(model.config),
        )
        loss: Tensor = -logprob_N.sum() / num_items_in_batch
        return loss


def make_trainer(
    config: SftConfig,
    trainable: TrainablePolicy,
    tokenizer: Any,
    rows: Dataset,
    optimizer: torch.optim.Optimizer,
    callback: TrainerCallback,
    *,
    done: int,
    steps: int,
) -> Any:
    """Make a trainer for the steps after `done`, which takes `rows` in order."""
    train, on_cpu = config.train, not torch.cuda.is_available()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.optim.rate_factor(steps, done + step))
    arguments = TrlConfig(
        output_dir=str(Path(config.output_dir)),
        seed=config.seed,
        use_cpu=on_cpu,
        # The model already computes in its own precision.
        bf16=False,
        max_steps=steps - done,
        per_device_train_batch_size=train.microbatch,
        gradient_accumulation_steps=train.batch_size // train.microbatch,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=config.data.packing,
        max_length=config.data.max_tokens,
        max_grad_norm=config.optim.clip_norm,
        ddp_find_unused_parameters=False,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        # The load-balancing loss of mixture-of-experts models is left out.
        router_aux_loss_coef=0.0,
        # The run's own callback writes, saves and measures.
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
    # The trainer would use all visible cards at once, which TRL refuses; a run uses one card.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    own = _needs_own_loss(trainable.causal_lm)
    kind, model = (_OwnLoss, trainable.causal_lm) if own else (_Trainer, trainable.model)
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    # Any token will do where the mask is zero; the tokenizer's padding token may not exist in the model.
    vars(trainer.data_collator)["pad_token_id"] = 0
    # Some families (Qwen3.5, Gemma 4) declare that their own loss cannot be divided by the token count of the whole
    # step, and would get the mean of micro-batch means instead. But the loss here is always TRL's or ours.
    trainer.model_accepts_loss_kwargs = True
    return trainer


@torch.no_grad()
def log_loss(trainer: Any, examples: Sequence[Example]) -> float:
    """Mean −log p of a learned token, in nats: the mean over all tokens, not over micro-batches."""
    model = trainer.model
    was_training = model.training
    model.eval()
    total, one = 0.0, torch.tensor(1, device=trainer.args.device)
    size = trainer.args.per_device_train_batch_size
    by_length = sorted(examples, key=lambda example: len(example.input_ids))
    for first in range(0, len(by_length), size):
        chosen = by_length[first : first + size]
        rows = [{"input_ids": e.input_ids.tolist(), "labels": e.labels.tolist()} for e in chosen]
        batch = {
            name: value.to(trainer.args.device) if isinstance(value, Tensor) else value
            for name, value in trainer.data_collator(rows).items()
        }
        total += float(trainer.compute_loss(model, batch, num_items_in_batch=one))
    model.train(was_training)
    return total / sum(example.learned_tokens for example in examples)
