"""The verbs of the command line, thin: they read arguments, call the library and print."""
