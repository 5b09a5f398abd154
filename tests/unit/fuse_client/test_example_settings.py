"""``deploy/examples/node.toml`` is the reference of all settings."""

from pathlib import Path

import msgspec

from fastpull.config.load import load
from fastpull.config.node import NodeSettings

EXAMPLE = Path(__file__).parents[3] / "deploy" / "examples" / "node.toml"


def test_the_example_is_the_defaults() -> None:
    """What the file says is what happens without it."""
    assert load(NodeSettings, EXAMPLE, prefix="NO_SUCH", environ={}) == NodeSettings()


def test_the_example_names_every_key() -> None:
    """A setting that is not in the example can not be found; keys without a default value are commented out."""
    text = EXAMPLE.read_text()
    for field in msgspec.structs.fields(NodeSettings):
        default = field.default
        keys = [key.name for key in msgspec.structs.fields(default)] if isinstance(default, msgspec.Struct) else []
        section = text.partition(f"[{field.name}]")[2].partition("\n[")[0] if keys else text
        for key in keys or [field.name]:
            assert f"\n{key} = " in section or f"\n# {key} = " in section, f"{field.name}.{key}"
