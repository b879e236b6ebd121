"""The jobs that a user launches; each module is a subcommand of `udaseg`."""
