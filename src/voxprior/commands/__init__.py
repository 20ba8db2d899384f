"""Verbs of the command line: read a card and paths, call the rooms, write by rename."""
