"""If nothing listens at `rollout.address`, one line says so at once, before torch or vLLM is loaded."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner

from rl_engine.config import Config
from rl_engine.train.__main__ import app
from rl_engine.train.checks import check_quickly
from rollout.pool.environment import check_address


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on every network interface of the machine, like a cluster's head."""
    with socket.create_server(("", 0)) as server:
        yield server


@pytest.fixture
def closed() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide any Ray cluster that runs on this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", list)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda _: None)


def test_where_somebody_listens_the_run_goes_on(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener.getsockname()[1]
    check_address(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"localhost:{port}")
    check_address("auto")


def test_where_nobody_listens_a_line_names_the_way_out(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = r"listens there \(Connection refused\): start one with `ray start --head`, or leave rollout.address unset"
    with pytest.raises(ValueError, match=rf"^rollout.address is 127.0.0.1:{closed}, [^\n]*{remedy}[^\n]*$"):
        check_address(f"127.0.0.1:{closed}")
    monkeypatch.setenv("RAY_ADDRESS", f"localhost:{closed}")
    with pytest.raises(ValueError, match=rf"^rollout.address is auto, which is [^\n]*:{closed}, [^\n]*{remedy}"):
        check_address("auto")


def test_a_machine_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unanswered(address: tuple[str, int], timeout: float) -> None:
        assert (address, timeout <= 5) == (("10.0.0.9", 6379), True)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", unanswered)
    with pytest.raises(ValueError, match=r"^rollout.address is 10.0.0.9:6379, and no Ray cluster .* \(timed out\): "):
        check_address("10.0.0.9:6379")


def test_no_cluster_on_this_machine_is_reported_for_auto() -> None:
    with pytest.raises(ValueError, match=r"^rollout.address is auto, and no Ray cluster is found [^\n]*`ray start"):
        check_address("auto")


@pytest.mark.parametrize("address", ["", "head", "head:", ":6379", "head:x", "head:70000", "ray://head:10001", "local"])
def test_what_is_no_address_gets_an_example_of_one(address: str) -> None:
    with pytest.raises(ValueError, match=rf"^rollout.address is {address or 'empty'}: give auto, or the HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize("option", ["--resume", "--dry-run"])
def test_a_run_is_refused_before_anything_is_loaded(option: str, closed: int) -> None:
    pool = ("rollout.placement=ray", f"rollout.address=localhost:{closed}")
    ended = CliRunner().invoke(app, ["--config", "quickstart.yaml", option, *pool])
    assert (ended.exit_code, "no Ray cluster listens there" in ended.output) == (2, True), ended.output
    assert "loading torch" not in ended.output


def test_the_first_rank_alone_drives_the_workers(
    closed: int, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("rollout.placement=ray", f"rollout.address=localhost:{closed}")
    monkeypatch.setenv("RANK", "1")
    check_quickly(config)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="no Ray cluster listens there"):
        check_quickly(config)


def test_a_machine_without_ray_is_reported_before_torch_loads(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl_engine.train.checks.is_installed", lambda _: False)
    with pytest.raises(ValueError, match="Ray is not installed: pip install ray"):
        check_quickly(make_config("rollout.placement=ray"))
