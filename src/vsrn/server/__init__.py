"""The service over an index: HTTP for programs, one page for people."""
