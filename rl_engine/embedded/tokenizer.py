"""The embedded model's tokenizer: one token a character, and one for `\\boxed{`."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
BOX = "\\boxed{"
VOCABULARY = (PAD, END, UNKNOWN, "\n", " ", "+", "-", "=", "?", BOX, "}", *"0123456789")

# The prompt is the problem on a line of its own; the completion starts on the next.
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{{ '\n' }}{% endfor %}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
