"""The program of the demo image: imports what a model server imports, then says that it is ready."""

import time

started = time.monotonic()

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoTokenizer  # noqa: E402, F401

layer = torch.nn.Linear(64, 64)
result = layer(torch.ones(1, 64)).sum().item()

print(
    f"ready: torch {torch.__version__}, transformers {transformers.__version__}, "
    f"imports {time.monotonic() - started:.2f} s, check {result == result}",
    flush=True,
)
