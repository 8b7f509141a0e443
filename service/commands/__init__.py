"""The subcommands of ``skydelta``: one module each, with ``add_parser`` and ``run``.

A module imports nothing heavy at its top, so that ``skydelta --help`` is fast.
"""
