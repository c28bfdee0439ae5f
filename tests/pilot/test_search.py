"""The search: which trial comes next, and that nothing is lost or done twice."""

import collections
import os
import signal
import subprocess
import sys
import time

import pilot_fakes as fakes
import pytest
from pilot_trials import figures_of, run

from tfcompress.pilot.engines import ENGINES
from tfcompress.pilot.ledger import FAILED, Ledger, check_folder, check_settings
from tfcompress.pilot.workers import Here
from tfcompress.search.samplers import SAMPLERS


def best_of(search, records):
    found = [r for r in records if r.status == "done" and r.key != "float"]
    return min(found, key=lambda r: search.goal(r.figures))


def test_the_same_seed_finds_the_same_in_the_same_order(tmp_path):
    first, again, other = (
        fakes.plain(fakes.searched(tmp_path / str(i), trials=24, seed=seed)[1])
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first != other


def test_the_best_third_goes_on_and_nothing_is_trained_twice(tmp_path):
    search, records = fakes.searched(tmp_path, trials=40)
    assert max(collections.Counter((r.key, r.turn) for r in records).values()) == 1
    by_turn = collections.defaultdict(list)
    for r in records:
        if r.key != "float":
            by_turn[r.turn].append(r)
    assert set(by_turn) == {1, 2, 3}
    keys = {turn: {r.key for r in each} for turn, each in by_turn.items()}
    assert keys[3] <= keys[2] <= keys[1]
    # The trials that went on took up their training where it was.
    for key in keys[3]:
        lines = (tmp_path / "trials" / key / "work" / "runs").read_text().split("\n")
        assert lines == ["1", "2 resumed", "3 resumed", ""]
    # What went on is better than the mean of what did not.
    scores = {r.key: search.goal(r.figures) for r in by_turn[1]}
    gone_on = [scores[key] for key in keys[2]]
    left = [scores[key] for key in keys[1] - keys[2]]
    assert sum(gone_on) / len(gone_on) < sum(left) / len(left)


def test_files_lie_by_candidate_and_turn(tmp_path):
    _, records = fakes.searched(tmp_path, trials=12)
    for record in records:
        text = (tmp_path / record.place / "model.tflite").read_text()
        told = record.recipe + repr(sorted(record.training.items()))
        assert text == told
        if record.recipe:
            assert record.figures["flash"] == figures_of(told, record.turn)["flash"]


def test_engines_are_the_samplers_there_are():
    assert set(ENGINES) == set(SAMPLERS)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_engines_find_something_near_the_best_there_is(tmp_path, engine):
    search, records = fakes.searched(tmp_path, trials=40, engine=engine)
    best = best_of(search, records)
    assert search.goal.missed(best.figures) == {}
    every = []
    for a in fakes.SIZES:
        for b in fakes.SIZES:
            for c in fakes.SIZES:
                picks = {"part0": f"bits {a}", "part1": f"bits {b}", "part2": f"bits {c}"}
                candidate = fakes.space().candidate(picks)
                told = candidate.recipe + repr(sorted(candidate.training.items()))
                found = figures_of(told, 3)
                every.append(search.goal({**found, "quality": found["value"]}))
    share = sum(score < search.goal(best.figures) for score in every) / len(every)
    assert share < 0.25


def test_a_crash_is_a_result(tmp_path):
    _, records = fakes.searched(tmp_path, trials=40, crash="2-4")
    failed = [r for r in records if r.status == FAILED]
    assert failed
    assert all("2-4" in r.recipe for r in failed)
    assert all(r.error == "crashed: ended by SIGKILL (out of memory?)" for r in failed)
    assert len(records) == 41


def test_a_trial_ends_with_its_time_or_its_memory(tmp_path):
    # The first may end, so that it is known what one takes; the next one may not.
    _, records = fakes.searched(tmp_path / "a", seconds=6.0, wait=2.2)
    assert [r.status for r in records] == ["done", "done"]
    start = time.monotonic()
    slow = {"seconds": 5.0, "crash": "slow=2-4", "budget": "flash=90k"}
    _, records = fakes.searched(tmp_path / "c", **slow)
    assert time.monotonic() - start < 5.4
    assert (records[-1].error or "").startswith("did not end within")
    here = Here(run, memory=2**20, preloaded=("tfcompress.files.tied",))
    with pytest.raises(ValueError, match="MiB of memory; allowed are 1"):
        fakes.searched(tmp_path / "b", trials=2, workers=here, wait=5.0)


def test_time_is_kept(tmp_path):
    start = time.monotonic()
    _, records = fakes.searched(tmp_path, seconds=5.0, wait=0.1, parts=4, budget="flash=90k")
    assert 2.5 < time.monotonic() - start < 5.4
    assert len(records) > 5
    # Late, what is there goes on.
    assert {r.turn for r in records} & {2, 3}


def test_what_costs_too_much_even_when_smallest_ends_the_search(tmp_path):
    search, records = fakes.searched(tmp_path, trials=40, budget="flash=1k")
    assert len(records) <= 4
    assert search.goal.missed(best_of(search, records).figures)


def test_other_budgets_use_what_is_known(tmp_path):
    _, before = fakes.searched(tmp_path, trials=20)
    search, after = fakes.searched(tmp_path, trials=1, budget="flash=70k,quality=-1")
    assert fakes.plain(after)[: len(before)] == fakes.plain(before)
    # Other budgets have a sampler of their own, which is told of what had a short training.
    assert search.ledger.known() >= sum(r.turn == 1 for r in before)
    assert max(collections.Counter((r.key, r.turn) for r in after).values()) == 1


def killed(folder, trials, moments, environment):
    """A search that was killed at some moments after it began, and then ended."""
    command = [sys.executable, fakes.__file__, str(folder), str(trials), "0.1"]
    for seconds in moments:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, timeout=300)


