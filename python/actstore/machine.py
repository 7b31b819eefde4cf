"""What the machine could do at best: the yardstick for everything else."""

from dataclasses import dataclass

from . import _native


@dataclass(frozen=True)
class Limits:
    """Measured, not looked up.

    Attributes
    ----------
    read_bytes_per_second : float
        From memory, on all threads that were asked for.
    flops_per_second : float
        Multiplications and additions of float32.
    """

    read_bytes_per_second: float
    flops_per_second: float

    def best(self, other: "Limits") -> "Limits":
        """The higher of each, of two measurements."""
        return Limits(
            max(self.read_bytes_per_second, other.read_bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )

    def least_seconds(self, n_bytes: float, flops: float) -> tuple[float, str]:
        """The least time that so much work can take, and which limit says so: ``bandwidth`` or ``peak``.

        Examples
        --------
        >>> Limits(10e9, 100e9).least_seconds(n_bytes=20e9, flops=100e9)
        (2.0, 'bandwidth')
        """
        read, compute = n_bytes / self.read_bytes_per_second, flops / self.flops_per_second
        return (read, "bandwidth") if read >= compute else (compute, "peak")


def machine_limits(threads: int = 0) -> Limits:
    """Measure the limits, in about a second; 0 threads means all cores."""
    found = _native.machine_limits(threads)
    return Limits(found["read_bytes_per_second"], found["f32_flops_per_second"])
