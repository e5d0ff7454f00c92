"""The command line: one file per verb, which parses options, sends one request and prints the result."""
