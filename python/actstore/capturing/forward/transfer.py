"""Copying tensors from a GPU to the host while the GPU keeps computing.

Copies go through pinned buffers on a separate stream. A `non_blocking` copy returns before the bytes arrive,
and reading the buffer at once would yield the previous copy. So an event follows each copy, and the buffer is
read only after that event.
"""

import queue
import threading
from collections.abc import Callable

import torch

Deliver = Callable[[torch.Tensor], None]
"""Called in the transfer thread with a tensor on the host, which is reused once the function returns."""


class Transfer:
    """Copies tensors of CUDA devices to the host and delivers them in the order in which they were sent.

    Parameters
    ----------
    n_buffers : int
        Number of copies in flight or not yet delivered. `send` waits for a free buffer.
    """

    def __init__(self, n_buffers: int = 8) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._free: queue.Queue[torch.Tensor] = queue.Queue()
        for _ in range(n_buffers):
            self._free.put(torch.empty(0, dtype=torch.uint8, device="cpu"))
        self._in_flight: queue.Queue[tuple[torch.Tensor, torch.Tensor, torch.cuda.Event, Deliver] | None]
        self._in_flight = queue.Queue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="actstore-transfer", daemon=True)
        self._thread.start()

    def send(self, rows: torch.Tensor, deliver: Deliver) -> None:
        """Copy `rows` to the host after the kernels that compute them, then call `deliver`."""
        self._raise()
        rows = rows.contiguous()
        buffer = self._free.get()
        n_bytes = rows.numel() * rows.element_size()
        if buffer.numel() < n_bytes:
            buffer = torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        host_rows = buffer[:n_bytes].view(rows.dtype).view(rows.shape)
        stream = self._streams.get(rows.device)
        if stream is None:
            stream = self._streams[rows.device] = torch.cuda.Stream(rows.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            host_rows.copy_(rows, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        # The allocator must not reuse the memory while the copy reads it.
        rows.record_stream(stream)
        self._in_flight.put((buffer, host_rows, arrived, deliver))

    def drain(self) -> None:
        """Wait until everything sent is delivered.

        Raises
        ------
        Exception
            An exception that `deliver` raised.
        """
        self._in_flight.join()
        self._raise()

    def close(self) -> None:
        """End the transfer thread."""
        self._in_flight.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while True:
            item = self._in_flight.get()
            try:
                if item is None:
                    return
                buffer, host_rows, arrived, deliver = item
                try:
                    arrived.synchronize()
                    if self._error is None:
                        with torch.inference_mode():
                            deliver(host_rows)
                finally:
                    self._free.put(buffer)
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._in_flight.task_done()
