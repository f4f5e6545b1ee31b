import pytest
import torch

from benchmarks import l2, stopwatch
from benchmarks.shapes import Case
from benchmarks.stopwatch import CpuClock
from benchmarks.timing import CACHED, InputSets, Plan

CPU = torch.device("cpu")


class FakeClock:
    """A clock on which each provider's replay takes a known time, drifting from run to run."""

    def __init__(self):
        self.log = []
        self.synchronized = False

    def timed(self, replay):
        self.log.append("start")
        replay()
        self.log.append("end")
        us = replay.us * (1 + 0.01 * len(self.log))

        def read():
            assert self.synchronized, "read before the device was waited for"
            return us

        return read

    def synchronize(self):
        self.synchronized = True

    def forget(self):
        self.log.append("forget")


def fake_replay(name, us, log):
    def replay():
        log.append(name)

    replay.us = us
    return replay


class FakeSets:
    def __init__(self, log):
        self.log = log

    def reset(self):
        self.log.append("reset")

    def evict(self):
        self.log.append("evict")


def test_measure_resets_and_warms_up_outside_the_timed_region():
    clock = FakeClock()
    replays = {name: fake_replay(name, 128.0, clock.log) for name in ("a", "b")}
    times = stopwatch.measure(replays, FakeSets(clock.log), Plan(CACHED, 4, 64), clock, 4)
    a, b = ([x, "evict", "start", x, "end"] for x in "ab")
    one = [["forget", "reset", *part] for part in (a, b)]
    order = [*one[0], *one[1], *one[1], *one[0], *one[1], *one[0], *one[0], *one[1]]
    assert clock.log == [*order, "a", "b"]  # a load under which to read the clocks
    assert [len(samples) for samples in times.values()] == [4, 4]
    assert times["a"][0] == pytest.approx(128 / 64, rel=0.1)


def test_measure_reads_the_clocks_while_the_device_is_busy():
    clock = FakeClock()
    busy = []
    stopwatch.measure(
        {"a": fake_replay("a", 1.0, clock.log)},
        FakeSets(clock.log),
        Plan(CACHED, 1, 1),
        clock,
        2,
        while_running=lambda: busy.append(clock.synchronized),
    )
    assert busy == [False]


def test_cpu_clock_divides_nothing_and_makes_every_call():
    ticks = iter([10.0, 10.5])
    clock = CpuClock(now=lambda: next(ticks))
    calls = []
    sets = InputSets(Case("fused_add", "bf16", 2, 8), Plan(CACHED, 2, 3), CPU)
    replay = clock.prepare(lambda *_: calls.append(1), sets, Plan(CACHED, 2, 3))
    assert len(calls) == 1  # the call that compiles
    assert clock.timed(replay)() == pytest.approx(0.5e6)
    assert len(calls) == 1 + 3


@pytest.mark.parametrize(("status", "refused"), [(0, False), (801, False), (201, True)])
def test_a_refused_reset_is_an_error_but_for_a_device_without(monkeypatch, status, refused):
    class Driver:
        def cuCtxResetPersistingL2Cache(self):  # noqa: N802, the driver's name
            return status

    monkeypatch.setattr(l2, "_driver", Driver)
    if not refused:
        l2.reset_persisting()
        return
    with pytest.raises(RuntimeError, match="cuCtxResetPersistingL2Cache: error 201"):
        l2.reset_persisting()


@pytest.mark.gpu
def test_the_clock_of_a_gpu_forgets():
    torch.zeros(1, device="cuda")
    stopwatch.GraphClock(torch.device("cuda", 0)).forget()
