"""The code on the model card, executed verbatim against a stand-in for the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from evals.protocol.training_protocol import chat_template_of, training_protocol
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.merge.weights import merge
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.run.trained_adapter import read_trained
from rollout.adapters import read_manifest, write_manifest
from rollout.models import EMBEDDED_DIR
from rollout.prompts.renderer import Renderer
from rollout.types import Problem
from tests.helpers.hub_standin import Hub
from tests.helpers.precision import LOGPROB_NATS
from tests.helpers.releases import configure, execute, logprobs, published

FRAME = 'A "question" of {problem}\n\nSecond line \\boxed\nAnswer: '


@pytest.mark.parametrize(
    "prompt",
    [
        ["prompt.template=chat", "prompt.instruction=Think."],
        ["prompt.template=frame", f"prompt.frame={json.dumps(FRAME)}", "prompt.instruction=null"],
        ["prompt.template=question_answer", "sampling.stop=['=?']"],
    ],
    ids=["chat", "frame", "named"],
)
def test_the_peft_code_gives_the_learners_model_and_prompt(
    hub: Hub, run: Path, trained: tuple[Path, LoraPolicy], prompt: list[str]
) -> None:
    config = configure(run, *prompt)
    code, _ = published(run)
    names = execute(code)
    learner = trained[1].model
    ids = names["ids"]
    renderer = Renderer(names["tokenizer"], config.prompt)
    problem = names["problem"].removesuffix(f"\n{config.prompt.instruction}")
    wanted = renderer.render(Problem(id="1", text=problem, answer=""))
    assert ids[0].tolist() == list(wanted.token_ids)
    with learner.disable_adapter():
        base = logprobs(learner, ids)
    found = logprobs(names["model"], ids)
    torch.testing.assert_close(found, logprobs(learner, ids), rtol=0, atol=LOGPROB_NATS)
    assert (found - base).abs().max() > 0.1
    assert not any(stop in names["text"] for stop in ("\nQuestion:", "=?"))


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def of_own_template(run: Path) -> None:
    """Make it a supervised run whose chat template file no longer exists; its adapter has a copy."""
    settings = ["model.name=embedded", "data.chat_template=/srv/mine.jinja", "prompt.template=chat"]
    (run / "config.yaml").write_text(read_config(SftConfig, "sft_tulu3.yaml", settings).to_yaml())
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "tokens": 0}) + "\n")
    version = run / "adapters" / "v000003"
    (version / "chat_template.jinja").write_text(TEMPLATE)
    facts = {name: value for name, value in read_manifest(version.parent / "v000000").items() if name != "files"}
    write_manifest(version, {**facts, "version": 3})


def test_a_chat_template_of_its_own_goes_where_the_adapter_goes(hub: Hub, run: Path) -> None:
    of_own_template(run)
    peft_code, vllm_code, _ = published(run, "--merged")
    folder = run / "release/v000003"
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert "chat_template.jinja" in read_manifest(folder)["files"]
    for place in (folder, folder / "merged"):
        asked = training_protocol(place)
        assert asked is not None
        assert asked.chat_template == TEMPLATE
    assert AutoTokenizer.from_pretrained(folder / "merged").chat_template == TEMPLATE
    names = execute(peft_code)
    assert names["prompt"] == f"<user>{names['problem']}\n<assistant>"
    assert "lora_request=adapter, chat_template=template)" in vllm_code
    compile(vllm_code, "card", "exec")


def test_a_chat_template_that_is_lost_is_not_replaced_by_another(run: Path, tmp_path: Path) -> None:
    of_own_template(run)
    (run / "adapters/v000003/chat_template.jinja").unlink()
    shutil.copyfile(run / "adapters/v000000/manifest.json", run / "adapters/v000003/manifest.json")
    with pytest.raises(ValueError, match=rf"mine.jinja is not here.*: copy it to {run}/mine.jinja"):
        chat_template_of(run / "adapters/v000003")
    with pytest.raises(ValueError, match="chat_template"):
        merge(read_trained(run / "adapters/v000000", None), "float32", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    (run / "mine.jinja").write_text(TEMPLATE)
    assert chat_template_of(run / "adapters/v000003") == TEMPLATE


@pytest.mark.engine
def test_the_vllm_code_samples_from_the_adapter(
    hub: Hub,
    run: Path,
    trained: tuple[Path, LoraPolicy],
    vllm_engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The session's engine takes the place of the one that the code makes, whose arguments vLLM's own class checks."""
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    made: list[dict[str, Any]] = []

    class Engine:
        def __init__(self, model: str, **arguments: Any) -> None:
            made.append({"model": model, **arguments})
            EngineArgs(model=model, **arguments)
            self._llm = vllm_engine._llm

        def chat(self, messages: Any, sampling: Any, lora_request: Any) -> Any:
            # The session's other tests have used small ids, which vLLM never forgets.
            lora_request.lora_int_id = 777_001
            return self._llm.chat(messages, sampling, lora_request=lora_request, use_tqdm=False)

    monkeypatch.setattr(vllm, "LLM", Engine)
    peft_code, code = published(run)
    outputs = execute(code)["outputs"]
    vllm_engine._llm.llm_engine.remove_lora(777_001)
    assert made == [{"model": str(EMBEDDED_DIR), "dtype": "float32", "enable_lora": True, "max_lora_rank": 8}]
    # Greedy in float32: word for word what PEFT's code prints, and different from what the base model says.
    from_vllm = capsys.readouterr().out
    names = execute(peft_code)
    assert from_vllm == capsys.readouterr().out
    assert outputs[0].prompt_token_ids == names["ids"][0].tolist()
    with trained[1].model.disable_adapter(), torch.inference_mode():
        spoken = trained[1].model.generate(input_ids=names["ids"], max_new_tokens=72, do_sample=False)
    assert names["tokenizer"].decode(spoken[0, names["ids"].shape[1] :], skip_special_tokens=True) != from_vllm.strip()
