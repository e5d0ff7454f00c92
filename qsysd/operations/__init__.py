"""One function an operation: plain values in, plain values out; it prints nothing and never exits."""
