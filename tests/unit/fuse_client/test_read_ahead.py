"""Who is followed, how far, and who waits for the disk where."""

from __future__ import annotations

from fastpull.fuse_client.read_ahead import DISTANCE_BYTES, DiskWaits, ReadAhead

KiB = 1 << 10
MiB = 1 << 20


def test_nobody_is_followed_who_never_waited() -> None:
    ahead = ReadAhead()

    assert not ahead
    assert ahead.follow(0, 4096) is None


def test_one_who_goes_on_where_he_waited_is_followed() -> None:
    """Two bytes for each that he reads, without gap and without reading anything twice."""
    ahead = ReadAhead()
    ahead.waited(0, 64 * KiB)

    assert ahead.follow(64 * KiB, 64 * KiB) == range(128 * KiB, 256 * KiB)
    assert ahead.follow(128 * KiB, 64 * KiB) == range(256 * KiB, 384 * KiB)


def test_never_further_than_the_distance() -> None:
    ahead = ReadAhead()
    ahead.waited(0, 512 * KiB)
    stop = 0
    for offset in range(512 * KiB, 64 * MiB, 512 * KiB):
        coming = ahead.follow(offset, 512 * KiB)
        assert coming is not None
        assert stop in (0, coming.start)
        stop = coming.stop
        assert stop <= offset + 512 * KiB + DISTANCE_BYTES

    assert stop == 64 * MiB + DISTANCE_BYTES


def test_one_who_jumps_is_let_go() -> None:
    ahead = ReadAhead()
    ahead.waited(0, 4096)

    assert ahead.follow(1 * MiB, 4096) is None
    assert ahead.follow(4096, 4096) is not None
    assert ahead.follow(4096, 4096) is None


def test_waiting_again_does_not_begin_anew() -> None:
    """What was read ahead for him already is not asked for twice."""
    ahead = ReadAhead()
    ahead.waited(0, 4096)
    ahead.follow(4096, 4096)
    ahead.waited(4096, 4096)

    assert ahead.follow(8192, 4096) == range(16384, 24576)


def test_readers_side_by_side_are_followed_each() -> None:
    ahead = ReadAhead()
    for base in (0, 100 * MiB, 200 * MiB):
        ahead.waited(base, 4096)

    for base in (0, 100 * MiB, 200 * MiB):
        assert ahead.follow(base + 4096, 4096) == range(base + 8192, base + 16384)


def test_of_very_many_readers_the_oldest_are_forgotten() -> None:
    ahead = ReadAhead()
    for reader in range(100):
        ahead.waited(reader * MiB, 4096)

    assert ahead.follow(0 * MiB + 4096, 4096) is None
    assert ahead.follow(99 * MiB + 4096, 4096) is not None


def test_one_for_whom_nothing_had_to_be_read_is_let_go() -> None:
    ahead = ReadAhead()
    ahead.waited(0, 4096)
    ahead.follow(4096, 4096)
    ahead.was_in_memory(4096, 4096)

    assert not ahead


def test_a_quick_disk_is_waited_for_in_place() -> None:
    disk = DiskWaits()
    for _ in range(100):
        disk.took(0.001)

    assert disk.are_short


def test_a_disk_that_hung_is_left_to_threads_until_it_is_quick_again() -> None:
    disk = DiskWaits()
    disk.took(30.0)
    assert not disk.are_short

    waits = 0
    while not disk.are_short:
        disk.took(0.0001)
        waits += 1

    assert 5 < waits < 60


def test_a_slow_disk_stays_with_the_threads() -> None:
    disk = DiskWaits()
    for _ in range(50):
        disk.took(0.005)

    assert not disk.are_short
