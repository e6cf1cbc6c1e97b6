"""Model name → where its files are, and whether the required ones exist."""

from __future__ import annotations

import contextlib
import copy
import json
import shlex
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from datafiles.text import first_line, in_one_line
from rollout.adapters import PEFT_CONFIG
from rollout.config import ModelConfig
from rollout.files.weights import check_weights
from rollout.hub import HubItem

EMBEDDED = "embedded"
EMBEDDED_DIR = Path(__file__).parent / "embedded"
SHAPES = Path(__file__).parent / "shapes"
"""Directories with the public config.json, and nothing else, of the models that the shipped recipes name."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""A tokenizer that transformers can read has at least one of these files, whatever its kind."""
TEKKEN = "tekken.json"
"""The tokenizer file of Mistral's own library; some of its models have no other."""


def from_home(name: str | Path) -> Path:
    """Expand `~` in a path. If the home directory is unknown the path is returned as written, and simply does not
    exist, like any other wrong path."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def locate_model(name: str, key: str = "model.name") -> str:
    """The directory of a local model, or the hub id as given.

    Raises `FileNotFoundError` if the name can only be a path and no model is there.
    """
    if name == EMBEDDED:
        return str(EMBEDDED_DIR)
    path = from_home(name)
    if (path / "config.json").is_file():
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or path.exists():
        found = "an adapter is there, without its base model" if (path / "adapter_config.json").is_file() else None
        raise FileNotFoundError(f"{key}: {name!r} is not a model directory ({found or 'no config.json there'})")
    return name


def model_title(name: str) -> str:
    """A model's name in lower case, independent of its location: the last part of a hub id or path; for a directory in
    the hub's cache (`models--ORG--NAME/snapshots/COMMIT`), the repository's name."""
    cached = next((part for part in Path(name).parts if part.startswith("models--")), "")
    return (cached.rpartition("--")[2] or Path(name).name).lower()


def locate_config(model: ModelConfig) -> str:
    """Where the model's config.json is: a directory, possibly one of the shapes that ship with the project, or the hub
    id as given. An explicit revision may have another shape, so it never uses a shipped one."""
    place, shape = locate_model(model.name), SHAPES / model.name
    known = place == model.name and model.revision is None and (shape / "config.json").is_file()
    return str(shape) if known else place


def read_model_config(place: str, revision: str | None, what: str) -> Any:
    """A model's configuration, as transformers reads it from the place that `locate_config` returned.

    `what`: the key and the name that the user gave, for messages. Raises a one-line `ValueError` if transformers knows
    no such model.
    """
    from transformers import AutoConfig  # heavy; commands that fail earlier never pay for it

    refuse_code_of_models()
    with made_by_transformers(what):
        model_config = AutoConfig.from_pretrained(place, revision=revision)
    refuse_encoder(model_config, what)
    return model_config


def refuse_encoder(model_config: Any, what: str) -> None:
    """Raises `ValueError` for a model that is not a causal language model (BERT, BART), although transformers could
    load it as one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES  # heavy, as above

    kind = model_config.model_type
    if getattr(model_config, "is_encoder_decoder", False):
        found = "an encoder-decoder"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(model_config, "is_decoder", None) is False:
        found = "an encoder, a masked language model"
    else:
        return
    raise ValueError(f"{what}: a model of type {kind} is {found}: give a decoder-only model")


def is_wrapper(model_config: Any) -> bool:
    """Whether the model is multimodal: its language model is one part beside vision or audio parts."""
    return model_config.get_text_config() is not model_config


