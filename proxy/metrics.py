"""All metrics of the proxy. Names and labels are an interface: dashboards read them.

| metric | type | labels | what |
|---|---|---|---|
| `fastpull_proxy_requests_total` | counter | route, outcome, upstream | answers of `/v2`, see below |
| `fastpull_proxy_client_bytes_total` | counter | kind | body bytes sent: `blob`, `manifest` |
| `fastpull_proxy_upstream_requests_total` | counter | upstream, status | answers of upstreams, or `timeout`, `error` |
| `fastpull_proxy_upstream_bytes_total` | counter | upstream | body bytes received |
| `fastpull_proxy_upstream_pulls_remaining` | gauge | upstream | what the registry says is left of its pull limit |
| `fastpull_proxy_fills_running` | gauge | - | blobs on their way from upstream |
| `fastpull_proxy_fill_seconds` | histogram | outcome | until verified: `done`, `failed`, `abandoned` |
| `fastpull_proxy_fill_resumed_total` | counter | upstream | transfers that broke and were resumed |
| `fastpull_proxy_blob_store_bytes` | gauge | - | complete blobs and partial ones |
| `fastpull_proxy_blobs_evicted_total` | counter | - | blobs removed to keep the quota |
| `fastpull_proxy_blobs_mismatched_total` | counter | upstream | blobs whose bytes did not have their digest |
| `fastpull_proxy_api_requests_total` | counter | route, status | answers of `/v1` |
| `fastpull_proxy_chunks_sent_total` | counter | - | chunks sent to nodes |
| `fastpull_proxy_chunk_bytes_sent_total` | counter | - | their stored bytes, with headers |
| `fastpull_proxy_chunks_absent_total` | counter | why | chunks asked for that were not there: `missing`, `damaged` |
| `fastpull_proxy_layers_ingested_total` | counter | outcome | ingests that ended: `done`, `failed` |
| `fastpull_proxy_layer_ingest_seconds` | histogram | - | from the request to the committed index |
| `fastpull_proxy_ingested_bytes_total` | counter | - | file content of ingested layers |
| `fastpull_proxy_ingested_new_bytes_total` | counter | - | of that, not in the store before |
| `fastpull_proxy_ingests_running` | gauge | - | layers at work |
| `fastpull_proxy_chunk_store_bytes` | gauge | - | live bytes of the chunk store |
| `fastpull_proxy_chunk_store_chunks` | gauge | - | chunks in the store |
| `fastpull_proxy_chunk_bytes_evicted_total` | counter | - | bytes of chunks evicted to keep the quota |
| `fastpull_proxy_aged_out_total` | counter | kind | removed because nobody asked for it: `plan`, `chain`, `index` |
| `fastpull_proxy_workers` | gauge | - | further processes that serve now; see `listen.workers` |
| `fastpull_proxy_worker_answers_total` | counter | worker | answers that such a process gave by itself |
| `fastpull_proxy_worker_restarts_total` | counter | - | such processes that ended and were started again |

All serving processes answer with the sum of all of them. Further processes report once a second, so a figure may be a
second old, and the last second of a killed one is missing. `process_…` is of the first process.

`outcome` is `hit` (from here), `shared` (a transfer that ran already), `miss` (a transfer that this request began),
`stale` (upstream could not be asked), `bypass` (passed through, nothing kept) or `error`.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("fastpull_proxy_requests", "Answers of /v2", ["route", "outcome", "upstream"])
CLIENT_BYTES = Counter("fastpull_proxy_client_bytes", "Body bytes sent to clients of /v2", ["kind"])
UPSTREAM_REQUESTS = Counter("fastpull_proxy_upstream_requests", "Answers of upstreams", ["upstream", "status"])
UPSTREAM_BYTES = Counter("fastpull_proxy_upstream_bytes", "Body bytes received from upstreams", ["upstream"])
UPSTREAM_PULLS_REMAINING = Gauge(
    "fastpull_proxy_upstream_pulls_remaining", "Pulls that the registry says are left", ["upstream"]
)
FILLS_RUNNING = Gauge("fastpull_proxy_fills_running", "Blobs on their way from upstream")
FILL_SECONDS = Histogram(
    "fastpull_proxy_fill_seconds",
    "From the first request to the verified blob",
    ["outcome"],
    buckets=(0.05, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900),
)
FILL_RESUMED = Counter("fastpull_proxy_fill_resumed", "Broken transfers that were resumed", ["upstream"])
BLOB_STORE_BYTES = Gauge("fastpull_proxy_blob_store_bytes", "Complete and partial blobs on disk")
BLOBS_EVICTED = Counter("fastpull_proxy_blobs_evicted", "Blobs removed to keep the quota")
BLOBS_MISMATCHED = Counter("fastpull_proxy_blobs_mismatched", "Blobs that came with wrong bytes", ["upstream"])

API_REQUESTS = Counter("fastpull_proxy_api_requests", "Answers of /v1", ["route", "status"])
CHUNKS_SENT = Counter("fastpull_proxy_chunks_sent", "Chunks sent to nodes")
CHUNK_BYTES_SENT = Counter("fastpull_proxy_chunk_bytes_sent", "Stored bytes of chunks sent to nodes, with headers")
CHUNKS_ABSENT = Counter("fastpull_proxy_chunks_absent", "Chunks asked for that were not there", ["why"])
LAYERS_INGESTED = Counter("fastpull_proxy_layers_ingested", "Ingests that ended", ["outcome"])
LAYER_SECONDS = Histogram(
    "fastpull_proxy_layer_ingest_seconds",
    "From the request to the committed index",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900),
)
INGESTED_BYTES = Counter("fastpull_proxy_ingested_bytes", "File content of ingested layers")
INGESTED_NEW_BYTES = Counter("fastpull_proxy_ingested_new_bytes", "Of that, not in the store before")
INGESTS_RUNNING = Gauge("fastpull_proxy_ingests_running", "Layers at work")
CHUNK_STORE_BYTES = Gauge("fastpull_proxy_chunk_store_bytes", "Live bytes of the chunk store")
CHUNK_STORE_CHUNKS = Gauge("fastpull_proxy_chunk_store_chunks", "Chunks in the store")
CHUNK_BYTES_EVICTED = Counter("fastpull_proxy_chunk_bytes_evicted", "Bytes of chunks evicted to keep the quota")
AGED_OUT = Counter("fastpull_proxy_aged_out", "What was removed because nobody asked for it", ["kind"])

WORKERS = Gauge("fastpull_proxy_workers", "Further processes that serve")
WORKER_ANSWERS = Counter("fastpull_proxy_worker_answers", "Answers that a further process gave by itself", ["worker"])
WORKER_RESTARTS = Counter("fastpull_proxy_worker_restarts", "Further processes that ended and were started again")
