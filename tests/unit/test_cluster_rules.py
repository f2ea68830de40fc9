"""The rules of a cluster: who is started, drained and killed, and when."""

from __future__ import annotations

import pytest
from unit.scripted_cluster import ScriptedCluster

from poolkit._core.cluster import BOOT_FAILED, CRASH_LOOP, READY, RELOADING, SERVING, STARTING, STOPPED, STOPPING


def serving(size: int, *, grace: float = 5.0) -> ScriptedCluster:
    """A cluster whose workers are all ready, for a long time."""
    cluster = ScriptedCluster(size, grace=grace)
    cluster.behave()
    assert cluster.rules.state == SERVING
    cluster.wait(100.0)
    return cluster


def current(cluster: ScriptedCluster, slot: int) -> int:
    """The number of a slot's current member."""
    member = cluster.rules.slots[slot].current
    assert member is not None
    return member.number


def coming(cluster: ScriptedCluster) -> list[int]:
    """The numbers of the members that are to take a place."""
    return [slot.coming.number for slot in cluster.rules.slots.values() if slot.coming is not None]


def boot(cluster: ScriptedCluster, numbers: list[int]) -> None:
    for number in numbers:
        cluster.ready(number)


# ===== start and stop =====


def test_the_first_start_is_told_when_all_are_ready() -> None:
    """Not before, and once."""
    cluster = ScriptedCluster(2)
    assert [*cluster.rules.slots] == [0, 1]
    cluster.ready(1)
    assert not cluster.count("started")
    cluster.ready(2)
    assert cluster.count("started") == 1
    assert cluster.rules.state == SERVING
    assert cluster.rules.next_deadline() is None


def test_the_first_start_fails_of_the_first_exception() -> None:
    """What was raised before readiness is raised again each time: nobody is started anew."""
    cluster = ScriptedCluster(2)
    cluster.ready(1)
    why = cluster.gone(2, raised=True)
    assert cluster.rules.exit_code == BOOT_FAILED == 3
    assert cluster.rules.failure is why
    assert cluster.rules.state == STOPPING
    assert cluster.rules.counts["started"] == 2
    cluster.finish()


def test_the_first_start_fails_of_three_deaths() -> None:
    """Two are made good, also where another worker was ready between them."""
    cluster = ScriptedCluster(2)
    cluster.gone(2)
    cluster.ready(1)
    cluster.wait(1.0)
    cluster.gone(3)
    assert cluster.rules.state == STARTING
    cluster.wait(1.0)
    cluster.gone(4)
    assert cluster.rules.exit_code == BOOT_FAILED
    cluster.finish()


def test_an_exception_after_readiness_is_a_death_like_others() -> None:
    """It does not fail the first start at once."""
    cluster = ScriptedCluster(2)
    cluster.ready(1)
    cluster.gone(1, raised=True)
    assert cluster.rules.state == STARTING
    cluster.finish()
    assert cluster.rules.exit_code == 0


def test_who_does_not_boot_in_time_is_killed_with_its_stack() -> None:
    """It counts as a death, and there is another one."""
    cluster = ScriptedCluster(1, boot_timeout=2.0)
    cluster.wait(1.99)
    assert cluster.live[1].killed_at is None
    cluster.wait(0.01)
    assert cluster.live[1].killed_at == 2.0
    assert cluster.live[1].want_stack
    assert cluster.live[1].member.cause == "unresponsive"
    cluster.ready(1)
    assert cluster.rules.ready_count() == 0, "it is as good as dead"
    cluster.gone(1)
    cluster.wait(0.1)
    cluster.ready(2)
    assert cluster.rules.state == SERVING


def test_stop_drains_all_at_once_and_kills_after_the_grace_with_a_stack() -> None:
    """No more connections; 0.1 s later the order to stop; then the grace."""
    cluster = serving(2, grace=5.0)
    began = cluster.now
    cluster.end()
    assert cluster.orders[-3:] == [("close", 0), ("drain", 1), ("drain", 2)]
    cluster.wait(0.09)
    assert cluster.live[1].stopped_at is None
    cluster.wait(0.01)
    assert cluster.live[1].stopped_at == cluster.live[2].stopped_at == pytest.approx(began + 0.1)
    cluster.gone(2)
    cluster.wait(4.99)
    assert cluster.live[1].killed_at is None
    cluster.wait(0.02)
    assert cluster.live[1].want_stack
    assert not cluster.count("stopped")
    cluster.gone(1)
    assert cluster.rules.state == STOPPED
    assert cluster.rules.exit_code == 0


