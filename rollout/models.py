"""Model name → where its files are, and whether what is needed of them is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from datafiles.text import first_line
from rollout.adapters import PEFT_CONFIG
from rollout.config import ModelConfig
from rollout.hub import HubItem

EMBEDDED = "embedded"
EMBEDDED_DIR = Path(__file__).parent / "embedded"
SHAPES = Path(__file__).parent / "shapes"
"""Directories with the public config.json, and nothing else, of the models that the shipped recipes name."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer that transformers reads has one, whatever its kind."""
TEKKEN = "tekken.json"
"""That of Mistral's own library, and of some of its models the only one."""
SINGLE = "model.safetensors"
"""Of a model's weights that are in one file, its name."""
INDICES = (f"{SINGLE}.index.json", "pytorch_model.bin.index.json")
LFS_POINTER = b"version https://git-lfs"


def from_home(name: str | Path) -> Path:
    """A path that may begin at a home directory; as it is written where nobody knows that directory: then nothing is
    there, as at any other path that is wrong."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


PLACES, PLACE_BYTES = 64, 1 << 12
"""Of a file of weights: where it is looked at, evenly spread, and how much of it each time."""


def weights_in(directory: Path) -> str | None:
    """A digest of the weights in a model's directory, of places all over them: `adapters/latest` of a run names another
    model an hour later, and a trainer writes where it wrote before. None where there are none, as for a hub id.

    Only of the files that are loaded: a copy in Mistral's own format beside them may be removed to save space.
    """
    digest = hashlib.sha256()
    index = directory / INDICES[0]
    loaded = _named_in(index, "weights") if index.is_file() else {SINGLE}
    files = sorted(path for path in directory.glob("*.safetensors") if path.name in loaded)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for place in range(PLACES):
                file.seek(size * place // PLACES)
                digest.update(file.read(PLACE_BYTES))
    return digest.hexdigest() if files else None


def locate_model(name: str, key: str = "model.name") -> str:
    """The directory of a local model, or the hub id as given.

    Raises `FileNotFoundError` when the name can only be a path and nothing is there.
    """
    if name == EMBEDDED:
        return str(EMBEDDED_DIR)
    path = from_home(name)
    if (path / "config.json").is_file():
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        found = "an adapter is there, without its base model" if (path / "adapter_config.json").is_file() else None
        raise FileNotFoundError(f"{key}: {name!r} is not a model directory ({found or 'no config.json there'})")
    return name


def model_title(name: str) -> str:
    """What a model is called wherever it lies, in small letters: the last part of a hub id or a path, or of a directory
    in the hub's cache (`models--ORG--NAME/snapshots/COMMIT`) the repository's."""
    cached = next((part for part in Path(name).parts if part.startswith("models--")), "")
    return (cached.rpartition("--")[2] or Path(name).name).lower()


def locate_config(model: ModelConfig) -> str:
    """Where the model's config.json is: a directory, that of a shape that ships with the project included, or the hub
    id as given. A revision of one's own may have another shape."""
    place, shape = locate_model(model.name), SHAPES / model.name
    known = place == model.name and model.revision is None and (shape / "config.json").is_file()
    return str(shape) if known else place


def read_model_config(place: str, revision: str | None, what: str) -> Any:
    """A model's configuration, as transformers reads the config.json where `locate_config` has it.

    `what`: the key and the name that it was given as, for people. Raises `ValueError`, in one line, for one that
    describes no model that transformers knows.
    """
    from transformers import AutoConfig  # heavy, for commands that have failed before

    refuse_code_of_models()
    with made_by_transformers(what):
        model_config = AutoConfig.from_pretrained(place, revision=revision)
    refuse_encoder(model_config, what)
    return model_config


def refuse_encoder(model_config: Any, what: str) -> None:
    """Raises `ValueError` for a model that does not continue a text (BERT, BART), though transformers has modules that
    would make one of it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES  # heavy, as above

    kind = model_config.model_type
    if getattr(model_config, "is_encoder_decoder", False):
        found = "an encoder with a decoder beside it"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(model_config, "is_decoder", None) is False:
        found = "an encoder, which fills gaps in a text"
    else:
        return
    raise ValueError(f"{what}: a model of type {kind} is {found}: give one that continues texts, a decoder alone")


def is_wrapper(model_config: Any) -> bool:
    """Whether a language model is one part of it, beside those that see or hear."""
    return model_config.get_text_config() is not model_config


def auto_class(model_config: Any) -> Any:
    """Wrappers as they are stored and served, so that an adapter's names are the sampler's."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # heavy, as in `read_model_config`

    return AutoModelForImageTextToText if is_wrapper(model_config) else AutoModelForCausalLM


