"""Requests: operations as data, which run in this process today and can travel to another one later."""
