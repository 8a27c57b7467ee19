"""The command line: arguments in, exit codes out. The client verbs know only the files of a mounted tree."""
