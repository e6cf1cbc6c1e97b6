"""What a supervised run learns from: rows become turns or are dropped with counted reasons, turns become the tokens
that the sampler would see, and tested rows are never learned from."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datafiles.dropped import Dropped
from rl_engine.config.sft import ChatColumnsConfig, SftConfig, SftDataConfig, SftPromptConfig
from rl_engine.sft.conversations import Conversation, streams, turns
from rl_engine.sft.examples import ExampleRenderer, UnusableConversationError, load_examples
from rl_engine.sft.run import assemble
from rollout.config import ModelConfig
from rollout.frames import TULU
from rollout.prompts.renderer import Renderer
from rollout.stopping import StopRequest
from rollout.types import Problem
from tests.helpers.grown import SAID, write_grown
from tests.helpers.turns import learned, said

COLUMNS = ChatColumnsConfig(messages="messages", prompt="prompt", completion="completion")
# A template that cuts off what follows `=` in earlier assistant turns, as some templates cut off thinking.
FORGETFUL = (
    "{% for m in messages %}{{ m.role[0] + ':' }}"
    "{{ m.content if m.role == 'user' or loop.last else m.content.split('=')[0] }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


SETTING = {"role": "system", "content": "+"}
UNWANTED_ROW = "label is false: an undesirable answer, as in data for KTO; rename the column if it means anything else"
UNWANTED = {"role": "assistant", "content": "2", "weight": "0"}
CALLING = {"role": "assistant", "content": "2", "tool_calls": [{"function": {"name": "sum"}}]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": list(said("1+1", "2"))}, said("1+1", "2")),
        ({"messages": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]}, said("1", "2")),
        ({"prompt": "1+1", "completion": "2"}, said("1+1", "2")),
        ({"prompt": "1+1", "completion": 2}, said("1+1", "2")),
        ({"prompt": list(said("1+1")), "completion": [{"role": "assistant", "content": "2"}]}, said("1+1", "2")),
        (
            {"messages": [{"role": "user", "content": [{"text": " 1"}, {"text": "+1"}]}, *said("", "2")[1:]]},
            said(" 1+1", "2"),
        ),
        ({"messages": [{"role": "developer", "content": "+"}, *said("1", "2")]}, (SETTING, *said("1", "2"))),
        (
            {"messages": [said("1")[0], {**said("1", "2")[1], "reasoning_content": "1+1=", "thinking": None}]},
            (said("1")[0], {**said("1", "2")[1], "reasoning_content": "1+1="}),
        ),
        (
            {"messages": [said("1")[0], {"role": "assistant", "content": "<think>\n1+\n</think>2", "reasoning": "1+"}]},
            said("1", "<think>\n1+\n</think>2"),
        ),
        ({"messages": [said("1")[0], {**said("1", "2")[1], "weight": 0}]}, (said("1")[0], UNWANTED)),
        (
            {"messages": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2", "train": False}]},
            (said("1")[0], UNWANTED),
        ),
        ({"prompt": "1+1", "completion": "2", "label": True}, said("1+1", "2")),
        ({"prompt": "1+1", "completion": "3", "label": False}, UNWANTED_ROW),
        ({"prompt": "1+1", "completion": "3", "label": "False"}, UNWANTED_ROW),
        ({"prompt": "1+1", "completion": "3", "label": 0}, said("1+1", "3")),
        ({"messages": list(said("1+1", "3")), "label": False}, UNWANTED_ROW),
        ({"prompt": "1+1", "completion": list(said("1+1", "2"))}, said("1+1", "2")),
        ({"prompt": [SETTING, *said("1")], "completion": list(said("1", "2"))}, (SETTING, *said("1", "2"))),
        ({"prompt": list(said("1")), "completion": [SETTING, *said("1", "2")]}, (SETTING, *said("1", "2"))),
        (
            {"prompt": "1+1", "completion": list(said("1+2", "3"))},
            "completion begins with a question other than prompt's",
        ),
        ({"prompt": "1+1", "completion": math.nan}, "a turn without text"),
        ({"prompt": "1+1", "completion": {"a": 2}}, "content is a mapping, not a text"),
        ({"prompt": "1+1", "completion": [{"type": "text", "text": "2"}]}, said("1+1", "2")),
        ({"messages": [SETTING, {"role": "assistant", "content": "2"}]}, "does not begin with a question"),
        ({"prompt": "1+1"}, "neither messages nor prompt and completion"),
        ({"prompt": "1+1", "completion": " "}, "a turn without text"),
        ({"messages": "1+1"}, "messages is not a list of turns"),
        ({"messages": []}, "does not end with the assistant's turn"),
        ({"messages": list(said("1+1", "2", "3"))}, "does not end with the assistant's turn"),
        ({"messages": [{"role": "assistant", "content": "2"}]}, "does not begin with a question"),
        ({"messages": [{"role": "tool", "content": "2"}]}, "a turn has the unknown role 'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, "a turn without text"),
        # The text alone would be learned as the whole answer.
        ({"messages": [*said("1+1"), CALLING]}, "a turn calls a tool, which is not learned"),
        ({"messages": [*said("1+1"), {**CALLING, "tool_calls": None}]}, said("1+1", "2")),
    ],
)
def test_a_row_becomes_turns_or_a_reason(row: dict[str, Any], expected: Any) -> None:
    assert turns(row, COLUMNS) == expected


def test_a_label_that_is_the_answer_says_nothing_about_it() -> None:
    columns = ChatColumnsConfig(prompt="prompt", completion="label")
    assert turns({"prompt": "1>2?", "label": "False"}, columns) == said("1>2?", "False")


@pytest.mark.parametrize(
    "prompt",
    [
        SftPromptConfig(),
        SftPromptConfig(instruction="+"),
        SftPromptConfig(template="plain"),
        SftPromptConfig(template="frame", frame="?{problem}=", instruction="1"),
    ],
    ids=["chat", "instruction", "plain", "frame"],
)
def test_the_prompt_is_the_samplers_and_the_answer_ends(prompt: SftPromptConfig, tokenizer: Any) -> None:
    example = ExampleRenderer(tokenizer, prompt).example(Conversation(id="", messages=said("7-2", "\\boxed{5}")))
    asked = Renderer(tokenizer, prompt).render(Problem(id="", text="7-2", answer="")).token_ids
    answer = example.input_ids[len(asked) :].tolist()
    assert tuple(example.input_ids[: len(asked)].tolist()) == asked
    assert learned(example) == [answer]
    assert tokenizer.decode(answer) == "\\boxed{5}<end>"


@pytest.mark.parametrize("template", ["problem_solution", "chat"])
@pytest.mark.parametrize("scheme", ["first", "always", "prepend", "never"])
def test_no_space_is_learned_that_the_text_lacks(scheme: str, template: str) -> None:
    """The tokenizers of Llama 2, Mistral and others begin a text with a space; an answer only continues one."""
    letters = ["<unk>", "<s>", "</s>", "▁", *"\n:|<>+=", *ascii_letters, *digits]
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="<unk>"))
    first = [normalizers.Prepend("▁")] if scheme == "prepend" else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    if scheme in ("first", "always"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TULU
    )
    if template == "chat":
        turns = said("1+1", "x=2", "again", "y = 2")
        text = str(tokenizer.apply_chat_template(list(turns), tokenize=False)).rstrip()
    else:
        turns = said("1+1", "x=2")
        text = "Problem:\n1+1\n\nSolution:\nx=2</s>"
    renderer = ExampleRenderer(tokenizer, SftPromptConfig(template=template))
    example = renderer.example(Conversation(id="", messages=turns))
    assert example.input_ids.tolist() == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(learned(example)[0]) == ["x", "=", "2", "</s>"]


def test_every_answer_is_learned_where_the_template_keeps_it(tokenizer: Any) -> None:
    tokenizer.chat_template = TULU
    messages = ({"role": "system", "content": "+"}, *said("1", "2=3", "4", "5"))
    example = ExampleRenderer(tokenizer, SftPromptConfig()).example(Conversation(id="", messages=messages))
    assert [tokenizer.decode(ids) for ids in learned(example)] == ["2=3<end>", "5<end>"]
    # This tokenizer does not know letters, so `<unk>` shows where they are.
    text = tokenizer.decode(example.input_ids).replace("<unk>", "x")
    assert text == "xxxxxxxxxx\n+\nxxxxxxxx\n1\nxxxxxxxxxxxxx\n2=3<end>\nxxxxxxxx\n4\nxxxxxxxxxxxxx\n5<end>"


def test_a_turn_of_weight_zero_is_read_and_not_learned(tokenizer: Any) -> None:
    """OpenAI's files have such turns: an answer for the model to read, but not to give."""
    tokenizer.chat_template = TULU
    first, unwanted, *rest = said("1", "2", "4", "5")
    example = ExampleRenderer(tokenizer, SftPromptConfig()).example(
        Conversation(id="", messages=(first, {**unwanted, "weight": "0"}, *rest))
    )
    assert [tokenizer.decode(ids) for ids in learned(example)] == ["5<end>"]
    assert "2" in tokenizer.decode(example.input_ids)
    for prompt in (SftPromptConfig(), SftPromptConfig(template="plain")):
        with pytest.raises(UnusableConversationError, match="every assistant turn has weight 0"):
            ExampleRenderer(tokenizer, prompt).example(Conversation(id="", messages=(first, UNWANTED)))


