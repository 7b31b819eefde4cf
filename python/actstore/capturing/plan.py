"""Estimating the cost of a capture from a short pilot run: bytes, seconds, and whether the disk has room."""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.text import human_bytes
from ..disk.create import create
from ..disk.layout import EXAMPLES
from ..errors import StorageError
from ..store import open as open_store
from .inputs.example import Example
from .inputs.sizes import stored_rows

if TYPE_CHECKING:
    from .session import Session

_PILOT_TOKENS = 2048
"""Limit on the tokens of the pilot run."""
_SHARD_BYTES, _CHUNK_BYTES = 256 << 20, 1 << 20
_RESERVE = 0.02
"""Fraction of the free bytes to leave free."""


@dataclass(frozen=True)
class Plan:
    """The estimated cost of a capture, from a sample of the input.

    Attributes
    ----------
    n_examples, n_tokens : int or None
        Of the whole input; None if its length is unknown.
    sample_examples, sample_tokens : int
        Size of the sample.
    sites : dict
        By name: ``shape`` (rows None if unknown), ``dtype``, ``layers``, ``raw_bytes``.
    raw_bytes, stored_bytes : int or None
        Before and after compression.
    ratio : float
        Compression ratio of the pilot's rows.
    tokens_per_second : float
    seconds : float or None
        Time of the model and of writing.
    free_bytes : int
        On the disk of the store.
    """

    n_examples: int | None
    n_tokens: int | None
    sample_examples: int
    sample_tokens: int
    sites: dict[str, dict[str, Any]]
    raw_bytes: int | None
    stored_bytes: int | None
    ratio: float
    tokens_per_second: float
    seconds: float | None
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the disk has room; True if the size is unknown."""
        return self.fits_beside(0)

    def fits_beside(self, n_bytes: int) -> bool:
        """Whether the disk has room for the capture and `n_bytes` more."""
        return self.stored_bytes is None or self.stored_bytes + n_bytes <= self.free_bytes * (1 - _RESERVE)

    def json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return vars(self) | {"fits": self.fits}

    def __str__(self) -> str:
        n = "?" if self.n_examples is None else f"{self.n_examples:,}"
        tokens = "?" if self.n_tokens is None else f"about {self.n_tokens:,}"
        lines = [f"examples    {n}", f"tokens      {tokens}"]
        for name, site in self.sites.items():
            rows = "?" if site["shape"][0] is None else f"{site['shape'][0]:,}"
            size = "" if site["raw_bytes"] is None else f", {human_bytes(site['raw_bytes'])}"
            lines.append(
                f"site        {name}  {site['dtype']} [{rows}, {site['shape'][1]}, {site['shape'][2]}]{size}"
            )
        if self.stored_bytes is not None and self.raw_bytes is not None:
            lines.append(
                f"disk        about {human_bytes(self.stored_bytes)} ({human_bytes(self.raw_bytes)} before "
                f"compression, ratio {self.ratio:.2f})"
            )
        else:
            lines.append(f"disk        unknown; ratio {self.ratio:.2f}")
        fits = "" if self.fits else ": too little"
        lines.append(f"free        {human_bytes(self.free_bytes)}{fits}")
        duration = "" if self.seconds is None else f"about {clock(self.seconds)}, "
        lines.append(f"time        {duration}{self.tokens_per_second:,.0f} tokens/s")
        return "\n".join(lines)


def estimate(
    session: "Session",
    sample: Sequence[Example],
    n_examples: int | None,
    path: str,
    *,
    codec: Any = "blosc",
    pilot_share: float = 1.0,
) -> Plan:
    """Estimate the cost of a capture by a pilot run.

    Parameters
    ----------
    session : Session
    sample : sequence of Example
        Finalized examples, spread over the input.
    n_examples : int, optional
        Number of examples in the whole input.
    path : str
        Path of the store; it need not exist.
    codec : {"blosc", "raw"}
    pilot_share : float
        Limit on the pilot, as a fraction of the whole; at least one example is run. With 0 there is no pilot,
        so the speed is unknown and rows count uncompressed.
    """
    tokens = [sum(map(session.cost, example.pieces)) for example in sample]
    per_example = len(sample) or 1
    n = None if n_examples is None or not sample else n_examples
    total = None if n is None else round(sum(tokens) * n / per_example)
    sites: dict[str, dict[str, Any]] = {}
    for target in session.targets:
        n_layers, dim = len(target.site.labels), target.site.dim
        n_rows = n
        if target.axis != EXAMPLES and n is not None:
            pieces = [piece for example in sample for piece in example.pieces]
            n_stored = sum(len(stored_rows(piece)[target.axis]) for piece in pieces)
            n_rows = round(n_stored * n / per_example)
        sites[target.site.name] = {
            "shape": [n_rows, n_layers, dim],
            "dtype": str(target.dtype).removeprefix("torch."),
            "layers": list(target.site.labels),
            "raw_bytes": None if n_rows is None else n_rows * n_layers * dim * target.dtype.itemsize,
        }
    raw = None if n is None else sum(site["raw_bytes"] for site in sites.values())
    limit = _PILOT_TOKENS if total is None else min(_PILOT_TOKENS, total * pilot_share)
    speed, ratio = _pilot(session, sample, tokens, limit, codec) if pilot_share else (0.0, 1.0)
    return Plan(
        n_examples=n,
        n_tokens=total,
        sample_examples=len(sample),
        sample_tokens=sum(tokens),
        sites=sites,
        raw_bytes=raw,
        stored_bytes=None if raw is None else round(raw / ratio),
        ratio=ratio,
        tokens_per_second=speed,
        seconds=None if total is None or not speed else total / speed,
        free_bytes=_free_bytes(path),
    )


def _pilot(
    session: "Session", sample: Sequence[Example], tokens: Sequence[int], limit: float, codec: Any
) -> tuple[float, float]:
    """Run some examples of a sample. Returns tokens per second and the compression ratio."""
    pilot: list[Example] = []
    n_pilot = 0
    for i in np.random.default_rng(0).permutation(len(sample)).tolist():
        if not pilot or n_pilot + tokens[i] <= limit:
            pilot.append(sample[i])
            n_pilot += tokens[i]
    start = time.perf_counter()
    session.run_examples(pilot)
    ratio = _ratio(session, len(pilot)) if codec != "raw" else 1.0
    return n_pilot / max(time.perf_counter() - start, 1e-9), ratio


def fits(plan: Plan, max_bytes: int | None, existing: str | None = None) -> bool:
    """Whether `check_fits` passes."""
    try:
        check_fits(plan, max_bytes, existing)
    except StorageError:
        return False
    return True


def check_fits(plan: Plan, max_bytes: int | None, existing: str | None = None) -> None:
    """Check that a capture fits.

    Parameters
    ----------
    plan : Plan
        Of the examples to add.
    max_bytes : int, optional
        Limit on the final size of the store.
    existing : str, optional
        Path of the store that the capture resumes.

    Raises
    ------
    StorageError
        kind ``disk_full``, with the size and the limit.
    """
    if plan.stored_bytes is None:
        return
    before, tail = (0, 0) if existing is None else _stored_bytes(existing)
    what = f"the store would take about {human_bytes(plan.stored_bytes + before)}"
    hint = "use fewer layers or sites, pool=, keep= or dtype='bfloat16'; force=True captures anyway"
    if max_bytes is not None and plan.stored_bytes + before > max_bytes:
        raise StorageError(f"{what}, max_bytes is {human_bytes(max_bytes)}", kind="disk_full", hint=hint)
    if not plan.fits_beside(tail):
        stored = f", {human_bytes(before)} of which are stored already" if before else ""
        raise StorageError(
            f"{what}{stored}, {human_bytes(plan.free_bytes)} are free", kind="disk_full", hint=hint
        )


def _stored_bytes(path: str) -> tuple[int, int]:
    """The size of a store, and the extra space for appending to it.

    Appending copies the last shard of each site and rewrites its chunks that are not full.
    """
    with open_store(path) as store:
        info = store.info()
    tail = 0
    for site in info["sites"].values():
        whole = int(site["stored_bytes"])
        tail += min(whole, _SHARD_BYTES) + min(whole, _CHUNK_BYTES * len(site["layers"]))
    return int(info["stored_bytes"]), tail


def _ratio(session: "Session", n: int) -> float:
    """The compression ratio of the pilot's second half, which leaves fixed costs out."""
    half = n // 2
    raw, stored = _compressed(session, n)
    if not raw:
        return 1.0
    if half:
        raw_half, stored_half = _compressed(session, half)
        if raw > raw_half and stored > stored_half:
            return (raw - raw_half) / (stored - stored_half)
    return raw / stored


def _compressed(session: "Session", n: int) -> tuple[int, int]:
    """Bytes of the pilot's first `n` examples, raw and in a store."""
    rows = session.buffer.rows(0, n)
    raw = sum(site.nbytes for site in rows.values())
    if not raw:
        return 0, 0
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="actstore-pilot-", dir=fast) as folder:
        path = os.path.join(folder, "pilot.act")
        with create(path, session.specs()) as writer:
            lengths = {axis: session.buffer.lengths[axis][:n] for axis in session.axes}
            writer.append(rows, lengths or None)
        with open_store(path) as store:
            sites = store.info()["sites"].values()
            return raw, sum(site["stored_bytes"] for site in sites)


def _free_bytes(path: str) -> int:
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def clock(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
