"""A rank that is missing, odd, or hangs: the model is lost at once, it is said why, and no process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from headway.engine.engine import Engine
from headway.executor.ranks import leader as leader_module
from headway.executor.ranks import rank_group
from headway.executor.ranks.rank_group import RankGroup
from headway.request import FinishReason, NewRequest
from headway.sampling import SamplingParams
from headway.token_ids import pack
from tests.engine.running import Recorder, eventually
from tests.executor.driver import Driver
from tests.executor.ranks.odd_rank import FEWER


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_rank_that_is_killed_is_the_loss_of_all(lead):
    leader = lead()
    (pid,) = leader.pids
    driver = Driver(leader, leader.num_blocks)
    sequence = driver.sequence(0, range(2, 30))
    driver.run([sequence], 3, release=False)
    os.kill(pid, signal.SIGKILL)
    assert eventually(leader.failure)
    assert leader.failure() == "rank 1 has ended (killed by signal 9)"
    result = driver.step([(sequence, 1)])
    assert result.error == "RankLostError: rank 1 has ended (killed by signal 9)"
    leader.shutdown()
    assert is_gone(pid)


def test_the_loss_of_a_rank_is_a_line_of_the_log_and_the_errors_that_come_of_it_are_a_line_each(lead, caplog, capfd):
    leader = lead("llama for three", size=3)
    driver = Driver(leader, leader.num_blocks)
    sequence = driver.sequence(0, range(2, 30))
    driver.run([sequence], 2, release=False)
    caplog.clear()
    first, second = leader.pids
    os.kill(second, signal.SIGSTOP)
    driver.launch([(sequence, 1)])  # the others are in the midst of a step
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGCONT)
    assert eventually(lambda: all(map(is_gone, leader.pids)))
    assert eventually(lambda: len(caplog.messages) == 2)
    why = "rank 1 has ended (killed by signal 9)"
    assert sorted(caplog.messages) == [f"step 3 failed: {why}", f"the ranks end: {why}"]
    assert not any(record.exc_info for record in caplog.records)
    assert "Traceback" not in capfd.readouterr().err


_FAILS_OR_WAITS = """
import sys, time
import msgspec
from headway.executor.ranks.orders import Failed, RankLaunch, read_frames, write_frame
launch = msgspec.msgpack.decode(next(read_frames(0)), type=RankLaunch)
if launch.number == 2:
    write_frame(int(sys.argv[2]), msgspec.msgpack.encode(Failed("rank 2 failed: reset by peer", "Traceback ...")))
    sys.exit(1)
time.sleep(600)
"""


def test_an_error_that_comes_of_the_end_of_another_rank_is_not_the_reason(settings, monkeypatch):
    monkeypatch.setattr(rank_group, "_OTHERS_SECONDS", 240.0)
    group = RankGroup(settings("llama"), 3, {}, [sys.executable, "-c", _FAILS_OR_WAITS])
    try:
        first, second = group.pids
        assert eventually(lambda: is_gone(second))
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: group.lost)
        assert group.lost == "rank 1 has ended (killed by signal 9)"
    finally:
        group.close(at_once=True)


def test_a_file_in_the_working_folder_is_no_module_of_a_rank(lead, tmp_path, monkeypatch):
    (tmp_path / "msgspec.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    assert lead().failure() is None


def test_a_step_that_fails_in_rank_0_is_the_last_one(lead, monkeypatch):
    """The other rank waits in the midst of it: the sums of a next step would be of two steps."""
    monkeypatch.setattr(leader_module, "_WORD_SECONDS", 0.0)
    leader = lead()
    driver = Driver(leader, leader.num_blocks)
    sequence = driver.sequence(0, range(2, 30))
    driver.run([sequence], 2, release=False)
    monkeypatch.setattr(leader._sampling, "sample", lambda *_: 1 / 0)
    assert driver.step([(sequence, 1)]).error == "ZeroDivisionError: division by zero"
    why = "step 3 failed in rank 0: ZeroDivisionError: division by zero"
    assert leader.failure() == why
    assert driver.step([(sequence, 1)]).error == f"RankLostError: {why}"
    assert eventually(lambda: all(map(is_gone, leader.pids)))


def test_blocks_are_as_many_as_fit_everywhere_and_a_failed_step_ends_all(lead, caplog):
    leader = lead(oddity="few_blocks_and_a_bad_step")
    assert leader.num_blocks == FEWER
    driver = Driver(leader, leader.num_blocks)
    sequence = driver.sequence(0, range(2, 30))
    driver.run([sequence], 2, release=False)
    why = "rank 1 failed: RuntimeError: the device caught fire"
    assert driver.step([(sequence, 1)]).error == f"RankLostError: {why}"
    assert leader.failure() == why and leader.restart() is False
    (told,) = (message for message in caplog.messages if message.startswith(f"the ranks end: {why}\n"))
    assert "Traceback" in told and "odd_rank.py" in told
    assert eventually(lambda: all(map(is_gone, leader.pids)))


@pytest.mark.parametrize(
    ("oddity", "why"),
    [
        ("other_transformers", "rank 1 has transformers 4.0, and rank 0 has"),
        ("bad_weights", "holds NaN or infinity"),
    ],
)
def test_a_rank_that_cannot_be_one_is_told_in_one_line(oddity, why, lead):
    with pytest.raises(ValueError, match=why) as refusal:
        lead(oddity=oddity)
    assert "\n" not in str(refusal.value)


def test_a_rank_that_is_stopped_ends_with_the_step_time_out(settings):
    """Without the watchdog of the writer its sums would be waited for half an hour."""
    history = Recorder()
    engine = Engine.from_config(settings("llama", step_timeout=10.0), history.take)
    pids = engine._loop._executor.pids
    engine.start()
    try:
        sampling = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
        uid = engine.add(NewRequest(request_id="a", prompt=pack(list(range(2, 20)), 256), sampling=sampling))
        assert eventually(lambda: history.tokens.get(uid))
        os.kill(pids[0], signal.SIGSTOP)
        history.wait_for([uid])
        assert history.ends[uid].reason is FinishReason.ERROR
        assert eventually(engine.failure)
        assert "did not answer within step_timeout" in engine.failure()
        assert eventually(lambda: all(map(is_gone, pids)))
    finally:
        engine.shutdown()


_PARENT = """
import sys, time
from headway.config import EngineConfig
from headway.executor.ranks.leader import Leader
from headway.model_files import ModelFiles
config = EngineConfig(model=sys.argv[1], device="cpu", num_blocks=40, tensor_parallel_size=3)
leader = Leader(ModelFiles.resolve(config), config)
print(*leader.pids, flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_an_engine_that_is_killed_even_if_a_rank_is_stopped(cut_folder):
    command = [sys.executable, "-c", _PARENT, str(cut_folder("llama for three"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            first, second = map(int, parent.stdout.readline().split())
            os.kill(first, signal.SIGSTOP)
        finally:
            parent.kill()
    assert eventually(lambda: is_gone(first) and is_gone(second))
