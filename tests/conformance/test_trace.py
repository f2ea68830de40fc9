"""The timeline: every run of a task is there, however it ended, and the sums are those of the pool."""

from __future__ import annotations

import resource
import threading

import pytest

import poolkit
import support_functions as work
from support_traces import SVG, instants, load, load_torn, outcomes, parsed, runs_of, texts_of


@pytest.mark.one_start_method
def test_every_run_is_there_and_the_sums_are_those_of_the_pool(make_pool, tmp_path):
    pool = make_pool(max_workers=2)
    with pool.trace(tmp_path / "run.json"):
        tasks = [pool.submit(work.square, number) for number in range(100)]
        failed = pool.submit(work.raise_value_error, "no")
        assert list(pool.options(name="twice").map(work.square, range(10), chunksize=5)) == [n * n for n in range(10)]
        assert [task.result() for task in tasks] == [number**2 for number in range(100)]
        assert type(failed.exception()) is ValueError
    pool.submit(work.square, 1).result()  # after it was stopped
    events = load(tmp_path / "run.json")
    expected = {("square", "succeeded"): 100, ("raise_value_error", "failed"): 1, ("twice", "succeeded"): 2}
    assert outcomes(events) == expected
    by_task = {run["args"]["task"]: run for run in runs_of(events)}
    assert by_task.keys() == {*range(1, 104)}
    assert by_task[failed.id]["args"]["error"] == "ValueError"
    for task in tasks:
        run = by_task[task.id]
        assert run["tid"] == task.worker_id
        assert run["dur"] == pytest.approx((task.ended_at - task.started_at) * 1e6, abs=0.01)
        assert run["args"]["wait"] == pytest.approx(task.started_at - task.submitted_at, abs=1e-5)
    stats = pool.stats()
    assert stats.run_time.count == len(by_task) + 1
    loads = [event["args"] for event in events if event["ph"] == "C"]
    assert loads[-1] == {"queued": 0, "busy": 0}
    assert max(load["busy"] for load in loads) <= 2


@pytest.mark.each_start_method
@pytest.mark.needs("crash")
def test_runs_of_killed_workers_are_there_and_so_are_their_retries(make_pool, hold, journal, tmp_path):
    pool = make_pool(max_workers=2)
    with pool.trace(tmp_path / "run.json") as trace:
        pool.options(retries=2).submit(work.die_first_times, journal, 2, None).result()
        assert isinstance(pool.submit(work.die).exception(), poolkit.WorkerCrashed)
        assert isinstance(pool.options(timeout=0.05).submit(work.spin).exception(), poolkit.TaskTimeout)
        held = hold(pool)
        held.task.cancel()
        pool.submit(work.square, 1).result()
    events = load(tmp_path / "run.json")
    stats = pool.stats()
    assert outcomes(events) == {
        ("die_first_times", "crashed"): 2,
        ("die_first_times", "succeeded"): 1,
        ("die", "crashed"): 1,
        ("spin", "failed"): 1,
        ("arrive_and_wait", "cancelled"): 1,
        ("square", "succeeded"): 1,
    }
    runs = runs_of(events)
    assert [run["args"]["attempt"] for run in runs if run["name"] == "die_first_times"] == [1, 2, 3]
    errors = {run["name"]: run["args"].get("error") for run in runs}
    assert errors["spin"] == "poolkit.errors.TaskTimeout"
    assert instants(events)["crashed"] == stats.crashed == 3
    assert instants(events)["timeout"] == 1
    assert sum(run["args"]["attempt"] > 1 for run in runs) == stats.retried == 2
    assert next(run for run in runs if run["name"] == "spin")["dur"] >= 50_000
    trace.save(tmp_path / "run.svg")
    picture = parsed((tmp_path / "run.svg").read_text())
    assert len(picture.findall(f"{SVG}path[@class='death']")) >= 4
    assert "3 crashed" in picture.findtext(f"{SVG}text")


@pytest.mark.one_start_method
@pytest.mark.needs("crash")
def test_the_picture_of_two_workers_and_a_crash_has_two_rows_a_crash_and_how_busy_they_were(make_pool, tmp_path):
    pool = make_pool(max_workers=2)
    pool.warm_up()
    with pool.trace() as trace:
        assert isinstance(pool.submit(work.die).exception(), poolkit.WorkerCrashed)
    trace.save(tmp_path / "run.svg")
    picture = parsed((tmp_path / "run.svg").read_text())
    texts = texts_of(picture)
    assert {"worker 1", "worker 2"} <= {*texts}
    assert len(picture.findall(f"{SVG}rect[@class='life']")) == sum(text.startswith("worker ") for text in texts)
    assert "1 crashed" in texts[0]
    assert "0% busy" in texts, "one of them idles"
    [death] = picture.findall(f"{SVG}path[@class='death']")
    assert "SIGKILL" in death.findtext(f"{SVG}title")