def test_a_late_tick_does_not_take_the_grace_away() -> None:
    """The owner did not run for a while: the grace counts from the order to stop."""
    cluster = serving(1, grace=5.0)
    cluster.end()
    cluster.now += 60.0
    cluster.tick()
    assert cluster.live[1].stopped_at == cluster.now
    assert cluster.live[1].killed_at is None
    cluster.wait(5.0)
    assert cluster.live[1].killed_at == cluster.now


def test_a_second_stop_kills() -> None:
    """At once, without a stack; a second one that does not kill changes nothing."""
    cluster = serving(2)
    cluster.end()
    before = cluster.looks()
    cluster.end()
    assert cluster.looks() == before
    cluster.end(kill=True)
    assert all(worker.killed_at == cluster.now and not worker.want_stack for worker in cluster.live.values())
    cluster.gone(1)
    cluster.gone(2)
    assert cluster.count("stopped") == 1


def test_who_starts_when_it_is_to_end_is_killed_soon_without_a_stack() -> None:
    """It has no grace: it serves nobody."""
    cluster = ScriptedCluster(1, grace=30.0)
    cluster.end()
    assert cluster.live[1].drained_at == cluster.now
    cluster.wait(0.1)
    assert cluster.live[1].killed_at == cluster.now
    assert not cluster.live[1].want_stack


def test_who_turns_out_to_be_ready_when_it_is_to_end_has_its_grace() -> None:
    """Its notice was on its way, and it may have accepted a connection."""
    cluster = ScriptedCluster(1, grace=30.0)
    cluster.end()
    cluster.wait(0.05)
    cluster.ready(1)
    assert not cluster.count("ready")
    cluster.wait(1.0)
    assert cluster.live[1].stopped_at == pytest.approx(0.1)
    assert cluster.live[1].killed_at is None


# ===== deaths =====


def test_a_late_death_is_made_good_at_once() -> None:
    """In the same slot, without a back-off."""
    cluster = serving(2)
    cluster.gone(1)
    assert cluster.orders[-1] == ("start", 3)
    assert cluster.live[3].member.slot == 0
    assert cluster.rules.slots[0].restarts == 1
    assert cluster.rules.counts["crashed"] == 1


def test_early_deaths_are_made_good_later_and_later() -> None:
    """Within a second of readiness, or before it; after a late one it begins anew."""
    cluster = serving(2)
    cluster.gone(1)
    for failures, was_ready in enumerate((False, True, False, True, False)):
        number = current(cluster, 0)
        if was_ready:
            cluster.ready(number)
            cluster.wait(0.99)
        cluster.gone(number)
        start_at = cluster.rules.slots[0].start_at
        assert start_at is not None
        assert 0.05 * 2**failures <= start_at - cluster.now <= 0.1 * 2**failures + 1e-9
        cluster.wait(start_at - cluster.now)
    cluster.ready(current(cluster, 0))
    cluster.wait(1.01)
    cluster.gone(current(cluster, 0))
    assert cluster.rules.slots[0].current is not None
    cluster.gone(current(cluster, 0))
    start_at = cluster.rules.slots[0].start_at
    assert start_at is not None
    assert start_at - cluster.now <= 0.1 + 1e-9


def test_who_hangs_is_killed_with_its_stack_and_replaced_when_it_is_gone() -> None:
    """It counts as hung, not as crashed."""
    cluster = serving(2)
    cluster.hung(1)
    assert cluster.live[1].want_stack
    assert cluster.rules.ready_count() == 1
    assert 3 not in cluster.live
    cluster.gone(1)
    assert cluster.live[3].member.slot == 0
    assert (cluster.rules.counts["hung"], cluster.rules.counts["crashed"]) == (1, 0)


def test_who_drains_is_not_looked_at_for_signs_of_life() -> None:
    """It has its grace, whatever it does with it."""
    cluster = serving(1)
    cluster.end()
    cluster.hung(1)
    assert cluster.live[1].killed_at is None
    assert cluster.rules.counts["hung"] == 0


def crash(cluster: ScriptedCluster, slots: list[int], seconds: float) -> None:
    """Have each start of these slots fail for a while."""
    until = cluster.now + seconds
    while cluster.now < until and cluster.rules.state == SERVING:
        while bad := [number for number, worker in cluster.live.items() if worker.member.slot in slots]:
            cluster.gone(bad[0])
        deadline = cluster.rules.next_deadline()
        assert deadline is not None
        cluster.wait(min(deadline, until) - cluster.now)