def test_thoughts_are_learned_or_the_row_is_dropped(tokenizer: Any) -> None:
    """Thoughts beside a turn's content go where the template puts them, and are never lost silently."""
    thoughtful = "{% for m in messages %}{{ m.role[0] + ':' }}{{ m.reasoning_content }}{{ m.content }}{% endfor %}"
    tokenizer.chat_template = thoughtful + "{% if add_generation_prompt %}a:{% endif %}"
    question, answer = said("1+1", "2")
    row = Conversation(id="", messages=(question, {**answer, "reasoning_content": "1+1="}))
    example = ExampleRenderer(tokenizer, SftPromptConfig()).example(row)
    assert [tokenizer.decode(ids) for ids in learned(example)] == ["1+1=2<end>"]
    tokenizer.chat_template = TULU
    for prompt, reason in (
        (SftPromptConfig(), "the chat template leaves out a turn's reasoning_content"),
        (SftPromptConfig(template="plain"), "reasoning_content, for which prompt.template plain has no place"),
    ):
        with pytest.raises(UnusableConversationError, match=reason):
            ExampleRenderer(tokenizer, prompt).example(row)


def test_columns_beside_the_turns_are_named(tmp_path: Path) -> None:
    """A system prompt in its own column, or Alpaca's input, is not learned from."""
    row = {"conversations": list(said("1", "2")), "system": "+", "id": 1}
    data = {"source": "file", "path": write(tmp_path / "rows.jsonl", [row]), "columns": {"messages": "conversations"}}
    dropped = Dropped()
    list(streams(SftDataConfig.model_validate(data), dropped)[1])
    assert dropped.unread == ["system", "id"]


