"""Extraction that is killed, on this machine and on Ray actors: the same bytes, and no chunk written twice."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from semrsm_dist.datasets.image_folder import read_image_folder
from semrsm_dist.extraction.distributed import model_for
from semrsm_dist.extraction.extract import extract, extract_layers
from semrsm_dist.extraction.model import load_model
from semrsm_dist.extraction.settings import PoolSettings
from storage_schemas import ActivationStore, FingerprintMismatchError, InvalidInputError, UnreadableImageError
from storage_schemas.location import Location
from storage_schemas.rsm import events_url
from storage_schemas.tables import EVENTS, read_folder
from tests.cluster.conftest import descendants, kill, wait_for

Launch = Callable[..., "subprocess.Popen[str]"]
Tree = Callable[[Path], dict[str, bytes]]
NETWORK = Path(__file__).parents[2] / "semrsm_dist" / "demo" / "network"
N_IMAGES, N_CHUNKS = 750, 8
SIZE = 160
"""Pixels that the network sees, so that a chunk takes about half a second."""
LOCAL_KILLS, RAY_KILLS = 7, 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images of noise."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(N_IMAGES):
        Image.fromarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an extraction in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
    store = extract(read_image_folder(images), load_model(NETWORK, image_size=SIZE, device="cpu"), str(out))
    assert store.n_chunks == N_CHUNKS
    return out


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head on loopback with two CPUs, whose processes are gone after the tests."""
    before = set(descendants(os.getpid()))
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()
    kill(set(descendants(os.getpid())) - before)
    del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this process, which extractions in it use."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


