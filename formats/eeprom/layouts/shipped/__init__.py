"""The layouts that come with the project: a TOML file each, named by its type."""