def test_a_crash_loop_ends_the_cluster_after_ten_seconds() -> None:
    """When nobody is ready; exit code 4."""
    cluster = serving(2)
    crash(cluster, [0, 1], 9.99)
    assert cluster.rules.state == SERVING
    crash(cluster, [0, 1], 0.02)
    assert cluster.rules.state in (STOPPING, STOPPED)
    assert cluster.rules.exit_code == CRASH_LOOP == 4
    assert cluster.rules.failure is not None
    cluster.finish()


def test_a_crash_loop_goes_on_while_anybody_is_ready() -> None:
    """For ever, with longer and longer pauses."""
    cluster = serving(2)
    crash(cluster, [0], 300.0)
    assert cluster.rules.state == SERVING
    assert cluster.rules.exit_code == 0
    assert cluster.rules.counts["started"] < 100
    crash(cluster, [0, 1], 10.0)
    assert cluster.rules.exit_code == CRASH_LOOP


def test_nobody_ready_is_no_crash_loop_while_starts_do_not_fail() -> None:
    """One death and a long boot."""
    cluster = serving(1)
    cluster.gone(1)
    cluster.wait(50.0)
    assert cluster.rules.state == SERVING
    cluster.ready(2)


def fail_to_start(cluster: ScriptedCluster, times: int) -> None:
    """Have the only worker, who is starting or ready, and those after it die; then one more is starting."""
    for _ in range(times):
        cluster.gone(current(cluster, 0))
        start_at = cluster.rules.slots[0].start_at
        if start_at is not None:
            cluster.wait(start_at - cluster.now)


def test_who_hangs_is_nobody_before_it_is_gone() -> None:
    """The ten seconds begin when it is killed."""
    cluster = serving(1)
    cluster.hung(1)
    cluster.wait(5.0)
    cluster.gone(1)
    crash(cluster, [0], 4.99)
    assert cluster.rules.state == SERVING
    crash(cluster, [0], 0.02)
    assert cluster.rules.exit_code == CRASH_LOOP


def test_starts_that_failed_count_in_a_row() -> None:
    """One that came up between them makes it no crash loop."""
    cluster = serving(1)
    fail_to_start(cluster, 3)
    cluster.ready(current(cluster, 0))
    fail_to_start(cluster, 2)
    cluster.wait(50.0)
    assert cluster.rules.state == SERVING


def test_who_was_replaced_by_plan_leaves_no_back_off_behind() -> None:
    """Its failures were long ago."""
    cluster = serving(1)
    fail_to_start(cluster, 5)
    cluster.ready(current(cluster, 0))
    cluster.wait(100.0)
    cluster.due(current(cluster, 0))
    boot(cluster, coming(cluster))
    cluster.gone(current(cluster, 0))
    start_at = cluster.rules.slots[0].start_at
    assert start_at is not None
    assert start_at - cluster.now <= 0.1 + 1e-9


def test_new_workers_of_a_reload_count_as_somebody() -> None:
    """Those that are ready take connections, though the old ones crash in a loop."""
    cluster = serving(2)
    cluster.reload()
    new = coming(cluster)
    cluster.ready(new[0])
    until = cluster.now + 20.0
    while cluster.now < until:
        for number, worker in list(cluster.live.items()):
            if worker.member.generation == 1:
                cluster.gone(number)
        cluster.wait(0.5)
    assert cluster.rules.state == RELOADING
    cluster.ready(new[1])
    assert cluster.answers[2] == ("reloaded", None)


def test_news_of_who_is_gone_or_is_to_end_changes_nothing() -> None:
    """It came late."""
    cluster = serving(1)
    cluster.hung(1)
    before = cluster.looks()
    cluster.hung(1)
    cluster.due(1)
    cluster.due(1)
    cluster.ready(1)
    assert cluster.looks() == before
    cluster.gone(1)
    before = cluster.looks()
    for event in (cluster.rules.ready, cluster.rules.hung):
        event(1, cluster.now)
    cluster.rules.gone(1, None, cluster.now)
    cluster.rules.due(1, "recycled", cluster.now)
    assert cluster.looks() == before
    cluster.end(kill=True)
    cluster.end(kill=True)
    assert cluster.orders[-1] == ("kill", 2)


# ===== reload =====


