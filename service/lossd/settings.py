"""Everything an operator may set, with units; a flag of `lossd serve` and `LOSSD_*` each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lossd.callers import (
    Allowance,
    ConcurrentRequests,
    MibPerMinute,
    RequestsPerMinute,
    SamplesPerMinute,
)
from lossd.loopback import is_loopback
from lossd.shared_memory import is_shared_memory_possible

_CONCURRENT_REQUESTS_OF_A_KEY = 128


def processors() -> int:
    """Processors this process may use, not those the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lossd"


class Settings(BaseSettings):
    """Settings of a service process, frozen when it starts."""

    model_config = SettingsConfigDict(
        env_prefix="LOSSD_",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="lossd serve",
    )

    host: str = "127.0.0.1"
    """Address to listen on. Without keys only a loopback address is allowed."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 picks a free one."""
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the Open Inference Protocol by gRPC, at the same address; none if not given. Needs
    lossd[grpc]."""
    keys_file: Path | None = None
    """File of keys, as `lossd keys` writes it; with one, requests need a key and any address is
    allowed."""
    allow_anonymous: bool = False
    """Let requests in that show no key, also from beyond loopback; a wrong key is still refused."""
    key_requests_per_minute: RequestsPerMinute | None = None
    """Requests a minute of a key that `lossd keys` gave no number, and of all without a key
    together; without limit if not given."""
    key_samples_per_minute: SamplesPerMinute | None = None
    """Samples a minute, likewise."""
    key_mib_per_minute: MibPerMinute | None = None
    """Bytes of bodies a minute, in MiB, likewise."""
    key_concurrent_requests: ConcurrentRequests | None = None
    """Requests in progress at a time, likewise; 128 if not given where there is a keys file."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    kernels: Literal["auto", "compiled", "eager"] = "auto"
    """auto compiles where a C++ compiler or a GPU is present."""
    threads: int = Field(default_factory=processors, ge=1, le=256)
    """CPU threads of the engine."""
    cache_dir: Path = Field(default_factory=_cache_dir)
    """Folder of compiled kernels; each kind of processor gets a folder of its own in it."""
    cache_seed_dir: Path | None = None
    """Folder of kernels that were compiled in advance, as an image brings them; those of this very
    processor are copied into the cache if it has none."""
    chunk_logits: int = Field(default=1024 * 1024, ge=8192)
    """Logits computed at a time; what fits the processor's cache is fastest."""
    max_body_mib: int = Field(default=256, ge=1)
    """Largest request body, in MiB."""
    max_json_mib: int = Field(default=256, ge=1)
    """Most memory that the lists and objects of one request's JSON may take while they are read, in
    MiB, reckoned before; 80 bytes a number and more for every list. Base64 is not counted."""
    max_arriving_mib: int = Field(default=1024, ge=1)
    """Most bytes of bodies that are received and decoded at a time, in MiB, half of them of one
    caller's requests together; beyond, requests are answered 429."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """Longest that a request body may take to arrive, in seconds; beyond, 408."""
    head_timeout_s: float = Field(default=10.0, gt=0)
    """Longest that the head of a request may take to arrive, in seconds; beyond, 408."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """Longest that a caller may take to read an answer, in seconds; beyond, it is cut off."""
    idle_timeout_s: float = Field(default=300.0, gt=0)
    """Longest that a connection is kept between two requests, in seconds. Where connections run
    out, the one that has been idle for longest goes first."""
    max_connections: int = Field(default=512, ge=1)
    """Most open connections; beyond, everything but the two health calls is answered 503."""
    max_request_samples: int = Field(default=1024, ge=1)
    """Most samples in one request."""
    max_classes: int = Field(default=1024, ge=2)
    """Most channels of logits."""
    max_batch_samples: int = Field(default=256, ge=1)
    """Most samples computed in one batch; a larger request runs alone."""
    max_batch_mib: int = Field(default=64, ge=1)
    """Most tensor bytes computed in one batch, in MiB; a larger request runs alone."""
    max_queue_samples: int = Field(default=4096, ge=1)
    """Most samples that wait; beyond, requests are answered 429. With keys, each has its share."""
    max_queue_mib: int = Field(default=1024, ge=1)
    """Most tensor bytes that wait, in MiB, likewise."""
    max_tensor_mib: int = Field(default=1024, ge=1)
    """Most bytes of tensors that are kept for `{"ref"}`, of all callers together, in MiB; 1 KiB is
    added for each."""
    key_tensor_mib: int = Field(default=256, ge=1)
    """Most of it that one caller may take, unless its key says otherwise, in MiB."""
    max_device_tensor_mib: int = Field(default=1024, ge=0)
    """Most bytes of copies of kept logits in a GPU's memory, in MiB; those used again have one."""
    tensor_ttl_s: float = Field(default=3600.0, gt=0)
    """How long a tensor is kept after it was last used, in seconds."""
    key_context_mib: int = Field(default=64, ge=1)
    """Most bytes of annotation QA's contexts that one caller may keep, in MiB; one takes 4 KiB for
    each class."""
    context_ttl_s: float = Field(default=86_400.0, gt=0)
    """How long such a context is kept after it was last used, in seconds."""
    max_delay_ms: float = Field(default=20.0, ge=0)
    """Longest that a request may be overtaken by larger groups."""
    gather_ms: float = Field(default=5.0, ge=0)
    """On a busy machine, longest that a request which comes so soon after a batch waits for as many
    as the last two had, while one key is active, in milliseconds; 0 lets a free engine begin at
    once."""
    fair_batch_ms: float = Field(default=8.0, gt=0)
    """Longest batch, by prediction, while several keys are active, in milliseconds: what a request
    of one key may have to wait for those of another; half of it beside a key that asks one thing
    after the other."""
    timeout_ms: float = Field(default=60_000.0, gt=0)
    """Deadline of a request that names none, and the most that one may name, in milliseconds."""
    shared_memory: Literal["off", "on"] = "off"
    """on lets callers on this machine send tensors in POSIX shared memory; needs Linux and a
    loopback address."""
    drain_s: float = Field(default=30.0, ge=0)
    """On SIGTERM, how long accepted work may take to finish, in seconds."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines to write."""
    log_format: Literal["json", "console"] = "json"
    """One JSON object per line, or lines for people."""
    tracing: Literal["off", "otlp"] = "off"
    """otlp sends spans to where the standard OTEL_* variables say; needs lossd[telemetry]."""

    @field_validator("shared_memory")
    @classmethod
    def _for_this_machine(cls, value: str, info: ValidationInfo) -> str:
        if value == "on" and not is_loopback(info.data.get("host", "")):
            raise ValueError("shared memory is for callers on this machine; listen on 127.0.0.1")
        if value == "on" and not is_shared_memory_possible():
            raise ValueError("this system has no /dev/shm")
        return value

    def default_allowance(self) -> Allowance:
        """What a caller may use who is allowed nothing else."""
        concurrent_requests = self.key_concurrent_requests
        if concurrent_requests is None and self.keys_file is not None:
            # Connections are taken before any queue can share them out: no key may have them all.
            concurrent_requests = _CONCURRENT_REQUESTS_OF_A_KEY
        return Allowance(
            requests_per_minute=self.key_requests_per_minute,
            samples_per_minute=self.key_samples_per_minute,
            mib_per_minute=self.key_mib_per_minute,
            concurrent_requests=concurrent_requests,
        )
