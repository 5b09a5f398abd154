"""``fastpull-node``."""

from __future__ import annotations

import sys

from fastpull.fuse_client.cli.run import run


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
