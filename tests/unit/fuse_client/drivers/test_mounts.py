"""What the kernel says is mounted."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.fuse_client.drivers.mounts import parse_mountinfo

# proc_pid_mountinfo(5)
EXAMPLE = r"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
42 27 0:39 / /run/fast\040pull/dev\134ices ro,nosuid - fuse.fastpull fast\011pull ro,user_id=0
43 27 0:40 / /mnt/x rw shared:7 master:1 propagate_from:2 unbindable - erofs /meta ro,directio
"""


def test_optional_fields_and_escapes_are_understood() -> None:
    """There may be any number of optional fields, and paths hold octal escapes."""
    first, second, third = parse_mountinfo(EXAMPLE)

    assert (first.id, first.parent, first.device, first.root, first.path) == (36, 35, "98:0", "/mnt1", Path("/mnt2"))
    assert (first.fstype, first.source, first.super_options) == ("ext3", "/dev/root", "rw,errors=continue")
    assert (second.path, second.source) == (Path("/run/fast pull/dev\\ices"), "fast\tpull")
    assert (third.fstype, third.options) == ("erofs", "rw")


@pytest.mark.parametrize(
    "line", ["", "nonsense", "a b c d e f - g h i", "1 2 3:4 / /mnt rw", "1 2 3:4 / /mnt rw - erofs"]
)
def test_a_line_that_is_none_is_left_out(line: str) -> None:
    """The others still count."""
    assert [mount.id for mount in parse_mountinfo(f"{line}\n{EXAMPLE}")] == [36, 42, 43]


@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    """Mount sources and paths are chosen by others."""
    parse_mountinfo(text)