def test_arguments_of_the_template_are_the_samplers_too(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ mode }}{% for m in messages %}{{ m.content }}{% endfor %}"
    prompt = SftPromptConfig(template_arguments={"mode": "7+"})
    example = ExampleRenderer(tokenizer, prompt).example(Conversation(id="", messages=said("1", "2=3")))
    assert tokenizer.decode(example.input_ids) == "7+12=3<end>"
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + FORGETFUL
    with pytest.raises(ValueError, match=r"prompt\.system"):
        ExampleRenderer(tokenizer, SftPromptConfig(system="+"))


def test_only_the_last_answer_is_learned_where_others_change(tokenizer: Any) -> None:
    """A template may change earlier answers, for example by cutting off their thoughts."""
    tokenizer.chat_template = FORGETFUL
    conversation = Conversation(id="", messages=said("1", "2=3", "4", "5=6"))
    example = ExampleRenderer(tokenizer, SftPromptConfig()).example(conversation)
    assert [tokenizer.decode(ids) for ids in learned(example)] == ["5=6<end>"]
    assert tokenizer.decode(example.input_ids).replace("<unk>", "x") == "xx1\nxx2\nxx4\nxx5=6<end>"


def test_answers_before_an_end_of_the_whole_text_are_learned(tokenizer: Any) -> None:
    """Phi-3's template writes the end-of-sequence token once, behind the last answer."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}{{ m.content }}+\n{% endfor %}"
        "{% if add_generation_prompt %}a{% else %}{{ eos_token }}{% endif %}"
    )
    conversation = Conversation(id="", messages=said("1", "2=3", "4", "5=6", "7", "8"))
    example = ExampleRenderer(tokenizer, SftPromptConfig()).example(conversation)
    assert [tokenizer.decode(ids) for ids in learned(example)] == ["2=3+", "5=6+", "8+\n<end>"]
    whole = tokenizer.apply_chat_template(list(conversation.messages), tokenize=False)
    assert example.input_ids.tolist() == tokenizer.encode(whole, add_special_tokens=False)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def config_of(**data: Any) -> SftConfig:
    tree = {"output_dir": "x", "model": {"name": "embedded"}, "optim": {"lr": 1e-3}, "train": {"steps": 2}}
    return SftConfig.model_validate({**tree, "data": data, "seed": data.pop("run_seed", 0)})


def test_no_example_has_a_token_without_an_embedding(tmp_path: Path) -> None:
    place = write_grown(tmp_path)
    config = config_of(source="arithmetic", test_size=2).model_copy(update={"model": ModelConfig(name=str(place))})
    with pytest.raises(ValueError, match=re.escape(SAID)):
        assemble(config, AutoTokenizer.from_pretrained(place), StopRequest(), resume=False)


def test_tested_questions_are_never_learned_from(tmp_path: Path, tokenizer: Any) -> None:
    """The split follows the seed of the data, not that of the run."""
    # Thirty questions with four answers each.
    rows = [{"prompt": f"{q}=?", "completion": str(a)} for q in range(30) for a in range(4)]
    path = write(tmp_path / "rows.jsonl", rows)

    def texts(**data: Any) -> tuple[list[str], list[str]]:
        found = load_examples(config_of(source="jsonl", path=path, **data), tokenizer)
        return tuple([tokenizer.decode(e.input_ids) for e in part] for part in (found.train, found.test))  # type: ignore[return-value]

    train, test = texts(test_size=10)
    questions = {text.split("\n")[0] for text in test}
    assert len(test) == 10
    assert not questions & {text.split("\n")[0] for text in train}
    # All answers to the other questions are kept.
    assert len(train) == 4 * (30 - len(questions))
    assert texts(test_size=10, run_seed=5) == (train, test)
    assert texts(test_size=10, limit=20) == (train[:20], test)
    assert texts(test_size=10, seed=1)[1] != test
    other = write(tmp_path / "other.jsonl", [{"prompt": "3=?", "completion": "9"}])
    train, test = texts(test_size=10, test_path=other)
    assert (len(train), test) == (116, ["3=?\n9<end>"])
    dropped = load_examples(config_of(source="jsonl", path=path, test_path=other), tokenizer).dropped
    assert dropped.counts == {"its question is in the test set": 4}


def test_a_directory_is_tested_on_by_its_test_split(tmp_path: Path, tokenizer: Any) -> None:
    """`data.test_path` would read the directory's training split and then remove it from what is learned."""
    for name, question in (("train", "1"), ("test", "2")):
        write(tmp_path / f"{name}.jsonl", [{"messages": list(said(question, "3"))}])
    data = {"source": "file", "path": str(tmp_path), "test_path": str(tmp_path), "test_size": 9}
    found = load_examples(config_of(**data), tokenizer)
    assert [tokenizer.decode(example.input_ids) for example in found.train] == ["1\n3<end>"]
    assert [tokenizer.decode(example.input_ids) for example in found.test] == ["2\n3<end>"]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(
        ValueError, match=r"data.test_path: .* has no split 'test': it has train; give one of its files$"
    ):
        load_examples(config_of(**data), tokenizer)


