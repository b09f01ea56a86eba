"""What workers ask of the machines: the most of their stages' needs; refused where no node has it, ended where none is free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.engine import Engine, Progress
from pipeline.errors import TransientError, UserError
from pipeline.nodes import check_room, fitting
from pipeline.phases.fetch import FetchWork, ScoreWork, pool_size
from pipeline.phases.rows import RowsWork
from pipeline.phases.shuffle import ShuffleWork
from pipeline.phases.write import WriteWork
from pipeline.stage import Resources
from pipeline.storage import Store
from pipeline.workers import Work, together
from tests.support.hostile import Echo, Gpu, Hostile, Sentences, Wide


def engine(folder: Path, **run: Any) -> Engine:
    stages: dict[str, Any] = {"ingest": {}, "download": {}, "images": {}}
    config = {"input": {"path": "list.parquet"}, "run": {"name": "test", "root": str(folder), **run}, "stages": stages}
    return Engine(RunConfig.model_validate(config), Store(str(folder)))


def test_a_worker_needs_the_most_of_its_stages_needs(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert together([Hostile(), Gpu(), Wide()], base=1 << 30) == Resources(2, 1, 7 << 30, 3)
    assert RowsWork(store, [Hostile()], Sentences(), [Wide()], [], None).resources == Resources(2, 0, 6 << 30, 3)
    assert FetchWork(store, [Hostile(), Wide()], 0.2, 1).resources == Resources(2, 0, 7 << 30, 3)
    assert ScoreWork(store, [Gpu(), Wide()], 0.2).resources == Resources(2, 1, 6 << 30, 3)
    works: list[Work] = [ShuffleWork(store, Wide(), "key"), WriteWork(store, Wide(), 1)]
    assert [work.resources for work in works] == [Wide.resources] * 2


def test_a_worker_that_no_node_has_room_for_is_refused(tmp_path: Path, ray_session: Any) -> None:
    have = r"no machine has that, only 2 CPU, 0 GPU and \d+\.\d GiB of memory\. Take a machine with more, or let the stage ask for less"
    with engine(tmp_path) as started:
        with pytest.raises(UserError, match=rf"^stage echo: .* needs 3 CPU, 0 GPU and 1\.0 GiB of memory; {have} \(CPU\)$"):
            started.tasks(Echo(Resources(cpus=3)), [{"id": "one"}])
        with pytest.raises(UserError, match=rf"^stage gpu: a worker of phase scores needs 1 CPU, 1 GPU and 1\.0 GiB .*; {have} \(GPU\)"):
            check_room([ScoreWork(started.store, [Hostile(), Gpu()], 0.2)])
        with pytest.raises(UserError, match=rf"^stage echo: .* needs 1 CPU, 0 GPU and 9000\.0 GiB of memory; {have} \(memory\)"):
            check_room([Echo(Resources(memory=9000 << 30))])
        check_room([Echo(Resources(cpus=2))])


def test_as_many_workers_as_cpus_and_memory_have_room_for(tmp_path: Path, ray_session: Any) -> None:
    room = next(node["Resources"]["memory"] for node in ray_session.nodes())
    with engine(tmp_path) as started:
        assert started.fitting(Resources(cpus=1, memory=1 << 20)) == 2
        assert started.fitting(Resources(cpus=1, memory=int(room / 1.5))) == 1
        assert started.fitting(Resources(cpus=3)) == 0


def test_of_several_nodes_one_may_leave_and_its_workers_have_room_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def nodes(*cpus: float) -> None:
        found = [{"Alive": True, "Resources": {"CPU": n, "GPU": 1.0, "memory": 64.0 * 2**30}} for n in cpus]
        monkeypatch.setattr(ray, "nodes", lambda: [*found, {"Alive": False, "Resources": {"CPU": 99.0, "memory": 2.0**50}}])

    one = Resources(cpus=1, memory=1 << 30)
    for cpus, workers in (((4,), 4), ((0, 4), 4), ((4, 4), 4), ((0, 2, 8, 4), 7), ((2, 64), 33), ((1, 1, 1), 2), ((1, 0), 1), ((0,), 0)):
        nodes(*cpus)
        assert fitting(one) == workers, cpus
    nodes(2)
    assert fitting(Resources(cpus=0.1, memory=1 << 30)) == 20, "a tenth has room ten times"
    assert fitting(Resources(cpus=0.1, gpus=0.1, memory=1 << 30)) == 10


@pytest.mark.parametrize(
    ("cpus", "most", "beside", "stage", "expected"),
    [
        (2, 9, False, Hostile, (2, 1)),
        (2, 1, False, Hostile, (1, 2)),  # one part to do, or memory for one: its threads take the CPUs
        (16, 99, False, Hostile, (16, 1)),
        (16, 6, False, Hostile, (6, 3)),
        (256, 240, False, Hostile, (240, 1)),  # of 16 nodes room for the workers of one
        (16, 1, False, Hostile, (1, 4)),
        (16, 99, True, Hostile, (8, 2)),  # scores are computed at the same time
        (16, 99, False, Wide, (3, 1)),  # a stage that asks for much memory, and for a concurrency of its own
        (2, 0, False, Hostile, (1, 2)),  # no room at all: refused when it begins
    ],
)
def test_a_pool_has_a_worker_a_cpu_where_it_can(cpus: int, most: int, beside: bool, stage: Any, expected: tuple[int, int]) -> None:
    assert pool_size([stage()], cpus, most, beside) == expected


def test_last_words_of_a_worker_that_died_in_a_phase_before_end_no_later_one(tmp_path: Path, ray_session: Any) -> None:
    with engine(tmp_path, stall_s=30) as started:
        started.start()
        dead = {"rows": {}, "now": [("pool/key/part-00007", "download", 60.0)]}
        ray_session.get(started.board.beat.remote("dead", dead))
        assert [done["echo"] for done in started.tasks(Echo(Resources(), nap_s=3), [{"id": "one"}])] == ["one"]


def test_work_that_waits_for_room_without_end_is_ended_and_faults_are_told_once(
    tmp_path: Path, ray_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engine.START_S", 0.0)
    holder = ray_session.remote(num_cpus=2)(Progress).remote("holds both CPUs", 0)
    with engine(tmp_path, stall_s=3) as started:
        with pytest.raises(TransientError, match=r"^echo: no stage was at work for run\.stall_s \+ 0 s; .* wait for CPUs, GPUs"):
            started.tasks(Echo(Resources()), [{"id": "one"}])
        ray_session.kill(holder)
        monkeypatch.undo()
        jobs = [{"id": f"{n}"} for n in range(3)]
        assert [done["echo"] for done in started.tasks(Echo(Resources(concurrency=1)), jobs)] == ["0", "1", "2"]
        with pytest.raises(TransientError) as told:
            started.tasks(Echo(Resources()), [{"id": "full"}])
        assert str(told.value).count("what is committed is safe") == 1
        assert "What is committed" not in str(told.value)