def auto_class(model_config: Any) -> Any:
    """The class to load a model with. Multimodal wrappers are loaded whole, as they are stored and served, so that the
    module names in an adapter match the sampler's."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # heavy, as in `read_model_config`

    return AutoModelForImageTextToText if is_wrapper(model_config) else AutoModelForCausalLM


def load_model(model_config: Any, place: str, what: str, **settings: Any) -> Any:
    """Load a model on the CPU with every weight from its files; `settings` go to transformers.

    `what`: as in `read_model_config`. Raises `ValueError` as `_with_every_weight` does. Also if the files hold an
    output embedding that config.json ties to the input embedding: transformers uses it, and vLLM does not.
    """
    model = _with_every_weight(model_config, place, what, **settings)
    is_tied = getattr(model_config.get_text_config(), "tie_word_embeddings", False) and model._tied_weights_keys
    if is_tied and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise ValueError(
            f"{what}: its files hold an output embedding other than the input embedding, and by its config.json the "
            "two are one (tie_word_embeddings), as vLLM would have them: set tie_word_embeddings to false there"
        )
    return model


def check_every_weight(model_config: Any, place: str, revision: str | None, what: str) -> None:
    """Raises `ValueError` if a model's files lack a weight, from their tables of contents alone; of a hub model they
    are fetched. vLLM would not notice: it leaves the memory of the weight as it finds it.

    Of a quantized model, and of one that transformers knows only as more than a language model, nothing is known.
    """
    quantized = getattr(model_config, "quantization_config", None)
    if quantized or type(model_config) not in auto_class(model_config)._model_mapping:
        return
    # Of two tied embeddings transformers takes either for the other, and vLLM reads the input embedding alone.
    tied = meta_model(model_config, what).all_tied_weights_keys
    stored = copy.deepcopy(model_config)
    for part in (stored, stored.get_text_config()):
        part.tie_word_embeddings = False
    with _silent_transformers():
        _with_every_weight(stored, place, what, spared=tied.keys(), revision=revision, device_map="meta")


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    from transformers.utils import logging  # heavy, as in `read_model_config`

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _with_every_weight(
    model_config: Any, place: str, what: str, *, spared: Set[str] = frozenset(), **settings: Any
) -> Any:
    """The model as transformers loads it. Raises `ValueError` if a weight that is not `spared` is missing, or one has
    another shape: transformers would silently initialize the former at random, and fails on the latter with a long
    traceback."""
    try:
        model, found = auto_class(model_config).from_pretrained(
            place, config=model_config, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except RuntimeError as error:  # the weights of experts, stacked when loaded, that are too few or differ in size
        if "conversion of the weights" not in str(error):
            raise
        raise ValueError(
            f"{what}: its files lack some of the weights that transformers joins into one, as of a layer's experts: "
            "config.json is another model's, or a file is incomplete"
        ) from error
    shapes = ((name, list(stored), list(own)) for name, stored, own in found["mismatched_keys"])
    lacking = sorted(found["missing_keys"] - spared)
    lacking += sorted(f"{name}, {stored} there and {own} by it" for name, stored, own in shapes)
    if lacking:
        raise ValueError(
            f"{what}: its files lack {len(lacking)} of the weights that config.json asks for ({lacking[0]}), which "
            "would be random: config.json is another model's, or a file is incomplete"
        )
    return model


def meta_model(model_config: Any, what: str) -> Any:
    """The model on torch's meta device: modules and sizes without weights. Errors: as `read_model_config`."""
    import torch  # heavy, as in `read_model_config`

    with torch.device("meta"), made_by_transformers(what):
        return auto_class(model_config).from_config(model_config)


def layer_sizes(model_config: Any, what: str) -> dict[str, tuple[int, int] | None]:
    """Path of each module of a model → (inputs, outputs) of a linear layer, (tokens, width) of an embedding, None for
    other modules. Errors: as `read_model_config`."""
    from torch import nn  # heavy, as in `read_model_config`

    sizes: dict[str, tuple[int, int] | None] = {}
    for path, module in meta_model(model_config, what).named_modules():
        if isinstance(module, nn.Linear):
            sizes[path] = (module.in_features, module.out_features)
        else:
            sizes[path] = (module.num_embeddings, module.embedding_dim) if isinstance(module, nn.Embedding) else None
    return sizes