def test_other_columns_are_named_with_the_keys_for_them(tmp_path: Path, tokenizer: Any) -> None:
    data = {"source": "file", "path": write(tmp_path / "rows.jsonl", [{"question": "1", "answer": 2}])}
    with pytest.raises(
        ValueError, match=r"neither messages nor prompt and completion; its columns are question, answer: say"
    ):
        load_examples(config_of(**data), tokenizer)
    columns = ChatColumnsConfig(prompt="question", completion="answer")
    assert len(load_examples(config_of(**data, columns=columns, test_size=0), tokenizer).train) == 1


@pytest.mark.parametrize(
    ("columns", "asked"),
    [
        ({}, "chat"),
        ({"prompt": "question"}, "own"),
        ({"completion": "answer", "prompt": "question"}, "own"),
        ({"messages": "turns"}, "others"),
        ({"messages": "messages", "prompt": "question"}, "chat"),
    ],
)
def test_a_named_column_is_the_one_that_is_read(columns: dict[str, str], asked: str, tmp_path: Path) -> None:
    """A row may have several suitable columns; those that were not named are ignored."""
    row = {"messages": (SETTING, *said("chat", "1")), "turns": said("others", "1"), "question": "own"}
    path = write(tmp_path / "rows.jsonl", [{**row, "completion": "1", "answer": "1"}])
    _, train = streams(config_of(source="file", path=path, columns=columns, test_size=0).data, Dropped())
    assert [one.question for one in train] == [asked]
    without = write(tmp_path / "others.jsonl", [{"messages": said("chat", "1")}])
    if columns:
        with pytest.raises(
            ValueError, match=r"data.columns.\w+ is '\w+', and no row of .*others.jsonl has such a column"
        ):
            streams(config_of(source="file", path=without, columns=columns).data, Dropped())