def test_a_reload_drains_the_old_ones_when_all_new_ones_are_ready() -> None:
    """Their code is let go of when they are gone."""
    cluster = serving(2)
    assert cluster.reload() == 2
    new = coming(cluster)
    cluster.ready(new[0])
    assert cluster.live[1].drained_at is None
    cluster.ready(new[1])
    assert cluster.answers[2] == ("reloaded", None)
    assert cluster.live[1].drained_at == cluster.live[2].drained_at == cluster.now
    assert cluster.live[1].member.cause == "reloaded"
    cluster.gone(1)
    assert cluster.dropped == []
    cluster.gone(2)
    assert cluster.dropped == [1]
    assert cluster.rules.counts["reloads"] == 1
    assert cluster.rules.counts["crashed"] == 0


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_reload_is_undone_when_a_new_one_dies(*, was_ready: bool) -> None:
    """The new ones are drained, the old ones do not notice."""
    cluster = serving(3)
    cluster.reload()
    new = coming(cluster)
    cluster.ready(new[0])
    if was_ready:
        cluster.ready(new[1])
    why = cluster.gone(new[1])
    assert cluster.answers[2] == ("undone", why)
    assert cluster.rules.state == SERVING
    assert cluster.rules.generation == 1
    assert cluster.live[new[0]].drained_at == cluster.live[new[2]].drained_at == cluster.now
    cluster.wait(0.1)
    assert cluster.live[new[0]].stopped_at is not None
    assert cluster.live[new[2]].killed_at is not None
    cluster.gone(new[0])
    cluster.gone(new[2])
    assert cluster.dropped == [2]
    assert cluster.serving() == {0, 1, 2}
    assert cluster.rules.counts["reloads_failed"] == 1


def test_a_reload_is_undone_when_it_takes_too_long() -> None:
    """The error names who was late, whose stack is taken."""
    cluster = serving(3)
    cluster.reload(2.0)
    new = coming(cluster)
    cluster.ready(new[0])
    cluster.wait(1.99)
    assert cluster.rules.state == RELOADING
    cluster.wait(0.01)
    event, why = cluster.answers[2]
    assert event == "undone"
    assert isinstance(why, TimeoutError)
    assert str(why) == "2 of 3 new workers were not ready in time: 1, 2"
    cluster.wait(0.1)
    assert cluster.live[new[1]].want_stack
    assert cluster.live[new[2]].want_stack
    assert cluster.live[new[0]].stopped_at == cluster.now
    cluster.finish()
    assert cluster.rules.counts["crashed"] == 0


def test_a_reload_in_a_reload_waits_and_is_one_for_all_who_ask() -> None:
    """With the longest of their limits."""
    cluster = serving(2)
    assert cluster.reload() == 2
    assert [cluster.reload(1.0), cluster.reload(8.0), cluster.reload(2.0)] == [3, 3, 3]
    assert 3 not in cluster.begun
    boot(cluster, coming(cluster))
    assert cluster.answers[2] == ("reloaded", None)
    assert cluster.rules.state == RELOADING
    cluster.wait(7.99)
    assert 3 not in cluster.answers
    boot(cluster, coming(cluster))
    assert cluster.answers[3] == ("reloaded", None)
    assert cluster.rules.generation == 3


def test_a_reload_that_waited_is_done_after_one_that_was_undone() -> None:
    """Each is answered for itself."""
    cluster = serving(2)
    assert [cluster.reload(), cluster.reload()] == [2, 3]
    why = cluster.gone(coming(cluster)[0])
    assert cluster.answers == {2: ("undone", why)}
    boot(cluster, coming(cluster))
    assert cluster.answers[3] == ("reloaded", None)


def test_a_reload_during_the_first_start_waits_for_it() -> None:
    """And is done at once then."""
    cluster = ScriptedCluster(2)
    assert cluster.reload() == 2
    cluster.ready(1)
    assert cluster.rules.state == STARTING
    cluster.ready(2)
    assert cluster.rules.state == RELOADING
    boot(cluster, coming(cluster))
    assert cluster.answers == {2: ("reloaded", None)}


def test_stop_answers_the_reloads_that_run_and_wait() -> None:
    """As undone, without a cause."""
    cluster = serving(2)
    cluster.reload()
    cluster.reload()
    cluster.end()
    assert cluster.answers == {2: ("undone", None), 3: ("undone", None)}
    cluster.finish()


def test_deaths_of_old_ones_do_not_hold_up_a_reload() -> None:
    """They are replaced by old ones meanwhile, which the new ones end again."""
    cluster = serving(2)
    cluster.reload()
    new = coming(cluster)
    cluster.gone(1)
    again = current(cluster, 0)
    assert cluster.live[again].member.generation == 1
    boot(cluster, new)
    assert cluster.answers[2] == ("reloaded", None)
    assert cluster.live[again].drained_at == cluster.now
    assert [current(cluster, 0), current(cluster, 1)] == new