@contextlib.contextmanager
def made_by_transformers(what: str) -> Iterator[None]:
    """Turn errors raised in the block, where transformers builds a configuration or modules from a config.json, into
    one line. The file may hold anything, and a family's code fails wherever it first uses a bad value: a number in
    quotes, an unknown activation, zero heads, a missing package. `what` and errors: as `read_model_config`."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ImportError,
        ArithmeticError,
        AssertionError,
        RuntimeError,
    ) as error:
        found = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        message = first_line(found)
        if "trust_remote_code" in message:
            message = "it needs custom code, which is never run: give a model that transformers supports by itself"
        kind = "" if isinstance(found, ValueError) else f"{type(found).__name__}: "
        raise ValueError(f"{what}: transformers cannot build a model from its config.json: {kind}{message}") from error


def read_tokenizer(place: str, revision: str | None = None) -> Any:
    """The tokenizer of a model, from the place that `locate_model` returned.

    Never the tokenizer of Mistral's own library, which transformers picks for a model with a `tekken.json` beside its
    other files: it has no chat template, and lacks tokens that the sampler needs.
    Raises a one-line `ValueError` for damaged files. Also without any: for many families transformers would return a
    tokenizer that knows its special tokens alone, and reads every text as nothing.
    """
    from transformers import AutoTokenizer  # heavy; commands that fail earlier never pay for it

    refuse_code_of_models()
    with _unreadable_explained(place):
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, mistral_format=False)
    if Path(getattr(tokenizer, "vocab_file", None) or "").name == TEKKEN:
        raise ValueError(f"{place} {_only_tekken(place)}")
    with _unreadable_explained(place):
        tokenizer("1")  # some settings are first looked at here
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not tokenizer.get_vocab().keys() - special - {*tokenizer.all_special_tokens}:
        raise ValueError(f"{place} has no tokenizer (none of {', '.join(TOKENIZERS)} is there)")
    return tokenizer


@contextlib.contextmanager
def _unreadable_explained(place: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{place}: its tokenizer cannot be read: {kind}{in_one_line(error)}") from error


def end_tokens(place: str, revision: str | None, model_config: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion, as vLLM determines them: those in generation_config.json, or in config.json if
    there is none, plus the tokenizer's end-of-sequence token. Raises ValueError if what is stated is no token."""
    from transformers import GenerationConfig  # heavy, as in `read_tokenizer`

    try:
        stated = GenerationConfig.from_pretrained(place, revision=revision or "main").eos_token_id
    except OSError:
        stated = GenerationConfig.from_model_config(model_config).eos_token_id
    except Exception as error:  # whatever transformers meets in values that it does not check
        raise ValueError(f"{place}: its generation_config.json cannot be read: {in_one_line(error)}") from error
    ends = stated if isinstance(stated, list) else [stated]
    if wrong := [end for end in ends if end is not None and type(end) is not int]:
        raise ValueError(
            f"{place}: eos_token_id of its generation_config.json or config.json is {wrong[0]!r}, no token"
        )
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def _only_tekken(place: str) -> str:
    """The message for a model whose only tokenizer is `TEKKEN`, and what the user can do about it."""
    here = Path(place).is_absolute()
    directory = place if here else "DIR"
    made = f"convert({json.dumps(f'{directory}/{TEKKEN}')}).save_pretrained({json.dumps(directory)})"
    code = f"from transformers.integrations.mistral import convert_tekken_tokenizer as convert; {made}"
    return (
        f"has no tokenizer but {TEKKEN}, of which transformers reads neither special tokens nor a chat template: "
        + ("" if here else f"fetch it with `hf download {place} --local-dir DIR`, give that directory, and ")
        + f"write a tokenizer.json into it with  python -c {shlex.quote(code)}"
    )


def hub_items(model: ModelConfig, key: str = "model.name") -> list[HubItem]:
    """The hub repositories needed to load the model."""
    if Path(locate_model(model.name, key)).is_absolute():
        return []
    remedy = "give the directory of a model"
    return [HubItem(what=key, repo=model.name, kind="model", revision=model.revision, instead=remedy)]


def hub_items_of_config(model: ModelConfig) -> list[HubItem]:
    """The hub repositories needed to read only the model's config.json."""
    if Path(locate_config(model)).is_absolute():
        return []
    shipped = (SHAPES / model.name / "config.json").is_file()
    either = ", or model.revision=null to use the shape that ships with the project" if shipped else ""
    return [replace(item, instead=f"{item.instead}{either}") for item in hub_items(model)]


def check_tokenizer(name: str, key: str = "model.name") -> None:
    """Raises `ValueError` for a directory whose only tokenizer is `TEKKEN`."""
    place = Path(locate_model(name, key))
    if (place / TEKKEN).is_file() and not any((place / file).is_file() for file in TOKENIZERS):
        raise ValueError(f"{key}: {name!r} {_only_tekken(str(place))}")


def check_files(name: str, key: str = "model.name") -> None:
    """Raises `FileNotFoundError` or `ValueError` for a directory with an incomplete model."""
    place = Path(locate_model(name, key))
    if not place.is_absolute():
        return
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}: {place / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{key}: {place / 'config.json'} does not describe a model: it has no model_type")
    if (place / PEFT_CONFIG).is_file():
        raise ValueError(
            f"{key}: {str(place)!r} holds a model and an adapter ({PEFT_CONFIG}), which transformers would add to the "
            f"model and vLLM would not: move {PEFT_CONFIG} and the adapter's weights into a directory of their own"
        )
    check_tokenizer(name, key)
    if not any((place / file).is_file() for file in TOKENIZERS):
        raise FileNotFoundError(f"{key}: {name!r} has no tokenizer (none of {', '.join(TOKENIZERS)} is there)")
    check_weights(place, key)


def refuse_code_of_models() -> None:
    """Refuse to run Python files that come with a model; by default transformers would ask at the terminal."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def values_of_layers(text_config: Any, name: str) -> list[Any]:
    """The values that a language model's configuration gives for an attribute, over all layers; empty if it has none.

    Some families list a number per layer (Gemma 3n). For others whose layers differ (the heads of Gemma 4),
    transformers refuses to return a single number.
    """
    differ = name in (getattr(text_config, "per_layer_attributes", None) or ())
    found = [getattr(layer, name, None) for layer in (text_config.per_layer_config if differ else [text_config])]
    return [one for value in found if value is not None for one in (value if isinstance(value, list) else [value])]