def test_what_is_dropped_is_counted_with_a_place_to_look(tmp_path: Path, tokenizer: Any) -> None:
    good = {"messages": list(said("1", "2"))}
    rows = [good, "{", "[1]", {"messages": list(said("1"))}, {"messages": list(said("1", "2" * 70))}]
    data = {"source": "jsonl", "path": write(tmp_path / "rows.jsonl", rows), "max_tokens": 64, "test_size": 0}
    found = load_examples(config_of(**data), tokenizer)
    assert len(found.train) == 1
    assert found.dropped.examples == {
        "not JSON": "rows.jsonl:2",
        "not a JSON object": "rows.jsonl:3",
        "does not end with the assistant's turn": "rows.jsonl:4",
        "over data.max_tokens (64)": "rows.jsonl:5",
    }
    assert set(found.dropped.counts.values()) == {1}
    assert "dropped 1: not JSON (for one, rows.jsonl:2)" in found.describe()
    with pytest.raises(ValueError, match=r"left nothing to learn from: 0 examples"):
        load_examples(config_of(**{**data, "max_tokens": 2}), tokenizer)
    with pytest.raises(ValueError, match=r"0 examples, 1 to test on.*; lower data.test_size \(128\)"):
        load_examples(config_of(**{**data, "test_size": 128}), tokenizer)
    several = config_of(source="jsonl", path=write(tmp_path / "four.jsonl", [{"messages": said("1", "2", "3", "4")}]))
    several = several.model_copy(update={"prompt": SftPromptConfig(template="plain")})
    with pytest.raises(ValueError, match=r"left nothing .* dropped 1: 4 turns, where prompt.template plain holds two"):
        load_examples(several, tokenizer)


@pytest.mark.parametrize(
    ("source", "path", "row"),
    [
        ("tulu3", "allenai/tulu-3-sft-mixture", {"messages": list(said("1", "2")), "source": "x"}),
        (
            "openthoughts3",
            "open-thoughts/OpenThoughts3-1.2M",
            {"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}], "difficulty": 1},
        ),
    ],
)
def test_hub_sets_are_read_by_their_own_columns(
    source: str, path: str, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, subset: None, split: str, revision: None) -> Any:
        asked.append((name, split))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load)
    _, train = streams(SftDataConfig(source=source), Dropped())
    assert [conversation.messages for conversation in train] == [said("1", "2")]
    assert asked == [(path, "train")]
    other = SftDataConfig(source=source, columns=ChatColumnsConfig(prompt="question"))
    with pytest.raises(ValueError, match=r"data.columns.prompt is 'question', and .* has no such column; it has \w+,"):
        list(streams(other, Dropped())[1])


def test_unwanted_answers_of_the_hub_are_not_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the columns that are needed are read, and the label is one of them. The rows come shuffled."""
    rows = [{"prompt": str(n), "completion": "2", "label": n < 9, "more": 1} for n in range(10)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    dropped = Dropped()
    _, train = streams(SftDataConfig(source="hub", name="trl-lib/kto-mix-14k"), dropped)
    found = {conversation.id: conversation.question for conversation in train}
    assert [*found] != sorted(found)
    assert found == {f"hub-{n}": str(n) for n in range(9)}
    assert dropped.examples == {UNWANTED_ROW: "hub-9"}
