"""Building candidates on a cluster: two Dask workers on this computer, of which one is lost."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing

import distributed
import pytest
from kernels import TASK, adding, as_candidate, bound_to_threads

from tvmflow.spec import DeviceError, UserError
from tvmflow.targets import TARGETS
from tvmflow.tune import builders as building
from tvmflow.tune.builders import Builders, ClusterPool
from tvmflow.tune.measure import LocalMeasurer
from tvmflow.tune.tasks import identity

HOST = TARGETS["host"]


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found:
        yield found


@pytest.fixture
def pool(cluster):
    with closing(ClusterPool(cluster.scheduler_address, HOST, identity(HOST).target)) as found:
        yield found


def test_both_workers_build_what_is_measured_here(cluster, pool):
    good = [as_candidate(f"good {number}", adding(1)) for number in range(6)]
    batch = [*good, as_candidate("wrong", adding(2)), as_candidate("bound", bound_to_threads())]
    with closing(Builders(pool)) as builders, closing(LocalMeasurer(HOST, builders)) as measurer:
        results = [result.outcome for result in measurer.measure(TASK, batch, None)]
    assert results == ["ok"] * 6 + ["wrong", "build failed"]
    with distributed.Client(cluster, set_as_default=False) as client:
        built = client.run(lambda dask_worker: hasattr(dask_worker, "tvmflow_builder"))
    assert list(built.values()) == [True, True]


def test_jobs_of_a_lost_worker_are_done_by_another(cluster, pool, tmp_path):
    with distributed.Client(cluster, set_as_default=False) as client:
        victim = next(iter(client.run(os.getpid).values()))
    outputs = [tmp_path / f"{number}.so" for number in range(12)]
    module = building.json_of(adding(1))
    killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
    killer.start()
    results = pool.compile([(module, output) for output in outputs], lambda: None)
    killer.join()
    assert [result.outcome for result in results] == ["ok"] * 12
    assert all(output.stat().st_size for output in outputs)


def test_ctrl_c_ends_the_wait_for_a_cluster(pool, tmp_path):
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.compile([(building.json_of(adding(1)), tmp_path / "kernel.so")], check)


def test_other_versions_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(building.importlib.metadata, "version", lambda name: "0.1")
    with pytest.raises(UserError, match=r"builder tcp://.* install the same"):
        ClusterPool(cluster.scheduler_address, HOST, identity(HOST).target)


def test_no_cluster(monkeypatch):
    monkeypatch.setattr(building, "CLUSTER_LIMIT_S", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(DeviceError, match="No Dask scheduler answers"):
            ClusterPool(address, HOST, identity(HOST).target)
