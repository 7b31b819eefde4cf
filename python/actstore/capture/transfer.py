"""From a GPU to the host while the GPU goes on: pinned buffers, a stream of its own, an event for each copy.

A buffer is read only after the event behind its copy has come to pass: a `non_blocking` copy returns before
the bytes are there, and reading them at once gives those of the copy before.
"""

import queue
import threading
from collections.abc import Callable

import torch

Place = Callable[[torch.Tensor], None]
"""Called in a thread with what arrived; the tensor is used again once it returns."""


class Transfer:
    """Copies tensors of CUDA devices to the host and hands them over, in the order in which they were sent.

    Parameters
    ----------
    n_buffers : int
        Copies under way or not yet handed over; whoever sends more waits.
    """

    def __init__(self, n_buffers: int = 8) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._free: queue.Queue[torch.Tensor] = queue.Queue()
        for _ in range(n_buffers):
            self._free.put(torch.empty(0, dtype=torch.uint8, device="cpu"))
        self._under_way: queue.Queue[tuple[torch.Tensor, torch.Tensor, torch.cuda.Event, Place] | None]
        self._under_way = queue.Queue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="actstore-transfer", daemon=True)
        self._thread.start()

    def send(self, rows: torch.Tensor, place: Place) -> None:
        """Copy `rows` to the host behind the work that computes them, then call `place`."""
        self._raise()
        rows = rows.contiguous()
        buffer = self._free.get()
        n_bytes = rows.numel() * rows.element_size()
        if buffer.numel() < n_bytes:
            buffer = torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        here = buffer[:n_bytes].view(rows.dtype).view(rows.shape)
        stream = self._streams.get(rows.device)
        if stream is None:
            stream = self._streams[rows.device] = torch.cuda.Stream(rows.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            here.copy_(rows, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        # The allocator must not give the memory to others while it is read.
        rows.record_stream(stream)
        self._under_way.put((buffer, here, arrived, place))

    def drain(self) -> None:
        """Wait until everything that was sent is handed over.

        Raises
        ------
        Exception
            What `place` raised, if it did.
        """
        self._under_way.join()
        self._raise()

    def close(self) -> None:
        """End the thread."""
        self._under_way.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while True:
            item = self._under_way.get()
            try:
                if item is None:
                    return
                buffer, here, arrived, place = item
                try:
                    arrived.synchronize()
                    if self._error is None:
                        with torch.inference_mode():
                            place(here)
                finally:
                    self._free.put(buffer)
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._under_way.task_done()