def finished(folder):
    with Ledger(folder, None, "tpe", fakes.space(), "any", 0) as ledger:
        return ledger.records()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trials", "moments"), [(25, (4.5,)), (200, [4.2 + 0.37 * i for i in range(10)])]
)
def test_kills_lose_no_trial_that_ended(tmp_path, trials, moments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed(tmp_path, trials, moments, environment)
    records = finished(tmp_path)
    done = [r for r in records if r.status == "done"]
    failed = [r for r in records if r.status == "failed"]
    assert {r.error for r in failed} <= {"its process ended"}
    assert len(failed) <= len(moments)
    assert len(done) >= trials
    assert max(collections.Counter((r.key, r.turn) for r in done).values()) == 1
    for record in done:
        if record.key != "float":  # As if nothing had happened.
            told = record.recipe + repr(sorted(record.training.items()))
            expected = figures_of(told, record.turn)
            assert record.figures["quality"] == expected.pop("value")
            assert expected.items() <= record.figures.items()


def test_a_float_model_that_was_cut_off_is_measured_anew(tmp_path):
    with Ledger(tmp_path, None, "tpe", fakes.space(), "any", 0) as ledger:
        ledger.begin("float", 0)
    _, records = fakes.searched(tmp_path, trials=3)
    assert [(r.key == "float", r.status) for r in records[:2]] == [(True, "failed"), (True, "done")]
    assert [(r.key == "float", r.status) for r in records[2:]] == [(False, "done")] * 3
    assert all(r.recipe for r in records[2:])


@pytest.mark.slow
def test_two_processes_share_a_storage(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, fakes.__file__, str(tmp_path), "20", "0.1"]
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    records = [r for r in finished(tmp_path) if r.key != "float"]
    assert len(records) == 40
    assert len({r.owner for r in records}) == 2
    assert max(collections.Counter((r.key, r.turn) for r in records).values()) == 1


def test_a_folder_is_of_one_search(tmp_path):
    folder = tmp_path / "best.tflite.auto"
    with pytest.raises(ValueError, match="there is no search to resume"):
        check_folder(folder, resume=True, overwrite=False)
    check_folder(folder, resume=False, overwrite=True)
    check_settings(folder, {"model": "a", "seed": 0}, resume=False)
    with pytest.raises(ValueError, match="Go on with --resume, or begin anew with --overwrite"):
        check_folder(folder, resume=False, overwrite=False)
    check_folder(folder, resume=True, overwrite=False)
    check_settings(folder, {"model": "a", "seed": 0}, resume=True)
    with pytest.raises(ValueError, match="is one of another model: a search is resumed with what"):
        check_settings(folder, {"model": "b", "seed": 0}, resume=True)
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged\. Begin anew with --overwrite"):
        check_settings(folder, {"model": "a"}, resume=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mum.txt").touch()
    with pytest.raises(ValueError, match=r"is there, and is none\. Name another --output"):
        check_folder(tmp_path / "letters", resume=False, overwrite=True)


def test_sqlite_is_a_storage_too(tmp_path):
    pytest.importorskip("sqlalchemy")
    address = f"sqlite:///{tmp_path / 'trials.db'}"
    _, first = fakes.searched(tmp_path, trials=8, storage=address)
    _, again = fakes.searched(tmp_path, trials=4, storage=address)
    assert fakes.plain(again)[: len(first)] == fakes.plain(first)
    with pytest.raises(ValueError, match="storage must be an address that Optuna can open"):
        fakes.searched(tmp_path / "other", trials=1, storage="mydb")
