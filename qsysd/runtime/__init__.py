"""What the units run: at each start and stop of a VM, as a copy outside the package.

Standard library only, and cheap to import: modules here avoid `dataclasses`, `enum`, `json`, `re`,
`socket`, `subprocess` and `typing`, and import inside functions what only one verb needs.
Nowhere else is start-up bought with clarity.
"""
