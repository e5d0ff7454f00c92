"""An operation as data: what is asked for, with plain arguments. Today it runs in the process that asks."""
