"""Reading safetensors files."""

from collections.abc import Sequence

from ...disk.layout import TOKENS
from ...disk.spec import SiteSpec
from ...errors import InvalidInputError
from ..safetensors import TensorsReader
from .source import ImportSource, ReadRows, choose_sites, site_spec


def from_safetensors(
    path: str, sites: Sequence[str] | None, labels: Sequence[int] | None, to: str | None
) -> ImportSource:
    """A safetensors file, each of its tensors as a site.

    Raises
    ------
    InvalidInputError
        When there are no tensors, a tensor cannot be a site, or they differ in their number of rows.
    """
    file = TensorsReader(path)
    specs: dict[str, SiteSpec] = {}
    read: dict[str, ReadRows] = {}
    n_rows: int | None = None
    for name in choose_sites(sorted(file.tensors), sites, path):
        dtype, shape = file.tensors[name]
        specs[name] = site_spec(f"{path}: tensor {name!r}", shape, dtype, labels, to)
        read[name] = _tensor_reader(file, name, len(shape) == 2)
        if n_rows not in (None, shape[0]):
            raise InvalidInputError(
                f"{path}: tensor {name!r} has {shape[0]} rows, others have {n_rows}",
                hint="choose tensors with sites=",
            )
        n_rows = shape[0]
    if n_rows is None:
        raise InvalidInputError(f"{path} holds no tensors")
    return ImportSource(specs, read, {TOKENS: n_rows})


def _tensor_reader(file: TensorsReader, name: str, one_layer: bool) -> ReadRows:
    if one_layer:
        return lambda start, stop: file.read(name, start, stop)[:, None, :]
    return lambda start, stop: file.read(name, start, stop)
