"""One quality bar for every silo: select instruction rows across data owners."""

__version__ = "0.1.0"
