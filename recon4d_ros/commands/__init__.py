"""The command line's rooms: one file per command, each with `add_arguments(parser)` and
`run(arguments) -> exit code`."""