def chunks(out: Path) -> dict[str, tuple[int, int]]:
    """Of each chunk that is in the store: when its file was written, and its number in the file system."""
    files = [path for path in out.glob("features/c/*/0/0") if path.is_file()]
    return {path.parent.parent.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def killed_at(process: subprocess.Popen[str], out: Path, moments: random.Random, *, by_clock: bool) -> bool:
    """Kill a process some seconds after its start, or some chunks further on; whether it was still there."""
    wanted, seconds = len(chunks(out)) + moments.randint(1, 3), 100.0
    if by_clock:
        wanted, seconds = N_CHUNKS + 1, moments.uniform(1.0, 9.0)
    deadline = time.monotonic() + seconds
    while process.poll() is None and len(chunks(out)) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(moments.uniform(0.0, 0.2))
    if process.poll() is not None:
        return False
    below = descendants(process.pid)
    kill([process.pid, *below])
    process.wait()
    return True


@pytest.mark.timeout(900)  # eight starts of the command line, on machines that may be slow
@pytest.mark.parametrize(("where", "kills"), [("here", LOCAL_KILLS), ("ray", RAY_KILLS)])
def test_an_extraction_that_is_killed_at_random_moments(
    launch: Launch,
    images: Path,
    undisturbed: Path,
    tmp_path: Path,
    tree: Tree,
    where: str,
    kills: int,
    request: pytest.FixtureRequest,
) -> None:
    options: tuple[object, ...] = ()
    if where == "ray":
        options = ("--address", request.getfixturevalue("address"), "--cpus-per-worker", 1)
    moments, killed, kept, stores = random.Random(where), 0, dict[str, tuple[int, int]](), 0
    out = tmp_path / "a0.zarr"
    chunks_at_kills: list[int] = []
    while killed < kills or out.exists():
        process = launch("extract", "--images", images, "--model", NETWORK, "--image-size", SIZE, "--out", out, *options)
        if killed < kills and killed_at(process, out, moments, by_clock=killed % 3 == 2):
            killed += 1
            if where == "ray":  # what an actor is about to write may still arrive
                wait_for(no_actors, 60, "actors to end")
            chunks_at_kills.append(len(chunks(out)))
        output, _ = process.communicate(timeout=200)
        found = chunks(out)
        assert {name: found.get(name) for name in kept} == kept, "a chunk that was finished was written again"
        kept = found
        if process.returncode == 0:
            assert tree(out) == tree(undisturbed)
            stores += 1
            kept, out = {}, tmp_path / f"a{stores}.zarr"
        else:
            assert process.returncode == -9, output
    assert killed == kills
    assert any(0 < count < N_CHUNKS for count in chunks_at_kills), chunks_at_kills


def no_actors() -> bool:
    """Whether no actor of the cluster of these tests runs any more."""
    return not any(command.startswith("ray::_Actor") for command in descendants(os.getpid()).values())


def test_actors_write_the_same_bytes_for_every_layer(images: Path, local_ray: None, tmp_path: Path, tree: Tree) -> None:
    dataset = read_image_folder(images)
    few = dataset.keep(dataset.samples[:230])
    layers = ["last_hidden_state", "hidden_states.1"]
    for name, pool in (("here", None), ("there", PoolSettings(cpus_per_worker=1))):
        outs = {layer: str(tmp_path / name / f"{layer}.zarr") for layer in layers}
        reports: list[tuple[int, int]] = []
        model = load_model(NETWORK, layers=layers, device="cpu")
        extract_layers(few, model, outs, pool=pool, progress=lambda *told, to=reports: to.append(told[:2]))
        assert reports[-1] == (230, 230)
    for layer in layers:
        assert tree(tmp_path / "there" / f"{layer}.zarr") == tree(tmp_path / "here" / f"{layer}.zarr")
    events = read_folder(events_url(Location.of(tmp_path / "there" / f"{layers[0]}.zarr")), EVENTS).to_pylist()
    assert sorted(event["row"] for event in events) == [0, 1, 2]
    assert {(event["part"], event["status"]) for event in events} == {("activations", "done")}
    assert all(event["solve_seconds"] > 0 for event in events)


def test_an_actor_that_dies_is_replaced(images: Path, undisturbed: Path, local_ray: None, tmp_path: Path, tree: Tree) -> None:
    killed: list[int] = []

    def kill_one(done: int, total: int, seconds_left: float | None = None) -> None:
        actors = [pid for pid, command in descendants(os.getpid()).items() if command.startswith("ray::_Actor")]
        if done > 0 and not killed and actors:
            killed.append(actors[0])
            kill(actors[:1])

    model = load_model(NETWORK, image_size=SIZE, device="cpu")
    pool = PoolSettings(cpus_per_worker=1)
    out = {"last_hidden_state": str(tmp_path / "a.zarr")}
    extract_layers(read_image_folder(images), model, out, pool=pool, progress=kill_one)
    assert killed
    assert tree(tmp_path / "a.zarr") == tree(undisturbed)


def test_an_actor_with_another_model_refuses_to_write(images: Path, local_ray: None, tmp_path: Path) -> None:
    network, dataset = tmp_path / "network", read_image_folder(images)
    shutil.copytree(NETWORK, network)
    model = load_model(network, device="cpu")
    settings = network / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 2', '"resample": 3'))  # after the driver has read it
    out = {"last_hidden_state": str(tmp_path / "a.zarr")}
    with pytest.raises(FingerprintMismatchError, match=r"^Node .* has another model than .*a\.zarr .*\(preprocessing\); give"):
        extract_layers(dataset, model, out, pool=PoolSettings(cpus_per_worker=1))
    assert len(ActivationStore.open(out["last_hidden_state"]).missing_chunks()) == N_CHUNKS


def test_a_pool_leaves_the_callers_model_as_it_was(images: Path, local_ray: None, tmp_path: Path) -> None:
    model = load_model(NETWORK, device="cpu")
    before = dict(model.description)
    with pytest.raises(InvalidInputError, match=r"Actors with 1 GPUs do not run on the CPU"):
        PoolSettings(gpus_per_worker=1, device="cpu")
    for wrong in (1.5, float("nan"), -1):
        with pytest.raises(InvalidInputError, match="An actor cannot have"):
            PoolSettings(gpus_per_worker=wrong)
    assert model_for(model, PoolSettings(gpus_per_worker=0.5)).description == {**before, "device": "cuda"}
    assert model.description == before


def test_images_that_actors_cannot_decode_stop_it_with_a_list(images: Path, local_ray: None, tmp_path: Path) -> None:
    dataset = read_image_folder(images)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    samples = list(dataset.samples[:250])
    for number in (120, 240):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"no image")
        samples[number] = type(samples[0])(path.name, path, path.as_uri())
    with pytest.raises(UnreadableImageError, match=r"^2 of 250 images cannot be decoded: 120\.png, 240\.png; "):
        extract_layers(
            dataset.keep(samples),
            load_model(NETWORK, image_size=SIZE, device="cpu"),
            {"last_hidden_state": str(tmp_path / "a.zarr")},
            pool=PoolSettings(cpus_per_worker=1),
        )
    assert 1 in ActivationStore.open(str(tmp_path / "a.zarr")).missing_chunks()
