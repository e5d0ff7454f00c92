"""What the units run at each start and stop of a VM: installed as a copy outside the package.

Twenty VMs may start or stop at once, so each step must be cheap to load. For this package, and for
`errors`, `files` and `paths`, which it uses, these rules apply and apply nowhere else:

- The standard library only, and of it nothing slow: `dataclasses`, `enum`, `hashlib`, `json`, `re`,
  `socket`, `subprocess`, `tempfile` and `typing` take 2 to 20 ms each to import. Classes are plain,
  text is checked by sets of characters, programs are started by posix_spawn(3).
- What only one verb, a rare case or an error needs is imported in the function that needs it.
- Names that only annotations use are imported under `if TYPE_CHECKING:`, with the constant below
  instead of `typing.TYPE_CHECKING`. mypy and ruff take any constant of this name as true.
"""

TYPE_CHECKING = False