def load_model(model_config: Any, place: str, what: str, **settings: Any) -> Any:
    """The model with every weight from its files, on the CPU; `settings` go to transformers.

    `what`: as in `read_model_config`. Raises `ValueError` where a weight is missing or has another shape: transformers
    would draw the one at random and go on, and stops at the other in many lines.
    """
    model, found = auto_class(model_config).from_pretrained(
        place, config=model_config, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    shapes = ((name, list(stored), list(own)) for name, stored, own in found["mismatched_keys"])
    lacking = sorted(found["missing_keys"])
    lacking += sorted(f"{name}, {stored} there and {own} by it" for name, stored, own in shapes)
    if lacking:
        raise ValueError(
            f"{what}: its files do not hold {len(lacking)} of the weights that config.json asks for ({lacking[0]}): "
            "they would be random; the two are of different models, or a file is not whole"
        )
    return model


def meta_model(model_config: Any, what: str) -> Any:
    """The model on torch's meta device, which has modules and sizes but no weights. Errors: as `read_model_config`."""
    import torch  # heavy, as in `read_model_config`

    with torch.device("meta"), made_by_transformers(what):
        return auto_class(model_config).from_config(model_config)


def layer_sizes(model_config: Any, what: str) -> dict[str, tuple[int, int] | None]:
    """Path of each module of a model → (inputs, outputs) of a linear layer, (tokens, width) of an embedding; None of
    others. Errors: as `read_model_config`."""
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
    """In the block a model's configuration, or its modules, are made of a config.json. The values in it are anybody's,
    and a family's code stops at a wrong one wherever it first computes with it: a number in quotes, an activation that
    there is none of, no heads, a package that is not here. `what` and errors: as `read_model_config`."""
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
        said = first_line(found)
        if "trust_remote_code" in said:
            said = "it needs custom code that lies beside it, which is never run: give a model that transformers knows"
        kind = "" if isinstance(found, ValueError) else f"{type(found).__name__}: "
        raise ValueError(f"{what}: its config.json makes no model here: {kind}{said}") from error


def read_tokenizer(place: str, revision: str | None = None) -> Any:
    """The tokenizer of a model where `locate_model` has it.

    Never that of Mistral's own library, which transformers takes for a model with a `tekken.json` beside its other
    files: that one has no chat template, and lacks tokens that the sampler asks it for.
    """
    from transformers import AutoTokenizer  # heavy, for commands that have failed before

    refuse_code_of_models()
    tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, mistral_format=False)
    if Path(getattr(tokenizer, "vocab_file", None) or "").name == TEKKEN:
        raise ValueError(f"{place} {_only_tekken(place)}")
    return tokenizer


