"""The files of an export.

    actstore.json                the manifest: sites, columns, whiteners, and the store's identity
    resid.6.safetensors          tensor "resid.6" [rows, dim]
    columns.safetensors          "tokens/offset", "tokens/id", "examples/id/bytes", ...
    whiteners.safetensors        "white/mean", "white/components", "white/variance", "white/norm", ...

The last two cannot collide with a site's file, since a label follows each site's name.
"""

MANIFEST = "actstore.json"
COLUMNS = "columns.safetensors"
WHITENERS = "whiteners.safetensors"
EXPORT_FORMAT = 1
"""The format version in the manifest."""


def layer_name(site: str, label: int) -> str:
    """The name of a layer's tensor. Its file is called the same, plus ``.safetensors``."""
    return f"{site}.{label}"
