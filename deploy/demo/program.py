"""The program of the demo image: imports what a model server imports, then says that it is ready."""

import time

started = time.monotonic()
print("started", flush=True)

import numpy
import safetensors.torch  # noqa: F401
import tokenizers
import torch
import transformers

total = torch.nn.Linear(64, 64)(torch.from_numpy(numpy.ones((1, 64), dtype="float32"))).sum().item()

print(
    f"ready: torch {torch.__version__}, transformers {transformers.__version__}, tokenizers {tokenizers.__version__},"
    f" imported in {time.monotonic() - started:.1f} s, a linear layer says {total:.2f}",
    flush=True,
)
