"""Published versions: complete or absent, and trusted only as far as the manifest vouches for them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from rollout.adapters import MANIFEST, AdapterError, AdapterStore, read_manifest, resolve_version
from rollout.engine import sample_seed, smallest_allowed_rank
from rollout.files.durable import write_synced, written_aside


def write_weights(directory: Path) -> None:
    (directory / "weights.bin").write_bytes(b"weights")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def test_a_version_has_digests_and_latest_points_at_it(store: AdapterStore) -> None:
    store.publish(0, write_weights, {"rank": 1, "base_model": "m"})
    ref = store.publish(1, write_weights, {"rank": 1, "base_model": "m"})
    assert (ref.key, ref.version, ref.rank) == ("policy-v000001", 1, 1)
    assert (store.root / "latest").resolve() == ref.path
    manifest = read_manifest(ref.path)
    assert manifest["base_model"] == "m"
    assert set(manifest["files"]) == {"weights.bin"}
    assert store.versions() == [0, 1]
    assert store.open(0).sha256 != ref.sha256


def test_a_run_resolves_to_its_best_version_else_the_newest(store: AdapterStore) -> None:
    """The choice is reported. A version that is named in any way is taken as it is."""
    run = store.root.parent
    for path in (run, run / "typo"):
        nothing = resolve_version(path)
        assert (nothing.directory, nothing.why) == (path, "")
    for version in (0, 1, 2):
        store.publish(version, write_weights, {"rank": 1, "base_model": "m"})
    newest = resolve_version(run)
    assert newest.directory == store.path_of(2)
    assert newest.why == f"{run} is a run: using its newest version, v000002 (no evaluation says which is best)"
    store.point("best", 1)
    best = resolve_version(run)
    assert best.directory == store.path_of(1)
    assert best.why == f"{run} is a run: using its best version, v000001 (the newest is {store.root / 'latest'})"
    store.point("best", 0)
    assert "v000000 (no score was higher than the one before training; the newest is" in resolve_version(run).why
    store.point("best", 2)
    assert resolve_version(run).why.endswith("v000002 (it is the newest too)")
    for name in ("v000000", "latest", "best"):
        assert (resolve_version(store.root / name).directory, resolve_version(store.root / name).why) == (
            store.root / name,
            "",
        )
    # The best version was deleted, so its link is broken.
    store.point("best", 1)
    store.delete(1)
    assert resolve_version(run).directory == store.path_of(2)
    gone = f"{store.root}/best points to v000001, which is missing"
    assert resolve_version(run).why == f"{run} is a run: using its newest version, v000002 ({gone})"
    with pytest.raises(AdapterError, match=f"^--adapter: {gone}; give another version, such as {store.path_of(2)}$"):
        resolve_version(store.root / "best")
    store.delete(2)
    for given in (run, store.root / "latest"):
        with pytest.raises(AdapterError, match=f"latest points to v000002, which is missing; .*{store.path_of(0)}$"):
            resolve_version(given)
    store.delete(0)
    with pytest.raises(AdapterError, match=r"no other version is there$"):
        resolve_version(run)


@pytest.mark.parametrize("left", ["nothing", "a file", "the version itself"])
def test_a_run_that_was_copied_without_links_has_versions(left: str, store: AdapterStore) -> None:
    """For example through an object store, an archive, or git on a system where it does not create symlinks."""
    for version in range(3):
        store.publish(version, write_weights, {"rank": 1})
    run, link = store.root.parent, store.root / "latest"
    link.unlink()
    if left == "a file":
        link.write_text("v000002")
    elif left == "the version itself":
        shutil.copytree(store.path_of(2), link)
    meant = resolve_version(run)
    assert read_manifest(meant.directory)["version"] == 2
    assert meant.why.startswith(f"{run} is a run: using its newest version, ")
    assert store.pointed("latest") == (2 if left == "the version itself" else None)
    store.publish(3, write_weights, {"rank": 1})
    assert (link.readlink(), store.versions()) == (Path("v000003"), [0, 1, 2, 3])
    link.unlink()
    (link / "mine").mkdir(parents=True)
    with pytest.raises(AdapterError, match=f"^{link} is a directory, where the run keeps a link .*: move it away$"):
        store.publish(4, write_weights, {"rank": 1})
    assert (link / "mine").is_dir()


def test_a_failure_while_writing_leaves_nothing(store: AdapterStore) -> None:
    def fail(directory: Path) -> None:
        write_weights(directory)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.publish(0, fail, {"rank": 1})
    assert store.versions() == []
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "weights.bin").write_bytes(b"weightz"), "sha256 differs"),
        (lambda path: (path / "weights.bin").unlink(), "is missing"),
        (lambda path: (path / MANIFEST).unlink(), "never published"),
        (lambda path: (path / MANIFEST).write_text("{"), "damaged"),
        (lambda path: (path / MANIFEST).write_text(json.dumps({"format": 1, "files": {"../x": "0"}})), "is missing"),
        (lambda path: (path / MANIFEST).write_text(json.dumps({"format": 1, "files": {"..": "0"}})), "is missing"),
        (lambda path: (path / MANIFEST).write_text(json.dumps({"format": 2, "files": {}})), "reads format 1"),
        (lambda path: (path / MANIFEST).write_text("[" * 100_000), "damaged"),
        (lambda path: (path / MANIFEST).write_text('{"format": 1, "files": {"x": "0", "x": "1"}}'), "key 'x' twice"),
        (lambda path: (path / MANIFEST).write_text("[]" + " " * 2**20), "larger than 1,048,576"),
    ],
)
def test_what_is_damaged_is_not_believed(store: AdapterStore, damage: object, words: str) -> None:
    path = store.publish(0, write_weights, {"rank": 1}).path
    assert callable(damage)
    damage(path)
    with pytest.raises(AdapterError, match=words):
        read_manifest(path)
    with pytest.raises(AdapterError, match=words):
        store.open(0)


def test_a_manifest_vouches_for_no_file_elsewhere(store: AdapterStore) -> None:
    """Even where the file is there and has that digest."""
    paths = [store.publish(version, write_weights, {"rank": 1}).path for version in (0, 1)]
    digest = read_manifest(paths[0])["files"]["weights.bin"]
    for name in ("../v000000/weights.bin", str(paths[0] / "weights.bin"), "./weights.bin"):
        (paths[1] / MANIFEST).write_text(json.dumps({"format": 1, "files": {name: digest}}))
        with pytest.raises(AdapterError, match="is missing"):
            read_manifest(paths[1])


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
def test_a_version_has_the_modes_of_the_umask(umask: int, mode: int, store: AdapterStore) -> None:
    def write(directory: Path) -> None:
        (directory / "w.safetensors").touch(0o600)  # as safetensors does

    earlier = os.umask(umask)
    try:
        version = store.publish(0, write, {"rank": 1}).path
    finally:
        os.umask(earlier)
    assert {stat.S_IMODE(file.stat().st_mode) for file in version.iterdir()} == {mode}


def test_what_a_killed_process_left_is_removed(store: AdapterStore) -> None:
    for name in (".v000003.partial", ".v000001.gone"):
        (store.root / name).mkdir(parents=True)
    (store.root / ".latest.partial").symlink_to("v000003")
    ref = store.publish(4, write_weights, {"rank": 1})
    assert store.pointed("latest") == 4
    assert {path.name for path in store.root.iterdir()} == {ref.path.name, "latest"}


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (65, 128), (512, 512)])
def test_the_sampler_pads_to_the_smallest_rank_it_accepts(rank: int, allowed: int) -> None:
    assert smallest_allowed_rank(rank) == allowed


def test_ranks_the_sampler_cannot_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        smallest_allowed_rank(513)


def test_seeds_differ_by_occasion_and_by_sample_and_fit_vllm() -> None:
    seeds = {sample_seed(f"0/{step}/{index}", i) for step in range(3) for index in range(4) for i in range(5)}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed("0/1/2", 3) == sample_seed("0/1/2", 3)


def test_best_is_a_link_like_latest(store: AdapterStore) -> None:
    for version in range(3):
        store.publish(version, write_weights, {"rank": 1})
    assert store.pointed("best") is None
    store.point("best", 1)
    store.point("best", 0)
    assert store.pointed("best") == 0
    assert store.pointed("latest") == 2
    assert store.versions() == [0, 1, 2]
    assert (store.root / "best").resolve() == store.path_of(0).resolve()
    store.delete(0)
    assert store.pointed("best") == 0


def test_a_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    link, file = tmp_path / "report.html", tmp_path / "site" / "index.html"
    link.symlink_to("site/index.html")
    for text in ("made", "made again"):
        write_synced(link, text)
        assert link.is_symlink()
        assert file.read_text() == text
    assert [*file.parent.iterdir()] == [file]


def test_a_full_disk_is_told_by_the_place_that_was_asked_for(tmp_path: Path) -> None:
    """Not by a scratch directory that is gone when the user reads the error; other files keep their names."""

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for inside, told in (("card.md", "release/card.md"), (".", "release")):
        with pytest.raises(OSError, match=rf"'{tmp_path}/{told}'$"), written_aside(tmp_path / "release") as scratch:
            refuse(scratch / inside)
    with pytest.raises(OSError, match=r"'/data/base'$"), written_aside(tmp_path / "release"):
        refuse(Path("/data/base"))
    with pytest.raises(OSError, match=rf"'/base' -> '{tmp_path}/release/base'$"), written_aside(tmp_path / "release"):
        raise OSError(errno.ENOSPC, "No space left on device", "/base", None, f"{tmp_path}/.release.partial/base")
    assert not list(tmp_path.iterdir())
