"""The command line: parse, call the public API, print. Nothing else is decided here."""