@pytest.mark.one_start_method
@pytest.mark.needs("background")
def test_a_worker_that_runs_is_stopped_in_the_picture_too(make_pool, hold, tmp_path):
    pool = make_pool()
    held = hold(pool)
    with pool.trace(tmp_path / "run.json"):
        assert held.task.cancel()
    [run] = runs_of(load(tmp_path / "run.json"))
    assert (run["args"]["task"], run["args"]["outcome"]) == (held.task.id, "cancelled")
    held.release()


@pytest.mark.needs("streams")
@pytest.mark.one_start_method
def test_a_stream_is_one_run(pool, tmp_path):
    with pool.trace(tmp_path / "run.json"):
        with pool.stream(range, 10) as whole:
            assert list(whole) == [*range(10)]
        with pool.stream(range, 10_000) as left:
            next(left)
        assert pool.submit(work.square, 2).result() == 4
    assert outcomes(load(tmp_path / "run.json")) == {
        ("range", "succeeded"): 1,
        ("range", "cancelled"): 1,
        ("square", "succeeded"): 1,
    }


@pytest.mark.one_start_method
def test_several_traces_at_once_have_what_happened_while_each_went_on(pool, tmp_path):
    first = pool.trace(tmp_path / "first.json")
    pool.submit(work.square, 1).result()
    second = pool.trace(tmp_path / "second.json", most=2)
    pool.options(name="both").submit(work.square, 2).result()
    first.stop()
    first.stop()
    for number in range(3):
        pool.options(name=f"later {number}").submit(work.square, number).result()
    second.stop()
    assert outcomes(load(tmp_path / "first.json")) == {("square", "succeeded"): 1, ("both", "succeeded"): 1}
    names = ["both", "later 0", "later 1", "later 2"]
    assert [run["name"] for run in runs_of(load(tmp_path / "second.json"))] == names
    second.save(tmp_path / "last.json")
    assert [run["name"] for run in runs_of(load(tmp_path / "last.json"))] == names[-2:], "the last `most` runs"


@pytest.mark.one_start_method
def test_a_pool_that_ends_completes_its_trace(make_pool, tmp_path):
    pool = make_pool()
    trace = pool.trace(tmp_path / "run.json")
    task = pool.submit(work.square, 3)
    pool.shutdown()
    assert task.result() == 9
    assert outcomes(load(tmp_path / "run.json")) == {("square", "succeeded"): 1}
    assert "stopped" in repr(trace)
    trace.stop()
    trace.save(tmp_path / "run.svg")
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("-trace")]
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(poolkit.PoolClosed):
        pool.trace(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.one_start_method
def test_a_pool_that_did_nothing_completes_its_trace_too(make_pool, tmp_path):
    pool = make_pool()
    trace = pool.trace(tmp_path / "run.json")
    pool.shutdown()
    assert runs_of(load(tmp_path / "run.json")) == []
    assert "0 runs" in texts_of(parsed(trace._repr_svg_()))[0]


@pytest.mark.one_start_method
def test_what_cannot_be_written_is_told_at_once(pool, tmp_path):
    with pytest.raises(FileNotFoundError):
        pool.trace(tmp_path / "nowhere/run.json")
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder.json").mkdir()
        pool.trace(tmp_path / "folder.json")
    with pytest.raises(ValueError, match=r"must end with \.json, was .*run\.txt"):
        pool.trace(tmp_path / "run.txt")
    with pytest.raises(ValueError, match="most"):
        pool.trace(most=0)
    assert pool._supervisor.traces.all == ()
    with pool.trace(tmp_path / "run.json") as trace:
        with pytest.raises(ValueError, match=r"\.svg or \.json"):
            trace.save(tmp_path / "run.png")
        with pytest.raises(ValueError, match="is being written"):
            trace.save(tmp_path / "run.json")
    trace.save(tmp_path / "run.json")
    assert runs_of(load(tmp_path / "run.json")) == []


@pytest.mark.one_start_method
def test_a_full_disk_is_logged_once_and_harms_no_task(pool, caplog, tmp_path):
    path = tmp_path / "run.json"
    with pool.trace(path) as trace:
        pool.options(name="first").submit(work.square, 2).result()
        with trace._lock:
            trace._sort(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
        try:
            for number in range(3):
                assert pool.submit(work.square, number).result() == number * number
                with trace._lock:
                    trace._sort(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    [record] = caplog.records
    assert record.name == "poolkit"
    assert "is no longer written to" in record.getMessage()
    assert str(path) in record.getMessage()
    assert outcomes(load_torn(path))["first", "succeeded"] == 1, "what was not written whole is cut off"
    trace.save(tmp_path / "kept.json")
    assert outcomes(load(tmp_path / "kept.json"))["square", "succeeded"] == 3
