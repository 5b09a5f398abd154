"""The portable driver: a chain's whole tree through pyfuse3, for kernels without a usable EROFS.

Each mounted chain has a process of its own (``child.py``; pyfuse3 serves one mount a process), which answers
the kernel from the chain's bootstrap and, for content, from the node's chunk store. What the store lacks it asks
of the daemon over a unix socket (``frames.py``), so that one scheduler, one cache and one trace serve all chains.

In the daemon: ``server.py`` answers the children, ``children.py`` starts, finds and ends them, and
``drivers/portable.py`` is the driver. Only ``library.py`` knows where pyfuse3 comes from.
"""
