"""Sampled tokens → the text of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Decoder:
    """Tokens → text. Special tokens such as `<think>` are kept in the text, except those that only delimit it."""

    tokenizer: Any
    silent: dict[int, str]
    """The tokens left out: beginning and end of sequence, padding, unknown."""

    @classmethod
    def of(cls, tokenizer: Any) -> Decoder:
        names = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
        tokens = {getattr(tokenizer, f"{name}_token_id", None): getattr(tokenizer, f"{name}_token") for name in names}
        return cls(tokenizer, {number: text for number, text in tokens.items() if number is not None})

    def text(self, token_ids: Sequence[int]) -> str:
        kept_ids = [number for number in token_ids if number not in self.silent]
        return str(self.tokenizer.decode(kept_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def spoken(self, output: Any, *, stops: bool) -> str:
        """The text of vLLM's output, without the token that ended the completion, if one did.

        With stop strings vLLM already decoded the text, with all special tokens.
        """
        if not stops:
            return self.text(output.token_ids[:-1] if output.finish_reason == "stop" else output.token_ids)
        text = str(output.text)
        for token in self.silent.values():
            text = text.replace(token, "")
        return text