def test_a_slot_that_waits_for_its_back_off_is_filled_by_a_reload() -> None:
    """The start it waited for does not come any more."""
    cluster = serving(1)
    cluster.gone(1)
    cluster.gone(2)
    assert cluster.rules.slots[0].start_at is not None
    cluster.reload()
    boot(cluster, coming(cluster))
    assert cluster.rules.slots[0].start_at is None
    assert cluster.rules.next_deadline() is None


# ===== resize =====


def test_growing_in_a_reload_starts_an_old_and_a_new_one() -> None:
    """The reload is done when the new one is ready too."""
    cluster = serving(1)
    cluster.reload()
    cluster.resize(2)
    assert len(coming(cluster)) == 2
    assert cluster.live[current(cluster, 1)].member.generation == 1
    cluster.ready(coming(cluster)[0])
    assert cluster.rules.state == RELOADING
    boot(cluster, coming(cluster)[1:])
    assert cluster.answers[2] == ("reloaded", None)


def test_shrinking_in_a_reload_may_complete_it() -> None:
    """Nobody waits for a new one whose slot is gone."""
    cluster = serving(2)
    cluster.reload()
    first, second = coming(cluster)
    cluster.ready(first)
    cluster.resize(1)
    assert cluster.answers[2] == ("reloaded", None)
    assert cluster.live[2].member.cause == cluster.live[second].member.cause == "shrunk"
    assert current(cluster, 0) == first
    cluster.gone(second)
    cluster.finish()


def test_a_slot_that_comes_back_is_not_touched_by_its_former_member() -> None:
    """Shrunk and grown again while the old member drains."""
    cluster = serving(2)
    cluster.resize(1)
    cluster.resize(2)
    assert current(cluster, 1) == 3
    cluster.ready(3)
    cluster.gone(2)
    assert current(cluster, 1) == 3
    assert cluster.rules.counts["crashed"] == 0


# ===== recycling =====


def test_one_is_recycled_at_a_time() -> None:
    """The old one drains when the new one is ready; then comes the next."""
    cluster = serving(3)
    for number in (1, 2, 3):
        cluster.due(number)
    assert coming(cluster) == [4]
    assert cluster.live[1].drained_at is None
    cluster.ready(4)
    assert cluster.live[1].drained_at == cluster.now
    assert cluster.live[1].member.cause == "recycled"
    assert coming(cluster) == [5]
    cluster.ready(5)
    cluster.ready(6)
    assert coming(cluster) == []
    assert cluster.rules.counts["recycled"] == 3
    cluster.finish()


def test_nobody_is_recycled_before_all_were_ready() -> None:
    """Nor forgotten."""
    cluster = ScriptedCluster(2)
    cluster.ready(1)
    cluster.due(1)
    assert coming(cluster) == []
    cluster.ready(2)
    assert coming(cluster) == [3]


def test_a_recycling_whose_new_one_fails_is_tried_again_after_a_second() -> None:
    """The old one serves on; others need not wait for it."""
    cluster = serving(2)
    cluster.due(1)
    cluster.due(2)
    cluster.gone(coming(cluster)[0])
    assert cluster.live[1].drained_at is None
    assert [cluster.live[number].member.slot for number in coming(cluster)] == [1]
    boot(cluster, coming(cluster))
    assert coming(cluster) == []
    cluster.wait(0.99)
    assert coming(cluster) == []
    cluster.wait(0.01)
    assert [cluster.live[number].member.slot for number in coming(cluster)] == [0]
    boot(cluster, coming(cluster))
    assert cluster.live[1].drained_at == cluster.now


def test_who_dies_while_it_is_recycled_is_replaced_by_the_one_that_comes() -> None:
    """No third one is started."""
    cluster = serving(1)
    cluster.due(1)
    cluster.gone(1)
    assert current(cluster, 0) == 2
    assert cluster.rules.counts["started"] == 2
    cluster.ready(2)
    assert cluster.rules.ready_count() == 1
    assert cluster.rules.counts["recycled"] == 0


def test_a_reload_takes_the_place_of_a_recycling() -> None:
    """What was to come is of the old code; who is due is replaced by the reload, or later if that is undone."""
    cluster = serving(1)
    cluster.due(1)
    (recycling,) = coming(cluster)
    cluster.reload()
    assert cluster.live[recycling].drained_at == cluster.now
    cluster.gone(coming(cluster)[0])
    assert cluster.live[1].member.state == READY
    cluster.wait(1.0)
    boot(cluster, coming(cluster))
    assert cluster.live[1].drained_at == cluster.now
    assert cluster.rules.counts["recycled"] == 1
