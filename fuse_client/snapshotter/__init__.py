"""containerd's snapshotter. ``server.SnapshotServer`` is the way in."""

import os

# Before grpc is imported: its fork handlers are for children that go on to use gRPC. Ours all exec at once, and
# with calls under way the handlers only get in the way.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
