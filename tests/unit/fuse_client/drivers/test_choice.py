"""Which driver a node takes."""

from __future__ import annotations

import msgspec
import pytest

from fastpull.fuse_client.drivers.choice import Wanted, choose
from fastpull.fuse_client.drivers.errors import DriverError
from fastpull.fuse_client.drivers.probe import KernelFeatures

NEW = KernelFeatures(
    release="6.18.0", fuse_minor=45, fuse_resend=True, erofs_file_backed=True, erofs_directio=True, erofs_loop=False
)
OLD = msgspec.structs.replace(NEW, erofs_file_backed=False, erofs_directio=False, erofs_loop=True)
NONE = msgspec.structs.replace(OLD, erofs_loop=False, erofs_problem="the kernel has no EROFS")
NO_FUSE = msgspec.structs.replace(NONE, fuse_minor=0, fuse_problem="/dev/fuse: No such file or directory")


@pytest.mark.parametrize(
    ("wanted", "features", "has_pyfuse3", "name", "because"),
    [
        ("auto", NEW, False, "erofs", "from files, directly"),
        ("auto", NEW, True, "erofs", "from files"),
        ("auto", OLD, True, "erofs", "from loop devices"),
        ("auto", NONE, True, "fuse", "the kernel has no EROFS"),
        ("erofs", OLD, False, "erofs", "from loop devices"),
        ("fuse", NEW, True, "fuse", 'driver = "fuse"'),
    ],
)
def test_the_best_one_is_taken_and_says_why(
    wanted: Wanted, features: KernelFeatures, has_pyfuse3: bool, name: str, because: str
) -> None:
    choice = choose(wanted, features, has_pyfuse3=has_pyfuse3)
    assert choice.name == name
    assert because in choice.reason


@pytest.mark.parametrize(
    ("wanted", "features", "has_pyfuse3", "cause", "remedy"),
    [
        pytest.param(
            "auto", NONE, False, "pyfuse3, which is not installed", "pip install fastpull-proxy[node]", id="auto"
        ),
        pytest.param("fuse", NEW, False, "needs pyfuse3", "pip install fastpull-proxy[node]", id="fuse"),
        pytest.param("erofs", NONE, True, "the kernel has no EROFS", 'driver = "auto"', id="erofs"),
        pytest.param("auto", NO_FUSE, True, "/dev/fuse", "modprobe fuse", id="no-fuse"),
    ],
)
def test_where_none_can_be_used_the_error_says_what_to_do(
    wanted: Wanted, features: KernelFeatures, has_pyfuse3: bool, cause: str, remedy: str
) -> None:
    with pytest.raises(DriverError) as caught:
        choose(wanted, features, has_pyfuse3=has_pyfuse3)
    assert cause in str(caught.value)
    assert remedy in caught.value.remedy
