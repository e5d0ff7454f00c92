"""The verbs: plain values in, frozen dataclasses out. An operation prints nothing and never exits."""
