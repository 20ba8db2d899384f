"""The command line: a verb per step of the workflow, and verbs for people; each imported when it is called."""
