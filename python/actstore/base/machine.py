"""The machine's measured peak memory bandwidth and arithmetic throughput, for a roofline estimate."""

from dataclasses import dataclass

from .. import _native


@dataclass(frozen=True)
class Limits:
    """Measured peak rates of this machine.

    Attributes
    ----------
    read_bytes_per_second : float
        Memory read bandwidth of all threads together.
    flops_per_second : float
        float32 additions and multiplications per second, all threads together.
    """

    read_bytes_per_second: float
    flops_per_second: float

    def best(self, other: "Limits") -> "Limits":
        """The higher rates of two measurements."""
        return Limits(
            max(self.read_bytes_per_second, other.read_bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )

    def least_seconds(self, n_bytes: float, flops: float) -> tuple[float, str]:
        """The minimum time for a workload, and its bottleneck: ``"bandwidth"`` or ``"peak"``.

        Parameters
        ----------
        n_bytes : float
            Bytes read from memory.
        flops : float
            float32 operations.

        Returns
        -------
        (float, str)
            Seconds, ``max(n_bytes / read_bytes_per_second, flops / flops_per_second)``, and the rate that
            determines them.

        Examples
        --------
        >>> Limits(10e9, 100e9).least_seconds(n_bytes=20e9, flops=100e9)
        (2.0, 'bandwidth')
        """
        read, compute = n_bytes / self.read_bytes_per_second, flops / self.flops_per_second
        return (read, "bandwidth") if read >= compute else (compute, "peak")


def machine_limits(threads: int = 0) -> Limits:
    """Measure the limits, which takes about a second; 0 threads means all cores."""
    rates = _native.machine_limits(threads)
    return Limits(rates["read_bytes_per_second"], rates["f32_flops_per_second"])