def end_tokens(place: str, revision: str | None, model_config: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion, as vLLM reads them: those of generation_config.json, where there is none of
    config.json, and the tokenizer's."""
    from transformers import GenerationConfig  # heavy, as in `read_tokenizer`

    try:
        stated = GenerationConfig.from_pretrained(place, revision=revision or "main").eos_token_id
    except OSError:
        stated = GenerationConfig.from_model_config(model_config).eos_token_id
    ends = stated if isinstance(stated, list) else [stated]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def _only_tekken(place: str) -> str:
    """What is wrong with a model that has no other tokenizer, and what a person does about it."""
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
    """What loading the model would ask the hub for."""
    if Path(locate_model(model.name, key)).is_absolute():
        return []
    way_out = "give the directory of a model"
    return [HubItem(what=key, repo=model.name, kind="model", revision=model.revision, instead=way_out)]


def hub_items_of_config(model: ModelConfig) -> list[HubItem]:
    """What reading the model's config.json alone would ask the hub for."""
    return [] if Path(locate_config(model)).is_absolute() else hub_items(model)


def check_tokenizer(name: str, key: str = "model.name") -> None:
    """Raises `ValueError` for a directory whose only tokenizer is `TEKKEN`."""
    place = Path(locate_model(name, key))
    if (place / TEKKEN).is_file() and not any((place / file).is_file() for file in TOKENIZERS):
        raise ValueError(f"{key}: {name!r} {_only_tekken(str(place))}")


def check_files(name: str, key: str = "model.name") -> None:
    """Raises `FileNotFoundError` or `ValueError` for a directory that holds but a part of a model."""
    place = Path(locate_model(name, key))
    if not place.is_absolute():
        return
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}: {place / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{key}: {place / 'config.json'} is no model's: it has no model_type")
    if (place / PEFT_CONFIG).is_file():
        raise ValueError(
            f"{key}: {str(place)!r} holds a model and an adapter ({PEFT_CONFIG}), which transformers would add to the "
            f"model and vLLM would not: move {PEFT_CONFIG} and the adapter's weights into a directory of their own"
        )
    check_tokenizer(name, key)
    if not any((place / file).is_file() for file in TOKENIZERS):
        raise FileNotFoundError(f"{key}: {name!r} has no tokenizer (none of {', '.join(TOKENIZERS)} is there)")
    check_weights(place, key)


def check_weights(place: Path, key: str) -> None:
    """Raises `FileNotFoundError` where weights are missing, or stand-ins that git left for them are there."""
    weights = {path.name: path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in place.glob(pattern)}
    if not weights:
        raise FileNotFoundError(f"{key}: {str(place)!r} has no weights (no *.safetensors there)")
    for index in INDICES:
        if (place / index).is_file():
            wanted = _named_in(place / index, key)
            missing = sorted(wanted - weights.keys())
            if missing:
                raise FileNotFoundError(
                    f"{key}: {str(place)!r} has {len(wanted) - len(missing)} of {len(wanted)} files of weights; "
                    f"{missing[0]} is not there"
                )
            if SINGLE in weights and SINGLE not in wanted and index == f"{SINGLE}.index.json":
                raise ValueError(
                    f"{key}: {str(place)!r} has its weights twice, in {SINGLE}, which transformers reads, and in the "
                    f"files of {index}, which vLLM reads: remove those that are not meant, an index with its files"
                )
    if not any((place / index).is_file() for index in INDICES):
        _check_without_index(place, weights.keys(), key)
    for path in weights.values():
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise FileNotFoundError(
                    f"{key}: {path} is a pointer of git-lfs, not the weights: fetch them with `git lfs pull`"
                )


def _check_without_index(place: Path, names: Collection[str], key: str) -> None:
    """Raises `FileNotFoundError` for shards of weights whose index is missing, `ValueError` for a file beside the one
    of the weights: of several without an index vLLM reads all, the same weight again and again."""
    others = sorted(name for name in names if name.endswith(".safetensors") and name != SINGLE)
    if others and SINGLE in names:
        raise ValueError(
            f"{key}: {str(place)!r} has {others[0]} beside {SINGLE}: transformers reads the latter alone, vLLM both; "
            "move what is not meant to another directory"
        )
    if others and "pytorch_model.bin" not in names:
        raise FileNotFoundError(
            f"{key}: {str(place)!r} has weights in {others[0]}, and neither {SINGLE} nor {INDICES[0]}, which says what "
            "is in which file"
        )


def _named_in(index: Path, key: str) -> set[str]:
    """The files of weights that an index names. Raises `ValueError` for one that is damaged."""
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{key}: {index} is damaged: {error}") from error


def refuse_code_of_models() -> None:
    """transformers would ask at the terminal whether to run Python files that lie beside a model: here it refuses."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def said_of_layers(text_config: Any, name: str) -> list[Any]:
    """What a language model's configuration states under a name, of whichever layer; nothing where it states nothing.

    Some families list a number for each layer (Gemma 3n); of others whose layers differ (the heads of Gemma 4)
    transformers refuses to give one number for all.
    """
    differ = name in (getattr(text_config, "per_layer_attributes", None) or ())
    found = [getattr(layer, name, None) for layer in (text_config.per_layer_config if differ else [text_config])]
    return [one for value in found if value is not None for one in (value if isinstance(value, list) else [value])]
