"""The command line: flags, gin bindings, help."""
