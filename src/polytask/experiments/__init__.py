"""Experiments that ship with the package, each a TOML file whose stem is its name."""
